//! Looking at a worker from outside: its connections as rows, and one of them as a copy for a rehearsal. Nothing here is called per packet.

use super::Worker;
use crate::cls::{self, FromMachine, L4, Overlay};
use crate::config::{Limits, PortKind};
use crate::conntrack::TcpState;
use crate::flow::adjacency::Adjacency;
use crate::flow::key::{Scope, Tuple};
use crate::flow::{Action, Coarse, Cold, Entry, Ingress};
use crate::fragments::PieceKey;
use crate::inspect::{FlowOutput, FlowRow};
use crate::ipip;
use crate::stages::virtual_services;
use crate::tables::Tables;
use crate::time::Instant;
use crate::verdict::PortId;

/// Room of a worker that sees one packet: the connection it belongs to, the one it begins, and what ICMP errors need.
const REHEARSAL: Limits = Limits {
    flows_max: 8,
    adjacencies_max: 16,
    underlay_max: 0,
    vnis_max: 0,
    routes_per_vni_max: 0,
    nat_max: 8,
    load_balancers_max: 0,
    neighbor_nats_max: 0,
};

/// A copy of what a worker knows of a packet's connection, to be tried elsewhere.
#[derive(Clone, Debug)]
pub struct KnownConnection {
    tracked: Option<Tracked>,
    /// If the frame is a piece of a fragmented packet: what its first piece showed, and when.
    piece: Option<(PieceKey, Tuple, Coarse)>,
}

impl KnownConnection {
    /// Whether it is tracked; those of virtual services are not.
    #[must_use]
    pub fn is_tracked(&self) -> bool {
        self.tracked.is_some()
    }
}

#[derive(Clone, Debug)]
struct Tracked {
    entries: [Entry; 2],
    /// The tunnels that the entries use.
    tunnels: [Option<Adjacency>; 2],
    record: Cold,
}

/// Places in the flow table that one call of [`Worker::visit_flows`] looks at: some ten microseconds.
pub const FLOW_PAGE_MAX: usize = 4_096;

impl Worker {
    /// Shows both directions of the connections at [`FLOW_PAGE_MAX`] places of the table, from place `from` on, in no particular order; returns
    /// the place to go on from, `None` at the end. Packets can be handled in between; a connection that comes or goes then may be missed.
    pub fn visit_flows(
        &self,
        tables: &Tables,
        now: Instant,
        from: u32,
        mut visit: impl FnMut(FlowRow),
    ) -> Option<u32> {
        for (number, entry) in self.flows.live(from, FLOW_PAGE_MAX) {
            if let Some(row) = self.row(tables, number, entry, Coarse::of(now)) {
                visit(row);
            }
        }
        let next = from as usize + FLOW_PAGE_MAX;
        (next < self.flows.numbers_end()).then_some(next as u32)
    }

    fn row(&self, tables: &Tables, number: u32, entry: &Entry, now: Coarse) -> Option<FlowRow> {
        let other = self.flows.entry(number ^ 1)?;
        let record = self.flows.cold(number)?;
        let output = match entry.action {
            Action::Undecided => FlowOutput::Undecided,
            Action::Deliver => FlowOutput::Deliver(PortId(entry.target as u16)),
            Action::Encap => {
                let tunnel = self.adjacencies.get(entry.target)?;
                FlowOutput::Encap {
                    port: tunnel.port,
                    source: tunnel.source(),
                    destination: tunnel.destination(),
                }
            }
        };
        let idle = now.since(entry.last_seen).min(now.since(other.last_seen));
        let epoch = tables.epoch;
        Some(FlowRow {
            vni: entry.key.scope().vni(),
            shows: entry.key.tuple().into(),
            leaves: other.key.tuple().inverted().into(),
            is_reply: number & 1 == 1,
            service: record.service.into(),
            output,
            state: state_name(record.tcp),
            owner: (record.owner != 0).then_some(record.owner_port),
            idle_s: seconds(idle),
            timeout_s: seconds(self.flows.timeout(record.tcp)),
            is_current: entry.action != Action::Undecided && entry.epoch << 1 == epoch << 1,
        })
    }

    /// What is known of the connection to which a frame from `port` belongs, if this worker has seen anything of it.
    #[must_use]
    pub fn known_connection(
        &self,
        tables: &Tables,
        port: PortId,
        frame: &[u8],
    ) -> Option<KnownConnection> {
        let Some((scope, ingress, overlay)) = parsed(tables, port, frame) else {
            let piece = Some(self.recall(virtual_services::answer_piece(frame)?)?);
            let tracked = None;
            return Some(KnownConnection { tracked, piece });
        };
        let key = overlay.piece_key(scope.place(ingress));
        let piece = key.and_then(|key| self.recall(key));
        let tuple = shown(&overlay).or(piece.map(|(_, tuple, _)| tuple))?;
        let tracked = self.tracked(scope, &tuple);
        (tracked.is_some() || piece.is_some()).then_some(KnownConnection { tracked, piece })
    }

    fn recall(&self, key: PieceKey) -> Option<(PieceKey, Tuple, Coarse)> {
        let (tuple, since) = self.fragments.recall(&key)?;
        Some((key, tuple, since))
    }

    fn tracked(&self, scope: Scope, tuple: &Tuple) -> Option<Tracked> {
        let keyed = self.flows.keyed(scope, tuple)?;
        let number = self.flows.find(&keyed)? & !1;
        let entries = [*self.flows.entry(number)?, *self.flows.entry(number | 1)?];
        let tunnels = entries.map(|entry| match entry.action {
            Action::Encap => self.adjacencies.get(entry.target).copied(),
            Action::Undecided | Action::Deliver => None,
        });
        Some(Tracked {
            entries,
            tunnels,
            record: *self.flows.cold(number)?,
        })
    }

    /// A worker that knows of nothing but this connection.
    pub(crate) fn rehearsing(tables: &Tables, known: Option<&KnownConnection>) -> Worker {
        let settings = &tables.settings;
        let mut worker = Worker::new(tables.ports.len(), &REHEARSAL, settings, 0);
        if let Some((key, tuple, since)) = known.and_then(|known| known.piece) {
            worker.fragments.remember(key, tuple, since);
        }
        if let Some(tracked) = known.and_then(|known| known.tracked.as_ref()) {
            // A connection that cannot be copied is treated as a new one.
            let _ = worker.adopt(tracked);
        }
        worker
    }

    fn adopt(&mut self, tracked: &Tracked) -> Option<()> {
        let Tracked {
            entries,
            tunnels,
            record,
        } = tracked;
        let [Some(forward), Some(backward)] = entries.map(|entry| {
            let tuple = entry.key.tuple();
            self.flows.keyed(entry.key.scope(), &tuple)
        }) else {
            return None;
        };
        let owner = (record.owner_port, record.owner);
        let [one, two] = entries;
        let places = [(forward.place, one), (backward.place, two)];
        let number = self.flows.insert(places, owner, record.service)?;
        for ((side, entry), tunnel) in (0..).zip(entries).zip(tunnels) {
            let target = match tunnel {
                Some(tunnel) => self.adjacencies.acquire(tunnel)?,
                None => entry.target,
            };
            *self.flows.entry_mut(number | side)? = Entry { target, ..*entry };
        }
        let place = self.flows.cold_mut(number)?;
        (place.tcp, place.syn_side) = (record.tcp, record.syn_side);
        Some(())
    }
}

/// A frame of the overlay, and how and where it is looked up.
fn parsed(tables: &Tables, port: PortId, frame: &[u8]) -> Option<(Scope, Ingress, Overlay)> {
    let found = tables.port(port)?;
    match found.kind {
        PortKind::Machine => {
            let vni = found.interface.as_ref()?.interface.spec.vni;
            match cls::from_machine(frame).ok()? {
                FromMachine::Overlay(overlay) => {
                    Some((Scope::machine(vni), Ingress::machine(port), overlay))
                }
                FromMachine::Arp
                | FromMachine::Solicitation(..)
                | FromMachine::Dhcp
                | FromMachine::Dhcpv6 => None,
            }
        }
        PortKind::Uplink(_) => {
            let tunnelled = ipip::decap(tables, frame).ok()?;
            let overlay = cls::from_tunnel(tunnelled.protocol, tunnelled.inner).ok()?;
            let ingress = Ingress::tunnel(tunnelled.slot);
            Some((tunnelled.endpoint.scope, ingress, overlay))
        }
    }
}

/// The tuple of a packet, or of the packets that travel like this ICMP error.
pub(crate) fn shown(overlay: &Overlay) -> Option<Tuple> {
    match overlay.l4.ok()? {
        L4::Flow { tuple, .. } => Some(tuple),
        L4::Error { quoted } => Some(quoted.inverted()),
        L4::Later => None,
    }
}

/// Whole seconds of coarse time.
fn seconds(units: u32) -> u32 {
    ((u64::from(units) << 24) / 1_000_000_000) as u32
}

fn state_name(state: TcpState) -> &'static str {
    match state {
        TcpState::None => "none",
        TcpState::NewSyn => "syn",
        TcpState::NewSynAck => "synack",
        TcpState::Established => "est",
        TcpState::FinWait => "finwait",
        TcpState::RstFin => "rstfin",
    }
}
