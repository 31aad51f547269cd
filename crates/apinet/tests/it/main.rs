//! The collectors free what nobody holds, and never what somebody does.

#![expect(
    clippy::expect_used,
    reason = "helpers of tests: a failure is the message"
)]

mod autoscaler;
mod balancing;
mod certificates;
mod nat;
mod nodes;
mod placement;
mod policies;
mod ports;
mod region;
mod released;

use std::{sync::Arc, time::Duration};

use api::{
    apinet::{IP, IPAddress, Network, NetworkID, NetworkInterface},
    names::finalizer::IP_ADDRESS_PROTECTION,
};
use apinet::{GRACE, IpAddressController, IpClaimController, NetworkIdController};
use controller::{
    Controller, Key, Object, object,
    sim::{Sim, verify},
};
use serde_json::json;

const NS: &str = "openkcm-net-system";
/// Well after every object of these tests was made.
const LATE_MS: u64 = 2_000_000_000_000;
const CREATED: &str = "2026-01-01T00:00:00Z";
const CREATED_MS: u64 = 1_767_225_600_000;

fn region() -> Sim {
    let mut sim = Sim::new(vec![
        Arc::new(IpAddressController),
        Arc::new(NetworkIdController),
        Arc::new(IpClaimController),
    ]);
    sim.now_ms = LATE_MS;
    sim
}

fn object<K: Object>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}

fn claim(resource: &str, name: &str, uid: &str) -> serde_json::Value {
    json!({
        "group": "core.apinet.openkcm.dev",
        "resource": resource,
        "namespace": NS,
        "name": name,
        "uid": uid,
    })
}

fn address(resource: &str, name: &str, uid: &str) -> IPAddress {
    object(json!({
        "metadata": {
            "name": "203.0.113.1",
            "creationTimestamp": CREATED,
            "finalizers": [IP_ADDRESS_PROTECTION],
        },
        "spec": { "ip": "203.0.113.1", "claimRef": claim(resource, name, uid) },
    }))
}

fn network_id(name: &str, uid: &str) -> NetworkID {
    object(json!({
        "metadata": { "name": "200", "creationTimestamp": CREATED },
        "spec": { "claimRef": claim("networks", name, uid) },
    }))
}

/// An IP with its uid.
fn ip(sim: &mut Sim, claim_ref: serde_json::Value) -> String {
    let ip: IP = object(json!({
        "metadata": { "name": "www", "namespace": NS },
        "spec": { "type": "Public", "ip": "203.0.113.1", "claimRef": claim_ref },
    }));
    sim.put(&ip);
    object::uid(&sim.get::<IP>(NS, "www").expect("stored")).to_owned()
}

#[test]
fn an_address_of_a_living_ip_stays_even_when_somebody_deletes_it() {
    let mut sim = region();
    let uid = ip(&mut sim, json!(null));
    sim.put(&address("ips", "www", &uid));
    assert_eq!(sim.settle(), Ok(0));
    sim.delete::<IPAddress>("", "203.0.113.1");
    assert_eq!(sim.settle(), Ok(0));
    assert!(sim.get::<IPAddress>("", "203.0.113.1").is_some());
    sim.delete::<IP>(NS, "www");
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn an_address_of_a_living_interface_stays() {
    let mut sim = region();
    sim.put(&object::<NetworkInterface>(json!({
        "metadata": { "name": "web", "namespace": NS },
        "spec": { "networkRef": { "name": "net" }, "nodeRef": { "name": "p.n1" }, "ips": ["203.0.113.1"] },
    })));
    let made = sim.get::<NetworkInterface>(NS, "web").expect("stored");
    sim.put(&address("networkinterfaces", "web", object::uid(&made)));
    assert_eq!(sim.settle(), Ok(0));
    sim.delete::<NetworkInterface>(NS, "web");
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn orphaned_addresses_go() {
    for (resource, uid) in [
        ("ips", "dead"),
        ("networkinterfaces", "dead"),
        ("natgateways", "unknown"),
        ("nonsense", "x"),
    ] {
        let sim = verify(region, |sim| sim.put(&address(resource, "www", uid))).expect("converges");
        assert!(
            sim.snapshot().is_empty(),
            "{resource}: {:#?}",
            sim.snapshot()
        );
    }
}

#[test]
fn an_ip_of_the_same_name_but_another_uid_is_not_the_holder() {
    let mut sim = region();
    ip(&mut sim, json!(null));
    sim.put(&address("ips", "www", "its-predecessor"));
    sim.settle().expect("settles");
    assert!(sim.get::<IPAddress>("", "203.0.113.1").is_none());
}

#[test]
fn young_lock_objects_are_left_alone_until_no_request_can_still_need_them() {
    let mut sim = region();
    sim.now_ms = CREATED_MS + 1000;
    sim.put(&address("ips", "www", "coming"));
    sim.put(&network_id("net", "coming"));
    assert_eq!(sim.settle(), Ok(0));
    // Each is looked at again when its time has come, not earlier and not never.
    let left = Some(GRACE - Duration::from_secs(1));
    let address = IpAddressController.plan(&sim.world(), &Key::cluster("203.0.113.1"));
    let id = NetworkIdController.plan(&sim.world(), &Key::cluster("200"));
    assert_eq!((address.requeue, id.requeue), (left, left));
    sim.now_ms = CREATED_MS + u64::try_from(GRACE.as_millis()).expect("small");
    sim.wake_all();
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn a_vni_is_freed_when_its_network_is_gone_and_not_before() {
    let mut sim = region();
    let network: Network =
        object(json!({ "metadata": { "name": "net", "namespace": NS }, "spec": { "id": "200" } }));
    sim.put(&network);
    let uid = object::uid(&sim.get::<Network>(NS, "net").expect("stored")).to_owned();
    sim.put(&network_id("net", &uid));
    assert_eq!(sim.settle(), Ok(0));
    sim.delete::<Network>(NS, "net");
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn a_static_ip_loses_the_claim_of_a_dead_interface_and_keeps_that_of_a_living_one() {
    let mut sim = region();
    let nic: NetworkInterface = object(json!({
        "metadata": { "name": "nic", "namespace": NS },
        "spec": { "nodeRef": { "name": "p.n" }, "networkRef": { "name": "net" } },
    }));
    sim.put(&nic);
    let uid = object::uid(&sim.get::<NetworkInterface>(NS, "nic").expect("stored")).to_owned();
    ip(&mut sim, claim("networkinterfaces", "nic", &uid));
    assert_eq!(sim.settle(), Ok(0));
    sim.delete::<NetworkInterface>(NS, "nic");
    sim.settle().expect("settles");
    assert_eq!(
        sim.get::<IP>(NS, "www").expect("stays").spec.claim_ref,
        None
    );
}
