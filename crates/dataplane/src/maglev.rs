//! Consistent choice of a load-balancer target (Maglev, Eisenbud et al., NSDI 2016, §3.4).
//!
//! Every host that knows the same targets computes the same table, so a connection reaches the same target whichever host its packets
//! pass. Size and hash functions are therefore part of the contract between implementations.

use core::net::Ipv6Addr;

/// Targets of one load balancer.
pub const MAGLEV_TARGETS_MAX: usize = 64;
/// Table size; prime, so that every permutation visits every slot.
pub const MAGLEV_SLOTS: usize = 503;

/// A set of targets and the table made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maglev {
    /// Ascending by their 16 bytes.
    targets: Vec<Ipv6Addr>,
    /// Index into `targets` per slot; without meaning while there are none.
    slots: Box<[u8; MAGLEV_SLOTS]>,
}

/// Why a target was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// It is there already.
    Exists,
    /// There are [`MAGLEV_TARGETS_MAX`] already.
    Full,
}

impl Default for Maglev {
    fn default() -> Self {
        Maglev {
            targets: Vec::new(),
            slots: Box::new([0; MAGLEV_SLOTS]),
        }
    }
}

impl Maglev {
    /// Targets in ascending order.
    #[must_use]
    pub fn targets(&self) -> &[Ipv6Addr] {
        &self.targets
    }

    /// Whether connections may still be directed to `target`.
    #[must_use]
    pub fn contains(&self, target: Ipv6Addr) -> bool {
        self.targets.binary_search(&target).is_ok()
    }

    /// Adds a target and rebuilds the table.
    pub fn add(&mut self, target: Ipv6Addr) -> Result<(), TargetError> {
        let Err(place) = self.targets.binary_search(&target) else {
            return Err(TargetError::Exists);
        };
        if self.targets.len() >= MAGLEV_TARGETS_MAX {
            return Err(TargetError::Full);
        }
        self.targets.insert(place, target);
        self.rebuild();
        Ok(())
    }

    /// Removes a target and rebuilds the table; false if there is no such target.
    #[must_use]
    pub fn remove(&mut self, target: Ipv6Addr) -> bool {
        let Ok(place) = self.targets.binary_search(&target) else {
            return false;
        };
        self.targets.remove(place);
        self.rebuild();
        true
    }

    /// The target of a connection with this hash; `None` if there are no targets.
    #[must_use]
    pub fn select(&self, hash: u32) -> Option<Ipv6Addr> {
        let slot = self.slots.get(hash as usize % MAGLEV_SLOTS)?;
        self.targets.get(usize::from(*slot)).copied()
    }

    /// Index of the target in every slot.
    #[must_use]
    pub fn slots(&self) -> &[u8; MAGLEV_SLOTS] {
        &self.slots
    }

    /// Targets take turns; each claims the first free slot of its own permutation.
    fn rebuild(&mut self) {
        let mut walks: Vec<Walk> = self
            .targets
            .iter()
            .map(|target| Walk::of(*target))
            .collect();
        let mut taken = [false; MAGLEV_SLOTS];
        let mut left = if walks.is_empty() { 0 } else { MAGLEV_SLOTS };
        while left > 0 {
            for (index, walk) in walks.iter_mut().enumerate().take(left) {
                let slot = walk.claim(&mut taken);
                if let Some(place) = self.slots.get_mut(slot) {
                    *place = index as u8;
                }
            }
            left = left.saturating_sub(walks.len());
        }
    }
}

/// Position in a target's permutation of the slots.
#[derive(Clone, Copy, Debug)]
struct Walk {
    next: usize,
    skip: usize,
}

impl Walk {
    fn of(target: Ipv6Addr) -> Walk {
        let bytes = target.octets();
        Walk {
            next: murmur2(&bytes) as usize % MAGLEV_SLOTS,
            skip: djb2(&bytes) as usize % (MAGLEV_SLOTS - 1) + 1,
        }
    }

    /// The next free slot, now taken. Callers see to it that there is one.
    fn claim(&mut self, taken: &mut [bool; MAGLEV_SLOTS]) -> usize {
        for _ in 0..MAGLEV_SLOTS {
            let slot = self.next;
            self.next = (self.next + self.skip) % MAGLEV_SLOTS;
            if let Some(free @ false) = taken.get_mut(slot) {
                *free = true;
                return slot;
            }
        }
        self.next
    }
}

/// MurmurHash2, 32 bits (Austin Appleby), seed 0.
fn murmur2(bytes: &[u8; 16]) -> u32 {
    const MULTIPLIER: u32 = 0x5bd1_e995;
    let mut hash = bytes.len() as u32;
    let (words, _) = bytes.as_chunks::<4>();
    for word in words {
        let mut value = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        value ^= value >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ value.wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

/// Bernstein's hash, 31 bits.
fn djb2(bytes: &[u8; 16]) -> u32 {
    let hash = bytes.iter().fold(5381_u32, |hash, byte| {
        hash.wrapping_mul(33).wrapping_add(u32::from(*byte))
    });
    hash & 0x7fff_ffff
}
