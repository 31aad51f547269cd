//! Nodes of the compute cluster are published under the partition's name.

use std::collections::BTreeMap;

use api::{apinet, names::finalizer::METALNETLET_NODE};
use controller::sim::verify;
use k8s_openapi::api::core::v1::Node;
use metalnetlet::{Partition, PartitionError};

use crate::region::{node, object, without_metalnet};
use serde_json::json;

#[test]
fn a_node_is_published_with_exactly_the_configured_labels() {
    let sim = verify(without_metalnet, |sim| sim.put(&node("n1"))).expect("converges");
    let published = sim.get::<apinet::Node>("", "part.n1").expect("published");
    let expected = BTreeMap::from([
        (
            "topology.core.apinet.openkcm.dev/partition".to_owned(),
            "part".to_owned(),
        ),
        (
            "topology.core.apinet.openkcm.dev/zone".to_owned(),
            "z1".to_owned(),
        ),
    ]);
    assert_eq!(published.metadata.labels, Some(expected));
    let node = sim.get::<Node>("", "n1").expect("node");
    assert_eq!(
        node.metadata.finalizers,
        Some(vec![METALNETLET_NODE.to_owned()])
    );
}

#[test]
fn deleting_a_node_withdraws_it() {
    let sim = verify(without_metalnet, |sim| {
        sim.put(&node("n1"));
        sim.settle().expect("settles");
        sim.delete::<Node>("", "n1");
    })
    .expect("converges");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn a_published_node_without_cluster_node_is_withdrawn_but_not_one_of_another_partition() {
    let mut sim = without_metalnet();
    for name in ["part.gone", "part2.gone", "other.part.gone"] {
        sim.put(&object::<apinet::Node>(
            json!({ "metadata": { "name": name } }),
        ));
    }
    sim.settle().expect("settles");
    let left: Vec<_> = sim
        .list::<apinet::Node>()
        .into_iter()
        .map(|n| n.metadata.name)
        .collect();
    assert_eq!(
        left,
        [
            Some("other.part.gone".to_owned()),
            Some("part2.gone".to_owned())
        ]
    );
}

#[test]
fn a_published_node_deleted_by_hand_comes_back_and_a_stale_label_goes() {
    let mut sim = without_metalnet();
    sim.put(&node("n1"));
    sim.settle().expect("settles");
    sim.delete::<apinet::Node>("", "part.n1");
    sim.settle().expect("settles");
    assert!(sim.get::<apinet::Node>("", "part.n1").is_some());
}

#[test]
fn a_partition_name_with_a_dot_is_refused() {
    let refused =
        Partition::new("a.b", "metalnet-system").map(|partition| partition.name().to_owned());
    assert_eq!(refused, Err(PartitionError::Name("a.b".to_owned())));
}
