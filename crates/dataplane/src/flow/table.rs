//! The flow table: signature buckets of one cache line, the entries they point to, and the cold records.
//!
//! A key has two possible buckets of ten places each. If both are full, an entry of theirs moves to its own second bucket; at the load we
//! allow (never above 85 %) that practically never fails, and if it does, the flow is refused like in a full table. Entries and records are
//! created from reserved vectors and recycled over a free list, so nothing is allocated after construction, and memory is touched only as
//! flows come. A connection costs at most 160 bytes: two entries, a record, two places.

use super::bucket::{Bucket, WAYS};
use super::key::{FlowKey, Hasher, Keyed, Place, Scope, Tuple};
use super::wheel::Wheel;
use super::{Coarse, Cold, Entry, NONE, Service};
use crate::conntrack::TcpState;
use crate::verdict::PortId;

/// Buckets of the smallest table. With fewer, the pairs of buckets are so few that some fill long before the table does.
const BUCKETS_MIN: usize = 16;
/// Connections whose entries and buckets find room in a second-level cache of 1 MiB.
const NEAR_MAX: usize = 4_096;
/// Connections one call of [`FlowTable::age`] looks at, so that ageing never delays packets for long.
pub(crate) const AGE_BUDGET_MAX: usize = 2_048;

#[derive(Debug)]
pub(crate) struct FlowTable {
    buckets: Box<[Bucket]>,
    entries: Vec<Entry>,
    cold: Vec<Cold>,
    hasher: Hasher,
    flows_max: usize,
    free: u32,
    len: usize,
    wheel: Wheel,
    /// Timeout of everything but established TCP, and of that, in [`Coarse`] units.
    idle: u32,
    established: u32,
}

impl FlowTable {
    pub(crate) fn new(flows_max: u32, timeout_s: u32, hash_seed: u64) -> FlowTable {
        // Entry numbers stay below NONE, bucket numbers below 2^32.
        let flows_max = flows_max.clamp(1, NONE / 4) as usize;
        // At most 85 % of the places are used.
        let buckets = (flows_max * 2 * 20).div_ceil(17 * WAYS).max(BUCKETS_MIN);
        let established = Coarse::units(crate::EngineConfig::TCP_ESTABLISHED_TIMEOUT_S);
        FlowTable {
            buckets: vec![Bucket::EMPTY; buckets].into_boxed_slice(),
            entries: Vec::with_capacity(flows_max * 2),
            cold: Vec::with_capacity(flows_max),
            hasher: Hasher::new(hash_seed, buckets as u32),
            flows_max,
            free: NONE,
            len: 0,
            wheel: Wheel::new(),
            idle: Coarse::units(timeout_s.clamp(1, 300)),
            established,
        }
    }

    /// Live connections.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Most connections there can be.
    pub(crate) fn capacity(&self) -> usize {
        self.flows_max
    }

    /// Key and hash of a tuple; `None` if its addresses are of different families.
    pub(crate) fn keyed(&self, scope: Scope, tuple: &Tuple) -> Option<Keyed> {
        self.hasher.tuple(scope, tuple)
    }

    #[inline(always)]
    pub(crate) fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    #[inline(always)]
    fn bucket(&self, place: Place) -> Option<&Bucket> {
        self.buckets.get(place.bucket as usize)
    }

    /// The most likely entry of a place, unverified: the first in its bucket whose signature fits.
    #[inline(always)]
    pub(crate) fn guess_first(&self, place: Place) -> u32 {
        match self.bucket(place) {
            Some(bucket) => bucket.entry(place.signature),
            None => NONE,
        }
    }

    /// The same in the other bucket.
    #[inline]
    pub(crate) fn guess_other(&self, place: Place) -> u32 {
        self.guess_first(self.hasher.other(place))
    }

    /// Whether the connections are too many for the nearer caches, so that touching what is needed next pays.
    pub(crate) fn is_far(&self) -> bool {
        self.len > NEAR_MAX
    }

    /// Something of a bucket, to bring it into the cache.
    #[inline(always)]
    pub(crate) fn touch_bucket(&self, place: Place) -> u64 {
        match self.bucket(place) {
            Some(bucket) => bucket.touch(),
            None => 0,
        }
    }

    /// Something of all buckets that a new connection is looked for and put in, but for the first one, if nothing is translated.
    #[inline]
    pub(crate) fn touch_buckets_of_new(&self, key: &FlowKey, place: Place) -> u64 {
        let scope = key.scope().of_answers();
        let answer = self.hasher.answers(key, scope).place;
        self.touch_bucket(self.hasher.other(place))
            ^ self.touch_bucket(answer)
            ^ self.touch_bucket(self.hasher.other(answer))
    }

    /// Something of an entry, to bring it into the cache.
    #[inline(always)]
    pub(crate) fn touch_entry(&self, entry: u32) -> u64 {
        match self.entries.get(entry as usize) {
            Some(entry) => entry.rewrite,
            None => 0,
        }
    }

    pub(crate) fn entry(&self, entry: u32) -> Option<&Entry> {
        self.entries.get(entry as usize)
    }

    #[inline(always)]
    pub(crate) fn entry_mut(&mut self, entry: u32) -> Option<&mut Entry> {
        self.entries.get_mut(entry as usize)
    }

    /// Entries of live connections with their numbers, for whoever looks on: among `count` entries from number `from` on.
    pub(crate) fn live(&self, from: u32, count: usize) -> impl Iterator<Item = (u32, &Entry)> {
        let entries = self.entries.iter().skip(from as usize).take(count);
        let numbered = (from..).zip(entries);
        numbered.filter(|(_, entry)| entry.key.first != FlowKey::NONE.first)
    }

    /// One past the highest number that an entry has had.
    pub(crate) fn numbers_end(&self) -> usize {
        self.entries.len()
    }

    /// Timeout of a connection in this state, in [`Coarse`] units.
    pub(crate) fn timeout(&self, state: TcpState) -> u32 {
        match state {
            TcpState::Established => self.established,
            TcpState::None
            | TcpState::NewSyn
            | TcpState::NewSynAck
            | TcpState::FinWait
            | TcpState::RstFin => self.idle,
        }
    }

    /// The cold record of the connection that an entry belongs to.
    pub(crate) fn cold(&self, entry: u32) -> Option<&Cold> {
        self.cold.get(entry as usize / 2)
    }

    pub(crate) fn cold_mut(&mut self, entry: u32) -> Option<&mut Cold> {
        self.cold.get_mut(entry as usize / 2)
    }

    /// The entry of a key.
    pub(crate) fn find(&self, keyed: &Keyed) -> Option<u32> {
        let is_it = |entry: &u32| {
            let found = self.entry(*entry);
            found.is_some_and(|found| found.key.is(&keyed.key))
        };
        let places = [keyed.place, self.hasher.other(keyed.place)];
        places.into_iter().find_map(|place| {
            let mut entries = self.bucket(place)?.entries(place.signature);
            entries.find(is_it)
        })
    }

    /// Creates the connection of two entries, whose keys are not in the table, and returns the number of the first one. `None` if there is no
    /// room.
    pub(crate) fn insert(
        &mut self,
        entries: [(Place, &Entry); 2],
        owner: (PortId, u32),
        service: Service,
    ) -> Option<u32> {
        let [(_, Entry { last_seen: now, .. }), _] = entries;
        let record = Cold {
            next: NONE,
            owner: owner.1,
            owner_port: owner.0,
            tcp: TcpState::None,
            syn_side: 0,
            service,
        };
        let connection = self.allocate(record)?;
        for (side, (place, entry)) in (0..).zip(entries) {
            if !self.place(place, connection * 2 + side, entry) {
                if side == 1 {
                    self.unplace(connection * 2);
                }
                self.recycle(connection);
                return None;
            }
        }
        self.wheel.link(&mut self.cold, connection, *now, self.idle);
        self.len += 1;
        Some(connection * 2)
    }

    /// Gives an entry its content and a place in a bucket.
    fn place(&mut self, place: Place, number: u32, entry: &Entry) -> bool {
        let Some((bucket, way)) = self.make_room(place) else {
            return false;
        };
        let Some(slot) = self.entries.get_mut(number as usize) else {
            return false;
        };
        *slot = *entry;
        match self.buckets.get_mut(bucket) {
            Some(bucket) => bucket.set(way, place.signature, number),
            None => return false,
        }
        true
    }

    /// A free place for a signature, if need be by moving another entry to its own second bucket (one step of cuckoo hashing,
    /// Pagh and Rodler 2001).
    fn make_room(&mut self, place: Place) -> Option<(usize, usize)> {
        let candidates = [place, self.hasher.other(place)].map(|place| place.bucket as usize);
        for bucket in candidates {
            if let Some(way) = self.buckets.get(bucket)?.free() {
                return Some((bucket, way));
            }
        }
        for bucket in candidates {
            for way in 0..WAYS {
                let (signature, entry) = self.buckets.get(bucket)?.place(way)?;
                let moved = Place {
                    bucket: bucket as u32,
                    signature,
                };
                let other = self.hasher.other(moved).bucket as usize;
                if let Some(free) = self.buckets.get(other)?.free() {
                    self.buckets.get_mut(other)?.set(free, signature, entry);
                    return Some((bucket, way));
                }
            }
        }
        None
    }

    /// A connection number with its record in place.
    fn allocate(&mut self, record: Cold) -> Option<u32> {
        if let Some(place) = self.cold.get_mut(self.free as usize) {
            let index = self.free;
            self.free = place.next;
            *place = record;
            return Some(index);
        }
        if self.cold.len() >= self.flows_max {
            return None;
        }
        self.cold.push(record);
        self.entries.extend([Entry::FREE; 2]);
        Some((self.cold.len() - 1) as u32)
    }

    fn recycle(&mut self, connection: u32) {
        for entry in [connection * 2, connection * 2 + 1] {
            if let Some(entry) = self.entry_mut(entry) {
                // A freed entry must not answer for its former key.
                *entry = Entry::FREE;
            }
        }
        if let Some(record) = self.cold.get_mut(connection as usize) {
            record.next = self.free;
            self.free = connection;
        }
    }

    /// Takes both entries of a connection out of their buckets, so that no packet finds it. Its number is recycled when its turn on the wheel comes.
    pub(crate) fn forget(&mut self, entry: u32) {
        self.len -= 1;
        self.unplace(entry & !1);
        self.unplace(entry | 1);
        for entry in [entry & !1, entry | 1] {
            if let Some(entry) = self.entry_mut(entry) {
                *entry = Entry::FREE;
            }
        }
    }

    /// Looks at connections whose turn has come and recycles the idle ones; returns how many. Bounded by [`AGE_BUDGET_MAX`] connections. `ending`
    /// sees both entries and the record before they go.
    pub(crate) fn age(&mut self, now: Coarse, mut ending: impl FnMut([&Entry; 2], &Cold)) -> u64 {
        let mut expired = 0;
        for _ in 0..AGE_BUDGET_MAX {
            let Some(connection) = self.wheel.next_due(&mut self.cold, now) else {
                break;
            };
            let (forward, backward) = (connection * 2, connection * 2 + 1);
            let (Some(one), Some(two), Some(record)) = (
                self.entry(forward),
                self.entry(backward),
                self.cold(forward),
            ) else {
                break;
            };
            let is_forgotten = one.key.first == FlowKey::NONE.first;
            let idle = now.since(one.last_seen).min(now.since(two.last_seen));
            let timeout = self.timeout(record.tcp);
            if idle <= timeout && !is_forgotten {
                // Long timeouts are looked at once per idle timeout, so that a connection that closes is not kept much longer.
                let wait = (timeout - idle + 1).min(self.idle);
                self.wheel.link(&mut self.cold, connection, now, wait);
                continue;
            }
            if !is_forgotten {
                ending([one, two], record);
                self.unplace(forward);
                self.unplace(backward);
                self.len -= 1;
                expired += 1;
            }
            self.recycle(connection);
        }
        expired
    }

    /// Frees the place of an entry in its bucket.
    fn unplace(&mut self, entry: u32) {
        let Some(key) = self.entry(entry).map(|entry| entry.key) else {
            return;
        };
        let place = self.hasher.place(&key);
        for place in [place, self.hasher.other(place)] {
            let Some(bucket) = self.buckets.get_mut(place.bucket as usize) else {
                continue;
            };
            if let Some(way) = bucket.position(entry) {
                bucket.set(way, 0, NONE);
                return;
            }
        }
    }
}
