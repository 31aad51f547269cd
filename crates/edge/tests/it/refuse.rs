//! Packets that do not go through: why, who is told, and how often.

use dataplane::Instant;
use edge::engine::ERRORS_MAX;
use edge::{DropReason, Verdict};
use net::protocol;

use crate::bed::{
    Bed, MAC, Out, a, checksum_is_right, ethernet_frame, fragmented, hv, ip, message, own,
    tunnelled, udp, udp_bytes,
};

/// Expects an ICMP error and reads it: source, destination, type, code, the last four bytes of its header, the quotation.
#[track_caller]
fn read_error(packet: &[u8]) -> (String, String, [u8; 2], u32, Vec<u8>) {
    assert!(checksum_is_right(packet));
    let (source, destination, icmp) = match packet[0] >> 4 {
        4 => {
            let view = net::Ipv4::new_checked(packet).unwrap();
            assert_eq!(view.protocol(), protocol::ICMP);
            assert!(packet.len() <= 576);
            (
                view.source().to_string(),
                view.destination().to_string(),
                view.payload(),
            )
        }
        _ => {
            let view = net::Ipv6::new_checked(packet).unwrap();
            assert_eq!(view.next_header(), protocol::ICMPV6);
            assert!(packet.len() <= 1280);
            (
                view.source().to_string(),
                view.destination().to_string(),
                view.payload(),
            )
        }
    };
    let word = u32::from_be_bytes(icmp[4..8].try_into().unwrap());
    let kind = [icmp[0], icmp[1]];
    (source, destination, kind, word, icmp[8..].to_vec())
}

#[track_caller]
fn told(frame: &[u8], reason: DropReason, about: &[u8], kind: [u8; 2], word: u32) {
    let Out::Plain(error) = Bed::new().check(frame, Verdict::Answer(reason)) else {
        panic!("a tunnel");
    };
    let is_v4 = about[0] >> 4 == 4;
    let (source, _, found, parameter, quoted) = read_error(&error);
    let expected = if is_v4 {
        "192.0.0.8".to_owned()
    } else {
        own().to_string()
    };
    assert_eq!((source, found, parameter), (expected, kind, word));
    assert!(!quoted.is_empty() && about.starts_with(&quoted));
}

#[test]
fn too_large_from_the_outside() {
    let large = |source: &str, destination: &str| {
        ip(source, destination, protocol::UDP, &udp_bytes(1, 2, 1500))
    };
    let packet = large("203.0.113.5", "198.51.100.1");
    told(
        &ethernet_frame(&packet),
        DropReason::TooBig,
        &packet,
        [3, 4],
        1500,
    );
    let packet = large("2001:db8:9::1", "2001:db8:100::1");
    told(
        &ethernet_frame(&packet),
        DropReason::TooBig,
        &packet,
        [2, 0],
        1500,
    );
}

#[test]
fn nobody_has_the_address() {
    let packet = udp("203.0.113.5", 1, "198.51.100.77", 2);
    told(
        &ethernet_frame(&packet),
        DropReason::NoRoute,
        &packet,
        [3, 1],
        0,
    );
    let packet = udp("2001:db8:9::1", 1, "2001:db8:100::77", 2);
    told(
        &ethernet_frame(&packet),
        DropReason::NoRoute,
        &packet,
        [1, 3],
        0,
    );
}

/// An answer to a machine goes through the tunnel, and to the owner of the port that the error quotes.
#[test]
fn machines_are_told_through_the_tunnel() {
    let mut bed = Bed::new();
    let mut expiring = udp("198.51.100.1", 1, "198.51.100.2", 2);
    expiring[8] = 1;
    for (packet, reason, kind, hop) in [
        (
            udp("198.51.100.1", 1, "10.1.2.3", 2),
            DropReason::DestinationDenied,
            [3, 13],
            hv(1),
        ),
        (
            udp("198.51.100.1", 1, "198.51.100.77", 2),
            DropReason::NoRoute,
            [3, 1],
            hv(1),
        ),
        (
            udp("198.51.100.9", 1500, "10.1.2.3", 2),
            DropReason::DestinationDenied,
            [3, 13],
            hv(1),
        ),
        (
            udp("198.51.100.9", 2500, "10.1.2.3", 2),
            DropReason::DestinationDenied,
            [3, 13],
            hv(2),
        ),
        (
            udp("2001:db8:100::1", 1, "fd00::1", 2),
            DropReason::DestinationDenied,
            [1, 1],
            hv(1),
        ),
        (
            udp("2001:db8:100::1", 1, "fd00:ff::e", 2),
            DropReason::DestinationDenied,
            [1, 1],
            hv(1),
        ),
        (expiring, DropReason::TtlExceeded, [11, 0], hv(1)),
    ] {
        let out = bed.check(&tunnelled(hv(3), &packet), Verdict::Answer(reason));
        let Out::Tunnel(to, error) = out else {
            panic!("{reason:?}: no tunnel");
        };
        let (_, destination, found, _, quoted) = read_error(&error);
        assert_eq!((to, found), (hop, kind), "{reason:?}");
        assert_eq!(a(&destination), edge::flow::parse(&packet).unwrap().source);
        assert_eq!(quoted, packet);
    }
}

/// The underlay's "too big" reaches the one who can send smaller packets (RFC 2473 §8).
#[test]
fn the_underlay_is_too_narrow() {
    let mut bed = Bed::new();
    let inner = udp("203.0.113.5", 4000, "198.51.100.1", 53);
    let quoted = ip(&own().to_string(), &hv(1).to_string(), 4, &inner);
    let error = |mtu: u32, quoted: &[u8]| {
        let icmp = message(2, 0, mtu, quoted);
        let own = own().to_string();
        ethernet_frame(&ip("fd00:77::1", &own, protocol::ICMPV6, &icmp))
    };
    for (mtu, told) in [(1400, 1360), (0, 576)] {
        let reason = Verdict::Answer(DropReason::UnderlayTooBig);
        let Out::Plain(answer) = bed.check(&error(mtu, &quoted), reason) else {
            panic!("a tunnel");
        };
        let (_, destination, kind, parameter, body) = read_error(&answer);
        assert_eq!(
            (destination.as_str(), kind, parameter),
            ("203.0.113.5", [3, 4], told)
        );
        assert_eq!(body, inner);
    }
    let foreign = ip("fd00:5::5", &hv(1).to_string(), 4, &inner);
    bed.dropped(&error(1400, &foreign), DropReason::UnderlayError);
    bed.dropped(&error(1400, &quoted[..50]), DropReason::UnderlayError);
    let about_an_error = ip("203.0.113.5", "198.51.100.1", 1, &message(3, 1, 0, &inner));
    let quoted = ip(&own().to_string(), &hv(1).to_string(), 4, &about_an_error);
    bed.dropped(&error(1400, &quoted), DropReason::UnderlayTooBig);
    let unreachable = message(1, 0, 0, &quoted);
    let unreachable = ip(
        "fd00:77::1",
        &own().to_string(),
        protocol::ICMPV6,
        &unreachable,
    );
    bed.dropped(&ethernet_frame(&unreachable), DropReason::UnderlayError);
}

#[test]
fn no_error_about_an_error_or_a_fragment() {
    let mut bed = Bed::new();
    let sent = udp("198.51.100.77", 1, "203.0.113.5", 2);
    let error = ip("203.0.113.5", "198.51.100.77", 1, &message(3, 3, 0, &sent));
    bed.dropped(&ethernet_frame(&error), DropReason::NoRoute);
    let piece = fragmented(udp("203.0.113.5", 1, "198.51.100.77", 2), 0x0020);
    bed.dropped(&ethernet_frame(&piece), DropReason::NoRoute);
}

#[test]
fn errors_are_no_more_than_a_trickle() {
    let mut bed = Bed::new();
    let frame = ethernet_frame(&udp("203.0.113.5", 1, "198.51.100.77", 2));
    for _ in 0..ERRORS_MAX {
        assert_eq!(bed.put(&frame), Verdict::Answer(DropReason::NoRoute));
    }
    bed.dropped(&frame, DropReason::NoRoute);
    bed.now = Instant(bed.now.0 + 10_000_000);
    assert_eq!(bed.put(&frame), Verdict::Answer(DropReason::NoRoute));
    bed.dropped(&frame, DropReason::NoRoute);
    bed.now = Instant::from_secs(1_000);
    for _ in 0..ERRORS_MAX {
        assert_eq!(bed.put(&frame), Verdict::Answer(DropReason::NoRoute));
    }
    bed.dropped(&frame, DropReason::NoRoute);
}

/// Sources and outer sources: a private address without NAT, a forged one, a tunnel from the wrong side.
#[test]
fn sources_that_do_not_belong() {
    let mut bed = Bed::new();
    let private = udp("10.0.0.5", 1, "203.0.113.5", 2);
    bed.dropped(&tunnelled(hv(1), &private), DropReason::SourceUnknown);
    let unused = udp("198.51.100.77", 1, "203.0.113.5", 2);
    bed.dropped(&tunnelled(hv(1), &unused), DropReason::SourceUnknown);
    let forged = udp("198.51.100.1", 1, "198.51.100.2", 2);
    bed.dropped(&ethernet_frame(&forged), DropReason::SourceSpoofed);
    let good = udp("198.51.100.1", 1, "203.0.113.5", 2);
    let outside = "2001:db8:9::1".parse().unwrap();
    bed.dropped(&tunnelled(outside, &good), DropReason::OuterSource);
}

#[test]
fn what_is_no_business_of_an_edge() {
    let mut bed = Bed::new();
    let good = udp("203.0.113.5", 1, "198.51.100.1", 2);
    let own_text = own().to_string();
    let from = hv(1).to_string();
    let to_us = |next: u8, payload: &[u8]| ethernet_frame(&ip(&from, &own_text, next, payload));
    let mut multicast = ethernet_frame(&good);
    multicast[0] = 0x33;
    bed.dropped(&multicast, DropReason::Group);
    let mut arp = ethernet_frame(&good);
    arp[13] = 6;
    bed.dropped(&arp, DropReason::NotIp);
    bed.dropped(&MAC.0, DropReason::NotIp);
    bed.dropped(
        &to_us(protocol::UDP, &udp_bytes(1, 2, 3)),
        DropReason::NotTunnel,
    );
    bed.dropped(
        &to_us(protocol::ICMPV6, &message(129, 0, 0, b"")),
        DropReason::NotTunnel,
    );
    bed.dropped(
        &to_us(protocol::FRAGMENT, &[4, 0, 0, 1, 0, 0, 0, 1]),
        DropReason::TunnelFragment,
    );
    bed.dropped(
        &to_us(protocol::ROUTING, &[4, 0, 0, 1, 0, 0, 0, 0]),
        DropReason::SourceRoute,
    );
    let chain = [60, 0, 0, 0, 0, 0, 0, 0].repeat(20);
    bed.dropped(
        &to_us(protocol::DESTINATION_OPTIONS, &chain),
        DropReason::ExtensionHeaders,
    );
    for (source, destination) in [
        ("127.0.0.1", "198.51.100.1"),
        ("0.1.2.3", "198.51.100.1"),
        ("169.254.1.1", "198.51.100.1"),
        ("224.0.0.1", "198.51.100.1"),
        ("203.0.113.5", "255.255.255.255"),
        ("fe80::1", "2001:db8:100::1"),
        ("::1", "2001:db8:100::1"),
        ("::ffff:1.2.3.4", "2001:db8:100::1"),
        ("2001:db8:9::1", "ff02::1"),
    ] {
        let frame = ethernet_frame(&udp(source, 1, destination, 2));
        bed.dropped(&frame, DropReason::Martian);
    }
    let out = udp("198.51.100.1", 1, "169.254.169.254", 2);
    bed.dropped(&tunnelled(hv(1), &out), DropReason::Martian);
}

#[test]
fn malformed() {
    let mut bed = Bed::new();
    let good = udp("203.0.113.5", 1, "198.51.100.1", 2);
    for cut in 14..14 + good.len() {
        bed.dropped(&ethernet_frame(&good)[..cut], DropReason::Malformed);
    }
    let mut other_family = ethernet_frame(&good);
    other_family[12..14].copy_from_slice(&[0x86, 0xdd]);
    bed.dropped(&other_family, DropReason::Malformed);
    let v6 = ip(&hv(1).to_string(), &own().to_string(), 41, &good);
    bed.dropped(&ethernet_frame(&v6), DropReason::Malformed);
    let short = ip("203.0.113.5", "198.51.100.1", protocol::UDP, &[1, 2]);
    bed.dropped(&ethernet_frame(&short), DropReason::Malformed);
    let mut routed = ip("203.0.113.5", "198.51.100.1", 47, &[131, 3, 4, 0]);
    routed[0] = 0x46;
    bed.dropped(&ethernet_frame(&routed), DropReason::SourceRoute);
}
