//! Telling another instance what this worker did, and taking over what that one did ([`crate::sync`]). Nothing here is called per packet.

use super::Worker;
use crate::conntrack;
use crate::flow::{Coarse, Service};
use crate::graph::{self, Context, Previous, Source, Walk};
use crate::port_map::{NatEnd, NatError};
use crate::stages::{self, snat};
use crate::sync::{Message, NatUse, VirtualUse};
use crate::tables::Tables;
use crate::time::Instant;
use crate::verdict::{DropReason, PortId};
use crate::virtual_service::Connection;

/// Where [`Worker::visit_shared`] goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharePlace {
    /// In the flow table.
    Flows(u32),
    /// In the table of a virtual service: its number, and the place.
    Service(usize, usize),
}

impl SharePlace {
    /// The beginning.
    pub const START: SharePlace = SharePlace::Flows(0);
}

/// Why a connection of another instance was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// Its machine, address or service is not configured here like that.
    NotConfigured,
    /// This instance has given the port to another connection.
    Conflict,
    /// No stage would send its packets.
    Refused(DropReason),
}

impl Worker {
    /// Begins to note what another instance has to know, for [`Worker::fetch_journal`].
    pub fn keep_journal(&mut self) {
        self.journal.begin();
    }

    /// Fetches what has been noted.
    pub fn fetch_journal(&mut self, tell: impl FnMut(Message)) {
        if !self.journal.is_empty() {
            self.journal.fetch().for_each(tell);
        }
    }

    /// Messages that were not noted because too many had not been fetched.
    pub fn journal_lost(&self) -> u64 {
        self.journal.lost()
    }

    /// Visits all that another instance has to know, a bounded part with every call; returns where to go on, `None` at the end. What is left of
    /// interfaces that are gone is nobody's any more.
    pub fn visit_shared(
        &self,
        tables: &Tables,
        now: Instant,
        from: SharePlace,
        mut visit: impl FnMut(Message),
    ) -> Option<SharePlace> {
        match from {
            SharePlace::Flows(from) => {
                let next = self.visit_shared_flows(tables, from, &mut visit);
                Some(next.map_or(SharePlace::Service(0, 0), SharePlace::Flows))
            }
            SharePlace::Service(number, place) => {
                let service = self.virtual_services.get(number)?;
                let page = (place, super::FLOW_PAGE_MAX);
                let is_live = |connection: &Connection| {
                    let port = tables.port(connection.port);
                    let attached = port.and_then(|port| port.interface.as_ref());
                    attached.is_some_and(|attached| attached.generation == connection.attachment)
                };
                Some(match service.visit_shared(page, is_live, now, &mut visit) {
                    Some(next) => SharePlace::Service(number, next),
                    None => SharePlace::Service(number + 1, 0),
                })
            }
        }
    }

    fn visit_shared_flows(
        &self,
        tables: &Tables,
        from: u32,
        visit: &mut dyn FnMut(Message),
    ) -> Option<u32> {
        for (number, entry) in self.flows.live(from, super::FLOW_PAGE_MAX) {
            if number & 1 == 1 || !conntrack::is_owner_attached(tables, &self.flows, number) {
                continue;
            }
            if let (Some(other), Some(record)) =
                (self.flows.entry(number | 1), self.flows.cold(number))
                && matches!(record.service, Service::Nat | Service::Nat64)
            {
                let leaves = other.key.tuple().inverted();
                let vni = entry.key.scope().vni();
                let used = snat::shared(vni, &entry.key.tuple(), &leaves);
                let machine = record.owner_port;
                used.into_iter()
                    .for_each(|used| visit(Message::NatTaken(used, machine)));
            }
        }
        let next = from as usize + super::FLOW_PAGE_MAX;
        (next < self.flows.numbers_end()).then_some(next as u32)
    }

    /// Takes over a translated connection of the machine on port `machine`, as if its packet came now: with exactly that NAT port, or not at
    /// all.
    pub fn adopt_nat(
        &mut self,
        tables: &Tables,
        machine: PortId,
        used: &NatUse,
        now: Instant,
    ) -> Result<(), NotTaken> {
        let attached = tables
            .port(machine)
            .and_then(|port| port.interface.as_ref());
        let nat = attached
            .filter(|attached| attached.interface.spec.vni == used.source.vni)
            .and_then(|attached| attached.services.nat);
        let is_share = nat.is_some_and(|nat| {
            let NatEnd { address, port } = used.end;
            nat.address == address && nat.ports.contains(port)
        });
        if !is_share {
            return Err(NotTaken::NotConfigured);
        }
        let (mut parts, _) = self.split();
        let ports = (machine, machine);
        let context = graph::context(&mut parts, tables, ports, Coarse::of(now), Source::Machine);
        adopt(&mut context.map_err(NotTaken::Refused)?, used)
    }

    /// Takes over a connection to a virtual service, of which the other instance told at `told`, with exactly that source port. Of a service's
    /// connections, the one told last comes first.
    pub fn adopt_virtual(
        &mut self,
        tables: &Tables,
        used: &VirtualUse,
        (told, now): (Instant, Instant),
    ) -> Result<(), NotTaken> {
        let attached = tables
            .port(used.machine_port)
            .and_then(|port| port.interface.as_ref())
            .filter(|attached| attached.interface.spec.ipv4 == Some(used.machine));
        let mut services = self.virtual_services.iter_mut();
        let service = services.find(|service| {
            let spec = service.spec();
            spec.is_at(used.protocol, used.address, used.port)
        });
        let (Some(attached), Some(service)) = (attached, service) else {
            return Err(NotTaken::NotConfigured);
        };
        let connection = Connection {
            port: used.machine_port,
            attachment: attached.generation,
            machine: used.machine,
            machine_port: used.source_port,
        };
        if service.adopt(used.slot, connection, (told, now)) {
            Ok(())
        } else {
            Err(NotTaken::Conflict)
        }
    }
}

/// Takes the first packet of a connection through all stages, its translation being chosen already. Nothing changes if the connection is known.
fn adopt(cx: &mut Context<'_>, used: &NatUse) -> Result<(), NotTaken> {
    let shown = snat::shown(used).ok_or(NotTaken::NotConfigured)?;
    let (tuple, leaves, service) = shown;
    let keyed = cx.flows.keyed(cx.scope(), &tuple);
    let keyed = keyed.ok_or(NotTaken::Refused(DropReason::Bug))?;
    if let Some(known) = cx.flows.find(&keyed) {
        let known = conntrack::previous(cx, known, &tuple);
        let is_same = known.is_some_and(|known| known.leaves == leaves);
        return is_same.then_some(()).ok_or(NotTaken::Conflict);
    }
    let mut walk = Walk::new(tuple);
    walk.previous = Some(Previous {
        leaves,
        service,
        target: None,
    });
    stages::process(cx, &mut walk).map_err(NotTaken::Refused)?;
    if walk.begin_anew || (walk.leaves, walk.service) != (leaves, service) {
        return Err(NotTaken::NotConfigured);
    }
    cx.nat.insert(used).map_err(|error| match error {
        NatError::Conflict | NatError::Exhausted => NotTaken::Conflict,
        NatError::Full => NotTaken::Refused(DropReason::NatTableFull),
    })?;
    let created = conntrack::remember(cx, &keyed, &walk);
    if created.is_err() {
        cx.nat.release(used.source, used.remote, used.end);
    }
    created.map(drop).map_err(NotTaken::Refused)
}
