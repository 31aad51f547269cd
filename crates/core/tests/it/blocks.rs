//! Which block of a prefix is given next: a table, and a naive reference.

use api::meta::IpPrefix;
use core_controllers::ipam::blocks::{Free, Request};
use proptest::prelude::*;

fn prefix(text: &str) -> IpPrefix {
    text.parse().expect("a prefix")
}

fn check(whole: &str, taken: &[&str], request: Request, want: Option<&str>) {
    let free = Free::new(prefix(whole), taken.iter().map(|text| prefix(text)));
    assert_eq!(
        free.find(request),
        want.map(prefix),
        "{whole} without {taken:?}, {request:?}"
    );
}

#[test]
fn best_fit_lowest_first() {
    let length = Request::Length;
    check("10.0.0.0/24", &[], length(32), Some("10.0.0.0/32"));
    check(
        "10.0.0.0/24",
        &["10.0.0.0/32"],
        length(32),
        Some("10.0.0.1/32"),
    );
    check("10.0.0.0/24", &[], length(28), Some("10.0.0.0/28"));
    check("10.0.0.0/24", &[], length(24), Some("10.0.0.0/24"));
    check("10.0.0.0/24", &[], length(23), None);
    // The hole of one address is used up before a larger block is cut.
    check(
        "10.0.0.0/24",
        &["10.0.0.0/31", "10.0.0.3/32"],
        length(32),
        Some("10.0.0.2/32"),
    );
    // Behind 10.0.0.0/28 a /28 fits exactly; the /25 behind it stays whole, as does the lower /26.
    check(
        "10.0.0.0/24",
        &["10.0.0.0/28"],
        length(28),
        Some("10.0.0.16/28"),
    );
    check(
        "10.0.0.0/24",
        &["10.0.0.64/32"],
        length(27),
        Some("10.0.0.96/27"),
    );
    // Host bits of the parent do not move its parts.
    check("10.0.0.77/24", &[], length(26), Some("10.0.0.0/26"));
    check("10.0.0.0/31", &["10.0.0.0/31"], length(32), None);
    check("::/0", &[], length(128), Some("::/128"));
    check("::/0", &["::/1"], length(1), Some("8000::/1"));
    check(
        "fd00::/64",
        &["fd00::/65", "fd00::8000:0:0:0/66"],
        length(128),
        Some("fd00::c000:0:0:0/128"),
    );
    check(
        "255.255.255.0/24",
        &["255.255.255.0/25", "255.255.255.128/26"],
        length(26),
        Some("255.255.255.192/26"),
    );
}

#[test]
fn a_block_by_value_is_given_as_it_was_asked_for() {
    let by_value = |text| Request::Prefix(prefix(text));
    check(
        "10.0.0.0/24",
        &[],
        by_value("10.0.0.5/28"),
        Some("10.0.0.5/28"),
    );
    check(
        "10.0.0.0/24",
        &["10.0.0.9/32"],
        by_value("10.0.0.0/28"),
        None,
    );
    check("10.0.0.0/24", &[], by_value("10.0.1.0/28"), None);
    check("10.0.0.0/24", &[], by_value("fd00::/28"), None);
    check("::/0", &[], by_value("::/0"), Some("::/0"));
}

const WHOLE: u32 = 0x0a00_0000;
const BITS: u8 = 26;
const SIZE: u32 = 64;

fn part(start: u32, bits: u8) -> IpPrefix {
    let addr = std::net::Ipv4Addr::from(WHOLE + start);
    IpPrefix::new(addr.into(), bits).expect("a prefix")
}

/// The definition, address by address: of all aligned free blocks that are in no larger one, the longest that is not longer than
/// asked for, the lowest of these.
fn naive(taken: &[IpPrefix], wanted: u8) -> Option<IpPrefix> {
    let is_free = |start: u32, bits: u8| {
        (start..start + (1 << (32 - bits))).all(|n| {
            let address = part(n, 32);
            n < SIZE && !taken.iter().any(|taken| taken.contains(address))
        })
    };
    for bits in (BITS..=wanted).rev() {
        let step = 1_usize << (32 - bits);
        for start in (0..SIZE).step_by(step) {
            let parent = start & !((1 << (33 - bits)) - 1);
            let whole = bits > BITS && is_free(parent, bits - 1);
            if is_free(start, bits) && !whole {
                return Some(part(start, wanted));
            }
        }
    }
    None
}

fn any_part() -> impl Strategy<Value = IpPrefix> {
    (0..SIZE, 27_u8..=32).prop_map(|(start, bits)| part(start, bits))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_search_is_the_definition(taken in prop::collection::vec(any_part(), 0..12), wanted in BITS..=32) {
        let free = Free::new(part(0, BITS), taken.iter().copied());
        prop_assert_eq!(free.find(Request::Length(wanted)), naive(&taken, wanted));
    }

    /// Taking away one by one is taking away at once, in any order.
    #[test]
    fn removal_is_incremental(taken in prop::collection::vec(any_part(), 0..12)) {
        let mut one_by_one = Free::new(part(0, BITS), []);
        taken.iter().for_each(|prefix| one_by_one.remove(*prefix));
        prop_assert_eq!(one_by_one, Free::new(part(0, BITS), taken.into_iter().rev()));
    }

    /// Whatever is asked for in whatever order, nothing is given twice and nothing is left over while somebody waits for one address.
    #[test]
    fn nothing_is_given_twice(lengths in prop::collection::vec(27_u8..=32, 1..80)) {
        let mut free = Free::new(part(0, BITS), []);
        let mut given: Vec<IpPrefix> = Vec::new();
        for wanted in lengths {
            match free.find(Request::Length(wanted)) {
                Some(prefix) => {
                    prop_assert!(part(0, BITS).contains(prefix) && prefix.bits() == wanted);
                    prop_assert!(!given.iter().any(|other| other.overlaps(prefix)));
                    free.remove(prefix);
                    given.push(prefix);
                }
                None => prop_assert_eq!(naive(&given, wanted), None),
            }
        }
    }
}
