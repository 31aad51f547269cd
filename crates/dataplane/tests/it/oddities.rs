//! Oddities of earlier data planes of this protocol that only packets show: the calls answer the same with and without them.

use crate::bed::*;
use crate::build::{self, address};
use crate::dhcp;
use crate::scene::*;
use dataplane::{DropReason, Verdict, VniType, jhash};
use net::Mac;
use net::tcp::{ACK, FIN, SYN};

const VM1_IP: &str = "10.100.1.1";
const VM2_IP: &str = "10.100.1.2";

/// Prefixes are not only listed after routes were cleared, packets still find them.
#[test]
fn prefixes_are_reached_after_routes_were_cleared() {
    let mut bed = Bed::new();
    bed.engine
        .create_prefix("vm1", address("10.5.0.0"), 16, None)
        .unwrap();
    let clear: [fn(&mut Bed); 3] = [
        |_| {},
        |bed| bed.engine.initialize(),
        |bed| bed.engine.reset_vni(V100, VniType::Both).unwrap(),
    ];
    for (round, clear) in (0..).zip(clear) {
        clear(&mut bed);
        for to in ["10.5.0.9", VM1_IP] {
            let packet = build::udp((VM2_IP, 1_000 + round), (to, 9), b"x");
            let seen = Out::Machine(VM1, packet.clone());
            assert_eq!(bed.guest(VM2, &packet), seen, "round {round}, {to}");
        }
    }
}

/// Nothing of what other hosts' shares stood for remains, in whichever network.
#[test]
fn initialize_forgets_the_addresses_of_other_hosts() {
    let mut bed = Bed::public();
    bed.engine
        .create_neighbor_nat(address(NAT), V100, range(500, 520), neighbour())
        .unwrap();
    assert!(bed.engine.create_vip("vm1", address(NAT), None).is_err());
    bed.engine.initialize();
    assert!(bed.engine.create_vip("vm1", address(NAT), None).is_ok());
}

/// What nobody asked for is answered and relayed as long as one share of the address is left, whichever goes first.
#[test]
fn an_address_works_until_its_last_share_goes() {
    let mut bed = Bed::public();
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 102), None)
        .unwrap();
    let kept = bed
        .engine
        .create_nat("vm2", address(NAT), range(200, 202), None)
        .unwrap();
    let foreign = range(500, 520);
    bed.engine
        .create_neighbor_nat(address(NAT), V100, foreign, neighbour())
        .unwrap();
    let mut id = 0;
    let mut answers = |bed: &mut Bed, why: &str| {
        id += 1;
        let ping = build::echo(PUBLIC, NAT, true, id);
        let answer = build::with_hops(build::echo(NAT, PUBLIC, false, id), 64);
        let expected = Out::Tunnel(PF0, v6("fc00:1::1"), router(), answer);
        assert_eq!(bed.fabric(kept, &ping), expected, "{why}");
    };
    answers(&mut bed, "three shares");
    bed.engine.delete_nat("vm1").unwrap();
    answers(&mut bed, "one share here, one elsewhere");
    let relayed = build::udp((PUBLIC, 7), (NAT, 510), b"x");
    let to = Out::Tunnel(PF0, v6("fc00:1::1"), neighbour(), relayed.clone());
    assert_eq!(bed.fabric(kept, &relayed), to);
    bed.engine
        .delete_neighbor_nat(address(NAT), V100, foreign)
        .unwrap();
    answers(&mut bed, "one share here");
    assert!(
        bed.engine.create_vip("vm1", address(NAT), None).is_err(),
        "the address is in use"
    );
    bed.engine.delete_nat("vm2").unwrap();
    assert!(bed.engine.create_vip("vm1", address(NAT), None).is_ok());
}

/// Also connections that began outside: what the machine still sends on them no longer bears the address.
#[test]
fn a_deleted_vip_ends_connections_that_came_in() {
    let mut bed = Bed::public();
    let underlay = bed.engine.create_vip("vm2", address(VIP), None).unwrap();
    let own = bed.underlay("vm2");
    let request = build::tcp((PUBLIC, 77), (VIP, 80), SYN);
    assert!(matches!(bed.fabric(underlay, &request), Out::Machine(..)));
    let answer = build::tcp((VM2_IP, 80), (PUBLIC, 77), SYN | ACK);
    let seen = |from| build::tcp((from, 80), (PUBLIC, 77), SYN | ACK);
    for from in [VIP, VM2_IP, "172.20.0.9"] {
        let expected = Out::Tunnel(PF0, own, router(), seen(from));
        assert_eq!(bed.guest(VM2, &answer), expected, "{from}");
        if from == VIP {
            bed.engine.delete_vip("vm2").unwrap();
        } else if from == VM2_IP {
            let next = address("172.20.0.9");
            bed.engine.create_vip("vm2", next, None).unwrap();
        }
    }
}

/// An address that is given to another machine takes no answers along that were meant for the one before.
#[test]
fn answers_to_an_address_that_moved_go_to_its_machine_only() {
    let mut bed = Bed::public();
    bed.engine.create_vip("vm1", address(VIP), None).unwrap();
    let sent = build::udp((VM1_IP, 5), (PUBLIC, 6), b"x");
    assert!(matches!(bed.guest(VM1, &sent), Out::Tunnel(..)));
    bed.engine.delete_vip("vm1").unwrap();
    let next = bed.engine.create_vip("vm2", address(VIP), None).unwrap();
    let answer = build::udp((PUBLIC, 6), (VIP, 5), b"x");
    let seen = build::udp((PUBLIC, 6), (VM2_IP, 5), b"x");
    assert_eq!(bed.fabric(next, &answer), Out::Machine(VM2, seen));
}

/// Nor does a port that is another's now.
#[test]
fn answers_to_a_port_outside_of_the_share_are_refused() {
    let mut bed = Bed::public();
    let share = |bed: &mut Bed, first: u16| {
        let ports = range(first, first + 2);
        let made = bed.engine.create_nat("vm1", address(NAT), ports, None);
        made.unwrap()
    };
    share(&mut bed, 100);
    let sent = build::udp((VM1_IP, 5), (PUBLIC, 6), b"x");
    let Out::Tunnel(_, _, _, inner) = bed.guest(VM1, &sent) else {
        panic!("not sent");
    };
    let port = u16::from_be_bytes([inner[20], inner[21]]);
    bed.engine.delete_nat("vm1").unwrap();
    let again = share(&mut bed, 200);
    let answer = build::udp((PUBLIC, 6), (NAT, port), b"x");
    let refused = Out::Dropped(DropReason::NatUnsolicited);
    assert_eq!(bed.fabric(again, &answer), refused);
}

/// Request and answer of a target are one connection in both families.
#[test]
fn a_target_has_one_connection_per_conversation() {
    for (served, client, length) in [
        ("172.22.2.1", PUBLIC, 32),
        ("2001:db8:5::1", "2001:db8:99::1", 128),
    ] {
        let mut bed = Bed::public();
        let prefix = bed
            .engine
            .create_lb_prefix("vm1", address(served), length, None)
            .unwrap();
        for flags in [SYN, ACK] {
            let request = build::tcp((client, 555), (served, 80), flags);
            assert!(matches!(bed.fabric(prefix, &request), Out::Machine(VM1, _)));
            if flags == SYN {
                let answer = build::tcp((served, 80), (client, 555), SYN | ACK);
                assert!(matches!(bed.guest(VM1, &answer), Out::Tunnel(..)));
            }
        }
        assert_eq!(bed.worker.flow_saturation().0, 1, "{served}");
        for _ in 0..60 {
            bed.now = bed.now.plus_secs(1);
            bed.worker.tick(bed.now);
        }
        let left = bed.worker.flow_saturation().0;
        assert_eq!(left, 1, "{served}: established");
    }
}

/// A port is held while its connection is established and comes back after it was closed.
#[test]
fn a_port_returns_after_the_connection_was_closed() {
    let mut bed = Bed::public();
    let underlay = bed
        .engine
        .create_nat("vm1", address(NAT), range(100, 101), None)
        .unwrap();
    let out = |bed: &mut Bed, port, flags| {
        let sent = build::tcp((VM1_IP, port), (PUBLIC, 80), flags);
        bed.guest(VM1, &sent)
    };
    let back = |bed: &mut Bed, flags| {
        let answer = build::tcp((PUBLIC, 80), (NAT, 100), flags);
        assert!(matches!(bed.fabric(underlay, &answer), Out::Machine(..)));
    };
    let wait = |bed: &mut Bed| {
        for _ in 0..40 {
            bed.now = bed.now.plus_secs(1);
            bed.worker.tick(bed.now);
        }
    };
    assert!(matches!(out(&mut bed, 2_000, SYN), Out::Tunnel(..)));
    back(&mut bed, SYN | ACK);
    assert!(matches!(out(&mut bed, 2_000, ACK), Out::Tunnel(..)));
    wait(&mut bed);
    let refused = Out::Dropped(DropReason::NatExhausted);
    assert_eq!(out(&mut bed, 2_001, SYN), refused, "established");
    assert!(matches!(out(&mut bed, 2_000, FIN | ACK), Out::Tunnel(..)));
    back(&mut bed, FIN | ACK);
    assert_eq!(out(&mut bed, 2_001, SYN), refused, "just closed");
    wait(&mut bed);
    assert!(matches!(out(&mut bed, 2_001, SYN), Out::Tunnel(..)));
}

/// Every request for an address teaches where to deliver, also after another one did, and over a new interface at the port.
#[test]
fn delivery_follows_the_last_request_for_an_address() {
    let mut bed = Bed::new();
    let packet = build::udp((VM2_IP, 1), (VM1_IP, 2), b"x");
    let destination = |bed: &mut Bed| {
        let (verdict, frame) = bed.send(VM2, &from_guest(&packet));
        assert_eq!(verdict, Verdict::Transmit(VM1));
        Mac(frame[..6].try_into().unwrap())
    };
    let guess = bed.port_mac(VM1);
    assert_eq!(destination(&mut bed), guess);
    for mac in [Mac([2, 0, 0, 0, 0, 7]), Mac([2, 0, 0, 0, 0, 8])] {
        let body = dhcp::message(3, &[255]);
        let ip = build::udp(("0.0.0.0", 68), ("255.255.255.255", 67), &body);
        let frame = build::ethernet(Mac::BROADCAST, mac, 0x0800, &ip);
        assert_eq!(bed.send(VM1, &frame).0, Verdict::Reply(VM1));
        assert_eq!(destination(&mut bed), mac);
    }
    bed.engine.delete_interface("vm1").unwrap();
    bed.attach(spec("vm1", VM1, V100, VM1_IP, ""));
    assert_eq!(destination(&mut bed), Mac([2, 0, 0, 0, 0, 8]));
}

/// The published connection key, byte for byte: UDP from 45.86.6.6:53 to 172.22.2.1:1234 in network 100.
#[test]
fn a_connection_key_in_bytes() {
    let mut key = vec![0x01, 0x02, 0x16, 0xac];
    key.extend([0; 13]);
    key.extend([0x11, 0xd2, 0x04, 0x06, 0x06, 0x56, 0x2d]);
    key.extend([0; 13]);
    key.extend([0, 0x35, 0, 0x64, 0, 0, 0]);
    assert_eq!(key.len(), 44);
    assert_eq!(jhash(&key), 0xea89_f889);
}
