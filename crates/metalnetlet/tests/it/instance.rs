//! Instances on nodes of this partition become metalnet load balancers, one for each address.

use api::{apinet, metalnet, names::finalizer::metalnetlet_partition};
use controller::sim::{Sim, verify};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::region::{APINET_NS, network, node, object, region, uid};

fn instance(ips: Value, ports: Value) -> apinet::Instance {
    object(json!({
        "metadata": { "name": "web-1", "namespace": APINET_NS },
        "spec": {
            "type": "LoadBalancer", "loadBalancerType": "Public",
            "networkRef": { "name": "blue" },
            "ips": ips, "loadBalancerPorts": ports,
            "nodeRef": { "name": "part.n1" },
        },
    }))
}

fn set_up(sim: &mut Sim) {
    sim.put(&node("n1"));
    sim.put(&network("blue", "4711"));
    let ports = json!([{ "port": 80 }, { "protocol": "UDP", "port": 5000, "endPort": 5002 }]);
    sim.put(&instance(json!(["203.0.113.80", "2001:db8::80"]), ports));
}

fn made(sim: &Sim) -> Vec<metalnet::LoadBalancer> {
    sim.list::<metalnet::LoadBalancer>()
}

fn shown(sim: &Sim) -> Value {
    let instance = sim.get::<apinet::Instance>(APINET_NS, "web-1");
    json!(instance.expect("there").status)
}

#[test]
fn every_address_becomes_a_load_balancer_and_comes_back_when_it_is_served() {
    let sim = verify(region, set_up).expect("converges");
    let uid = uid::<apinet::Instance>(&sim, APINET_NS, "web-1");
    let network = crate::region::uid::<apinet::Network>(&sim, APINET_NS, "blue");
    let v4 = made(&sim).into_iter().find(|made| {
        made.spec
            .as_ref()
            .is_some_and(|spec| spec.ip.family() == api::meta::IpFamily::IPv4)
    });
    let v4 = v4.expect("made");
    let expected = json!({
        "networkRef": { "name": network }, "type": "Public", "ipFamily": "IPv4",
        "ip": "203.0.113.80", "nodeName": "n1",
        "ports": [
            { "protocol": "TCP", "port": 80 }, { "protocol": "UDP", "port": 5000 },
            { "protocol": "UDP", "port": 5001 }, { "protocol": "UDP", "port": 5002 },
        ],
    });
    assert_eq!(json!(v4.spec), expected);
    let name = v4.metadata.name.expect("a name");
    assert!(name.starts_with(&format!("{uid}-")), "{name}");
    assert_eq!(made(&sim).len(), 2);
    assert_eq!(
        shown(&sim),
        json!({ "ips": ["203.0.113.80", "2001:db8::80"] })
    );
    let instance = sim
        .get::<apinet::Instance>(APINET_NS, "web-1")
        .expect("there");
    assert_eq!(
        instance.metadata.finalizers,
        Some(vec![metalnetlet_partition("part")])
    );
}

#[test]
fn names_are_those_of_the_reference() {
    let sim = verify(region, |sim| {
        sim.put(&node("n1"));
        sim.put(&network("blue", "4711"));
        sim.put(&instance(json!(["10.0.0.1"]), json!([{ "port": 80 }])));
    })
    .expect("converges");
    let uid = uid::<apinet::Instance>(&sim, APINET_NS, "web-1");
    // FNV-1a of the four bytes, in decimal, with every digit as a letter of the safe alphabet.
    let hash = [10_u8, 0, 0, 1].iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let alphabet: Vec<char> = "bcdfghjklmnpqrstvwxz2456789".chars().collect();
    let safe: String = hash
        .to_string()
        .bytes()
        .map(|digit| alphabet[usize::from(digit) % 27])
        .collect();
    assert_eq!(made(&sim)[0].metadata.name, Some(format!("{uid}-{safe}")));
}

#[test]
fn addresses_and_ports_follow_and_deletion_leaves_nothing() {
    let mut sim = region();
    set_up(&mut sim);
    sim.settle().expect("settles");
    sim.edit::<apinet::Instance>(APINET_NS, "web-1", |instance| {
        instance.spec.ips.remove(0);
        instance.spec.load_balancer_ports.truncate(1);
    });
    sim.settle().expect("settles");
    assert_eq!(made(&sim).len(), 1);
    assert_eq!(
        made(&sim)[0].spec.as_ref().map(|spec| spec.ports.len()),
        Some(1)
    );
    assert_eq!(shown(&sim), json!({ "ips": ["2001:db8::80"] }));
    sim.delete::<apinet::Instance>(APINET_NS, "web-1");
    sim.settle().expect("settles");
    assert!(made(&sim).is_empty() && sim.list::<apinet::Instance>().is_empty());
}

#[test]
fn an_instance_is_held_until_the_data_plane_let_go() {
    let sim = verify(region, |sim| {
        set_up(sim);
        sim.settle().expect("settles");
        sim.delete::<apinet::Instance>(APINET_NS, "web-1");
        sim.delete::<apinet::Network>(APINET_NS, "blue");
    })
    .expect("converges");
    assert!(sim.list::<apinet::Instance>().is_empty() && made(&sim).is_empty());
    assert!(sim.list::<metalnet::Network>().is_empty());
}

#[test]
fn a_network_does_not_go_under_a_living_instance() {
    let mut sim = region();
    set_up(&mut sim);
    sim.settle().expect("settles");
    sim.delete::<apinet::Network>(APINET_NS, "blue");
    sim.settle().expect("settles");
    assert_eq!(
        sim.list::<metalnet::Network>()[0]
            .metadata
            .deletion_timestamp,
        None
    );
    sim.delete::<apinet::Instance>(APINET_NS, "web-1");
    sim.settle().expect("settles");
    assert!(sim.list::<metalnet::Network>().is_empty() && sim.list::<apinet::Network>().is_empty());
}

#[test]
fn ports_that_cannot_be_balanced_are_said_and_not_cut() {
    for ports in [
        json!([]),
        json!([{ "port": 1, "endPort": 65535 }]),
        json!([{ "protocol": "SCTP", "port": 5 }]),
    ] {
        let mut sim = region();
        sim.put(&node("n1"));
        sim.put(&network("blue", "4711"));
        sim.put(&instance(json!(["203.0.113.80"]), ports));
        sim.settle().expect("settles");
        assert!(made(&sim).is_empty());
        assert_eq!(shown(&sim), Value::Null);
    }
}

#[test]
fn an_instance_of_a_node_that_is_gone_is_taken_down_and_serves_nothing() {
    let sim = verify(region, |sim| {
        set_up(sim);
        sim.settle().expect("settles");
        sim.delete::<Node>("", "n1");
    })
    .expect("converges");
    assert!(made(&sim).is_empty());
    assert_eq!(shown(&sim), json!({}));
    let instance = sim
        .get::<apinet::Instance>(APINET_NS, "web-1")
        .expect("stays");
    assert!(instance.metadata.finalizers.unwrap_or_default().is_empty());
}

#[test]
fn instances_of_other_partitions_and_without_a_node_are_left_alone() {
    let mut sim = region();
    sim.put(&node("n1"));
    sim.put(&network("blue", "4711"));
    sim.settle().expect("settles");
    let mut other = instance(json!(["203.0.113.80"]), json!([{ "port": 80 }]));
    other.spec.node_ref = Some(api::meta::LocalObjectReference::new("part2.n1"));
    sim.put(&other);
    assert_eq!(sim.settle(), Ok(0));
    let mut nowhere = instance(json!(["203.0.113.81"]), json!([{ "port": 80 }]));
    nowhere.metadata.name = Some("nowhere".to_owned());
    nowhere.spec.node_ref = None;
    sim.put(&nowhere);
    assert_eq!(sim.settle(), Ok(0));
}

#[test]
fn a_load_balancer_without_its_instance_is_deleted() {
    let mut sim = region();
    set_up(&mut sim);
    sim.settle().expect("settles");
    sim.edit::<apinet::Instance>(APINET_NS, "web-1", |instance| {
        instance.metadata.finalizers = None;
        instance.spec.node_ref = None;
    });
    sim.delete::<apinet::Instance>(APINET_NS, "web-1");
    sim.settle().expect("settles");
    assert!(made(&sim).is_empty());
}

#[test]
fn an_instance_on_a_silent_hypervisor_serves_nothing() {
    let mut sim = region();
    set_up(&mut sim);
    sim.settle().expect("settles");
    sim.edit::<apinet::Node>("", "part.n1", |node| {
        let status = json!({ "conditions": [{
            "type": "Ready", "status": "Unknown", "reason": "NodeSilent", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }] });
        node.status = serde_json::from_value(status).expect("a status");
    });
    sim.settle().expect("settles");
    assert_eq!(shown(&sim), json!({}));
    assert_eq!(
        made(&sim).len(),
        2,
        "what it realizes stays: it may only be unreachable"
    );
}
