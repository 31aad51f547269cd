//! Peerings of user Networks: handed over when both sides want them, filtered by what is exposed, reported back.

use api::{
    apinet,
    ipam::Prefix,
    networking::{Network, NetworkPeeringState, NetworkPeeringStatus, NetworkState},
};
use apinetlet::{Filter, NetworkController};
use controller::{
    object,
    sim::{Sim, verify},
};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::region::{APINET_NS, NS, Reservations, filter, object, region, uid};

const FINANCE: &str = "finance";

/// Network `shop` peers with `billing` of the namespace finance, which peers back.
fn two_networks(sim: &mut Sim, prefixes: Value) {
    put(
        sim,
        NS,
        "shop",
        json!([{
            "name": "to-billing",
            "networkRef": { "namespace": FINANCE, "name": "billing" },
            "prefixes": prefixes,
        }]),
    );
    put(
        sim,
        FINANCE,
        "billing",
        json!([{ "name": "shop", "networkRef": { "namespace": NS, "name": "shop" } }]),
    );
    sim.settle().expect("settles");
    claim(sim, (NS, "shop"), (FINANCE, "billing"));
    claim(sim, (FINANCE, "billing"), (NS, "shop"));
    sim.settle().expect("settles");
}

fn put(sim: &mut Sim, namespace: &str, name: &str, peerings: Value) {
    let network: Network = object(json!({
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "peerings": peerings },
    }));
    sim.put(&network);
}

/// What the controllers of the user API do when both sides agree.
fn claim(sim: &mut Sim, of: (&str, &str), peer: (&str, &str)) {
    let uid = uid::<Network>(sim, peer.0, peer.1);
    sim.edit::<Network>(of.0, of.1, |network| {
        network.spec.incoming_peerings.push(object(json!({
            "namespace": peer.0, "name": peer.1, "uid": uid,
        })));
    });
}

fn made(sim: &Sim, namespace: &str, name: &str) -> apinet::Network {
    let uid = uid::<Network>(sim, namespace, name);
    sim.get(APINET_NS, &uid).expect("the network was made")
}

fn peerings(sim: &Sim, namespace: &str, name: &str) -> Value {
    json!(made(sim, namespace, name).spec.peerings)
}

fn shown(sim: &Sim) -> Vec<NetworkPeeringStatus> {
    let user: Network = sim.get(NS, "shop").expect("the network");
    user.status.unwrap_or_default().peerings
}

/// metalnetlets of these partitions report the peering of `shop`.
fn reported(sim: &mut Sim, states: &[(&str, &str)]) {
    let id: i32 = made(sim, FINANCE, "billing")
        .spec
        .id
        .parse()
        .expect("a VNI");
    let by_partition: serde_json::Map<String, Value> = states
        .iter()
        .map(|(partition, state)| {
            let report = json!([{ "id": id, "state": state }]);
            ((*partition).to_owned(), report)
        })
        .collect();
    let name = uid::<Network>(sim, NS, "shop");
    sim.edit::<apinet::Network>(APINET_NS, &name, |made| {
        made.status = Some(object(json!({ "peerings": by_partition })));
    });
    sim.settle().expect("settles");
}

fn prefix(sim: &mut Sim, name: &str, block: Option<&str>) {
    let mut prefix = json!({
        "metadata": { "name": name, "namespace": NS },
        "spec": { "ipFamily": "IPv4", "prefixLength": 24, "parentRef": { "name": "root" } },
        "status": { "phase": "Pending" },
    });
    if let Some(block) = block {
        prefix["spec"]["prefix"] = json!(block);
        prefix["status"]["phase"] = json!("Allocated");
    }
    let prefix: Prefix = object(prefix);
    sim.put(&prefix);
}

#[test]
fn both_sides_learn_the_vni_of_the_other() {
    let sim = verify(region, |sim| two_networks(sim, json!([]))).expect("converges");
    let (shop, billing) = (made(&sim, NS, "shop"), made(&sim, FINANCE, "billing"));
    assert_eq!(
        json!(shop.spec.peerings),
        json!([{ "name": "to-billing", "id": billing.spec.id }])
    );
    assert_eq!(
        json!(billing.spec.peerings),
        json!([{ "name": "shop", "id": shop.spec.id }])
    );
    assert_eq!(shown(&sim)[0].state, Some(NetworkPeeringState::Pending));
}

#[test]
fn a_claim_is_not_enough_when_the_peer_does_not_name_us() {
    let sim = verify(region, |sim| {
        two_networks(sim, json!([]));
        sim.edit::<Network>(FINANCE, "billing", |network| network.spec.peerings.clear());
    })
    .expect("converges");
    assert_eq!(peerings(&sim, NS, "shop"), json!([]));
    assert_eq!(peerings(&sim, FINANCE, "billing"), json!([]));
}

#[test]
fn a_claim_of_a_network_that_was_made_again_does_not_count() {
    let sim = verify(region, |sim| {
        two_networks(sim, json!([]));
        sim.edit::<Network>(NS, "shop", |network| {
            network.spec.incoming_peerings[0].uid = "of-the-one-before".to_owned();
        });
    })
    .expect("converges");
    assert_eq!(peerings(&sim, NS, "shop"), json!([]));
}

#[test]
fn a_peer_that_is_being_deleted_is_let_go() {
    let mut sim = region();
    two_networks(&mut sim, json!([]));
    sim.edit::<Network>(FINANCE, "billing", |network| {
        network
            .metadata
            .finalizers
            .get_or_insert_default()
            .push("test/held".to_owned());
    });
    sim.delete::<Network>(FINANCE, "billing");
    sim.settle().expect("settles");
    assert_eq!(peerings(&sim, NS, "shop"), json!([]));
}

#[test]
fn a_peer_without_vni_holds_up_no_other_peering_and_is_taken_up_later() {
    let third = json!([
        { "name": "first", "networkRef": { "name": "slow" } },
        { "name": "second", "networkRef": { "name": "quick" } },
    ]);
    let back = json!([{ "name": "back", "networkRef": { "name": "hub" } }]);
    let mut sim = region();
    put(&mut sim, NS, "hub", third);
    put(&mut sim, NS, "quick", back.clone());
    put(&mut sim, NS, "slow", back);
    sim.settle().expect("settles");
    claim(&mut sim, (NS, "hub"), (NS, "slow"));
    claim(&mut sim, (NS, "hub"), (NS, "quick"));
    // As if the server had not reserved a VNI for it yet.
    let slow = uid::<Network>(&sim, NS, "slow");
    let without: apinet::Network = object(json!({
        "metadata": {
            "name": slow, "namespace": APINET_NS,
            "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["test/held"],
        },
        "spec": { "id": "99" },
    }));
    sim.put(&without);
    sim.settle().expect("settles");
    let quick = made(&sim, NS, "quick").spec.id;
    assert_eq!(
        peerings(&sim, NS, "hub"),
        json!([{ "name": "second", "id": quick }])
    );
    sim.edit::<apinet::Network>(APINET_NS, &slow, |made| {
        made.metadata.finalizers = None;
    });
    sim.settle().expect("settles");
    let names: Vec<_> = made(&sim, NS, "hub").spec.peerings;
    let names: Vec<_> = names.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["first", "second"], "the peer's VNI wakes us");
}

#[test]
fn what_is_exposed_is_literal_or_allocated() {
    let sim = verify(region, |sim| {
        prefix(sim, "shop-v4", Some("10.20.7.0/24"));
        two_networks(
            sim,
            json!([
                { "name": "web", "prefix": "10.20.1.0/24" },
                { "name": "api", "prefixRef": { "name": "shop-v4" } },
            ]),
        );
    })
    .expect("converges");
    assert_eq!(
        peerings(&sim, NS, "shop")[0]["prefixes"],
        json!([
            { "name": "web", "prefix": "10.20.1.0/24" },
            { "name": "api", "prefix": "10.20.7.0/24" },
        ])
    );
}

#[test]
fn a_filter_that_is_not_known_yet_exposes_nothing_instead_of_everything() {
    let mut sim = region();
    prefix(&mut sim, "shop-v4", None);
    let reference = json!([{ "name": "api", "prefixRef": { "name": "shop-v4" } }]);
    two_networks(&mut sim, reference);
    assert_eq!(peerings(&sim, NS, "shop"), json!([]), "pending");
    prefix(&mut sim, "shop-v4", Some("10.20.7.0/24"));
    sim.settle().expect("settles");
    assert_eq!(
        peerings(&sim, NS, "shop")[0]["prefixes"],
        json!([{ "name": "api", "prefix": "10.20.7.0/24" }]),
        "the Prefix wakes us"
    );
    sim.delete::<Prefix>(NS, "shop-v4");
    sim.settle().expect("settles");
    assert_eq!(peerings(&sim, NS, "shop"), json!([]), "the Prefix is gone");
}

#[test]
fn one_pending_prefix_does_not_open_the_filter_of_the_others() {
    let mut sim = region();
    two_networks(
        &mut sim,
        json!([
            { "name": "api", "prefixRef": { "name": "absent" } },
            { "name": "web", "prefix": "10.20.1.0/24" },
        ]),
    );
    assert_eq!(
        peerings(&sim, NS, "shop")[0]["prefixes"],
        json!([{ "name": "web", "prefix": "10.20.1.0/24" }])
    );
}

#[test]
fn the_state_of_a_peering_is_the_worst_of_all_partitions_whatever_their_order() {
    let check = |states: &[(&str, &str)], expected: NetworkPeeringState| {
        let mut sim = region();
        two_networks(
            &mut sim,
            json!([{ "name": "web", "prefix": "10.1.0.0/24" }]),
        );
        reported(&mut sim, states);
        let found = shown(&sim);
        assert_eq!(found.len(), 1, "one entry per peering, not per partition");
        assert_eq!(found[0].name, "to-billing");
        assert_eq!(found[0].state, Some(expected), "{states:?}");
        let exposed = json!(found[0].prefixes);
        if expected == NetworkPeeringState::Ready {
            assert_eq!(exposed, json!([{ "name": "web", "prefix": "10.1.0.0/24" }]));
        } else {
            assert_eq!(exposed, json!([]));
        }
    };
    check(&[("a", "Ready")], NetworkPeeringState::Ready);
    check(
        &[("a", "Ready"), ("b", "Ready")],
        NetworkPeeringState::Ready,
    );
    check(
        &[("a", "Ready"), ("b", "Pending")],
        NetworkPeeringState::Pending,
    );
    check(
        &[("a", "Error"), ("b", "Pending"), ("c", "Ready")],
        NetworkPeeringState::Error,
    );
    check(
        &[("a", "Pending"), ("b", "Error")],
        NetworkPeeringState::Error,
    );
    check(&[], NetworkPeeringState::Pending);
}

#[test]
fn without_peering_nothing_is_handed_over_nor_reported() {
    let make = || {
        Sim::new(vec![
            Arc::new(NetworkController {
                filter: filter(),
                peering: false,
            }),
            Arc::new(Reservations),
        ])
    };
    let mut sim = make();
    two_networks(&mut sim, json!([]));
    reported(&mut sim, &[("a", "Ready")]);
    assert_eq!(peerings(&sim, NS, "shop"), json!([]));
    assert_eq!(shown(&sim), []);
    let user: Network = sim.get(NS, "shop").expect("the network");
    assert_eq!(
        user.status.and_then(|status| status.state),
        Some(NetworkState::Available)
    );
}

#[test]
fn a_peer_in_a_namespace_we_do_not_watch_is_taken_from_the_claim() {
    let mut sim = crate::region::region_with(Filter {
        namespace: Some(NS.to_owned()),
        ..filter()
    });
    put(
        &mut sim,
        NS,
        "shop",
        json!([{ "name": "out", "networkRef": { "namespace": FINANCE, "name": "billing" } }]),
    );
    put(&mut sim, FINANCE, "billing", json!([]));
    sim.settle().expect("settles");
    claim(&mut sim, (NS, "shop"), (FINANCE, "billing"));
    let peer: apinet::Network = object(json!({
        "metadata": { "name": uid::<Network>(&sim, FINANCE, "billing"), "namespace": APINET_NS },
        "spec": { "id": "4711" },
    }));
    sim.put(&peer);
    sim.settle().expect("settles");
    let expected = json!([{ "name": "out", "id": "4711" }]);
    assert_eq!(peerings(&sim, NS, "shop"), expected);
    assert_eq!(object::uid(&made(&sim, NS, "shop")).len(), 36);
}
