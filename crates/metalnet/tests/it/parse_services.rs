//! Public addresses, packet filter rules and load balancers as the API delivers them, good and bad.

use metalnet::model::SpecError;
use metalnet::parse::{Reader, Seen};
use metalnet::services::{
    Action, BalancerError, BalancerSpec, Direction, LoadBalancer, Matching, Rule,
};
use serde_json::{Value, json};

use crate::parse::{nic, object, reader};
use crate::sim::{balancer, nat, prefix};

fn with(mut fields: Value) -> Value {
    fields["ipFamilies"] = json!(["IPv4"]);
    fields["ips"] = json!(["10.0.0.1"]);
    fields
}

fn rule(mut given: Value) -> Result<Rule, String> {
    let defaults = json!({
        "firewallRuleID": "r", "direction": "Ingress", "action": "Accept", "ipFamily": "IPv4",
    });
    for (name, value) in defaults.as_object().unwrap() {
        let rule = given.as_object_mut().unwrap();
        rule.entry(name).or_insert_with(|| value.clone());
    }
    match nic(with(json!({ "firewallRules": [given] }))).spec {
        Ok(spec) => Ok(spec.rules["r"]),
        Err(error) => Err(error.to_string()),
    }
}

fn tcp(ports: Value) -> Matching {
    let given = json!({ "protocolMatch": { "protocolType": "TCP", "portRange": ports } });
    rule(given).unwrap().matching
}

#[test]
fn public_addresses() {
    let spec = nic(with(json!({
        "virtualIP": "203.0.113.7", "virtualIPs": ["2001:db8:f::1"],
        "nat": { "ip": "203.0.113.9", "port": 1024, "endPort": 2048 },
        "loadBalancerTargets": ["203.0.113.80/32"],
    })));
    let spec = spec.spec.unwrap();
    assert_eq!(spec.vip, Some("203.0.113.7".parse().unwrap()));
    assert_eq!(spec.public, [prefix("2001:db8:f::1/128")].into());
    assert_eq!(spec.prefixes, spec.public, "routed to the machine as it is");
    assert_eq!(spec.nat, Some(nat("203.0.113.9", 1024, 2048)));
    assert_eq!(spec.targets, [prefix("203.0.113.80/32")].into());
    assert!(spec.problems.is_empty());
    let only6 = nic(with(json!({ "virtualIP": "2001:db8:f::1" })))
        .spec
        .unwrap();
    assert_eq!((only6.vip, only6.public.len()), (None, 1));
}

#[test]
fn parts_that_cannot_be_are_left_out_and_named() {
    let problem = |fields: Value| {
        let spec = nic(with(fields)).spec.unwrap();
        assert!(spec.vip.is_none() || spec.nat.is_none());
        let problems: Vec<String> = spec.problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    };
    assert_eq!(
        problem(json!({ "nat": { "ip": "203.0.113.9", "port": 2048, "endPort": 2048 } })),
        "nat: ports 2048 to 2048 are no range"
    );
    assert_eq!(
        problem(json!({ "nat": { "ip": "2001:db8::9", "port": 1, "endPort": 2 } })),
        "nat: 2001:db8::9 cannot be shared: only IPv4 addresses can"
    );
    assert_eq!(
        problem(json!({ "virtualIP": "224.0.0.1" })),
        "virtualIP: 224.0.0.1 cannot stand for a machine"
    );
    let two = nic(with(
        json!({ "virtualIP": "203.0.113.7", "virtualIPs": ["203.0.113.8"] }),
    ));
    let first = "203.0.113.7".parse().unwrap();
    assert_eq!(
        two.spec.unwrap().problems,
        [SpecError::VirtualIpTwice(first)]
    );
}

#[test]
fn a_rule_that_says_little_means_everything_of_its_family() {
    let all = Rule {
        direction: Direction::Ingress,
        action: Action::Accept,
        priority: 1000,
        source: prefix("0.0.0.0/0"),
        destination: prefix("0.0.0.0/0"),
        matching: Matching::Any,
    };
    assert_eq!(rule(json!({})), Ok(all));
    let six = Rule {
        source: prefix("::/0"),
        destination: prefix("::/0"),
        ..all
    };
    assert_eq!(
        rule(json!({ "ipFamily": "IPv6" })),
        Ok(six),
        "not 0.0.0.0/0, which matches nothing"
    );
    let given = json!({ "ipFamily": "IPv4", "direction": "Egress", "action": "Deny", "priority": 0,
        "destinationPrefix": "2001:db8::7/32" });
    let egress = Rule {
        direction: Direction::Egress,
        action: Action::Deny,
        priority: 0,
        source: prefix("::/0"),
        destination: prefix("2001:db8::/32"),
        matching: Matching::Any,
    };
    assert_eq!(rule(given), Ok(egress), "a given prefix says the family");
}

#[test]
fn ports_and_icmp() {
    let matching = |source, destination| Matching::Tcp {
        source,
        destination,
    };
    assert_eq!(
        tcp(json!({ "dstPort": 22 })),
        matching(None, Some((22, 22))),
        "end absent"
    );
    assert_eq!(
        tcp(json!({ "dstPort": 22, "endDstPort": 0 })),
        matching(None, Some((22, 22))),
        "end 0"
    );
    assert_eq!(
        tcp(json!({ "srcPort": 1, "endSrcPort": -1, "dstPort": -1 })),
        matching(Some((1, 65535)), None)
    );
    assert_eq!(
        tcp(json!({ "srcPort": 5, "endSrcPort": 9 })),
        matching(Some((5, 9)), None)
    );
    let icmp = |icmp: Value| {
        let given = json!({ "protocolMatch": { "protocolType": "ICMP", "icmp": icmp } });
        rule(given).unwrap().matching
    };
    let any = Matching::Icmp {
        kind: None,
        code: None,
    };
    assert_eq!(icmp(Value::Null), any);
    assert_eq!(icmp(json!({ "icmpType": -1, "icmpCode": -1 })), any);
    let echo = Matching::Icmp {
        kind: Some(8),
        code: Some(0),
    };
    assert_eq!(icmp(json!({ "icmpType": 8, "icmpCode": 0 })), echo);
}

#[test]
fn a_bad_rule_spoils_the_spec_instead_of_opening_something() {
    let ports =
        |ports: Value| json!({ "protocolMatch": { "protocolType": "UDP", "portRange": ports } });
    for (given, why) in [
        (
            ports(json!({ "dstPort": 9, "endDstPort": 5 })),
            "a port range ends before it begins",
        ),
        (
            ports(json!({ "dstPort": 70000 })),
            "a port must be between 0 and 65535, or -1",
        ),
        (
            json!({ "priority": 70000 }),
            "the priority must be between 0 and 65535",
        ),
        (
            json!({ "sourcePrefix": "10.0.0.0/8", "destinationPrefix": "2001:db8::/32" }),
            "source and destination are of different families",
        ),
    ] {
        assert_eq!(rule(given), Err(format!("firewall rule \"r\": {why}")));
    }
    for given in [
        json!({ "direction": "Sideways" }),
        json!({ "action": "Maybe" }),
        json!({ "protocolMatch": { "protocolType": "XXX" } }),
    ] {
        let error = rule(given).unwrap_err();
        assert!(error.starts_with("the spec cannot be read"), "{error}");
    }
    let twice = json!({ "firewallRuleID": "x", "direction": "Egress", "action": "Deny", "ipFamily": "IPv4" });
    let spec = nic(with(json!({ "firewallRules": [twice.clone(), twice] }))).spec;
    assert!(matches!(spec, Err(SpecError::Rule { .. })), "{spec:?}");
    for id in ["".to_owned(), "~".to_owned(), "x".repeat(64)] {
        let rule = json!({ "firewallRuleID": id, "direction": "Egress", "action": "Deny", "ipFamily": "IPv4" });
        assert!(nic(with(json!({ "firewallRules": [rule] }))).spec.is_err());
    }
}

#[test]
fn ipv6_services_need_a_node_that_does_ipv6() {
    for fields in [
        json!({ "virtualIPs": ["2001:db8:f::1"] }),
        json!({ "loadBalancerTargets": ["2001:db8:f::80/128"] }),
    ] {
        let mut spec = with(fields);
        spec["nodeName"] = json!("h1");
        spec["networkRef"] = json!({ "name": "net" });
        let Seen::Local(nic) = reader(false).nic(object(json!({ "spec": spec }))) else {
            panic!()
        };
        assert!(
            matches!(nic.spec, Err(SpecError::Ipv6Disabled(_))),
            "{:?}",
            nic.spec
        );
    }
}

// ---- load balancers ------------------------------------------------------------------------------------------------------------

fn read(reader: &Reader, spec: Value) -> LoadBalancer {
    match reader.balancer(object(
        json!({ "spec": spec, "status": { "state": "Pending" } }),
    )) {
        Seen::Local(balancer) => *balancer,
        other => panic!("{other:?}"),
    }
}

fn lb(ip: &str, family: &str, ports: Value) -> Result<BalancerSpec, BalancerError> {
    let spec = json!({
        "networkRef": { "name": "net" }, "nodeName": "h1", "type": "Public", "ipFamily": family,
        "ip": ip, "ports": ports,
    });
    read(&reader(true), spec).spec
}

#[test]
fn load_balancers_good_and_bad() {
    let tcp = |port: i32| json!({ "protocol": "TCP", "port": port });
    let good = lb("203.0.113.80", "IPv4", json!([tcp(80), tcp(443), tcp(80)]));
    assert_eq!(good, Ok(balancer(true, "203.0.113.80", &[80, 443])));
    assert_eq!(
        lb("2001:db8::80", "IPv6", json!([tcp(80)])),
        Ok(balancer(true, "2001:db8::80", &[80]))
    );
    let error = |result: Result<BalancerSpec, BalancerError>| result.unwrap_err().to_string();
    let odd = json!([{ "protocol": "XXX", "port": 80 }]);
    let one_to = "TCP or UDP and 1 to 65535 are possible";
    assert_eq!(
        error(lb("203.0.113.80", "IPv4", odd)),
        format!("ports: XXX 80 cannot be balanced: {one_to}")
    );
    assert!(error(lb("203.0.113.80", "IPv4", json!([tcp(0)]))).contains("TCP 0"));
    assert!(error(lb("203.0.113.80", "IPv4", json!([tcp(70000)]))).contains("TCP 70000"));
    assert_eq!(
        lb("203.0.113.80", "IPv4", json!([])),
        Err(BalancerError::PortCount(0))
    );
    let many: Vec<Value> = (1..=16).map(tcp).collect();
    assert_eq!(
        lb("203.0.113.80", "IPv4", json!(many)),
        Err(BalancerError::PortCount(16))
    );
    assert!(error(lb("203.0.113.80", "IPv6", json!([tcp(80)]))).contains("is not of family IPv6"));
    let none = "0.0.0.0".parse().unwrap();
    assert_eq!(
        lb("0.0.0.0", "IPv4", json!([tcp(80)])),
        Err(BalancerError::AddressUse(none))
    );
    assert!(error(lb("x", "IPv4", json!([tcp(80)]))).starts_with("the spec cannot be read"));
}

#[test]
fn a_load_balancer_without_a_spec_or_of_another_node() {
    let balancer = read(
        &reader(false),
        json!({
            "networkRef": { "name": "net" }, "nodeName": "h1", "type": "Internal",
            "ipFamily": "IPv6", "ip": "2001:db8::80", "ports": [{ "protocol": "UDP", "port": 53 }],
        }),
    );
    assert!(matches!(balancer.spec, Err(BalancerError::Ipv6Disabled(_))));
    assert!(matches!(
        reader(true).balancer(object(json!({}))),
        Seen::Foreign(_)
    ));
    assert!(matches!(
        reader(true).balancer(object(json!({ "spec": { "nodeName": "h2" } }))),
        Seen::Foreign(_)
    ));
}
