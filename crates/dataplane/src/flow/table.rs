//! The flow table: signature buckets of one cache line, and the entries they point to.
//!
//! A key has two possible buckets of eight places each. If both are full, an entry of theirs moves to its own second bucket; at
//! the load we allow (never above 80 %) that practically never fails, and if it does, the flow is refused like in a full table. Entries are created from a reserved
//! vector and recycled over a free list, so nothing is allocated after construction, and memory is touched only as flows come.

use super::key::{FlowKey, Keyed};
use super::wheel::Wheel;
use super::{Coarse, Decision, Flow, NONE};
use crate::conntrack::TcpState;
use crate::verdict::PortId;

/// Places per bucket.
const WAYS: usize = 8;
/// Signatures per word.
const LANES: usize = 4;
/// 1 in every lane.
const ONES: u64 = 0x0001_0001_0001_0001;
/// The top bit of every lane.
const TOPS: u64 = 0x8000_8000_8000_8000;
/// Entries one call of [`FlowTable::age`] looks at, so that ageing never delays packets for long.
pub(crate) const AGE_BUDGET_MAX: usize = 2_048;

/// Signatures and entry numbers. Four signatures of 16 bits share a word, the first in the lowest bits; 0 marks a free place.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Bucket {
    signatures: [u64; WAYS / LANES],
    flows: [u32; WAYS],
}

/// Marks lanes of `word` that equal `signature`: exact for the lowest marked lane, which is the only one used (Warren, Hacker's
/// Delight, §6-1).
#[inline]
const fn equal_lanes(word: u64, signature: u16) -> u64 {
    let difference = word ^ (signature as u64 * ONES);
    difference.wrapping_sub(ONES) & !difference & TOPS
}

/// Upper bits of the hash, never 0.
#[inline]
fn signature(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}

impl Bucket {
    const EMPTY: Bucket = Bucket {
        signatures: [0; WAYS / LANES],
        flows: [NONE; WAYS],
    };

    /// The first place that holds `signature`.
    #[inline]
    fn position(&self, signature: u16) -> Option<usize> {
        let [low, high] = self.signatures;
        let (low, high) = (equal_lanes(low, signature), equal_lanes(high, signature));
        if low != 0 {
            Some(low.trailing_zeros() as usize / 16)
        } else if high != 0 {
            Some(LANES + high.trailing_zeros() as usize / 16)
        } else {
            None
        }
    }

    /// The signature of a place.
    fn signature(&self, way: usize) -> u16 {
        let word = self.signatures.get(way / LANES).copied().unwrap_or(0);
        (word >> (way % LANES * 16)) as u16
    }

    fn set(&mut self, way: usize, signature: u16, flow: u32) {
        let shift = way % LANES * 16;
        let word = self.signatures.get_mut(way / LANES);
        if let (Some(word), Some(place)) = (word, self.flows.get_mut(way)) {
            *word = *word & !(0xffff << shift) | u64::from(signature) << shift;
            *place = flow;
        }
    }
}

#[derive(Debug)]
pub(crate) struct FlowTable {
    buckets: Box<[Bucket]>,
    mask: usize,
    flows: Vec<Flow>,
    flows_max: usize,
    free: u32,
    len: usize,
    wheel: Wheel,
    /// Timeout of everything but established TCP, in [`Coarse`] units.
    timeout: u32,
}

impl FlowTable {
    pub(crate) fn new(flows_max: u32, timeout_s: u32) -> FlowTable {
        // Indices stay below NONE; 5/4 keeps the load at or below 80 %.
        let flows_max = flows_max.clamp(1, NONE / 2) as usize;
        let buckets = (flows_max * 5 / 4).div_ceil(WAYS).next_power_of_two();
        FlowTable {
            buckets: vec![Bucket::EMPTY; buckets].into_boxed_slice(),
            mask: buckets - 1,
            flows: Vec::with_capacity(flows_max),
            flows_max,
            free: NONE,
            len: 0,
            wheel: Wheel::new(),
            timeout: Coarse::units(timeout_s.clamp(1, 300)),
        }
    }

    /// Live flows.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Most flows there can be.
    pub(crate) fn capacity(&self) -> usize {
        self.flows_max
    }

    /// Timeout of everything but established TCP.
    pub(crate) fn idle_timeout(&self) -> u32 {
        self.timeout
    }

    #[inline]
    fn first(&self, hash: u64) -> usize {
        hash as usize & self.mask
    }

    /// The other bucket of a signature; applying it twice gives the first one back.
    #[inline]
    fn second(&self, first: usize, signature: u16) -> usize {
        (first ^ usize::from(signature).wrapping_mul(0x9e37_79b1)) & self.mask
    }

    /// The most likely flow of a hash, unverified: the first signature that fits, usually in the first bucket.
    #[inline]
    pub(crate) fn guess(&self, hash: u64) -> u32 {
        let (first, wanted) = (self.first(hash), signature(hash));
        let Some(bucket) = self.buckets.get(first) else {
            return NONE;
        };
        match bucket.position(wanted) {
            Some(way) => bucket.flows.get(way).copied().unwrap_or(NONE),
            None => self.guess_second(first, wanted),
        }
    }

    fn guess_second(&self, first: usize, wanted: u16) -> u32 {
        let bucket = self.buckets.get(self.second(first, wanted));
        let found = bucket.and_then(|bucket| bucket.flows.get(bucket.position(wanted)?));
        found.copied().unwrap_or(NONE)
    }

    /// Something of the two lines a hit reads, to bring them into the cache.
    #[inline]
    pub(crate) fn touch_flow(&self, flow: u32, direction: u8) -> u64 {
        let Some(flow) = self.flows.get(flow as usize) else {
            return 0;
        };
        u64::from(flow.timeout) ^ u64::from(flow.decision(direction).epoch)
    }

    #[inline]
    pub(crate) fn get(&self, flow: u32) -> Option<&Flow> {
        self.flows.get(flow as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, flow: u32) -> Option<&mut Flow> {
        self.flows.get_mut(flow as usize)
    }

    /// The flow of a key.
    pub(crate) fn find(&self, keyed: &Keyed) -> Option<u32> {
        let first = self.first(keyed.hash);
        let wanted = signature(keyed.hash);
        [first, self.second(first, wanted)]
            .into_iter()
            .find_map(|bucket| {
                let bucket = self.buckets.get(bucket)?;
                bucket.flows.iter().enumerate().find_map(|(way, flow)| {
                    let is_it = bucket.signature(way) == wanted
                        && self
                            .get(*flow)
                            .is_some_and(|found| found.key.is(&keyed.key));
                    is_it.then_some(*flow)
                })
            })
    }

    /// Creates the flow of a key that is not in the table. `None` if there is no room.
    pub(crate) fn insert(
        &mut self,
        keyed: &Keyed,
        owner: (PortId, u32),
        now: Coarse,
    ) -> Option<u32> {
        let wanted = signature(keyed.hash);
        let (bucket, way) = self.make_room(self.first(keyed.hash), wanted)?;
        let flow = self.allocate(Flow {
            key: keyed.key,
            last_seen: now,
            timeout: self.timeout,
            owner: owner.1,
            next: NONE,
            owner_port: owner.0,
            tcp: TcpState::None,
            syn_direction: keyed.direction,
            origin: keyed.direction,
            decisions: [Decision::UNDECIDED; 2],
        })?;
        self.buckets.get_mut(bucket)?.set(way, wanted, flow);
        self.wheel.link(&mut self.flows, flow, now, self.timeout);
        self.len += 1;
        Some(flow)
    }

    /// A free place for a signature, if need be by moving another entry to its own second bucket (one step of cuckoo hashing,
    /// Pagh and Rodler 2001).
    fn make_room(&mut self, first: usize, wanted: u16) -> Option<(usize, usize)> {
        let candidates = [first, self.second(first, wanted)];
        for bucket in candidates {
            if let Some(way) = self.buckets.get(bucket)?.position(0) {
                return Some((bucket, way));
            }
        }
        for bucket in candidates {
            for way in 0..WAYS {
                let from = self.buckets.get(bucket)?;
                let (moved, flow) = (from.signature(way), *from.flows.get(way)?);
                let other = self.second(bucket, moved);
                if let Some(place) = self.buckets.get(other)?.position(0) {
                    self.buckets.get_mut(other)?.set(place, moved, flow);
                    return Some((bucket, way));
                }
            }
        }
        None
    }

    fn allocate(&mut self, flow: Flow) -> Option<u32> {
        if let Some(place) = self.flows.get_mut(self.free as usize) {
            let index = self.free;
            self.free = place.next;
            *place = flow;
            return Some(index);
        }
        if self.flows.len() >= self.flows_max {
            return None;
        }
        self.flows.push(flow);
        Some((self.flows.len() - 1) as u32)
    }

    /// Looks at flows whose turn has come and forgets the idle ones; returns how many. Bounded by [`AGE_BUDGET_MAX`] entries.
    pub(crate) fn age(&mut self, now: Coarse, rehash: impl Fn(&FlowKey) -> u64) -> u64 {
        let mut expired = 0;
        for _ in 0..AGE_BUDGET_MAX {
            let Some(index) = self.wheel.next_due(&mut self.flows, now) else {
                break;
            };
            let Some(flow) = self.flows.get_mut(index as usize) else {
                break;
            };
            let idle = now.since(flow.last_seen);
            if idle <= flow.timeout {
                // Long timeouts are looked at once per idle timeout, so that a connection that closes is not kept much longer.
                let wait = (flow.timeout - idle + 1).min(self.timeout);
                self.wheel.link(&mut self.flows, index, now, wait);
                continue;
            }
            let hash = rehash(&flow.key);
            // A freed entry must not answer for its former key.
            flow.key = FlowKey::NONE;
            flow.next = self.free;
            self.free = index;
            self.unplace(hash, index);
            self.len -= 1;
            expired += 1;
        }
        expired
    }

    /// Frees the place of a flow in its bucket.
    fn unplace(&mut self, hash: u64, flow: u32) {
        let first = self.first(hash);
        for bucket in [first, self.second(first, signature(hash))] {
            let Some(bucket) = self.buckets.get_mut(bucket) else {
                continue;
            };
            if let Some(way) = bucket.flows.iter().position(|place| *place == flow) {
                bucket.set(way, 0, NONE);
                return;
            }
        }
    }
}
