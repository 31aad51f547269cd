//! The services of a network: LoadBalancer, LoadBalancerRouting, NATGateway, NetworkPolicy, and conditions.

use api::conditions::{self, ConditionStatus, Verdict};
use api::names::NETWORKING;
use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::{create_errors, object, row, update_errors};

fn check_create(kind: &str, spec: Value, want: Expect) {
    want.assert_eq(&create_errors(row(NETWORKING, kind), "x", spec));
}

fn check_update(kind: &str, old: Value, new: Value, want: Expect) {
    want.assert_eq(&update_errors(row(NETWORKING, kind), old, new));
}

fn normalized(kind: &str, spec: Value) -> Value {
    let row = row(NETWORKING, kind);
    let mut value = object(row, "x", spec);
    row.normalize(&mut value);
    value["spec"].clone()
}

fn balancer(ports: Value) -> Value {
    json!({"type": "Public", "ipFamilies": ["IPv4"], "networkRef": {"name": "n"}, "ports": ports})
}

#[test]
fn every_wrong_field_of_a_load_balancer_is_named_at_once() {
    let spec = json!({
        "type": "Internal", "ipFamilies": ["IPv4", "IPv4", "IPv5"],
        "ips": [{"value": "fd00::1"}, {}, {"value": "10.0.0.1", "ephemeral": {"prefixTemplate": {"spec": {"prefix": "10.0.0.1/32"}}}}],
        "networkRef": {"name": "No"},
        "networkInterfaceSelector": {"matchLabels": {"-": "x"}, "matchExpressions": [{"key": "a", "operator": "In"}]},
        "ports": [{"port": 0}, {"protocol": "ICMP", "port": 80}, {"port": 90, "endPort": 80}, {"port": 70000}, {"port": 1, "endPort": 70000}]
    });
    check_create(
        "LoadBalancer",
        spec,
        expect![[r#"
        spec.ipFamilies[1]: Duplicate value: "IPv4"
        spec.ipFamilies[2]: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"
        spec.ips[0].value: Invalid value: "fd00::1": must be an IPv4 address
        spec.ips[1]: Invalid value: {}: exactly one of value, ephemeral must be set
        spec.ips[2]: Invalid value: {"ephemeral":{"prefixTemplate":{"spec":{"ipFamily":"IPv4","prefix":"10.0.0.1/32"}}},"value":"10.0.0.1"}: exactly one of value, ephemeral must be set
        spec.networkInterfaceSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
        spec.networkInterfaceSelector.matchLabels: Invalid value: "-": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        spec.networkRef.name: Invalid value: "No": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
        spec.ports[1].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
        spec.ports[2].endPort: Forbidden: must be greater than or equal to port
        spec.ports[3].port: Invalid value: 70000: must be between 1 and 65535, inclusive
        spec.ports[4]: Forbidden: overlaps with TCP 90-90
        spec.ports[4].endPort: Invalid value: 70000: must be between 1 and 65535, inclusive
    "#]],
    );
    check_create(
        "LoadBalancer",
        json!({}),
        expect![[r#"
        spec.ipFamilies: Required value
        spec.networkRef: Required value
        spec.type: Required value
    "#]],
    );
}

/// The check of a port must not depend on another port of its protocol being there.
#[test]
fn the_only_port_of_a_protocol_is_checked_too() {
    check_create(
        "LoadBalancer",
        balancer(json!([{"port": 80, "endPort": 70}])),
        expect![[r#"
            spec.ports[0].endPort: Forbidden: must be greater than or equal to port
        "#]],
    );
    check_create(
        "LoadBalancer",
        balancer(json!([{"protocol": "UDP", "port": 65536}])),
        expect![[r#"
            spec.ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive
        "#]],
    );
}

#[test]
fn port_ranges_of_one_protocol_do_not_overlap() {
    check_create(
        "LoadBalancer",
        balancer(json!([
            {"port": 80, "endPort": 90}, {"protocol": "UDP", "port": 85},
            {"protocol": "TCP", "port": 90}, {"port": 91}, {"port": 70, "endPort": 100}
        ])),
        expect![[r#"
            spec.ports[2]: Forbidden: overlaps with TCP 80-90
            spec.ports[4]: Forbidden: overlaps with TCP 80-90
        "#]],
    );
}

#[test]
fn a_public_load_balancer_has_no_addresses_of_its_own() {
    let ips = json!([{"value": "10.0.0.1"}]);
    let public = normalized(
        "LoadBalancer",
        json!({"type": "Public", "ips": ips, "networkRef": {"name": "n"}}),
    );
    assert_eq!(
        public,
        json!({"type": "Public", "ipFamilies": ["IPv4"], "networkRef": {"name": "n"}})
    );
    let internal = normalized(
        "LoadBalancer",
        json!({"type": "Internal", "ipFamilies": ["IPv4"], "networkRef": {"name": "n"},
            "ips": [{"ephemeral": {"prefixTemplate": {"spec": {"parentRef": {"name": "p"}}}}}]}),
    );
    assert_eq!(
        internal["ips"][0]["ephemeral"]["prefixTemplate"]["spec"],
        json!({"ipFamily": "IPv4", "prefixLength": 32, "parentRef": {"name": "p"}})
    );
}

#[test]
fn what_a_load_balancer_may_not_change() {
    let old = balancer(json!([]));
    let mut new = balancer(json!([{"port": 80}]));
    check_update("LoadBalancer", old.clone(), new.clone(), expect![[""]]);
    new["type"] = json!("Internal");
    new["networkRef"] = json!({"name": "other"});
    check_update(
        "LoadBalancer",
        old,
        new,
        expect![[r#"
        spec.networkRef: Forbidden: field is immutable
        spec.type: Forbidden: field is immutable
    "#]],
    );
}

#[test]
fn load_balancer_routings() {
    let row = row(NETWORKING, "LoadBalancerRouting");
    let check = |rest: Value, want: Expect| {
        let mut value = object(row, "x", json!({}));
        let map = value.as_object_mut().unwrap();
        map.extend(rest.as_object().unwrap().clone());
        map.remove("spec");
        row.normalize(&mut value);
        want.assert_eq(&crate::show(&row.check_create(&value)));
    };
    check(
        json!({}),
        expect![[r#"
        destinations: Required value
        networkRef: Required value
    "#]],
    );
    check(
        json!({"networkRef": {"name": "n", "uid": "u"}, "destinations": []}),
        expect![[""]],
    );
    check(
        json!({"networkRef": {"name": "N", "uid": ""}, "destinations": [
            {"ip": "10.0.0.300"}, {"ip": "fd00::1", "targetRef": {"name": "A b", "uid": "u"}}, {}]}),
        expect![[r#"
            destinations[0].ip: Invalid value: "10.0.0.300": must be a valid IP address
            destinations[1].targetRef.name: Invalid value: "A b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            destinations[2].ip: Required value
            networkRef.name: Invalid value: "N": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            networkRef.uid: Required value
        "#]],
    );
}

#[test]
fn nat_gateways() {
    let gateway = |ports: Value| json!({"type": "Public", "ipFamily": "IPv4", "networkRef": {"name": "n"}, "portsPerNetworkInterface": ports});
    assert_eq!(
        normalized("NATGateway", gateway(Value::Null)),
        gateway(json!(2048))
    );
    for good in [2, 64, 1024, 32768] {
        check_create("NATGateway", gateway(json!(good)), expect![[""]]);
    }
    // None of these can be served: no ports, one port, not a power of two, more than an address has.
    for bad in [0, -2, 1, 3, 1000, 65536, 131_072] {
        let errors = create_errors(row(NETWORKING, "NATGateway"), "x", gateway(json!(bad)));
        assert_eq!(
            errors,
            format!(
                "spec.portsPerNetworkInterface: Invalid value: {bad}: must be a power of two from 2 to 32768\n"
            )
        );
    }
    check_create(
        "NATGateway",
        json!({}),
        expect![[r#"
        spec.ipFamily: Required value
        spec.networkRef: Required value
        spec.type: Required value
    "#]],
    );
    check_create(
        "NATGateway",
        json!({"type": "Private", "ipFamily": "IPv5", "networkRef": {}}),
        expect![[r#"
            spec.ipFamily: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"
            spec.networkRef.name: Required value
            spec.type: Unsupported value: "Private": supported values: "Public"
        "#]],
    );
    let other = json!({"type": "Public", "ipFamily": "IPv6", "networkRef": {"name": "m"}, "portsPerNetworkInterface": 64});
    check_update(
        "NATGateway",
        gateway(json!(64)),
        other,
        expect![[r#"
        spec.ipFamily: Forbidden: field is immutable
        spec.networkRef: Forbidden: field is immutable
    "#]],
    );
}

#[test]
fn every_wrong_field_of_a_policy_is_named_at_once() {
    let spec = json!({
        "networkRef": {"name": "n"},
        "networkInterfaceSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]},
        "ingress": [{
            "from": [
                {"objectSelector": {"kind": "Machine"}},
                {"objectSelector": {"kind": ""}},
                {"objectSelector": {"kind": "NetworkInterface"}, "ipBlock": {"cidr": "10.0.0.0/8"}},
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16", "fd00::/8", "x"]}},
                {"ipBlock": {"cidr": "10.0.0.0"}},
                {},
            ],
            "ports": [{"port": 70000}, {"endPort": 5}, {"port": 0, "endPort": 5}, {"port": 9, "endPort": 8}, {"port": 9, "endPort": 70000}, {"protocol": "ICMP", "port": 0}],
        }],
        "egress": [{"to": [{"objectSelector": {"kind": "LoadBalancer", "matchLabels": {"a": "not a value"}}}]}],
        "policyTypes": ["Ingress", "Ingress", "Both"]
    });
    check_create(
        "NetworkPolicy",
        spec,
        expect![[r#"
        spec.egress[0].to[0].objectSelector.matchLabels: Invalid value: "not a value": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        spec.ingress[0].from[0].objectSelector.kind: Unsupported value: "Machine": supported values: "LoadBalancer", "NetworkInterface", "VirtualIP"
        spec.ingress[0].from[1].objectSelector.kind: Required value
        spec.ingress[0].from[2].ipBlock: Forbidden: may not be set together with objectSelector
        spec.ingress[0].from[3].ipBlock.except[1]: Forbidden: must lie inside 10.0.0.0/8
        spec.ingress[0].from[3].ipBlock.except[2]: Forbidden: must lie inside 10.0.0.0/8
        spec.ingress[0].from[3].ipBlock.except[3]: Invalid value: "x": must be a valid IP prefix, address/length
        spec.ingress[0].from[4].ipBlock.cidr: Invalid value: "10.0.0.0": must be a valid IP prefix, address/length
        spec.ingress[0].from[5]: Required value: must specify objectSelector or ipBlock
        spec.ingress[0].ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive
        spec.ingress[0].ports[1].endPort: Forbidden: may not be set without port
        spec.ingress[0].ports[2].endPort: Forbidden: may not be set without port
        spec.ingress[0].ports[3].endPort: Forbidden: must be greater than or equal to port
        spec.ingress[0].ports[4].endPort: Invalid value: 70000: must be between 1 and 65535, inclusive
        spec.ingress[0].ports[5].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
        spec.networkInterfaceSelector.matchExpressions[0].operator: Invalid value: "Near": not a valid selector operator
        spec.policyTypes[0]: Unsupported value: "Both": supported values: "Egress", "Ingress"
        spec.policyTypes[3]: Duplicate value: "Ingress"
    "#]],
    );
    check_create(
        "NetworkPolicy",
        json!({}),
        expect![[r#"
        spec.networkRef: Required value
        spec.policyTypes: Required value
    "#]],
    );
    check_update(
        "NetworkPolicy",
        json!({"networkRef": {"name": "n"}, "policyTypes": ["Egress"]}),
        json!({"networkRef": {"name": "m"}, "policyTypes": ["Egress"]}),
        expect![[r#"
            spec.networkRef: Forbidden: field is immutable
        "#]],
    );
}

#[test]
fn directions_of_a_policy_follow_from_its_rules() {
    let check = |given: Value, want: Value| {
        let mut spec = given;
        spec["networkRef"] = json!({"name": "n"});
        assert_eq!(normalized("NetworkPolicy", spec)["policyTypes"], want);
    };
    let rule = json!([{}]);
    check(json!({}), Value::Null);
    check(json!({"ingress": []}), Value::Null);
    check(json!({"ingress": rule}), json!(["Ingress"]));
    check(
        json!({"ingress": rule, "egress": rule}),
        json!(["Egress", "Ingress"]),
    );
    check(
        json!({"egress": rule, "policyTypes": ["Ingress"]}),
        json!(["Egress", "Ingress"]),
    );
    // No rules in a restricted direction: nothing is allowed. That is legal.
    check(json!({"policyTypes": ["Ingress"]}), json!(["Ingress"]));
    check_create(
        "NetworkPolicy",
        json!({"networkRef": {"name": "n"}, "policyTypes": ["Ingress"]}),
        expect![[""]],
    );
}

#[test]
fn services_round_trip() {
    crate::kinds::round_trip::<api::networking::LoadBalancer>(
        row(NETWORKING, "LoadBalancer"),
        &json!({
            "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "LoadBalancer", "metadata": {"name": "l"},
            "spec": {"type": "Internal", "ipFamilies": ["IPv4"], "ips": [{"value": "10.0.0.1"}], "networkRef": {"name": "n"},
                "networkInterfaceSelector": {"matchLabels": {"app": "web"}},
                "ports": [{"protocol": "TCP", "port": 80}, {"port": 8000, "endPort": 8010}]},
            "status": {"ips": ["10.0.0.1"], "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "m",
                "lastTransitionTime": "2026-11-22T10:00:00Z"}]}
        }),
    );
    crate::kinds::round_trip::<api::networking::LoadBalancerRouting>(
        row(NETWORKING, "LoadBalancerRouting"),
        &json!({
            "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "LoadBalancerRouting", "metadata": {"name": "l"},
            "networkRef": {"name": "n", "uid": "u"},
            "destinations": [{"ip": "10.0.0.1", "targetRef": {"uid": "u", "name": "n", "providerID": "p"}}, {"ip": "fd00::1"}]
        }),
    );
    crate::kinds::round_trip::<api::networking::NATGateway>(
        row(NETWORKING, "NATGateway"),
        &json!({
            "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "NATGateway", "metadata": {"name": "g"},
            "spec": {"type": "Public", "ipFamily": "IPv6", "networkRef": {"name": "n"}, "portsPerNetworkInterface": 64},
            "status": {"ips": ["2001:db8::1"]}
        }),
    );
    crate::kinds::round_trip::<api::networking::NetworkPolicy>(
        row(NETWORKING, "NetworkPolicy"),
        &json!({
            "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
            "spec": {"networkRef": {"name": "n"}, "networkInterfaceSelector": {"matchLabels": {"app": "db"}},
                "ingress": [{"from": [{"objectSelector": {"kind": "NetworkInterface", "matchLabels": {"app": "web"},
                    "matchExpressions": [{"key": "a", "operator": "Exists"}]}},
                    {"ipBlock": {"cidr": "10.40.0.0/16", "except": ["10.40.9.0/24"]}}], "ports": [{"protocol": "TCP", "port": 5432}]}],
                "egress": [{"to": [{"ipBlock": {"cidr": "fd00::/8"}}]}], "policyTypes": ["Egress", "Ingress"]},
            "status": {}
        }),
    );
}

#[test]
fn columns_of_services() {
    let show = |kind: &str, object: Value| {
        let columns = row(NETWORKING, kind).columns.iter();
        columns
            .filter(|column| column.priority == 0)
            .map(|column| format!("{}={} ", column.name, column.content(&object)))
            .collect::<String>()
    };
    let destinations: Vec<Value> = (1..=5)
        .map(|n| json!({"ip": format!("10.0.0.{n}")}))
        .collect();
    let all = [
        show(
            "LoadBalancer",
            json!({"metadata": {"name": "l"}, "status": {"ips": ["1.2.3.4", "fd00::1"]}}),
        ),
        show("LoadBalancer", json!({"metadata": {"name": "l"}})),
        show(
            "LoadBalancerRouting",
            json!({"metadata": {"name": "l"}, "destinations": destinations}),
        ),
        show(
            "LoadBalancerRouting",
            json!({"metadata": {"name": "l"}, "destinations": destinations[..3]}),
        ),
        show(
            "LoadBalancerRouting",
            json!({"metadata": {"name": "l"}, "destinations": []}),
        ),
        show(
            "NATGateway",
            json!({"metadata": {"name": "g"}, "status": {"ips": ["1.2.3.4"]}}),
        ),
        show(
            "NetworkPolicy",
            json!({"metadata": {"name": "p"}, "spec": {"networkRef": {"name": "n"}, "networkInterfaceSelector": {
            "matchLabels": {"app": "db"}, "matchExpressions": [
                {"key": "a", "operator": "In", "values": ["x", "y"]}, {"key": "b", "operator": "DoesNotExist"}]}}}),
        ),
        show(
            "NetworkPolicy",
            json!({"metadata": {"name": "p"}, "spec": {"networkRef": {"name": "n"}, "networkInterfaceSelector": {}}}),
        ),
    ];
    expect![[r#"
        Name="l" IPs="1.2.3.4,fd00::1" Age=null 
        Name="l" IPs="None" Age=null 
        Name="l" Targets="10.0.0.1,10.0.0.2,10.0.0.3 + 2 more" Age=null 
        Name="l" Targets="10.0.0.1,10.0.0.2,10.0.0.3" Age=null 
        Name="l" Targets="<unset>" Age=null 
        Name="g" IPs="1.2.3.4" Age=null 
        Name="p" Network="n" Nic-Selector="app=db,a in (x,y),!b" Age=null 
        Name="p" Network="n" Nic-Selector="<none>" Age=null "#]]
    .assert_eq(&all.join("\n"));
}

#[test]
fn a_condition_is_written_only_when_it_says_something_new() {
    let waiting = Verdict::not_ready("AddressPending", "waits for an address");
    let first = conditions::renewed(&[], std::slice::from_ref(&waiting), Some(1), 5_999).unwrap();
    assert_eq!(
        json!(first),
        json!([{"type": "Ready", "status": "False", "reason": "AddressPending", "message": "waits for an address",
            "observedGeneration": 1, "lastTransitionTime": "1970-01-01T00:00:05Z"}])
    );
    assert_eq!(
        conditions::renewed(&first, &[waiting], Some(1), 60_000),
        None
    );
    // Another reason is no transition; another status is; conditions of others stay where they are.
    let other = Verdict::of("Peered", ConditionStatus::Unknown, "Waiting", "");
    let still = Verdict::not_ready("NotAttached", "no machine uses it");
    let second = conditions::renewed(&first, &[other, still], Some(2), 60_000).unwrap();
    assert_eq!(
        second[0].last_transition_time,
        first[0].last_transition_time
    );
    assert_eq!(
        (second[0].reason.as_str(), second[1].type_.as_str()),
        ("NotAttached", "Peered")
    );
    let third =
        conditions::renewed(&second, &[Verdict::ready("Ready", "")], Some(2), 61_000).unwrap();
    assert_eq!(
        json!(third[0].last_transition_time),
        json!("1970-01-01T00:01:01Z")
    );
    assert!(conditions::is_ready(&third) && !conditions::is_ready(&second));
    assert_eq!(third[1], second[1]);
}
