//! Virtual services on the packet path.

use crate::bed::*;
use crate::build;
use crate::scene::check_checksums;
use core::net::Ipv6Addr;
use dataplane::{DropReason, PortId, Verdict, VirtualServiceSpec};
use net::Mac;
use net::tcp::{ACK, SYN};

const VM1_IP: &str = "10.100.1.1";
const VIRTUAL: &str = "1.2.3.4";
const SERVICE: &str = "2001:db8::53";

fn bed() -> Bed {
    let mut config = config();
    config.virtual_services = [17, 6]
        .map(|protocol| VirtualServiceSpec {
            protocol,
            address: v4(VIRTUAL),
            port: 53,
            service: v6(SERVICE),
            service_port: 5353,
        })
        .to_vec();
    Bed::with(config)
}

fn underlay(index: u8) -> Ipv6Addr {
    let mut octets = v6("fc00:1::").octets();
    octets[8..].copy_from_slice(&[0xd0, 0xff, 0x40, 0, index, 0, 0, 0]);
    Ipv6Addr::from(octets)
}

/// What leaves towards the service: uplink and IP packet.
fn ask(bed: &mut Bed, ip: &[u8]) -> (PortId, Vec<u8>) {
    let (verdict, frame) = bed.send(VM1, &from_guest(ip));
    let Verdict::Transmit(port) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(frame[..6], ROUTER_MAC.0);
    assert_eq!(frame[12..14], [0x86, 0xdd]);
    check_checksums(&frame[14..]);
    (port, frame[14..].to_vec())
}

fn answer(bed: &mut Bed, ip: &[u8]) -> (Verdict, Vec<u8>) {
    let frame = build::ethernet(Mac([0x22; 6]), ROUTER_MAC, 0x86dd, ip);
    bed.send(PF0, &frame)
}

fn hops(mut packet: Vec<u8>, hop_limit: u8) -> Vec<u8> {
    packet[7] = hop_limit;
    packet
}

#[test]
fn udp_there_and_back() {
    let mut bed = bed();
    let from = underlay(0).to_string();
    for (port, source_port) in [(12345, 1025), (12346, 1026), (12345, 1025)] {
        let (uplink, sent) = ask(
            &mut bed,
            &build::udp(("10.100.1.1", port), (VIRTUAL, 53), b"query"),
        );
        let expected = hops(
            build::udp((&from, source_port), (SERVICE, 5353), b"query"),
            61,
        );
        assert_eq!((uplink, hex(&sent)), (PF0, hex(&expected)));
        let reply = build::udp((SERVICE, 5353), (&from, source_port), b"reply");
        let (verdict, frame) = answer(&mut bed, &reply);
        assert_eq!(verdict, Verdict::Transmit(VM1));
        check_checksums(&frame[14..]);
        let mut expected = build::udp((VIRTUAL, 53), ("10.100.1.1", port), b"reply");
        expected[4..6].fill(0);
        expected[8] = 63;
        expected[10..12].copy_from_slice(&frame[24..26]);
        assert_eq!(hex(&frame[14..]), hex(&expected));
    }
    let unknown = build::udp((SERVICE, 5353), (&from, 2000), b"reply");
    assert_eq!(
        answer(&mut bed, &unknown).0,
        Verdict::Drop(DropReason::VirtualServiceUnknown)
    );
    let other = build::udp((SERVICE, 5354), (&from, 1025), b"reply");
    assert_eq!(
        answer(&mut bed, &other).0,
        Verdict::Drop(DropReason::UplinkNotTunnel)
    );
    let spoofed = from_guest(&build::udp(("10.100.1.9", 1), (VIRTUAL, 53), b"query"));
    bed.check_drop(VM1, &spoofed, DropReason::SourceSpoofed, &[("virtsvc", 1)]);
}

#[test]
fn machines_are_told_the_way_to_the_services() {
    let mut bed = bed();
    let discover = build::udp(
        ("0.0.0.0", 68),
        ("255.255.255.255", 67),
        &crate::dhcp::message(1, &[255]),
    );
    let (verdict, offer) = bed.send(VM1, &from_guest(&discover));
    assert_eq!(verdict, Verdict::Reply(VM1));
    let on_link = [16, 169, 254, 0, 0, 0, 0];
    let default = [0, 169, 254, 0, 1];
    let services = [24, 169, 254, 1, 169, 254, 0, 1];
    let routes = [&[121, 20][..], &on_link, &default, &services].concat();
    assert!(
        offer.windows(routes.len()).any(|part| part == routes),
        "{}",
        hex(&offer)
    );
}

#[test]
fn the_traffic_class_stays_on_its_side() {
    let mut bed = bed();
    let from = underlay(0).to_string();
    let plain = build::udp(("10.100.1.1", 7), (VIRTUAL, 53), b"query");
    let mut marked = plain.clone();
    marked[1] = 0xb9;
    marked[10..12].fill(0);
    let sum = net::checksum::checksum(&marked[..20]).to_be_bytes();
    marked[10..12].copy_from_slice(&sum);
    let (_, sent) = ask(&mut bed, &marked);
    assert_eq!(sent[..4], [0x60, 0, 0, 0]);
    assert_eq!(hex(&sent), hex(&ask(&mut bed, &plain).1));
    let mut reply = build::udp((SERVICE, 5353), (&from, 1025), b"reply");
    reply[..2].copy_from_slice(&[0x6b, 0x90]);
    let (verdict, frame) = answer(&mut bed, &reply);
    assert_eq!(verdict, Verdict::Transmit(VM1));
    assert_eq!(frame[14..16], [0x45, 0]);
    check_checksums(&frame[14..]);
}

#[test]
fn tcp_has_ports_of_its_own_and_they_are_reused() {
    let mut bed = bed();
    let from = underlay(1).to_string();
    let syn = |port| build::tcp(("10.100.1.1", port), (VIRTUAL, 53), SYN);
    for (port, source_port) in [(100, 1025), (101, 1026)] {
        let (_, sent) = ask(&mut bed, &syn(port));
        assert_eq!(
            hex(&sent),
            hex(&hops(
                build::tcp((&from, source_port), (SERVICE, 5353), SYN),
                61
            ))
        );
    }
    let (verdict, _) = answer(
        &mut bed,
        &build::tcp((SERVICE, 5353), (&from, 1026), SYN | ACK),
    );
    assert_eq!(verdict, Verdict::Transmit(VM1));
    assert_eq!(bed.worker.virtual_services()[1].live(bed.now), 2);
    // The machine is replaced: its successor gets nothing.
    bed.engine.delete_interface("vm1").unwrap();
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", ""));
    let (verdict, _) = answer(&mut bed, &build::tcp((SERVICE, 5353), (&from, 1026), ACK));
    assert_eq!(verdict, Verdict::Drop(DropReason::VirtualServiceUnknown));
}

#[test]
fn load_is_shared_between_the_uplinks() {
    let mut config = config();
    config.wcmp_percent = 50;
    config.virtual_services = vec![VirtualServiceSpec {
        protocol: 17,
        address: v4(VIRTUAL),
        port: 53,
        service: v6(SERVICE),
        service_port: 53,
    }];
    let mut bed = Bed::with(config);
    for (port, uplink) in [(12345, PF0), (12348, PF1), (12351, PF1), (12357, PF1)] {
        let (used, _) = ask(
            &mut bed,
            &build::udp(("10.100.1.1", port), (VIRTUAL, 53), b"query"),
        );
        assert_eq!(used, uplink, "{port}");
    }
}

/// Requests grow by 20 bytes, pieces of them by 28; the machine is told what fits.
#[test]
fn what_fits_the_uplink() {
    let mut bed = bed();
    bed.engine.set_uplink_mtu(PF0, 1_500);
    let whole = |length: usize| {
        let l4 = build::udp_datagram(12_345, 53, &vec![7; length - 28]);
        build::ipv4_with(17, v4(VM1_IP), v4(VIRTUAL), 0x4000, &[], &l4)
    };
    let piece = |length: usize| {
        let mut l4 = build::udp_datagram(12_346, 53, &vec![7; length - 28]);
        l4[6] = 1;
        build::ipv4_with(17, v4(VM1_IP), v4(VIRTUAL), 0x2000, &[], &l4)
    };
    let makers: [&dyn Fn(usize) -> Vec<u8>; 2] = [&whole, &piece];
    for (make, longest) in makers.into_iter().zip([1_480_u16, 1_472]) {
        let (verdict, frame) = bed.send(VM1, &from_guest(&make(longest.into())));
        assert_eq!((verdict, frame.len()), (Verdict::Transmit(PF0), 14 + 1_500));
        let (verdict, frame) = bed.send(VM1, &from_guest(&make(usize::from(longest) + 8)));
        assert_eq!(verdict, Verdict::Reply(VM1));
        check_checksums(&frame[14..]);
        let told = longest.to_be_bytes();
        assert_eq!(frame[34..36], [3, 4]);
        assert_eq!(frame[38..42], [0, 0, told[0], told[1]]);
    }
}
