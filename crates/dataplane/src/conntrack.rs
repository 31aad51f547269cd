//! Connection tracking: the slow walk of a packet that no cached entry answers, and the TCP state machine.
//!
//! State never causes a drop by itself; it decides how long an idle flow is remembered. Sequence numbers are not checked.

use crate::cls::{L4, Overlay};
use crate::counters::Node;
use crate::flow::adjacency::AdjacencyTable;
use crate::flow::key::{Keyed, Scope, Tuple};
use crate::flow::table::FlowTable;
use crate::flow::{Action, Entry, Ingress};
use crate::graph::{self, Context, Output, Previous, Source, Walk};
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::{flow, ipip, pmtu, route_lookup};
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

/// Whether a segment can change the state: any SYN, FIN or RST, and what may complete a handshake.
#[inline(always)]
pub(crate) const fn may_advance(entry: &Entry, flags: u8) -> bool {
    flags & (SYN | FIN | RST) | entry.flags & Entry::TRACKED != 0
}

/// Advances the state by one segment that `entry` answers. Bits other than SYN, ACK, FIN, RST (ECN, PSH, URG) do not matter.
#[cold]
#[inline(never)]
pub(crate) fn advance(flows: &mut FlowTable, entry: u32, flags: u8) {
    let side = (entry & 1) as u8;
    let Some(record) = flows.cold_mut(entry) else {
        return;
    };
    let from_opener = side == record.syn_side;
    let next = match flags & (SYN | ACK | FIN | RST) {
        bits if bits & RST != 0 => TcpState::RstFin,
        bits if bits & FIN != 0 => match record.tcp {
            TcpState::Established => TcpState::FinWait,
            TcpState::None
            | TcpState::NewSyn
            | TcpState::NewSynAck
            | TcpState::FinWait
            | TcpState::RstFin => TcpState::RstFin,
        },
        SYN if matches!(record.tcp, TcpState::None | TcpState::RstFin) => {
            record.syn_side = side;
            TcpState::NewSyn
        }
        bits if bits == SYN | ACK && !from_opener && record.tcp == TcpState::NewSyn => {
            TcpState::NewSynAck
        }
        ACK if from_opener && record.tcp == TcpState::NewSynAck => TcpState::Established,
        _ => record.tcp,
    };
    record.tcp = next;
    let waits_for_ack = next == TcpState::NewSynAck;
    for entry in [entry & !1, entry | 1] {
        if let Some(entry) = flows.entry_mut(entry) {
            entry.flags &= !Entry::TRACKED;
            entry.flags |= if waits_for_ack { Entry::TRACKED } else { 0 };
        }
    }
}

/// Finds or begins the connection of a packet, decides it, and sends the packet accordingly.
///
/// Nothing is remembered of packets that no stage lets pass, so refused traffic cannot fill the table.
pub(crate) fn track(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    ip_offset: usize,
) -> Result<Verdict, DropReason> {
    cx.counters.count(Node::Conntrack);
    let once;
    let entry = match overlay.l4? {
        L4::Flow { tuple, tcp_flags } => {
            let number = connection(cx, &tuple)?;
            if let Some(flags) = tcp_flags {
                advance(cx.flows, number, flags);
            }
            let entry = cx.flows.entry_mut(number).ok_or(DropReason::Bug)?;
            entry.last_seen = cx.now;
            &*entry
        }
        L4::Error { quoted } => {
            once = related(cx, overlay, &quoted)?;
            &once
        }
    };
    let inner_max = match entry.action {
        Action::Encap => cx.adjacencies.get(entry.target).map(|to| to.inner_max),
        Action::Undecided | Action::Deliver => None,
    };
    let sent = ipip::apply(
        entry,
        cx.adjacencies,
        &cx.tables.ports,
        packet,
        (ip_offset, overlay.length, overlay.layout),
    );
    if matches!(overlay.l4, Ok(L4::Error { .. })) {
        release(cx.adjacencies, entry);
    }
    match (sent, inner_max) {
        (Err(DropReason::PacketTooBig), Some(mtu)) => pmtu::answer(cx, packet, overlay, mtu),
        (sent, to_uplink) => {
            let encapsulated = sent.is_ok() && to_uplink.is_some();
            cx.counters
                .count_many(Node::IpipEncap, u64::from(encapsulated));
            Ok(Verdict::Transmit(sent?))
        }
    }
}

/// The decided entry for a tuple that just came in.
fn connection(cx: &mut Context<'_>, tuple: &Tuple) -> Result<u32, DropReason> {
    let keyed = cx.flows.keyed(cx.scope(), tuple).ok_or(DropReason::Bug)?;
    if let Some(entry) = cx.flows.find(&keyed) {
        let is_live = is_owner_attached(cx.tables, cx.flows, entry);
        if is_live && redecide(cx, entry, tuple)? {
            return Ok(entry);
        }
        // The interface that opened this connection is gone, or it is translated differently now: what follows is a new connection.
        end(cx, entry);
    }
    create(cx, &keyed, tuple)
}

fn create(cx: &mut Context<'_>, keyed: &Keyed, tuple: &Tuple) -> Result<u32, DropReason> {
    let mut walk = Walk::new(*tuple);
    graph::stages(cx, &mut walk)?;
    let output = walk.output.ok_or(DropReason::Bug)?;
    let back = cx
        .flows
        .keyed(answer_scope(cx, &output), &walk.leaves.inverted())
        .ok_or(DropReason::Bug)?;
    if let Some(other) = cx.flows.find(&back) {
        // Both cannot be told apart by their answers: the newer one gets them.
        end(cx, other);
    }
    let (action, target) = resolve(cx, &output, &walk.leaves)?;
    let owner = (cx.machine, cx.generation);
    let created = cx.flows.insert([keyed, &back], owner, walk.service, cx.now);
    let Some(number) = created else {
        release_target(cx.adjacencies, action, target);
        return Err(DropReason::FlowTableFull);
    };
    cx.counters.flows_created += 1;
    let (ingress, epoch) = (ingress(cx), cx.tables.epoch);
    let entry = cx.flows.entry_mut(number).ok_or(DropReason::Bug)?;
    (entry.action, entry.target) = (action, target);
    (entry.ingress, entry.epoch) = (ingress, epoch);
    let (from, to) = (walk.tuple, walk.leaves);
    let is_possible = flow::rewrite::prescribe(entry, &from, &to);
    let answer = cx.flows.entry_mut(number | 1).ok_or(DropReason::Bug)?;
    if is_possible && flow::rewrite::prescribe(answer, &to.inverted(), &from.inverted()) {
        Ok(number)
    } else {
        end(cx, number);
        Err(DropReason::Bug)
    }
}

/// Decides an entry anew; false if the connection must begin anew because it would be translated differently.
fn redecide(cx: &mut Context<'_>, number: u32, tuple: &Tuple) -> Result<bool, DropReason> {
    let other = cx.flows.entry(number ^ 1).ok_or(DropReason::Bug)?;
    let known = Previous {
        leaves: other.key.tuple().inverted(),
        service: cx.flows.cold(number).ok_or(DropReason::Bug)?.service,
    };
    let mut walk = Walk::new(*tuple);
    walk.previous = Some(known);
    if number & 1 == 0 {
        graph::stages(cx, &mut walk)?;
        if (walk.leaves, walk.service) != (known.leaves, known.service) {
            return Ok(false);
        }
    } else {
        walk.leaves = known.leaves;
        route_lookup::process(cx, &mut walk)?;
    }
    let output = walk.output.ok_or(DropReason::Bug)?;
    let (action, target) = resolve(cx, &output, &walk.leaves)?;
    let (ingress, epoch) = (ingress(cx), cx.tables.epoch);
    let entry = cx.flows.entry_mut(number).ok_or(DropReason::Bug)?;
    cx.counters.flows_redecided += u64::from(entry.action != Action::Undecided);
    release(cx.adjacencies, entry);
    (entry.action, entry.target) = (action, target);
    (entry.ingress, entry.epoch) = (ingress, epoch);
    Ok(true)
}

/// Where answers will come in: at a machine, unless the packet goes from tunnel to tunnel.
fn answer_scope(cx: &Context<'_>, output: &Output) -> Scope {
    match (cx.source, output) {
        (Source::Tunnel { endpoint, .. }, Output::Encap { .. }) => endpoint.scope,
        (Source::Machine, _) | (_, Output::Deliver(_)) => Scope::plain(cx.vni),
    }
}

fn ingress(cx: &Context<'_>) -> Ingress {
    match cx.source {
        Source::Machine => Ingress::machine(cx.machine),
        Source::Tunnel { slot, .. } => Ingress::tunnel(slot),
    }
}

/// What an entry stores of an output. An adjacency has one reference more afterwards.
fn resolve(
    cx: &mut Context<'_>,
    output: &Output,
    leaves: &Tuple,
) -> Result<(Action, u32), DropReason> {
    match output {
        Output::Deliver(port) => Ok((Action::Deliver, u32::from(port.0))),
        Output::Encap {
            uplink,
            source,
            destination,
        } => {
            let adjacency = ipip::adjacency(uplink, leaves.destination, *source, *destination);
            let index = cx.adjacencies.acquire(&adjacency);
            Ok((Action::Encap, index.ok_or(DropReason::AdjacencyTableFull)?))
        }
    }
}

fn release_target(adjacencies: &mut AdjacencyTable, action: Action, target: u32) {
    match action {
        Action::Encap => adjacencies.release(target),
        Action::Undecided | Action::Deliver => {}
    }
}

/// Gives back what an entry holds.
pub(crate) fn release(adjacencies: &mut AdjacencyTable, entry: &Entry) {
    release_target(adjacencies, entry.action, entry.target);
}

/// Ends a connection before its time.
fn end(cx: &mut Context<'_>, number: u32) {
    for number in [number & !1, number | 1] {
        if let Some(entry) = cx.flows.entry(number) {
            release(cx.adjacencies, entry);
        }
    }
    cx.flows.forget(number);
}

/// How an ICMP error about a packet of a tracked connection is sent.
///
/// The error travels like the answers to the quoted packet, which was sent by the one who gets the error (RFC 5508 §4: match the embedded
/// packet).
fn related(cx: &mut Context<'_>, overlay: &Overlay, quoted: &Tuple) -> Result<Entry, DropReason> {
    let about_receiver = quoted.source == overlay.destination;
    let keyed = cx.flows.keyed(cx.scope(), &quoted.inverted());
    let keyed = keyed.ok_or(DropReason::IcmpUnrelated)?;
    if !about_receiver || cx.flows.find(&keyed).is_none() {
        return Err(DropReason::IcmpUnrelated);
    }
    let mut walk = Walk::new(Tuple {
        source: overlay.source,
        destination: overlay.destination,
        ..*quoted
    });
    route_lookup::process(cx, &mut walk)?;
    let output = walk.output.ok_or(DropReason::Bug)?;
    let (action, target) = resolve(cx, &output, &walk.leaves)?;
    Ok(Entry {
        key: keyed.key,
        action,
        target,
        ..Entry::FREE
    })
}

fn is_owner_attached(tables: &Tables, flows: &FlowTable, entry: u32) -> bool {
    flows.cold(entry).is_some_and(|record| {
        record.owner == 0 || generation_at(tables, record.owner_port) == Some(record.owner)
    })
}

fn generation_at(tables: &Tables, port: PortId) -> Option<u32> {
    Some(tables.port(port)?.interface.as_ref()?.generation)
}
