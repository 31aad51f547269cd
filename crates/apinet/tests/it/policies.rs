//! NetworkPolicy → NetworkPolicyRule, in a simulated region.

use std::sync::Arc;

use api::apinet::{LoadBalancer, Network, NetworkInterface, NetworkPolicy, NetworkPolicyRule};
use apinet::NetworkPolicyController;
use controller::sim::{Sim, verify};
use serde_json::{Value, json};

use crate::{LATE_MS, NS, object};

fn region() -> Sim {
    let mut sim = Sim::new(vec![Arc::new(NetworkPolicyController)]);
    sim.now_ms = LATE_MS;
    for name in ["net", "other"] {
        let network: Network = object(
            json!({ "metadata": { "name": name, "namespace": NS, "uid": format!("{name}-uid") } }),
        );
        sim.put(&network);
    }
    sim
}

fn nic(name: &str, network: &str, app: &str, ips: Value) -> NetworkInterface {
    object(json!({
        "metadata": { "name": name, "namespace": NS, "uid": format!("{name}-uid"), "labels": { "app": app } },
        "spec": { "nodeRef": { "name": "p.n1" }, "networkRef": { "name": network }, "ips": ips },
    }))
}

fn balancer(name: &str, network: &str, ip: Option<&str>) -> LoadBalancer {
    object(json!({
        "metadata": { "name": name, "namespace": NS, "labels": { "app": "front" } },
        "spec": { "type": "Internal", "networkRef": { "name": network }, "selector": {},
            "ips": ip.map(|ip| json!([{ "name": "a", "ip": ip }])).unwrap_or(json!([])) },
    }))
}

fn policy(members: Value) -> NetworkPolicy {
    let mut spec = json!({
        "networkRef": { "name": "net" },
        "networkInterfaceSelector": { "matchLabels": { "app": "web" } },
        "policyTypes": ["Ingress"],
    });
    if let (Value::Object(spec), Value::Object(members)) = (&mut spec, members) {
        spec.extend(members);
    }
    object(
        json!({ "metadata": { "name": "pol", "namespace": NS, "uid": "pol-uid" }, "spec": spec }),
    )
}

fn rule(sim: &Sim) -> Value {
    let rule = sim
        .get::<NetworkPolicyRule>(NS, "pol")
        .expect("a rule object");
    let mut value = json!(rule);
    for list in ["ingressRule", "egressRule"] {
        for rule in value[list].as_array_mut().expect("a list") {
            let id = rule["id"].take();
            assert_eq!(id.as_str().map(str::len), Some(36), "an id");
        }
    }
    value
}

#[test]
fn selectors_become_addresses_of_the_same_network_only() {
    let sim = verify(region, |sim| {
        sim.put(&nic("web", "net", "web", json!(["10.0.0.1", "fd00::1"])));
        sim.put(&nic("db", "net", "db", json!(["10.0.0.2"])));
        // The same labels and the same addresses in another network of the namespace.
        sim.put(&nic("web-x", "other", "web", json!(["10.0.0.1"])));
        sim.put(&nic("db-x", "other", "db", json!(["10.0.0.7"])));
        sim.put(&balancer("front", "net", Some("10.0.0.100")));
        sim.put(&balancer("front-x", "other", Some("10.0.0.101")));
        sim.put(&balancer("pending", "net", None));
        sim.put(&policy(json!({ "ingress": [{
            "from": [
                { "objectSelector": { "kind": "NetworkInterface", "matchLabels": { "app": "db" } } },
                { "objectSelector": { "kind": "LoadBalancer", "matchExpressions": [{ "key": "app", "operator": "Exists" }] } },
                { "ipBlock": { "cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"] } },
            ],
            "ports": [{ "port": 22 }, { "protocol": "UDP", "port": 53, "endPort": 60 }, { "protocol": "UDP" }],
        }] })));
    })
    .expect("converges");
    let rule = rule(&sim);
    assert_eq!(
        rule["networkRef"],
        json!({ "name": "net", "uid": "net-uid" })
    );
    assert_eq!(rule["priority"], 1000);
    assert_eq!(rule["policyTypes"], json!(["Ingress"]));
    let target = |ip: &str| json!({ "ip": ip, "targetRef": { "name": "web", "uid": "web-uid" } });
    assert_eq!(
        rule["targets"],
        json!([target("10.0.0.1"), target("fd00::1")])
    );
    let host = |ip: &str| json!({ "ipFamily": "IPv4", "prefix": format!("{ip}/32") });
    assert_eq!(
        rule["ingressRule"],
        json!([{
            "id": null,
            "ipBlock": [{ "cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"] }],
            "ips": [host("10.0.0.2"), host("10.0.0.100")],
            "networkPolicyPorts": [
                { "protocol": "TCP", "port": 22, "endPort": 22 },
                { "protocol": "UDP", "port": 53, "endPort": 60 },
                { "protocol": "UDP" },
            ],
        }])
    );
    assert_eq!(rule["egressRule"], json!([]));
}

#[test]
fn absent_ports_and_peers_mean_all_and_chosen_nobody_means_nobody() {
    let mut sim = region();
    sim.put(&nic("web", "net", "web", json!(["10.0.0.1"])));
    sim.put(&policy(json!({ "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {},
            { "from": [{ "objectSelector": { "kind": "NetworkInterface", "matchLabels": { "app": "nobody" } } }] },
            { "ports": [{ "protocol": "SCTP", "port": 5 }] },
            { "from": [{}], "ports": [{ "port": 0 }, { "protocol": "SCTP", "port": 5 }] },
        ],
    })));
    sim.settle().expect("settles");
    let rule = rule(&sim);
    let everywhere = json!([{ "cidr": "0.0.0.0/0" }, { "cidr": "::/0" }]);
    assert_eq!(
        rule["ingressRule"],
        json!([
            { "id": null, "ipBlock": everywhere },
            { "id": null, "ipBlock": everywhere, "networkPolicyPorts": [{ "protocol": "TCP" }] },
        ])
    );
    // Closed: the direction is listed and nothing is allowed.
    assert_eq!(rule["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(rule["egressRule"], json!([]));
}

#[test]
fn rules_follow_what_they_select() {
    let mut sim = region();
    let from_db = json!({ "ingress": [{ "from": [
        { "objectSelector": { "kind": "NetworkInterface", "matchLabels": { "app": "db" } } }] }] });
    sim.put(&policy(from_db));
    sim.settle().expect("settles");
    let ids = |sim: &Sim| -> Vec<String> {
        let rule = sim
            .get::<NetworkPolicyRule>(NS, "pol")
            .expect("a rule object");
        rule.ingress_rule.into_iter().map(|rule| rule.id).collect()
    };
    assert!(ids(&sim).is_empty());
    sim.put(&nic("db", "net", "db", json!(["10.0.0.2"])));
    sim.settle().expect("settles");
    let first = ids(&sim);
    assert_eq!(first.len(), 1);
    // A new target changes no rule, so the rules keep their ids.
    sim.put(&nic("web", "net", "web", json!(["10.0.0.1"])));
    sim.settle().expect("settles");
    assert_eq!(ids(&sim), first);
    assert_eq!(rule(&sim)["targets"].as_array().map(Vec::len), Some(1));
    // A label that goes takes the interface out of both lists.
    sim.edit::<NetworkInterface>(NS, "web", |nic| nic.metadata.labels = None);
    sim.edit::<NetworkInterface>(NS, "db", |nic| nic.metadata.labels = None);
    sim.settle().expect("settles");
    assert!(ids(&sim).is_empty());
    assert_eq!(rule(&sim)["targets"], json!([]));
    // Back again: the same content has the same id.
    sim.put(&nic("db", "net", "db", json!(["10.0.0.2"])));
    sim.settle().expect("settles");
    assert_eq!(ids(&sim), first);
    sim.delete::<NetworkPolicy>(NS, "pol");
    sim.settle().expect("settles");
    assert!(sim.list::<NetworkPolicyRule>().is_empty());
}

#[test]
fn an_empty_selector_restricts_every_interface_of_the_network() {
    let mut sim = region();
    sim.put(&policy(
        json!({ "networkInterfaceSelector": {}, "priority": 7 }),
    ));
    for (name, network) in [("a", "net"), ("b", "net"), ("c", "other")] {
        sim.put(&nic(name, network, name, json!(["10.0.0.1"])));
    }
    sim.settle().expect("settles");
    assert_eq!(rule(&sim)["targets"].as_array().map(Vec::len), Some(2));
    assert_eq!(rule(&sim)["priority"], 7);
}

#[test]
fn a_rule_object_without_policy_goes() {
    let mut sim = region();
    let orphan: NetworkPolicyRule = object(json!({
        "metadata": { "name": "pol", "namespace": NS, "creationTimestamp": crate::CREATED },
        "networkRef": { "name": "net", "uid": "net-uid" },
    }));
    sim.put(&orphan);
    sim.settle().expect("settles");
    assert!(sim.list::<NetworkPolicyRule>().is_empty());
}

#[test]
fn nothing_is_restricted_before_the_network_is_there() {
    let mut sim = region();
    sim.put(&policy(json!({ "networkRef": { "name": "late" } })));
    assert_eq!(sim.settle(), Ok(0));
    let network: Network =
        object(json!({ "metadata": { "name": "late", "namespace": NS, "uid": "late-uid" } }));
    sim.put(&network);
    sim.settle().expect("settles");
    assert_eq!(rule(&sim)["networkRef"]["uid"], "late-uid");
    assert!(
        object::controller_of(&sim.get::<NetworkPolicyRule>(NS, "pol").expect("made")).is_some()
    );
}
