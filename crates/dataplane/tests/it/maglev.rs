//! Target choice: the tables that all implementations agree on, and what consistency means.

use core::net::Ipv6Addr;
use dataplane::{MAGLEV_SLOTS, MAGLEV_TARGETS_MAX, Maglev, TargetError};
use proptest::prelude::*;

fn maglev(targets: &[&str]) -> Maglev {
    let mut maglev = Maglev::default();
    for target in targets {
        maglev.add(target.parse().unwrap()).unwrap();
    }
    maglev
}

fn counts(maglev: &Maglev) -> Vec<usize> {
    let mut counts = vec![0; maglev.targets().len()];
    for slot in maglev.slots() {
        counts[usize::from(*slot)] += 1;
    }
    counts
}

#[test]
fn tables_that_all_implementations_share() {
    let first = maglev(&[
        "fc00:1::8000:1234:1",
        "fc00:1::8000:1234:2",
        "fc00:1::8000:1234:3",
    ]);
    assert_eq!(
        first.slots()[..30],
        [
            0, 0, 2, 2, 1, 0, 1, 0, 0, 1, 1, 2, 2, 2, 1, 1, 0, 2, 2, 1, 0, 1, 2, 0, 0, 2, 1, 0, 2,
            2
        ]
    );
    assert_eq!(counts(&first), [168, 168, 167]);
    assert_eq!((first.slots()[452], first.slots()[281]), (1, 2));
    // Hashes of 172.22.2.1:1234 from 45.86.6.6:53 and from 45.86.6.106:53 over UDP in network 100.
    assert_eq!(
        first.select(0xea89_f889),
        "fc00:1::8000:1234:2".parse().ok()
    );
    assert_eq!(
        first.select(0xf35d_4eec),
        "fc00:1::8000:1234:3".parse().ok()
    );
    // The order of insertion does not matter.
    assert_eq!(
        first,
        maglev(&[
            "fc00:1::8000:1234:3",
            "fc00:1::8000:1234:1",
            "fc00:1::8000:1234:2"
        ])
    );
    let second = maglev(&["fc00:2::1", "fc00:2::2", "fc00:2::3"]);
    assert_eq!(
        second.slots()[..30],
        [
            1, 1, 1, 2, 2, 2, 1, 2, 1, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0, 2, 1, 2, 1, 0, 0, 0, 0, 2, 1,
            1
        ]
    );
    assert_eq!(counts(&second), [168, 168, 167]);
}

#[test]
fn limits_and_missing_targets() {
    let mut maglev = Maglev::default();
    assert_eq!(maglev.select(7), None);
    let target = |index: usize| Ipv6Addr::from_bits(0xfc00 << 112 | index as u128);
    for index in 0..MAGLEV_TARGETS_MAX {
        assert_eq!(maglev.add(target(index + 1)), Ok(()));
    }
    assert_eq!(maglev.add(target(1)), Err(TargetError::Exists));
    assert_eq!(maglev.add(target(99)), Err(TargetError::Full));
    assert!(!maglev.remove(target(99)));
    assert!(maglev.remove(target(1)));
    assert!(!maglev.contains(target(1)) && maglev.contains(target(2)));
    for index in 1..MAGLEV_TARGETS_MAX {
        assert!(maglev.remove(target(index + 1)));
    }
    assert_eq!(maglev, Maglev::default());
    assert_eq!(maglev.select(7), None);
}

/// The textbook algorithm on whole permutations, with hash functions written from their definitions.
fn naive(targets: &[Ipv6Addr]) -> Vec<usize> {
    let permutation = |target: &Ipv6Addr| -> Vec<usize> {
        let bytes = target.octets();
        let mut h: u32 = 16;
        for chunk in bytes.chunks(4) {
            let mut k = u32::from_le_bytes(chunk.try_into().unwrap());
            k = k.wrapping_mul(0x5bd1e995);
            k ^= k >> 24;
            k = k.wrapping_mul(0x5bd1e995);
            h = h.wrapping_mul(0x5bd1e995);
            h ^= k;
        }
        h ^= h >> 13;
        h = h.wrapping_mul(0x5bd1e995);
        h ^= h >> 15;
        let offset = h as usize % 503;
        let h2 = bytes
            .iter()
            .fold(5381_u64, |h, b| (h * 33 + u64::from(*b)) & 0xffff_ffff)
            & 0x7fff_ffff;
        let skip = h2 as usize % 502 + 1;
        (0..503).map(|j| (offset + j * skip) % 503).collect()
    };
    let permutations: Vec<_> = targets.iter().map(permutation).collect();
    let mut table = vec![usize::MAX; 503];
    let mut next = vec![0; targets.len()];
    let mut filled = 0;
    'fill: loop {
        for index in 0..targets.len() {
            while table[permutations[index][next[index]]] != usize::MAX {
                next[index] += 1;
            }
            table[permutations[index][next[index]]] = index;
            filled += 1;
            if filled == 503 {
                break 'fill;
            }
        }
    }
    table
}

proptest! {
    #[test]
    fn as_the_textbook_says(set in prop::collection::btree_set(any::<u128>(), 1..MAGLEV_TARGETS_MAX)) {
        let targets: Vec<Ipv6Addr> = set.into_iter().map(Ipv6Addr::from_bits).collect();
        let mut built = Maglev::default();
        for target in &targets {
            prop_assert_eq!(built.add(*target), Ok(()));
        }
        let slots: Vec<usize> = built.slots().iter().map(|slot| usize::from(*slot)).collect();
        prop_assert_eq!(slots, naive(&targets));
        let counts = counts(&built);
        let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        prop_assert!(max - min <= 1, "{counts:?}");
        prop_assert_eq!(counts.iter().sum::<usize>(), MAGLEV_SLOTS);
    }

    #[test]
    fn a_removed_target_is_never_chosen_and_most_others_stay(
        set in prop::collection::btree_set(any::<u128>(), 3..10), gone in 0_usize..3,
    ) {
        let targets: Vec<Ipv6Addr> = set.into_iter().map(Ipv6Addr::from_bits).collect();
        let mut built = Maglev::default();
        for target in &targets {
            prop_assert_eq!(built.add(*target), Ok(()));
        }
        let before = built.clone();
        prop_assert!(built.remove(targets[gone]));
        let moved = (0..503_u32).filter(|hash| {
            let (old, new) = (before.select(*hash).unwrap(), built.select(*hash).unwrap());
            assert_ne!(new, targets[gone]);
            old != targets[gone] && old != new
        });
        prop_assert!(moved.count() < 503 / 2);
    }
}
