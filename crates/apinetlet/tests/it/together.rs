//! apinetlet together with the controllers of OpenKCM-net: what a user says about labels, balancing and outgoing traffic
//! reaches the objects that hypervisors read, and goes again without freeing anything too early.

use std::sync::Arc;

use api::{
    apinet,
    networking::{
        LoadBalancer, LoadBalancerRouting, NATGateway, Network, NetworkInterface, NetworkPolicy,
    },
};
use controller::{Controller, object, sim::Sim};
use serde_json::{Value, json};

use crate::region::{APINET_NS, NS, apinetlets, filter, network, object, reason, uid};

/// A finalizer as a partition has it.
const PARTITION: &str = "partition.metalnetlet.apinet.openkcm.dev/lab";

fn region() -> Sim {
    let mut all: Vec<Arc<dyn Controller>> = apinetlets(filter(), false);
    all.push(Arc::new(::apinet::LoadBalancerController));
    all.push(Arc::new(::apinet::DaemonSetController));
    all.push(Arc::new(::apinet::InstanceSchedulerController));
    all.push(Arc::new(::apinet::NatGatewayController));
    all.push(Arc::new(::apinet::NatAutoscalerController));
    all.push(Arc::new(::apinet::NatReleaseController));
    all.push(Arc::new(::apinet::NetworkPolicyController));
    let mut sim = Sim::new(all);
    let node: apinet::Node = object(json!({ "metadata": { "name": "lab.n1" } }));
    sim.put(&node);
    network(&mut sim, "shop");
    sim.settle().expect("settles");
    sim
}

/// An interface of `shop` on node n1 as user, machine pool agent and machine provider bring it about.
fn interface(sim: &mut Sim, name: &str, ip: &str, labels: Value) {
    let made: apinet::NetworkInterface = object(json!({
        "metadata": { "name": format!("made-{name}"), "namespace": APINET_NS },
        "spec": {
            "nodeRef": { "name": "lab.n1" },
            "networkRef": { "name": uid::<Network>(sim, NS, "shop") },
            "ips": [ip],
        },
        "status": { "state": "Ready" },
    }));
    sim.put(&made);
    let handle = uid::<apinet::NetworkInterface>(sim, APINET_NS, &format!("made-{name}"));
    let user: NetworkInterface = object(json!({
        "metadata": { "name": name, "namespace": NS, "labels": labels },
        "spec": {
            "providerID": format!("openkcm-net://{APINET_NS}/made-{name}/lab.n1/{handle}"),
            "networkRef": { "name": "shop" },
            "ipFamilies": ["IPv4"],
            "ips": [{ "value": ip }],
        },
    }));
    sim.put(&user);
    sim.settle().expect("settles");
}

fn rule(sim: &Sim) -> apinet::NetworkPolicyRule {
    let name = uid::<NetworkPolicy>(sim, NS, "db");
    sim.get(APINET_NS, &name).expect("a rule")
}

fn targets(sim: &Sim) -> Vec<String> {
    let rule = rule(sim);
    rule.targets.iter().map(|t| t.ip.to_string()).collect()
}

fn senders(sim: &Sim) -> Vec<String> {
    let rule = rule(sim);
    let ips = rule.ingress_rule.iter().flat_map(|rule| &rule.ips);
    ips.map(|entry| entry.prefix.to_string()).collect()
}

#[test]
fn policies_follow_the_labels_that_users_write() {
    let mut sim = region();
    interface(&mut sim, "db-1", "10.0.0.1", json!({ "app": "db" }));
    interface(&mut sim, "web-1", "10.0.0.2", json!({ "app": "web" }));
    interface(&mut sim, "other", "10.0.0.3", json!({}));
    let policy: NetworkPolicy = object(json!({
        "metadata": { "name": "db", "namespace": NS },
        "spec": {
            "networkRef": { "name": "shop" },
            "networkInterfaceSelector": { "matchLabels": { "app": "db" } },
            "ingress": [{ "from": [{ "objectSelector": {
                "kind": "NetworkInterface", "matchLabels": { "app": "web" },
            } }], "ports": [{ "port": 5432 }] }],
        },
    }));
    sim.put(&policy);
    sim.settle().expect("settles");
    assert_eq!(targets(&sim), ["10.0.0.1"]);
    assert_eq!(senders(&sim), ["10.0.0.2/32"]);
    let user: NetworkPolicy = sim.get(NS, "db").expect("the policy");
    assert_eq!(reason(&user.status.expect("status").conditions), "Resolved");

    let relabel = |sim: &mut Sim, name: &str, app: &str| {
        sim.edit::<NetworkInterface>(NS, name, |nic| {
            nic.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        });
        sim.settle().expect("settles");
    };
    relabel(&mut sim, "other", "web");
    assert_eq!(senders(&sim), ["10.0.0.2/32", "10.0.0.3/32"]);
    relabel(&mut sim, "web-1", "db");
    assert_eq!(targets(&sim), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(senders(&sim), ["10.0.0.3/32"]);

    sim.edit::<NetworkPolicy>(NS, "db", |policy| {
        policy.spec.network_interface_selector = api::meta::LabelSelector::default();
    });
    sim.settle().expect("settles");
    assert_eq!(targets(&sim).len(), 3, "an empty selector selects all");
    sim.delete::<NetworkPolicy>(NS, "db");
    sim.settle().expect("settles");
    assert!(sim.list::<apinet::NetworkPolicyRule>().is_empty());
}

#[test]
fn a_load_balancer_goes_only_after_its_instances_and_with_all_of_them() {
    let mut sim = region();
    let balancer: LoadBalancer = object(json!({
        "metadata": { "name": "web", "namespace": NS },
        "spec": {
            "type": "Public", "ipFamilies": ["IPv4"], "networkRef": { "name": "shop" },
            "ports": [{ "port": 80 }],
        },
    }));
    sim.put(&balancer);
    sim.settle().expect("settles");
    let routing: LoadBalancerRouting = object(json!({
        "metadata": { "name": "web", "namespace": NS },
        "networkRef": { "name": "shop", "uid": uid::<Network>(&sim, NS, "shop") },
        "destinations": [{ "ip": "10.0.0.1" }],
    }));
    sim.put(&routing);
    sim.settle().expect("settles");
    let instances = sim.list::<apinet::Instance>();
    assert_eq!(instances.len(), 1, "one per node");
    let name = object::name(&instances[0]).to_owned();
    let served = instances[0].spec.ips.clone();
    assert_eq!(served.len(), 1);
    sim.edit::<apinet::Instance>(APINET_NS, &name, |instance| {
        instance.metadata.finalizers = Some(vec![PARTITION.to_owned()]);
        instance.status = Some(object(json!({ "ips": served })));
    });
    sim.settle().expect("settles");
    let user = |sim: &Sim| sim.get::<LoadBalancer>(NS, "web");
    let status = user(&sim).and_then(|lb| lb.status).expect("status");
    assert_eq!(reason(&status.conditions), "Serving");
    assert_eq!(status.ips, served);

    sim.delete::<LoadBalancer>(NS, "web");
    sim.settle().expect("settles");
    assert!(user(&sim).is_some(), "a hypervisor still serves it");
    let held = sim.list::<apinet::LoadBalancer>();
    assert_eq!(held[0].spec.ips[0].ip, Some(served[0]));
    sim.edit::<apinet::Instance>(APINET_NS, &name, |instance| {
        instance.metadata.finalizers = None;
    });
    sim.settle().expect("settles");
    assert!(user(&sim).is_none());
    assert!(sim.list::<apinet::LoadBalancer>().is_empty());
    assert!(sim.list::<apinet::LoadBalancerRouting>().is_empty());
    assert!(sim.list::<apinet::DaemonSet>().is_empty());
}

#[test]
fn outgoing_traffic_gets_ports_that_are_given_up_before_their_address() {
    let mut sim = region();
    interface(&mut sim, "db-1", "10.0.0.1", json!({}));
    let gateway: NATGateway = object(json!({
        "metadata": { "name": "out", "namespace": NS },
        "spec": {
            "type": "Public", "ipFamily": "IPv4", "networkRef": { "name": "shop" },
            "portsPerNetworkInterface": 1024,
        },
    }));
    sim.put(&gateway);
    sim.settle().expect("settles");
    let table = sim.list::<apinet::NATTable>();
    let section = &table[0].ips[0].sections[0];
    assert_eq!((section.port, section.end_port), (1024, 2047));
    let made: apinet::NetworkInterface = sim.get(APINET_NS, "made-db-1").expect("there");
    assert_eq!(made.spec.nat_gateways.len(), 1, "the interface knows");
    let user = |sim: &Sim| sim.get::<NATGateway>(NS, "out");
    let status = user(&sim).and_then(|gateway| gateway.status);
    let status = status.expect("status");
    assert_eq!(reason(&status.conditions), "PortsAssigned");
    let address = table[0].ips[0].ip;
    assert_eq!(status.ips, [address]);

    // The hypervisor translates, and goes on doing so for a while.
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "made-db-1", |nic| {
        nic.status = Some(object(json!({
            "state": "Ready",
            "natIPs": [{ "ip": address, "port": 1024, "endPort": 2047 }],
        })));
    });
    sim.settle().expect("settles");
    let nic: NetworkInterface = sim.get(NS, "db-1").expect("there");
    assert_eq!(nic.status.expect("status").nat_ips.len(), 1);
    sim.delete::<NATGateway>(NS, "out");
    sim.settle().expect("settles");
    assert!(user(&sim).is_some(), "packets still carry the address");
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "made-db-1", |nic| {
        nic.status = Some(object(json!({ "state": "Ready" })));
    });
    sim.settle().expect("settles");
    assert!(user(&sim).is_none());
    assert!(sim.list::<apinet::NATGateway>().is_empty());
    assert!(sim.list::<apinet::NATTable>().is_empty());
}
