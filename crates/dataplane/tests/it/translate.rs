//! VIP, network NAT, neighbour NAT and NAT64 on the packet path.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use core::net::{IpAddr, Ipv6Addr};
use dataplane::DropReason;
use net::tcp::{ACK, RST, SYN};

const VM1_IP: &str = "10.100.1.1";
const VM2_IP: &str = "10.100.1.2";

fn nat(bed: &mut Bed, id: &str, first: u16, end: u16) -> Ipv6Addr {
    bed.engine
        .create_nat(id, address(NAT), range(first, end), None)
        .unwrap()
}

fn vip(bed: &mut Bed, id: &str) -> Ipv6Addr {
    bed.engine.create_vip(id, address(VIP), None).unwrap()
}

/// Packet without TTL and identification, which our builders and the translation set differently.
fn essence(mut ip: Vec<u8>) -> Vec<u8> {
    if ip[0] >> 4 == 4 {
        ip[4..6].fill(0);
        ip[8] = 0;
        ip[10..12].fill(0);
    } else {
        ip[7] = 0;
    }
    ip
}

#[test]
fn vip_towards_the_internet_and_back() {
    let mut bed = Bed::public();
    let underlay = vip(&mut bed, "vm2");
    let own = bed.underlay("vm2");
    for _ in 0..2 {
        let sent = build::tcp((VM2_IP, 1240), (PUBLIC, 80), SYN);
        let seen = build::tcp((VIP, 1240), (PUBLIC, 80), SYN);
        assert_eq!(bed.guest(VM2, &sent), Out::Tunnel(PF0, own, router(), seen));
        let sent = build::tcp((PUBLIC, 80), (VIP, 1240), SYN | ACK);
        let seen = build::tcp((PUBLIC, 80), (VM2_IP, 1240), SYN | ACK);
        assert_eq!(bed.fabric(underlay, &sent), Out::Machine(VM2, seen));
    }
    // From outside, without any packet of the machine before; ports and identifiers stay.
    for _ in 0..2 {
        let ping = build::echo(PUBLIC, VIP, true, 77);
        let seen = build::echo(PUBLIC, VM2_IP, true, 77);
        assert_eq!(bed.fabric(underlay, &ping), Out::Machine(VM2, seen));
        let reply = build::echo(VM2_IP, PUBLIC, false, 77);
        let seen = build::echo(VIP, PUBLIC, false, 77);
        assert_eq!(
            bed.guest(VM2, &reply),
            Out::Tunnel(PF0, own, router(), seen)
        );
    }
    // Not behind a default route: not translated.
    let sent = build::udp((VM2_IP, 1), ("10.100.2.7", 2), b"x");
    assert_eq!(
        bed.guest(VM2, &sent),
        Out::Tunnel(PF0, own, neighbour(), sent.clone())
    );
    // Another address at the VIP's underlay address.
    let foreign = build::udp((PUBLIC, 1), ("172.20.0.9", 2), b"x");
    assert_eq!(
        bed.fabric(underlay, &foreign),
        Out::Dropped(DropReason::DestinationForeign)
    );
}

#[test]
fn vip_of_a_neighbour_on_the_same_host() {
    let mut bed = Bed::public();
    vip(&mut bed, "vm2");
    for _ in 0..2 {
        let sent = build::tcp((VM1_IP, 1000), (VIP, 80), SYN);
        let seen = build::tcp((VM1_IP, 1000), (VM2_IP, 80), SYN);
        assert_eq!(bed.guest(VM1, &sent), Out::Machine(VM2, seen));
        let answer = build::tcp((VM2_IP, 80), (VM1_IP, 1000), SYN | ACK);
        let seen = build::tcp((VIP, 80), (VM1_IP, 1000), SYN | ACK);
        assert_eq!(
            bed.guest(VM2, &answer),
            Out::Machine(VM1, seen),
            "the answer comes from the VIP"
        );
    }
}

#[test]
fn a_deleted_vip_ends_its_connections_in_both_directions() {
    let mut bed = Bed::public();
    let underlay = vip(&mut bed, "vm2");
    let (own, sent) = (
        bed.underlay("vm2"),
        build::udp((VM2_IP, 5), (PUBLIC, 6), b"x"),
    );
    let translated = build::udp((VIP, 5), (PUBLIC, 6), b"x");
    assert_eq!(
        bed.guest(VM2, &sent),
        Out::Tunnel(PF0, own, router(), translated)
    );
    let ping = build::echo(PUBLIC, VIP, true, 77);
    assert!(matches!(bed.fabric(underlay, &ping), Out::Machine(..)));
    bed.engine.delete_vip("vm2").unwrap();
    assert_eq!(
        bed.guest(VM2, &sent),
        Out::Tunnel(PF0, own, router(), sent.clone())
    );
    assert_eq!(
        bed.fabric(underlay, &ping),
        Out::Dropped(DropReason::UnderlayUnknown)
    );
    // With a new VIP, the same connection is translated to it.
    bed.engine
        .create_vip("vm2", address("172.20.0.9"), None)
        .unwrap();
    let translated = build::udp(("172.20.0.9", 5), (PUBLIC, 6), b"x");
    assert_eq!(
        bed.guest(VM2, &sent),
        Out::Tunnel(PF0, own, router(), translated)
    );
}

#[test]
fn network_nat_with_two_ports() {
    let mut bed = Bed::public();
    let underlay = nat(&mut bed, "vm1", 100, 102);
    let own = bed.underlay("vm1");
    let mut used = Vec::new();
    for port in [1245, 1246] {
        let sent = build::tcp((VM1_IP, port), (PUBLIC, 80), SYN);
        let Out::Tunnel(PF0, source, destination, inner) = bed.guest(VM1, &sent) else {
            panic!("not sent");
        };
        assert_eq!((source, destination), (own, router()));
        let (chosen, _) = ports(&inner);
        assert_eq!(
            hex(&inner),
            hex(&build::tcp((NAT, chosen), (PUBLIC, 80), SYN))
        );
        used.push(chosen);
        for _ in 0..2 {
            let answer = build::tcp((PUBLIC, 80), (NAT, chosen), SYN | ACK);
            let seen = build::tcp((PUBLIC, 80), (VM1_IP, port), SYN | ACK);
            assert_eq!(bed.fabric(underlay, &answer), Out::Machine(VM1, seen));
        }
    }
    used.sort();
    assert_eq!(used, [100, 101], "one port each");
    let third = build::tcp((VM1_IP, 1247), (PUBLIC, 80), SYN);
    assert_eq!(
        bed.guest(VM1, &third),
        Out::Dropped(DropReason::NatExhausted)
    );
    let elsewhere = build::tcp((VM1_IP, 1247), (PUBLIC_OTHER, 80), SYN);
    assert!(
        matches!(bed.guest(VM1, &elsewhere), Out::Tunnel(..)),
        "ports are shared between remote ends"
    );
    assert_eq!(bed.worker.nat().saturation().0, 3);
    // Idle connections give their ports back.
    bed.now = bed.now.plus_secs(40);
    bed.worker.tick(bed.now);
    assert_eq!(bed.worker.nat().saturation().0, 0);
    assert!(matches!(bed.guest(VM1, &third), Out::Tunnel(..)));
}

#[test]
fn network_nat_wins_over_a_vip() {
    let mut bed = Bed::public();
    let underlay = vip(&mut bed, "vm1");
    nat(&mut bed, "vm1", 100, 200);
    let sent = build::udp((VM1_IP, 1245), (PUBLIC, 80), b"x");
    let Out::Tunnel(_, _, _, inner) = bed.guest(VM1, &sent) else {
        panic!("not sent");
    };
    assert_eq!(
        IpAddr::V4(net::Ipv4::new_checked(&inner).unwrap().source()),
        address(NAT)
    );
    let ping = build::echo(PUBLIC, VIP, true, 1);
    assert!(
        matches!(bed.fabric(underlay, &ping), Out::Machine(VM1, _)),
        "the VIP still works inbound"
    );
}

#[test]
fn network_nat_of_pings() {
    let mut bed = Bed::public();
    let underlay = nat(&mut bed, "vm1", 100, 102);
    let mut used = Vec::new();
    for (to, id) in [(PUBLIC, 0x40), (PUBLIC_OTHER, 0x50)] {
        let Out::Tunnel(_, _, _, inner) = bed.guest(VM1, &build::echo(VM1_IP, to, true, id)) else {
            panic!("not sent");
        };
        let (chosen, _) = ports(&inner);
        assert!((100..102).contains(&chosen));
        assert_eq!(hex(&inner), hex(&build::echo(NAT, to, true, chosen)));
        let reply = build::echo(to, NAT, false, chosen);
        let seen = build::echo(to, VM1_IP, false, id);
        assert_eq!(bed.fabric(underlay, &reply), Out::Machine(VM1, seen));
        used.push(chosen);
    }
    // The same identifiers from another machine behind the same address.
    let second = bed
        .engine
        .create_nat("vm2", address(NAT), range(102, 104), None)
        .unwrap();
    let Out::Tunnel(_, _, _, inner) = bed.guest(VM2, &build::echo(VM2_IP, PUBLIC, true, 0x40))
    else {
        panic!("not sent");
    };
    let (chosen, _) = ports(&inner);
    assert!((102..104).contains(&chosen));
    for underlay in [second, underlay] {
        let reply = build::echo(PUBLIC, NAT, false, chosen);
        let seen = build::echo(PUBLIC, VM2_IP, false, 0x40);
        assert_eq!(
            bed.fabric(underlay, &reply),
            Out::Machine(VM2, seen),
            "whichever of the two underlay addresses it comes to"
        );
    }
}

#[test]
fn only_what_a_default_route_sends_is_translated() {
    for half in ["0.0.0.0", "128.0.0.0"] {
        let mut bed = Bed::public();
        nat(&mut bed, "vm1", 100, 102);
        let hop = IpAddr::V6(neighbour());
        bed.engine
            .create_route(V100, address(half), 1, hop, 0)
            .unwrap();
        let (inside, outside) = if half == "0.0.0.0" {
            ("45.1.1.1", "200.1.1.1")
        } else {
            ("200.1.1.1", "45.1.1.1")
        };
        let own = bed.underlay("vm1");
        let sent = build::udp((VM1_IP, 9), (inside, 9), b"x");
        assert_eq!(
            bed.guest(VM1, &sent),
            Out::Tunnel(PF0, own, neighbour(), sent.clone())
        );
        let sent = build::udp((VM1_IP, 9), (outside, 9), b"x");
        let Out::Tunnel(_, _, to, inner) = bed.guest(VM1, &sent) else {
            panic!("not sent");
        };
        assert_eq!(to, router());
        assert_ne!(inner, sent);
    }
}

#[test]
fn pings_to_a_nat_address_are_answered_here() {
    let mut bed = Bed::public();
    let underlay = nat(&mut bed, "vm1", 100, 102);
    // The last hop of a request does not make its answer die on the way.
    let ping = build::with_hops(build::echo(PUBLIC, NAT, true, 0x1234), 1);
    let answer = build::with_hops(build::echo(NAT, PUBLIC, false, 0x1234), 64);
    for uplink in [PF0, PF1] {
        let out = bed.fabric_on(uplink, underlay, &ping);
        assert_eq!(
            out,
            Out::Tunnel(uplink, v6("fc00:1::1"), router(), answer.clone())
        );
    }
    let group = build::echo("224.0.0.5", NAT, true, 1);
    let refused = Out::Dropped(DropReason::NotForwardable);
    assert_eq!(bed.fabric(underlay, &group), refused);
    let foreign = build::echo(PUBLIC, "172.21.0.9", true, 1);
    assert_eq!(
        bed.fabric(underlay, &foreign),
        Out::Dropped(DropReason::DestinationForeign)
    );
}

#[test]
fn ports_of_other_hosts_are_relayed() {
    let mut bed = Bed::public();
    let underlay = nat(&mut bed, "vm1", 100, 102);
    let to_510 = build::tcp((PUBLIC, 80), (NAT, 510), SYN | ACK);
    assert_eq!(
        bed.fabric(underlay, &to_510),
        Out::Dropped(DropReason::NatUnsolicited)
    );
    bed.engine
        .create_neighbor_nat(address(NAT), V100, range(500, 520), neighbour())
        .unwrap();
    for uplink in [PF0, PF1, PF1] {
        let out = bed.fabric_on(uplink, underlay, &to_510);
        let Out::Tunnel(_, source, destination, inner) = out else {
            panic!("{out:?}");
        };
        assert_eq!((source, destination), (v6("fc00:1::1"), neighbour()));
        assert_eq!(hex(&inner), hex(&to_510), "unchanged");
    }
    let reply = build::echo(PUBLIC, NAT, false, 519);
    assert!(
        matches!(bed.fabric(underlay, &reply), Out::Tunnel(..)),
        "by echo identifier"
    );
    for port in [499, 520] {
        let other = build::tcp((PUBLIC, 80), (NAT, port), SYN | ACK);
        assert_eq!(
            bed.fabric(underlay, &other),
            Out::Dropped(DropReason::NatUnsolicited)
        );
    }
    bed.engine
        .delete_neighbor_nat(address(NAT), V100, range(500, 520))
        .unwrap();
    assert_eq!(
        bed.fabric(underlay, &to_510),
        Out::Dropped(DropReason::NatUnsolicited),
        "at once"
    );
}

#[test]
fn a_machine_cannot_reach_the_nat_address_of_its_own_network() {
    let mut bed = Bed::public();
    nat(&mut bed, "vm1", 100, 102);
    let sent = build::udp((VM2_IP, 5), (NAT, 100), b"x");
    assert_eq!(
        bed.guest(VM2, &sent),
        Out::Dropped(DropReason::NatUnsolicited)
    );
    let other_network = build::udp((VM1_IP, 5), (NAT, 100), b"x");
    assert!(matches!(bed.guest(VM3, &other_network), Out::Tunnel(..)));
}

#[test]
fn icmp_errors_about_translated_connections() {
    let mut bed = Bed::public();
    let nat_underlay = nat(&mut bed, "vm1", 100, 102);
    let vip_underlay = vip(&mut bed, "vm2");
    let out = bed.guest(VM1, &build::tcp((VM1_IP, 1245), (PUBLIC, 80), SYN));
    let Out::Tunnel(_, _, _, outside) = out else {
        panic!("{out:?}")
    };
    let inside = build::tcp((VM1_IP, 1245), (PUBLIC, 80), SYN);
    for (kind, code) in [(3, 4), (3, 3), (11, 0)] {
        let error = build::icmp("192.0.2.9", NAT, kind, code, [0, 0, 5, 0], &outside);
        let seen = build::icmp("192.0.2.9", VM1_IP, kind, code, [0, 0, 5, 0], &inside);
        assert_eq!(bed.fabric(nat_underlay, &error), Out::Machine(VM1, seen));
    }
    // A router on the way of a ping remains who he is.
    let inside = build::echo(VM1_IP, PUBLIC, true, 0x1234);
    let Out::Tunnel(_, _, _, outside) = bed.guest(VM1, &inside) else {
        panic!("not sent")
    };
    let error = build::icmp("192.0.2.9", NAT, 11, 0, [0; 4], &outside);
    let seen = build::icmp("192.0.2.9", VM1_IP, 11, 0, [0; 4], &inside);
    assert_eq!(bed.fabric(nat_underlay, &error), Out::Machine(VM1, seen));
    let unknown = build::tcp((NAT, 101), (PUBLIC, 81), SYN);
    let error = build::icmp("192.0.2.9", NAT, 3, 4, [0; 4], &unknown);
    assert_eq!(
        bed.fabric(nat_underlay, &error),
        Out::Dropped(DropReason::IcmpUnrelated)
    );
    // The same for a VIP, and for an error that the machine itself sends about an answer.
    let sent = build::udp((VM2_IP, 7), (PUBLIC, 8), b"question");
    let Out::Tunnel(_, _, _, outside) = bed.guest(VM2, &sent) else {
        panic!("not sent")
    };
    let error = build::icmp(PUBLIC, VIP, 3, 3, [0; 4], &outside);
    let seen = build::icmp(PUBLIC, VM2_IP, 3, 3, [0; 4], &sent);
    assert_eq!(bed.fabric(vip_underlay, &error), Out::Machine(VM2, seen));
    let answer_inside = build::udp((PUBLIC, 8), (VM2_IP, 7), b"answer");
    let answer_outside = build::udp((PUBLIC, 8), (VIP, 7), b"answer");
    let error = build::icmp(VM2_IP, PUBLIC, 3, 3, [0; 4], &answer_inside);
    let seen = build::icmp(VIP, PUBLIC, 3, 3, [0; 4], &answer_outside);
    let own = bed.underlay("vm2");
    assert_eq!(
        bed.guest(VM2, &error),
        Out::Tunnel(PF0, own, router(), seen)
    );
}

#[test]
fn icmp_errors_about_ports_of_another_host_are_relayed() {
    let mut bed = Bed::public();
    let underlay = nat(&mut bed, "vm1", 100, 102);
    let created = bed
        .engine
        .create_neighbor_nat(address(NAT), V100, range(500, 520), neighbour());
    created.unwrap();
    let quoting = |port| build::tcp((NAT, port), (PUBLIC, 80), SYN);
    let error = |port| build::icmp("192.0.2.9", NAT, 3, 4, [0, 0, 5, 0], &quoting(port));
    let relayed = |packet| Out::Tunnel(PF0, v6("fc00:1::1"), neighbour(), packet);
    // Before and after an answer was relayed, which is remembered as a connection.
    assert_eq!(bed.fabric(underlay, &error(510)), relayed(error(510)));
    let answer = build::tcp((PUBLIC, 80), (NAT, 510), SYN | ACK);
    assert_eq!(bed.fabric(underlay, &answer), relayed(answer.clone()));
    assert_eq!(bed.fabric(underlay, &error(510)), relayed(error(510)));
    for nobodys in [101, 499, 520] {
        let out = bed.fabric(underlay, &error(nobodys));
        assert_eq!(out, Out::Dropped(DropReason::IcmpUnrelated));
    }
}

#[test]
fn a_new_range_is_used_at_once() {
    let mut bed = Bed::public();
    nat(&mut bed, "vm1", 100, 101);
    let sent = |to| build::udp((VM1_IP, 1245), (to, 80), b"x");
    for to in [PUBLIC, PUBLIC_OTHER] {
        assert!(matches!(bed.guest(VM1, &sent(to)), Out::Tunnel(..)));
    }
    bed.engine.delete_nat("vm1").unwrap();
    let underlay = nat(&mut bed, "vm1", 300, 301);
    for to in [PUBLIC, PUBLIC_OTHER] {
        let Out::Tunnel(_, _, _, inner) = bed.guest(VM1, &sent(to)) else {
            panic!("not sent")
        };
        assert_eq!(ports(&inner).0, 300);
        let answer = build::udp((to, 80), (NAT, 300), b"y");
        let seen = build::udp((to, 80), (VM1_IP, 1245), b"y");
        assert_eq!(bed.fabric(underlay, &answer), Out::Machine(VM1, seen));
    }
    assert_eq!(
        (
            bed.worker.nat().saturation().0,
            bed.worker.nat().mappings_len()
        ),
        (2, 1),
        "the old ports were given back"
    );
    // Unrelated changes leave the connection alone.
    bed.route(V100, "10.200.0.0", 16);
    let Out::Tunnel(_, _, _, inner) = bed.guest(VM1, &sent(PUBLIC)) else {
        panic!("not sent")
    };
    assert_eq!(ports(&inner).0, 300);
    assert_eq!(bed.worker.nat().saturation().0, 2);
}

#[test]
fn nat64_both_ways() {
    let mut bed = Bed::public();
    let underlay = nat(&mut bed, "vm1", 100, 104);
    let own = bed.underlay("vm1");
    let vm = "2000:100:1::1";
    for port in [1024, 1025, 1026] {
        for round in 0..2 {
            let out = bed.guest(VM1, &build::udp((vm, port), (PUBLIC6, 1234), b"abc"));
            let Out::Tunnel(PF0, source, destination, inner) = out else {
                panic!("{out:?}")
            };
            assert_eq!((source, destination), (own, router()));
            let chosen = [103, 101, 100][usize::from(port - 1024)];
            assert_eq!(
                hex(&essence(inner)),
                hex(&essence(build::udp((NAT, chosen), (PUBLIC, 1234), b"abc"))),
                "round {round}"
            );
            let answer = build::udp((PUBLIC, 1234), (NAT, chosen), b"defg");
            let out = bed.fabric(underlay, &answer);
            let Out::Machine(VM1, seen) = out else {
                panic!("{out:?}")
            };
            assert_eq!(
                hex(&essence(seen)),
                hex(&essence(build::udp((PUBLIC6, 1234), (vm, port), b"defg")))
            );
        }
    }
    // TCP and echo.
    let out = bed.guest(VM1, &build::tcp((vm, 9), (PUBLIC6, 443), SYN));
    let Out::Tunnel(_, _, _, inner) = out else {
        panic!("{out:?}")
    };
    let (chosen, _) = ports(&inner);
    let out = bed.fabric(
        underlay,
        &build::tcp((PUBLIC, 443), (NAT, chosen), SYN | ACK),
    );
    let Out::Machine(VM1, seen) = out else {
        panic!("{out:?}")
    };
    assert_eq!(
        hex(&essence(seen)),
        hex(&essence(build::tcp((PUBLIC6, 443), (vm, 9), SYN | ACK)))
    );
    let out = bed.guest(VM1, &build::echo(vm, PUBLIC6, true, 0x77));
    let Out::Tunnel(_, _, _, inner) = out else {
        panic!("{out:?}")
    };
    let (id, _) = ports(&inner);
    assert_eq!(
        hex(&essence(inner)),
        hex(&essence(build::echo(NAT, PUBLIC, true, id)))
    );
    let out = bed.fabric(underlay, &build::echo(PUBLIC, NAT, false, id));
    let Out::Machine(VM1, seen) = out else {
        panic!("{out:?}")
    };
    assert_eq!(
        hex(&essence(seen)),
        hex(&essence(build::echo(PUBLIC6, vm, false, 0x77)))
    );
    // An error about the TCP connection, from a router that has only IPv4.
    let quoted = build::tcp((NAT, chosen), (PUBLIC, 443), SYN);
    let out = bed.fabric(
        underlay,
        &build::icmp("192.0.2.1", NAT, 3, 4, [0, 0, 5, 120], &quoted),
    );
    let Out::Machine(VM1, seen) = out else {
        panic!("{out:?}")
    };
    let inner = build::tcp((vm, 9), (PUBLIC6, 443), SYN);
    let mut expected = build::icmp("64:ff9b::c000:201", vm, 2, 0, [0, 0, 5, 140], &inner);
    expected[7] = seen[7];
    expected[48 + 7] = seen[48 + 7];
    expected[42..44].copy_from_slice(&seen[42..44]);
    assert_eq!(
        hex(&seen),
        hex(&expected),
        "checksum and hop limits apart, which were checked or are free"
    );
    // Idle ones give their ports back.
    bed.now = bed.now.plus_secs(40);
    bed.worker.tick(bed.now);
    assert_eq!(bed.worker.nat().saturation().0, 0);
    // Without a NAT, the prefix is an ordinary destination.
    bed.engine.delete_nat("vm1").unwrap();
    let sent = build::udp((vm, 1024), (PUBLIC6, 1234), b"abc");
    assert_eq!(
        bed.guest(VM1, &sent),
        Out::Tunnel(PF0, own, router(), sent.clone())
    );
}

#[test]
fn ports_return_after_resets_and_half_open_connections() {
    let mut bed = Bed::public();
    let underlay = nat(&mut bed, "vm1", 100, 101);
    let syn = |port| build::tcp((VM1_IP, port), (PUBLIC, 80), SYN);
    for last in [None, Some(RST)] {
        assert!(matches!(bed.guest(VM1, &syn(2000)), Out::Tunnel(..)));
        assert_eq!(
            bed.guest(VM1, &syn(2001)),
            Out::Dropped(DropReason::NatExhausted)
        );
        if let Some(flags) = last {
            let answer = build::tcp((PUBLIC, 80), (NAT, 100), SYN | ACK);
            assert!(matches!(bed.fabric(underlay, &answer), Out::Machine(..)));
            for flags in [ACK, flags] {
                let sent = build::tcp((VM1_IP, 2000), (PUBLIC, 80), flags);
                assert!(matches!(bed.guest(VM1, &sent), Out::Tunnel(..)));
            }
        }
        bed.now = bed.now.plus_secs(40);
        bed.worker.tick(bed.now);
        assert!(matches!(bed.guest(VM1, &syn(2001)), Out::Tunnel(..)));
        bed.now = bed.now.plus_secs(40);
        bed.worker.tick(bed.now);
    }
}

#[test]
fn deleting_the_interface_ends_translation() {
    let mut bed = Bed::public();
    let underlay = nat(&mut bed, "vm1", 100, 101);
    assert!(matches!(
        bed.guest(VM1, &build::udp((VM1_IP, 5), (PUBLIC, 80), b"x")),
        Out::Tunnel(..)
    ));
    bed.engine.delete_interface("vm1").unwrap();
    let answer = build::udp((PUBLIC, 80), (NAT, 100), b"y");
    assert_eq!(
        bed.fabric(underlay, &answer),
        Out::Dropped(DropReason::UnderlayUnknown)
    );
    bed.attach(spec("vm1", VM1, V100, VM1_IP, ""));
    let underlay = nat(&mut bed, "vm1", 100, 101);
    assert_eq!(
        bed.fabric(underlay, &answer),
        Out::Dropped(DropReason::NatUnsolicited),
        "the new machine does not inherit connections"
    );
    assert!(
        matches!(
            bed.guest(VM1, &build::udp((VM1_IP, 6), (PUBLIC, 80), b"x")),
            Out::Tunnel(..)
        ),
        "nor lost ports"
    );
}

#[test]
fn nat64_forwards_nothing_that_ipv4_routers_may_not() {
    let mut bed = Bed::public();
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 200), None)
        .unwrap();
    let source = "2000:100:1::1";
    for (remote, reason) in [
        ("64:ff9b::7f00:1", DropReason::NotForwardable),
        ("64:ff9b::8:808", DropReason::NotForwardable),
        ("64:ff9b::a9fe:1", DropReason::NotForwardable),
        ("64:ff9b::e000:1", DropReason::Multicast),
        ("64:ff9b::ffff:ffff", DropReason::Multicast),
    ] {
        let request = build::udp((source, 5), (remote, 53), b"x");
        assert_eq!(bed.guest(VM1, &request), Out::Dropped(reason), "{remote}");
    }
    assert_eq!(bed.worker.nat().saturation().0, 0);
}
