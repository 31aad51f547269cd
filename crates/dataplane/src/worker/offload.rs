//! Offload as a worker does it: between bursts it looks for flows that a NIC can handle, gives orders, and hears reports.
//!
//! A flow in the NIC shows no packets here, so what packets would do is done for it: its idle time ends with every report of hits, and after a
//! change of configuration it is looked at as if a packet had come.

use super::Worker;
use crate::config::PortKind;
use crate::flow::key::FlowKey;
use crate::flow::{Action, Coarse};
use crate::graph;
use crate::offload::translate::{Decided, translate};
use crate::offload::{FlowId, Nic, OffloadCounters, Order, Report, Rule, Stays};
use crate::tables::Tables;
use crate::time::Instant;
use crate::verdict::PortId;

/// Flow entries that one call looks at for new work: a few microseconds, unless there is some.
const ENTRIES_PER_CALL_MAX: usize = 1_024;
/// Flows that one call begins at most, and places that it looks at.
const BEGIN_PER_CALL_MAX: usize = 64;
const SLOTS_PER_CALL_MAX: u32 = 256;

impl Worker {
    /// Looks at a portion of the flows: orders rules for those that a NIC can handle and takes back those of flows that have ended or changed.
    /// `order` says whether it took the order; one that was not taken is given again at a later call. True asks to be called again soon, because
    /// the tables have changed and not all flows have been looked at since.
    ///
    /// Call it between bursts, every few milliseconds, with the tables of the bursts.
    pub fn offload(
        &mut self,
        tables: &Tables,
        nic: &Nic,
        now: Instant,
        order: &mut dyn FnMut(Order) -> bool,
    ) -> bool {
        let now = Coarse::of(now);
        if self.offloaded.epoch != tables.epoch {
            (self.offloaded.epoch, self.offloaded.left) = (tables.epoch, self.offloaded.len());
        }
        for _ in 0..SLOTS_PER_CALL_MAX.min(self.offloaded.len()) {
            if !self.check_next_slot(tables, nic, now, order) {
                self.offloaded.counters.queue_full += 1;
                break;
            }
        }
        self.begin(tables, nic, order);
        self.offloaded.left != 0
    }

    /// What was counted about offload.
    #[must_use]
    pub fn offload_counters(&self) -> &OffloadCounters {
        &self.offloaded.counters
    }

    /// Takes notice of what the NIC did.
    pub fn offload_report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Installed(_) => self.offloaded.counters.installed += 1,
            Report::Refused(flow) => {
                self.offloaded.counters.count(Stays::Refused);
                let Some(slot) = self.offloaded.of(flow) else {
                    return;
                };
                let number = slot.entry;
                self.offloaded.leave(flow.slot);
                let state = self.state(number);
                self.offloaded.judge(number, state);
            }
            Report::Hits {
                flow,
                packets,
                bytes,
            } => {
                self.offloaded.counters.packets += packets;
                self.offloaded.counters.bytes += bytes;
                self.keep_alive(flow, Coarse::of(now));
            }
        }
    }

    fn keep_alive(&mut self, flow: FlowId, now: Coarse) {
        let Some(slot) = self.offloaded.of(flow) else {
            return;
        };
        if let Some(entry) = self.flows.entry_mut(slot.entry)
            && entry.key.is(&slot.key)
        {
            entry.last_seen = now;
        }
    }

    /// Looks at the next place; false if an order was refused.
    fn check_next_slot(
        &mut self,
        tables: &Tables,
        nic: &Nic,
        now: Coarse,
        order: &mut dyn FnMut(Order) -> bool,
    ) -> bool {
        let number = self.offloaded.next_slot % self.offloaded.len().max(1);
        let still = self.still(tables, nic, now, number);
        if let (Some(id), false) = (self.offloaded.id(number), still) {
            if !order(Order::Remove(id)) {
                return false;
            }
            self.offloaded.counters.removed += 1;
            self.offloaded.leave(number);
        }
        self.offloaded.next_slot = number + 1;
        self.offloaded.left = self.offloaded.left.saturating_sub(1);
        true
    }

    /// Whether the rules of a place are what its flow needs.
    fn still(&mut self, tables: &Tables, nic: &Nic, now: Coarse, number: u32) -> bool {
        let Some(slot) = self.offloaded.at(number) else {
            return true;
        };
        let flow = slot.entry;
        let Some(entry) = self.flows.entry(flow).copied() else {
            return false;
        };
        if !entry.key.is(&slot.key) {
            return false;
        }
        if entry.epoch != tables.epoch {
            let port = match entry.ingress.underlay_slot() {
                None => PortId(entry.ingress.number()),
                Some(_) => some_uplink(tables),
            };
            let (mut parts, _) = self.split();
            if !graph::keep(&mut parts, tables, (port, now), entry.ingress, flow) {
                return false;
            }
        }
        match (self.rules(tables, nic, flow), self.offloaded.at(number)) {
            (Some(Ok(rules)), Some(slot)) => rules == slot.rules,
            _ => false,
        }
    }

    /// Goes on through the flow table and orders rules for flows that have none.
    fn begin(&mut self, tables: &Tables, nic: &Nic, order: &mut dyn FnMut(Order) -> bool) {
        let end = self.flows.numbers_end() as u32;
        let mut begun = 0;
        for _ in 0..ENTRIES_PER_CALL_MAX.min(end as usize) {
            let number = self.offloaded.next_entry % end;
            self.offloaded.next_entry = number + 1;
            if self.offloaded.has(number) || !self.is_ripe(tables, number) {
                continue;
            }
            let state = self.state(number);
            if self.offloaded.is_judged(number, state) {
                continue;
            }
            let rules = match self.rules(tables, nic, number) {
                Some(Ok(_)) if !self.offloaded.has_room() => Err(Stays::NoPlace),
                Some(rules) => rules,
                None => continue,
            };
            match rules {
                Err(reason) => {
                    self.offloaded.counters.count(reason);
                    self.offloaded.judge(number, state);
                }
                Ok(rules) => {
                    if !order(Order::Install(self.offloaded.next_id(), rules.clone())) {
                        self.offloaded.counters.queue_full += 1;
                        self.offloaded.next_entry = number;
                        return;
                    }
                    let key = self.flows.entry(number).map(|entry| entry.key);
                    let key = key.unwrap_or(FlowKey::NONE);
                    self.offloaded.take(number, key, rules);
                    begun += 1;
                    if begun == BEGIN_PER_CALL_MAX {
                        return;
                    }
                }
            }
        }
    }

    /// Whether an entry is of a live flow and decided with these tables.
    fn is_ripe(&self, tables: &Tables, number: u32) -> bool {
        self.flows.entry(number).is_some_and(|entry| {
            entry.key.first != FlowKey::NONE.first
                && entry.action != Action::Undecided
                && entry.epoch << 1 == tables.epoch << 1
        })
    }

    fn rules(&self, tables: &Tables, nic: &Nic, number: u32) -> Option<Result<Vec<Rule>, Stays>> {
        let (entry, other) = (self.flows.entry(number)?, self.flows.entry(number ^ 1)?);
        let record = self.flows.cold(number)?;
        let tunnel = match entry.action {
            Action::Encap => Some(self.adjacencies.get(entry.target)?),
            Action::Deliver | Action::Undecided => None,
        };
        let timeout = u64::from(self.flows.timeout(record.tcp)) << 24;
        let decided = Decided {
            entry,
            leaves: other.key.tuple().inverted(),
            tunnel,
            tcp: record.tcp,
            timeout_s: u32::try_from(timeout / 1_000_000_000).unwrap_or(u32::MAX),
        };
        Some(translate(tables, nic, &decided))
    }

    /// What a judgement about an entry depends on, in one number that is not zero.
    fn state(&self, number: u32) -> u32 {
        let (Some(entry), Some(record)) = (self.flows.entry(number), self.flows.cold(number))
        else {
            return 1;
        };
        let [a, b, c, d] = entry.key.clean().addresses;
        let parts = [
            entry.key.first,
            a,
            b,
            c,
            d,
            u64::from(entry.epoch),
            u64::from(record.tcp as u8) << 8 | u64::from(entry.flags),
        ];
        let mixed = parts.iter().fold(0_u64, |mixed, part| {
            (mixed.rotate_left(23) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        (mixed >> 32) as u32 | 1
    }
}

fn some_uplink(tables: &Tables) -> PortId {
    let place = tables
        .ports
        .iter()
        .position(|port| matches!(port.kind, PortKind::Uplink(_)));
    PortId(place.unwrap_or(0) as u16)
}
