//! Fragmented packets: every piece goes where the first one goes, translated like it, and no piece is taken for something else.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use core::net::{IpAddr, Ipv6Addr};
use dataplane::{
    DropReason, FirewallAction, FirewallRule, LbPort, LoadBalancerSpec, PortMatch, RuleDirection,
    RuleFilter, RulePrefix,
};
use net::tcp::ACK;

const VM1_IP: &str = "10.100.1.1";
pub(crate) const MORE: u16 = 0x2000;

/// A whole IPv4 packet cut behind the first 24 bytes of its payload.
pub(crate) fn cut(packet: &[u8]) -> [Vec<u8>; 2] {
    let text = |at: usize| {
        std::net::Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
    };
    let (from, to, protocol) = (text(12), text(16), packet[9]);
    let (first, last) = packet[20..].split_at(24);
    [
        build::ipv4_with(protocol, from, to, MORE, &[], first),
        build::ipv4_with(protocol, from, to, 3, &[], last),
    ]
}

pub(crate) fn cut6(packet: &[u8]) -> [Vec<u8>; 2] {
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    let (from, to, next) = (address(8), address(24), packet[6]);
    let (first, last) = packet[40..].split_at(24);
    [(1_u16, first), (3 << 3, last)].map(|(position, bytes)| {
        let [high, low] = position.to_be_bytes();
        let header = [next, 0, high, low, 1, 2, 3, 4];
        build::ipv6(44, from, to, &[&header[..], bytes].concat())
    })
}

pub(crate) fn datagram(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    build::udp(from, to, &[7; 40])
}

/// Where both pieces come out, put together again if they were IPv4 and translated.
pub(crate) fn whole(pieces: [&[u8]; 2]) -> Vec<u8> {
    let [first, last] = pieces;
    assert_eq!(first[12..20], last[12..20], "both have the same addresses");
    for piece in pieces {
        assert_eq!(net::checksum::checksum(&piece[..20]), 0);
    }
    let text =
        |at: usize| std::net::Ipv4Addr::new(first[at], first[at + 1], first[at + 2], first[at + 3]);
    let payload = [&first[20..], &last[20..]].concat();
    let packet = build::ipv4(first[9], text(12), text(16), &payload);
    check_checksums(&packet);
    packet
}

/// Bed::guest without its check of transport checksums, which a piece does not have.
pub(crate) fn through(
    bed: &mut Bed,
    port: dataplane::PortId,
    frame: &[u8],
) -> Result<Vec<u8>, DropReason> {
    match bed.send(port, frame) {
        (dataplane::Verdict::Drop(reason), _) => Err(reason),
        (dataplane::Verdict::Transmit(PF0 | PF1), bytes) => Ok(bytes[54..].to_vec()),
        (_, bytes) => Ok(bytes[14..].to_vec()),
    }
}

pub(crate) fn out(bed: &mut Bed, ip: &[u8]) -> Result<Vec<u8>, DropReason> {
    through(bed, VM1, &from_guest(ip))
}

pub(crate) fn back(bed: &mut Bed, to: Ipv6Addr, ip: &[u8]) -> Result<Vec<u8>, DropReason> {
    through(bed, PF0, &from_fabric(to, ip))
}

#[test]
fn pieces_are_translated_like_the_first() {
    let mut bed = Bed::public();
    let underlay = bed
        .engine
        .create_nat("vm1", address(NAT), range(100, 101), None)
        .unwrap();
    let [first, last] = cut(&datagram((VM1_IP, 5), (PUBLIC, 80)));
    let sent = [
        out(&mut bed, &first).unwrap(),
        out(&mut bed, &last).unwrap(),
    ];
    assert_eq!(
        whole([&sent[0], &sent[1]]),
        datagram((NAT, 100), (PUBLIC, 80))
    );
    let [first, last] = cut(&datagram((PUBLIC, 80), (NAT, 100)));
    let got = [
        back(&mut bed, underlay, &first).unwrap(),
        back(&mut bed, underlay, &last).unwrap(),
    ];
    assert_eq!(
        whole([&got[0], &got[1]]),
        datagram((PUBLIC, 80), (VM1_IP, 5))
    );
    // The same with TCP, whose checksum is in the first piece too, and with echo.
    let mut segment = build::tcp((VM1_IP, 6), (PUBLIC, 80), ACK);
    segment.extend([9; 32]);
    let [first, last] = cut(&segment);
    let sent = [
        out(&mut bed, &first).unwrap(),
        out(&mut bed, &last).unwrap(),
    ];
    assert_eq!(sent[0][20..22], 100_u16.to_be_bytes());
    assert_eq!(
        sent[1][20..],
        segment[44..],
        "the last piece's bytes are nobody's ports"
    );
    let ping = build::icmp(VM1_IP, PUBLIC, 8, 0, [0, 9, 0, 1], &[1; 40]);
    let [first, last] = cut(&ping);
    let sent = [
        out(&mut bed, &first).unwrap(),
        out(&mut bed, &last).unwrap(),
    ];
    let expected = build::icmp(NAT, PUBLIC, 8, 0, [0, 100, 0, 1], &[1; 40]);
    assert_eq!(whole([&sent[0], &sent[1]]), expected);
}

#[test]
fn pieces_to_a_virtual_address_and_to_a_load_balancer() {
    let mut bed = Bed::public();
    let underlay = bed.engine.create_vip("vm1", address(VIP), None).unwrap();
    let [first, last] = cut(&datagram((PUBLIC, 80), (VIP, 7)));
    let got = [
        back(&mut bed, underlay, &first).unwrap(),
        back(&mut bed, underlay, &last).unwrap(),
    ];
    assert_eq!(
        whole([&got[0], &got[1]]),
        datagram((PUBLIC, 80), (VM1_IP, 7))
    );
    let served = "172.22.0.1";
    let underlay = bed
        .engine
        .create_load_balancer(LoadBalancerSpec {
            id: "lb".to_owned(),
            vni: V100,
            address: address(served),
            ports: vec![LbPort {
                protocol: 17,
                port: 80,
            }],
            preferred_underlay: None,
        })
        .unwrap();
    let target = bed
        .engine
        .create_lb_prefix("vm1", address(served), 32, None)
        .unwrap();
    bed.engine
        .create_load_balancer_target("lb", IpAddr::V6(target))
        .unwrap();
    let packet = datagram((PUBLIC, 9), (served, 80));
    let [first, last] = cut(&packet);
    let got = [
        back(&mut bed, underlay, &first).unwrap(),
        back(&mut bed, underlay, &last).unwrap(),
    ];
    assert_eq!(whole([&got[0], &got[1]]), packet);
    // The first piece of a ping for the balancer is not answered: the answer would never get whole.
    let [ping, _] = cut(&build::icmp(PUBLIC, served, 8, 0, [0, 9, 0, 1], &[1; 40]));
    assert_eq!(back(&mut bed, underlay, &ping), Err(DropReason::LbUnserved));
}

#[test]
fn the_filter_judges_pieces_by_the_ports_of_the_first() {
    let mut bed = Bed::public();
    let any = RulePrefix::new(address("0.0.0.0"), 0).unwrap();
    let port = PortMatch {
        lower: Some(53),
        upper: Some(53),
    };
    bed.engine
        .create_firewall_rule(
            "vm1",
            FirewallRule {
                id: "dns".to_owned(),
                direction: RuleDirection::Egress,
                action: FirewallAction::Accept,
                priority: 1,
                source: any,
                destination: any,
                filter: RuleFilter::Udp {
                    source: PortMatch::ANY,
                    destination: port,
                },
            },
        )
        .unwrap();
    let [first, last] = cut(&datagram((VM1_IP, 5), ("10.100.2.1", 54)));
    assert_eq!(out(&mut bed, &first), Err(DropReason::FirewallEgress));
    assert_eq!(out(&mut bed, &last), Err(DropReason::FragmentUnknown));
    let [first, last] = cut(&datagram((VM1_IP, 5), ("10.100.2.1", 53)));
    assert_eq!(out(&mut bed, &first), Ok(first));
    assert_eq!(out(&mut bed, &last), Ok(last));
}

#[test]
fn a_piece_without_its_first_is_dropped() {
    let mut bed = Bed::public();
    for (packet, [first, last]) in [
        datagram((VM1_IP, 5), ("10.100.2.1", 53)),
        build::udp(("2000:100:1::1", 5), ("2000:100:2::1", 53), &[7; 40]),
    ]
    .map(|packet| {
        let pieces = if packet[0] >> 4 == 4 {
            cut(&packet)
        } else {
            cut6(&packet)
        };
        (packet, pieces)
    }) {
        let whole_flows = bed.worker.flow_saturation().0;
        assert_eq!(out(&mut bed, &last), Err(DropReason::FragmentUnknown));
        assert_eq!(out(&mut bed, &packet), Ok(packet.clone()));
        assert_eq!(out(&mut bed, &last), Err(DropReason::FragmentUnknown));
        assert_eq!(out(&mut bed, &first), Ok(first.clone()));
        assert_eq!(out(&mut bed, &last), Ok(last.clone()));
        assert_eq!(
            bed.worker.flow_saturation().0,
            whole_flows + 1,
            "one connection"
        );
        // From elsewhere, the same bytes are another packet's.
        let own = bed.underlay("vm1");
        assert!(back(&mut bed, own, &last).is_err());
        bed.now = bed.now.plus_secs(31);
        assert_eq!(
            out(&mut bed, &last),
            Err(DropReason::FragmentUnknown),
            "too late"
        );
    }
}

#[test]
fn a_first_piece_must_have_the_whole_transport_header() {
    let mut bed = Bed::public();
    let (from, to) = (v4(VM1_IP), v4("10.100.2.1"));
    // As ICMP, this would ask for the time.
    let segment = build::tcp((VM1_IP, 13 << 8), ("10.100.2.1", 2), ACK);
    for (protocol, length, expected) in [
        (6, 8, DropReason::L4Malformed),
        (6, 16, DropReason::L4Malformed),
        (47, 16, DropReason::UnsupportedL4),
        (1, 16, DropReason::IcmpUnsupported),
    ] {
        let piece = build::ipv4_with(protocol, from, to, MORE, &[], &segment[20..20 + length]);
        assert_eq!(out(&mut bed, &piece), Err(expected), "{protocol}");
    }
    // What looks like DHCP inside a later piece is not DHCP.
    let looks_like = build::ipv4_with(17, from, to, 3, &[], &build::udp_datagram(68, 67, &[]));
    assert_eq!(out(&mut bed, &looks_like), Err(DropReason::FragmentUnknown));
}

#[test]
fn a_flood_of_first_pieces_is_bounded() {
    let mut bed = Bed::public();
    let (from, to) = (v4(VM1_IP), v4("10.100.2.1"));
    let bytes = &build::udp_datagram(1, 2, &[0; 16]);
    for identification in 0..20_000_u16 {
        let mut piece = build::ipv4_with(17, from, to, MORE, &[], bytes);
        piece[4..6].copy_from_slice(&identification.to_be_bytes());
        piece[10..12].fill(0);
        let sum = net::checksum::checksum(&piece[..20]).to_be_bytes();
        piece[10..12].copy_from_slice(&sum);
        assert!(out(&mut bed, &piece).is_ok());
    }
    let displaced = bed.worker.counters().fragments_displaced;
    assert!(displaced >= 20_000 - 4_096, "{displaced}");
    assert_eq!(bed.worker.flow_saturation().0, 1);
}
