//! Packet filter and rate limits on the packet path.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use dataplane::{
    DropReason, FirewallAction, FirewallMode, FirewallRule, Metering, PortMatch, RuleDirection,
    RuleFilter, RulePrefix,
};
use net::tcp::{ACK, SYN};

const VM1_IP: &str = "10.100.1.1";
const VM2_IP: &str = "10.100.1.2";

fn rule(
    id: &str,
    direction: RuleDirection,
    action: FirewallAction,
    port: Option<u16>,
) -> FirewallRule {
    let any = RulePrefix::new(address("0.0.0.0"), 0).unwrap();
    let destination = PortMatch {
        lower: port,
        upper: port,
    };
    FirewallRule {
        id: id.to_owned(),
        direction,
        action,
        priority: 100,
        source: any,
        destination: any,
        filter: RuleFilter::Tcp {
            source: PortMatch::ANY,
            destination,
        },
    }
}

const IN: RuleDirection = RuleDirection::Ingress;
const OUT: RuleDirection = RuleDirection::Egress;
use FirewallAction::{Accept, Drop};

fn add(bed: &mut Bed, id: &str, rule: FirewallRule) {
    bed.engine.create_firewall_rule(id, rule).unwrap();
}

fn to_vm2(port: u16, flags: u8) -> Vec<u8> {
    build::tcp((VM1_IP, 1000), (VM2_IP, port), flags)
}

#[test]
fn ingress_between_machines_of_one_host() {
    let mut bed = Bed::public();
    let http = to_vm2(80, SYN);
    assert_eq!(
        bed.guest(VM1, &http),
        Out::Machine(VM2, http.clone()),
        "no rules, no filter"
    );
    add(&mut bed, "vm2", rule("ssh", IN, Accept, Some(22)));
    assert_eq!(
        bed.guest(VM1, &http),
        Out::Dropped(DropReason::FirewallIngress),
        "rules hold for existing connections"
    );
    let ssh = to_vm2(22, SYN);
    assert_eq!(bed.guest(VM1, &ssh), Out::Machine(VM2, ssh.clone()));
    let answer = build::tcp((VM2_IP, 22), (VM1_IP, 1000), SYN | ACK);
    add(&mut bed, "vm1", rule("nothing", IN, Accept, Some(9)));
    add(&mut bed, "vm2", rule("none", OUT, Accept, Some(9)));
    assert_eq!(
        bed.guest(VM2, &answer),
        Out::Machine(VM1, answer.clone()),
        "answers pass both filters"
    );
    let back = build::tcp((VM2_IP, 1000), (VM1_IP, 22), SYN);
    assert_eq!(
        bed.guest(VM2, &back),
        Out::Dropped(DropReason::FirewallEgress)
    );
    assert_eq!(
        bed.engine.firewall_hits("vm2").unwrap(),
        [("ssh".to_owned(), 1), ("none".to_owned(), 0)]
    );
    bed.engine.delete_firewall_rule("vm2", "ssh").unwrap();
    assert_eq!(bed.guest(VM1, &http), Out::Machine(VM2, http.clone()));
}

#[test]
fn from_and_to_the_fabric() {
    let mut bed = Bed::public();
    add(&mut bed, "vm1", rule("in", IN, Accept, Some(22)));
    add(&mut bed, "vm1", rule("out", OUT, Accept, Some(443)));
    let own = bed.underlay("vm1");
    let from = |port, flags| build::tcp(("10.100.2.5", 1000), (VM1_IP, port), flags);
    assert_eq!(
        bed.fabric(own, &from(80, SYN)),
        Out::Dropped(DropReason::FirewallIngress)
    );
    assert_eq!(
        bed.fabric(own, &from(22, SYN)),
        Out::Machine(VM1, from(22, SYN))
    );
    let answer = build::tcp((VM1_IP, 22), ("10.100.2.5", 1000), SYN | ACK);
    assert!(matches!(bed.guest(VM1, &answer), Out::Tunnel(..)));
    let out = |port| build::tcp((VM1_IP, 2000), ("10.100.2.5", port), SYN);
    assert_eq!(
        bed.guest(VM1, &out(80)),
        Out::Dropped(DropReason::FirewallEgress)
    );
    assert!(matches!(bed.guest(VM1, &out(443)), Out::Tunnel(..)));
    let udp = build::udp((VM1_IP, 2000), ("10.100.2.5", 443), b"x");
    assert_eq!(
        bed.guest(VM1, &udp),
        Out::Dropped(DropReason::FirewallEgress)
    );
    assert_eq!(
        bed.worker.flow_saturation().0,
        2,
        "what is refused is not remembered"
    );
}

#[test]
fn the_filter_sees_addresses_as_the_machines_do() {
    let mut bed = Bed::public();
    let underlay = bed.engine.create_vip("vm2", address(VIP), None).unwrap();
    let host = |text| RulePrefix::new(address(text), 32).unwrap();
    let ingress = FirewallRule {
        destination: host(VM2_IP),
        ..rule("in", IN, Accept, None)
    };
    let egress = FirewallRule {
        source: host(VM2_IP),
        ..rule("out", OUT, Accept, None)
    };
    add(&mut bed, "vm2", ingress);
    add(&mut bed, "vm2", egress);
    let request = build::tcp((PUBLIC, 1), (VIP, 80), SYN);
    assert!(
        matches!(bed.fabric(underlay, &request), Out::Machine(VM2, _)),
        "destination after translation"
    );
    let sent = build::tcp((VM2_IP, 5), (PUBLIC, 80), SYN);
    assert!(
        matches!(bed.guest(VM2, &sent), Out::Tunnel(..)),
        "source before translation"
    );
}

#[test]
fn deny_rules_and_families() {
    let mut bed = Bed::public();
    add(&mut bed, "vm2", rule("deny", IN, Drop, Some(80)));
    let all = FirewallRule {
        filter: RuleFilter::Any,
        ..rule("all", IN, Accept, None)
    };
    add(&mut bed, "vm2", all.clone());
    assert_eq!(
        bed.guest(VM1, &to_vm2(80, SYN)),
        Out::Dropped(DropReason::FirewallIngress)
    );
    assert!(matches!(bed.guest(VM1, &to_vm2(81, SYN)), Out::Machine(..)));
    let six = build::echo("2000:100:1::1", "2000:100:1::2", true, 1);
    assert_eq!(
        bed.guest(VM1, &six),
        Out::Dropped(DropReason::FirewallIngress),
        "no rule for IPv6"
    );
    let any6 = RulePrefix::new(address("::"), 0).unwrap();
    add(
        &mut bed,
        "vm2",
        FirewallRule {
            id: "six".to_owned(),
            source: any6,
            destination: any6,
            ..all
        },
    );
    assert_eq!(bed.guest(VM1, &six), Out::Machine(VM2, six.clone()));
}

#[test]
fn observing_counts_and_lets_pass() {
    let mut config = config();
    config.firewall = FirewallMode::Observe;
    let mut bed = Bed::with(config);
    add(&mut bed, "vm2", rule("ssh", IN, Accept, Some(22)));
    let http = to_vm2(80, SYN);
    assert_eq!(bed.guest(VM1, &http), Out::Machine(VM2, http.clone()));
    assert_eq!(bed.worker.counters().firewall_observed, 1);
}

fn metered(total_rate: u64, public_rate: u64) -> Bed {
    let mut bed = Bed::public();
    let mut vm4 = spec("vm4", VM4, V100, "10.100.1.4", "2000:100:1::4");
    vm4.metering = Metering {
        total_rate,
        public_rate,
    };
    bed.attach(vm4);
    bed
}

/// Bytes that pass at once.
fn burst(bed: &mut Bed, ip: &[u8], reason: DropReason) -> u64 {
    for sent in 0..10_000 {
        match bed.guest(VM4, ip) {
            Out::Dropped(dropped) => {
                assert_eq!(dropped, reason);
                return sent * ip.len() as u64;
            }
            Out::Tunnel(..) | Out::Machine(..) => {}
        }
    }
    panic!("no limit");
}

#[test]
fn rate_limits() {
    let payload = [0; 1_000];
    let local = build::udp(("10.100.1.4", 1), (VM1_IP, 2), &payload);
    let public = build::udp(("10.100.1.4", 1), (PUBLIC, 2), &payload);
    let public6 = build::udp(("2000:100:1::4", 1), ("2001:db8::1", 2), &payload);
    let expected = 4_096 + 131_072_u64;
    let mut bed = metered(1, 0);
    let passed = burst(&mut bed, &local, DropReason::TotalRate);
    assert!(passed.abs_diff(expected) < 2_000, "{passed}");
    bed.now = bed.now.plus_secs(1);
    let passed = burst(&mut bed, &public, DropReason::TotalRate);
    assert!(
        passed.abs_diff(125_000) < 4_000,
        "{passed}: one second's worth, for all traffic together"
    );
    for ip in [&public, &public6] {
        let mut bed = metered(10_000, 1);
        for _ in 0..500 {
            assert!(
                matches!(bed.guest(VM4, &local), Out::Machine(..)),
                "not to the internet"
            );
        }
        let passed = burst(&mut bed, ip, DropReason::PublicRate);
        assert!(
            passed.abs_diff(expected) < 2_000,
            "{passed}, whichever family"
        );
    }
}

#[test]
fn a_new_rate_limit_comes_with_a_new_interface_only() {
    let mut bed = metered(1, 1);
    let local = build::udp(("10.100.1.4", 1), (VM1_IP, 2), &[0; 1_000]);
    burst(&mut bed, &local, DropReason::TotalRate);
    bed.engine.delete_interface("vm4").unwrap();
    bed.attach(spec("vm4", VM4, V100, "10.100.1.4", ""));
    for _ in 0..1_000 {
        assert!(matches!(bed.guest(VM4, &local), Out::Machine(..)));
    }
}
