//! OpenKCM-net Networks are mirrored into the partition.

use api::{
    apinet, metalnet,
    names::finalizer::{metalnet_network, metalnetlet_partition},
};
use controller::sim::{Sim, verify};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::region::{
    APINET_NS, METALNET_NS, controllers, network, nic, node, object, partition, region, uid,
    without_metalnet,
};

#[test]
fn a_network_is_mirrored_under_its_uid_with_its_vni() {
    let sim = verify(without_metalnet, |sim| sim.put(&network("blue", "4711"))).expect("converges");
    let name = uid::<apinet::Network>(&sim, APINET_NS, "blue");
    let made = sim
        .get::<metalnet::Network>(METALNET_NS, &name)
        .expect("mirrored");
    assert_eq!(
        made.spec,
        metalnet::NetworkSpec {
            id: 4711,
            ..Default::default()
        }
    );
    let labels = made.metadata.labels.expect("labels");
    assert_eq!(labels["metalnetlet.openkcm.dev/network-uid"], name);
    assert_eq!(
        labels["metalnetlet.openkcm.dev/network-namespace"],
        APINET_NS
    );
    let source = sim
        .get::<apinet::Network>(APINET_NS, "blue")
        .expect("source");
    assert_eq!(
        source.metadata.finalizers,
        Some(vec![metalnetlet_partition("part")])
    );
}

#[test]
fn deleting_a_network_leaves_nothing_but_the_finalizers_of_others() {
    let sim = verify(without_metalnet, |sim| {
        let mut network = network("blue", "4711");
        network.metadata.finalizers = Some(vec![metalnetlet_partition("other")]);
        sim.put(&network);
        sim.settle().expect("settles");
        sim.delete::<apinet::Network>(APINET_NS, "blue");
    })
    .expect("converges");
    assert!(sim.list::<metalnet::Network>().is_empty());
    let source = sim
        .get::<apinet::Network>(APINET_NS, "blue")
        .expect("held by the other partition");
    assert_eq!(
        source.metadata.finalizers,
        Some(vec![metalnetlet_partition("other")])
    );
}

#[test]
fn a_network_does_not_go_under_a_living_interface() {
    let mut sim = region();
    sim.put(&node("n1"));
    sim.put(&network("blue", "4711"));
    sim.put(&nic("a", "part.n1", "blue"));
    sim.settle().expect("settles");
    sim.delete::<apinet::Network>(APINET_NS, "blue");
    sim.settle().expect("settles");
    assert_eq!(
        sim.list::<metalnet::Network>()[0]
            .metadata
            .deletion_timestamp,
        None
    );
    sim.delete::<apinet::NetworkInterface>(APINET_NS, "a");
    sim.settle().expect("settles");
    assert!(sim.list::<metalnet::Network>().is_empty());
    assert!(sim.list::<apinet::Network>().is_empty());
}

#[test]
fn a_hypervisor_that_is_gone_for_good_does_not_hold_a_network() {
    let mut sim = without_metalnet();
    for name in ["n1", "n2"] {
        sim.put(&node(name));
    }
    sim.put(&network("blue", "4711"));
    sim.settle().expect("settles");
    let name = uid::<apinet::Network>(&sim, APINET_NS, "blue");
    let (one, two) = (metalnet_network("n1"), metalnet_network("n2"));
    sim.edit::<metalnet::Network>(METALNET_NS, &name, |made| {
        made.metadata.finalizers = Some(vec![one.clone(), two.clone()]);
    });
    sim.delete::<apinet::Network>(APINET_NS, "blue");
    sim.settle().expect("settles");
    sim.delete::<Node>("", "n1");
    sim.settle().expect("settles");
    let made = sim.get::<metalnet::Network>(METALNET_NS, &name);
    let left = made.expect("held by the other").metadata.finalizers;
    assert_eq!(left, Some(vec![two]));
}

#[test]
fn a_mirror_without_source_is_deleted() {
    let mut sim = without_metalnet();
    sim.put(&network("blue", "4711"));
    sim.settle().expect("settles");
    sim.edit::<apinet::Network>(APINET_NS, "blue", |network| {
        network.metadata.finalizers = None
    });
    sim.delete::<apinet::Network>(APINET_NS, "blue");
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn an_id_that_is_no_number_is_left_alone() {
    let mut sim = without_metalnet();
    sim.put(&network("blue", "many"));
    assert_eq!(sim.settle(), Ok(0));
}

#[test]
fn with_the_option_only_used_networks_are_mirrored() {
    let mut partition = partition();
    partition.only_used_networks = true;
    let mut sim = Sim::new(controllers(partition));
    sim.put(&node("n1"));
    sim.put(&network("blue", "4711"));
    sim.settle().expect("settles");
    assert!(sim.list::<metalnet::Network>().is_empty());
    sim.put(&nic("a", "part.n1", "blue"));
    sim.settle().expect("settles");
    assert_eq!(sim.list::<metalnet::Network>().len(), 1);
    sim.delete::<apinet::NetworkInterface>(APINET_NS, "a");
    sim.settle().expect("settles");
    assert!(sim.list::<metalnet::Network>().is_empty());
    let source = sim
        .get::<apinet::Network>(APINET_NS, "blue")
        .expect("source");
    assert_eq!(
        source.metadata.finalizers.unwrap_or_default(),
        Vec::<String>::new()
    );
}

fn peered(name: &str, id: &str, peers: serde_json::Value) -> apinet::Network {
    object(json!({
        "metadata": { "name": name, "namespace": APINET_NS },
        "spec": { "id": id, "peerings": peers },
    }))
}

fn mirror(sim: &Sim, name: &str) -> metalnet::Network {
    let uid = uid::<apinet::Network>(sim, APINET_NS, name);
    sim.get(METALNET_NS, &uid).expect("mirrored")
}

#[test]
fn peers_and_their_filters_go_down_and_a_filter_that_is_not_known_yet_lets_nothing_through() {
    let sim = verify(without_metalnet, |sim| {
        sim.put(&peered(
            "blue",
            "4711",
            json!([
                { "name": "all", "id": "4712" },
                { "name": "some", "id": "4713", "prefixes": [
                    { "name": "known", "prefix": "10.0.0.0/8" }, { "name": "pending" },
                ] },
                { "name": "none-yet", "id": "4714", "prefixes": [{ "name": "pending" }] },
            ]),
        ));
    })
    .expect("converges");
    let expected = json!({
        "id": 4711,
        "peeredIDs": [4712, 4713, 4714],
        "peeredPrefixes": [
            { "id": 4713, "prefixes": ["10.0.0.0/8"] },
            { "id": 4714, "prefixes": [] },
        ],
    });
    assert_eq!(json!(mirror(&sim, "blue").spec), expected);
}

#[test]
fn the_state_of_peerings_comes_back_for_this_partition_only() {
    let mut sim = without_metalnet();
    let mut network = peered("blue", "4711", json!([{ "name": "p", "id": "4712" }]));
    let others = json!({ "peerings": { "other": [{ "id": 4712, "state": "Error" }] } });
    network.status = serde_json::from_value(others.clone()).expect("a status");
    sim.put(&network);
    sim.settle().expect("settles");
    let name = uid::<apinet::Network>(&sim, APINET_NS, "blue");
    sim.edit::<metalnet::Network>(METALNET_NS, &name, |network| {
        let status = json!({ "peerings": [{ "id": 4712, "state": "Ready" }] });
        network.status = serde_json::from_value(status).expect("a status");
    });
    sim.settle().expect("settles");
    let shown = |sim: &Sim| {
        let network = sim.get::<apinet::Network>(APINET_NS, "blue");
        json!(network.expect("source").status)
    };
    let mut expected = others.clone();
    expected["peerings"]["part"] = json!([{ "id": 4712, "state": "Ready" }]);
    assert_eq!(shown(&sim), expected);
    sim.edit::<metalnet::Network>(METALNET_NS, &name, |network| network.status = None);
    sim.settle().expect("settles");
    assert_eq!(shown(&sim), others);
}

#[test]
fn peerings_can_be_switched_off() {
    let mut partition = partition();
    partition.peering = false;
    let mut sim = Sim::new(controllers(partition));
    sim.put(&peered(
        "blue",
        "4711",
        json!([{ "name": "p", "id": "4712" }]),
    ));
    sim.settle().expect("settles");
    assert_eq!(json!(mirror(&sim, "blue").spec), json!({ "id": 4711 }));
}

#[test]
fn a_peer_of_a_used_network_is_mirrored_too() {
    let mut partition = partition();
    partition.only_used_networks = true;
    let mut sim = Sim::new(controllers(partition));
    sim.put(&node("n1"));
    sim.put(&peered(
        "blue",
        "4711",
        json!([{ "name": "p", "id": "4712" }]),
    ));
    sim.put(&peered(
        "red",
        "4712",
        json!([{ "name": "p", "id": "4711" }]),
    ));
    sim.put(&network("green", "4713"));
    sim.settle().expect("settles");
    assert!(sim.list::<metalnet::Network>().is_empty());
    sim.put(&nic("a", "part.n1", "blue"));
    sim.settle().expect("settles");
    let ids = |sim: &Sim| {
        let mut ids: Vec<i32> = sim
            .list::<metalnet::Network>()
            .iter()
            .map(|n| n.spec.id)
            .collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(&sim), [4711, 4712]);
    sim.delete::<apinet::NetworkInterface>(APINET_NS, "a");
    sim.settle().expect("settles");
    assert!(ids(&sim).is_empty());
}
