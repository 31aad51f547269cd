//! Where earlier data planes of this protocol behaved oddly, one test each, named for what this one does instead.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use core::net::{IpAddr, Ipv4Addr};
use dataplane::{
    DropReason, FirewallAction, FirewallRule, LbPort, LoadBalancerSpec, RuleDirection, RuleFilter,
    RulePrefix,
};
use net::tcp::{ACK, SYN};

const VM1_IP: &str = "10.100.1.1";
const VM2_IP: &str = "10.100.1.2";

fn rule(id: &str, direction: RuleDirection, to: &str, filter: RuleFilter) -> FirewallRule {
    FirewallRule {
        id: id.to_owned(),
        direction,
        action: FirewallAction::Accept,
        priority: 1,
        source: RulePrefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).unwrap(),
        destination: RulePrefix::new(address(to), 32).unwrap(),
        filter,
    }
}

fn ping() -> RuleFilter {
    RuleFilter::Icmp {
        kind: Some(8),
        code: None,
    }
}

#[test]
fn an_icmp_rule_holds_for_its_addresses_only() {
    let mut bed = Bed::new();
    let to = rule("ping", RuleDirection::Egress, "10.100.2.1", ping());
    bed.engine.create_firewall_rule("vm1", to).unwrap();
    let allowed = build::echo(VM1_IP, "10.100.2.1", true, 1);
    assert!(matches!(bed.guest(VM1, &allowed), Out::Tunnel(..)));
    let other = build::echo(VM1_IP, "10.100.2.2", true, 1);
    assert_eq!(
        bed.guest(VM1, &other),
        Out::Dropped(DropReason::FirewallEgress)
    );
}

#[test]
fn egress_rules_of_the_receiver_do_not_matter_to_what_it_receives() {
    let mut bed = Bed::new();
    for (id, direction) in [
        ("out", RuleDirection::Egress),
        ("in", RuleDirection::Ingress),
    ] {
        let all = rule(id, direction, VM2_IP, RuleFilter::Any);
        bed.engine.create_firewall_rule("vm2", all).unwrap();
    }
    let packet = build::echo(VM1_IP, VM2_IP, true, 1);
    assert_eq!(bed.guest(VM1, &packet), Out::Machine(VM2, packet.clone()));
}

#[test]
fn a_share_that_goes_leaves_those_of_others_in_force() {
    let mut bed = Bed::public();
    let create = |bed: &mut Bed, id, first| {
        bed.engine
            .create_nat(id, address(NAT), range(first, first + 1), None)
            .unwrap()
    };
    create(&mut bed, "vm1", 100);
    let kept = create(&mut bed, "vm2", 200);
    bed.engine
        .create_neighbor_nat(address(NAT), V100, range(300, 301), neighbour())
        .unwrap();
    let sent = build::udp((VM2_IP, 5), (PUBLIC, 80), b"x");
    assert!(matches!(bed.guest(VM2, &sent), Out::Tunnel(..)));
    bed.engine.delete_nat("vm1").unwrap();
    bed.engine
        .delete_neighbor_nat(address(NAT), V100, range(300, 301))
        .unwrap();
    let answer = build::udp((PUBLIC, 80), (NAT, 200), b"y");
    let seen = build::udp((PUBLIC, 80), (VM2_IP, 5), b"y");
    assert_eq!(bed.fabric(kept, &answer), Out::Machine(VM2, seen));
}

/// Within its network a machine with NAT is a machine like any other: its packets and the answers to them are one connection.
#[test]
fn inside_the_network_a_machine_with_nat_has_one_connection_per_conversation() {
    let mut bed = Bed::public();
    bed.engine
        .create_nat("vm1", address(NAT), range(100, 101), None)
        .unwrap();
    for (from, to, flags) in [(VM1, VM2, SYN), (VM2, VM1, SYN | ACK), (VM1, VM2, ACK)] {
        let ends = [(VM1_IP, 1), (VM2_IP, 2)];
        let [near, far] = if from == VM1 {
            ends
        } else {
            [ends[1], ends[0]]
        };
        let packet = build::tcp(near, far, flags);
        assert_eq!(bed.guest(from, &packet), Out::Machine(to, packet.clone()));
    }
    assert_eq!(bed.worker.flow_saturation().0, 1);
    for _ in 0..60 {
        bed.now = bed.now.plus_secs(1);
        bed.worker.tick(bed.now);
    }
    assert_eq!(bed.worker.flow_saturation().0, 1, "established");
}

#[test]
fn both_families_share_the_uplinks() {
    let mut config = config();
    config.wcmp_percent = 50;
    let mut bed = Bed::with(config);
    let mut used = [0; 2];
    for port in 0..200 {
        let packet = build::udp(("2000:100:1::1", port), ("2000:100:2::1", 2), b"x");
        match bed.guest(VM1, &packet) {
            Out::Tunnel(uplink, ..) => used[uplink.index()] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(used.iter().all(|count| *count > 60), "{used:?}");
}

#[test]
fn hops_are_not_counted_unless_asked_for() {
    let mut bed = Bed::new();
    let mut last = build::udp(("2000:100:1::1", 1), ("2000:100:2::1", 2), b"x");
    last[7] = 1;
    let own = bed.underlay("vm1");
    assert_eq!(
        bed.guest(VM1, &last),
        Out::Tunnel(PF0, own, neighbour(), last.clone())
    );
}

#[test]
fn at_a_balancer_tcp_is_forgotten_like_everything_and_finds_its_target_again() {
    let mut bed = Bed::public();
    let served = "172.22.0.1";
    let underlay = bed
        .engine
        .create_load_balancer(LoadBalancerSpec {
            id: "lb".to_owned(),
            vni: V100,
            address: address(served),
            ports: vec![LbPort {
                protocol: 6,
                port: 80,
            }],
            preferred_underlay: None,
        })
        .unwrap();
    for target in ["fc00:7::1", "fc00:7::2", "fc00:7::3"] {
        bed.engine
            .create_load_balancer_target("lb", address(target))
            .unwrap();
    }
    let packet = build::tcp((PUBLIC, 9), (served, 80), ACK);
    let first = bed.fabric(underlay, &packet);
    assert!(matches!(first, Out::Tunnel(..)));
    for _ in 0..60 {
        bed.now = bed.now.plus_secs(1);
        bed.worker.tick(bed.now);
    }
    assert_eq!(bed.worker.flow_saturation().0, 0);
    assert_eq!(bed.fabric(underlay, &packet), first);
}
