//! A bucket of the flow table, one cache line: ten short signatures and the numbers of their entries.

use super::NONE;
use wide::bytemuck::cast;
use wide::{i8x16, i16x16};

/// Places per bucket.
pub(super) const WAYS: usize = 10;

/// Signatures and entry numbers; the signature 0 marks a free place. The last number is always [`NONE`]: what a search without result finds.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    signatures: [u16; WAYS],
    entries: [u32; WAYS + 1],
}

impl Bucket {
    pub const EMPTY: Bucket = Bucket {
        signatures: [0; WAYS],
        entries: [NONE; WAYS + 1],
    };

    /// One bit for every place that holds `signature`.
    #[inline(always)]
    fn marks(&self, signature: u16) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j] = self.signatures;
        let front: u128 = cast([a, b, c, d, e, f, g, h]);
        let back = u128::from(cast::<[u16; 2], u32>([i, j]));
        let signatures: i16x16 = cast([front, back]);
        let equal = signatures.simd_eq(i16x16::splat(signature.cast_signed()));
        i8x16::from_i16x16_saturate(equal).to_bitmask()
    }

    /// The entry at a place that holds `signature`, or [`NONE`]; without a branch.
    #[inline(always)]
    pub fn entry(&self, signature: u16) -> u32 {
        let found = (self.marks(signature) | 1 << WAYS).trailing_zeros();
        self.entries.get(found as usize).copied().unwrap_or(NONE)
    }

    /// All entries at places that hold `signature`, which is not 0.
    #[inline]
    pub fn entries(&self, signature: u16) -> impl Iterator<Item = u32> {
        let mut marks = self.marks(signature);
        core::iter::from_fn(move || {
            let way = marks.trailing_zeros();
            marks &= marks.wrapping_sub(1);
            self.entries.get(way as usize).copied()
        })
    }

    /// The place of an entry.
    pub fn position(&self, entry: u32) -> Option<usize> {
        let mut places = self.entries.iter().take(WAYS);
        places.position(|found| *found == entry)
    }

    /// A place that is free.
    pub fn free(&self) -> Option<usize> {
        // Behind the places are zeros as well.
        let way = self.marks(0).trailing_zeros() as usize;
        (way < WAYS).then_some(way)
    }

    /// What a place holds.
    pub fn place(&self, way: usize) -> Option<(u16, u32)> {
        Some((*self.signatures.get(way)?, *self.entries.get(way)?))
    }

    pub fn set(&mut self, way: usize, signature: u16, entry: u32) {
        if let (Some(place), Some(number)) =
            (self.signatures.get_mut(way), self.entries.get_mut(way))
        {
            (*place, *number) = (signature, entry);
        }
    }

    /// Something of the bucket, to bring it into the cache.
    #[inline(always)]
    pub fn touch(&self) -> u64 {
        u64::from(self.signatures[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entries_are_found_by_their_signature(
            signatures in proptest::array::uniform10(prop_oneof![Just(1_u16), Just(0x7fff), any::<u16>().prop_map(|number| number | 1)]),
            taken in 0..=WAYS,
            other in any::<u16>().prop_map(|number| number | 1),
        ) {
            let mut bucket = Bucket::EMPTY;
            let placed = &signatures[..taken];
            for (way, signature) in placed.iter().enumerate() {
                bucket.set(way, *signature, way as u32);
            }
            for wanted in signatures.into_iter().chain([other]) {
                let expected = placed.iter().position(|signature| *signature == wanted);
                prop_assert_eq!(bucket.entry(wanted), expected.map_or(NONE, |way| way as u32));
            }
            prop_assert_eq!(bucket.free(), (taken < WAYS).then_some(taken));
        }
    }
}
