//! ARP, neighbour discovery and the periodic announcements, against golden bytes.

use crate::bed::*;
use crate::build;
use dataplane::{DropReason, Instant, PacketBuf, Verdict};
use net::Mac;

const GATEWAY: &str = "169.254.0.1";

fn arp_request(sender: &str, target: &str) -> Vec<u8> {
    let body = build::arp(1, (GUEST_MAC, v4(sender)), (Mac::ZERO, v4(target)));
    build::ethernet(Mac::BROADCAST, GUEST_MAC, 0x0806, &body)
}

#[test]
fn gateway_is_answered_to_any_sender() {
    let mut bed = Bed::new();
    for sender in ["0.0.0.0", "10.100.1.1", "10.9.9.9"] {
        let mac = bed.port_mac(VM1);
        let body = build::arp(2, (mac, v4(GATEWAY)), (GUEST_MAC, v4(sender)));
        let reply = build::ethernet(GUEST_MAC, mac, 0x0806, &body);
        bed.check(
            VM1,
            &arp_request(sender, GATEWAY),
            Verdict::Reply(VM1),
            &reply,
            &[("arp", 1)],
        );
    }
}

#[test]
fn only_the_machines_own_address_teaches_its_mac() {
    let mut bed = Bed::new();
    let port_mac = bed.port_mac(VM1);
    assert_eq!(bed.engine.machine_mac(VM1), Some(port_mac));
    let _ = bed.send(VM1, &arp_request("10.9.9.9", GATEWAY));
    assert_eq!(bed.engine.machine_mac(VM1), Some(port_mac));
    let announcement = arp_request("10.100.1.1", "10.100.1.1");
    bed.check_drop(VM1, &announcement, DropReason::ArpLearned, &[("arp", 1)]);
    assert_eq!(bed.engine.machine_mac(VM1), Some(GUEST_MAC));
    // It stays over delete and create on the same port.
    bed.engine.delete_interface("vm1").unwrap();
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", ""));
    assert_eq!(bed.engine.machine_mac(VM1), Some(GUEST_MAC));
    assert_eq!(bed.engine.machine_mac(PF0), None);
}

#[test]
fn other_arp_is_dropped() {
    let mut bed = Bed::new();
    let foreign = arp_request("10.9.9.9", "10.100.1.2");
    bed.check_drop(VM1, &foreign, DropReason::ArpNotForGateway, &[("arp", 1)]);
    let body = build::arp(2, (GUEST_MAC, v4("10.9.9.9")), (Mac::ZERO, v4(GATEWAY)));
    let reply = build::ethernet(Mac::BROADCAST, GUEST_MAC, 0x0806, &body);
    bed.check_drop(VM1, &reply, DropReason::ArpNotForGateway, &[("arp", 1)]);
    let mut wrong_type = arp_request("10.100.1.1", GATEWAY);
    wrong_type[15] = 6;
    bed.check_drop(VM1, &wrong_type, DropReason::ArpMalformed, &[("arp", 1)]);
    let short = &arp_request("10.100.1.1", GATEWAY)[..41];
    bed.check_drop(VM1, short, DropReason::ArpMalformed, &[("arp", 1)]);
}

fn solicitation(source: &str, target: &str) -> Vec<u8> {
    let mut body = v6(target).octets().to_vec();
    body.extend([1, 1]);
    body.extend(GUEST_MAC.0);
    from_guest(&build::icmp(
        source,
        "ff02::1:ff00:1",
        135,
        0,
        [0; 4],
        &body,
    ))
}

/// Ethernet, IPv6 and ICMPv6 header of what the gateway sends, with the checksum left to the builder.
fn advertisement(
    from: Mac,
    to: Mac,
    destination: &str,
    kind: u8,
    first: [u8; 4],
    rest: &[u8],
) -> Vec<u8> {
    let mut packet = build::icmp("fe80::1", destination, kind, 0, first, rest);
    packet[7] = 255;
    build::ethernet(to, from, 0x86dd, &packet)
}

fn neighbour_advertisement(
    from: Mac,
    to: Mac,
    destination: &str,
    flags: u8,
    option: bool,
) -> Vec<u8> {
    let mut rest = v6("fe80::1").octets().to_vec();
    if option {
        rest.extend([2, 1]);
        rest.extend(from.0);
    }
    advertisement(from, to, destination, 136, [flags, 0, 0, 0], &rest)
}

fn router_advertisement(from: Mac, to: Mac, destination: &str) -> Vec<u8> {
    let mut rest = vec![0; 8];
    rest.extend([1, 1]);
    rest.extend(from.0);
    advertisement(from, to, destination, 134, [0xff, 0xc0, 0xff, 0xff], &rest)
}

#[test]
fn neighbour_solicitation_for_the_gateway() {
    let mut bed = Bed::new();
    let mac = bed.port_mac(VM1);
    let request = solicitation("fe80::5054:ff:fe00:1", "fe80::1");
    let reply = neighbour_advertisement(mac, GUEST_MAC, "fe80::5054:ff:fe00:1", 0xe0, true);
    bed.check(
        VM1,
        &request,
        Verdict::Reply(VM1),
        &reply,
        &[("ipv6_nd", 1)],
    );
    assert_eq!(bed.engine.machine_mac(VM1), Some(GUEST_MAC));
    // A sender without an address cannot be sent to; the answer goes to all nodes and is not "solicited".
    let request = solicitation("::", "fe80::1");
    let reply = neighbour_advertisement(mac, GUEST_MAC, "ff02::1", 0xa0, true);
    bed.check(
        VM1,
        &request,
        Verdict::Reply(VM1),
        &reply,
        &[("ipv6_nd", 1)],
    );
}

#[test]
fn neighbour_solicitations_that_get_no_answer() {
    let mut bed = Bed::new();
    let other = solicitation("::", "fe80::5054:ff:fe00:1");
    bed.check_drop(VM1, &other, DropReason::NdNotForGateway, &[("ipv6_nd", 1)]);
    let short = from_guest(&build::icmp("fe80::2", "fe80::1", 135, 0, [0; 4], &[0; 15]));
    bed.check_drop(VM1, &short, DropReason::NdMalformed, &[("ipv6_nd", 1)]);
    bed.attach(spec("vm4", VM4, V100, "10.100.1.4", ""));
    let request = solicitation("fe80::2", "fe80::1");
    bed.check_drop(VM4, &request, DropReason::NdDisabled, &[("ipv6_nd", 1)]);
    let mut bed = Bed::with({
        let mut config = config();
        config.ipv6_overlay = false;
        config
    });
    bed.check_drop(VM1, &request, DropReason::NdDisabled, &[("ipv6_nd", 1)]);
}

#[test]
fn router_solicitation() {
    let mut bed = Bed::new();
    let mac = bed.port_mac(VM1);
    let request = from_guest(&build::icmp("fe80::2", "ff02::2", 133, 0, [0; 4], &[]));
    let reply = router_advertisement(mac, GUEST_MAC, "fe80::2");
    bed.check(
        VM1,
        &request,
        Verdict::Reply(VM1),
        &reply,
        &[("ipv6_nd", 1)],
    );
    let request = from_guest(&build::icmp("::", "ff02::2", 133, 0, [0; 4], &[]));
    let reply = router_advertisement(mac, GUEST_MAC, "ff02::1");
    bed.check(
        VM1,
        &request,
        Verdict::Reply(VM1),
        &reply,
        &[("ipv6_nd", 1)],
    );
}

fn round(bed: &mut Bed, now: Instant) -> Vec<(u16, Vec<u8>)> {
    let mut packet = PacketBuf::new();
    let mut sent = Vec::new();
    while let Some(port) = bed.engine.tick(now, &mut packet) {
        sent.push((port.0, packet.frame().to_vec()));
    }
    sent
}

fn gratuitous(mac: Mac, target: &str) -> Vec<u8> {
    let body = build::arp(1, (mac, v4(GATEWAY)), (Mac::ZERO, v4(target)));
    build::ethernet(Mac::BROADCAST, mac, 0x0806, &body)
}

#[test]
fn periodic_announcements() {
    let mut bed = Bed::empty(config());
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", "2000::1"));
    bed.attach(spec("vm2", VM2, V100, "10.100.1.2", ""));
    let start = Instant::from_secs(100);
    assert_eq!(
        round(&mut bed, start),
        vec![],
        "the first round is due after a period"
    );
    let (mac1, mac2) = (bed.port_mac(VM1), bed.port_mac(VM2));
    let first = round(&mut bed, start.plus_secs(5));
    let expected = vec![
        (2, gratuitous(mac1, "10.100.1.1")),
        (
            2,
            router_advertisement(mac1, Mac::IPV6_ALL_NODES, "ff02::1"),
        ),
        (
            2,
            neighbour_advertisement(mac1, Mac::IPV6_ALL_NODES, "ff02::1", 0xa0, false),
        ),
        (3, gratuitous(mac2, "10.100.1.2")),
    ];
    assert_eq!(first, expected);
    // Once the machine has spoken, the announcement asks nothing any more.
    let _ = bed.send(VM2, &arp_request("10.100.1.2", "10.100.1.2"));
    let second = round(&mut bed, start.plus_secs(10));
    assert_eq!(second[3], (3, gratuitous(mac2, GATEWAY)));
}

#[test]
fn a_changed_address_is_asked_for_until_it_is_heard_twice() {
    let mut bed = Bed::empty(config());
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", ""));
    let forged = |mac: Mac| {
        let body = build::arp(1, (mac, v4("10.100.1.1")), (Mac::ZERO, v4("10.100.1.1")));
        build::ethernet(Mac::BROADCAST, mac, 0x0806, &body)
    };
    let (question, statement) = {
        let mac = bed.port_mac(VM1);
        (gratuitous(mac, "10.100.1.1"), gratuitous(mac, GATEWAY))
    };
    let mut now = Instant::from_secs(100);
    assert_eq!(round(&mut bed, now), vec![]);
    let other = Mac([2, 0, 0, 0, 0, 9]);
    for (heard, then_sent) in [
        (GUEST_MAC, &statement),
        // Something on the machine claims another address, then the machine itself answers our question.
        (other, &question),
        (GUEST_MAC, &question),
        (GUEST_MAC, &statement),
    ] {
        let _ = bed.send(VM1, &forged(heard));
        assert_eq!(bed.engine.machine_mac(VM1), Some(heard));
        now = now.plus_secs(5);
        assert_eq!(round(&mut bed, now), vec![(2, then_sent.clone())]);
    }
}

#[test]
fn periodic_rounds_slow_down_after_initialization() {
    let mut bed = Bed::empty(config());
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", ""));
    let start = Instant::from_secs(100);
    let mut at = Vec::new();
    for second in 0..100 {
        if !round(&mut bed, start.plus_secs(second)).is_empty() {
            at.push(second);
        }
    }
    assert_eq!(at, vec![5, 10, 15, 20, 25, 30, 60, 90]);
    assert_eq!(bed.engine.next_tick(), Some(start.plus_secs(120)));
}
