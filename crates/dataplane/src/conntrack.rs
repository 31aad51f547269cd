//! Connection tracking: the slow walk of a packet that no cached decision answers, and the TCP state machine.
//!
//! State never causes a drop by itself; it decides how long an idle flow is remembered. Sequence numbers are not checked.

use crate::cls::Overlay;
use crate::counters::Node;
use crate::flow::{Action, Coarse, Decision, Flow};
use crate::graph::Context;
use crate::tables::Tables;
use crate::verdict::{DropReason, PortId};
use net::tcp::{ACK, FIN, RST, SYN};

/// How far a TCP connection has got, from the control bits of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TcpState {
    /// No handshake seen (also: not TCP).
    None,
    /// SYN seen.
    NewSyn,
    /// SYN+ACK of the other side seen.
    NewSynAck,
    /// Handshake complete; remembered for a day.
    Established,
    /// One side has closed an established connection.
    FinWait,
    /// Reset, or closed by both.
    RstFin,
}

/// Whether a segment with these control bits can change the state: any SYN, FIN or RST, and what may complete a handshake.
#[inline]
pub(crate) const fn may_advance(state: TcpState, flags: u8) -> bool {
    flags & (SYN | FIN | RST) != 0 || matches!(state, TcpState::NewSynAck)
}

/// Advances the state by one segment. Bits other than SYN, ACK, FIN, RST (ECN, PSH, URG) do not matter.
pub(crate) fn advance(flow: &mut Flow, flags: u8, direction: u8, timeouts: Timeouts) {
    let from_opener = direction == flow.syn_direction;
    let next = match flags & (SYN | ACK | FIN | RST) {
        bits if bits & RST != 0 => TcpState::RstFin,
        bits if bits & FIN != 0 => match flow.tcp {
            TcpState::Established => TcpState::FinWait,
            TcpState::None
            | TcpState::NewSyn
            | TcpState::NewSynAck
            | TcpState::FinWait
            | TcpState::RstFin => TcpState::RstFin,
        },
        SYN if matches!(flow.tcp, TcpState::None | TcpState::RstFin) => {
            flow.syn_direction = direction;
            TcpState::NewSyn
        }
        bits if bits == SYN | ACK && !from_opener && flow.tcp == TcpState::NewSyn => {
            TcpState::NewSynAck
        }
        ACK if from_opener && flow.tcp == TcpState::NewSynAck => TcpState::Established,
        _ => flow.tcp,
    };
    flow.tcp = next;
    flow.timeout = match next {
        TcpState::Established => timeouts.established,
        TcpState::None
        | TcpState::NewSyn
        | TcpState::NewSynAck
        | TcpState::FinWait
        | TcpState::RstFin => timeouts.idle,
    };
}

/// Idle times in [`Coarse`] units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub idle: u32,
    pub established: u32,
}

/// Takes the decision for a packet and remembers it in the packet's flow, which is created if needed.
///
/// Nothing is remembered of packets that end in a drop, so refused traffic cannot fill the table.
pub(crate) fn track(cx: &mut Context<'_>, overlay: &Overlay) -> Result<Decision, DropReason> {
    cx.counters.count(Node::Conntrack);
    match overlay.l4? {
        crate::cls::L4::Flow { tuple, tcp_flags } => {
            let keyed = cx.hasher.tuple(cx.vni, &tuple).ok_or(DropReason::Bug)?;
            let decision = crate::route_lookup::decide(cx, overlay, &tuple)?;
            let owner = (cx.machine, cx.generation);
            let index = match cx.flows.find(&keyed) {
                Some(index) => {
                    let flow = cx.flows.get_mut(index).ok_or(DropReason::Bug)?;
                    if !is_owner_attached(cx.tables, flow) {
                        // The interface that opened this flow is gone; what follows is a new connection.
                        (flow.owner_port, flow.owner) = owner;
                        (flow.origin, flow.tcp) = (keyed.direction, TcpState::None);
                        flow.timeout = cx.timeouts.idle;
                        flow.decisions = [Decision::UNDECIDED; 2];
                    }
                    index
                }
                None => {
                    let created = cx.flows.insert(&keyed, owner, cx.now);
                    cx.counters.flows_created += u64::from(created.is_some());
                    created.ok_or(DropReason::FlowTableFull)?
                }
            };
            let flow = cx.flows.get_mut(index).ok_or(DropReason::Bug)?;
            flow.last_seen = cx.now;
            if let Some(flags) = tcp_flags {
                advance(flow, flags, keyed.direction, cx.timeouts);
            }
            let place = flow.decision_mut(keyed.direction);
            cx.counters.flows_redecided += u64::from(place.action != Action::Undecided);
            *place = decision;
            Ok(decision)
        }
        crate::cls::L4::Error { quoted } => {
            // The quoted packet was sent by the one who gets the error (RFC 5508 §4: match the embedded packet).
            let about_receiver = quoted.source == overlay.destination;
            let keyed = cx
                .hasher
                .tuple(cx.vni, &quoted)
                .ok_or(DropReason::IcmpUnrelated)?;
            if !about_receiver || cx.flows.find(&keyed).is_none() {
                return Err(DropReason::IcmpUnrelated);
            }
            crate::route_lookup::decide(cx, overlay, &quoted)
        }
    }
}

fn is_owner_attached(tables: &Tables, flow: &Flow) -> bool {
    generation_at(tables, flow.owner_port) == Some(flow.owner)
}

fn generation_at(tables: &Tables, port: PortId) -> Option<u32> {
    Some(tables.port(port)?.interface.as_ref()?.generation)
}

impl Timeouts {
    pub(crate) const fn new(idle: u32) -> Timeouts {
        Timeouts {
            idle,
            established: Coarse::units(crate::EngineConfig::TCP_ESTABLISHED_TIMEOUT_S),
        }
    }
}
