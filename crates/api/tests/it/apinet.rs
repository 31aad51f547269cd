//! OpenKCM-net's load balancers, NAT gateways and network policies: round trips, defaults, rules, columns.

use api::names::APINET;
use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::kinds::round_trip;
use crate::{create_errors, object, row, update_errors};

fn check_create(kind: &str, spec: Value, want: Expect) {
    want.assert_eq(&create_errors(row(APINET, kind), "x", spec));
}

fn check_update(kind: &str, old: Value, new: Value, want: Expect) {
    want.assert_eq(&update_errors(row(APINET, kind), old, new));
}

/// Errors of an object without spec and status.
fn check_flat(kind: &str, members: Value, want: Expect) {
    let row = row(APINET, kind);
    let mut object = json!({
        "apiVersion": row.api_version(), "kind": row.kind,
        "metadata": { "name": "x", "namespace": "shop" },
    });
    let (Value::Object(object_map), Value::Object(members)) = (&mut object, members) else {
        panic!("an object");
    };
    object_map.extend(members);
    row.normalize(&mut object);
    want.assert_eq(&crate::show(&row.check_create(&object)));
}

fn full(kind: &str, members: Value) -> Value {
    let mut object = json!({
        "apiVersion": "core.apinet.openkcm.dev/v1alpha1", "kind": kind,
        "metadata": { "name": "x" },
    });
    if let (Value::Object(object), Value::Object(members)) = (&mut object, members) {
        object.extend(members);
    }
    object
}

fn template() -> Value {
    json!({
        "metadata": { "labels": { "lb": "web" }, "annotations": { "a": "b" } },
        "spec": {
            "affinity": {
                "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                    { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["lab.n1"] }] },
                    { "matchExpressions": [{ "key": "gen", "operator": "Gt", "values": ["3"] }] },
                ] } },
                "instanceAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
                    { "labelSelector": { "matchLabels": { "lb": "web" } }, "topologyKey": "topology.core.apinet.openkcm.dev/zone" },
                ] },
            },
            "topologySpreadConstraints": [
                { "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {} },
            ],
        },
    })
}

fn load_balancer() -> Value {
    json!({
        "type": "Public",
        "networkRef": { "name": "net" },
        "ips": [{ "name": "ipv4", "ipFamily": "IPv4", "ip": "203.0.113.1" }],
        "ports": [{ "protocol": "UDP", "port": 53, "endPort": 55 }, { "port": 80 }],
        "selector": { "matchLabels": { "lb": "web" } },
        "template": template(),
    })
}

#[test]
fn objects_round_trip() {
    round_trip::<api::apinet::LoadBalancer>(
        row(APINET, "LoadBalancer"),
        &full(
            "LoadBalancer",
            json!({ "spec": load_balancer(), "status": { "ips": ["203.0.113.1"] } }),
        ),
    );
    let target = json!({ "uid": "u", "name": "n", "nodeRef": { "name": "lab.n1" } });
    round_trip::<api::apinet::LoadBalancerRouting>(
        row(APINET, "LoadBalancerRouting"),
        &full(
            "LoadBalancerRouting",
            json!({ "destinations": [{ "ip": "10.0.0.1", "targetRef": target }, { "ip": "fd00::1" }] }),
        ),
    );
    round_trip::<api::apinet::NATGateway>(
        row(APINET, "NATGateway"),
        &full(
            "NATGateway",
            json!({
                "spec": { "ipFamily": "IPv4", "networkRef": { "name": "net" }, "portsPerNetworkInterface": 64,
                    "ips": [{ "name": "a", "ip": "203.0.113.1" }, { "name": "b", "draining": true }] },
                "status": { "usedNATIPs": 1, "requestedNATIPs": 2, "observedGeneration": 3 },
            }),
        ),
    );
    round_trip::<api::apinet::NATGatewayAutoscaler>(
        row(APINET, "NATGatewayAutoscaler"),
        &full(
            "NATGatewayAutoscaler",
            json!({ "spec": { "natGatewayRef": { "name": "g" }, "minPublicIPs": 1, "maxPublicIPs": 10 } }),
        ),
    );
    round_trip::<api::apinet::NATTable>(
        row(APINET, "NATTable"),
        &full(
            "NATTable",
            json!({ "ips": [{ "ip": "203.0.113.1", "sections": [
                { "ip": "10.0.0.1", "port": 1024, "endPort": 1087, "targetRef": target },
                { "ip": "10.0.0.2", "port": 1088, "endPort": 1151 },
            ] }] }),
        ),
    );
    let mut instance = template()["spec"].clone();
    instance["type"] = json!("LoadBalancer");
    instance["loadBalancerType"] = json!("Internal");
    instance["networkRef"] = json!({ "name": "net" });
    instance["ips"] = json!(["10.0.0.9"]);
    instance["loadBalancerPorts"] = json!([{ "port": 80 }]);
    instance["nodeRef"] = json!({ "name": "lab.n1" });
    round_trip::<api::apinet::Instance>(
        row(APINET, "Instance"),
        &full(
            "Instance",
            json!({ "spec": instance, "status": { "ips": ["10.0.0.9"], "collisionCount": 1 } }),
        ),
    );
    round_trip::<api::apinet::DaemonSet>(
        row(APINET, "DaemonSet"),
        &full(
            "DaemonSet",
            json!({
                "spec": { "nodeSelector": { "matchLabels": { "lb": "web" } }, "template": template() },
                "status": { "desiredInstances": 2, "scheduledInstances": 1 },
            }),
        ),
    );
    round_trip::<api::apinet::Node>(
        row(APINET, "Node"),
        &full(
            "Node",
            json!({ "spec": { "unschedulable": true }, "status": { "conditions": [{
                "type": "Ready", "status": "True", "reason": "Heartbeat", "message": "",
                "lastTransitionTime": "2026-11-22T10:00:00Z" }] } }),
        ),
    );
}

#[test]
fn policies_round_trip() {
    round_trip::<api::apinet::NetworkPolicy>(
        row(APINET, "NetworkPolicy"),
        &full(
            "NetworkPolicy",
            json!({ "spec": {
                "networkRef": { "name": "net" },
                "networkInterfaceSelector": { "matchLabels": { "app": "web" } },
                "priority": 7,
                "ingress": [{
                    "from": [
                        { "objectSelector": { "kind": "LoadBalancer", "matchLabels": { "a": "b" },
                            "matchExpressions": [{ "key": "k", "operator": "Exists" }] } },
                        { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } }, {}],
                    "ports": [{ "protocol": "UDP", "port": 53, "endPort": 54 }, { "port": 22 }],
                }],
                "egress": [{ "to": [{ "ipBlock": { "cidr": "::/0" } }] }],
                "policyTypes": ["Ingress", "Egress"],
            } }),
        ),
    );
    round_trip::<api::apinet::NetworkPolicyRule>(
        row(APINET, "NetworkPolicyRule"),
        &full(
            "NetworkPolicyRule",
            json!({
                "networkRef": { "name": "net", "uid": "u" },
                "targets": [{ "ip": "10.0.0.1", "targetRef": { "name": "n", "uid": "v" } }],
                "priority": 1000,
                "policyTypes": ["Ingress"],
                "ingressRule": [{ "id": "i", "ipBlock": [{ "cidr": "0.0.0.0/0" }],
                    "ips": [{ "ipFamily": "IPv4", "prefix": "10.0.0.2/32" }],
                    "networkPolicyPorts": [{ "protocol": "TCP", "port": 22, "endPort": 22 }] }],
                "egressRule": [],
            }),
        ),
    );
}

#[test]
fn load_balancers() {
    check_create("LoadBalancer", load_balancer(), expect![[""]]);
    // The family follows from the address.
    let mut derived = load_balancer();
    derived["ips"] = json!([{ "name": "a", "ip": "2001:db8::1" }]);
    let mut stored = object(row(APINET, "LoadBalancer"), "x", derived);
    row(APINET, "LoadBalancer").normalize(&mut stored);
    assert_eq!(stored["spec"]["ips"][0]["ipFamily"], "IPv6");

    let mut wrong = load_balancer();
    wrong["type"] = json!("Internal");
    wrong["ips"] = json!([
        { "name": "a", "ipFamily": "IPv6", "ip": "10.0.0.1" }, { "name": "a", "ipFamily": "IPv4" }, { "name": "c", "ip": "no" }]);
    wrong["ports"] = json!([{ "port": 0 }, { "port": 80, "endPort": 79 }, { "port": 65536, "protocol": "ICMP" }]);
    wrong["template"]["metadata"] = json!({ "name": "no", "labels": { "lb": "other" } });
    wrong["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({ "nodeSelectorTerms": [
            { "matchFields": [{ "key": "spec.x", "operator": "Gt", "values": ["1"] }] },
            { "matchExpressions": [{ "key": "a", "operator": "Lt", "values": ["x"] }, { "key": "a", "operator": "In" }] },
        ] });
    wrong["template"]["spec"]["topologySpreadConstraints"][0]["maxSkew"] = json!(0);
    wrong["template"]["spec"]["topologySpreadConstraints"][0]["whenUnsatisfiable"] =
        json!("ScheduleAnyway");
    check_create(
        "LoadBalancer",
        wrong,
        expect![[r#"
        spec.ips[0].ip: Invalid value: "10.0.0.1": must be an IPv6 address
        spec.ips[1].ip: Required value
        spec.ips[1].name: Duplicate value: "a"
        spec.ips[2].ip: Invalid value: "no": must be a valid IP address
        spec.ips[2].ipFamily: Required value
        spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
        spec.ports[1].endPort: Invalid value: 79: must be greater than or equal to port
        spec.ports[2].port: Invalid value: 65536: must be between 1 and 65535, inclusive
        spec.ports[2].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
        spec.template.metadata.labels: Invalid value: {"lb":"other"}: selector does not match template labels
        spec.template.metadata.name: Forbidden: cannot be set in a template
        spec.template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].key: Unsupported value: "spec.x": supported values: "metadata.name"
        spec.template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].operator: Unsupported value: "Gt": supported values: "In", "NotIn"
        spec.template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[1].matchExpressions[0].values: Invalid value: ["x"]: must be one whole number when `operator` is 'Gt' or 'Lt'
        spec.template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[1].matchExpressions[1].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
        spec.template.spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: spec.template.spec.topologySpreadConstraints[0].maxSkew in body should be greater than or equal to 1
        spec.template.spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "ScheduleAnyway": supported values: "DoNotSchedule"
    "#]],
    );
    let mut nothing = load_balancer();
    nothing["selector"] = Value::Null;
    nothing["networkRef"] = json!({ "name": "" });
    check_create(
        "LoadBalancer",
        nothing,
        expect![[r#"
        spec.networkRef.name: Required value
        spec.selector: Required value
    "#]],
    );
    let mut all = load_balancer();
    all["selector"] = json!({});
    check_create("LoadBalancer", all, expect![[""]]);
}

#[test]
fn load_balancers_keep_type_network_and_selector() {
    let mut new = load_balancer();
    new["type"] = json!("Internal");
    new["networkRef"]["name"] = json!("other");
    new["selector"] = json!({});
    new["ips"] = json!([]);
    check_update(
        "LoadBalancer",
        load_balancer(),
        new,
        expect![[r#"
        spec.networkRef: Forbidden: field is immutable
        spec.selector: Forbidden: field is immutable
        spec.type: Forbidden: field is immutable
    "#]],
    );
}

#[test]
fn nat_gateways_need_a_possible_number_of_ports() {
    for (ports, fine) in [
        (0, false),
        (1, false),
        (2, true),
        (64, true),
        (64512, true),
        (64513, false),
        (-1, false),
    ] {
        let spec = json!({ "ipFamily": "IPv4", "networkRef": { "name": "n" }, "portsPerNetworkInterface": ports });
        let errors = create_errors(row(APINET, "NATGateway"), "x", spec);
        assert_eq!(errors.is_empty(), fine, "{ports}: {errors}");
    }
    let defaulted = json!({ "ipFamily": "IPv4", "networkRef": { "name": "n" } });
    let mut stored = object(row(APINET, "NATGateway"), "x", defaulted);
    row(APINET, "NATGateway").normalize(&mut stored);
    assert_eq!(stored["spec"]["portsPerNetworkInterface"], 2048);
    check_create(
        "NATGateway",
        json!({ "ipFamily": "IPv4", "networkRef": {}, "ips": [{ "name": "a", "ip": "fd00::1" }, { "name": "a" }] }),
        expect![[r#"
            spec.ips[0].ip: Invalid value: "fd00::1": must be an IPv4 address
            spec.ips[1].name: Duplicate value: "a"
            spec.networkRef.name: Required value
        "#]],
    );
    check_update(
        "NATGateway",
        json!({ "ipFamily": "IPv4", "networkRef": { "name": "a" } }),
        json!({ "ipFamily": "IPv6", "networkRef": { "name": "b" }, "portsPerNetworkInterface": 128 }),
        expect![[r#"
            spec.ipFamily: Forbidden: field is immutable
            spec.networkRef: Forbidden: field is immutable
        "#]],
    );
}

#[test]
fn an_autoscaler_without_maximum_has_no_bound() {
    let spec = |bounds: Value| {
        let mut spec = json!({ "natGatewayRef": { "name": "g" } });
        if let (Value::Object(spec), Value::Object(bounds)) = (&mut spec, bounds) {
            spec.extend(bounds);
        }
        spec
    };
    for bounds in [
        json!({}),
        json!({ "minPublicIPs": 3 }),
        json!({ "maxPublicIPs": 0 }),
        json!({ "minPublicIPs": 1, "maxPublicIPs": 1 }),
    ] {
        check_create("NATGatewayAutoscaler", spec(bounds), expect![[""]]);
    }
    check_create(
        "NATGatewayAutoscaler",
        spec(json!({ "minPublicIPs": -1, "maxPublicIPs": -2 })),
        expect![[r#"
            spec.maxPublicIPs: Invalid value: -2: must be greater than or equal to minPublicIPs
            spec.minPublicIPs: Invalid value: -1: must be greater than or equal to 0
        "#]],
    );
    // The gateway may not be exchanged through the main endpoint either.
    check_update(
        "NATGatewayAutoscaler",
        spec(json!({})),
        json!({ "natGatewayRef": { "name": "other" } }),
        expect![[r#"
            spec.natGatewayRef: Forbidden: field is immutable
        "#]],
    );
}

#[test]
fn nat_tables_never_hold_a_port_twice() {
    let section = |port: i32, end: i32| json!({ "ip": "10.0.0.1", "port": port, "endPort": end });
    check_flat(
        "NATTable",
        json!({ "ips": [
            { "ip": "203.0.113.1", "sections": [section(1024, 1087), section(1088, 1151)] },
            { "ip": "203.0.113.2", "sections": [section(1024, 1087)] },
        ] }),
        expect![[""]],
    );
    check_flat(
        "NATTable",
        json!({ "ips": [{ "ip": "203.0.113.1", "sections": [section(1024, 1087), section(1087, 1150), section(9, 8)] }] }),
        expect![[r#"
            ips[0].sections[1].port: Invalid value: 1087: overlaps with another section of the address
            ips[0].sections[2].endPort: Invalid value: 8: must be greater than or equal to port
        "#]],
    );
}

#[test]
fn instances_get_a_node_once() {
    let spec = |node: Option<&str>| {
        let mut spec = json!({ "type": "LoadBalancer", "loadBalancerType": "Public", "networkRef": { "name": "n" }, "ips": ["10.0.0.1"] });
        if let Some(node) = node {
            spec["nodeRef"] = json!({ "name": node });
        }
        spec
    };
    check_update("Instance", spec(None), spec(Some("a.b")), expect![[""]]);
    check_update(
        "Instance",
        spec(Some("a.b")),
        spec(Some("a.c")),
        expect![[r#"
            spec.nodeRef: Forbidden: field is immutable once set
        "#]],
    );
    check_update(
        "Instance",
        spec(Some("a.b")),
        spec(None),
        expect![[r#"
        spec.nodeRef: Forbidden: field is immutable once set
    "#]],
    );
    check_create(
        "Instance",
        json!({ "ips": ["10.0.0.1", "10.0.0.1"] }),
        expect![[r#"
            spec.ips[1]: Duplicate value: "10.0.0.1"
            spec.loadBalancerType: Required value
            spec.networkRef: Required value
            spec.type: Required value
        "#]],
    );
}

#[test]
fn daemon_sets_must_select_what_they_make() {
    check_create(
        "DaemonSet",
        json!({ "nodeSelector": { "matchLabels": { "lb": "web" } }, "template": template() }),
        expect![[""]],
    );
    check_create(
        "DaemonSet",
        json!({ "nodeSelector": { "matchLabels": { "lb": "x" } }, "template": template() }),
        expect![[r#"
            spec.template.metadata.labels: Invalid value: {"lb":"web"}: selector does not match template labels
        "#]],
    );
    check_create(
        "DaemonSet",
        json!({ "template": template() }),
        expect![[r#"
            spec.nodeSelector: Required value
        "#]],
    );
}

#[test]
fn policies() {
    let spec = json!({
        "networkRef": { "name": "a.b" },
        "networkInterfaceSelector": { "matchExpressions": [{ "key": "a", "operator": "Is" }] },
        "priority": -1,
        "ingress": [{
            "from": [
                { "objectSelector": { "kind": "VirtualIP" }, "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/8", "fd00::/8"] } },
                { "ipBlock": {} },
            ],
            "ports": [{ "port": 0 }, { "port": 70000 }, { "endPort": 4 }, { "port": 5, "endPort": 4 }, { "protocol": "ICMP" }],
        }],
        "policyTypes": ["Ingress", "Ingress"],
    });
    check_create(
        "NetworkPolicy",
        spec,
        expect![[r#"
        spec.ingress[0].from[0].ipBlock: Forbidden: may not be set together with objectSelector
        spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.0/8": must lie inside 10.0.0.0/8
        spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: "fd00::/8": must lie inside 10.0.0.0/8
        spec.ingress[0].from[0].objectSelector.kind: Unsupported value: "VirtualIP": supported values: "LoadBalancer", "NetworkInterface"
        spec.ingress[0].from[1].ipBlock.cidr: Required value
        spec.ingress[0].ports[1].port: Invalid value: 70000: must be between 1 and 65535, inclusive
        spec.ingress[0].ports[2].endPort: Forbidden: may not be set without port
        spec.ingress[0].ports[3].endPort: Invalid value: 4: must be greater than or equal to port
        spec.ingress[0].ports[4].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
        spec.networkInterfaceSelector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator
        spec.networkRef.name: Invalid value: "a.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        spec.policyTypes[1]: Duplicate value: "Ingress"
        spec.priority: Invalid value: -1: must be between 0 and 65535, inclusive
    "#]],
    );
    check_create(
        "NetworkPolicy",
        json!({ "networkRef": { "name": "n" } }),
        expect![[r#"
            spec.policyTypes: Required value
        "#]],
    );
    check_update(
        "NetworkPolicy",
        json!({ "networkRef": { "name": "n" }, "policyTypes": ["Ingress"] }),
        json!({ "networkRef": { "name": "m" }, "policyTypes": ["Egress"], "priority": 0 }),
        expect![[r#"
            spec.networkRef: Forbidden: field is immutable
        "#]],
    );
    check_flat(
        "NetworkPolicyRule",
        json!({ "ingressRule": [{ "ips": [{ "ipFamily": "IPv6", "prefix": "10.0.0.1/32" }] }] }),
        expect![[r#"
            ingressRule[0].ips[0].prefix: Invalid value: "10.0.0.1/32": must be an IPv6 prefix
            networkRef: Required value
        "#]],
    );
}

#[test]
fn columns() {
    let cells = |kind: &str, object: &Value| {
        let columns = row(APINET, kind).columns.iter();
        let shown = columns.filter(|column| column.priority == 0 && !column.is_age());
        shown
            .map(|column| format!("{}={}", column.name, column.content(object)))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let lb = full("LoadBalancer", json!({ "spec": load_balancer() }));
    expect![[r#"Name="x" Type="Public" Network="net" IPs="203.0.113.1""#]]
        .assert_eq(&cells("LoadBalancer", &lb));
    let bounds = full(
        "NATGatewayAutoscaler",
        json!({ "spec": { "natGatewayRef": { "name": "g" }, "minPublicIPs": 1 } }),
    );
    expect![[r#"Name="x" NATGateway="g" PublicIPs="1/unlimited""#]]
        .assert_eq(&cells("NATGatewayAutoscaler", &bounds));
    let policy = full(
        "NetworkPolicy",
        json!({ "spec": { "networkRef": { "name": "n" }, "networkInterfaceSelector": { "matchLabels": { "a": "b" } } } }),
    );
    expect![[r#"Name="x" Network="n" Nic-Selector="a=b""#]]
        .assert_eq(&cells("NetworkPolicy", &policy));
}

#[test]
fn a_node_is_lost_only_when_it_alone_fell_silent() {
    let lost = |status: &str, reason: &str| {
        let node = json!({ "metadata": { "name": "lab.n1" }, "status": { "conditions": [{
            "type": "Ready", "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-11-22T10:00:00Z" }] } });
        serde_json::from_value::<api::apinet::Node>(node)
            .unwrap()
            .is_lost()
    };
    assert!(!api::apinet::Node::default().is_lost());
    assert!(!lost("True", "Heartbeat"));
    assert!(lost("Unknown", "NodeSilent"));
    assert!(lost("False", "Dead"));
    assert!(!lost("Unknown", "PartitionSilent"));
}
