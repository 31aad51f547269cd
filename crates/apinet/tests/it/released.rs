//! Addresses that their users gave up: free when no data plane has them any more, and not before.

use std::sync::Arc;

use api::{
    apinet::{IP, Instance, LoadBalancer, NATGateway, NATTable, NetworkInterface, Node},
    names::{annotation::IP_RELEASED_AT, finalizer::IP_IN_USE},
};
use apinet::{IpClaimController, RELEASE_HOLD};
use controller::{Object, sim::Sim};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::{LATE_MS, NS, object};

const ADDRESS: &str = "203.0.113.1";

fn region() -> Sim {
    let mut sim = Sim::new(vec![Arc::new(IpClaimController)]);
    sim.now_ms = LATE_MS;
    let node: Node = object(json!({ "metadata": { "name": "p.n1" } }));
    sim.put(&node);
    sim
}

/// The IP as the server leaves it when its user drops it from its spec.
fn released<K: Object>(sim: &mut Sim, resource: &str, user: &K, ephemeral: bool) {
    sim.put(user);
    let live = sim
        .get::<K>(NS, object::name(user))
        .expect("the user is stored");
    let at =
        Timestamp::from_millisecond(i64::try_from(sim.now_ms).expect("small")).expect("a time");
    let mut metadata = json!({
        "name": "ip", "namespace": NS, "finalizers": [IP_IN_USE],
        "annotations": { IP_RELEASED_AT: at.to_string() },
    });
    if ephemeral {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        metadata["ownerReferences"] = json!([object::controller_reference(&live)]);
    }
    let ip: IP = object(json!({
        "metadata": metadata,
        "spec": { "type": "Public", "ip": ADDRESS, "claimRef": {
            "group": "core.apinet.openkcm.dev", "resource": resource, "name": object::name(user), "uid": object::uid(&live) } },
    }));
    sim.put(&ip);
}

fn nic(status: Value) -> NetworkInterface {
    object(json!({
        "metadata": { "name": "user", "namespace": NS },
        "spec": { "nodeRef": { "name": "p.n1" }, "networkRef": { "name": "net" } },
        "status": status,
    }))
}

fn balancer() -> LoadBalancer {
    object(json!({
        "metadata": { "name": "user", "namespace": NS },
        "spec": { "type": "Public", "networkRef": { "name": "net" }, "selector": {} },
    }))
}

fn later(sim: &mut Sim) {
    sim.now_ms += u64::try_from(RELEASE_HOLD.as_millis()).expect("small");
    sim.wake_all();
    sim.settle().expect("settles");
}

fn claimed(sim: &Sim) -> bool {
    sim.get::<IP>(NS, "ip")
        .is_some_and(|ip| ip.spec.claim_ref.is_some())
}

#[test]
fn an_address_is_free_when_the_interface_reports_that_it_let_go() {
    let mut sim = region();
    released(
        &mut sim,
        "networkinterfaces",
        &nic(json!({ "publicIPs": [ADDRESS] })),
        false,
    );
    later(&mut sim);
    assert!(claimed(&sim), "packets still flow");
    sim.edit::<NetworkInterface>(NS, "user", |nic| nic.status = None);
    sim.settle().expect("settles");
    let ip = sim.get::<IP>(NS, "ip").expect("a static IP stays");
    assert_eq!(ip.spec.claim_ref, None);
    assert_eq!(object::annotation(&ip, IP_RELEASED_AT), None);
    assert!(!object::has_finalizer(&ip, IP_IN_USE));
}

#[test]
fn what_was_not_reported_yet_may_still_be() {
    let mut sim = region();
    released(&mut sim, "networkinterfaces", &nic(json!({})), true);
    sim.settle().expect("settles");
    assert!(claimed(&sim), "the report may be under way");
    later(&mut sim);
    assert!(sim.get::<IP>(NS, "ip").is_none(), "an ephemeral IP goes");
}

#[test]
fn instances_hold_the_addresses_of_their_balancer() {
    let mut sim = region();
    let instance: Instance = object(json!({
        "metadata": { "name": "i", "namespace": NS },
        "spec": { "type": "LoadBalancer", "loadBalancerType": "Public", "networkRef": { "name": "net" }, "ips": [ADDRESS] },
        "status": { "ips": [ADDRESS] },
    }));
    sim.put(&instance);
    released(&mut sim, "loadbalancers", &balancer(), true);
    later(&mut sim);
    assert!(claimed(&sim));
    sim.edit::<Instance>(NS, "i", |instance| instance.spec.ips.clear());
    sim.settle().expect("settles");
    assert!(claimed(&sim), "the data plane still answers");
    sim.edit::<Instance>(NS, "i", |instance| instance.status = None);
    sim.settle().expect("settles");
    assert!(sim.get::<IP>(NS, "ip").is_none());
}

#[test]
fn tables_and_reports_hold_the_addresses_of_a_gateway() {
    let mut sim = region();
    let gateway: NATGateway = object(json!({
        "metadata": { "name": "user", "namespace": NS },
        "spec": { "ipFamily": "IPv4", "networkRef": { "name": "net" }, "portsPerNetworkInterface": 64 },
    }));
    let table: NATTable = object(
        json!({ "metadata": { "name": "user", "namespace": NS }, "ips": [{ "ip": ADDRESS }] }),
    );
    sim.put(&table);
    released(&mut sim, "natgateways", &gateway, true);
    let mut user = nic(json!({ "natIPs": [{ "ip": ADDRESS, "port": 1024, "endPort": 1087 }] }));
    user.metadata.name = Some("nic".to_owned());
    sim.put(&user);
    later(&mut sim);
    assert!(claimed(&sim));
    sim.edit::<NATTable>(NS, "user", |table| table.ips.clear());
    sim.settle().expect("settles");
    assert!(claimed(&sim), "an interface still translates");
    // A hypervisor that left the region for good translates nothing.
    sim.delete::<Node>("", "p.n1");
    sim.settle().expect("settles");
    assert!(sim.get::<IP>(NS, "ip").is_none());
}

#[test]
fn a_released_address_that_is_listed_again_stays() {
    let mut sim = region();
    let mut user = nic(json!({}));
    user.spec.public_ips =
        serde_json::from_value(json!([{ "name": "a", "ip": ADDRESS }])).expect("addresses");
    released(&mut sim, "networkinterfaces", &user, false);
    later(&mut sim);
    assert!(claimed(&sim));
}

#[test]
fn claims_of_dead_balancers_and_gateways_go_too() {
    for resource in ["loadbalancers", "natgateways", "networkinterfaces"] {
        let mut sim = region();
        let ip: IP = object(json!({
            "metadata": { "name": "ip", "namespace": NS, "finalizers": [IP_IN_USE], "deletionTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "type": "Public", "ip": ADDRESS, "claimRef": {
                "group": "core.apinet.openkcm.dev", "resource": resource, "name": "gone", "uid": "gone" } },
        }));
        sim.put(&ip);
        sim.settle().expect("settles");
        assert!(sim.get::<IP>(NS, "ip").is_none(), "{resource}");
    }
}

#[test]
fn a_claim_without_mark_is_left_alone_because_the_claimer_may_be_newer_than_what_we_know() {
    let mut sim = region();
    released(&mut sim, "networkinterfaces", &nic(json!({})), false);
    sim.edit::<IP>(NS, "ip", |ip| {
        ip.metadata.annotations = None;
        ip.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
    });
    later(&mut sim);
    assert!(claimed(&sim));
}
