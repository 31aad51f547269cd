//! User NetworkPolicy ↔ OpenKCM-net NetworkPolicy.

use api::{
    apinet,
    networking::{Network, NetworkPolicy, VirtualIP},
};
use controller::{
    object,
    sim::{Sim, verify},
};
use serde_json::{Value, json};

use crate::region::{APINET_NS, NS, network, object, reason, region, uid};

fn policy(sim: &mut Sim, extra: Value) {
    let mut spec = json!({
        "networkRef": { "name": "shop" },
        "networkInterfaceSelector": { "matchLabels": { "app": "db" } },
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let policy: NetworkPolicy = object(json!({
        "metadata": { "name": "db", "namespace": NS, "labels": { "tier": "data" } },
        "spec": spec,
    }));
    sim.put(&policy);
}

fn user(sim: &Sim) -> NetworkPolicy {
    sim.get(NS, "db").expect("the policy")
}

fn made(sim: &Sim) -> apinet::NetworkPolicy {
    let name = object::uid(&user(sim)).to_owned();
    sim.get(APINET_NS, &name).expect("made, named by uid")
}

fn why(sim: &Sim) -> String {
    reason(&user(sim).status.expect("status").conditions)
}

/// What a policy with these rules becomes.
fn translated(extra: Value, prepare: impl Fn(&mut Sim)) -> Value {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        prepare(sim);
        policy(sim, extra.clone());
    })
    .expect("converges");
    let mut spec = json!(made(&sim).spec);
    let fixed = spec.as_object_mut().expect("an object");
    fixed.remove("networkRef");
    fixed.remove("networkInterfaceSelector");
    assert_eq!(fixed.remove("priority"), Some(json!(1000)));
    spec
}

fn virtual_ip(sim: &mut Sim, name: &str, labels: Value) {
    let vip: VirtualIP = object(json!({
        "metadata": { "name": name, "namespace": NS, "labels": labels },
        "spec": { "type": "Public", "ipFamily": "IPv4" },
    }));
    sim.put(&vip);
    sim.settle().expect("settles");
}

fn address(sim: &Sim, name: &str) -> String {
    let vip: VirtualIP = sim.get(NS, name).expect("the virtual IP");
    let ip = vip.status.and_then(|status| status.ip);
    ip.expect("an address").to_string()
}

#[test]
fn every_field_in_both_directions() {
    let ingress = json!([{
        "from": [
            { "objectSelector": {
                "kind": "NetworkInterface", "matchLabels": { "app": "web" },
                "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a", "b"] }],
            } },
            { "objectSelector": { "kind": "LoadBalancer", "matchLabels": { "app": "web" } } },
            { "ipBlock": { "cidr": "10.40.0.0/16", "except": ["10.40.9.0/24"] } },
        ],
        "ports": [
            { "protocol": "TCP", "port": 5432 },
            { "protocol": "UDP", "port": 6000, "endPort": 6010 },
            { "port": 0 },
            { "protocol": "TCP" },
        ],
    }]);
    let egress = json!([
        { "to": [{ "ipBlock": { "cidr": "2001:db8::/32" } }], "ports": [{ "port": 8080 }] },
        { "ports": [{ "protocol": "UDP", "port": 53 }] },
    ]);
    let sim = verify(region, |sim| {
        network(sim, "shop");
        policy(sim, json!({ "ingress": ingress, "egress": egress }));
    })
    .expect("converges");
    let made = made(&sim);
    assert_eq!(
        json!(made.spec),
        json!({
            "networkRef": { "name": uid::<Network>(&sim, NS, "shop") },
            "networkInterfaceSelector": { "matchLabels": { "app": "db" } },
            "priority": 1000,
            "ingress": ingress,
            "egress": egress,
            "policyTypes": ["Ingress", "Egress"],
        })
    );
    assert_eq!(object::label(&made, "tier"), Some("data"));
    let uid = object::label(&made, "apinetlet.openkcm.dev/networkpolicy-uid");
    assert_eq!(uid, Some(object::uid(&user(&sim))));
}

#[test]
fn a_direction_without_rules_stays_closed() {
    assert_eq!(
        translated(json!({ "policyTypes": ["Ingress"] }), |_| {}),
        json!({ "policyTypes": ["Ingress"] })
    );
    assert_eq!(
        translated(json!({ "policyTypes": ["Ingress", "Egress"] }), |_| {}),
        json!({ "policyTypes": ["Ingress", "Egress"] })
    );
}

#[test]
fn a_rule_without_peers_allows_everybody_and_a_rule_without_anything_everything() {
    assert_eq!(
        translated(json!({ "ingress": [{}], "egress": [{}] }), |_| {}),
        json!({ "ingress": [{}], "egress": [{}], "policyTypes": ["Ingress", "Egress"] })
    );
}

#[test]
fn virtual_ips_as_peers_become_their_addresses() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        virtual_ip(sim, "a", json!({ "app": "web" }));
        virtual_ip(sim, "other", json!({ "app": "mail" }));
        let selector = json!({ "kind": "VirtualIP", "matchLabels": { "app": "web" } });
        let from = json!([{ "objectSelector": selector }]);
        policy(
            sim,
            json!({ "ingress": [{ "from": from, "ports": [{ "port": 1 }] }] }),
        );
        sim.settle().expect("settles");
        virtual_ip(sim, "b", json!({ "app": "web" }));
    })
    .expect("converges");
    let block =
        |name: &str| json!({ "ipBlock": { "cidr": format!("{}/32", address(&sim, name)) } });
    assert_eq!(
        json!(made(&sim).spec.ingress),
        json!([{ "from": [block("a"), block("b")], "ports": [{ "port": 1 }] }]),
        "a new virtual IP wakes the policy"
    );
}

#[test]
fn peers_that_resolve_to_nothing_allow_nobody_instead_of_everybody() {
    let selector = json!({ "kind": "VirtualIP", "matchLabels": { "app": "web" } });
    let lost = json!({ "objectSelector": selector });
    let block = json!({ "ipBlock": { "cidr": "10.0.0.0/8" } });
    assert_eq!(
        translated(json!({ "ingress": [{ "from": [lost] }] }), |_| {}),
        json!({ "policyTypes": ["Ingress"] }),
        "and the direction stays restricted"
    );
    assert_eq!(
        translated(json!({ "egress": [{ "to": [lost, block] }] }), |_| {}),
        json!({ "egress": [{ "to": [block] }], "policyTypes": ["Egress"] })
    );
    assert_eq!(
        translated(json!({ "ingress": [{ "from": [{}] }] }), |_| {}),
        json!({ "policyTypes": ["Ingress"] }),
        "a peer that says nothing is nobody"
    );
}

#[test]
fn an_empty_selector_stays_one_that_selects_all() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        policy(
            sim,
            json!({ "networkInterfaceSelector": {}, "policyTypes": ["Egress"] }),
        );
    })
    .expect("converges");
    assert_eq!(
        json!(made(&sim).spec)["networkInterfaceSelector"],
        json!({})
    );
}

#[test]
fn it_waits_for_its_network_and_is_woken_by_it() {
    let mut sim = region();
    policy(&mut sim, json!({ "policyTypes": ["Ingress"] }));
    sim.settle().expect("settles");
    assert_eq!(why(&sim), "!NetworkNotFound");
    network(&mut sim, "shop");
    sim.settle().expect("settles");
    assert_eq!(sim.list::<apinet::NetworkPolicy>().len(), 1);
    assert_eq!(why(&sim), "!Resolving");
}

#[test]
fn it_is_ready_once_its_selectors_are_resolved() {
    let mut sim = region();
    network(&mut sim, "shop");
    policy(&mut sim, json!({ "policyTypes": ["Ingress"] }));
    sim.settle().expect("settles");
    let rule: apinet::NetworkPolicyRule = object(json!({
        "metadata": { "name": object::name(&made(&sim)), "namespace": APINET_NS },
        "networkRef": { "name": "n", "uid": "u" },
        "targets": [
            { "ip": "10.0.0.1", "targetRef": { "name": "a", "uid": "ua" } },
            { "ip": "fd00::1", "targetRef": { "name": "a", "uid": "ua" } },
            { "ip": "10.0.0.2", "targetRef": { "name": "b", "uid": "ub" } },
        ],
        "policyTypes": ["Ingress"], "ingressRule": [], "egressRule": [],
    }));
    sim.put(&rule);
    sim.settle().expect("settles");
    assert_eq!(why(&sim), "Resolved");
    let conditions = user(&sim).status.expect("status").conditions;
    assert_eq!(conditions[0].message, "restricts 2 interfaces");
}

#[test]
fn deleting_leaves_nothing_from_any_step() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        policy(sim, json!({ "policyTypes": ["Ingress"] }));
        sim.settle().expect("settles");
        sim.delete::<NetworkPolicy>(NS, "db");
        sim.delete::<Network>(NS, "shop");
    })
    .expect("converges");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}
