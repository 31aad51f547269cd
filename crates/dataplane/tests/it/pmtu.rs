//! Packets that do not fit through the tunnel.

use crate::bed::*;
use crate::build;
use crate::scene::*;
use dataplane::{DropReason, Verdict};

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|index| index as u8).collect()
}

/// Sends an IP packet from VM1 and expects an error that quotes `quoted` bytes of it.
#[track_caller]
fn check_answer(bed: &mut Bed, packet: &[u8], error: &[u8], moved: &[(&str, u64)]) {
    let mut error = error.to_vec();
    let ethertype = if packet[0] >> 4 == 4 {
        // The gateway's own header: hop limit 64, no identification.
        let header = net::ipv4::Header {
            payload_len: (error.len() - 20) as u16,
            ttl: 64,
            protocol: 1,
            source: v4("169.254.0.1"),
            destination: v4("10.100.1.1"),
        };
        error[..20].copy_from_slice(&header.emit());
        0x0800
    } else {
        error[7] = 64;
        0x86dd
    };
    let answer = build::ethernet(GUEST_MAC, bed.port_mac(VM1), ethertype, &error);
    bed.check(
        VM1,
        &from_guest(packet),
        Verdict::Reply(VM1),
        &answer,
        moved,
    );
}

#[test]
fn ipv4_is_told_what_fits() {
    let mut bed = Bed::new();
    bed.engine.set_uplink_mtu(PF0, 1_500);
    let packet = |length| build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), &payload(length));
    // 1460 bytes with both headers fit exactly.
    let (verdict, bytes) = bed.send(VM1, &from_guest(&packet(1_432)));
    assert_eq!((verdict, bytes.len()), (Verdict::Transmit(PF0), 14 + 1_500));
    let large = packet(1_433);
    let [high, low] = 1_460_u16.to_be_bytes();
    // 576 bytes at most (RFC 1812 §4.3.2.3).
    let error = build::icmp(
        "169.254.0.1",
        "10.100.1.1",
        3,
        4,
        [0, 0, high, low],
        &large[..548],
    );
    check_answer(&mut bed, &large, &error, &[("conntrack", 1)]);
}

#[test]
fn ipv6_is_told_what_fits() {
    let mut bed = Bed::new();
    bed.engine.set_uplink_mtu(PF0, 1_500);
    let datagram = build::udp_datagram(1, 2, &payload(1_413));
    let large = build::ipv6(17, v6("2000:100:1::1"), v6("2000:100:2::1"), &datagram);
    let [high, low] = 1_460_u16.to_be_bytes();
    // 1280 bytes at most (RFC 4443 §2.4 (c)).
    let error = build::icmp(
        "fe80::1",
        "2000:100:1::1",
        2,
        0,
        [0, 0, high, low],
        &large[..1_232],
    );
    check_answer(
        &mut bed,
        &large,
        &error,
        &[("conntrack", 1), ("ipv6_lookup", 1), ("flows created", 1)],
    );
}

/// A server whose packets are too long for a machine as IPv6 is told what fits, in the name of the NAT address (RFC 7915 §4.1): 20 bytes less
/// than the machine's MTU if the packet stays whole, and 28 if it may be cut.
#[test]
fn servers_behind_nat64_are_told_what_fits() {
    let (machine, server) = ("2000:100:1::1", "64:ff9b::2d56:606");
    let mut bed = Bed::public();
    let nat = bed
        .engine
        .create_nat("vm1", build::address(NAT), range(100, 101), None);
    let nat = nat.unwrap();
    let question = build::udp((machine, 5), (server, 53), b"?");
    assert!(matches!(bed.guest(VM1, &question), Out::Tunnel(..)));
    let answer = |length: usize, fragment: u8| {
        let mut packet = build::udp((PUBLIC, 53), (NAT, 100), &payload(length - 28));
        packet[6] = fragment;
        packet[10..12].fill(0);
        let sum = net::checksum::checksum(&packet[..20]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet
    };
    let (may_cut, may_not, first) = (0, 0x40, 0x20);
    for (length, fragment) in [(1_480, may_cut), (1_480, may_not), (1_468, first)] {
        let frame = from_fabric(nat, &answer(length, fragment));
        let (verdict, seen) = bed.send(PF0, &frame);
        assert_eq!(verdict, Verdict::Transmit(VM1));
        assert!(seen.len() <= 14 + 1_500);
    }
    for (length, fragment, told) in [
        (1_481, may_cut, 1_472_u16),
        (1_481, may_not, 1_480),
        (1_476, first, 1_472),
        (1_500, first, 1_472),
    ] {
        let long = answer(length, fragment);
        let [high, low] = told.to_be_bytes();
        let mut error = build::icmp(NAT, PUBLIC, 3, 4, [0, 0, high, low], &long[..548]);
        let header = net::ipv4::Header {
            payload_len: 556,
            ttl: 64,
            protocol: 1,
            source: v4(NAT),
            destination: v4(PUBLIC),
        };
        error[..20].copy_from_slice(&header.emit());
        let expected = Out::Tunnel(PF1, v6("fc00:1::1"), router(), error);
        assert_eq!(bed.fabric_on(PF1, nat, &long), expected, "{length}");
    }
    // Nobody is told of what follows a piece that did not pass, nor of too many.
    let answered = (0..1_000).filter(|_| {
        bed.fabric(nat, &answer(1_500, may_not)) != Out::Dropped(DropReason::PacketTooBig)
    });
    assert_eq!(answered.count(), 60);
}

#[test]
fn errors_are_few_and_never_about_errors() {
    let mut bed = Bed::new();
    let small = build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), b"");
    let large = build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), &payload(1_000));
    bed.engine.set_uplink_mtu(PF0, 1_000);
    let answered = |bed: &mut Bed| {
        (0..1_000)
            .filter(|_| bed.send(VM1, &from_guest(&large)).0 == Verdict::Reply(VM1))
            .count()
    };
    assert_eq!(answered(&mut bed), 64);
    bed.now = bed.now.plus_secs(1);
    let after_a_second = answered(&mut bed);
    assert!((55..=64).contains(&after_a_second), "{after_a_second}");
    bed.now = bed.now.plus_secs(1);
    // VM1 reports a packet of that flow as undeliverable, at length.
    let vm1 = bed.underlay("vm1");
    let answer = build::udp(("10.100.2.1", 2), ("10.100.1.1", 1), &payload(1_000));
    assert_eq!(bed.send(VM1, &from_guest(&small)).0, Verdict::Transmit(PF0));
    assert_eq!(
        bed.send(PF0, &from_fabric(vm1, &answer)).0,
        Verdict::Transmit(VM1)
    );
    let error = build::icmp("10.100.1.1", "10.100.2.1", 3, 3, [0; 4], &answer);
    bed.check_drop(
        VM1,
        &from_guest(&error),
        DropReason::PacketTooBig,
        &[("conntrack", 1), ("ipv4_lookup", 1)],
    );
}
