//! What the server refuses, and in which words.

use api::names::{APINET, COMPUTE, IPAM, METALNET, NETWORKING};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{create_errors, object, row, show, update_errors};

fn check_create(group: &str, kind: &str, spec: Value, want: Expect) {
    want.assert_eq(&create_errors(row(group, kind), "x", spec));
}

fn check_update(group: &str, kind: &str, old: Value, new: Value, want: Expect) {
    want.assert_eq(&update_errors(row(group, kind), old, new));
}

#[test]
fn every_wrong_field_is_named_at_once() {
    let spec = json!({
        "networkRef": {"name": "No"}, "machineRef": {"name": "a.b"},
        "ipFamilies": ["IPv4", "IPv5"], "ips": [{"value": "fd00::1"}, {"value": "10.0.0.300"}, {}],
        "prefixes": [{"value": "10.0.0.0/8", "ephemeral": {}}],
        "virtualIP": {"virtualIPRef": {"name": ""}}, "attributes": {"a": 1}
    });
    check_create(
        NETWORKING,
        "NetworkInterface",
        spec,
        expect![[r#"
        spec.attributes.a: Invalid value: "integer": spec.attributes.a in body must be of type string: "integer"
        spec.ipFamilies[1]: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"
        spec.ips: Invalid value: [{"value":"fd00::1"},{"value":"10.0.0.300"},{}]: must have one entry for each entry of ipFamilies
        spec.ips[0].value: Invalid value: "fd00::1": must be an IPv4 address
        spec.ips[1].value: Invalid value: "10.0.0.300": must be a valid IP address
        spec.ips[2]: Invalid value: {}: exactly one of value, ephemeral must be set
        spec.machineRef.name: Invalid value: "a.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        spec.machineRef.uid: Required value
        spec.networkRef.name: Invalid value: "No": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        spec.prefixes[0]: Invalid value: {"ephemeral":{},"value":"10.0.0.0/8"}: exactly one of value, ephemeral must be set
        spec.prefixes[0].ephemeral.prefixTemplate: Required value
        spec.virtualIP.virtualIPRef.name: Required value
    "#]],
    );
    check_create(
        NETWORKING,
        "NetworkInterface",
        json!({}),
        expect![[r#"
        spec.ipFamilies: Required value
        spec.networkRef: Required value
    "#]],
    );
}

#[test]
fn ephemeral_templates() {
    let nic = |template: Value| {
        json!({"networkRef": {"name": "n"}, "ipFamilies": ["IPv4"],
        "ips": [{"ephemeral": {"prefixTemplate": template}}]})
    };
    check_create(
        NETWORKING,
        "NetworkInterface",
        nic(
            json!({"metadata": {"name": "no", "labels": {"a": "b"}}, "spec": {"ipFamily": "IPv6", "prefixLength": 64, "parentRef": {"name": "p"}}}),
        ),
        expect![[r#"
            spec.ips[0].ephemeral.prefixTemplate.metadata.name: Forbidden: cannot be set in a template
            spec.ips[0].ephemeral.prefixTemplate.spec.ipFamily: Forbidden: must be IPv4
            spec.ips[0].ephemeral.prefixTemplate.spec.prefixLength: Forbidden: must be 128
        "#]],
    );
    check_create(
        NETWORKING,
        "NetworkInterface",
        nic(json!({"spec": {"prefix": "10.0.0.0/24", "parentRef": {"name": "p"}}})),
        expect![[r#"
            spec.ips[0].ephemeral.prefixTemplate.spec.prefix: Forbidden: must be a single address
        "#]],
    );
}

#[test]
fn networks() {
    let spec = json!({"peerings": [
        {"name": "a", "networkRef": {"name": "x"}},
        {"name": "b", "networkRef": {"name": "y", "namespace": "Z"}},
        {"name": "b", "networkRef": {"name": "y", "namespace": "z"}, "prefixes": [
            {"name": "p", "prefix": "10.0.0.0/8"}, {"name": "p", "prefix": "bad"}]},
        {"name": "c", "networkRef": {"name": "y", "namespace": "z"}}
    ], "incomingPeerings": [{"name": "x"}, {"name": "q"}, {"name": "q"}, {"name": ""}]});
    check_create(
        NETWORKING,
        "Network",
        spec,
        expect![[r#"
        spec.incomingPeerings[0]: Forbidden: a network cannot peer with itself
        spec.incomingPeerings[2]: Duplicate value: {"name":"q"}
        spec.incomingPeerings[3].name: Required value
        spec.peerings[0].networkRef: Forbidden: a network cannot peer with itself
        spec.peerings[1].networkRef.namespace: Invalid value: "Z": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        spec.peerings[2].name: Duplicate value: "b"
        spec.peerings[2].prefixes[1].name: Duplicate value: "p"
        spec.peerings[2].prefixes[1].prefix: Invalid value: "bad": must be a valid IP prefix, address/length
        spec.peerings[3].networkRef: Duplicate value: {"name":"y","namespace":"z"}
    "#]],
    );
    // Two literal prefixes do not collide in their absent references.
    let two = json!({"peerings": [{"name": "a", "networkRef": {"name": "y"}, "prefixes":
        [{"name": "p", "prefix": "10.0.0.0/8"}, {"name": "q", "prefix": "11.0.0.0/8"}]}]});
    check_create(NETWORKING, "Network", two, expect![[""]]);
    check_update(
        NETWORKING,
        "Network",
        json!({}),
        json!({"providerID": "a"}),
        expect![[""]],
    );
    check_update(
        NETWORKING,
        "Network",
        json!({"providerID": "a"}),
        json!({}),
        expect![[r#"
        spec.providerID: Forbidden: field is immutable once set
    "#]],
    );
}

#[test]
fn immutable_fields_compare_addresses_by_value() {
    let nic =
        |ip: &str| json!({"nodeRef": {"name": "l.n"}, "networkRef": {"name": "u"}, "ips": [ip]});
    check_update(
        APINET,
        "NetworkInterface",
        nic("fd00::1"),
        nic("fd00:0::1"),
        expect![[""]],
    );
    check_update(
        APINET,
        "NetworkInterface",
        nic("fd00::1"),
        nic("fd00::2"),
        expect![[r#"
        spec.ips: Forbidden: field is immutable
    "#]],
    );
    let user = |network: &str, attributes: Value| json!({"networkRef": {"name": network}, "ips": [{"value": "10.0.0.1"}], "attributes": attributes});
    check_update(
        NETWORKING,
        "NetworkInterface",
        user("a", json!({})),
        user("b", json!({"k": "v"})),
        expect![[r#"
        spec.attributes: Forbidden: field is immutable
        spec.networkRef: Forbidden: field is immutable
    "#]],
    );
    let vip = |target: Value| json!({"type": "Public", "ipFamily": "IPv4", "targetRef": target});
    check_update(
        NETWORKING,
        "VirtualIP",
        vip(Value::Null),
        vip(json!({"name": "n", "uid": "u"})),
        expect![[""]],
    );
}

#[test]
fn prefixes() {
    let check = |spec: Value, want: Expect| check_create(IPAM, "Prefix", spec, want);
    check(json!({"prefix": "10.0.0.0/16"}), expect![[""]]);
    check(
        json!({"prefixLength": 24}),
        expect![[r#"
        spec.ipFamily: Required value
        spec.prefix: Required value: a root prefix must give its prefix
        spec.prefixLength: Invalid value: 24: may not be set on a root prefix
    "#]],
    );
    check(
        json!({"ipFamily": "IPv4", "prefixLength": 33, "parentRef": {}}),
        expect![[r#"
        spec.parentRef.name: Required value
        spec.prefixLength: Invalid value: 33: must be greater than 0 and at most 32
    "#]],
    );
    check(
        json!({"ipFamily": "IPv6", "prefix": "10.0.0.0/8", "parentSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
        expect![[r#"
            spec.parentSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            spec.prefix: Invalid value: "10.0.0.0/8": must be an IPv6 prefix
        "#]],
    );
    check_create(
        IPAM,
        "PrefixAllocation",
        json!({"prefix": "10.0.0.0/8", "prefixLength": 8, "ipFamily": "IPv4"}),
        expect![[r#"
        spec: Invalid value: {"ipFamily":"IPv4","prefix":"10.0.0.0/8","prefixLength":8}: either prefixRef or prefixSelector must be set
        spec.prefixLength: Forbidden: may not be set together with prefix
    "#]],
    );
}

#[test]
fn status_rules_of_prefixes() {
    let row = row(IPAM, "Prefix");
    let with = |status: Value| {
        let mut object = object(
            row,
            "x",
            json!({"ipFamily": "IPv4", "prefix": "10.0.0.0/16"}),
        );
        object["status"] = status;
        object
    };
    let check = |old: Value, new: Value, want: Expect| {
        want.assert_eq(&show(&row.check_status(&with(new), &with(old))));
    };
    let pending = json!({"phase": "Pending"});
    check(
        pending.clone(),
        json!({"phase": "Allocated", "used": ["10.0.0.0/24", "10.0.1.0/24"]}),
        expect![[""]],
    );
    check(
        pending.clone(),
        json!({"phase": "Pending", "used": ["10.0.0.0/24"]}),
        expect![[r#"
        status.used: Invalid value: ["10.0.0.0/24"]: may only be set while phase is Allocated
    "#]],
    );
    check(
        json!({"phase": "Allocated"}),
        json!({"phase": "Allocated", "used": ["10.0.0.0/24", "10.0.0.128/25", "11.0.0.0/8", "fd00::/64"]}),
        expect![[r#"
            status.used[1]: Invalid value: "10.0.0.128/25": overlaps with 10.0.0.0/24
            status.used[2]: Forbidden: not contained in 10.0.0.0/16
            status.used[3]: Invalid value: "fd00::/64": all used prefixes must be of one address family
            status.used[3]: Forbidden: not contained in 10.0.0.0/16
        "#]],
    );
    check(
        json!({"phase": "Allocated"}),
        pending,
        expect![[r#"
        status.phase: Forbidden: may not leave phase Allocated
    "#]],
    );
}

#[test]
fn machines() {
    let spec = json!({
        "machineClassRef": {}, "power": "Maybe", "guestConfig": {"hostname": "a.b"},
        "networkInterfaces": [
            {"name": "a"}, {"name": "a", "networkInterfaceRef": {"name": "n"}, "ephemeral": {}},
            {"name": "c", "ephemeral": {}},
            {"name": "d", "ephemeral": {"networkInterfaceTemplate": {"spec": {"ips": [{"value": "10.0.0.1"}]}}}}]
    });
    check_create(
        COMPUTE,
        "Machine",
        spec,
        expect![[r#"
        spec.guestConfig.hostname: Invalid value: "a.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        spec.machineClassRef.name: Required value
        spec.networkInterfaces[0]: Invalid value: {"name":"a"}: must specify at least one network interface source
        spec.networkInterfaces[1].ephemeral: Forbidden: may not specify more than one network interface source
        spec.networkInterfaces[1].name: Duplicate value: "a"
        spec.networkInterfaces[2].ephemeral.networkInterfaceTemplate: Required value
        spec.networkInterfaces[3].ephemeral.networkInterfaceTemplate.spec.networkRef: Required value
        spec.power: Unsupported value: "Maybe": supported values: "Off", "On"
    "#]],
    );
    let pool = |pool: Value| json!({"machineClassRef": {"name": "c"}, "machinePoolRef": pool});
    check_update(
        COMPUTE,
        "Machine",
        pool(Value::Null),
        pool(json!({"name": "p"})),
        expect![[""]],
    );
    check_update(
        COMPUTE,
        "Machine",
        pool(json!({"name": "p"})),
        pool(json!({"name": "q"})),
        expect![[r#"
        spec.machinePoolRef: Forbidden: field is immutable once set
    "#]],
    );
    let class = row(COMPUTE, "MachineClass");
    let object = json!({"metadata": {"name": "c"}, "capabilities": {"cpu": "0", "gpu": "x"}});
    expect![[r#"
        capabilities.cpu: Invalid value: "0": must be greater than zero
        capabilities.gpu: Invalid value: "x": must be a quantity
        capabilities.memory: Required value
    "#]]
    .assert_eq(&show(&class.check_create(&object)));
}

#[test]
fn system_kinds() {
    check_create(
        APINET,
        "IP",
        json!({"type": "Private"}),
        expect![[r#"
        spec.ipFamily: Required value
        spec.type: Unsupported value: "Private": supported values: "Public"
    "#]],
    );
    check_create(
        APINET,
        "Network",
        json!({"id": "16777216"}),
        expect![[r#"
        spec.id: Invalid value: "16777216": must be a decimal number from 1 to 16777215
    "#]],
    );
    check_create(
        APINET,
        "NetworkInterface",
        json!({"nodeRef": {"name": ""}, "ips": ["10.0.0.1", "10.0.0.2"], "hostname": "A",
            "publicIPs": [{"name": "a", "ip": "203.0.113.1"}, {"name": "a", "ipFamily": "IPv6", "ip": "203.0.113.2"}],
            "natGateways": [{"ipFamily": "IPv4", "claimRef": {"name": "g", "uid": "u"}}]}),
        expect![[r#"
            spec.hostname: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.ips[1]: Duplicate value: "10.0.0.2"
            spec.natGateways[0].ipFamily: Duplicate value: "IPv4"
            spec.networkRef: Required value
            spec.nodeRef.name: Required value
            spec.publicIPs[1].ip: Invalid value: "203.0.113.2": must be an IPv6 address
            spec.publicIPs[1].name: Duplicate value: "a"
        "#]],
    );
    let address = row(APINET, "IPAddress");
    expect![[r#"
        spec.ip: Invalid value: "203.0.113.2": must equal metadata.name
    "#]]
    .assert_eq(&create_errors(
        address,
        "203.0.113.1",
        json!({"ip": "203.0.113.2"}),
    ));
    check_create(
        METALNET,
        "Network",
        json!({"id": 0}),
        expect![[r#"
        spec.id: Invalid value: 0: spec.id in body should be greater than or equal to 1
    "#]],
    );
    check_create(
        METALNET,
        "NetworkInterface",
        json!({"networkRef": {"name": "n"}, "ipFamilies": [], "ips": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}),
        expect![[r#"
            spec.ipFamilies: Invalid value: 0: spec.ipFamilies in body should have at least 1 items
            spec.ips: Invalid value: ["10.0.0.1","10.0.0.2","10.0.0.3"]: must have one entry for each entry of ipFamilies
            spec.ips: Too many: 3: must have at most 2 items
        "#]],
    );
}

#[test]
fn metadata() {
    let row = row(NETWORKING, "Network");
    let mut bad = object(row, "Bad_Name", json!({}));
    bad["metadata"]["labels"] = json!({"a b": "x", "ok": "not ok"});
    bad["metadata"]["annotations"] = json!({"/x": "y"});
    bad["metadata"]["finalizers"] = json!(["plain"]);
    bad["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "v1", "kind": "K", "name": "a", "uid": "1", "controller": true},
        {"apiVersion": "v1", "kind": "K", "name": "", "uid": "2", "controller": true}]);
    expect![[r#"
        metadata.annotations: Invalid value: "/x": prefix part must be non-empty
        metadata.finalizers[0]: Invalid value: "plain": name is neither a standard finalizer name nor is it fully qualified
        metadata.labels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        metadata.labels: Invalid value: "not ok": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        metadata.ownerReferences: Invalid value: null: Only one reference can have Controller set to true
        metadata.ownerReferences[1].name: Invalid value: "": must not be empty
    "#]]
    .assert_eq(&show(&row.check_create(&bad)));
    let mut old = object(row, "x", json!({}));
    old["metadata"]["deletionTimestamp"] = "2026-11-22T10:00:00Z".into();
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!(["a/b"]);
    new["metadata"]["uid"] = "other".into();
    expect![[r#"
        metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{"a/b"}
        metadata.uid: Invalid value: "other": field is immutable
    "#]]
    .assert_eq(&show(&row.check_update(&new, &old)));
}

/// Generator of legal interface specs and no others.
fn legal_nic() -> impl Strategy<Value = Value> {
    let v4 = any::<u32>().prop_map(|bits| std::net::Ipv4Addr::from(bits).to_string());
    let v6 = any::<u128>().prop_map(|bits| std::net::Ipv6Addr::from(bits).to_string());
    let source = |value: BoxedStrategy<String>| {
        prop_oneof![
            value.prop_map(|value| json!({"value": value})),
            Just(json!({"ephemeral": {"prefixTemplate": {"spec": {"parentRef": {"name": "p"}}}}})),
        ]
    };
    let (v4, v6) = (source(v4.boxed()), source(v6.boxed()));
    let families = prop_oneof![
        v4.clone().prop_map(|a| (json!(["IPv4"]), json!([a]))),
        v6.clone().prop_map(|a| (json!(["IPv6"]), json!([a]))),
        (v4, v6).prop_map(|(a, b)| (json!(["IPv4", "IPv6"]), json!([a, b]))),
    ];
    (
        families,
        "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?",
        prop::option::of(0_u8..=32),
    )
        .prop_map(|((families, ips), network, prefix)| {
            let mut spec =
                json!({"networkRef": {"name": network}, "ipFamilies": families, "ips": ips});
            if let Some(bits) = prefix {
                spec["prefixes"] = json!([{"value": format!("10.1.2.3/{bits}")}]);
            }
            spec
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn legal_interfaces_are_accepted_and_parse(spec in legal_nic(), name in "[a-z]{1,30}") {
        let row = row(NETWORKING, "NetworkInterface");
        prop_assert_eq!(create_errors(row, &name, spec.clone()), "");
        prop_assert_eq!(update_errors(row, spec.clone(), spec.clone()), "");
        let mut value = object(row, &name, spec);
        row.normalize(&mut value);
        let typed: api::networking::NetworkInterface = serde_json::from_value(value.clone()).unwrap();
        prop_assert_eq!(serde_json::to_value(&typed).unwrap(), value);
    }
}

/// A length of zero is no length.
#[test]
fn a_child_prefix_needs_a_block_or_a_length() {
    check_create(
        IPAM,
        "Prefix",
        json!({"ipFamily": "IPv4", "prefixLength": 0, "parentRef": {"name": "p"}}),
        expect![[r#"
            spec: Invalid value: {"ipFamily":"IPv4","parentRef":{"name":"p"},"prefixLength":0}: either prefix or prefixLength must be set
        "#]],
    );
}

#[test]
fn overlaps_of_used_prefixes_are_found_in_any_order() {
    let row = row(IPAM, "Prefix");
    let check = |used: Value, want: Expect| {
        let mut value = object(row, "x", json!({"prefix": "10.0.0.0/8"}));
        value["status"] = json!({"phase": "Allocated", "used": used});
        row.normalize(&mut value);
        want.assert_eq(&show(&row.check_status(&value, &value)));
    };
    check(
        json!(["10.1.0.0/16", "10.0.0.0/16", "10.2.0.0/15"]),
        expect![[""]],
    );
    check(
        json!([
            "10.1.2.0/24",
            "10.9.0.0/16",
            "10.1.0.0/16",
            "10.1.3.0/24",
            "10.9.0.0/16"
        ]),
        expect![[r#"
            status.used[2]: Invalid value: "10.1.0.0/16": overlaps with 10.1.2.0/24
            status.used[3]: Invalid value: "10.1.3.0/24": overlaps with 10.1.0.0/16
            status.used[4]: Invalid value: "10.9.0.0/16": overlaps with 10.9.0.0/16
        "#]],
    );
    check(
        json!(["10.1.2.0/24", "fd00::/8", "11.0.0.0/8"]),
        expect![[r#"
            status.used[1]: Invalid value: "fd00::/8": all used prefixes must be of one address family
            status.used[1]: Forbidden: not contained in 10.0.0.0/8
            status.used[2]: Forbidden: not contained in 10.0.0.0/8
        "#]],
    );
}
