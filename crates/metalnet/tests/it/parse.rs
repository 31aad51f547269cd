//! Objects as the API delivers them, good and bad.

use kube::core::DynamicObject;
use metalnet::model::{DeviceStatus, Filter, Nic, SpecError, State};
use metalnet::parse::{Reader, Seen, network};
use serde_json::{Value, json};

use crate::sim::{prefix, vni};

pub fn object(mut value: Value) -> DynamicObject {
    let meta = json!({ "name": "n", "namespace": "ns", "uid": "u-1", "resourceVersion": "7" });
    let given = value.get("metadata").cloned().unwrap_or(json!({}));
    let mut meta = meta.as_object().unwrap().clone();
    meta.extend(given.as_object().unwrap().clone());
    value["metadata"] = Value::Object(meta);
    serde_json::from_value(value).unwrap()
}

pub fn reader(ipv6: bool) -> Reader {
    Reader {
        node: "h1".to_owned(),
        ipv6,
    }
}

pub fn nic(spec: Value) -> Nic {
    let mut spec = spec;
    spec["nodeName"] = json!("h1");
    spec["networkRef"] = json!({ "name": "net" });
    match reader(true).nic(object(json!({ "spec": spec }))) {
        Seen::Local(nic) => *nic,
        other => panic!("{other:?}"),
    }
}

fn error(families: Value, ips: Value) -> String {
    nic(json!({ "ipFamilies": families, "ips": ips }))
        .spec
        .unwrap_err()
        .to_string()
}

#[test]
fn a_full_interface() {
    let nic = nic(json!({
        "ipFamilies": ["IPv6", "IPv4"], "ips": ["2001:db8::1", "10.0.0.1"],
        "prefixes": ["10.1.0.5/24", "10.1.0.0/24"], "hostname": "vm",
        "meteringRate": { "totalRate": 1000, "publicRate": 500 },
    }));
    let spec = nic.spec.unwrap();
    assert_eq!(
        (spec.ipv4, spec.ipv6),
        (
            Some("10.0.0.1".parse().unwrap()),
            Some("2001:db8::1".parse().unwrap())
        )
    );
    assert_eq!(
        spec.prefixes.into_iter().collect::<Vec<_>>(),
        [prefix("10.1.0.0/24")],
        "host bits are cleared"
    );
    assert_eq!(
        (spec.total_rate, spec.public_rate, spec.hostname.as_str()),
        (1000, 500, "vm")
    );
    assert_eq!(
        (nic.network.name.as_str(), nic.network.namespace.as_str()),
        ("net", "ns")
    );
}

#[test]
fn what_cannot_be_is_an_error_and_never_a_panic() {
    assert_eq!(
        error(json!(["IPv4", "IPv6"]), json!(["10.0.0.1"])),
        "ips has 1 entries but ipFamilies has 2"
    );
    assert_eq!(
        error(json!(["IPv6"]), json!(["10.0.0.1"])),
        "ips[0] is not of family IPv6"
    );
    assert_eq!(
        error(json!(["IPv4", "IPv4"]), json!(["10.0.0.1", "10.0.0.2"])),
        "more than one address of family IPv4"
    );
    assert_eq!(
        error(json!(["IPv4"]), json!(["0.0.0.0"])),
        "neither an IPv4 nor an IPv6 address is given"
    );
    assert_eq!(
        error(json!([]), json!([])),
        "neither an IPv4 nor an IPv6 address is given"
    );
    assert_eq!(
        error(json!(["IPv4"]), json!(["224.0.0.1"])),
        "ips: 224.0.0.1 is not an address a machine can use"
    );
    assert!(error(json!(["IPv4"]), json!(["10.0.0.256"])).starts_with("the spec cannot be read"));
    assert!(error(json!(["IPvX"]), json!(["10.0.0.1"])).starts_with("the spec cannot be read"));
    let low = json!({ "ipFamilies": ["IPv4"], "ips": ["10.0.0.1"], "meteringRate": { "totalRate": 1, "publicRate": 2 } });
    assert_eq!(
        nic(low).spec,
        Err(SpecError::Metering {
            total: 1,
            public: 2
        })
    );
    let long = json!({ "ipFamilies": ["IPv4"], "ips": ["10.0.0.1"], "hostname": "x".repeat(64) });
    assert_eq!(nic(long).spec, Err(SpecError::Hostname(64)));
    assert!(nic(json!({})).spec.is_err());
}

#[test]
fn the_unspecified_address_switches_a_family_off() {
    let spec = nic(json!({ "ipFamilies": ["IPv4", "IPv6"], "ips": ["0.0.0.0", "2001:db8::1"] }))
        .spec
        .unwrap();
    assert_eq!((spec.ipv4, spec.ipv6.is_some()), (None, true));
}

#[test]
fn ipv6_needs_a_node_that_does_it() {
    let spec = json!({ "nodeName": "h1", "networkRef": { "name": "net" }, "ipFamilies": ["IPv4"], "ips": ["10.0.0.1"], "prefixes": ["2001:db8::/64"] });
    let Seen::Local(nic) = reader(false).nic(object(json!({ "spec": spec }))) else {
        panic!()
    };
    assert_eq!(
        nic.spec,
        Err(SpecError::Ipv6Disabled(prefix("2001:db8::/64")))
    );
}

#[test]
fn whose_interface_it_is() {
    let spec = |node: Option<&str>| match node {
        Some(node) => {
            json!({ "spec": { "nodeName": node, "networkRef": { "name": "net" }, "ipFamilies": [], "ips": [] } })
        }
        None => json!({ "spec": { "networkRef": {}, "ipFamilies": [], "ips": [] } }),
    };
    assert!(matches!(
        reader(true).nic(object(spec(Some("h1")))),
        Seen::Local(_)
    ));
    assert!(matches!(
        reader(true).nic(object(spec(Some("h2")))),
        Seen::Foreign(_)
    ));
    assert!(matches!(
        reader(true).nic(object(spec(None))),
        Seen::Foreign(_)
    ));
    let mut orphan = spec(None);
    orphan["metadata"] = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
    assert!(matches!(reader(true).nic(object(orphan)), Seen::Local(_)));
    let mut strange = spec(Some("h1"));
    strange["metadata"] = json!({ "uid": "../../etc/passwd" });
    assert_eq!(reader(true).nic(object(strange)), Seen::Unusable);
}

#[test]
fn status_survives_a_spec_that_cannot_be_read() {
    let value = json!({
        "spec": { "nodeName": "h1", "ips": 5 },
        "status": { "state": "Ready", "tapDevice": { "name": "dtapvf_3" }, "prefixes": ["10.0.0.0/24"] },
    });
    let Seen::Local(nic) = reader(true).nic(object(value)) else {
        panic!()
    };
    assert!(nic.spec.is_err());
    assert_eq!(nic.status.state, Some(State::Ready));
    assert_eq!(
        nic.status.device,
        Some(DeviceStatus::Tap {
            name: "dtapvf_3".to_owned()
        })
    );
}

#[test]
fn networks_and_their_peers() {
    let network = network(object(json!({
        "spec": {
            "id": 200, "peeredIDs": [300, 400, -1],
            "peeredPrefixes": [{ "id": 400, "prefixes": ["10.0.0.0/8"] }, { "id": 500, "prefixes": [] }],
        },
        "status": { "peerings": [{ "id": 300, "state": "Ready" }, { "id": 400 }] },
    })))
    .unwrap();
    assert_eq!(network.vni, Some(vni(200)));
    let peers = [
        (vni(300), Filter::All),
        (vni(400), Filter::Within(vec![prefix("10.0.0.0/8")])),
    ];
    assert_eq!(network.peers, peers.into());
    assert_eq!(
        network.peerings,
        [(300, Some(State::Ready)), (400, None)].into()
    );
    for id in [json!(0), json!(16_777_216), json!("x"), json!(-5)] {
        let odd = metalnet::parse::network(object(json!({ "spec": { "id": id } }))).unwrap();
        assert_eq!(odd.vni, None, "{id}");
    }
}

#[test]
fn filters_compare_the_length_too() {
    let filter = Filter::Within(vec![prefix("10.0.0.0/16")]);
    assert!(filter.allows(&prefix("10.0.1.0/24")) && filter.allows(&prefix("10.0.0.0/16")));
    assert!(!filter.allows(&prefix("10.0.0.0/8")) && !filter.allows(&prefix("10.1.0.0/24")));
}
