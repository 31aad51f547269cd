//! Targets of load balancers, peering, Prefixes made for interfaces and load balancers, and what keeps a network.

use std::sync::Arc;

use api::{
    compute::Machine,
    ipam::Prefix,
    networking::{LoadBalancer, LoadBalancerRouting, NATGateway, Network, NetworkInterface},
};
use controller::{
    Op,
    object::{controller_of, is_controlled_by},
    sim::{Sim, verify},
};
use core_controllers::{
    EphemeralNicController, LoadBalancerController, LoadBalancerEphemeralPrefixController,
    NetworkPeeringController, NetworkProtectionController, NetworkReleaseController,
    NicEphemeralPrefixController,
};
use serde_json::{Value, json};

use crate::{NS, object, uid};

fn network(namespace: &str, name: &str, peers: &[(&str, &str)]) -> Network {
    let peerings: Vec<Value> = peers
        .iter()
        .map(|(namespace, name)| {
            json!({ "name": format!("to-{namespace}-{name}"), "networkRef": { "namespace": namespace, "name": name } })
        })
        .collect();
    object(json!({
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "peerings": peerings },
        "status": { "state": "Available" },
    }))
}

fn nic(name: &str, network: &str, app: &str, state: &str, ips: &[&str]) -> NetworkInterface {
    object(json!({
        "metadata": { "name": name, "namespace": NS, "labels": { "app": app } },
        "spec": { "networkRef": { "name": network }, "providerID": format!("handle-of-{name}") },
        "status": { "state": state, "ips": ips },
    }))
}

fn balancer(name: &str, selector: Value) -> LoadBalancer {
    object(json!({
        "metadata": { "name": name, "namespace": NS },
        "spec": {
            "type": "Public", "ipFamilies": ["IPv4"], "networkRef": { "name": "shop" },
            "networkInterfaceSelector": selector,
        },
    }))
}

fn targets(sim: &Sim, name: &str) -> Option<Vec<String>> {
    let routing = sim.get::<LoadBalancerRouting>(NS, name)?;
    let destinations = routing.destinations.into_iter().map(|destination| {
        let target = destination.target_ref.expect("a target");
        format!("{} {} {}", destination.ip, target.name, target.provider_id)
    });
    Some(destinations.collect())
}

fn balancers() -> Sim {
    Sim::new(vec![Arc::new(LoadBalancerController)])
}

#[test]
fn destinations_are_the_available_interfaces_of_the_network_that_match() {
    let sim = verify(balancers, |sim| {
        sim.put(&network(NS, "shop", &[]));
        sim.put(&nic(
            "b",
            "shop",
            "web",
            "Available",
            &["10.0.0.2", "fd00::2"],
        ));
        sim.put(&nic("a", "shop", "web", "Available", &["10.0.0.1"]));
        sim.put(&nic("c", "shop", "web", "Pending", &["10.0.0.3"]));
        sim.put(&nic("d", "shop", "db", "Available", &["10.0.0.4"]));
        sim.put(&nic("e", "other", "web", "Available", &["10.0.0.5"]));
        sim.put(&balancer("lb", json!({ "matchLabels": { "app": "web" } })));
    })
    .expect("converges");
    let want = [
        "10.0.0.1 a handle-of-a",
        "10.0.0.2 b handle-of-b",
        "fd00::2 b handle-of-b",
    ];
    assert_eq!(targets(&sim, "lb"), Some(want.map(str::to_owned).to_vec()));
    let routing = sim.get::<LoadBalancerRouting>(NS, "lb").expect("made");
    assert_eq!(
        (
            routing.network_ref.name.as_str(),
            routing.network_ref.uid.clone()
        ),
        ("shop", uid::<Network>(&sim, "shop"))
    );
    let owner = controller_of(&routing).expect("owned");
    assert_eq!(
        (owner.uid.clone(), owner.block_owner_deletion),
        (uid::<LoadBalancer>(&sim, "lb"), None)
    );
}

#[test]
fn destinations_follow_their_interfaces() {
    let mut sim = balancers();
    sim.put(&network(NS, "shop", &[]));
    sim.put(&balancer("lb", json!({})));
    sim.settle().expect("settles");
    assert_eq!(targets(&sim, "lb"), Some(vec![]), "an empty list is a list");
    let check = |sim: &mut Sim, want: &[&str]| {
        sim.settle().expect("settles");
        let names: Vec<String> = targets(sim, "lb").expect("a routing");
        let names: Vec<&str> = names
            .iter()
            .filter_map(|text| text.split(' ').nth(1))
            .collect();
        assert_eq!(names, want);
    };
    sim.put(&nic("a", "shop", "web", "Available", &["10.0.0.1"]));
    sim.put(&nic("b", "shop", "web", "Available", &["10.0.0.2"]));
    check(&mut sim, &["a", "b"]);
    sim.put(&nic("a", "shop", "web", "Error", &["10.0.0.1"]));
    check(&mut sim, &["b"]);
    sim.put(&balancer("lb", json!({ "matchLabels": { "app": "web" } })));
    sim.put(&nic("b", "shop", "db", "Available", &["10.0.0.2"]));
    check(&mut sim, &[]);
    sim.put(&nic("b", "shop", "web", "Available", &["10.0.0.2"]));
    check(&mut sim, &["b"]);
    // An interface that is going gets nothing new.
    sim.edit::<NetworkInterface>(NS, "b", |nic| {
        nic.metadata.finalizers = Some(vec!["data-plane".into()]);
    });
    sim.delete::<NetworkInterface>(NS, "b");
    check(&mut sim, &[]);
    sim.delete::<LoadBalancer>(NS, "lb");
    sim.settle().expect("settles");
    assert_eq!(targets(&sim, "lb"), None);
}

/// A load balancer whose routing somebody else keeps must not stop the others of its network from being served.
#[test]
fn without_a_selector_the_routing_is_left_to_the_user() {
    let mut sim = balancers();
    sim.put(&network(NS, "shop", &[]));
    let theirs: LoadBalancerRouting = object(json!({
        "metadata": { "name": "a-manual", "namespace": NS },
        "networkRef": { "name": "shop", "uid": "u" },
        "destinations": [{ "ip": "10.0.0.9", "targetRef": { "uid": "u", "name": "n", "providerID": "p" } }],
    }));
    sim.put(&theirs);
    sim.put(&balancer("a-manual", Value::Null));
    sim.put(&balancer("lb", json!({})));
    sim.settle().expect("settles");
    sim.put(&nic("a", "shop", "web", "Available", &["10.0.0.1"]));
    sim.settle().expect("settles");
    assert_eq!(
        targets(&sim, "lb"),
        Some(vec!["10.0.0.1 a handle-of-a".into()])
    );
    assert_eq!(targets(&sim, "a-manual"), Some(vec!["10.0.0.9 n p".into()]));
}

#[test]
fn a_load_balancer_waits_for_its_network() {
    let mut sim = balancers();
    sim.put(&balancer("lb", json!({})));
    sim.settle().expect("settles");
    assert_eq!(targets(&sim, "lb"), None);
    sim.put(&network(NS, "shop", &[]));
    sim.settle().expect("settles");
    assert_eq!(targets(&sim, "lb"), Some(vec![]));
}

fn prefixes() -> Sim {
    Sim::new(vec![
        Arc::new(NicEphemeralPrefixController),
        Arc::new(LoadBalancerEphemeralPrefixController),
    ])
}

fn ephemeral(length: u8) -> Value {
    json!({ "ephemeral": { "prefixTemplate": {
        "metadata": { "labels": { "from": "template" } },
        "spec": { "ipFamily": "IPv4", "prefixLength": length, "parentRef": { "name": "site" } },
    } } })
}

fn addressed(name: &str, ips: &[Value], prefixes: &[Value]) -> NetworkInterface {
    object(json!({
        "metadata": { "name": name, "namespace": NS },
        "spec": { "networkRef": { "name": "shop" }, "ips": ips, "prefixes": prefixes },
    }))
}

fn names(sim: &Sim) -> Vec<String> {
    let all = sim.list::<Prefix>().into_iter();
    all.filter_map(|prefix| prefix.metadata.name).collect()
}

#[test]
fn ephemeral_prefixes_are_made_owned_and_follow_the_spec() {
    let fixed = json!({ "value": "10.0.0.1" });
    let routed = json!({ "value": "10.1.0.0/24" });
    let sim = verify(prefixes, |sim| {
        sim.put(&addressed(
            "web",
            &[fixed.clone(), ephemeral(32)],
            &[ephemeral(28), routed.clone(), ephemeral(27)],
        ));
        sim.put(&object::<LoadBalancer>(json!({
            "metadata": { "name": "lb", "namespace": NS },
            "spec": { "type": "Internal", "networkRef": { "name": "shop" }, "ips": [ephemeral(32)] },
        })));
    })
    .expect("converges");
    assert_eq!(names(&sim), ["lb-0", "web-1", "web-pf-0", "web-pf-2"]);
    let prefix = sim.get::<Prefix>(NS, "web-pf-2").expect("made");
    assert!(is_controlled_by(
        &prefix,
        &uid::<NetworkInterface>(&sim, "web")
    ));
    assert_eq!(json!(prefix.metadata.labels), json!({ "from": "template" }));
    assert_eq!(prefix.spec.prefix_length, Some(27));
    // Routed prefixes are marked as well, so that they too go when they leave the spec.
    let mut sim = sim;
    sim.put(&addressed("web", std::slice::from_ref(&fixed), &[]));
    sim.settle().expect("settles");
    assert_eq!(names(&sim), ["lb-0"]);
    sim.delete::<LoadBalancer>(NS, "lb");
    sim.settle().expect("settles");
    assert!(names(&sim).is_empty());
}

/// Names derived for different owners can be the same. The second owner says so and goes on when the name is free.
#[test]
fn a_name_that_two_owners_derive_is_never_shared() {
    let mut sim = prefixes();
    sim.put(&addressed("web", &[ephemeral(32)], &[]));
    sim.settle().expect("settles");
    sim.put(&object::<LoadBalancer>(json!({
        "metadata": { "name": "web", "namespace": NS },
        "spec": { "type": "Internal", "networkRef": { "name": "shop" }, "ips": [ephemeral(32)] },
    })));
    sim.settle().expect("settles");
    let owner = |sim: &Sim| controller_of(&sim.get::<Prefix>(NS, "web-0").expect("there")).cloned();
    assert_eq!(owner(&sim).expect("owned").kind, "NetworkInterface");
    assert!(sim.log.iter().any(|op| matches!(
        op,
        Op::Event {
            reason: "NameTaken",
            ..
        }
    )));
    sim.delete::<NetworkInterface>(NS, "web");
    sim.settle().expect("settles");
    assert_eq!(owner(&sim).expect("owned").kind, "LoadBalancer");
}

fn peerings() -> Sim {
    Sim::new(vec![
        Arc::new(NetworkPeeringController),
        Arc::new(NetworkReleaseController),
        Arc::new(NetworkProtectionController),
    ])
}

fn accepted(sim: &Sim, namespace: &str, name: &str) -> Vec<String> {
    let network = sim.get::<Network>(namespace, name).expect("the network");
    let claims = network.spec.incoming_peerings.into_iter().map(|claim| {
        let peer = sim.get::<Network>(&claim.namespace, &claim.name);
        let uid = peer.and_then(|peer| peer.metadata.uid);
        assert_eq!(uid, Some(claim.uid), "the claim names the living peer");
        format!("{}/{}", claim.namespace, claim.name)
    });
    claims.collect()
}

#[test]
fn networks_peer_when_both_want_it_across_namespaces() {
    let sim = verify(peerings, |sim| {
        sim.put(&network(
            NS,
            "shop",
            &[("finance", "bill"), (NS, "lonely"), ("other", "bill")],
        ));
        sim.put(&network("finance", "bill", &[(NS, "shop")]));
        sim.put(&network(NS, "lonely", &[]));
        sim.put(&network("other", "bill", &[(NS, "shop")]));
    })
    .expect("converges");
    // Two peers of one name in different namespaces are two peers.
    assert_eq!(accepted(&sim, NS, "shop"), ["finance/bill", "other/bill"]);
    assert_eq!(accepted(&sim, "finance", "bill"), ["default/shop"]);
    assert!(accepted(&sim, NS, "lonely").is_empty());
}

#[test]
fn a_peering_ends_when_one_side_removes_it_and_an_own_namespace_may_be_left_out() {
    let mut sim = peerings();
    let mut shop = network(NS, "shop", &[("", "bill")]);
    sim.put(&shop);
    let mut pending = network(NS, "bill", &[(NS, "shop")]);
    pending.status = None;
    sim.put(&pending);
    sim.settle().expect("settles");
    assert!(
        accepted(&sim, NS, "shop").is_empty(),
        "the peer is not available yet"
    );
    sim.put(&network(NS, "bill", &[(NS, "shop")]));
    sim.settle().expect("settles");
    assert_eq!(accepted(&sim, NS, "shop"), ["default/bill"]);
    assert_eq!(accepted(&sim, NS, "bill"), ["default/shop"]);
    shop.spec.peerings.clear();
    sim.edit::<Network>(NS, "shop", |shop| shop.spec.peerings.clear());
    sim.settle().expect("settles");
    assert!(accepted(&sim, NS, "shop").is_empty() && accepted(&sim, NS, "bill").is_empty());
}

/// A deleted network must not wait for a peer that waits for it; and a successor of the same name is another network.
#[test]
fn peered_networks_can_be_deleted_in_any_order_and_successors_peer_again() {
    for first in ["shop", "bill"] {
        let second = if first == "shop" { "bill" } else { "shop" };
        let sim = verify(peerings, |sim| {
            sim.put(&network(NS, "shop", &[(NS, "bill")]));
            sim.put(&network(NS, "bill", &[(NS, "shop")]));
            sim.settle().expect("settles");
            sim.delete::<Network>(NS, first);
            sim.settle().expect("settles");
            assert!(
                sim.get::<Network>(NS, first).is_none(),
                "not held by its peer"
            );
            sim.put(&network(NS, first, &[(NS, second)]));
            sim.settle().expect("settles");
            assert_eq!(accepted(sim, NS, second), [format!("default/{first}")]);
            sim.delete::<Network>(NS, first);
            sim.delete::<Network>(NS, second);
        })
        .expect("converges");
        assert!(sim.snapshot().is_empty());
    }
}

#[test]
fn the_uid_of_a_claim_counts_even_while_the_network_is_not_available() {
    let mut sim = peerings();
    let mut shop = network(NS, "shop", &[(NS, "bill")]);
    shop.status = None;
    shop.spec.incoming_peerings = vec![api::meta::UidReference {
        namespace: NS.into(),
        name: "bill".into(),
        uid: "its-predecessor".into(),
    }];
    sim.put(&network(NS, "bill", &[]));
    sim.put(&shop);
    sim.settle().expect("settles");
    assert!(accepted(&sim, NS, "shop").is_empty());
}

#[test]
fn load_balancers_gateways_and_peers_keep_a_network_and_policies_do_not() {
    let protection = || Sim::new(vec![Arc::new(NetworkProtectionController)]);
    let users: [fn(&mut Sim); 3] = [
        |sim| sim.put(&balancer("user", json!({}))),
        |sim| {
            sim.put(&object::<NATGateway>(json!({
                "metadata": { "name": "user", "namespace": NS },
                "spec": { "type": "Public", "ipFamily": "IPv4", "networkRef": { "name": "shop" } },
            })));
        },
        |sim| {
            let mut peer = network(NS, "user", &[]);
            peer.spec.incoming_peerings = vec![api::meta::UidReference {
                namespace: String::new(),
                name: "shop".into(),
                uid: uid::<Network>(sim, "shop"),
            }];
            sim.put(&peer);
        },
    ];
    for user in users {
        let mut sim = protection();
        sim.put(&network(NS, "shop", &[]));
        // A namesake elsewhere has nothing to do with it.
        sim.put(&network("other", "shop", &[]));
        user(&mut sim);
        sim.settle().expect("settles");
        sim.delete::<Network>(NS, "shop");
        sim.delete::<Network>("other", "shop");
        sim.settle().expect("settles");
        assert!(sim.get::<Network>(NS, "shop").is_some());
        assert!(sim.get::<Network>("other", "shop").is_none());
        sim.delete::<LoadBalancer>(NS, "user");
        sim.delete::<NATGateway>(NS, "user");
        sim.delete::<Network>(NS, "user");
        sim.settle().expect("settles");
        assert!(sim.snapshot().is_empty());
    }
    let mut sim = protection();
    sim.put(&network(NS, "shop", &[]));
    sim.put(&object::<api::networking::NetworkPolicy>(json!({
        "metadata": { "name": "p", "namespace": NS },
        "spec": { "networkRef": { "name": "shop" }, "policyTypes": ["Ingress"] },
    })));
    sim.settle().expect("settles");
    sim.delete::<Network>(NS, "shop");
    sim.settle().expect("settles");
    assert!(sim.get::<Network>(NS, "shop").is_none());
}

/// Hot plug: an entry taken out and put back while its interface is still going gets a new interface afterwards.
#[test]
fn an_interface_that_is_plugged_again_while_the_old_one_goes_is_made_anew() {
    let mut sim = Sim::new(vec![Arc::new(EphemeralNicController)]);
    let machine = |entries: Value| {
        object::<Machine>(json!({
            "metadata": { "name": "vm", "namespace": NS },
            "spec": { "machineClassRef": { "name": "small" }, "networkInterfaces": entries },
        }))
    };
    let entry = json!([{ "name": "nic", "ephemeral": { "networkInterfaceTemplate": {
        "spec": { "networkRef": { "name": "blue" }, "ipFamilies": ["IPv4"], "ips": [{ "value": "10.0.0.1" }] },
    } } }]);
    sim.put(&machine(entry.clone()));
    sim.settle().expect("settles");
    let old = uid::<NetworkInterface>(&sim, "vm-nic");
    sim.edit::<NetworkInterface>(NS, "vm-nic", |nic| {
        nic.metadata.finalizers = Some(vec!["data-plane".into()]);
    });
    sim.put(&machine(json!([])));
    sim.settle().expect("settles");
    sim.put(&machine(entry));
    sim.settle().expect("settles");
    assert_eq!(uid::<NetworkInterface>(&sim, "vm-nic"), old, "still going");
    sim.edit::<NetworkInterface>(NS, "vm-nic", |nic| nic.metadata.finalizers = None);
    sim.settle().expect("settles");
    assert_ne!(uid::<NetworkInterface>(&sim, "vm-nic"), old);
}
