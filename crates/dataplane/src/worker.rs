//! The packet side: one worker owns its flows and counters and runs bursts to completion.
//!
//! A burst is worked off in passes: parse all, fetch all buckets, find all entries, fetch all entries, answer all in order. The loads of a
//! pass do not depend on each other, so the processor has many cache misses in flight at once; that is what makes a million flows cost
//! little more than a thousand, without any prefetch instruction. The passes that only fetch are a few instructions per packet, because what
//! limits the number of misses in flight is how many packets fit into the processor's window of instructions.

use crate::PortKind;
use crate::cls::{self, Fast};
use crate::config::Limits;
use crate::conntrack;
use crate::counters::{Counters, Node};
use crate::flow::adjacency::AdjacencyTable;
use crate::flow::key::{Hasher, Scope, Tuple};
use crate::flow::rewrite::Layout;
use crate::flow::table::FlowTable;
use crate::flow::{Coarse, Ingress, NONE};
use crate::fragments::Fragments;
use crate::graph::{self, Parts, Plain};
use crate::hops;
use crate::ipip::{self, TUNNEL_LEN};
use crate::mss;
use crate::offload::slots::Slots;
use crate::packet::Packet;
use crate::pmtu::ErrorBudget;
use crate::port_map::PortMap;
use crate::stages::snat;
use crate::tables::{Port, Settings, Tables};
use crate::time::Instant;
use crate::underlay::HostPart;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::virtual_service::VirtualService;
use core::hint::black_box;
use core::net::Ipv6Addr;
use net::ethernet::{HEADER_LEN as ETHERNET_LEN, TYPE_IPV4, TYPE_IPV6};
use net::protocol;

mod inspect;
mod offload;
mod sync;

pub(crate) use inspect::shown;
pub use inspect::{FLOW_PAGE_MAX, KnownConnection};
pub use sync::{NotTaken, SharePlace};

/// Packets handled together; longer slices are cut into such bursts.
pub const BURST_MAX: usize = 64;

const ETHERTYPE_V4: [u8; 2] = TYPE_IPV4.to_be_bytes();
const ETHERTYPE_V6: [u8; 2] = TYPE_IPV6.to_be_bytes();

/// Flows and counters of one packet-processing thread.
#[derive(Debug)]
pub struct Worker {
    flows: FlowTable,
    adjacencies: AdjacencyTable,
    nat: PortMap,
    virtual_services: Vec<VirtualService>,
    counters: Counters,
    errors: ErrorBudget,
    fragments: Fragments<Tuple>,
    /// Flows that a NIC handles.
    offloaded: Slots,
    /// Working space of a burst, kept to spare its initialization.
    parsed: Box<[Parsed; BURST_MAX]>,
}

/// What the first pass found out about a packet: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Parsed {
    fast: Fast,
    /// The entry that probably answers it, or [`NONE`].
    entry: u32,
    ingress: Ingress,
}

impl Parsed {
    const EMPTY: Parsed = Parsed {
        fast: Fast::EMPTY,
        entry: NONE,
        ingress: Ingress::NOWHERE,
    };
}

/// What answering needs and does not change within a burst, and the packets that took the slow walk.
#[derive(Debug)]
struct Burst<'w, 't> {
    parts: Parts<'w>,
    tables: &'t Tables,
    ports: &'t [Port],
    epoch: u32,
    port: PortId,
    now: Coarse,
    ip_offset: usize,
    slow: u64,
    is_refreshed: bool,
}

/// A run of packets to the same port, added to its counters once.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    to: PortId,
    packets: u64,
    /// Of the IP packets, without what is around them.
    bytes: u64,
}

impl Worker {
    pub(crate) fn new(
        ports: usize,
        limits: &Limits,
        settings: &Settings,
        hash_seed: u64,
    ) -> Worker {
        let timeout_s = settings.flow_timeout_s;
        let specs = settings.virtual_services.iter().zip(0..);
        let virtual_services = specs.map(|(spec, index)| {
            VirtualService::new(settings.host, index, *spec, timeout_s, hash_seed)
        });
        Worker {
            flows: FlowTable::new(limits.flows_max, timeout_s, hash_seed),
            adjacencies: AdjacencyTable::new(limits.adjacencies_max),
            nat: PortMap::new(limits.nat_max as usize, hash_seed),
            virtual_services: virtual_services.collect(),
            counters: Counters::new(ports),
            errors: ErrorBudget::FULL,
            fragments: Fragments::new(hash_seed),
            offloaded: Slots::new(),
            parsed: Box::new([Parsed::EMPTY; BURST_MAX]),
        }
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections tracked at the moment, and the most there can be.
    #[must_use]
    pub fn flow_saturation(&self) -> (usize, usize) {
        (self.flows.len(), self.flows.capacity())
    }

    /// NAT ports in use by tracked connections.
    #[must_use]
    pub fn nat(&self) -> &PortMap {
        &self.nat
    }

    /// Virtual services with their connections.
    #[must_use]
    pub fn virtual_services(&self) -> &[VirtualService] {
        &self.virtual_services
    }

    /// Tunnels in use by tracked connections, and the most there can be.
    #[must_use]
    pub fn adjacency_saturation(&self) -> (usize, usize) {
        self.adjacencies.saturation()
    }

    /// Decides one packet that came in on `port` and edits it.
    pub fn process(
        &mut self,
        tables: &Tables,
        port: PortId,
        packet: &mut impl Packet,
        now: Instant,
    ) -> Verdict {
        let mut verdict = Verdict::Drop(DropReason::Bug);
        let packets = core::slice::from_mut(packet);
        self.process_burst(
            tables,
            port,
            packets,
            core::slice::from_mut(&mut verdict),
            now,
        );
        verdict
    }

    /// Decides the packets that came in on `port`; `verdicts[i]` is the answer for `packets[i]`.
    ///
    /// Handles as many packets as both slices have.
    pub fn process_burst(
        &mut self,
        tables: &Tables,
        port: PortId,
        packets: &mut [impl Packet],
        verdicts: &mut [Verdict],
        now: Instant,
    ) {
        let now = Coarse::of(now);
        for (packets, verdicts) in packets
            .chunks_mut(BURST_MAX)
            .zip(verdicts.chunks_mut(BURST_MAX))
        {
            let rx_bytes = self.parse_burst(tables, port, packets);
            if tables.settings.looks_closer() {
                self.set_aside(tables, port, packets);
            }
            self.find_entries(packets.len());
            if tables.settings.decrement_hops {
                self.answer_burst::<true>(tables, port, packets, verdicts, now);
            } else {
                self.answer_burst::<false>(tables, port, packets, verdicts, now);
            }
            self.count_received(tables, port, packets.len(), rx_bytes);
        }
    }

    /// Forgets idle flows. Call it every second or so, with the time of the packets; the work per call is bounded.
    pub fn tick(&mut self, now: Instant) {
        let Worker {
            flows,
            adjacencies,
            nat,
            counters,
            ..
        } = self;
        counters.flows_expired += flows.age(Coarse::of(now), |entries, record| {
            snat::end(nat, entries, record.service);
            for entry in entries {
                conntrack::release(adjacencies, entry);
            }
        });
    }

    /// Parses all packets and returns their bytes.
    fn parse_burst(&mut self, tables: &Tables, port: PortId, packets: &[impl Packet]) -> u64 {
        let Worker { flows, parsed, .. } = self;
        let hasher = *flows.hasher();
        let parsed = parsed.iter_mut().zip(packets);
        let mut bytes = 0;
        match tables
            .port(port)
            .map(|found| (found.kind, found.interface.as_ref()))
        {
            Some((PortKind::Machine, Some(attached))) => {
                let scope = Scope::machine(attached.interface.spec.vni);
                let ingress = Ingress::machine(port);
                for (parsed, packet) in parsed {
                    let frame = packet.frame();
                    bytes += frame.len() as u64;
                    parsed.ingress = ingress;
                    if !machine_fast(&hasher, scope, frame, &mut parsed.fast) {
                        parsed.forget();
                    }
                }
            }
            Some((PortKind::Uplink(_), _)) => {
                for (parsed, packet) in parsed {
                    let frame = packet.frame();
                    bytes += frame.len() as u64;
                    if !uplink_fast(&hasher, tables, frame, parsed) {
                        parsed.forget();
                    }
                }
            }
            Some((PortKind::Machine, None)) | None => {
                for (parsed, packet) in parsed {
                    bytes += packet.len() as u64;
                    parsed.forget();
                }
            }
        }
        bytes
    }

    /// Leaves to the slow walk what options want a closer look at: segments that announce their size, and packets at the end of their hops.
    #[cold]
    #[inline(never)]
    fn set_aside(&mut self, tables: &Tables, port: PortId, packets: &[impl Packet]) {
        let Settings {
            mss_clamp,
            decrement_hops,
            ..
        } = &*tables.settings;
        let slow_flags = mss::flags(*mss_clamp);
        let ip_offset = ip_offset(tables, port);
        for (parsed, packet) in self.parsed.iter_mut().zip(packets) {
            let has_hops = || packet.frame().get(ip_offset..).is_some_and(hops::has_more);
            if parsed.fast.tcp_flags & slow_flags != 0 || *decrement_hops && !has_hops() {
                parsed.forget();
            }
        }
    }

    /// Finds the probable entries, one kind of memory per pass. The sums only keep the loads from being optimised away.
    fn find_entries(&mut self, count: usize) {
        let Worker { flows, parsed, .. } = self;
        let Some(parsed) = parsed.get_mut(..count) else {
            return;
        };
        let is_far = flows.is_far();
        let mut touched = 0_u64;
        if is_far {
            for parsed in parsed.iter() {
                touched ^= flows.touch_bucket(parsed.fast.place);
            }
        }
        let mut missing = 0_usize;
        for parsed in parsed.iter_mut() {
            parsed.entry = flows.guess_first(parsed.fast.place);
            missing += usize::from(parsed.entry == NONE);
        }
        if missing != 0 {
            find_elsewhere(flows, parsed);
        }
        if is_far {
            for parsed in parsed.iter() {
                touched ^= flows.touch_entry(parsed.entry);
            }
        }
        black_box(touched);
    }

    /// With `HOPS`, every packet that is sent on has one hop less.
    fn answer_burst<const HOPS: bool>(
        &mut self,
        tables: &Tables,
        port: PortId,
        packets: &mut [impl Packet],
        verdicts: &mut [Verdict],
        now: Coarse,
    ) {
        let Worker {
            flows,
            adjacencies,
            nat,
            virtual_services,
            counters,
            errors,
            fragments,
            parsed,
            ..
        } = self;
        let ip_offset = ip_offset(tables, port);
        let is_tunnel = ip_offset == TUNNEL_LEN;
        let mut cx = Burst {
            parts: Parts {
                flows,
                adjacencies,
                nat,
                virtual_services,
                counters,
                errors,
                fragments,
            },
            tables,
            ports: &tables.ports,
            epoch: tables.epoch,
            port,
            now,
            ip_offset,
            slow: 0,
            is_refreshed: false,
        };
        let mut sent = Sent::default();
        let burst = parsed.get(..packets.len()).unwrap_or_default();
        for ((packet, verdict), parsed) in packets.iter_mut().zip(verdicts).zip(burst) {
            match answer_hit::<HOPS>(&mut cx, parsed, parsed.entry, packet) {
                Some(to) => {
                    *verdict = Verdict::Transmit(to);
                    if to != sent.to {
                        sent.flush(cx.ports, cx.parts.counters);
                        sent.to = to;
                    }
                    sent.packets += 1;
                    sent.bytes += u64::from(parsed.fast.length);
                }
                None => {
                    if !core::mem::replace(&mut cx.is_refreshed, true) {
                        refresh(&mut cx, burst);
                    }
                    *verdict = answer_miss::<HOPS>(&mut cx, parsed, packet);
                }
            }
        }
        let hits = packets.len() as u64 - cx.slow;
        sent.flush(&tables.ports, counters);
        counters.count_many(Node::FlowCache, hits);
        counters.count_many(Node::IpipDecap, if is_tunnel { hits } else { 0 });
    }

    fn count_received(&mut self, tables: &Tables, port: PortId, packets: usize, bytes: u64) {
        self.counters.count_many(Node::Cls, packets as u64);
        if tables.port(port).is_some()
            && let Some(port) = self.counters.port_mut(port)
        {
            port.rx_packets += packets as u64;
            port.rx_bytes += bytes;
        }
    }
}

impl Parsed {
    /// A packet that the fast parser did not understand must match no entry.
    #[inline]
    fn forget(&mut self) {
        self.fast = Fast::EMPTY;
        self.ingress = Ingress::NOWHERE;
    }
}

impl Sent {
    #[cold]
    #[inline(never)]
    fn flush(&mut self, ports: &[Port], counters: &mut Counters) {
        let kind = ports.get(self.to.index()).map(|port| port.kind);
        // Only encapsulated packets leave by an uplink.
        let header_len = match kind {
            Some(PortKind::Uplink(_)) => {
                counters.count_many(Node::IpipEncap, self.packets);
                TUNNEL_LEN
            }
            Some(PortKind::Machine) | None => ETHERNET_LEN,
        };
        if let Some(port) = counters.port_mut(self.to) {
            port.tx_packets += self.packets;
            port.tx_bytes += self.bytes + self.packets * header_len as u64;
        }
        (self.packets, self.bytes) = (0, 0);
    }
}

/// Where the IP packet of the overlay begins in frames from a port.
fn ip_offset(tables: &Tables, port: PortId) -> usize {
    match tables.port(port).map(|found| found.kind) {
        Some(PortKind::Uplink(_)) => TUNNEL_LEN,
        Some(PortKind::Machine) | None => ETHERNET_LEN,
    }
}

#[inline(always)]
fn machine_fast(hasher: &Hasher, scope: Scope, frame: &[u8], fast: &mut Fast) -> bool {
    let Some((header, ip)) = frame.split_first_chunk::<ETHERNET_LEN>() else {
        return false;
    };
    match [header[12], header[13]] {
        ETHERTYPE_V4 => cls::fast_v4(hasher, scope, ip, fast),
        ETHERTYPE_V6 => cls::fast_v6(hasher, scope, ip, fast),
        _ => false,
    }
}

#[inline(always)]
fn uplink_fast(hasher: &Hasher, tables: &Tables, frame: &[u8], parsed: &mut Parsed) -> bool {
    let Some((outer, inner)) = frame.split_first_chunk::<TUNNEL_LEN>() else {
        return false;
    };
    if u16::from_be_bytes([outer[12], outer[13]]) != TYPE_IPV6 || outer[14] >> 4 != 6 {
        return false;
    }
    let length = usize::from(u16::from_be_bytes([outer[18], outer[19]]));
    let Some(inner) = inner.get(..length) else {
        return false;
    };
    let Some(destination) = outer.last_chunk() else {
        return false;
    };
    let destination = Ipv6Addr::from_bits(u128::from_be_bytes(*destination));
    let Some((slot, endpoint)) = tables.underlay.lookup(HostPart::of(destination)) else {
        return false;
    };
    parsed.ingress = Ingress::tunnel(slot);
    tables.is_host_prefix(destination)
        && match outer[20] {
            protocol::IPV4 => cls::fast_v4(hasher, endpoint.scope, inner, &mut parsed.fast),
            protocol::IPV6 => cls::fast_v6(hasher, endpoint.scope, inner, &mut parsed.fast),
            _ => false,
        }
}

/// Carries out a cached answer that is still valid; `None` sends the packet on the slow walk, untouched.
#[inline(always)]
fn answer_hit<const HOPS: bool>(
    cx: &mut Burst<'_, '_>,
    parsed: &Parsed,
    number: u32,
    packet: &mut impl Packet,
) -> Option<PortId> {
    let Fast {
        key,
        length,
        tcp_flags,
        ..
    } = &parsed.fast;
    let entry = cx.parts.flows.entry_mut(number)?;
    let is_valid = entry.epoch == cx.epoch && entry.ingress == parsed.ingress;
    if !is_valid || !entry.key.is(key) {
        return None;
    }
    let to = ipip::apply(
        entry,
        cx.parts.adjacencies,
        cx.ports,
        packet,
        (cx.ip_offset, *length, Layout::PLAIN_V4),
    )
    .ok()?;
    if HOPS {
        hops::decrement(packet, *length);
    }
    if entry.last_seen != cx.now {
        entry.last_seen = cx.now;
    }
    if conntrack::may_advance(entry, *tcp_flags) {
        conntrack::advance(cx.parts.flows, number, *tcp_flags);
    }
    Some(to)
}

/// Looks in the other buckets. What is not there either is probably new, so that all the buckets it needs are fetched together.
#[cold]
#[inline(never)]
fn find_elsewhere(flows: &FlowTable, parsed: &mut [Parsed]) {
    let mut touched = 0_u64;
    if flows.is_far() {
        for Parsed { fast, entry, .. } in parsed.iter() {
            if *entry == NONE {
                touched ^= flows.touch_buckets_of_new(&fast.key, fast.place);
            }
        }
    }
    black_box(touched);
    for Parsed { fast, entry, .. } in parsed.iter_mut() {
        if *entry == NONE {
            *entry = flows.guess_other(fast.place);
        }
    }
}

/// Declares all entries of the burst current that answer their packets after all, because what has changed since they were decided does not
/// concern them.
#[cold]
#[inline(never)]
fn refresh(cx: &mut Burst<'_, '_>, burst: &[Parsed]) {
    let place = (cx.port, cx.now);
    for parsed in burst {
        let entry = cx.parts.flows.entry(parsed.entry);
        let is_stale = entry.is_some_and(|entry| {
            entry.epoch != cx.epoch
                && entry.ingress == parsed.ingress
                && entry.key.is(&parsed.fast.key)
        });
        if is_stale {
            graph::keep(
                &mut cx.parts,
                cx.tables,
                place,
                parsed.ingress,
                parsed.entry,
            );
        }
    }
}

/// Everything but a hit. Kept apart so that the loop over hits stays small.
#[cold]
#[inline(never)]
fn answer_miss<const HOPS: bool>(
    cx: &mut Burst<'_, '_>,
    parsed: &Parsed,
    packet: &mut impl Packet,
) -> Verdict {
    // An earlier packet of this burst may have begun the connection, or the entry has been refreshed.
    let entry = match parsed.entry {
        NONE => cx.parts.flows.guess(parsed.fast.place),
        entry => entry,
    };
    if let Some(to) = answer_hit::<HOPS>(cx, parsed, entry, packet) {
        let (packets, bytes) = (1, u64::from(parsed.fast.length));
        Sent { to, packets, bytes }.flush(cx.ports, cx.parts.counters);
        return Verdict::Transmit(to);
    }
    cx.slow += 1;
    let plain = Plain {
        fast: &parsed.fast,
        ingress: parsed.ingress,
        is_unknown: entry == NONE,
    };
    let place = (cx.port, cx.now);
    let walked = graph::walk_plain(&mut cx.parts, cx.tables, place, packet, plain);
    let walked = walked.unwrap_or_else(|| graph::walk(&mut cx.parts, cx.tables, place, packet));
    match walked {
        Ok(verdict) => {
            if let Verdict::Transmit(to) | Verdict::Reply(to) = verdict {
                cx.parts.counters.count_sent(to, packet.len());
            }
            verdict
        }
        Err(reason) => {
            cx.parts.counters.count_drop(reason);
            if let Some(port) = cx.parts.counters.port_mut(cx.port) {
                port.drops += 1;
            }
            Verdict::Drop(reason)
        }
    }
}
