//! The flow table: signature buckets of one cache line, and the entries they point to.
//!
//! A key has two possible buckets of eight places each. At the load we allow (never above 80 %, usually below 50 %) both are
//! practically never full at once; if they are, the flow is refused like in a full table. Entries are created from a reserved
//! vector and recycled over a free list, so nothing is allocated after construction, and memory is touched only as flows come.

use super::key::{FlowKey, Keyed};
use super::wheel::Wheel;
use super::{Coarse, Decision, Flow, NONE};
use crate::conntrack::TcpState;
use crate::verdict::PortId;

/// Places per bucket.
const WAYS: usize = 8;
/// Entries one call of [`FlowTable::age`] looks at, so that ageing never delays packets for long.
pub(crate) const AGE_BUDGET_MAX: usize = 2_048;

/// Signatures and entry numbers; 0 marks a free place.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Bucket {
    signatures: [u16; WAYS],
    flows: [u32; WAYS],
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

/// Upper bits of the hash, never 0.
#[inline]
fn signature(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}

impl FlowTable {
    pub(crate) fn new(flows_max: u32, timeout_s: u32) -> FlowTable {
        // Indices stay below NONE; 5/4 keeps the load at or below 80 %.
        let flows_max = flows_max.clamp(1, NONE / 2) as usize;
        let buckets = (flows_max * 5 / 4).div_ceil(WAYS).next_power_of_two();
        let empty = Bucket {
            signatures: [0; WAYS],
            flows: [NONE; WAYS],
        };
        FlowTable {
            buckets: vec![empty; buckets].into_boxed_slice(),
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

    /// The most likely flow of a hash, unverified: the first signature that fits in the first bucket.
    #[inline]
    pub(crate) fn guess(&self, hash: u64) -> u32 {
        let Some(bucket) = self.buckets.get(self.first(hash)) else {
            return NONE;
        };
        let wanted = signature(hash);
        let mut hits = 0_u32;
        for (way, signature) in bucket.signatures.iter().enumerate() {
            hits |= u32::from(*signature == wanted) << way;
        }
        let way = hits.trailing_zeros() as usize;
        // No hit gives 32, which has no place.
        bucket.flows.get(way).copied().unwrap_or(NONE)
    }

    /// First word of a bucket, to bring its line into the cache.
    #[inline]
    pub(crate) fn touch_bucket(&self, hash: u64) -> u64 {
        self.buckets
            .get(self.first(hash))
            .map_or(0, |bucket| u64::from(bucket.signatures[0]))
    }

    /// Something of the two lines a hit reads, to bring them into the cache.
    #[inline]
    pub(crate) fn touch_flow(&self, flow: u32, direction: u8) -> u64 {
        self.flows.get(flow as usize).map_or(0, |flow| {
            let decision = flow.decisions.get(usize::from(direction));
            u64::from(flow.timeout) ^ decision.map_or(0, |decision| u64::from(decision.epoch))
        })
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
                let places = bucket.signatures.iter().zip(&bucket.flows);
                places
                    .filter(|(signature, _)| **signature == wanted)
                    .map(|(_, flow)| *flow)
                    .find(|flow| self.get(*flow).is_some_and(|found| found.key == keyed.key))
            })
    }

    /// Creates the flow of a key that is not in the table. `None` if there is no room.
    pub(crate) fn insert(
        &mut self,
        keyed: &Keyed,
        owner: (PortId, u32),
        now: Coarse,
    ) -> Option<u32> {
        let first = self.first(keyed.hash);
        let wanted = signature(keyed.hash);
        let (bucket, way) = [first, self.second(first, wanted)]
            .into_iter()
            .find_map(|bucket| {
                let signatures = &self.buckets.get(bucket)?.signatures;
                Some((
                    bucket,
                    signatures.iter().position(|signature| *signature == 0)?,
                ))
            })?;
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
        let bucket = self.buckets.get_mut(bucket)?;
        *bucket.signatures.get_mut(way)? = wanted;
        *bucket.flows.get_mut(way)? = flow;
        self.wheel.link(&mut self.flows, flow, now, self.timeout);
        self.len += 1;
        Some(flow)
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
            for (signature, place) in bucket.signatures.iter_mut().zip(&mut bucket.flows) {
                if *signature != 0 && *place == flow {
                    *signature = 0;
                    *place = NONE;
                    return;
                }
            }
        }
    }
}
