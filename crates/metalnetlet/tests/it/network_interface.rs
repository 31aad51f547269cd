//! OpenKCM-net interfaces of the partition become metalnet interfaces; device and state come back.

use api::{
    apinet, metalnet,
    names::{
        annotation::IN_DATA_PLANE,
        finalizer::{METALNET_NETWORK_INTERFACE, metalnetlet_partition},
    },
};
use controller::sim::{Sim, verify};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::region::{APINET_NS, METALNET_NS, network, nic, node, region, uid, without_metalnet};

fn set_up(sim: &mut Sim) {
    sim.put(&node("n1"));
    sim.put(&network("blue", "4711"));
    sim.put(&nic("a", "part.n1", "blue"));
}

fn made(sim: &Sim) -> metalnet::NetworkInterface {
    let name = uid::<apinet::NetworkInterface>(sim, APINET_NS, "a");
    sim.get(METALNET_NS, &name).expect("made, named by uid")
}

fn status(sim: &Sim) -> Value {
    let nic = sim
        .get::<apinet::NetworkInterface>(APINET_NS, "a")
        .expect("interface");
    json!(nic.status)
}

#[test]
fn an_interface_is_written_for_metalnet_and_its_status_comes_back() {
    let sim = verify(region, set_up).expect("converges");
    let expected = json!({
        "networkRef": { "name": uid::<apinet::Network>(&sim, APINET_NS, "blue") },
        "ipFamilies": ["IPv4", "IPv6"],
        "ips": ["10.0.0.1", "2001:db8::1"],
        "virtualIP": "203.0.113.7",
        "virtualIPs": ["2001:db8:1::1"],
        "prefixes": ["10.9.0.0/16"],
        "nodeName": "n1",
        "hostname": "vm",
    });
    assert_eq!(json!(made(&sim).spec), expected);
    let expected = json!({
        "state": "Ready",
        "tapDevice": { "name": "dtapvf_0" },
        "prefixes": ["10.9.0.0/16"],
        "publicIPs": ["203.0.113.7", "2001:db8:1::1"],
    });
    assert_eq!(status(&sim), expected);
    let nic = sim
        .get::<apinet::NetworkInterface>(APINET_NS, "a")
        .expect("interface");
    assert_eq!(
        nic.metadata.finalizers,
        Some(vec![metalnetlet_partition("part")])
    );
}

#[test]
fn deleting_an_interface_waits_for_metalnet_and_leaves_nothing() {
    let sim = verify(region, |sim| {
        set_up(sim);
        sim.settle().expect("settles");
        sim.delete::<apinet::NetworkInterface>(APINET_NS, "a");
    })
    .expect("converges");
    assert!(sim.list::<apinet::NetworkInterface>().is_empty());
    assert!(sim.list::<metalnet::NetworkInterface>().is_empty());
}

#[test]
fn an_interface_is_held_while_metalnet_has_not_let_go() {
    let mut sim = without_metalnet();
    set_up(&mut sim);
    sim.settle().expect("settles");
    let name = uid::<apinet::NetworkInterface>(&sim, APINET_NS, "a");
    sim.edit::<metalnet::NetworkInterface>(METALNET_NS, &name, |nic| {
        nic.metadata.finalizers = Some(vec!["metalnet".to_owned()]);
    });
    sim.delete::<apinet::NetworkInterface>(APINET_NS, "a");
    sim.settle().expect("settles");
    assert!(
        sim.get::<apinet::NetworkInterface>(APINET_NS, "a")
            .is_some()
    );
    sim.edit::<metalnet::NetworkInterface>(METALNET_NS, &name, |nic| {
        nic.metadata.finalizers = None
    });
    sim.settle().expect("settles");
    assert!(
        sim.get::<apinet::NetworkInterface>(APINET_NS, "a")
            .is_none()
    );
}

#[test]
fn ready_without_exactly_one_device_is_not_passed_on() {
    for devices in [
        json!({}),
        json!({ "tapDevice": { "name": "t" }, "pciAddress": { "bus": "3b" } }),
    ] {
        let mut sim = without_metalnet();
        set_up(&mut sim);
        sim.settle().expect("settles");
        let name = uid::<apinet::NetworkInterface>(&sim, APINET_NS, "a");
        sim.edit::<metalnet::NetworkInterface>(METALNET_NS, &name, |nic| {
            let mut status = devices.clone();
            status["state"] = json!("Ready");
            nic.status = serde_json::from_value(status).expect("a status");
        });
        sim.settle().expect("settles");
        assert_eq!(status(&sim)["state"], "Pending", "{devices}");
    }
}

#[test]
fn a_device_that_metalnet_takes_back_is_cleared() {
    let mut sim = without_metalnet();
    set_up(&mut sim);
    sim.settle().expect("settles");
    let name = uid::<apinet::NetworkInterface>(&sim, APINET_NS, "a");
    for (reported, expected) in [
        (
            json!({ "state": "Ready", "pciAddress": { "domain": "0", "bus": "3b", "slot": "0", "function": "2" } }),
            json!({ "state": "Ready", "pciAddress": { "domain": "0", "bus": "3b", "slot": "0", "function": "2" } }),
        ),
        (
            json!({ "state": "Ready", "tapDevice": { "name": "dtapvf_1" } }),
            json!({ "state": "Ready", "tapDevice": { "name": "dtapvf_1" } }),
        ),
        (json!({ "state": "Error" }), json!({ "state": "Error" })),
    ] {
        sim.edit::<metalnet::NetworkInterface>(METALNET_NS, &name, |nic| {
            nic.status = serde_json::from_value(reported.clone()).expect("a status");
        });
        sim.settle().expect("settles");
        assert_eq!(status(&sim), expected);
    }
}

#[test]
fn an_interface_created_before_its_network_is_picked_up_when_the_network_comes() {
    let sim = verify(region, |sim| {
        sim.put(&node("n1"));
        sim.put(&nic("a", "part.n1", "blue"));
        sim.settle().expect("settles");
        sim.put(&network("blue", "4711"));
    })
    .expect("converges");
    assert_eq!(status(&sim)["state"], "Ready");
}

#[test]
fn an_interface_of_another_partition_is_left_alone() {
    let mut sim = region();
    sim.put(&node("n1"));
    sim.put(&network("blue", "4711"));
    sim.settle().expect("settles");
    sim.put(&nic("a", "part2.n1", "blue"));
    assert_eq!(sim.settle(), Ok(0));
}

#[test]
fn an_interface_on_a_node_that_is_gone_is_taken_down_and_shown_as_pending() {
    let sim = verify(region, |sim| {
        set_up(sim);
        sim.settle().expect("settles");
        sim.delete::<Node>("", "n1");
    })
    .expect("converges");
    assert!(sim.list::<metalnet::NetworkInterface>().is_empty());
    assert_eq!(status(&sim), json!({ "state": "Pending" }));
    let nic = sim
        .get::<apinet::NetworkInterface>(APINET_NS, "a")
        .expect("stays");
    assert_eq!(
        nic.metadata.finalizers.unwrap_or_default(),
        Vec::<String>::new()
    );
}

#[test]
fn a_rate_limit_set_by_somebody_else_is_kept() {
    let sim = verify(region, |sim| {
        set_up(sim);
        sim.settle().expect("settles");
        let name = uid::<apinet::NetworkInterface>(sim, APINET_NS, "a");
        sim.edit::<metalnet::NetworkInterface>(METALNET_NS, &name, |nic| {
            nic.spec.metering_rate = Some(metalnet::MeteringRate {
                total_rate: Some(100),
                public_rate: None,
            });
        });
    })
    .expect("converges");
    assert_eq!(
        made(&sim)
            .spec
            .metering_rate
            .and_then(|rate| rate.total_rate),
        Some(100)
    );
}

#[test]
fn interfaces_of_a_lost_hypervisor_are_in_error_until_it_is_back() {
    let mut sim = region();
    set_up(&mut sim);
    sim.settle().expect("settles");
    let before = status(&sim);
    let ready = |sim: &mut Sim, status: &str, reason: &str| {
        let conditions = json!([{ "type": "Ready", "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
        sim.edit::<apinet::Node>("", "part.n1", |node| {
            let status = json!({ "conditions": conditions });
            node.status = Some(serde_json::from_value(status).expect("a status"));
        });
        sim.settle().expect("settles");
    };
    // All hypervisors fell silent together: nobody says that this one is dead.
    ready(&mut sim, "Unknown", "PartitionSilent");
    assert_eq!(status(&sim), before);
    ready(&mut sim, "Unknown", "NodeSilent");
    let mut lost = before.clone();
    lost["state"] = json!("Error");
    assert_eq!(status(&sim), lost, "it may still be forwarding");
    ready(&mut sim, "True", "Heartbeat");
    assert_eq!(status(&sim), before);
}

/// What stands on the interface about its public addresses.
fn held(sim: &Sim) -> Option<String> {
    let nic = sim.get::<apinet::NetworkInterface>(APINET_NS, "a");
    let annotations = nic.expect("there").metadata.annotations;
    annotations.and_then(|all| all.get(IN_DATA_PLANE).cloned())
}

#[test]
fn a_public_address_stands_on_the_interface_until_metalnet_has_seen_that_it_goes() {
    let mut sim = without_metalnet();
    set_up(&mut sim);
    sim.settle().expect("settles");
    let both = Some("203.0.113.7,2001:db8:1::1".to_owned());
    assert_eq!(held(&sim), both, "before metalnet reports anything");
    let name = uid::<apinet::NetworkInterface>(&sim, APINET_NS, "a");
    let report = |sim: &mut Sim, generation: i64, seen: i64, status: Value| {
        sim.edit::<metalnet::NetworkInterface>(METALNET_NS, &name, |nic| {
            let mut status = status.clone();
            status["observedGeneration"] = json!(seen);
            nic.metadata.generation = Some(generation);
            nic.status = serde_json::from_value(status).expect("a status");
        });
        sim.settle().expect("settles");
    };
    let six = json!({ "state": "Ready", "virtualIPs": ["2001:db8:1::1"] });
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "a", |nic| {
        nic.spec.public_ips.retain(|entry| entry.name == "six");
    });
    sim.settle().expect("settles");
    assert_eq!(made(&sim).spec.virtual_ip, None);
    assert_eq!(held(&sim), both, "it has not said anything yet");
    // It may be about to carry out what it was told before, and has not reported that.
    report(&mut sim, 2, 1, six.clone());
    assert_eq!(held(&sim), both);
    report(&mut sim, 2, 2, six);
    assert_eq!(held(&sim), Some("2001:db8:1::1".to_owned()));
}

#[test]
fn a_metalnet_that_does_not_say_what_it_has_seen_is_trusted_in_its_reports() {
    let mut sim = region();
    set_up(&mut sim);
    sim.settle().expect("settles");
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "a", |nic| nic.spec.public_ips.clear());
    sim.settle().expect("settles");
    assert_eq!(held(&sim), None);
}

#[test]
fn the_finalizers_of_a_hypervisor_that_is_gone_for_good_are_lifted() {
    let mut sim = without_metalnet();
    set_up(&mut sim);
    sim.settle().expect("settles");
    let name = uid::<apinet::NetworkInterface>(&sim, APINET_NS, "a");
    sim.edit::<metalnet::NetworkInterface>(METALNET_NS, &name, |nic| {
        nic.metadata.finalizers = Some(vec![METALNET_NETWORK_INTERFACE.to_owned()]);
    });
    sim.delete::<apinet::NetworkInterface>(APINET_NS, "a");
    sim.settle().expect("settles");
    let there = |sim: &Sim| {
        sim.get::<apinet::NetworkInterface>(APINET_NS, "a")
            .is_some()
    };
    assert!(there(&sim), "its metalnet may only be away");
    // The grace of the Node is over, or somebody has taken its finalizers away.
    sim.delete::<Node>("", "n1");
    sim.edit::<Node>("", "n1", |node| node.metadata.finalizers = None);
    sim.settle().expect("settles");
    assert!(!there(&sim));
    assert!(sim.list::<metalnet::NetworkInterface>().is_empty());
}

#[test]
fn a_node_waits_for_its_metalnet_to_take_down_what_it_carries() {
    let mut sim = without_metalnet();
    set_up(&mut sim);
    sim.settle().expect("settles");
    let name = uid::<apinet::NetworkInterface>(&sim, APINET_NS, "a");
    let hold = |sim: &mut Sim, finalizers: Option<Vec<String>>| {
        sim.edit::<metalnet::NetworkInterface>(METALNET_NS, &name, |nic| {
            nic.metadata.finalizers = finalizers;
        });
    };
    hold(&mut sim, Some(vec![METALNET_NETWORK_INTERFACE.to_owned()]));
    sim.delete::<Node>("", "n1");
    sim.settle().expect("settles");
    assert!(sim.get::<apinet::Node>("", "part.n1").is_none());
    assert!(sim.get::<Node>("", "n1").is_some());
    hold(&mut sim, None);
    sim.settle().expect("settles");
    assert!(sim.get::<Node>("", "n1").is_none());
}
