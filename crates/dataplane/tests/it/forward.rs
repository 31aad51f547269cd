//! Forwarding: local delivery, encapsulation, decapsulation, the checks on both, and the flow cache.

use crate::bed::*;
use crate::build;
use dataplane::{DropReason, Verdict};
use net::Mac;

/// Outer packet as the overlay sends it, spelled out byte by byte.
fn encapsulated(
    uplink: u8,
    from: core::net::Ipv6Addr,
    to: core::net::Ipv6Addr,
    inner: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(ROUTER_MAC.0);
    frame.extend([0x22, 0x22, 0x22, 0x22, 0x22, uplink]);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((inner.len() as u16).to_be_bytes());
    frame.extend([if inner[0] >> 4 == 4 { 4 } else { 41 }, 64]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(inner);
    frame
}

fn delivered(bed: &Bed, port: dataplane::PortId, mac: Mac, ip: &[u8]) -> Vec<u8> {
    let ethertype = if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    build::ethernet(mac, bed.port_mac(port), ethertype, ip)
}

#[test]
fn remote_ipv4_is_encapsulated_first_slowly_then_from_the_cache() {
    let mut bed = Bed::new();
    let request = build::echo("10.100.1.1", "10.100.2.102", true, 7);
    let outer = encapsulated(0, bed.underlay("vm1"), neighbour(), &request);
    let frame = from_guest(&request);
    let slow = [
        ("conntrack", 1),
        ("ipv4_lookup", 1),
        ("ipip_encap", 1),
        ("flows created", 1),
    ];
    bed.check(VM1, &frame, Verdict::Transmit(PF0), &outer, &slow);
    let fast = [("flow_cache", 1), ("ipip_encap", 1)];
    bed.check(VM1, &frame, Verdict::Transmit(PF0), &outer, &fast);
    // The reply finds the same flow and decides its own direction once.
    let reply = build::echo("10.100.2.102", "10.100.1.1", false, 7);
    let frame = from_fabric(bed.underlay("vm1"), &reply);
    let inner = delivered(&bed, VM1, bed.port_mac(VM1), &reply);
    bed.check(
        PF0,
        &frame,
        Verdict::Transmit(VM1),
        &inner,
        &[("ipip_decap", 1), ("conntrack", 1)],
    );
    let fast = [("flow_cache", 1), ("ipip_decap", 1)];
    bed.check(PF0, &frame, Verdict::Transmit(VM1), &inner, &fast);
    // Whichever uplink it comes in on.
    bed.check(PF1, &frame, Verdict::Transmit(VM1), &inner, &fast);
    assert_eq!(bed.worker.flow_saturation(), (1, 1_000));
}

#[test]
fn remote_ipv6_has_next_header_41() {
    let mut bed = Bed::new();
    let request = build::udp(("2000:100:1::1", 1000), ("2000:100:2::7", 2000), b"hello");
    let outer = encapsulated(0, bed.underlay("vm1"), neighbour(), &request);
    let slow = [
        ("conntrack", 1),
        ("ipv6_lookup", 1),
        ("ipip_encap", 1),
        ("flows created", 1),
    ];
    bed.check(
        VM1,
        &from_guest(&request),
        Verdict::Transmit(PF0),
        &outer,
        &slow,
    );
    let fast = [("flow_cache", 1), ("ipip_encap", 1)];
    bed.check(
        VM1,
        &from_guest(&request),
        Verdict::Transmit(PF0),
        &outer,
        &fast,
    );
    let reply = build::udp(("2000:100:2::7", 2000), ("2000:100:1::1", 1000), b"hi");
    let frame = from_fabric(bed.underlay("vm1"), &reply);
    let inner = delivered(&bed, VM1, bed.port_mac(VM1), &reply);
    bed.check(
        PF1,
        &frame,
        Verdict::Transmit(VM1),
        &inner,
        &[("ipip_decap", 1), ("conntrack", 1)],
    );
    bed.check(
        PF0,
        &frame,
        Verdict::Transmit(VM1),
        &inner,
        &[("ipip_decap", 1), ("flow_cache", 1)],
    );
}

#[test]
fn local_delivery_uses_the_learned_mac_at_once() {
    let mut bed = Bed::new();
    let packet = build::tcp(("10.100.1.1", 1000), ("10.100.1.2", 80), 0x02);
    let frame = from_guest(&packet);
    let guess = delivered(&bed, VM2, bed.port_mac(VM2), &packet);
    let slow = [("conntrack", 1), ("ipv4_lookup", 1), ("flows created", 1)];
    bed.check(VM1, &frame, Verdict::Transmit(VM2), &guess, &slow);
    // Learning needs no new decision: the next packet of the cached flow already has the new address.
    let body = build::arp(
        1,
        (GUEST_MAC, v4("10.100.1.2")),
        (Mac::ZERO, v4("10.100.1.2")),
    );
    let _ = bed.send(
        VM2,
        &build::ethernet(Mac::BROADCAST, GUEST_MAC, 0x0806, &body),
    );
    let known = delivered(&bed, VM2, GUEST_MAC, &packet);
    bed.check(
        VM1,
        &frame,
        Verdict::Transmit(VM2),
        &known,
        &[("flow_cache", 1)],
    );
}

#[test]
fn ethernet_padding_is_not_part_of_the_packet() {
    let mut bed = Bed::new();
    let packet = build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), b"x");
    let outer = encapsulated(0, bed.underlay("vm1"), neighbour(), &packet);
    let mut frame = from_guest(&packet);
    frame.resize(60, 0xee);
    for _ in 0..2 {
        let (verdict, bytes) = bed.send(VM1, &frame);
        assert_eq!(
            (verdict, hex(&bytes)),
            (Verdict::Transmit(PF0), hex(&outer))
        );
    }
    let reply = build::udp(("10.100.2.1", 2), ("10.100.1.1", 1), b"");
    let inner = delivered(&bed, VM1, bed.port_mac(VM1), &reply);
    let mut frame = from_fabric(bed.underlay("vm1"), &reply);
    frame.resize(frame.len() + 9, 0xee);
    for _ in 0..2 {
        let (verdict, bytes) = bed.send(PF0, &frame);
        assert_eq!(
            (verdict, hex(&bytes)),
            (Verdict::Transmit(VM1), hex(&inner))
        );
    }
}

#[test]
fn networks_with_the_same_addresses_do_not_meet() {
    // VM1 (VNI 100) and VM3 (VNI 200) have the same addresses and talk to the same far address on the same ports.
    let mut bed = Bed::new();
    let packet = build::udp(("10.100.1.1", 1000), ("10.100.2.1", 2000), b"data");
    let reply = build::udp(("10.100.2.1", 2000), ("10.100.1.1", 1000), b"data");
    for _ in 0..2 {
        for (port, id) in [(VM1, "vm1"), (VM3, "vm3")] {
            let outer = encapsulated(0, bed.underlay(id), neighbour(), &packet);
            let (verdict, bytes) = bed.send(port, &from_guest(&packet));
            assert_eq!(
                (verdict, hex(&bytes)),
                (Verdict::Transmit(PF0), hex(&outer))
            );
            let inner = delivered(&bed, port, bed.port_mac(port), &reply);
            let (verdict, bytes) = bed.send(PF0, &from_fabric(bed.underlay(id), &reply));
            assert_eq!(
                (verdict, hex(&bytes)),
                (Verdict::Transmit(port), hex(&inner))
            );
        }
    }
    assert_eq!(bed.worker.flow_saturation().0, 2);
    // VM2's address means nothing in VNI 200.
    let packet = build::udp(("10.100.1.1", 1000), ("10.100.1.2", 2000), b"data");
    assert_eq!(
        bed.send(VM1, &from_guest(&packet)).0,
        Verdict::Transmit(VM2)
    );
    assert_eq!(
        bed.send(VM3, &from_guest(&packet)).0,
        Verdict::Drop(DropReason::NoRoute)
    );
}

#[test]
fn two_engines_back_to_back() {
    // Two hosts, each with a machine in either network, all with the same two addresses. What one sends the other gets.
    let mut left = Bed::empty(config());
    let mut right = Bed::empty({
        let mut config = config();
        config.host = v6("fc00:9::1");
        config
    });
    let (mut left_ul, mut right_ul) = (Vec::new(), Vec::new());
    for (port, vni) in [(VM1, V100), (VM2, V200)] {
        left_ul.push(left.attach(spec(&format!("l{vni}"), port, vni, "10.0.0.1", "2000::1")));
        right_ul.push(right.attach(spec(&format!("r{vni}"), port, vni, "10.0.0.2", "2000::2")));
    }
    for (index, vni) in [V100, V200].into_iter().enumerate() {
        let route = |bed: &mut Bed, address: &str, hop| {
            let address = build::address(address);
            let length = if address.is_ipv4() { 32 } else { 128 };
            bed.engine
                .create_route(vni, address, length, core::net::IpAddr::V6(hop), 0)
                .unwrap();
        };
        for (to_left, to_right) in [("10.0.0.1", "10.0.0.2"), ("2000::1", "2000::2")] {
            route(&mut left, to_right, right_ul[index]);
            route(&mut right, to_left, left_ul[index]);
        }
    }
    for (round, (here, there)) in [("10.0.0.1", "10.0.0.2"), ("2000::1", "2000::2")]
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
    {
        for port in [VM1, VM2] {
            // The identifier tells the networks apart: an answer in the wrong one would show.
            let request = build::echo(here, there, true, port.0);
            let (verdict, outer) = left.send(port, &from_guest(&request));
            assert_eq!(verdict, Verdict::Transmit(PF0), "round {round}");
            let (verdict, inner) = right.send(PF0, &outer);
            assert_eq!(verdict, Verdict::Transmit(port));
            assert_eq!(hex(&inner[14..]), hex(&request));
            let reply = build::echo(there, here, false, port.0);
            let (verdict, outer) = right.send(port, &from_guest(&reply));
            assert_eq!(verdict, Verdict::Transmit(PF0));
            let (verdict, inner) = left.send(PF1, &outer);
            assert_eq!(verdict, Verdict::Transmit(port));
            assert_eq!(hex(&inner[14..]), hex(&reply));
        }
    }
    assert_eq!(left.worker.flow_saturation().0, 4);
}

#[test]
fn a_machine_sends_only_from_its_own_addresses_and_prefixes() {
    let mut bed = Bed::new();
    let to = ("10.100.2.1", 9);
    let moved = [("conntrack", 1), ("ipv4_lookup", 1)];
    for source in ["10.100.1.2", "10.100.2.9", "192.0.2.1"] {
        let packet = from_guest(&build::udp((source, 1), to, b""));
        bed.check_drop(VM1, &packet, DropReason::SourceSpoofed, &moved);
    }
    // A cached flow of another machine does not let a spoofer in.
    let honest = from_guest(&build::udp(("10.100.1.2", 1), to, b""));
    assert_eq!(bed.send(VM2, &honest).0, Verdict::Transmit(PF0));
    bed.check_drop(VM1, &honest, DropReason::SourceSpoofed, &moved);
    assert_eq!(bed.send(VM2, &honest).0, Verdict::Transmit(PF0));
    // A prefix makes its addresses legal, except those that belong to another machine.
    bed.engine
        .create_prefix("vm1", build::address("10.100.1.0"), 24, None)
        .unwrap();
    let from_prefix = from_guest(&build::udp(("10.100.1.77", 1), to, b""));
    assert_eq!(bed.send(VM1, &from_prefix).0, Verdict::Transmit(PF0));
    bed.check_drop(VM1, &honest, DropReason::SourceSpoofed, &moved);
    bed.engine
        .delete_prefix("vm1", build::address("10.100.1.0"), 24)
        .unwrap();
    bed.check_drop(VM1, &from_prefix, DropReason::SourceSpoofed, &moved);
}

#[test]
fn a_tunnel_delivers_only_what_its_address_stands_for() {
    let mut bed = Bed::new();
    let moved = [("ipip_decap", 1), ("conntrack", 1)];
    let alias = bed
        .engine
        .create_prefix("vm1", build::address("10.7.0.0"), 16, None)
        .unwrap();
    let to_vm1 = build::udp(("10.100.2.1", 1), ("10.100.1.1", 2), b"");
    let to_vm2 = build::udp(("10.100.2.1", 1), ("10.100.1.2", 2), b"");
    let to_prefix = build::udp(("10.100.2.1", 1), ("10.7.1.2", 2), b"");
    let vm1 = bed.underlay("vm1");
    for (underlay, inner, ok) in [
        (vm1, &to_vm1, true),
        (vm1, &to_prefix, true),
        (vm1, &to_vm2, false),
        (alias, &to_prefix, true),
        (alias, &to_vm1, false),
    ] {
        let frame = from_fabric(underlay, inner);
        if ok {
            assert_eq!(bed.send(PF0, &frame).0, Verdict::Transmit(VM1));
        } else {
            bed.check_drop(PF0, &frame, DropReason::DestinationForeign, &moved);
        }
    }
    // Deleting the interface takes its prefixes along.
    bed.engine.delete_interface("vm1").unwrap();
    for underlay in [vm1, alias] {
        let frame = from_fabric(underlay, &to_prefix);
        bed.check_drop(PF0, &frame, DropReason::UnderlayUnknown, &[]);
    }
}

#[test]
fn a_change_of_configuration_is_seen_by_the_next_packet_of_every_flow() {
    let mut bed = Bed::new();
    let packet = from_guest(&build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), b""));
    assert_eq!(bed.send(VM1, &packet).0, Verdict::Transmit(PF0));
    // Only the tunnel of the decision is exchanged.
    let redecided = [("flow_cache", 1), ("ipip_encap", 1), ("flows redecided", 1)];
    // A more specific route to another host.
    let other = v6("fc00:3::1");
    let hop = core::net::IpAddr::V6(other);
    bed.engine
        .create_route(V100, build::address("10.100.2.1"), 32, hop, 0)
        .unwrap();
    let ip = build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), b"");
    let outer = encapsulated(0, bed.underlay("vm1"), other, &ip);
    bed.check(VM1, &packet, Verdict::Transmit(PF0), &outer, &redecided);
    // The next hop moves.
    bed.engine.set_next_hop(PF0, Some(Mac([2, 2, 2, 2, 2, 2])));
    let mut outer = outer;
    outer[..6].copy_from_slice(&[2; 6]);
    bed.check(VM1, &packet, Verdict::Transmit(PF0), &outer, &redecided);
    // All routes go.
    bed.engine
        .reset_vni(V100, dataplane::VniType::Both)
        .unwrap();
    let refused = [("conntrack", 1), ("ipv4_lookup", 1)];
    bed.check_drop(VM1, &packet, DropReason::NoRoute, &refused);
    // Setting the same next hop again is no change.
    let epoch = bed.engine.tables().epoch();
    bed.engine.set_next_hop(PF0, Some(Mac([2; 6])));
    assert_eq!(bed.engine.tables().epoch(), epoch);
}

#[test]
fn a_snapshot_is_not_touched_by_later_changes() {
    let mut bed = Bed::new();
    let old = std::sync::Arc::clone(bed.engine.tables());
    bed.engine
        .reset_vni(V100, dataplane::VniType::Both)
        .unwrap();
    let frame = from_guest(&build::udp(("10.100.1.1", 1), ("10.100.2.1", 2), b""));
    let mut packet = dataplane::PacketBuf::new();
    assert!(packet.fill(&frame));
    assert_eq!(
        bed.worker.process(&old, VM1, &mut packet, bed.now),
        Verdict::Transmit(PF0)
    );
    assert_eq!(bed.send(VM1, &frame).0, Verdict::Drop(DropReason::NoRoute));
}

#[test]
fn options_are_forwarded_and_never_misparsed() {
    let mut bed = Bed::new();
    let (from, to) = (v4("10.100.1.1"), v4("10.100.2.1"));
    let datagram = build::udp_datagram(1, 2, &[7; 24]);
    // Router alert and padding: the transport starts behind the options, so this is the flow of the plain packet.
    let packet = build::ipv4_with(17, from, to, 0, &[148, 4, 0, 0, 1, 1, 1, 0], &datagram);
    assert_eq!(
        bed.send(VM1, &from_guest(&packet)).0,
        Verdict::Transmit(PF0)
    );
    let plain = build::ipv4_with(17, from, to, 0, &[], &datagram);
    assert_eq!(bed.send(VM1, &from_guest(&plain)).0, Verdict::Transmit(PF0));
    assert_eq!(bed.worker.flow_saturation().0, 1);
    assert_eq!(bed.worker.counters().node(dataplane::Node::FlowCache), 1);
    // IPv6: hop-by-hop and destination options are skipped.
    let (from, to) = (v6("2000:100:1::1"), v6("2000:100:2::1"));
    let options = [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
    let with_options = build::ipv6(0, from, to, &[&options[..], &datagram].concat());
    assert_eq!(
        bed.send(VM1, &from_guest(&with_options)).0,
        Verdict::Transmit(PF0)
    );
    let plain = build::ipv6(17, from, to, &datagram);
    assert_eq!(bed.send(VM1, &from_guest(&plain)).0, Verdict::Transmit(PF0));
    assert_eq!(bed.worker.flow_saturation().0, 2);
}

#[test]
fn icmp_errors_follow_their_flow() {
    let mut bed = Bed::new();
    let request = build::udp(("10.100.1.1", 5000), ("10.100.2.1", 53), b"query");
    // A router on the way tells VM1 that its packet was too big; the quotation is cut to eight bytes of UDP.
    let error = |quoted: &[u8]| {
        build::icmp(
            "10.100.2.254",
            "10.100.1.1",
            3,
            4,
            [0, 0, 5, 0],
            &quoted[..28],
        )
    };
    let frame = from_fabric(bed.underlay("vm1"), &error(&request));
    let moved = [("ipip_decap", 1), ("conntrack", 1)];
    bed.check_drop(PF0, &frame, DropReason::IcmpUnrelated, &moved);
    assert_eq!(
        bed.send(VM1, &from_guest(&request)).0,
        Verdict::Transmit(PF0)
    );
    let inner = delivered(&bed, VM1, bed.port_mac(VM1), &error(&request));
    bed.check(PF0, &frame, Verdict::Transmit(VM1), &inner, &moved);
    // Not about a packet of the receiver: quoted in the wrong direction.
    let reversed = build::udp(("10.100.2.1", 53), ("10.100.1.1", 5000), b"answer");
    let frame = from_fabric(bed.underlay("vm1"), &error(&reversed));
    bed.check_drop(PF0, &frame, DropReason::IcmpUnrelated, &moved);
    // VM1 refuses a packet of an incoming flow; time exceeded and parameter problem pass as well.
    let incoming = build::udp(("10.100.2.1", 53), ("10.100.1.1", 6000), b"late answer");
    assert_eq!(
        bed.send(PF0, &from_fabric(bed.underlay("vm1"), &incoming))
            .0,
        Verdict::Transmit(VM1)
    );
    for (kind, code) in [(3, 3), (11, 0), (12, 0)] {
        let refusal = build::icmp("10.100.1.1", "10.100.2.1", kind, code, [0; 4], &incoming);
        assert_eq!(
            bed.send(VM1, &from_guest(&refusal)).0,
            Verdict::Transmit(PF0)
        );
        let spoofed = build::icmp("10.100.2.7", "10.100.2.1", kind, code, [0; 4], &incoming);
        let verdict = bed.send(VM1, &from_guest(&spoofed)).0;
        assert_eq!(verdict, Verdict::Drop(DropReason::SourceSpoofed));
    }
    // ICMPv6 "packet too big" about a ping.
    let ping = build::echo("2000:100:1::1", "2000:100:2::1", true, 9);
    assert_eq!(bed.send(VM1, &from_guest(&ping)).0, Verdict::Transmit(PF0));
    let error = build::icmp("2000:100:2::ff", "2000:100:1::1", 2, 0, [0, 0, 5, 0], &ping);
    assert_eq!(
        bed.send(PF0, &from_fabric(bed.underlay("vm1"), &error)).0,
        Verdict::Transmit(VM1)
    );
    assert_eq!(bed.worker.flow_saturation().0, 3, "errors make no flows");
}

#[test]
fn bursts_keep_order_and_answer_every_packet() {
    let mut bed = Bed::new();
    let mut frames = Vec::new();
    for index in 0..150_u16 {
        frames.push(match index % 5 {
            0 => from_guest(&build::udp(("10.100.1.1", 1), ("10.100.2.1", index), b"")),
            1 => from_guest(&build::udp(
                ("10.100.1.1", 1),
                ("10.100.2.1", 7),
                b"same flow",
            )),
            2 => from_guest(&build::udp(("10.9.9.9", 1), ("10.100.2.1", 7), b"spoofed")),
            3 => vec![0; 5],
            _ => from_guest(&build::tcp(("10.100.1.1", 5), ("10.100.1.2", index), 0x10)),
        });
    }
    let mut one_by_one = Bed::new();
    let expected: Vec<_> = frames
        .iter()
        .map(|frame| one_by_one.send(VM1, frame))
        .collect();
    let mut packets: Vec<_> = frames
        .iter()
        .map(|frame| {
            let mut packet = dataplane::PacketBuf::new();
            assert!(packet.fill(frame));
            packet
        })
        .collect();
    let mut verdicts = vec![Verdict::Drop(DropReason::Bug); packets.len()];
    bed.engine
        .process_burst(&mut bed.worker, VM1, &mut packets, &mut verdicts, bed.now);
    for (index, (verdict, bytes)) in expected.into_iter().enumerate() {
        assert_eq!(verdicts[index], verdict, "packet {index}");
        if !matches!(verdict, Verdict::Drop(_)) {
            assert_eq!(hex(packets[index].frame()), hex(&bytes), "packet {index}");
        }
    }
    assert_eq!(
        listing(bed.worker.counters()),
        listing(one_by_one.worker.counters())
    );
}
