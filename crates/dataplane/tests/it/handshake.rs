//! Clamping of the segment size, and counting of hops.

use crate::bed::*;
use crate::build;
use crate::scene::*;
use dataplane::{DropReason, MssClamp, PacketBuf, Verdict};
use net::checksum;
use net::tcp::{ACK, SYN};

/// A segment with options.
fn segment(from: (&str, u16), to: (&str, u16), flags: u8, options: &[u8]) -> Vec<u8> {
    let plain = build::tcp(from, to, flags);
    let start = if plain[0] >> 4 == 4 { 20 } else { 40 };
    let mut l4 = plain[start..].to_vec();
    l4[12] = (((20 + options.len()) / 4) << 4) as u8;
    l4.extend(options);
    l4[16..18].fill(0);
    let (from, to) = (build::address(from.0), build::address(to.0));
    let pseudo = match (from, to) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            checksum::pseudo_v4(from, to, 6, l4.len() as u16)
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            checksum::pseudo_v6(from, to, 6, l4.len() as u32)
        }
        _ => panic!("one family"),
    };
    let sum = checksum::finish(checksum::sum(pseudo, &l4)).to_be_bytes();
    l4[16..18].copy_from_slice(&sum);
    match (from, to) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => build::ipv4(6, from, to, &l4),
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => build::ipv6(6, from, to, &l4),
        _ => panic!("one family"),
    }
}

fn mss(size: u16) -> [u8; 4] {
    let [high, low] = size.to_be_bytes();
    [2, 4, high, low]
}

fn clamping(clamp: MssClamp) -> Bed {
    let mut config = config();
    config.mss_clamp = clamp;
    let mut bed = Bed::with(config);
    bed.engine.set_uplink_mtu(PF0, 1_500);
    bed.engine.set_uplink_mtu(PF1, 1_500);
    bed
}

/// Both directions, again and again: a connection that is known already may begin anew.
#[track_caller]
fn check(clamp: MssClamp, ends: [&str; 2], announced: &[u8], seen: &[u8]) {
    let mut bed = clamping(clamp);
    let own = bed.underlay("vm1");
    let [near, far] = ends;
    for _ in 0..2 {
        let sent = segment((near, 1), (far, 2), SYN, announced);
        let expected = segment((near, 1), (far, 2), SYN, seen);
        assert_eq!(
            bed.guest(VM1, &sent),
            Out::Tunnel(PF0, own, neighbour(), expected)
        );
        let sent = segment((far, 2), (near, 1), SYN | ACK, announced);
        let expected = segment((far, 2), (near, 1), SYN | ACK, seen);
        assert_eq!(bed.fabric(own, &sent), Out::Machine(VM1, expected));
        // Without SYN, the same bytes are left alone.
        let sent = segment((near, 1), (far, 2), ACK, announced);
        assert_eq!(
            bed.guest(VM1, &sent),
            Out::Tunnel(PF0, own, neighbour(), sent.clone())
        );
    }
}

#[test]
fn handshakes_are_told_what_fits_the_tunnel() {
    let (four, six) = (
        ["10.100.1.1", "10.100.2.1"],
        ["2000:100:1::1", "2000:100:2::1"],
    );
    // 1500 bytes without both headers of the tunnel, then those of the packet.
    check(MssClamp::Tunnel, four, &mss(1_460), &mss(1_420));
    check(MssClamp::Tunnel, six, &mss(1_440), &mss(1_400));
    check(MssClamp::At(1_200), four, &mss(1_460), &mss(1_200));
    check(MssClamp::Off, four, &mss(1_460), &mss(1_460));
    // Small ones stay, as do handshakes without the option.
    check(MssClamp::Tunnel, four, &mss(536), &mss(536));
    check(MssClamp::Tunnel, four, &[], &[]);
    // Behind other options, at an odd offset; behind the end of the list it is none.
    let odd = |size| [&[1, 1, 1][..], &mss(size), &[0]].concat();
    check(MssClamp::Tunnel, four, &odd(1_460), &odd(1_420));
    let behind = |size| [&[3, 3, 7, 1][..], &mss(size)].concat();
    check(MssClamp::Tunnel, six, &behind(9_000), &behind(1_400));
    let ended = [&[0, 0, 0, 0][..], &mss(1_460)].concat();
    check(MssClamp::Tunnel, four, &ended, &ended);
    // Options without sense are forwarded as they are.
    for broken in [
        [2, 0, 0, 0],
        [2, 40, 5, 5],
        [5, 1, 2, 4],
        [2, 3, 9, 9],
        [1, 1, 1, 2],
    ] {
        check(MssClamp::Tunnel, four, &broken, &broken);
    }
}

#[test]
fn between_machines_of_a_host_nothing_is_clamped() {
    let mut bed = clamping(MssClamp::Tunnel);
    let sent = segment(("10.100.1.1", 1), ("10.100.1.2", 2), SYN, &mss(9_000));
    assert_eq!(bed.guest(VM1, &sent), Out::Machine(VM2, sent.clone()));
}

// ---- hops ------------------------------------------------------------------------------------------------------------------

fn counting() -> Bed {
    let mut config = config();
    config.decrement_hops = true;
    Bed::with(config)
}

#[test]
fn every_packet_loses_a_hop() {
    let mut bed = counting();
    let own = bed.underlay("vm1");
    for (near, far, other) in [
        ("10.100.1.1", "10.100.2.1", "10.100.1.2"),
        ("2000:100:1::1", "2000:100:2::1", "2000:100:1::2"),
    ] {
        // First packet and cached answer.
        for hops in [64, 255, 2, 3] {
            let sent = build::udp((near, 1), (far, 2), b"x");
            let seen = build::with_hops(sent.clone(), hops - 1);
            let out = bed.guest(VM1, &build::with_hops(sent, hops));
            assert_eq!(out, Out::Tunnel(PF0, own, neighbour(), seen));
            let sent = build::udp((far, 2), (near, 1), b"x");
            let seen = build::with_hops(sent.clone(), hops - 1);
            assert_eq!(
                bed.fabric(own, &build::with_hops(sent, hops)),
                Out::Machine(VM1, seen)
            );
            let sent = build::udp((near, 1), (other, 2), b"x");
            let seen = build::with_hops(sent.clone(), hops - 1);
            assert_eq!(
                bed.guest(VM1, &build::with_hops(sent, hops)),
                Out::Machine(VM2, seen)
            );
        }
    }
}

#[test]
fn a_packet_without_hops_is_answered() {
    for known in [false, true] {
        let mut bed = counting();
        for (near, far, gateway, kind) in [
            ("10.100.1.1", "10.100.2.1", "169.254.0.1", 11),
            ("2000:100:1::1", "2000:100:2::1", "fe80::1", 3),
        ] {
            let sent = build::udp((near, 1), (far, 2), b"x");
            if known {
                assert!(matches!(bed.guest(VM1, &sent), Out::Tunnel(..)));
            }
            for hops in [0, 1] {
                let last = build::with_hops(sent.clone(), hops);
                let Out::Machine(VM1, got) = bed.guest(VM1, &last) else {
                    panic!("no answer");
                };
                let expected = build::icmp(gateway, near, kind, 0, [0; 4], &last);
                let start = if kind == 11 { 12 } else { 8 };
                assert_eq!(hex(&got[start..]), hex(&expected[start..]));
            }
        }
        // No error about an error, and none to the fabric.
        let quoted = build::udp(("10.100.2.1", 2), ("10.100.1.1", 1), b"x");
        let error = build::icmp("10.100.1.1", "10.100.2.1", 3, 3, [0; 4], &quoted);
        let dropped = Out::Dropped(DropReason::HopsExceeded);
        assert_eq!(bed.guest(VM1, &build::with_hops(error, 1)), dropped);
        let own = bed.underlay("vm1");
        assert_eq!(bed.fabric(own, &build::with_hops(quoted, 1)), dropped);
    }
}

/// What is for all on the link is often sent with one hop, and nobody may be told that it went no further.
#[test]
fn nothing_is_said_about_packets_to_groups() {
    let mut bed = counting();
    use DropReason::{Multicast, NotForwardable};
    for (from, to, reason) in [
        ("10.100.1.1", "239.255.255.250", Multicast),
        ("10.100.1.1", "255.255.255.255", Multicast),
        ("0.0.0.0", "10.100.2.1", NotForwardable),
        ("2000:100:1::1", "ff02::c", Multicast),
        ("::", "2000:100:2::1", NotForwardable),
    ] {
        let last = build::with_hops(build::udp((from, 1), (to, 1900), b"x"), 1);
        assert_eq!(bed.guest(VM1, &last), Out::Dropped(reason), "{to}");
    }
}

#[test]
fn answers_are_a_trickle() {
    let mut bed = counting();
    let last = from_guest(&build::with_hops(
        build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), b"x"),
        1,
    ));
    let mut packet = PacketBuf::new();
    let mut answers = 0;
    for _ in 0..1_000 {
        assert!(packet.fill(&last));
        let verdict = bed.process(VM1, &mut packet);
        answers += u64::from(verdict == Verdict::Reply(VM1));
    }
    assert_eq!(answers, 64);
    assert_eq!(
        bed.worker.counters().drops(DropReason::HopsExceeded),
        1_000 - 64
    );
}
