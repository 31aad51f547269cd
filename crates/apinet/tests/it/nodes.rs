//! Heartbeats of Nodes.

use std::{sync::Arc, time::Duration};

use api::{
    apinet::{NetworkInterface, Node},
    conditions::find,
    k8s_openapi::api::coordination::v1::Lease,
    names::{label, namespace},
};
use apinet::NodeLifecycleController;
use controller::sim::Sim;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::object;

const START_MS: u64 = 1_800_000_000_000;

fn region(nodes: &[&str]) -> Sim {
    let mut sim = Sim::new(vec![Arc::new(NodeLifecycleController {
        grace: Duration::from_secs(40),
    })]);
    sim.now_ms = START_MS;
    for name in nodes {
        let partition = name.split_once('.').expect("a partition").0;
        let node: Node = object(
            json!({ "metadata": { "name": name, "labels": { label::APINET_PARTITION: partition } } }),
        );
        sim.put(&node);
    }
    sim
}

/// A heartbeat now, at the place where metalnet or where a metalnetlet writes it.
fn beat(sim: &mut Sim, space: &str, name: &str) {
    let now = i64::try_from(sim.now_ms).expect("small");
    let now = Timestamp::from_millisecond(now)
        .expect("a time")
        .to_string();
    let lease: Lease = object(json!({
        "metadata": { "name": name, "namespace": space },
        "spec": { "renewTime": now },
    }));
    sim.put(&lease);
}

fn later(sim: &mut Sim, seconds: u64) {
    sim.now_ms += seconds * 1000;
    sim.wake_all();
    sim.settle().expect("settles");
}

fn ready(sim: &Sim, name: &str) -> String {
    let node = sim.get::<Node>("", name).expect("stays");
    let conditions = node.status.unwrap_or_default().conditions;
    find(&conditions, "Ready").map_or_else(String::new, |ready| {
        format!("{} {}", ready.status, ready.reason)
    })
}

#[test]
fn silence_makes_a_node_unknown_and_a_heartbeat_brings_it_back() {
    let mut sim = region(&["p.n1", "p.n2", "q.n1"]);
    for name in ["n1", "n2"] {
        beat(&mut sim, namespace::NODE_LEASE, name);
    }
    beat(&mut sim, namespace::APINET_NODE_LEASE, "q.n1");
    sim.settle().expect("settles");
    for name in ["p.n1", "p.n2", "q.n1"] {
        assert_eq!(ready(&sim, name), "True Heartbeat", "{name}");
    }
    sim.now_ms += 39_000;
    beat(&mut sim, namespace::NODE_LEASE, "n2");
    sim.wake_all();
    assert_eq!(sim.settle(), Ok(0), "heartbeats cause no writes");
    later(&mut sim, 2);
    assert_eq!(ready(&sim, "p.n1"), "Unknown NodeSilent");
    assert_eq!(ready(&sim, "p.n2"), "True Heartbeat");
    assert!(sim.get::<Node>("", "p.n1").expect("stays").is_lost());
    // Its lease alone wakes it: nothing else changes.
    beat(&mut sim, namespace::NODE_LEASE, "n1");
    sim.settle().expect("settles");
    assert_eq!(ready(&sim, "p.n1"), "True Heartbeat");
}

#[test]
fn the_lease_of_the_node_counts_before_that_of_a_namesake() {
    // Hypervisor n1 of partition p is served here; that of partition q has an API server of its own.
    let mut sim = region(&["p.n1", "p.n2", "q.n1", "q.n2"]);
    for name in ["n1", "n2"] {
        beat(&mut sim, namespace::NODE_LEASE, name);
        beat(&mut sim, namespace::APINET_NODE_LEASE, &format!("q.{name}"));
    }
    sim.settle().expect("settles");
    sim.now_ms += 41_000;
    beat(&mut sim, namespace::NODE_LEASE, "n1");
    beat(&mut sim, namespace::NODE_LEASE, "n2");
    beat(&mut sim, namespace::APINET_NODE_LEASE, "q.n2");
    later(&mut sim, 0);
    assert_eq!(ready(&sim, "p.n1"), "True Heartbeat");
    assert_eq!(ready(&sim, "q.n1"), "Unknown NodeSilent");
}

#[test]
fn a_partition_that_falls_silent_as_a_whole_loses_no_node() {
    let mut sim = region(&["p.n1", "p.n2"]);
    for name in ["n1", "n2"] {
        beat(&mut sim, namespace::NODE_LEASE, name);
    }
    sim.settle().expect("settles");
    later(&mut sim, 41);
    for name in ["p.n1", "p.n2"] {
        assert_eq!(ready(&sim, name), "Unknown PartitionSilent", "{name}");
        assert!(!sim.get::<Node>("", name).expect("stays").is_lost());
    }
    // One comes back: then it is the other one that has failed.
    beat(&mut sim, namespace::NODE_LEASE, "n2");
    later(&mut sim, 1);
    assert_eq!(ready(&sim, "p.n2"), "True Heartbeat");
    assert_eq!(ready(&sim, "p.n1"), "Unknown NodeSilent");
}

#[test]
fn the_only_node_of_a_partition_can_be_lost() {
    let mut sim = region(&["p.n1"]);
    beat(&mut sim, namespace::NODE_LEASE, "n1");
    sim.settle().expect("settles");
    later(&mut sim, 41);
    assert_eq!(ready(&sim, "p.n1"), "Unknown NodeSilent");
}

#[test]
fn a_node_without_lease_is_not_judged() {
    let mut sim = region(&["p.n1"]);
    later(&mut sim, 1000);
    assert_eq!(ready(&sim, "p.n1"), "");
}

/// What a machine provider made goes with the hypervisor that is gone for good, and nothing else does.
#[test]
fn interfaces_of_machines_go_with_their_hypervisor() {
    let left = |labels: serde_json::Value, node: bool| {
        let mut sim = Sim::new(vec![Arc::new(apinet::DepartedController)]);
        sim.now_ms = crate::LATE_MS;
        if node {
            let node: Node = object(json!({ "metadata": { "name": "p.n1" } }));
            sim.put(&node);
        }
        let nic: NetworkInterface = object(json!({
            "metadata": { "name": "a", "namespace": crate::NS, "labels": labels },
            "spec": { "nodeRef": { "name": "p.n1" }, "networkRef": { "name": "net" } },
        }));
        sim.put(&nic);
        sim.settle().expect("settles");
        sim.get::<NetworkInterface>(crate::NS, "a").is_some()
    };
    let made = || json!({ api::names::label::MACHINE_ID: "m" });
    assert!(left(made(), true));
    assert!(!left(made(), false));
    assert!(left(json!({}), false));
}
