//! Fragmented packets: only the first piece shows ports, so what it shows is remembered for those that follow.
//!
//! Nothing is put together here: every piece is forwarded by itself, like the first one. A piece whose first has not come (or came too long ago,
//! or was refused) is dropped; Linux and all others send the first one first.

use crate::flow::Coarse;
use crate::port_map::Seed;
use core::hash::{BuildHasher, Hash};
use core::net::IpAddr;

/// Fragmented packets remembered at a time, per worker.
pub(crate) const FRAGMENTED_MAX: usize = 4_096;
/// How long the first piece is remembered, in seconds.
const TIMEOUT_S: u32 = 30;
/// Places that a packet may take.
const WAYS: usize = 4;

/// What all pieces of a packet show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PieceKey {
    /// Where it came in, and in which network.
    pub place: u64,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub identification: u32,
}

#[derive(Clone, Copy, Debug)]
struct Known<V> {
    key: PieceKey,
    value: V,
    since: Coarse,
}

/// What is known from first pieces.
#[derive(Debug)]
pub(crate) struct Fragments<V> {
    sets: Box<[[Option<Known<V>>; WAYS]]>,
    seed: Seed,
}

impl<V: Copy> Fragments<V> {
    pub(crate) fn new(seed: u64) -> Fragments<V> {
        Fragments {
            sets: vec![[None; WAYS]; FRAGMENTED_MAX / WAYS].into_boxed_slice(),
            seed: Seed(seed),
        }
    }

    fn set(&self, key: &PieceKey) -> usize {
        (self.seed.hash_one(key) >> 32) as usize % self.sets.len()
    }

    /// What the first piece of a packet showed.
    pub(crate) fn find(&self, key: &PieceKey, now: Coarse) -> Option<V> {
        let (value, since) = self.recall(key)?;
        (now.since(since) <= Coarse::units(TIMEOUT_S)).then_some(value)
    }

    /// The same whenever that was, and when it was.
    pub(crate) fn recall(&self, key: &PieceKey) -> Option<(V, Coarse)> {
        let set = self.sets.get(self.set(key))?;
        let found = set.iter().flatten().find(|known| known.key == *key)?;
        Some((found.value, found.since))
    }

    /// Remembers what the first piece of a packet shows; true if another packet had to be forgotten early.
    pub(crate) fn remember(&mut self, key: PieceKey, value: V, now: Coarse) -> bool {
        let index = self.set(&key);
        let Some(set) = self.sets.get_mut(index) else {
            return false;
        };
        let age = |known: &Option<Known<V>>| match known {
            Some(known) if known.key != key => now.since(known.since),
            Some(_) | None => u32::MAX,
        };
        let Some(oldest) = set.iter_mut().max_by_key(|known| age(known)) else {
            return false;
        };
        let displaced = age(oldest) <= Coarse::units(TIMEOUT_S);
        let since = now;
        *oldest = Some(Known { key, value, since });
        displaced
    }
}
