//! The packet side: one worker owns its flows and counters and runs bursts to completion.
//!
//! A burst is worked off in passes: parse all, fetch all buckets, find all entries, fetch all entries, answer all in order. The loads of a
//! pass do not depend on each other, so the processor has many cache misses in flight at once; that is what makes a million flows cost
//! little more than a thousand, without any prefetch instruction. The passes that only fetch are a few instructions per packet, because what
//! limits the number of misses in flight is how many packets fit into the processor's window of instructions. For the same reason passes are
//! not merged while all flows are near: that spares instructions and takes longer.

use crate::PortKind;
use crate::cls::{self, Fast};
use crate::config::Limits;
use crate::conntrack;
use crate::counters::{Counters, Node};
use crate::flow::adjacency::AdjacencyTable;
use crate::flow::key::{Hasher, Keyed, Place, Scope, Tuple, wire_address_v6};
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
use crate::sync::Journal;
use crate::tables::{Port, Settings, Tables};
use crate::time::Instant;
use crate::underlay::{HostPart, UnderlayTable};
use crate::verdict::{DropReason, PortId, Verdict};
use crate::virtual_service::VirtualService;
use core::hint::black_box;
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

/// As the processor reads them.
const ETHERTYPE_V4: u16 = TYPE_IPV4.swap_bytes();
const ETHERTYPE_V6: u16 = TYPE_IPV6.swap_bytes();
/// Ethernet's type and the version behind it, in the word that begins with them and ends with the length of the payload.
const IPV6_MASK: u64 = u64::from_le_bytes([0xff, 0xff, 0xf0, 0, 0, 0, 0, 0]);
const IPV6_WANTED: u64 = u64::from_le_bytes([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0]);

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
    /// What another instance has to know.
    journal: Journal,
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
    /// Where its entry is looked for.
    place: Place,
    /// The entry that probably answers it, or [`NONE`].
    entry: u32,
    ingress: Ingress,
}

impl Parsed {
    const EMPTY: Parsed = Parsed {
        fast: Fast::EMPTY,
        place: Place::ANY,
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
    /// Packets in the upper half, their bytes in the lower one (of the IP packets, without what is around them): a burst of the longest packets
    /// has less than 2^32.
    total: u64,
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
            journal: Journal::default(),
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
            journal,
            ..
        } = self;
        counters.flows_expired += flows.age(Coarse::of(now), |entries, record| {
            snat::end((nat, journal), entries, record.service);
            for entry in entries {
                conntrack::release(adjacencies, entry);
            }
        });
    }

    /// Parses all packets and returns their bytes.
    fn parse_burst(&mut self, tables: &Tables, port: PortId, packets: &[impl Packet]) -> u64 {
        let Worker { flows, parsed, .. } = self;
        let hasher = *flows.hasher();
        let mut bytes = 0;
        match tables
            .port(port)
            .map(|found| (found.kind, found.interface.as_ref()))
        {
            Some((PortKind::Machine, Some(attached))) => {
                let scope = Scope::machine(attached.interface.spec.vni);
                let ingress = Ingress::machine(port);
                bytes = parse_machine(parsed.as_mut_slice(), packets, hasher, (scope, ingress));
            }
            Some((PortKind::Uplink(_), _)) => {
                bytes = parse_uplink(parsed.as_mut_slice(), packets, hasher, tables);
            }
            Some((PortKind::Machine, None)) | None => {
                for (parsed, packet) in parsed.iter_mut().zip(packets) {
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
                touched ^= flows.touch_bucket(parsed.place);
            }
        }
        let mut missing = 0_usize;
        for parsed in parsed.iter_mut() {
            parsed.entry = flows.guess_first(parsed.place);
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
        let ip_offset = ip_offset(tables, port);
        let is_tunnel = ip_offset == TUNNEL_LEN;
        let (parts, parsed) = self.split();
        let mut cx = Burst {
            parts,
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
            let to = match answer_hit::<HOPS>(&mut cx, parsed, parsed.entry, packet) {
                Some(to) => to,
                None => {
                    if !core::mem::replace(&mut cx.is_refreshed, true) {
                        refresh(&mut cx, burst);
                    }
                    match answer_miss::<HOPS>(&mut cx, parsed, packet) {
                        Missed::Answered(to) => to,
                        Missed::Counted(other) => {
                            *verdict = other;
                            continue;
                        }
                    }
                }
            };
            *verdict = Verdict::Transmit(to);
            if to != sent.to {
                sent.flush(cx.ports, cx.parts.counters);
                sent.to = to;
            }
            sent.total += Sent::one(parsed.fast.length);
        }
        let hits = packets.len() as u64 - cx.slow;
        let counters = cx.parts.counters;
        sent.flush(&tables.ports, counters);
        counters.count_many(Node::FlowCache, hits);
        counters.count_many(Node::IpipDecap, if is_tunnel { hits } else { 0 });
    }

    /// Lends the stages what they work on, and the burst its working space.
    #[inline(always)]
    fn split(&mut self) -> (Parts<'_>, &mut [Parsed; BURST_MAX]) {
        let parts = Parts {
            flows: &mut self.flows,
            adjacencies: &mut self.adjacencies,
            nat: &mut self.nat,
            virtual_services: &mut self.virtual_services,
            counters: &mut self.counters,
            errors: &mut self.errors,
            fragments: &mut self.fragments,
            journal: &mut self.journal,
        };
        (parts, &mut self.parsed)
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
        *self = Parsed::EMPTY;
    }

    /// Notes where the entry of a packet is looked for; `None` if the packet was not understood.
    #[inline(always)]
    fn locate(&mut self, place: Option<Place>) {
        match place {
            Some(place) => self.place = place,
            None => self.forget(),
        }
    }
}

impl Sent {
    #[inline(always)]
    fn one(length: u16) -> u64 {
        1 << 32 | u64::from(length)
    }

    #[cold]
    #[inline(never)]
    fn flush(&mut self, ports: &[Port], counters: &mut Counters) {
        let total = core::mem::take(&mut self.total);
        let (packets, bytes) = (total >> 32, total & 0xffff_ffff);
        let kind = ports.get(self.to.index()).map(|port| port.kind);
        // Only encapsulated packets leave by an uplink.
        let header_len = match kind {
            Some(PortKind::Uplink(_)) => {
                counters.count_many(Node::IpipEncap, packets);
                TUNNEL_LEN
            }
            Some(PortKind::Machine) | None => ETHERNET_LEN,
        };
        if let Some(port) = counters.port_mut(self.to) {
            port.tx_packets += packets;
            port.tx_bytes += bytes + packets * header_len as u64;
        }
    }
}

/// Where the IP packet of the overlay begins in frames from a port.
fn ip_offset(tables: &Tables, port: PortId) -> usize {
    match tables.port(port).map(|found| found.kind) {
        Some(PortKind::Uplink(_)) => TUNNEL_LEN,
        Some(PortKind::Machine) | None => ETHERNET_LEN,
    }
}

/// Parses packets from a machine. The loops of a burst are functions of their own, so that each has all registers for itself.
#[inline(never)]
fn parse_machine(
    parsed: &mut [Parsed],
    packets: &[impl Packet],
    hasher: Hasher,
    (scope, ingress): (Scope, Ingress),
) -> u64 {
    let mut bytes = 0;
    for (parsed, packet) in parsed.iter_mut().zip(packets) {
        let frame = packet.frame();
        bytes += frame.len() as u64;
        parsed.ingress = ingress;
        let place = machine_fast(&hasher, scope, frame, &mut parsed.fast);
        parsed.locate(place);
    }
    bytes
}

/// Parses packets from the fabric.
#[inline(never)]
fn parse_uplink(
    parsed: &mut [Parsed],
    packets: &[impl Packet],
    hasher: Hasher,
    tables: &Tables,
) -> u64 {
    let host = wire_address_v6(tables.settings.host)[0];
    let mut bytes = 0;
    for (parsed, packet) in parsed.iter_mut().zip(packets) {
        let frame = packet.frame();
        bytes += frame.len() as u64;
        let place = uplink_fast(&hasher, (&tables.underlay, host), frame, parsed);
        parsed.locate(place);
    }
    bytes
}

#[inline(always)]
fn machine_fast(hasher: &Hasher, scope: Scope, frame: &[u8], fast: &mut Fast) -> Option<Place> {
    // The shortest that is understood, so that nothing shorter is looked for later.
    frame.first_chunk::<{ ETHERNET_LEN + 28 }>()?;
    let (header, ip) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    match u16::from_le_bytes([header[12], header[13]]) {
        ETHERTYPE_V4 => cls::fast_v4(hasher, scope, ip, fast),
        ETHERTYPE_V6 => cls::fast_v6(hasher, scope, ip, fast),
        _ => None,
    }
}

#[inline(always)]
fn uplink_fast(
    hasher: &Hasher,
    (underlay, host): (&UnderlayTable, u64),
    frame: &[u8],
    parsed: &mut Parsed,
) -> Option<Place> {
    // The shortest that is understood, so that nothing shorter is looked for later.
    frame.first_chunk::<{ TUNNEL_LEN + 28 }>()?;
    let (outer, inner) = frame.split_first_chunk::<TUNNEL_LEN>()?;
    let (_, front) = outer.split_first_chunk::<12>()?;
    let front = u64::from_le_bytes(*front.first_chunk()?);
    let (_, destination) = outer.split_last_chunk::<16>()?;
    let (prefix, own) = destination.split_first_chunk::<8>()?;
    if front & IPV6_MASK != IPV6_WANTED || u64::from_le_bytes(*prefix) != host {
        return None;
    }
    let inner = inner.get(..usize::from(((front >> 48) as u16).swap_bytes()))?;
    let own = HostPart(u64::from_be_bytes(*own.first_chunk()?));
    let (slot, scope) = underlay.scope(own)?;
    parsed.ingress = Ingress::tunnel(slot);
    match outer[20] {
        protocol::IPV4 => cls::fast_v4(hasher, scope, inner, &mut parsed.fast),
        protocol::IPV6 => cls::fast_v6(hasher, scope, inner, &mut parsed.fast),
        _ => None,
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
    // Also of what the slow walk will send, which would note it as well.
    if entry.last_seen != cx.now {
        entry.last_seen = cx.now;
    }
    if conntrack::may_advance(entry, *tcp_flags) {
        return answer_segment::<HOPS>(cx, parsed, number, packet);
    }
    let place = (cx.ip_offset, *length, Layout::PLAIN_V4);
    let to = ipip::apply(entry, cx.parts.adjacencies, cx.ports, packet, place).ok()?;
    if HOPS {
        hops::decrement(packet, *length);
    }
    Some(to)
}

/// The same for a segment that may change the state of its connection, whose entry is valid.
#[cold]
#[inline(never)]
fn answer_segment<const HOPS: bool>(
    cx: &mut Burst<'_, '_>,
    parsed: &Parsed,
    number: u32,
    packet: &mut impl Packet,
) -> Option<PortId> {
    let Fast {
        length, tcp_flags, ..
    } = parsed.fast;
    let entry = cx.parts.flows.entry(number)?;
    let place = (cx.ip_offset, length, Layout::PLAIN_V4);
    let to = ipip::apply(entry, cx.parts.adjacencies, cx.ports, packet, place).ok()?;
    if HOPS {
        hops::decrement(packet, length);
    }
    conntrack::advance(cx.parts.flows, number, tcp_flags);
    Some(to)
}

/// Looks in the other buckets. What is not there either is probably new, so that all the buckets it needs are fetched together.
#[cold]
#[inline(never)]
fn find_elsewhere(flows: &FlowTable, parsed: &mut [Parsed]) {
    let mut touched = 0_u64;
    if flows.is_far() {
        for Parsed {
            fast, place, entry, ..
        } in parsed.iter()
        {
            if *entry == NONE {
                touched ^= flows.touch_buckets_of_new(&fast.key, *place);
            }
        }
    }
    black_box(touched);
    for Parsed { place, entry, .. } in parsed.iter_mut() {
        if *entry == NONE {
            *entry = flows.guess_other(*place);
        }
    }
}

/// Declares all entries of the burst current that answer their packets after all, because what has changed since they were decided does not
/// concern them.
#[cold]
#[inline(never)]
fn refresh(cx: &mut Burst<'_, '_>, burst: &[Parsed]) {
    let place = (cx.port, cx.now);
    for run in burst.chunk_by(|one, next| one.ingress == next.ingress) {
        if let Some(Parsed { ingress, .. }) = run.first() {
            let packets = run.iter().map(|parsed| (&parsed.fast.key, parsed.entry));
            graph::keep_all(&mut cx.parts, cx.tables, place, *ingress, packets);
        }
    }
}

/// The entry of a packet. An earlier packet of its burst may have begun the connection, or the probable one is another's with the same signature.
fn find(flows: &FlowTable, parsed: &Parsed) -> Option<u32> {
    let (key, place) = (parsed.fast.key, parsed.place);
    match flows.entry(parsed.entry) {
        Some(entry) if entry.key.is(&key) => Some(parsed.entry),
        Some(_) | None => flows.find(&Keyed { key, place }),
    }
}

/// What became of a packet that its probable entry did not answer.
enum Missed {
    /// An entry answered it after all.
    Answered(PortId),
    /// Something else, which is counted already.
    Counted(Verdict),
}

/// Everything but a hit. Kept apart so that the loop over hits stays small.
#[cold]
#[inline(never)]
fn answer_miss<const HOPS: bool>(
    cx: &mut Burst<'_, '_>,
    parsed: &Parsed,
    packet: &mut impl Packet,
) -> Missed {
    let found = find(cx.parts.flows, parsed);
    let hit = found.and_then(|found| answer_hit::<HOPS>(cx, parsed, found, packet));
    if let Some(to) = hit {
        return Missed::Answered(to);
    }
    cx.slow += 1;
    decide::<HOPS>(cx, parsed, found, packet).unwrap_or_else(|reason| {
        cx.parts.counters.count_drop(reason);
        if let Some(port) = cx.parts.counters.port_mut(cx.port) {
            port.drops += 1;
        }
        Missed::Counted(Verdict::Drop(reason))
    })
}

/// Decides a packet that no current entry answers. Most are then answered by the entry that they have got.
fn decide<const HOPS: bool>(
    cx: &mut Burst<'_, '_>,
    parsed: &Parsed,
    found: Option<u32>,
    packet: &mut impl Packet,
) -> Result<Missed, DropReason> {
    let plain = Plain {
        fast: &parsed.fast,
        place: parsed.place,
        ingress: parsed.ingress,
        found,
    };
    let place = (cx.port, cx.now);
    let verdict = match graph::decide_plain(&mut cx.parts, cx.tables, place, &plain) {
        Some(decided) => {
            let number = decided?;
            if let Some(to) = answer_hit::<HOPS>(cx, parsed, number, packet) {
                return Ok(Missed::Answered(to));
            }
            let plain = (&plain, number);
            graph::forward_plain(&mut cx.parts, cx.tables, place, packet, plain)?
        }
        None => graph::walk(&mut cx.parts, cx.tables, place, packet)?,
    };
    if let Verdict::Transmit(to) | Verdict::Reply(to) = verdict {
        cx.parts.counters.count_sent(to, packet.len());
    }
    Ok(Missed::Counted(verdict))
}
