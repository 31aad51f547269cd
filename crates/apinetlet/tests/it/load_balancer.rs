//! User LoadBalancer ↔ OpenKCM-net LoadBalancer and LoadBalancerRouting.

use api::{
    apinet,
    ipam::Prefix,
    networking::{LoadBalancer, LoadBalancerRouting, Network},
};
use controller::{
    Op, object,
    sim::{Sim, verify},
};
use serde_json::{Value, json};

use crate::region::{APINET_NS, NS, filter, network, object, reason, region, region_of, uid};

fn balancer(sim: &mut Sim, spec: Value) {
    let mut all = json!({ "networkRef": { "name": "shop" } });
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    let balancer: LoadBalancer = object(json!({
        "metadata": {
            "name": "web", "namespace": NS,
            "labels": { "tier": "front", "common.openkcm.dev/watch-filter": "x" },
        },
        "spec": all,
    }));
    sim.put(&balancer);
}

fn public(sim: &mut Sim) {
    let ports = json!([{ "protocol": "TCP", "port": 80 }, { "port": 8000, "endPort": 8010 }]);
    balancer(
        sim,
        json!({ "type": "Public", "ipFamilies": ["IPv4", "IPv6"], "ports": ports }),
    );
}

fn internal(sim: &mut Sim, ips: Value) {
    let families = vec!["IPv4"; ips.as_array().map_or(0, Vec::len)];
    balancer(
        sim,
        json!({ "type": "Internal", "ipFamilies": families, "ips": ips, "ports": [{ "port": 5432 }] }),
    );
}

/// What the user API's controller writes: interfaces of `shop` by (address, handle).
fn routing(sim: &mut Sim, destinations: &[(&str, &str)]) {
    let uid = uid::<Network>(sim, NS, "shop");
    routing_in(sim, &uid, destinations);
}

fn routing_in(sim: &mut Sim, network_uid: &str, destinations: &[(&str, &str)]) {
    let destinations: Vec<Value> = destinations
        .iter()
        .map(|(ip, handle)| match *handle {
            "" => json!({ "ip": ip }),
            handle => json!({
                "ip": ip,
                "targetRef": { "uid": "user-uid", "name": "nic", "providerID": handle },
            }),
        })
        .collect();
    let routing: LoadBalancerRouting = object(json!({
        "metadata": { "name": "web", "namespace": NS },
        "networkRef": { "name": "shop", "uid": network_uid },
        "destinations": destinations,
    }));
    sim.put(&routing);
}

fn user(sim: &Sim) -> LoadBalancer {
    sim.get(NS, "web").expect("the load balancer")
}

fn made(sim: &Sim) -> apinet::LoadBalancer {
    let name = object::uid(&user(sim)).to_owned();
    sim.get(APINET_NS, &name).expect("made, named by uid")
}

fn made_routing(sim: &Sim) -> apinet::LoadBalancerRouting {
    let name = object::uid(&user(sim)).to_owned();
    sim.get(APINET_NS, &name).expect("made, named by uid")
}

/// What the conditions say.
fn why(sim: &Sim) -> String {
    reason(&user(sim).status.expect("status").conditions)
}

#[test]
fn every_field_of_a_public_one() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        public(sim);
    })
    .expect("converges");
    let (uid, made) = (object::uid(&user(&sim)).to_owned(), made(&sim));
    let marks = json!({
        "apinetlet.openkcm.dev/loadbalancer-namespace": NS,
        "apinetlet.openkcm.dev/loadbalancer-uid": uid,
    });
    let mut labels = marks.clone();
    labels["tier"] = json!("front");
    assert_eq!(
        json!(made.metadata.labels),
        labels,
        "the user's labels are copied, reserved ones are not"
    );
    let addresses: Vec<_> = made.spec.ips.iter().filter_map(|entry| entry.ip).collect();
    assert_eq!(addresses.len(), 2, "the server reserved them");
    assert_eq!(
        json!(made.spec),
        json!({
            "type": "Public",
            "networkRef": { "name": crate::region::uid::<Network>(&sim, NS, "shop") },
            "ips": [
                { "name": "ipv4", "ipFamily": "IPv4", "ip": addresses[0] },
                { "name": "ipv6", "ipFamily": "IPv6", "ip": addresses[1] },
            ],
            "ports": [{ "protocol": "TCP", "port": 80 }, { "port": 8000, "endPort": 8010 }],
            "selector": { "matchLabels": marks },
            "template": {
                "metadata": {
                    "labels": marks,
                    "annotations": { "apinetlet.openkcm.dev/loadbalancer-name": "web" },
                },
                "spec": { "affinity": { "instanceAntiAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": [{
                        "labelSelector": { "matchLabels": marks },
                        "topologyKey": "topology.core.apinet.openkcm.dev/zone",
                    }],
                } } },
            },
        })
    );
    assert_eq!(
        user(&sim).status.expect("status").ips,
        addresses,
        "both families reach the user"
    );
    assert_eq!(why(&sim), "!NoDestinations");
}

#[test]
fn changed_ports_and_labels_follow_without_touching_the_selector() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        public(sim);
        sim.settle().expect("settles");
        sim.edit::<LoadBalancer>(NS, "web", |lb| {
            lb.spec.ports = object(json!([{ "protocol": "UDP", "port": 53 }]));
            lb.metadata.labels = None;
        });
    })
    .expect("converges");
    let made = made(&sim);
    assert_eq!(
        json!(made.spec.ports),
        json!([{ "protocol": "UDP", "port": 53 }])
    );
    assert_eq!(object::label(&made, "tier"), None);
    let selected = made.spec.selector.clone();
    assert!(
        object::selects(selected.as_ref(), made.metadata.labels.as_ref()),
        "the selector does not depend on labels that may change"
    );
}

#[test]
fn an_internal_one_has_literal_addresses_and_allocated_ones_of_its_own() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        let template = json!({ "prefixTemplate": { "spec": { "prefixLength": 32 } } });
        internal(
            sim,
            json!([
                { "value": "10.20.0.9" }, { "ephemeral": template }, { "ephemeral": template },
                { "ephemeral": template },
            ]),
        );
        let owner = object::uid(&user(sim)).to_owned();
        prefix(sim, "web-1", &owner, Some("10.20.0.17/32"));
        prefix(sim, "web-2", &owner, None);
        // An interface named `web` derives the same names for its prefixes.
        prefix(sim, "web-3", "of-an-interface", Some("10.20.0.18/32"));
    })
    .expect("converges");
    assert_eq!(
        json!(made(&sim).spec.ips),
        json!([
            { "name": "ip-0", "ipFamily": "IPv4", "ip": "10.20.0.9" },
            { "name": "ip-1", "ipFamily": "IPv4", "ip": "10.20.0.17" },
        ])
    );
    assert_eq!(why(&sim), "!AddressPending");
    let mut sim = sim;
    let owner = object::uid(&user(&sim)).to_owned();
    prefix(&mut sim, "web-2", &owner, Some("10.20.0.20/32"));
    sim.settle().expect("settles");
    let shown = user(&sim).status.expect("status").ips;
    let expected = json!(["10.20.0.9", "10.20.0.17", "10.20.0.20"]);
    assert_eq!(json!(shown), expected, "the Prefix wakes us");
}

fn prefix(sim: &mut Sim, name: &str, owner: &str, block: Option<&str>) {
    let mut prefix = json!({
        "metadata": {
            "name": name,
            "namespace": NS,
            "ownerReferences": [{
                "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "LoadBalancer",
                "name": "web", "uid": owner, "controller": true,
            }],
        },
        "spec": { "ipFamily": "IPv4", "prefixLength": 32, "parentRef": { "name": "root" } },
        "status": { "phase": "Pending" },
    });
    if let Some(block) = block {
        prefix["spec"]["prefix"] = json!(block);
        prefix["status"]["phase"] = json!("Allocated");
    }
    let prefix: Prefix = object(prefix);
    sim.put(&prefix);
}

#[test]
fn destinations_are_handed_over_with_what_their_handles_say() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        public(sim);
        sim.settle().expect("settles");
        routing(
            sim,
            &[
                ("10.0.0.1", "openkcm-net://ns/nic-a/part.n1/uid-a"),
                ("10.0.0.2", "no handle"),
                ("10.0.0.3", ""),
            ],
        );
    })
    .expect("converges");
    let routing = made_routing(&sim);
    assert_eq!(
        json!(routing.destinations),
        json!([
            { "ip": "10.0.0.1",
              "targetRef": { "uid": "uid-a", "name": "nic-a", "nodeRef": { "name": "part.n1" } } },
            { "ip": "10.0.0.2" },
            { "ip": "10.0.0.3" },
        ])
    );
    let owner = object::controller_of(&routing).expect("an owner");
    assert_eq!(owner.uid, object::uid(&made(&sim)));
    assert_eq!(owner.kind, "LoadBalancer");
    assert_eq!(owner.block_owner_deletion, Some(true));
    assert_eq!(why(&sim), "!NotServed");
}

#[test]
fn a_routing_of_a_former_network_of_that_name_is_not_used() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        public(sim);
        sim.settle().expect("settles");
        routing_in(sim, "of-the-one-before", &[("10.0.0.1", "")]);
    })
    .expect("converges");
    assert_eq!(made_routing(&sim).destinations, []);
}

#[test]
fn it_is_ready_once_hypervisors_serve_every_address() {
    let mut sim = region();
    network(&mut sim, "shop");
    public(&mut sim);
    sim.settle().expect("settles");
    routing(&mut sim, &[("10.0.0.1", "")]);
    let name = object::uid(&made_after(&mut sim)).to_owned();
    assert_eq!(name.len(), 36);
    let ips: Vec<_> = made(&sim).spec.ips.iter().filter_map(|e| e.ip).collect();
    serve(&mut sim, &ips[..1]);
    assert_eq!(why(&sim), "!NotServed");
    serve(&mut sim, &ips);
    assert_eq!(why(&sim), "Serving");
    serve(&mut sim, &[]);
    assert_eq!(why(&sim), "!NotServed", "and no longer");
}

fn made_after(sim: &mut Sim) -> apinet::LoadBalancer {
    sim.settle().expect("settles");
    made(sim)
}

/// What the controllers of OpenKCM-net gather from the hypervisors.
fn serve(sim: &mut Sim, ips: &[api::meta::Ip]) {
    let name = object::name(&made(sim)).to_owned();
    sim.edit::<apinet::LoadBalancer>(APINET_NS, &name, |made| {
        made.status = Some(object(json!({ "ips": ips })));
    });
    sim.settle().expect("settles");
}

#[test]
fn it_waits_for_its_network_and_is_woken_by_it() {
    let mut sim = region();
    public(&mut sim);
    sim.settle().expect("settles");
    assert!(sim.list::<apinet::LoadBalancer>().is_empty());
    assert_eq!(why(&sim), "!NetworkNotFound");
    network(&mut sim, "shop");
    sim.settle().expect("settles");
    assert_eq!(sim.list::<apinet::LoadBalancer>().len(), 1);
}

#[test]
fn in_a_network_that_was_made_again_it_is_made_again() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        public(sim);
        sim.settle().expect("settles");
        sim.delete::<Network>(NS, "shop");
        sim.settle().expect("settles");
        network(sim, "shop");
    })
    .expect("converges");
    let shop = uid::<Network>(&sim, NS, "shop");
    assert_eq!(made(&sim).spec.network_ref.name, shop);
}

#[test]
fn with_node_affinity_only_nodes_of_destinations_are_wanted() {
    let mut sim = region_of(filter(), true);
    network(&mut sim, "shop");
    public(&mut sim);
    sim.settle().expect("settles");
    let affinity = |sim: &Sim| {
        let affinity = made(sim).spec.template.spec.affinity;
        json!(affinity.and_then(|affinity| affinity.node_affinity))
    };
    assert_eq!(affinity(&sim), Value::Null, "nobody to be near to");
    routing(
        &mut sim,
        &[
            ("10.0.0.3", "openkcm-net://ns/c/part.n2/uc"),
            ("10.0.0.1", "openkcm-net://ns/a/part.n1/ua"),
            ("10.0.0.2", "openkcm-net://ns/b/part.n2/ub"),
            // Without a target there is no node; that must not be in the way.
            ("10.0.0.4", ""),
        ],
    );
    sim.settle().expect("settles");
    let term = |node: &str| json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [node] }] });
    assert_eq!(
        affinity(&sim),
        json!({ "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [term("part.n1"), term("part.n2")],
        } })
    );
}

#[test]
fn the_user_object_stays_until_no_hypervisor_serves_it() {
    let mut sim = region();
    network(&mut sim, "shop");
    public(&mut sim);
    sim.settle().expect("settles");
    routing(&mut sim, &[("10.0.0.1", "")]);
    sim.settle().expect("settles");
    let name = object::name(&made(&sim)).to_owned();
    sim.edit::<apinet::LoadBalancer>(APINET_NS, &name, |made| {
        made.metadata.finalizers = Some(vec!["test/instances-left".to_owned()]);
    });
    sim.delete::<LoadBalancer>(NS, "web");
    sim.delete::<LoadBalancerRouting>(NS, "web");
    sim.settle().expect("settles");
    assert!(sim.get::<LoadBalancer>(NS, "web").is_some());
    let held = made(&sim);
    assert!(object::is_deleting(&held));
    assert!(held.spec.ips.iter().all(|entry| entry.ip.is_some()));
    sim.edit::<apinet::LoadBalancer>(APINET_NS, &name, |made| made.metadata.finalizers = None);
    sim.settle().expect("settles");
    sim.delete::<Network>(NS, "shop");
    sim.settle().expect("settles");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn deleting_leaves_nothing_from_any_step() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        public(sim);
        sim.settle().expect("settles");
        routing(sim, &[("10.0.0.1", "")]);
        sim.settle().expect("settles");
        sim.delete::<LoadBalancerRouting>(NS, "web");
        sim.delete::<Network>(NS, "shop");
        sim.delete::<LoadBalancer>(NS, "web");
    })
    .expect("converges");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn one_whose_user_object_vanished_is_deleted() {
    let mut sim = region();
    network(&mut sim, "shop");
    public(&mut sim);
    sim.settle().expect("settles");
    sim.edit::<LoadBalancer>(NS, "web", |lb| lb.metadata.finalizers = None);
    sim.delete::<LoadBalancer>(NS, "web");
    sim.settle().expect("settles");
    assert!(sim.list::<apinet::LoadBalancer>().is_empty());
    assert!(sim.list::<apinet::LoadBalancerRouting>().is_empty());
}

#[test]
fn a_reason_is_shown_before_the_write_that_may_fail() {
    let mut sim = region();
    network(&mut sim, "shop");
    public(&mut sim);
    sim.settle().expect("settles");
    let about = |op: &Op, plural: &str| op.target().is_some_and(|t| t.kind.plural == plural);
    let mut log = sim.log.iter();
    let reason = log.position(|op| {
        about(op, "loadbalancers")
            && matches!(op, Op::Patch { status: true, body, .. }
                if body["status"]["conditions"][0]["reason"] == "AddressPending")
    });
    let apply = sim
        .log
        .iter()
        .position(|op| about(op, "loadbalancers") && matches!(op, Op::Apply { .. }));
    assert!(reason.expect("a reason") < apply.expect("an apply"));
}

#[test]
fn another_type_is_another_load_balancer() {
    let sim = verify(region, |sim| {
        network(sim, "shop");
        public(sim);
        sim.settle().expect("settles");
        internal(sim, json!([{ "value": "10.20.0.9" }]));
    })
    .expect("converges");
    assert_eq!(made(&sim).spec.type_, apinet::LoadBalancerType::Internal);
    let shown = user(&sim).status.expect("status").ips;
    assert_eq!(json!(shown), json!(["10.20.0.9"]));
}
