//! Decisions that are kept over changes of configuration equal those that would be taken anew: two hosts get the same packets and the same
//! changes, and one of them forgets all decisions after each.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use core::net::{IpAddr, Ipv6Addr};
use dataplane::{
    Counters, EngineConfig, FirewallAction, FirewallRule, LbPort, LoadBalancerSpec, Node,
    PortMatch, RuleDirection, RuleFilter, RulePrefix, Verdict, fuzzing,
};
use net::tcp::{ACK, SYN};
use net::{Mac, PortRange};
use proptest::prelude::*;

const MACHINES: [(&str, dataplane::PortId, &str, &str); 3] = [
    ("vm1", VM1, "10.100.1.1", "2000:100:1::1"),
    ("vm2", VM2, "10.100.1.2", "2000:100:1::2"),
    ("vm3", VM3, "10.100.1.1", "2000:100:1::1"),
];
const BALANCED: &str = "172.22.0.1";

/// A change of configuration; those that are refused change nothing.
#[derive(Clone, Copy, Debug)]
struct Change {
    kind: u8,
    a: usize,
    b: usize,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Change(Change),
    /// From a machine: machine, destination, port.
    Guest(usize, usize, u16),
    /// From the fabric: underlay address, destination, port.
    Fabric(usize, usize, u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..18_u8, 0..3_usize, 0..4_usize).prop_map(|(kind, a, b)| Step::Change(Change { kind, a, b })),
        2 => (0..3_usize, 0..10_usize, 1..3_u16).prop_map(|(a, b, c)| Step::Guest(a, b, c)),
        2 => (0..12_usize, 0..6_usize, 1..3_u16).prop_map(|(a, b, c)| Step::Fabric(a, b, c)),
    ]
}

fn host() -> Bed {
    let mut config: EngineConfig = config();
    config.wcmp_percent = 60;
    let mut bed = Bed::with(config);
    bed.default_routes(V100);
    bed.default_routes(V200);
    bed
}

/// Underlay addresses that packets from the fabric may be for: they are handed out in order, so both hosts have the same.
fn underlay(index: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfc00, 1, 0, 0, 0xd000, 1, 0, index as u16 + 1)
}

fn prefix(index: usize) -> (IpAddr, u8) {
    [
        (address("10.100.2.0"), 24),
        (address("10.100.2.64"), 26),
        (address("0.0.0.0"), 0),
        (address("2000:100:2::"), 104),
    ][index]
}

fn rule(b: usize) -> FirewallRule {
    let any = RulePrefix::new(address("0.0.0.0"), 0).unwrap();
    let port = PortMatch {
        lower: Some(1),
        upper: Some(1),
    };
    FirewallRule {
        id: format!("rule{b}"),
        direction: if b.is_multiple_of(2) {
            RuleDirection::Egress
        } else {
            RuleDirection::Ingress
        },
        action: if b < 2 {
            FirewallAction::Drop
        } else {
            FirewallAction::Accept
        },
        priority: 10,
        source: any,
        destination: any,
        filter: RuleFilter::Udp {
            source: PortMatch::ANY,
            destination: if b < 2 { port } else { PortMatch::ANY },
        },
    }
}

fn apply(bed: &mut Bed, change: Change) {
    let Change { kind, a, b } = change;
    let (id, port, ipv4, ipv6) = MACHINES[a];
    let vni = if a == 2 { V200 } else { V100 };
    let (to, length) = prefix(b);
    let engine = &mut bed.engine;
    let hop = if b == 1 { router() } else { neighbour() };
    // Whether a request is refused is the same on both hosts, and no matter here.
    match kind {
        0 => ignore(engine.create_firewall_rule(id, rule(b))),
        1 => ignore(engine.delete_firewall_rule(id, &format!("rule{b}"))),
        2 => ignore(engine.create_route(vni, to, length, IpAddr::V6(hop), 0)),
        3 => ignore(engine.delete_route(vni, to, length)),
        4 => ignore(engine.replace_route(vni, to, length, IpAddr::V6(router()), 0)),
        5 => ignore(engine.create_nat(id, address(NAT), range(100, 400), None)),
        6 => ignore(engine.delete_nat(id)),
        7 => ignore(engine.create_vip(id, address(VIP), None)),
        8 => ignore(engine.delete_vip(id)),
        9 => ignore(engine.create_neighbor_nat(address(NAT), vni, range(400, 500), neighbour())),
        10 => ignore(engine.delete_neighbor_nat(address(NAT), vni, range(400, 500))),
        11 => {
            let prefix = [("10.100.3.0", 24), (BALANCED, 32)][b % 2];
            if b < 2 {
                ignore(engine.create_prefix(id, address(prefix.0), prefix.1, None));
            } else {
                ignore(engine.create_lb_prefix(id, address(prefix.0), prefix.1, None));
            }
        }
        12 => {
            let prefix = [("10.100.3.0", 24), (BALANCED, 32)][b % 2];
            if b < 2 {
                ignore(engine.delete_prefix(id, address(prefix.0), prefix.1));
            } else {
                ignore(engine.delete_lb_prefix(id, address(prefix.0), prefix.1));
            }
        }
        13 => ignore(engine.create_load_balancer(LoadBalancerSpec {
            id: "lb".to_owned(),
            vni,
            address: address(BALANCED),
            ports: (1..3).map(|port| LbPort { protocol: 17, port }).collect(),
            preferred_underlay: None,
        })),
        14 if b == 0 => ignore(engine.delete_load_balancer("lb")),
        14 => ignore(engine.delete_load_balancer_target("lb", IpAddr::V6(target(b)))),
        15 => ignore(engine.create_load_balancer_target("lb", IpAddr::V6(target(b)))),
        16 => match b {
            0 => engine.set_link(PF1, a == 0),
            1 => engine.set_next_hop(PF0, (a > 0).then_some(ROUTER_MAC)),
            2 => engine.set_uplink_mtu(PF1, 1_400 + a as u16),
            _ => engine.set_link(PF0, a > 0),
        },
        _ if b == 0 => ignore(engine.delete_interface(id)),
        _ => ignore(engine.create_interface(spec(id, port, vni, ipv4, ipv6))),
    }
}

/// Targets on this host and on others.
fn target(b: usize) -> Ipv6Addr {
    match b {
        0..2 => underlay(b + 5),
        _ => Ipv6Addr::new(0xfc00, 7, 0, 0, 0, 0, 0, b as u16),
    }
}

/// Verdict and bytes, and whether the packet took the slow walk.
type Answer = (Verdict, Vec<u8>);

fn send(bed: &mut Bed, step: Step) -> Answer {
    match step {
        Step::Change(_) => unreachable!("not a packet"),
        Step::Guest(machine, to, port) => {
            let (_, from, ipv4, ipv6) = MACHINES[machine];
            let far = [
                "10.100.2.70",
                "10.100.2.1",
                "10.100.1.2",
                "45.86.6.6",
                VIP,
                NAT,
                "10.100.3.3",
                "2000:100:2::1",
                "64:ff9b::2d56:606",
                BALANCED,
            ][to];
            let near = if far.contains(':') { ipv6 } else { ipv4 };
            let packet = build::udp((near, port), (far, port), b"data");
            bed.send(from, &from_guest(&packet))
        }
        Step::Fabric(to, inner, port) => {
            let near = [NAT, VIP, "10.100.1.1", "10.100.1.2", BALANCED, "10.100.3.3"][inner];
            let port_to = if inner == 0 { 99 + 150 * port } else { port };
            let packet = build::udp(("45.86.6.6", port), (near, port_to), b"data");
            let tunnel = build::tunnel(router(), underlay(to), &packet);
            let frame = build::ethernet(Mac([0x22; 6]), ROUTER_MAC, 0x86dd, &tunnel);
            bed.send(PF0, &frame)
        }
    }
}

fn looked_at(counters: &Counters) -> [u64; 2] {
    [counters.flows_kept, counters.node(Node::Conntrack)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kept_decisions_equal_new_ones(steps in prop::collection::vec(step(), 1..150)) {
        let (mut keeps, mut forgets) = (host(), host());
        for step in steps {
            if let Step::Change(change) = step {
                apply(&mut keeps, change);
                apply(&mut forgets, change);
                fuzzing::forget_decisions(&mut forgets.engine);
                continue;
            }
            // Twice: what was decided by the first packet answers the second.
            for _ in 0..2 {
                prop_assert_eq!(send(&mut keeps, step), send(&mut forgets, step), "{:?}", step);
            }
        }
        prop_assert_eq!(forgets.worker.counters().flows_kept, 0);
        prop_assert_eq!(
            keeps.worker.nat().saturation(),
            forgets.worker.nat().saturation()
        );
    }
}

/// What is looked at again: nothing of the flow, one part of it, or everything.
#[test]
fn only_what_a_change_concerns_is_decided_anew() {
    let mut bed = host();
    let packet = from_guest(&build::tcp(
        ("10.100.1.1", 1),
        ("10.100.2.1", 80),
        SYN | ACK,
    ));
    let (expected, bytes) = bed.send(VM1, &packet);
    assert!(matches!(expected, Verdict::Transmit(_)));
    let after = |bed: &mut Bed, name: &str, kept: bool| {
        let before = looked_at(bed.worker.counters());
        assert_eq!(bed.send(VM1, &packet), (expected, bytes.clone()), "{name}");
        let now = looked_at(bed.worker.counters());
        let moved = [now[0] - before[0], now[1] - before[1]];
        assert_eq!(moved, if kept { [1, 0] } else { [0, 1] }, "{name}");
    };
    let hop = IpAddr::V6(neighbour());
    bed.engine
        .create_route(V100, address("10.200.0.0"), 16, hop, 0)
        .unwrap();
    after(&mut bed, "a route elsewhere", true);
    bed.engine
        .create_route(V200, address("10.100.2.0"), 25, hop, 0)
        .unwrap();
    after(&mut bed, "a route of another network", true);
    bed.engine
        .create_route(V100, address("10.100.2.0"), 25, hop, 0)
        .unwrap();
    after(&mut bed, "a closer route to the same next hop", true);
    bed.engine
        .create_firewall_rule(
            "vm1",
            FirewallRule {
                filter: RuleFilter::Any,
                ..rule(2)
            },
        )
        .unwrap();
    after(&mut bed, "a rule that accepts", true);
    bed.engine.create_firewall_rule("vm2", rule(0)).unwrap();
    after(&mut bed, "a rule of another machine", true);
    bed.attach(spec("vm4", VM4, V100, "10.100.1.4", ""));
    after(&mut bed, "another machine comes", true);
    bed.engine.create_vip("vm2", address(VIP), None).unwrap();
    after(&mut bed, "a virtual address of another machine", true);
    bed.engine
        .create_vip("vm1", address("172.20.0.2"), None)
        .unwrap();
    after(&mut bed, "its own virtual address", false);
    bed.engine.delete_interface("vm4").unwrap();
    after(&mut bed, "another machine goes", false);
    for metric in 0..40 {
        bed.engine
            .replace_route(V100, address("10.200.0.0"), 16, hop, metric)
            .unwrap();
    }
    after(&mut bed, "more changes than are remembered", false);
}

/// A route that leads to another host exchanges the tunnel and nothing else: translated connections keep their ports, and tunnels that nobody uses
/// any more are given back.
#[test]
fn a_route_to_another_host_exchanges_the_tunnel_only() {
    let mut bed = Bed::new();
    let hosts = ["fc00:2::1", "fc00:3::1"].map(|text| text.parse::<Ipv6Addr>().unwrap());
    let lead = |bed: &mut Bed, host: Ipv6Addr| {
        let hop = IpAddr::V6(host);
        let route = bed
            .engine
            .replace_route(V100, address("0.0.0.0"), 0, hop, 0);
        route.unwrap();
    };
    lead(&mut bed, hosts[0]);
    let ports = PortRange::new(100, 200).unwrap();
    bed.engine
        .create_nat("vm1", address("172.20.0.9"), ports, None)
        .unwrap();
    let packets: Vec<Vec<u8>> = (1..=20)
        .map(|port| from_guest(&build::udp(("10.100.1.1", port), ("8.8.8.8", 53), b"")))
        .collect();
    let first: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| bed.send(VM1, packet).1)
        .collect();
    for host in [hosts[1], hosts[0], hosts[1]] {
        lead(&mut bed, host);
        for (packet, before) in packets.iter().zip(&first) {
            let (verdict, bytes) = bed.send(VM1, packet);
            assert_eq!(verdict, Verdict::Transmit(PF0));
            assert_eq!(bytes[38..54], host.octets());
            assert_eq!(bytes[54..], before[54..], "translated as before");
        }
        assert_eq!(bed.worker.adjacency_saturation().0, 1, "one tunnel is used");
    }
    let counters = bed.worker.counters();
    assert_eq!(counters.flows_created, 20);
    assert_eq!(counters.flows_redecided, 60);
    assert_eq!(counters.node(Node::Conntrack), 20, "only the first packets");
    // The same again is no change.
    let kept = counters.flows_kept;
    lead(&mut bed, hosts[1]);
    let _ = bed.send(VM1, &packets[0]);
    assert_eq!(bed.worker.counters().flows_kept, kept);
}

fn ignore<T, E>(_answer: Result<T, E>) {}
