//! OpenKCM-net Networks are mirrored into the partition.

use api::{apinet, metalnet, names::finalizer::metalnetlet_partition};
use controller::sim::{Sim, verify};

use crate::region::{
    APINET_NS, METALNET_NS, controllers, network, nic, node, partition, region, uid,
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
