//! Packets that go through: into tunnels, out of them, and from one into another.

use edge::{Path, Verdict};
use net::protocol;

use crate::bed::{
    Bed, Out, checksum_is_right, ethernet_frame, hv, ip, message, own, tunnelled, udp, udp_bytes,
};

const INBOUND: Verdict = Verdict::Send(Path::Inbound);
const OUTBOUND: Verdict = Verdict::Send(Path::Outbound);
const HAIRPIN: Verdict = Verdict::Send(Path::Hairpin);

#[test]
fn from_the_outside_to_a_virtual_ip_unchanged() {
    let mut bed = Bed::new();
    for (packet, hop) in [
        (udp("203.0.113.5", 4000, "198.51.100.1", 53), hv(1)),
        (udp("203.0.113.5", 4000, "198.51.100.2", 53), hv(2)),
        (udp("2001:db8:9::5", 4000, "2001:db8:100::1", 53), hv(1)),
        (
            ip(
                "203.0.113.5",
                "198.51.100.1",
                protocol::TCP,
                &udp_bytes(1, 2, 40),
            ),
            hv(1),
        ),
        (ip("203.0.113.5", "198.51.100.1", 47, &[1, 2, 3]), hv(1)),
    ] {
        let out = bed.check(&ethernet_frame(&packet), INBOUND);
        assert_eq!(out, Out::Tunnel(hop, packet));
    }
}

#[test]
fn padding_of_short_frames_stays_outside_of_the_tunnel() {
    let packet = udp("203.0.113.5", 4000, "198.51.100.1", 53);
    let mut frame = ethernet_frame(&packet);
    frame.resize(60, 0xee);
    let out = Bed::new().check(&frame, INBOUND);
    assert_eq!(out, Out::Tunnel(hv(1), packet));
}

#[test]
fn out_of_a_tunnel_unchanged() {
    let mut bed = Bed::new();
    for packet in [
        udp("198.51.100.1", 53, "203.0.113.5", 4000),
        udp("198.51.100.9", 1024, "203.0.113.5", 4000),
        udp("2001:db8:100::1", 53, "2001:db8:9::5", 4000),
    ] {
        let out = bed.check(&tunnelled(hv(3), &packet), OUTBOUND);
        assert_eq!(out, Out::Plain(packet));
    }
}

/// Linux puts a tunnel encapsulation limit in front of the inner packet (RFC 2473 §4.1.1).
#[test]
fn a_tunnel_with_an_option_header() {
    let packet = udp("198.51.100.1", 53, "203.0.113.5", 4000);
    let mut payload = vec![protocol::IPV4, 0, 4, 1, 4, 1, 0, 0];
    payload.extend(&packet);
    let outer = ip(
        &hv(1).to_string(),
        &own().to_string(),
        protocol::DESTINATION_OPTIONS,
        &payload,
    );
    let out = Bed::new().check(&ethernet_frame(&outer), OUTBOUND);
    assert_eq!(out, Out::Plain(packet));
}

/// A machine that uses another machine's public address comes through here; such a packet must lose a hop, or a wrong route would let it
/// circle for ever.
#[test]
fn between_public_addresses_a_hop_is_counted() {
    let mut bed = Bed::new();
    for (packet, ttl_at) in [
        (udp("198.51.100.1", 1, "198.51.100.2", 2), 8),
        (udp("2001:db8:100::1", 1, "2001:db8:100::1", 2), 7),
    ] {
        let Out::Tunnel(hop, inner) = bed.check(&tunnelled(hv(1), &packet), HAIRPIN) else {
            panic!("no tunnel");
        };
        assert_eq!(hop, if packet[0] >> 4 == 4 { hv(2) } else { hv(1) });
        assert_eq!(inner[ttl_at], 56);
        assert!(packet[0] >> 4 == 6 || checksum_is_right(&inner));
        let mut rest = inner.clone();
        rest[ttl_at] = packet[ttl_at];
        if packet[0] >> 4 == 4 {
            rest[10..12].copy_from_slice(&packet[10..12]);
        }
        assert_eq!(rest, packet, "nothing else changed");
    }
}

#[test]
fn the_largest_packet_passes() {
    let fits = ip(
        "203.0.113.5",
        "198.51.100.1",
        protocol::UDP,
        &udp_bytes(1, 2, 1500 - 28),
    );
    let out = Bed::new().check(&ethernet_frame(&fits), INBOUND);
    assert_eq!(out, Out::Tunnel(hv(1), fits));
}

#[test]
fn both_directions_and_errors_have_one_flow_label() {
    let mut bed = Bed::new();
    let label = |bed: &Bed| bed.packet.frame()[15..18].to_vec();
    let flow = udp("203.0.113.5", 4000, "198.51.100.1", 53);
    bed.check(&ethernet_frame(&flow), INBOUND);
    let first = label(&bed);
    let reverse = udp("198.51.100.1", 53, "203.0.113.5", 4000);
    let error = ip(
        "203.0.113.77",
        "198.51.100.1",
        protocol::ICMP,
        &message(11, 0, 0, &reverse[..28]),
    );
    bed.check(&ethernet_frame(&error), INBOUND);
    assert_eq!(label(&bed), first);
    let other = udp("203.0.113.5", 4001, "198.51.100.1", 53);
    bed.check(&ethernet_frame(&other), INBOUND);
    assert_ne!(label(&bed), first);
}

#[test]
fn the_tunnel_address_answers_pings() {
    let mut request = ip(
        &hv(1).to_string(),
        &own().to_string(),
        protocol::ICMPV6,
        &message(128, 0, 0x0102_0003, b"hello"),
    );
    let sum = net::checksum::pseudo_v6(hv(1), own(), protocol::ICMPV6, 13);
    let sum = net::checksum::finish(net::checksum::sum(sum, &request[40..]));
    request[42..44].copy_from_slice(&sum.to_be_bytes());
    let out = Bed::new().check(&ethernet_frame(&request), Verdict::Send(Path::Echo));
    let Out::Plain(reply) = out else {
        panic!("a tunnel");
    };
    assert!(checksum_is_right(&reply));
    assert_eq!(reply[40], 129);
    assert_eq!(reply[8..24], own().octets());
    assert_eq!(reply[24..40], hv(1).octets());
    assert_eq!(reply[44..], request[44..]);
}
