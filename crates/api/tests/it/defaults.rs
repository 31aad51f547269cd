//! Server-side defaults.

use api::table::kinds;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{object, row};

/// `spec` after normalizing an object of the kind.
fn spec_of(group: &str, kind: &str, spec: Value) -> Value {
    let row = row(group, kind);
    let mut value = object(row, "x", spec);
    row.normalize(&mut value);
    value["spec"].clone()
}

#[test]
fn interface_families_and_lengths_follow_from_the_addresses() {
    let check = |given: Value, want: Value| {
        assert_eq!(
            spec_of(api::names::NETWORKING, "NetworkInterface", given),
            want
        );
    };
    let net = json!({"name": "n"});
    check(
        json!({"networkRef": net, "ips": [{"value": "10.0.0.1"}, {"value": "fd00::1"}]}),
        json!({"networkRef": net, "ips": [{"value": "10.0.0.1"}, {"value": "fd00::1"}], "ipFamilies": ["IPv4", "IPv6"]}),
    );
    check(
        json!({"networkRef": net, "ipFamilies": ["IPv4"],
            "ips": [{"ephemeral": {"prefixTemplate": {"spec": {"parentRef": {"name": "p"}}}}}]}),
        json!({"networkRef": net, "ipFamilies": ["IPv4"],
            "ips": [{"ephemeral": {"prefixTemplate": {"spec":
                {"ipFamily": "IPv4", "prefixLength": 32, "parentRef": {"name": "p"}}}}}]}),
    );
    // The family may also follow from the template's own prefix.
    check(
        json!({"networkRef": net, "ips": [{"ephemeral": {"prefixTemplate": {"spec": {"prefix": "fd00::7/128"}}}}]}),
        json!({"networkRef": net, "ipFamilies": ["IPv6"], "ips": [{"ephemeral": {"prefixTemplate": {"spec":
            {"prefix": "fd00::7/128", "ipFamily": "IPv6"}}}}]}),
    );
    // null, empty and unknown fields do not survive.
    check(
        json!({"networkRef": net, "virtualIP": null, "typo": 1, "ips": [{"value": "10.0.0.1", "x": null}]}),
        json!({"networkRef": net, "ips": [{"value": "10.0.0.1"}], "ipFamilies": ["IPv4"]}),
    );
}

#[test]
fn machines_get_power_devices_and_interface_defaults() {
    let spec = spec_of(
        api::names::COMPUTE,
        "Machine",
        json!({"machineClassRef": {"name": "c"},
            "volumes": [{"name": "a", "localDisk": {}}, {"name": "b", "device": "oda", "localDisk": {}}],
            "networkInterfaces": [{"name": "i", "ephemeral": {"networkInterfaceTemplate":
                {"spec": {"networkRef": {"name": "n"}, "ips": [{"value": "fd00::1"}]}}}}]}),
    );
    assert_eq!(spec["power"], "On");
    assert_eq!(spec["volumes"][0]["device"], "odb");
    let nic = &spec["networkInterfaces"][0]["ephemeral"]["networkInterfaceTemplate"]["spec"];
    assert_eq!(nic["ipFamilies"], json!(["IPv6"]));
}

#[test]
fn system_defaults() {
    let ip = spec_of(
        api::names::APINET,
        "IP",
        json!({"type": "Public", "ip": "203.0.113.1"}),
    );
    assert_eq!(ip["ipFamily"], "IPv4");
    let rule = json!({"firewallRuleID": "r", "direction": "Ingress", "action": "Deny", "ipFamily": "IPv4"});
    let nic = spec_of(
        api::names::METALNET,
        "NetworkInterface",
        json!({"firewallRules": [rule]}),
    );
    assert_eq!(nic["firewallRules"][0]["priority"], 1000);
}

/// Any JSON, with field names of our kinds among others.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "10.0.0.1",
            "fd00::/64",
            "IPv4",
            "IPv6",
            "Public",
            "x"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, |inner| {
        let name = prop::sample::select(vec![
            "spec",
            "status",
            "metadata",
            "ips",
            "ipFamilies",
            "value",
            "ephemeral",
            "prefixTemplate",
            "prefix",
            "prefixLength",
            "networkInterfaces",
            "networkInterfaceTemplate",
            "volumes",
            "ignitionRef",
            "publicIPs",
            "ip",
            "prefixes",
            "name",
            "labels",
            "type",
            "policyTypes",
            "ingress",
            "destinations",
            "unknown",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..6)
                .prop_map(|map| { map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is sent, normalizing ends in a fixed point and no rule panics.
    #[test]
    fn normalizing_twice_is_normalizing_once(value in any_json(), other in any_json()) {
        for row in kinds() {
            let mut once = value.clone();
            row.normalize(&mut once);
            let mut twice = once.clone();
            row.normalize(&mut twice);
            prop_assert_eq!(&once, &twice, "{}", row.kind);
            prop_assert!((row.schema)().unknown_fields(&once).is_empty());
            row.check_create(&once);
            row.check_update(&once, &other);
            row.check_status(&other, &once);
        }
    }
}
