//! Which hypervisor a packet goes to, and which announcements count.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use edge::flow::{Flow, Port};
use edge::table::Ignored;
use edge::{DropReason, Path, Routes, Verdict};
use metalbond::{Destination, HopType, IpVersion, NextHop, RouteEvent};
use net::protocol;
use proptest::prelude::*;

use crate::bed::{
    Bed, Out, VNI, a, added, ethernet_frame, fragmented, hv, ip, message, nat, own, removed, scope,
    standard, typed, udp, udp_bytes,
};

const SHARED: &str = "198.51.100.9";

/// Where the inner packet is tunnelled to.
#[track_caller]
fn hop_of(bed: &mut Bed, packet: &[u8]) -> Ipv6Addr {
    match bed.check(&ethernet_frame(packet), Verdict::Send(Path::Inbound)) {
        Out::Tunnel(hop, inner) => {
            assert_eq!(inner, packet);
            hop
        }
        Out::Plain(_) => panic!("no tunnel"),
    }
}

#[test]
fn ports_of_a_shared_nat_address_go_to_their_owner() {
    let mut bed = Bed::new();
    for (port, owner) in [(1024, hv(1)), (2047, hv(1)), (2048, hv(2)), (3071, hv(2))] {
        for peer in 0..20 {
            let to = udp(&format!("203.0.113.{peer}"), 4000 + peer, SHARED, port);
            assert_eq!(hop_of(&mut bed, &to), owner, "port {port}");
        }
    }
}

#[test]
fn echo_replies_and_errors_find_the_owner_by_what_they_quote() {
    let mut bed = Bed::new();
    let icmp = |payload: &[u8]| ip("203.0.113.5", SHARED, protocol::ICMP, payload);
    for (port, owner) in [(1500, hv(1)), (2500, hv(2))] {
        let id = u32::from(port) << 16;
        assert_eq!(hop_of(&mut bed, &icmp(&message(0, 0, id, b"x"))), owner);
        for peer in 0..10 {
            let sent = udp(SHARED, port, &format!("203.0.113.{peer}"), 53);
            for (kind, code) in [(3, 1), (3, 4), (11, 0), (12, 0)] {
                let error = icmp(&message(kind, code, 0, &sent[..28]));
                assert_eq!(hop_of(&mut bed, &error), owner, "{kind}/{code}");
            }
            let ping = ip(
                SHARED,
                "203.0.113.7",
                protocol::ICMP,
                &message(8, 0, id, b"x"),
            );
            let error = icmp(&message(11, 0, 0, &ping[..28]));
            assert_eq!(hop_of(&mut bed, &error), owner);
        }
    }
}

/// An error that quotes somebody else's packet says nothing about the owner of a port.
#[test]
fn a_forged_quotation_does_not_choose() {
    let mut bed = Bed::new();
    let hops: Vec<Ipv6Addr> = (1024..3072)
        .step_by(64)
        .map(|port| {
            let quoted = udp("203.0.113.9", port, "203.0.113.5", 53);
            let error = ip(
                "203.0.113.5",
                SHARED,
                protocol::ICMP,
                &message(3, 1, 0, &quoted[..28]),
            );
            hop_of(&mut bed, &error)
        })
        .collect();
    assert!(hops.iter().all(|hop| *hop == hops[0]));
}

/// Announcers that tell no ranges keep working: their data planes pass the packet on.
#[test]
fn ports_that_nobody_claims_are_spread() {
    let mut bed = Bed::new();
    let mut seen = BTreeMap::<Ipv6Addr, u32>::new();
    for port in 40_000..40_200 {
        let hop = hop_of(&mut bed, &udp("203.0.113.5", port, SHARED, 9_000));
        *seen.entry(hop).or_default() += 1;
    }
    assert!(
        seen.len() == 2 && seen.values().all(|n| *n > 60),
        "{seen:?}"
    );
}

#[test]
fn without_an_owner_of_the_port_nor_an_ordinary_hop_the_sender_is_told() {
    let mut bed = Bed::new();
    let mut routes = Routes::new(scope());
    routes.follow(&added(nat("198.51.100.9/32", hv(1), 1024, 2048)));
    bed.table = routes.table().clone();
    let packet = udp("203.0.113.5", 4000, SHARED, 2048);
    assert_eq!(
        bed.put(&ethernet_frame(&packet)),
        Verdict::Answer(DropReason::NoPortOwner)
    );
    assert_eq!(
        hop_of(&mut bed, &udp("203.0.113.5", 1, SHARED, 1024)),
        hv(1)
    );
}

/// A fragment carries no port. All pieces take one way; where only the port could tell the owner there is none.
#[test]
fn fragments() {
    let mut bed = Bed::new();
    let piece = |to: &str, offset| fragmented(udp("203.0.113.5", 4000, to, 1500), offset);
    for offset in [0x2000, 0x2010, 0x0020] {
        bed.dropped(
            &ethernet_frame(&piece(SHARED, offset)),
            DropReason::FragmentOfShared,
        );
        assert_eq!(hop_of(&mut bed, &piece("198.51.100.1", offset)), hv(1));
        let first = hop_of(&mut bed, &piece("198.51.100.80", 0x2000));
        assert_eq!(hop_of(&mut bed, &piece("198.51.100.80", offset)), first);
    }
    let mut routes = Routes::new(scope());
    routes.follow(&added(standard("198.51.100.9/32", hv(1))));
    routes.follow(&added(nat("198.51.100.9/32", hv(1), 1024, 2048)));
    bed.table = routes.table().clone();
    assert_eq!(hop_of(&mut bed, &piece(SHARED, 0x0020)), hv(1));
}

fn flow(hash: u64) -> Flow {
    Flow {
        hash,
        port: Port::Known(80),
    }
}

fn shared_by(hops: &[u16]) -> Routes {
    let mut routes = Routes::new(scope());
    for hop in hops {
        routes.follow(&added(standard("198.51.100.80/32", hv(*hop))));
    }
    routes
}

proptest! {
    /// Rendezvous: a hop that goes moves its own flows only, and what is left is spread fairly.
    #[test]
    fn a_lost_hop_moves_only_its_own_flows(seed in any::<u64>(), lost in 0_u16..8) {
        let all: Vec<u16> = (0..8).collect();
        let before = shared_by(&all);
        let mut after = shared_by(&all);
        after.follow(&removed(standard("198.51.100.80/32", hv(lost))));
        let mut counts = BTreeMap::<Ipv6Addr, u32>::new();
        for n in 0..800_u64 {
            let flow = flow(seed.wrapping_add(n.wrapping_mul(0x1234_5678_9abc_def1)));
            let address = a("198.51.100.80");
            let was = before.table().choose(address, &flow).unwrap();
            let is = after.table().choose(address, &flow).unwrap();
            *counts.entry(was).or_default() += 1;
            prop_assert!(is == was || was == hv(lost));
            prop_assert_ne!(is, hv(lost));
        }
        prop_assert!(counts.len() == 8 && counts.values().all(|n| (40..=180).contains(n)), "{:?}", counts);
    }

    /// The table after any history is that of the routes which are left, however they came.
    #[test]
    fn history_does_not_matter(history in prop::collection::vec((0_u8..4, 0_u16..3, 0_u16..3, any::<bool>()), 0..60)) {
        let route = |address: u8, hop: u16, kind: u16| {
            let prefix = format!("198.51.100.{address}/32");
            match kind {
                0 => standard(&prefix, hv(hop)),
                _ => nat(&prefix, hv(hop), 1000 * kind, 1000 * kind + 1000),
            }
        };
        let mut routes = Routes::new(scope());
        let mut left = std::collections::BTreeSet::new();
        for (address, hop, kind, is_added) in history {
            let route = route(address, hop, kind);
            let event = if is_added { added(route) } else { removed(route) };
            routes.follow(&event);
            if is_added { left.insert(route); } else { left.remove(&route); }
        }
        let mut fresh = Routes::new(scope());
        left.iter().for_each(|route| { fresh.follow(&added(*route)); });
        prop_assert_eq!(routes.len(), left.len());
        prop_assert_eq!(routes.rows(99), fresh.rows(99));
        prop_assert_eq!(routes.table().len(), fresh.table().len());
        for address in 0..4 {
            for (hash, port) in [(1, 500), (2, 1500), (3, 2500), (4, 9), (5, 1001)] {
                let address = a(&format!("198.51.100.{address}"));
                let flow = Flow { hash, port: Port::Known(port) };
                prop_assert_eq!(routes.table().choose(address, &flow), fresh.table().choose(address, &flow));
            }
        }
    }
}

/// Whose announcement counts. A route to somebody else's address must not carry traffic, nor one to a private address, which two tenants
/// may use; a default route leads to another edge, where packets would circle.
#[test]
fn what_is_not_ours_is_not_used() {
    let long = Destination::from_wire(IpVersion::V4, a("198.51.100.1"), 77);
    let cases = [
        (standard("8.8.8.8/32", hv(1)), Ignored::NotPublic),
        (standard("fd10::1/128", hv(1)), Ignored::NotPublic),
        (standard("198.51.0.0/16", hv(1)), Ignored::NotPublic),
        ((long, NextHop::standard(hv(1))), Ignored::NotPublic),
        (standard("0.0.0.0/0", hv(9)), Ignored::DefaultRoute),
        (standard("::/0", hv(9)), Ignored::DefaultRoute),
        (standard("198.51.100.1/32", own()), Ignored::Hop),
        (
            typed("198.51.100.1/32", a("10.0.0.1"), HopType::Standard),
            Ignored::Hop,
        ),
        (
            typed("198.51.100.1/32", hv(1).into(), HopType::LoadBalancerTarget),
            Ignored::HopType,
        ),
        (
            typed("198.51.100.1/32", hv(1).into(), HopType::Other(7)),
            Ignored::HopType,
        ),
        (nat("198.51.100.1/32", hv(1), 0, 0), Ignored::PortRange),
        (nat("198.51.100.1/32", hv(1), 9, 8), Ignored::PortRange),
    ];
    for (route, reason) in cases {
        let mut routes = Routes::new(scope());
        assert!(!routes.follow(&added(route)), "{route:?}");
        assert!(!routes.follow(&removed(route)));
        let counted: Vec<Ignored> = routes
            .ignored()
            .filter(|(_, count)| *count == 1)
            .map(|(reason, _)| reason)
            .collect();
        assert_eq!(counted, [reason], "{route:?}");
        assert!(routes.is_empty() && routes.table().is_empty());
    }
    let mut routes = Routes::new(scope());
    let (destination, next_hop) = standard("198.51.100.1/32", hv(1));
    let other = RouteEvent::Added {
        vni: VNI + 1,
        destination,
        next_hop,
    };
    assert!(!routes.follow(&other));
    assert!(
        routes
            .ignored()
            .any(|(reason, n)| (reason, n) == (Ignored::OtherVni, 1))
    );
}

/// metalbond keeps host bits: two spellings are one prefix here, which stays until both are gone.
#[test]
fn two_spellings_of_a_prefix() {
    let mut routes = Routes::new(scope());
    let spellings = ["198.51.100.16/28", "198.51.100.17/28"].map(|p| standard(p, hv(1)));
    assert!(routes.follow(&added(spellings[0])));
    assert!(!routes.follow(&added(spellings[1])), "nothing changes");
    assert!(!routes.follow(&removed(spellings[0])));
    assert!(routes.table().knows(a("198.51.100.30")));
    assert!(routes.follow(&removed(spellings[1])));
    assert!(!routes.table().knows(a("198.51.100.30")));
}

#[test]
fn the_longest_prefix_wins() {
    let mut bed = Bed::new();
    let mut routes = Routes::new(scope());
    routes.follow(&added(standard("198.51.100.0/28", hv(1))));
    routes.follow(&added(standard("198.51.100.4/32", hv(2))));
    bed.table = routes.table().clone();
    let to = |address: &str| ip("203.0.113.5", address, 6, &udp_bytes(1, 2, 20));
    assert_eq!(hop_of(&mut bed, &to("198.51.100.3")), hv(1));
    assert_eq!(hop_of(&mut bed, &to("198.51.100.4")), hv(2));
}
