//! Header translation between the families, and the inside of ICMP errors. Expected packets are built, not derived: every checksum that
//! the builders fill in must come out of the incremental updates.

use crate::bed::{hex, v4, v6};
use crate::build;
use crate::fragments::{cut, cut6};
use core::net::{Ipv4Addr, Ipv6Addr};
use dataplane::icmp_error::{QuotedEnd, translate_inbound, translate_outbound};
use dataplane::nat64::{Ends, GROWTH_MAX, NotTranslatable, embed, embedded, to_v4, to_v6};
use proptest::prelude::*;

const VM: &str = "2000:100:1::1";
const NAT: &str = "172.20.1.1";
const REMOTE: &str = "45.86.6.6";
const REMOTE6: &str = "64:ff9b::2d56:606";

fn ends4(source: &str, destination: &str) -> Ends<Ipv4Addr> {
    Ends {
        source: v4(source),
        destination: v4(destination),
    }
}

fn ends6(source: &str, destination: &str) -> Ends<Ipv6Addr> {
    Ends {
        source: v6(source),
        destination: v6(destination),
    }
}

/// Identification 0 and the given TTL instead of what the builders write.
fn plain(mut packet: Vec<u8>, ttl: u8) -> Vec<u8> {
    packet[4..6].copy_from_slice(&[0, 0]);
    packet[8] = ttl;
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = net::checksum::checksum(&packet[..20]).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet
}

fn hops(mut packet: Vec<u8>, hop_limit: u8) -> Vec<u8> {
    packet[7] = hop_limit;
    packet
}

fn down(
    packet: &[u8],
    ends: Ends<Ipv4Addr>,
    quoted: Ends<Ipv4Addr>,
) -> Result<Vec<u8>, NotTranslatable> {
    let mut bytes = packet.to_vec();
    let range = to_v4(&mut bytes, ends, quoted)?;
    Ok(bytes[range].to_vec())
}

fn up(
    packet: &[u8],
    ends: Ends<Ipv6Addr>,
    quoted: Ends<Ipv6Addr>,
) -> Result<Vec<u8>, NotTranslatable> {
    let mut bytes = vec![0xee; GROWTH_MAX];
    bytes.extend(packet);
    bytes.extend([0xee; GROWTH_MAX]);
    let range = to_v6(
        &mut bytes,
        GROWTH_MAX..GROWTH_MAX + packet.len(),
        ends,
        quoted,
    )?;
    Ok(bytes[range].to_vec())
}

fn check(got: Result<Vec<u8>, NotTranslatable>, expected: Vec<u8>) {
    assert_eq!(hex(&got.unwrap()), hex(&expected));
}

#[test]
fn well_known_prefix() {
    assert_eq!(embed(v4(REMOTE)), v6(REMOTE6));
    assert_eq!(embedded(v6(REMOTE6)), Some(v4(REMOTE)));
    for other in [
        "64:ff9b:1::2d56:606",
        "64:ff9b::1:0:2d56:606",
        "2000::1",
        "::",
    ] {
        assert_eq!(embedded(v6(other)), None);
    }
}

#[test]
fn tcp_udp_and_echo_both_ways() {
    let out = ends4(NAT, REMOTE);
    check(
        down(&build::tcp((VM, 1024), (REMOTE6, 443), 2), out, out),
        plain(build::tcp((NAT, 1024), (REMOTE, 443), 2), 63),
    );
    check(
        down(&build::udp((VM, 1024), (REMOTE6, 53), b"abc"), out, out),
        plain(build::udp((NAT, 1024), (REMOTE, 53), b"abc"), 63),
    );
    check(
        down(&build::echo(VM, REMOTE6, true, 7), out, out),
        plain(build::echo(NAT, REMOTE, true, 7), 63),
    );
    check(
        down(&build::echo(VM, REMOTE6, false, 7), out, out),
        plain(build::echo(NAT, REMOTE, false, 7), 63),
    );
    let back = ends6(REMOTE6, VM);
    check(
        up(&build::tcp((REMOTE, 443), (NAT, 1024), 0x12), back, back),
        hops(build::tcp((REMOTE6, 443), (VM, 1024), 0x12), 61),
    );
    check(
        up(&build::udp((REMOTE, 53), (NAT, 1024), b"abcd"), back, back),
        hops(build::udp((REMOTE6, 53), (VM, 1024), b"abcd"), 61),
    );
    check(
        up(&build::echo(REMOTE, NAT, false, 7), back, back),
        hops(build::echo(REMOTE6, VM, false, 7), 61),
    );
    check(
        up(&build::echo(REMOTE, NAT, true, 7), back, back),
        hops(build::echo(REMOTE6, VM, true, 7), 61),
    );
}

#[test]
fn traffic_class_extension_headers_options_and_missing_checksums() {
    let out = ends4(NAT, REMOTE);
    let mut packet = build::udp((VM, 1), (REMOTE6, 2), b"x");
    packet[0] = 0x6b;
    packet[1] = 0x85;
    assert_eq!(down(&packet, out, out).unwrap()[1], 0xb8);
    // Hop-by-hop options vanish.
    let inner = build::udp((VM, 1), (REMOTE6, 2), b"x");
    let with_options = build::ipv6(
        0,
        v6(VM),
        v6(REMOTE6),
        &[&[17, 0, 1, 4, 0, 0, 0, 0], &inner[40..]].concat(),
    );
    check(
        down(&with_options, out, out),
        plain(build::udp((NAT, 1), (REMOTE, 2), b"x"), 63),
    );
    let back = ends6(REMOTE6, VM);
    // IPv4 options vanish, too, and a UDP checksum is made where there was none.
    let mut datagram = build::udp_datagram(2, 1, b"xyz");
    datagram[6..8].copy_from_slice(&[0, 0]);
    let packet = build::ipv4_with(17, v4(REMOTE), v4(NAT), 0, &[1, 1, 1, 0], &datagram);
    check(
        up(&packet, back, back),
        hops(build::udp((REMOTE6, 2), (VM, 1), b"xyz"), 61),
    );
}

#[test]
fn what_has_no_counterpart() {
    let (out, back) = (ends4(NAT, REMOTE), ends6(REMOTE6, VM));
    let [ping, rest] = cut6(&build::icmp(VM, REMOTE6, 128, 0, [0, 9, 0, 1], &[1; 40]));
    let sctp = build::ipv6(132, v6(VM), v6(REMOTE6), &[0; 12]);
    for packet in [
        ping,
        rest,
        sctp,
        build::icmp(VM, REMOTE6, 130, 0, [0; 4], b""),
    ] {
        assert_eq!(down(&packet, out, out), Err(NotTranslatable));
    }
    let no_checksum = build::ipv4_with(17, v4(REMOTE), v4(NAT), 0x2000, &[], &[0; 16]);
    let [ping, rest] = cut(&build::icmp(REMOTE, NAT, 8, 0, [0, 9, 0, 1], &[1; 40]));
    let sctp = build::ipv4(132, v4(REMOTE), v4(NAT), &[0; 12]);
    let timestamp = build::icmp(REMOTE, NAT, 13, 0, [0; 4], &[0; 12]);
    let redirect = build::icmp(
        REMOTE,
        NAT,
        5,
        0,
        [0; 4],
        &build::tcp((NAT, 1), (REMOTE, 2), 2),
    );
    for packet in [no_checksum, ping, rest, sctp, timestamp, redirect] {
        assert_eq!(up(&packet, back, back), Err(NotTranslatable));
    }
    assert_eq!(up(&[0x45; 10], back, back), Err(NotTranslatable));
    assert_eq!(down(&[0x60; 39], out, out), Err(NotTranslatable));
}

/// The fragment field and the header's checksum are as RFC 7915 §5.1.1 says; of the identification, the lower half is what fits.
#[test]
fn pieces_down() {
    let ends = ends4(NAT, REMOTE);
    let payload = [5; 40];
    let pairs = [
        (
            build::udp((VM, 1024), (REMOTE6, 53), &payload),
            build::udp((NAT, 1024), (REMOTE, 53), &payload),
        ),
        (
            build::tcp_with((VM, 1024), (REMOTE6, 53), 0x10, &payload),
            build::tcp_with((NAT, 1024), (REMOTE, 53), 0x10, &payload),
        ),
    ];
    for (six, four) in pairs {
        for (from, to) in cut6(&six).iter().zip(cut(&four)) {
            let mut expected = plain(to, 63);
            expected[4..6].copy_from_slice(&[3, 4]);
            expected[10..12].fill(0);
            let sum = net::checksum::checksum(&expected[..20]).to_be_bytes();
            expected[10..12].copy_from_slice(&sum);
            check(down(from, ends, ends), expected);
        }
    }
    // An only piece (RFC 6946) is a whole packet that has an identification.
    let whole = build::udp((VM, 1), (REMOTE6, 2), b"x");
    let only = [&[17, 0, 0, 0, 1, 2, 3, 4], &whole[40..]].concat();
    let only = build::ipv6(44, v6(VM), v6(REMOTE6), &only);
    let got = down(&only, ends, ends).unwrap();
    assert_eq!(got[4..8], [3, 4, 0, 0]);
    assert_eq!(
        got[20..],
        build::udp((NAT, 1), (REMOTE, 2), b"x")[20..],
        "the transport"
    );
}

/// RFC 7915 §4.1.
#[test]
fn pieces_up() {
    let ends = ends6(REMOTE6, VM);
    let payload = [5; 40];
    let pairs = [
        (
            build::udp((REMOTE, 53), (NAT, 1024), &payload),
            build::udp((REMOTE6, 53), (VM, 1024), &payload),
        ),
        (
            build::tcp_with((REMOTE, 53), (NAT, 1024), 0x10, &payload),
            build::tcp_with((REMOTE6, 53), (VM, 1024), 0x10, &payload),
        ),
    ];
    for (four, six) in pairs {
        for (from, to) in cut(&four).iter().zip(cut6(&six)) {
            let mut expected = hops(to, 61);
            expected[44..48].copy_from_slice(&[0, 0, 0x12, 0x34]);
            check(up(from, ends, ends), expected);
        }
    }
}

/// (ICMP type, code, rest) and (ICMPv6 type, code, rest); `None` is "not translated".
type Mapping = ((u8, u8, [u8; 4]), Option<(u8, u8, [u8; 4])>);

#[test]
fn errors_from_ipv4() {
    const ROUTER: &str = "192.0.2.1";
    let outer = ends6("64:ff9b::c000:201", VM);
    let quoted = ends6(VM, REMOTE6);
    let cases: [Mapping; 20] = [
        ((3, 0, [0; 4]), Some((1, 0, [0; 4]))),
        ((3, 1, [0; 4]), Some((1, 0, [0; 4]))),
        ((3, 2, [0; 4]), Some((4, 1, [0, 0, 0, 6]))),
        ((3, 3, [0; 4]), Some((1, 4, [0; 4]))),
        ((3, 4, [0, 0, 5, 120]), Some((2, 0, [0, 0, 5, 140]))),
        ((3, 4, [0, 0, 2, 64]), Some((2, 0, [0, 0, 5, 0]))),
        ((3, 4, [0; 4]), Some((2, 0, [0, 0, 5, 0]))),
        ((3, 9, [0; 4]), Some((1, 1, [0; 4]))),
        ((3, 10, [0; 4]), Some((1, 1, [0; 4]))),
        ((3, 11, [0; 4]), Some((1, 0, [0; 4]))),
        ((3, 13, [0; 4]), Some((1, 1, [0; 4]))),
        ((3, 14, [0; 4]), None),
        ((3, 15, [0; 4]), Some((1, 1, [0; 4]))),
        ((11, 0, [0; 4]), Some((3, 0, [0; 4]))),
        ((11, 1, [0; 4]), Some((3, 1, [0; 4]))),
        ((12, 0, [9, 0, 0, 0]), Some((4, 0, [0, 0, 0, 6]))),
        ((12, 2, [16, 0, 0, 0]), Some((4, 0, [0, 0, 0, 24]))),
        ((12, 0, [10, 0, 0, 0]), None),
        ((12, 1, [0; 4]), None),
        ((3, 5, [0; 4]), Some((1, 0, [0; 4]))),
    ];
    for (from, to) in cases {
        for (inner4, inner6) in [
            (
                build::tcp((NAT, 1024), (REMOTE, 443), 2),
                build::tcp((VM, 1024), (REMOTE6, 443), 2),
            ),
            (
                build::udp((NAT, 1024), (REMOTE, 53), b"abc"),
                build::udp((VM, 1024), (REMOTE6, 53), b"abc"),
            ),
            (
                build::echo(NAT, REMOTE, true, 9),
                build::echo(VM, REMOTE6, true, 9),
            ),
        ] {
            let (kind, code, rest) = from;
            let got = up(
                &build::icmp(ROUTER, NAT, kind, code, rest, &inner4),
                outer,
                quoted,
            );
            let Some((kind, code, rest)) = to else {
                assert_eq!(got, Err(NotTranslatable), "{from:?}");
                continue;
            };
            let inner6 = hops(inner6, 61);
            check(
                got,
                hops(
                    build::icmp("64:ff9b::c000:201", VM, kind, code, rest, &inner6),
                    61,
                ),
            );
        }
    }
}

#[test]
fn errors_from_ipv6() {
    let outer = ends4(NAT, REMOTE);
    let quoted = ends4(REMOTE, NAT);
    let cases: [Mapping; 14] = [
        ((1, 0, [0; 4]), Some((3, 1, [0; 4]))),
        ((1, 1, [0; 4]), Some((3, 10, [0; 4]))),
        ((1, 2, [0; 4]), Some((3, 1, [0; 4]))),
        ((1, 3, [0; 4]), Some((3, 1, [0; 4]))),
        ((1, 4, [0; 4]), Some((3, 3, [0; 4]))),
        ((1, 5, [0; 4]), None),
        ((2, 0, [0, 0, 5, 140]), Some((3, 4, [0, 0, 5, 120]))),
        ((3, 0, [0; 4]), Some((11, 0, [0; 4]))),
        ((3, 1, [0; 4]), Some((11, 1, [0; 4]))),
        ((4, 0, [0, 0, 0, 6]), Some((12, 0, [9, 0, 0, 0]))),
        ((4, 0, [0, 0, 0, 39]), Some((12, 0, [16, 0, 0, 0]))),
        ((4, 0, [0, 0, 0, 40]), None),
        ((4, 1, [0; 4]), Some((3, 2, [0; 4]))),
        ((4, 2, [0; 4]), None),
    ];
    for (from, to) in cases {
        for (inner6, inner4) in [
            (
                build::tcp((REMOTE6, 443), (VM, 1024), 2),
                build::tcp((REMOTE, 443), (NAT, 1024), 2),
            ),
            (
                build::udp((REMOTE6, 53), (VM, 1024), b"abc"),
                build::udp((REMOTE, 53), (NAT, 1024), b"abc"),
            ),
            (
                build::echo(REMOTE6, VM, false, 9),
                build::echo(REMOTE, NAT, false, 9),
            ),
        ] {
            let (kind, code, rest) = from;
            let got = down(
                &build::icmp(VM, REMOTE6, kind, code, rest, &inner6),
                outer,
                quoted,
            );
            let Some((kind, code, rest)) = to else {
                assert_eq!(got, Err(NotTranslatable), "{from:?}");
                continue;
            };
            let inner4 = plain(inner4, 63);
            check(
                got,
                plain(build::icmp(NAT, REMOTE, kind, code, rest, &inner4), 63),
            );
        }
    }
}

#[test]
fn quotations_may_be_cut_short() {
    let quoted = build::udp((NAT, 1024), (REMOTE, 53), b"a long payload of thirty bytes");
    let packet = build::icmp("192.0.2.1", NAT, 3, 3, [0; 4], &quoted[..28]);
    let got = up(&packet, ends6("64:ff9b::c000:201", VM), ends6(VM, REMOTE6)).unwrap();
    let inner = hops(
        build::udp((VM, 1024), (REMOTE6, 53), b"a long payload of thirty bytes"),
        61,
    );
    let expected = build::icmp("64:ff9b::c000:201", VM, 1, 4, [0; 4], &inner[..48]);
    assert_eq!(hex(&got), hex(&hops(expected, 61)));
}

fn transports(from: (&str, u16), to: (&str, u16)) -> [Vec<u8>; 3] {
    [
        build::tcp(from, to, 0x10),
        build::udp(from, to, b"payload"),
        build::echo(from.0, to.0, true, from.1),
    ]
}

#[test]
fn the_inside_of_errors_is_translated_with_all_checksums() {
    const VM4: &str = "10.100.1.1";
    let machine = QuotedEnd {
        address: build::address(VM4),
        port: 1234,
    };
    let quoted = transports((NAT, 500), (REMOTE, 443))
        .into_iter()
        .zip(transports((VM4, 1234), (REMOTE, 443)));
    for (outside, inside) in quoted {
        for (kind, code) in [(3, 4), (3, 3), (11, 0), (12, 0)] {
            let mut packet = build::icmp("192.0.2.1", NAT, kind, code, [0, 0, 5, 0], &outside);
            assert!(translate_inbound(&mut packet, machine));
            let expected = build::icmp("192.0.2.1", VM4, kind, code, [0, 0, 5, 0], &inside);
            assert_eq!(hex(&packet), hex(&expected));
            let public = QuotedEnd {
                address: build::address(NAT),
                port: 500,
            };
            // Back out again: the machine complains about an answer it got.
            let answer_in = build::udp((REMOTE, 443), (VM4, 1234), b"answer");
            let answer_out = build::udp((REMOTE, 443), (NAT, 500), b"answer");
            let mut packet = build::icmp(VM4, REMOTE, kind, code, [0; 4], &answer_in);
            assert!(translate_outbound(&mut packet, public));
            assert_eq!(
                hex(&packet),
                hex(&build::icmp(NAT, REMOTE, kind, code, [0; 4], &answer_out))
            );
        }
    }
    // IPv6, with its pseudo header.
    let machine = QuotedEnd {
        address: build::address(VM),
        port: 9,
    };
    for (outside, inside) in transports(("2000::5", 8), (REMOTE6, 7))
        .into_iter()
        .zip(transports((VM, 9), (REMOTE6, 7)))
    {
        let mut packet = build::icmp("2000::99", "2000::5", 1, 4, [0; 4], &outside);
        assert!(translate_inbound(&mut packet, machine));
        assert_eq!(
            hex(&packet),
            hex(&build::icmp("2000::99", VM, 1, 4, [0; 4], &inside))
        );
    }
}

#[test]
fn other_packets_are_no_errors() {
    let end = QuotedEnd {
        address: build::address(NAT),
        port: 1,
    };
    for packet in [
        build::echo(NAT, REMOTE, true, 1),
        build::tcp((NAT, 1), (REMOTE, 2), 2),
        vec![0x45],
        Vec::new(),
    ] {
        let mut bytes = packet.clone();
        assert!(!translate_inbound(&mut bytes, end));
        assert_eq!(bytes, packet);
    }
}

proptest! {
    /// Whatever the bytes: no panic, and what is translated has consistent lengths.
    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..200), six: bool, protocol in prop::sample::select(vec![1_u8, 6, 17, 58, 0, 44])) {
        if let Some(first) = bytes.first_mut() {
            *first = if six { 0x60 } else { 0x45 };
        }
        let length = bytes.len() as u16;
        if six && bytes.len() >= 40 {
            bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            bytes[6] = protocol;
            if let Ok(packet) = down(&bytes, ends4(NAT, REMOTE), ends4(REMOTE, NAT)) {
                prop_assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            }
        } else if !six && bytes.len() >= 20 {
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[6..8].copy_from_slice(&[0, 0]);
            bytes[9] = protocol;
            if let Ok(packet) = up(&bytes, ends6(REMOTE6, VM), ends6(VM, REMOTE6)) {
                prop_assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len());
            }
        }
        let mut copy = bytes.clone();
        let _ = translate_inbound(&mut copy, QuotedEnd { address: build::address(NAT), port: 1 });
        prop_assert_eq!(copy.len(), bytes.len());
    }

    /// Down and up again gives the same packet, and its transport checksum stays as wrong as it was.
    #[test]
    fn round_trip(from in any::<u16>(), to in any::<u16>(), payload in prop::collection::vec(any::<u8>(), 0..64), damage: bool) {
        let mut packet = build::udp((VM, from), (REMOTE6, to), &payload);
        if damage {
            packet[46] ^= 0x55;
        }
        prop_assume!(packet[46..48] != [0, 0]);
        let four = down(&packet, ends4(NAT, REMOTE), ends4(NAT, REMOTE)).unwrap();
        let six = up(&four, ends6(VM, REMOTE6), ends6(VM, REMOTE6)).unwrap();
        prop_assert_eq!(hex(&six), hex(&packet));
    }
}
