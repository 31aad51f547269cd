//! Every reason to drop a packet, provoked.

use crate::bed::*;
use crate::build::address;
use crate::scene::*;
use crate::{build, dhcp};
use dataplane::{DropReason, LbPort, LoadBalancerSpec, Packet, PacketBuf, PortId, Verdict};
use net::Mac;

/// A host, a port and a packet that is dropped there for `reason`. A new reason does not compile without an entry here.
fn provoke(reason: DropReason) -> Option<(Bed, PortId, PacketBuf)> {
    let mut bed = Bed::new();
    let far = "10.100.2.1";
    let plain = || build::udp(("10.100.1.1", 1), (far, 2), b"");
    let (from, to) = (v4("10.100.1.1"), v4(far));
    let (from6, to6) = (v6("2000:100:1::1"), v6("2000:100:2::1"));
    let arp = |opcode, sender: &str, target: &str| {
        let body = build::arp(opcode, (GUEST_MAC, v4(sender)), (Mac::ZERO, v4(target)));
        build::ethernet(Mac::BROADCAST, GUEST_MAC, 0x0806, &body)
    };
    let solicit = |target: &str| {
        from_guest(&build::icmp(
            "fe80::2",
            "fe80::1",
            135,
            0,
            [0; 4],
            &v6(target).octets(),
        ))
    };
    let discover =
        |bytes: &[u8]| from_guest(&build::udp(("0.0.0.0", 68), ("255.255.255.255", 67), bytes));
    let (port, frame) = match reason {
        DropReason::Bug => return None,
        DropReason::FirewallEgress
        | DropReason::FirewallIngress
        | DropReason::LbUnserved
        | DropReason::LbNoTarget
        | DropReason::NatUnsolicited
        | DropReason::NatExhausted
        | DropReason::NatTableFull
        | DropReason::FragmentUnknown
        | DropReason::HopsExceeded
        | DropReason::NotTranslatable
        | DropReason::TotalRate
        | DropReason::PublicRate
        | DropReason::VirtualServiceFull
        | DropReason::VirtualServiceUnknown => {
            let (host, port, frame) = crate::provoke_services::provoke(reason)?;
            bed = host;
            (port, frame)
        }
        DropReason::UnknownPort => (PortId(99), from_guest(&plain())),
        DropReason::NoInterface => (VM4, from_guest(&plain())),
        DropReason::Runt => (VM1, vec![0xff; 13]),
        DropReason::UnsupportedEthertype => {
            (VM1, build::ethernet(Mac::ZERO, GUEST_MAC, 0x8100, &plain()))
        }
        DropReason::ArpMalformed => (VM1, build::ethernet(Mac::ZERO, GUEST_MAC, 0x0806, &[0; 28])),
        DropReason::ArpNotForGateway => (VM1, arp(1, "10.100.1.9", "10.100.1.2")),
        DropReason::ArpLearned => (VM1, arp(2, "10.100.1.1", "169.254.0.1")),
        DropReason::NdDisabled => {
            bed.attach(spec("vm4", VM4, V100, "10.100.1.4", ""));
            (VM4, solicit("fe80::1"))
        }
        DropReason::NdMalformed => (
            VM1,
            from_guest(&build::icmp("fe80::2", "fe80::1", 135, 0, [0; 4], &[])),
        ),
        DropReason::NdNotForGateway => (VM1, solicit("fe80::3")),
        DropReason::UplinkNotTunnel => (PF0, from_guest(&plain())),
        DropReason::UnderlayUnknown => (PF0, from_fabric(v6("fc00:1::d000:0:0:99"), &plain())),
        DropReason::Ipv4Malformed => (VM1, from_guest(&plain()[..24])),
        DropReason::Ipv6Malformed => (VM1, from_guest(&build::ipv6(17, from6, to6, b"x")[..40])),
        DropReason::SourceRoute => {
            let options = [1, 131, 7, 4, 10, 0, 0, 1];
            (
                VM1,
                from_guest(&build::ipv4_with(17, from, to, 0, &options, &[0; 8])),
            )
        }
        DropReason::ExtensionHeaders => {
            let chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(9);
            (VM1, from_guest(&build::ipv6(60, from6, to6, &chain)))
        }
        DropReason::UnsupportedL4 => (VM1, from_guest(&build::ipv4(132, from, to, &[0; 12]))),
        DropReason::L4Malformed => (VM1, from_guest(&build::ipv4(17, from, to, &[0; 8]))),
        DropReason::IcmpUnsupported => (
            VM1,
            from_guest(&build::icmp("10.100.1.1", far, 5, 0, [0; 4], &plain())),
        ),
        DropReason::IcmpUnrelated => (
            VM1,
            from_guest(&build::icmp("10.100.1.1", far, 3, 3, [0; 4], &plain())),
        ),
        DropReason::SourceSpoofed => (VM1, from_guest(&build::udp(("10.1.1.1", 1), (far, 2), b""))),
        DropReason::DestinationForeign => (
            PF0,
            from_fabric(
                bed.underlay("vm2"),
                &build::udp((far, 1), ("10.100.1.1", 2), b""),
            ),
        ),
        DropReason::Multicast => (
            VM1,
            from_guest(&build::udp(("10.100.1.1", 1), ("224.0.0.251", 5353), b"")),
        ),
        DropReason::NotForwardable => (
            VM1,
            from_guest(&build::echo("10.100.1.1", "169.254.0.1", true, 1)),
        ),
        DropReason::NoRoute => (
            VM1,
            from_guest(&build::udp(("10.100.1.1", 1), ("8.8.8.8", 53), b"")),
        ),
        DropReason::NoUplink => {
            bed.engine.set_link(PF0, false);
            bed.engine.set_link(PF1, false);
            (VM1, from_guest(&plain()))
        }
        DropReason::NoHeadroom => {
            let frame = from_guest(&plain());
            let mut packet = PacketBuf::new();
            packet.set_received(frame.len());
            assert!(packet.prepend(packet.headroom() - 39));
            packet.frame_mut()[..frame.len()].copy_from_slice(&frame);
            assert!(packet.resize(frame.len()));
            return Some((bed, VM1, packet));
        }
        DropReason::FlowTableFull => {
            let mut config = config();
            config.limits.flows_max = 1;
            bed = Bed::with(config);
            assert_eq!(
                bed.send(VM1, &from_guest(&plain())).0,
                Verdict::Transmit(PF0)
            );
            (
                VM1,
                from_guest(&build::udp(("10.100.1.1", 1), (far, 3), b"")),
            )
        }
        DropReason::AdjacencyTableFull => {
            let mut config = config();
            config.limits.adjacencies_max = 1;
            bed = Bed::with(config);
            assert_eq!(
                bed.send(VM1, &from_guest(&plain())).0,
                Verdict::Transmit(PF0)
            );
            // Another tunnel, because the next header differs.
            let echo = build::echo("2000:100:1::1", "2000:100:2::1", true, 1);
            (VM1, from_guest(&echo))
        }
        DropReason::PacketTooBig => {
            let bytes = build::udp_datagram(1, 2, &[]);
            let first = build::ipv4_with(17, from, to, 0x2000, &[], &bytes);
            let _ = bed.send(VM1, &from_guest(&first));
            bed.engine.set_uplink_mtu(PF0, 67);
            // A fragment that is not the first: no error may be sent about it.
            let fragment = build::ipv4_with(17, from, to, 100, &[], &[0; 40]);
            (VM1, from_guest(&fragment))
        }
        DropReason::DhcpMalformed => (VM1, discover(b"too short")),
        DropReason::DhcpIgnored => (VM1, discover(&dhcp::message(7, &[]))),
        DropReason::DhcpNoAddress => {
            bed.attach(spec("vm4", VM4, V100, "", "2000:100:1::4"));
            (VM4, discover(&dhcp::message(1, &[])))
        }
        DropReason::DhcpTooLong => {
            let mut config = config();
            config.dhcp.dns_ipv4 = vec![v4("9.9.9.9"); 400];
            bed = Bed::with(config);
            (VM1, discover(&dhcp::message(1, &[])))
        }
    };
    let mut packet = PacketBuf::new();
    assert!(packet.fill(&frame));
    Some((bed, port, packet))
}

#[test]
fn every_reason_is_provoked_and_counted_once() {
    for reason in DropReason::ALL {
        let Some((mut bed, port, mut packet)) = provoke(*reason) else {
            assert_eq!(*reason, DropReason::Bug);
            continue;
        };
        let before = listing(bed.worker.counters());
        let verdict = bed
            .engine
            .process(&mut bed.worker, port, &mut packet, bed.now);
        assert_eq!(verdict, Verdict::Drop(*reason));
        let mut moved: Vec<_> = listing(bed.worker.counters())
            .into_iter()
            .filter(|(name, count)| name.starts_with("drop") && *count != before[name])
            .map(|(name, count)| (name.clone(), count - before[&name]))
            .collect();
        moved.sort();
        let name = format!("drop {}", reason.name());
        assert_eq!(moved, vec![("drop".to_owned(), 1), (name, 1)], "{reason:?}");
    }
}

#[test]
fn names_are_unique() {
    let names: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
    assert_eq!(names.len(), DropReason::ALL.len());
}

#[test]
fn local_scope_and_group_addresses_are_not_forwarded() {
    let mut bed = Bed::new();
    bed.route(V100, "0.0.0.0", 0);
    bed.route(V100, "::", 0);
    let (own, own6) = ("10.100.1.1", "2000:100:1::1");
    use DropReason::{Multicast, NotForwardable, SourceSpoofed};
    for (from, to, reason) in [
        (own, "255.255.255.255", Multicast),
        (own, "239.1.1.1", Multicast),
        (own, "127.0.0.1", NotForwardable),
        (own, "0.1.2.3", NotForwardable),
        (own, "169.254.1.1", NotForwardable),
        ("0.0.0.0", "10.100.2.1", NotForwardable),
        ("169.254.7.7", "10.100.2.1", NotForwardable),
        ("10.100.1.3", "10.100.2.1", SourceSpoofed),
        (own6, "ff02::fb", Multicast),
        (own6, "ff0e::1", Multicast),
        (own6, "fe80::1", NotForwardable),
        (own6, "::1", NotForwardable),
        (own6, "::", NotForwardable),
        ("fe80::5", "2000:100:2::1", NotForwardable),
        ("::", "2000:100:2::1", NotForwardable),
        ("2000:100:1::3", "2000:100:2::1", SourceSpoofed),
    ] {
        let packet = from_guest(&build::udp((from, 1), (to, 2), b""));
        assert_eq!(
            bed.send(VM1, &packet).0,
            Verdict::Drop(reason),
            "{from} to {to}"
        );
    }
    // From the fabric as well: nobody may pose as the gateway, and a group sends nothing.
    for (from, to) in [
        ("169.254.0.1", own),
        ("224.0.0.5", own),
        ("255.255.255.255", own),
        ("ff02::1", own6),
    ] {
        let forged = build::udp((from, 67), (to, 68), b"");
        let frame = from_fabric(bed.underlay("vm1"), &forged);
        let verdict = bed.send(PF0, &frame).0;
        assert_eq!(verdict, Verdict::Drop(NotForwardable), "{from}");
    }
}

/// Whoever would answer them would answer a group.
#[test]
fn packets_from_group_addresses_reach_nobody() {
    let mut bed = Bed::public();
    let vm1 = bed.underlay("vm1");
    let nat = bed
        .engine
        .create_nat("vm2", address(NAT), range(100, 102), None);
    let nat = nat.unwrap();
    let served = "172.22.0.1";
    let balancer = bed.engine.create_load_balancer(LoadBalancerSpec {
        id: "lb".to_owned(),
        vni: V100,
        address: address(served),
        ports: vec![LbPort {
            protocol: 17,
            port: 53,
        }],
        preferred_underlay: None,
    });
    let balancer = balancer.unwrap();
    bed.engine
        .create_load_balancer_target("lb", address("fc00:7::1"))
        .unwrap();
    let refused = Out::Dropped(DropReason::NotForwardable);
    for from in ["224.0.0.9", "239.1.1.1", "255.255.255.255"] {
        let question = build::udp((from, 9), (served, 53), b"");
        let quoted = build::udp((served, 53), (PUBLIC, 9), b"");
        for (to, packet) in [
            (vm1, build::udp((from, 1), ("10.100.1.1", 2), b"")),
            (nat, build::echo(from, NAT, true, 1)),
            (balancer, build::echo(from, served, true, 1)),
            (balancer, question),
            (balancer, build::icmp(from, served, 3, 3, [0; 4], &quoted)),
        ] {
            assert_eq!(bed.fabric(to, &packet), refused, "{from}");
        }
        let sent = build::udp((from, 1), ("10.100.2.1", 2), b"");
        assert_eq!(bed.guest(VM1, &sent), refused, "{from}");
    }
    let packet = build::udp(("ff0e::1", 1), ("2000:100:1::1", 2), b"");
    assert_eq!(bed.fabric(vm1, &packet), refused);
}

#[test]
fn source_routes_and_odd_options_are_refused() {
    let mut bed = Bed::new();
    let (from, to) = (v4("10.100.1.1"), v4("10.100.2.1"));
    for options in [
        [131, 3, 4, 0],
        [137, 3, 4, 0],
        [7, 0, 0, 0],
        [7, 9, 0, 0],
        [1, 1, 1, 7],
    ] {
        let packet = build::ipv4_with(17, from, to, 0, &options, &build::udp_datagram(1, 2, b""));
        let verdict = bed.send(VM1, &from_guest(&packet)).0;
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::SourceRoute),
            "{options:?}"
        );
    }
    let (from, to) = (v6("2000:100:1::1"), v6("2000:100:2::1"));
    let route = |segments_left| {
        let header = [17, 0, 4, segments_left, 0, 0, 0, 0];
        build::ipv6(
            43,
            from,
            to,
            &[&header[..], &build::udp_datagram(1, 2, b"")].concat(),
        )
    };
    assert_eq!(
        bed.send(VM1, &from_guest(&route(1))).0,
        Verdict::Drop(DropReason::SourceRoute)
    );
    assert_eq!(
        bed.send(VM1, &from_guest(&route(0))).0,
        Verdict::Transmit(PF0)
    );
}
