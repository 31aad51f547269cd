//! User NATGateway ↔ OpenKCM-net NATGateway and NATGatewayAutoscaler.

use api::{
    apinet,
    networking::{NATGateway, Network},
};
use controller::{
    Op, object,
    sim::{Sim, verify},
};
use serde_json::{Value, json};

use crate::region::{APINET_NS, NS, network, object, reason, region, uid};

fn gateway(sim: &mut Sim, extra: Value) {
    let mut spec = json!({
        "type": "Public", "ipFamily": "IPv4", "networkRef": { "name": "shop" },
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let gateway: NATGateway = object(json!({
        "metadata": { "name": "out", "namespace": NS, "labels": { "tier": "edge" } },
        "spec": spec,
    }));
    sim.put(&gateway);
}

fn user(sim: &Sim) -> NATGateway {
    sim.get(NS, "out").expect("the gateway")
}

fn made(sim: &Sim) -> apinet::NATGateway {
    let name = object::uid(&user(sim)).to_owned();
    sim.get(APINET_NS, &name).expect("made, named by uid")
}

fn why(sim: &Sim) -> String {
    reason(&user(sim).status.expect("status").conditions)
}

/// What the autoscaler, the server and the NAT controller bring about.
fn scaled(sim: &mut Sim, ips: &[&str], used: i64, requested: i64) {
    let name = object::name(&made(sim)).to_owned();
    let entries: Vec<Value> = ips
        .iter()
        .enumerate()
        .map(|(at, ip)| json!({ "name": format!("a{at}"), "ip": ip }))
        .collect();
    sim.edit::<apinet::NATGateway>(APINET_NS, &name, |made| {
        made.spec.ips = object(json!(entries));
        made.status = Some(object(
            json!({ "usedNATIPs": used, "requestedNATIPs": requested }),
        ));
    });
    sim.settle().expect("settles");
}

#[test]
fn every_field_of_the_gateway_and_its_autoscaler() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        gateway(sim, json!({ "portsPerNetworkInterface": 1024 }));
    })
    .expect("converges");
    let made = made(&sim);
    assert_eq!(
        json!(made.spec),
        json!({
            "ipFamily": "IPv4",
            "networkRef": { "name": uid::<Network>(&sim, NS, "shop") },
            "portsPerNetworkInterface": 1024,
        })
    );
    assert_eq!(object::label(&made, "tier"), Some("edge"));
    let scaler: apinet::NATGatewayAutoscaler = sim
        .get(APINET_NS, object::name(&made))
        .expect("an autoscaler of the same name");
    assert_eq!(
        json!(scaler.spec),
        json!({
            "natGatewayRef": { "name": object::name(&made) },
            "minPublicIPs": 1,
            "maxPublicIPs": 10,
        })
    );
    for key in ["namespace", "uid"] {
        let label = format!("apinetlet.openkcm.dev/natgateway-{key}");
        assert_eq!(object::label(&scaler, &label), object::label(&made, &label));
        assert!(object::label(&made, &label).is_some());
    }
    let owner = object::controller_of(&scaler).expect("an owner");
    assert_eq!(
        (owner.uid.as_str(), owner.block_owner_deletion),
        (object::uid(&made), Some(true))
    );
    assert_eq!(why(&sim), "!AddressPending");
}

#[test]
fn ports_default_to_2048() {
    let mut sim = region();
    network(&mut sim, "shop");
    gateway(&mut sim, json!({}));
    sim.settle().expect("settles");
    assert_eq!(made(&sim).spec.ports_per_network_interface, 2048);
}

#[test]
fn the_addresses_of_the_autoscaler_are_reported_and_never_applied() {
    let mut sim = region();
    network(&mut sim, "shop");
    gateway(&mut sim, json!({}));
    sim.settle().expect("settles");
    scaled(&mut sim, &["198.51.100.7", "198.51.100.9"], 3, 3);
    // A change that makes us apply again.
    sim.edit::<NATGateway>(NS, "out", |gateway| {
        gateway.spec.ports_per_network_interface = 64;
    });
    sim.settle().expect("settles");
    let made = made(&sim);
    assert_eq!(made.spec.ports_per_network_interface, 64);
    assert_eq!(made.spec.ips.len(), 2, "still there");
    let shown = user(&sim).status.expect("status").ips;
    assert_eq!(json!(shown), json!(["198.51.100.7", "198.51.100.9"]));
    for op in &sim.log {
        if let Op::Apply { target, body, .. } = op
            && target.kind.plural == "natgateways"
        {
            assert_eq!(body["spec"].get("ips"), None);
        }
    }
}

#[test]
fn it_is_ready_when_every_interface_that_wants_ports_has_some() {
    let mut sim = region();
    network(&mut sim, "shop");
    gateway(&mut sim, json!({}));
    sim.settle().expect("settles");
    scaled(&mut sim, &["198.51.100.7"], 31, 32);
    assert_eq!(why(&sim), "!PortsExhausted");
    scaled(&mut sim, &["198.51.100.7", "198.51.100.8"], 32, 32);
    assert_eq!(why(&sim), "PortsAssigned");
}

/// Nothing would translate, however many addresses and ports there are.
#[test]
fn a_gateway_of_ipv6_says_that_it_does_nothing() {
    let mut sim = region();
    network(&mut sim, "shop");
    gateway(&mut sim, json!({ "ipFamily": "IPv6" }));
    sim.settle().expect("settles");
    assert_eq!(why(&sim), "!FamilyNotTranslated");
    scaled(&mut sim, &["2001:db8::1"], 1, 1);
    assert_eq!(why(&sim), "!FamilyNotTranslated");
}

#[test]
fn it_waits_for_its_network_and_is_woken_by_it() {
    let mut sim = region();
    gateway(&mut sim, json!({}));
    sim.settle().expect("settles");
    assert!(sim.list::<apinet::NATGateway>().is_empty());
    assert_eq!(why(&sim), "!NetworkNotFound");
    network(&mut sim, "shop");
    sim.settle().expect("settles");
    assert_eq!(sim.list::<apinet::NATGateway>().len(), 1);
}

#[test]
fn another_family_or_network_is_another_gateway() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        gateway(sim, json!({}));
        sim.settle().expect("settles");
        sim.edit::<NATGateway>(NS, "out", |gateway| {
            gateway.spec.ip_family = api::meta::IpFamily::IPv6;
        });
    })
    .expect("converges");
    assert_eq!(made(&sim).spec.ip_family, api::meta::IpFamily::IPv6);
    let deleted = sim
        .log
        .iter()
        .any(|op| matches!(op, Op::Delete { target, .. } if target.kind.plural == "natgateways"));
    assert!(deleted, "the field cannot be changed in place");
}

#[test]
fn the_user_object_stays_until_no_interface_uses_the_addresses() {
    let mut sim = region();
    network(&mut sim, "shop");
    gateway(&mut sim, json!({}));
    sim.settle().expect("settles");
    scaled(&mut sim, &["198.51.100.7"], 1, 1);
    let name = object::name(&made(&sim)).to_owned();
    sim.edit::<apinet::NATGateway>(APINET_NS, &name, |made| {
        made.metadata.finalizers = Some(vec!["test/claims-left".to_owned()]);
    });
    sim.delete::<NATGateway>(NS, "out");
    sim.settle().expect("settles");
    assert!(sim.get::<NATGateway>(NS, "out").is_some());
    assert_eq!(made(&sim).spec.ips.len(), 1);
    sim.edit::<apinet::NATGateway>(APINET_NS, &name, |made| made.metadata.finalizers = None);
    sim.delete::<Network>(NS, "shop");
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn one_whose_user_object_vanished_is_deleted() {
    let mut sim = region();
    network(&mut sim, "shop");
    gateway(&mut sim, json!({}));
    sim.settle().expect("settles");
    sim.edit::<NATGateway>(NS, "out", |gateway| gateway.metadata.finalizers = None);
    sim.delete::<NATGateway>(NS, "out");
    sim.settle().expect("settles");
    assert!(sim.list::<apinet::NATGateway>().is_empty());
    assert!(sim.list::<apinet::NATGatewayAutoscaler>().is_empty());
}
