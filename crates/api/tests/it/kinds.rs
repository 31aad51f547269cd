//! The typed structs and the table: round trips, names, columns.

use std::collections::HashSet;

use api::kube_core::Resource;
use api::table::{KindInfo, NameRule, kinds};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::row;

/// Typed and back must not change a stored object.
pub fn round_trip<K>(info: &KindInfo, value: &Value)
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
{
    assert_eq!(K::kind(&()), info.kind);
    assert_eq!(K::group(&()), info.group);
    assert_eq!(K::plural(&()), info.plural);
    let typed: K = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(
        &serde_json::to_value(&typed).unwrap(),
        value,
        "{}",
        info.kind
    );
    let schema = (info.schema)();
    assert_eq!(
        schema.unknown_fields(value),
        Vec::<String>::new(),
        "{}",
        info.kind
    );
    assert_eq!(schema.validate(value), vec![], "{}", info.kind);
}

#[test]
fn user_objects_round_trip() {
    let network = json!({
        "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "Network",
        "metadata": {"name": "shop", "namespace": "default", "uid": "u", "resourceVersion": "7",
            "creationTimestamp": "2026-11-22T10:00:00Z"},
        "spec": {
            "providerID": "openkcm-net://ns/u/200/v",
            "peerings": [{"name": "p", "networkRef": {"name": "bill", "namespace": "fin"},
                "prefixes": [{"name": "web", "prefix": "10.0.0.5/24"}, {"name": "r", "prefixRef": {"name": "x"}}]}],
            "incomingPeerings": [{"namespace": "fin", "name": "bill", "uid": "w"}]
        },
        "status": {"state": "Available", "peerings": [{"name": "p", "state": "Ready",
            "prefixes": [{"name": "web", "prefix": "10.0.0.5/24"}]}]}
    });
    round_trip::<api::networking::Network>(row(api::names::NETWORKING, "Network"), &network);
    let nic = json!({
        "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "NetworkInterface",
        "metadata": {"name": "web-1"},
        "spec": {
            "networkRef": {"name": "shop"}, "machineRef": {"name": "m", "uid": "mu"},
            "ipFamilies": ["IPv4", "IPv6"],
            "ips": [{"value": "10.0.0.1"}, {"ephemeral": {"prefixTemplate":
                {"spec": {"ipFamily": "IPv6", "prefixLength": 128, "parentRef": {"name": "v6"}}}}}],
            "prefixes": [{"value": "10.9.0.0/24"}],
            "virtualIP": {"ephemeral": {"virtualIPTemplate": {"spec":
                {"type": "Public", "ipFamily": "IPv4", "reclaimPolicy": "Retain"}}}},
            "attributes": {"a": "b"}
        },
        "status": {"state": "Available", "lastStateTransitionTime": "2026-11-22T10:00:00Z",
            "ips": ["10.0.0.1"], "prefixes": ["10.9.0.0/24"], "virtualIP": "203.0.113.4"}
    });
    round_trip::<api::networking::NetworkInterface>(
        row(api::names::NETWORKING, "NetworkInterface"),
        &nic,
    );
    let vip = json!({
        "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "VirtualIP", "metadata": {"name": "v"},
        "spec": {"type": "Public", "ipFamily": "IPv4", "targetRef": {"name": "n", "uid": "u"}},
        "status": {"ip": "203.0.113.4"}
    });
    round_trip::<api::networking::VirtualIP>(row(api::names::NETWORKING, "VirtualIP"), &vip);
    let machine = json!({
        "apiVersion": "compute.openkcm.dev/v1alpha1", "kind": "Machine", "metadata": {"name": "web"},
        "spec": {
            "machineClassRef": {"name": "small"}, "machinePoolRef": {"name": "node-1"}, "power": "On",
            "networkInterfaces": [
                {"name": "front", "networkInterfaceRef": {"name": "web-1"}},
                {"name": "back", "ephemeral": {"networkInterfaceTemplate": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"networkRef": {"name": "b"}, "ipFamilies": ["IPv4"], "ips": [{"value": "10.0.0.7"}]}}}}],
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute"}],
            "guestConfig": {"hostname": "web"}
        },
        "status": {"machineID": "namespace://x", "observedGeneration": 1, "state": "Running",
            "networkInterfaces": [{"name": "front", "handle": "h", "state": "Attached",
                "networkInterfaceRef": {"name": "web-1"}}]}
    });
    round_trip::<api::compute::Machine>(row(api::names::COMPUTE, "Machine"), &machine);
    let class = json!({
        "apiVersion": "compute.openkcm.dev/v1alpha1", "kind": "MachineClass", "metadata": {"name": "small"},
        "capabilities": {"cpu": "1", "memory": "1Gi"}
    });
    round_trip::<api::compute::MachineClass>(row(api::names::COMPUTE, "MachineClass"), &class);
}

#[test]
fn system_objects_round_trip() {
    let nic = json!({
        "apiVersion": "core.apinet.openkcm.dev/v1alpha1", "kind": "NetworkInterface",
        "metadata": {"name": "n"},
        "spec": {"nodeRef": {"name": "lab.n1"}, "networkRef": {"name": "u"}, "ips": ["10.0.0.1", "fd00::1"],
            "prefixes": ["10.1.0.0/24"], "natGateways": [{"ipFamily": "IPv4", "claimRef": {"name": "g", "uid": "u"}}],
            "hostname": "web", "publicIPs": [{"name": "v", "ipFamily": "IPv6", "ip": "2001:db8::1"}]},
        "status": {"state": "Ready", "tapDevice": {"name": "dtapvf_0"}, "natIPs": [{"ip": "203.0.113.1", "port": 1024, "endPort": 2047}],
            "publicIPs": ["2001:db8::1"]}
    });
    round_trip::<api::apinet::NetworkInterface>(row(api::names::APINET, "NetworkInterface"), &nic);
    let id = json!({
        "apiVersion": "core.apinet.openkcm.dev/v1alpha1", "kind": "NetworkID", "metadata": {"name": "200"},
        "spec": {"claimRef": {"group": "g", "resource": "networks", "namespace": "ns", "name": "n", "uid": "u"}}
    });
    round_trip::<api::apinet::NetworkID>(row(api::names::APINET, "NetworkID"), &id);
    let metal = json!({
        "apiVersion": "networking.metalnet.openkcm.dev/v1alpha1", "kind": "NetworkInterface",
        "metadata": {"name": "n"},
        "spec": {"networkRef": {"name": "u"}, "ipFamilies": ["IPv4"], "ips": ["10.0.0.1"], "nodeName": "n1",
            "nat": {"ip": "203.0.113.1", "port": 1024, "endPort": 2048}, "meteringRate": {"totalRate": 10},
            "firewallRules": [{"firewallRuleID": "r", "direction": "Ingress", "action": "Accept", "priority": 1000,
                "ipFamily": "IPv4", "protocolMatch": {"protocolType": "TCP", "portRange": {"dstPort": 80}}}]},
        "status": {"state": "Ready", "tapDevice": {"name": "dtapvf_0"}}
    });
    round_trip::<api::metalnet::NetworkInterface>(
        row(api::names::METALNET, "NetworkInterface"),
        &metal,
    );
    let network = json!({
        "apiVersion": "networking.metalnet.openkcm.dev/v1alpha1", "kind": "Network", "metadata": {"name": "n"},
        "spec": {"id": 200, "peeredIDs": [201], "peeredPrefixes": [{"id": 201, "prefixes": []}]}
    });
    round_trip::<api::metalnet::Network>(row(api::names::METALNET, "Network"), &network);
}

#[test]
fn names_in_the_table_are_unique_and_complete() {
    let mut seen = HashSet::new();
    for info in kinds() {
        assert!(
            seen.insert((info.group, info.plural)),
            "{} twice",
            info.plural
        );
        assert_eq!(info.singular, info.kind.to_lowercase());
        if info.verbs.contains(&"list") {
            assert_eq!(info.list_kind, format!("{}List", info.kind));
            assert!(
                info.columns.iter().any(|column| column.format == "name"),
                "{}",
                info.kind
            );
        }
        let status = (info.schema)().properties.contains_key("status");
        if !info.builtin {
            assert_eq!(
                info.has_status(),
                status,
                "{}: status subresource and schema differ",
                info.kind
            );
        }
        for path in info.selectable {
            if !matches!(*path, "source") {
                assert!((info.schema)().at(path).is_some(), "{}: {path}", info.kind);
            }
        }
    }
    assert_eq!(kinds().iter().filter(|info| !info.builtin).count(), 30);
}

#[test]
fn every_name_rule_has_its_words() {
    let check = |rule: NameRule, good: &[&str], bad: &[&str]| {
        for name in good {
            assert_eq!(rule.problem(name), None, "{rule:?} {name}");
        }
        for name in bad {
            assert!(rule.problem(name).is_some(), "{rule:?} {name}");
        }
    };
    let long = "a".repeat(64);
    check(
        NameRule::Label,
        &["a", "a-1"],
        &["", "A", "a.b", "-a", "a-", &long],
    );
    check(
        NameRule::Subdomain,
        &["a.b", &long],
        &["", "a..b", "a_b", ".a"],
    );
    check(
        NameRule::PathSegment,
        &["system:node", "A b"],
        &["", ".", "..", "a/b", "a%b"],
    );
    check(
        NameRule::IpAddress,
        &["10.0.0.1", "2001:db8::1"],
        &["10.0.0.01", "2001:DB8::1", "x"],
    );
    check(
        NameRule::Vni,
        &["1", "16777215"],
        &["0", "01", "+1", "16777216", "x", "-1"],
    );
    assert_eq!(NameRule::Label.prefix_problem("web-"), None);
}

fn cells(info: &KindInfo, object: &Value) -> Vec<(String, Value)> {
    let columns = info.columns.iter();
    columns
        .map(|column| (column.name.to_owned(), column.content(object)))
        .collect()
}

#[test]
fn columns_read_well_for_a_realized_and_for_a_new_interface() {
    let info = row(api::names::NETWORKING, "NetworkInterface");
    let object = json!({
        "metadata": {"name": "web-1", "creationTimestamp": "2026-11-22T10:00:00Z"},
        "spec": {"networkRef": {"name": "shop"}, "machineRef": {"name": "web"}, "providerID": "openkcm-net://ns/n/lab.hv1/u"},
        "status": {"state": "Available", "ips": ["10.0.0.1", "fd00::1"]}
    });
    let show = |object: &Value| {
        cells(info, object)
            .into_iter()
            .map(|(name, cell)| format!("{name}={cell}\n"))
            .collect::<String>()
    };
    expect_test::expect![[r#"
        Name="web-1"
        Network="shop"
        Machine="web"
        IPs="10.0.0.1,fd00::1"
        VirtualIP="<none>"
        State="Available"
        Prefixes="<none>"
        Node="lab.hv1"
        ProviderID="openkcm-net://ns/n/lab.hv1/u"
        Age="2026-11-22T10:00:00Z"
    "#]]
    .assert_eq(&show(&object));
    expect_test::expect![[r#"
        Name="x"
        Network="<none>"
        Machine="<none>"
        IPs="10.0.0.9"
        VirtualIP="<none>"
        State="<unknown>"
        Prefixes="<none>"
        Node="<none>"
        ProviderID="<none>"
        Age=null
    "#]]
    .assert_eq(&show(
        &json!({"metadata": {"name": "x"}, "spec": {"ips": [{"value": "10.0.0.9"}]}}),
    ));
}

#[test]
fn no_column_fails_on_an_empty_object() {
    for info in kinds() {
        for object in [
            json!({}),
            json!(null),
            json!({"spec": [], "status": 3, "metadata": "x"}),
        ] {
            cells(info, &object);
        }
    }
}
