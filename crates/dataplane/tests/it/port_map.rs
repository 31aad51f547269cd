//! Network NAT ports: shared vectors, and a naive model that keeps every connection in a list.

use core::net::{IpAddr, Ipv4Addr};
use dataplane::{NatEnd, NatError, NatRemote, NatSource, PortMap, nat_source_hash};
use net::{PortRange, Vni};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn source(address: &str, port: u16) -> NatSource {
    NatSource {
        vni: Vni::new(100).unwrap(),
        address: address.parse().unwrap(),
        port,
    }
}

fn udp(address: &str, port: u16) -> NatRemote {
    NatRemote {
        address: address.parse().unwrap(),
        port,
        protocol: 17,
    }
}

const NAT: Ipv4Addr = Ipv4Addr::new(172, 20, 1, 1);

fn range(first: u16, end: u16) -> PortRange {
    PortRange::new(first, end).unwrap()
}

#[test]
fn hashes_that_all_implementations_share() {
    for (port, v4, v6) in [
        (1024, 0x7540_a119, 0x28dc_6b27),
        (1025, 0x0e24_2115, 0xb2c1_fe15),
        (1026, 0x412f_89d4, 0x48ba_abc3),
        (1027, 0xb794_dede, 0x6f0e_a871),
    ] {
        assert_eq!(nat_source_hash(&source("10.100.1.1", port)), v4);
        assert_eq!(nat_source_hash(&source("2000:100:1::1", port)), v6);
    }
}

#[test]
fn ports_that_all_implementations_choose() {
    let mut map = PortMap::new(100, 1);
    let mut port = |from, to| {
        let end = map.allocate(from, to, NAT, range(100, 104)).unwrap();
        assert_eq!(end.address, NAT);
        end.port
    };
    let remote = udp("45.86.6.106", 1234);
    assert_eq!(port(source("10.100.1.1", 1024), remote), 101);
    assert_eq!(
        port(source("10.100.1.1", 1025), remote),
        102,
        "101 is taken for that remote end"
    );
    let remote = udp("45.86.6.6", 1234);
    let six = |port| source("2000:100:1::1", port);
    assert_eq!(
        [1024, 1025, 1026].map(|from| port(six(from), remote)),
        [103, 101, 100]
    );
}

#[test]
fn sharing_exhaustion_and_release() {
    let mut map = PortMap::new(100, 2);
    let one = range(500, 501);
    let (a, b) = (source("10.0.0.1", 1000), source("10.0.0.2", 1000));
    let (x, y) = (udp("1.1.1.1", 53), udp("2.2.2.2", 53));
    let end = NatEnd {
        address: NAT,
        port: 500,
    };
    assert_eq!(map.allocate(a, x, NAT, one), Ok(end));
    assert_eq!(
        map.allocate(b, y, NAT, one),
        Ok(end),
        "one port, two machines, two remote ends"
    );
    assert_eq!(map.allocate(b, x, NAT, one), Err(NatError::Conflict));
    assert_eq!(
        map.allocate(source("10.0.0.3", 1), x, NAT, one),
        Err(NatError::Exhausted)
    );
    let tcp = NatRemote { protocol: 6, ..x };
    assert_eq!(
        map.allocate(b, tcp, NAT, one),
        Ok(end),
        "protocols do not disturb each other"
    );
    let echo = NatRemote::echo(x.address);
    assert_eq!(map.allocate(a, echo, NAT, one), Ok(end));
    assert_eq!(
        map.allocate(b, echo, NAT, one),
        Err(NatError::Conflict),
        "answers to two echo requests with one identifier could not be told apart"
    );
    assert_eq!(map.saturation(), (4, 100));
    assert_eq!(map.mappings_len(), 2);
    assert!(map.release(a, x, end) && !map.release(a, x, end));
    assert_eq!(map.allocate(b, x, NAT, one), Ok(end));
    for (from, to) in [(a, echo), (b, x), (b, y), (b, tcp)] {
        assert!(map.release(from, to, end));
    }
    assert_eq!((map.saturation(), map.mappings_len()), ((0, 100), 0));
}

#[test]
fn a_changed_range_is_used_at_once() {
    let mut map = PortMap::new(100, 3);
    let from = source("10.0.0.1", 1000);
    let (x, y) = (udp("1.1.1.1", 53), udp("2.2.2.2", 53));
    let old = map.allocate(from, x, NAT, range(100, 101)).unwrap();
    let old_y = map.allocate(from, y, NAT, range(100, 101)).unwrap();
    assert!(map.release(from, x, old));
    let new = map.allocate(from, x, NAT, range(200, 201)).unwrap();
    assert_eq!((old.port, new.port), (100, 200));
    assert!(
        map.release(from, y, old_y),
        "the other connection ends later"
    );
    assert_eq!(map.mappings_len(), 1);
    assert!(map.release(from, x, new));
    assert_eq!((map.saturation().0, map.mappings_len()), (0, 0));
}

#[test]
fn full() {
    let mut map = PortMap::new(1, 4);
    let from = source("10.0.0.1", 1000);
    assert!(
        map.allocate(from, udp("1.1.1.1", 53), NAT, range(1, 9))
            .is_ok()
    );
    let refused = map.allocate(from, udp("2.2.2.2", 53), NAT, range(1, 9));
    assert_eq!(refused, Err(NatError::Full));
}

#[derive(Clone, Debug)]
enum Step {
    Open {
        machine: u8,
        port: u16,
        remote: u8,
        remote_port: u8,
    },
    Close {
        which: prop::sample::Index,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u8..3, 1000_u16..1004, 0_u8..2, 0_u8..2)
            .prop_map(|(machine, port, remote, remote_port)| Step::Open { machine, port, remote, remote_port }),
        2 => any::<prop::sample::Index>().prop_map(|which| Step::Close { which }),
    ]
}

proptest! {
    /// Against a list of all connections: mappings are stable, no two connections share both ends, nothing leaks.
    #[test]
    fn as_the_naive_model(steps in prop::collection::vec(step(), 1..200)) {
        let mut map = PortMap::new(10_000, 5);
        let ports = range(500, 503);
        let mut open: Vec<(NatSource, NatRemote, NatEnd)> = Vec::new();
        for step in steps {
            match step {
                Step::Open { machine, port, remote, remote_port } => {
                    let from = source(&format!("10.0.0.{machine}"), port);
                    let to = udp(&format!("1.1.1.{remote}"), u16::from(remote_port));
                    if open.iter().any(|(f, t, _)| (*f, *t) == (from, to)) {
                        continue;
                    }
                    let taken = |end: NatEnd| open.iter().any(|(_, t, e)| (*t, *e) == (to, end));
                    let mapped = open.iter().find(|(f, _, _)| *f == from).map(|(_, _, end)| *end);
                    let start = nat_source_hash(&from);
                    let candidates = (0..3_u32).map(|i| NatEnd { address: NAT, port: 500 + (start.wrapping_add(i) % 3) as u16 });
                    let expected = match mapped {
                        Some(end) if taken(end) => Err(NatError::Conflict),
                        Some(end) => Ok(end),
                        None => candidates.into_iter().find(|end| !taken(*end)).ok_or(NatError::Exhausted),
                    };
                    let got = map.allocate(from, to, NAT, ports);
                    prop_assert_eq!(got, expected);
                    if let Ok(end) = got {
                        open.push((from, to, end));
                    }
                }
                Step::Close { which } => {
                    if !open.is_empty() {
                        let (from, to, end) = open.swap_remove(which.index(open.len()));
                        prop_assert!(map.release(from, to, end));
                    }
                }
            }
            let mut mappings: BTreeMap<NatSource, (NatEnd, u32)> = BTreeMap::new();
            for (from, _, end) in &open {
                mappings.entry(*from).or_insert((*end, 0)).1 += 1;
            }
            let shown: BTreeMap<_, _> = map.mappings().map(|m| (m.source, (m.end, m.connections))).collect();
            prop_assert_eq!(shown, mappings);
            prop_assert_eq!(map.saturation().0, open.len());
        }
    }
}

#[test]
fn families_have_keys_of_their_own() {
    let four = source("0.0.0.1", 7);
    let six = NatSource {
        address: IpAddr::V6("::1".parse().unwrap()),
        ..four
    };
    assert_ne!(nat_source_hash(&four), nat_source_hash(&six));
}
