//! NAT gateways and load balancers of OpenKCM-net, as far as they concern an interface of this partition.

use api::{apinet, metalnet};
use controller::sim::{Sim, verify};
use serde_json::{Value, json};

use crate::region::{APINET_NS, METALNET_NS, network, nic, node, object, region, uid};

const GATEWAY_UID: &str = "0b6d3f8a-0000-4000-8000-000000000001";

fn set_up(sim: &mut Sim) {
    sim.put(&node("n1"));
    sim.put(&network("blue", "4711"));
    sim.put(&nic("a", "part.n1", "blue"));
    sim.settle().expect("settles");
}

fn spec(sim: &Sim) -> Value {
    let name = uid::<apinet::NetworkInterface>(sim, APINET_NS, "a");
    let made = sim.get::<metalnet::NetworkInterface>(METALNET_NS, &name);
    json!(made.expect("made").spec)
}

fn status(sim: &Sim) -> Value {
    let nic = sim.get::<apinet::NetworkInterface>(APINET_NS, "a");
    json!(nic.expect("there").status)
}

fn target(sim: &Sim) -> Value {
    json!({
        "uid": uid::<apinet::NetworkInterface>(sim, APINET_NS, "a"),
        "name": "a",
        "nodeRef": { "name": "part.n1" },
    })
}

fn claim(sim: &mut Sim, uid: &str) {
    let claim = json!([{ "ipFamily": "IPv4", "claimRef": { "name": "gate", "uid": uid } }]);
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "a", |nic| {
        nic.spec.nat_gateways = serde_json::from_value(claim.clone()).expect("a claim");
    });
}

fn table(sim: &Sim, port: i32, end_port: i32) -> apinet::NATTable {
    object(json!({
        "metadata": {
            "name": "gate", "namespace": APINET_NS,
            "ownerReferences": [{
                "apiVersion": "core.apinet.openkcm.dev/v1alpha1", "kind": "NATGateway",
                "name": "gate", "uid": GATEWAY_UID, "controller": true,
            }],
        },
        "ips": [{ "ip": "203.0.113.9", "sections": [
            { "ip": "10.0.0.2", "port": 1024, "endPort": 2047,
              "targetRef": { "uid": "another", "name": "b", "nodeRef": { "name": "x.y" } } },
            { "ip": "10.0.0.1", "port": port, "endPort": end_port, "targetRef": target(sim) },
        ] }],
    }))
}

#[test]
fn the_ports_of_a_claimed_gateway_go_down_and_come_back() {
    let sim = verify(region, |sim| {
        set_up(sim);
        claim(sim, GATEWAY_UID);
        let table = table(sim, 2048, 3071);
        sim.put(&table);
    })
    .expect("converges");
    let nat = json!({ "ip": "203.0.113.9", "port": 2048, "endPort": 3072 });
    assert_eq!(spec(&sim)["nat"], nat, "the end is exclusive for metalnet");
    let shown = json!([{ "ip": "203.0.113.9", "port": 2048, "endPort": 3071 }]);
    assert_eq!(status(&sim)["natIPs"], shown, "and inclusive here");
}

#[test]
fn without_a_claim_or_with_the_claim_of_an_earlier_gateway_there_is_no_nat() {
    let mut sim = region();
    set_up(&mut sim);
    let ports = table(&sim, 2048, 3071);
    sim.put(&ports);
    sim.settle().expect("settles");
    assert_eq!(spec(&sim)["nat"], Value::Null);
    claim(&mut sim, "0b6d3f8a-0000-4000-8000-000000000002");
    sim.settle().expect("settles");
    assert_eq!(spec(&sim)["nat"], Value::Null);
    claim(&mut sim, GATEWAY_UID);
    sim.settle().expect("settles");
    assert_eq!(spec(&sim)["nat"]["port"], 2048);
    sim.edit::<apinet::NATTable>(APINET_NS, "gate", |table| table.ips.clear());
    sim.settle().expect("settles");
    assert_eq!(
        spec(&sim)["nat"],
        Value::Null,
        "what left the table leaves the interface"
    );
    assert_eq!(status(&sim)["natIPs"], Value::Null);
}

#[test]
fn the_last_block_ends_where_the_data_plane_can() {
    let mut sim = region();
    set_up(&mut sim);
    claim(&mut sim, GATEWAY_UID);
    let ports = table(&sim, 63488, 65535);
    sim.put(&ports);
    sim.settle().expect("settles");
    assert_eq!(spec(&sim)["nat"]["endPort"], 65535);
}

fn balancer(name: &str, network: &str, ips: Value) -> apinet::LoadBalancer {
    object(json!({
        "metadata": { "name": name, "namespace": APINET_NS },
        "spec": { "type": "Public", "networkRef": { "name": network }, "ips": ips },
    }))
}

fn routing(sim: &Sim, name: &str) -> apinet::LoadBalancerRouting {
    object(json!({
        "metadata": { "name": name, "namespace": APINET_NS },
        "destinations": [
            { "ip": "10.0.0.1", "targetRef": target(sim) },
            { "ip": "10.0.0.5" },
        ],
    }))
}

#[test]
fn load_balancers_that_send_connections_here_are_served() {
    let sim = verify(region, |sim| {
        set_up(sim);
        let v4 =
            json!([{ "name": "v4", "ip": "203.0.113.80" }, { "name": "v6", "ip": "2001:db8::80" }]);
        sim.put(&balancer("web", "blue", v4));
        let web = routing(sim, "web");
        sim.put(&web);
        // Another network's, although the address of the destination is the same.
        sim.put(&balancer(
            "other",
            "red",
            json!([{ "name": "v4", "ip": "203.0.113.81" }]),
        ));
        let other = routing(sim, "other");
        sim.put(&other);
    })
    .expect("converges");
    let targets = json!(["203.0.113.80/32", "2001:db8::80/128"]);
    assert_eq!(spec(&sim)["loadBalancerTargets"], targets);
}

#[test]
fn a_load_balancer_or_destination_that_goes_is_served_no_longer() {
    let mut sim = region();
    set_up(&mut sim);
    let ips = json!([{ "name": "v4", "ip": "203.0.113.80" }]);
    sim.put(&balancer("web", "blue", ips));
    let web = routing(&sim, "web");
    sim.put(&web);
    sim.settle().expect("settles");
    assert_eq!(
        spec(&sim)["loadBalancerTargets"],
        json!(["203.0.113.80/32"])
    );
    sim.edit::<apinet::LoadBalancerRouting>(APINET_NS, "web", |web| web.destinations.clear());
    sim.settle().expect("settles");
    assert_eq!(spec(&sim)["loadBalancerTargets"], Value::Null);
    sim.put(&web);
    sim.settle().expect("settles");
    sim.delete::<apinet::LoadBalancer>(APINET_NS, "web");
    sim.settle().expect("settles");
    assert_eq!(spec(&sim)["loadBalancerTargets"], Value::Null);
}
