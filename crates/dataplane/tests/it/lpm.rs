//! The longest-prefix table against a naive list, its sharing, and its size.

use dataplane::Lpm;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Insert(u128, u8, u32),
    Remove(u128, u8),
    Lookup(u128),
}

/// Addresses that share prefixes often: a few bits set near the top, the middle and the end.
fn bits() -> impl Strategy<Value = u128> {
    prop_oneof![
        any::<u128>(),
        (0_u128..16).prop_map(|high| high << 124),
        (0_u128..8, 0_u128..4).prop_map(|(high, low)| high << 120 | low),
        Just(0),
        Just(u128::MAX),
    ]
}

fn length() -> impl Strategy<Value = u8> {
    prop_oneof![0_u8..=128, Just(0), Just(8), Just(127), Just(128)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (bits(), length(), any::<u32>()).prop_map(|(b, l, v)| Step::Insert(b, l, v)),
        2 => (bits(), length()).prop_map(|(b, l)| Step::Remove(b, l)),
        3 => bits().prop_map(Step::Lookup),
    ]
}

fn masked(bits: u128, length: u8) -> u128 {
    if length == 0 {
        0
    } else {
        bits >> (128 - length) << (128 - length)
    }
}

#[derive(Clone, Default)]
struct Naive(Vec<(u128, u8, u32)>);

impl Naive {
    fn remove(&mut self, bits: u128, length: u8) -> Option<u32> {
        let key = (masked(bits, length), length);
        let at = self.0.iter().position(|(b, l, _)| (*b, *l) == key)?;
        Some(self.0.swap_remove(at).2)
    }

    fn insert(&mut self, bits: u128, length: u8, value: u32) -> Option<u32> {
        let old = self.remove(bits, length);
        self.0.push((masked(bits, length), length, value));
        old
    }

    fn lookup(&self, bits: u128) -> Option<(u8, u32)> {
        let covering = self.0.iter().filter(|(b, l, _)| masked(bits, *l) == *b);
        covering
            .max_by_key(|(_, l, _)| *l)
            .map(|(_, l, v)| (*l, *v))
    }
}

fn listed(table: &Lpm<u32>) -> Vec<(u128, u8, u32)> {
    let mut all = Vec::new();
    table.for_each(|entry| all.push((entry.bits, entry.length, entry.value)));
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_list(steps in proptest::collection::vec(step(), 1..120)) {
        let (mut table, mut naive) = (Lpm::default(), Naive::default());
        let mut snapshot: Option<(Lpm<u32>, Naive)> = None;
        for (index, step) in steps.iter().enumerate() {
            match *step {
                Step::Insert(b, l, v) => prop_assert_eq!(table.insert(b, l, v), naive.insert(b, l, v)),
                Step::Remove(b, l) => prop_assert_eq!(table.remove(b, l), naive.remove(b, l)),
                Step::Lookup(b) => prop_assert_eq!(table.lookup(b), naive.lookup(b)),
            }
            prop_assert_eq!(table.len(), naive.0.len());
            prop_assert_eq!(table.is_empty(), naive.0.is_empty());
            if index == 30 {
                snapshot = Some((table.clone(), naive.clone()));
            }
        }
        let mut expected = naive.0.clone();
        expected.sort();
        prop_assert_eq!(listed(&table), expected);
        for (b, l, v) in &naive.0 {
            prop_assert_eq!(table.get(*b, *l), Some(*v));
        }
        // A snapshot is what it was, whatever came later.
        if let Some((table, naive)) = snapshot {
            let mut expected = naive.0;
            expected.sort();
            prop_assert_eq!(listed(&table), expected);
        }
    }
}

#[test]
fn a_hundred_thousand_routes() {
    let mut table = Lpm::default();
    let key = |index: u32| u128::from(index.wrapping_mul(2_654_435_761) & 0xffff_ff00) << 96;
    for index in 0..100_000 {
        table.insert(key(index), 24, index);
    }
    let full = table.len();
    let snapshot = table.clone();
    for index in 0..50_000 {
        table.remove(key(index), 24);
    }
    assert!(full > 99_000 && table.len() < full);
    assert_eq!(snapshot.len(), full);
    for index in 0..100_000 {
        assert!(snapshot.lookup(key(index) | 7 << 96).is_some());
        assert!(table.get(key(index), 24).is_none() || index >= 50_000);
    }
}
