//! LoadBalancer → DaemonSet → Instances → Nodes, in a simulated region.

use std::sync::Arc;

use api::{
    apinet::{DaemonSet, Instance, LoadBalancer, LoadBalancerRouting, Node},
    names::{finalizer::DATA_PLANE, label},
};
use apinet::{
    DaemonSetController, InstanceSchedulerController, LoadBalancerController, daemon_set_name,
    instance_name,
};
use controller::sim::{Sim, verify};
use serde_json::{Value, json};

use crate::{LATE_MS, NS, object};

pub fn region() -> Sim {
    let mut sim = Sim::new(vec![
        Arc::new(LoadBalancerController),
        Arc::new(DaemonSetController),
        Arc::new(InstanceSchedulerController),
    ]);
    sim.now_ms = LATE_MS;
    sim
}

pub fn node(sim: &mut Sim, name: &str, zone: &str) {
    let node: Node = object(json!({
        "metadata": { "name": name, "labels": { "zone": zone, label::APINET_PARTITION: "p" } },
    }));
    sim.put(&node);
}

fn ready(sim: &mut Sim, name: &str, status: &str, reason: &str) {
    let conditions = json!([{ "type": "Ready", "status": status, "reason": reason, "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
    sim.edit::<Node>("", name, |node| {
        node.status =
            Some(serde_json::from_value(json!({ "conditions": conditions })).expect("a status"));
    });
}

pub fn balancer(template: Value) -> LoadBalancer {
    object(json!({
        "metadata": { "name": "web", "namespace": NS },
        "spec": {
            "type": "Public",
            "networkRef": { "name": "net" },
            "ips": [{ "name": "v4", "ipFamily": "IPv4", "ip": "203.0.113.1" }, { "name": "v6", "ipFamily": "IPv6", "ip": "2001:db8::1" }],
            "ports": [{ "protocol": "TCP", "port": 80, "endPort": 88 }],
            "selector": { "matchLabels": { "lb": "web" }, "matchExpressions": [{ "key": "lb", "operator": "Exists" }] },
            "template": { "metadata": { "labels": { "lb": "web" }, "annotations": { "a": "b" } }, "spec": template },
        },
    }))
}

/// At most one Instance per zone.
pub fn one_per_zone() -> Value {
    json!({ "affinity": { "instanceAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "topologyKey": "zone", "labelSelector": { "matchLabels": { "lb": "web" } } }] } } })
}

fn three_nodes(sim: &mut Sim) {
    node(sim, "p.a1", "a");
    node(sim, "p.a2", "a");
    node(sim, "p.b1", "b");
}

/// Nodes with a bound Instance that is not going.
fn bound(sim: &Sim) -> Vec<String> {
    let mut names: Vec<String> = sim
        .list::<Instance>()
        .into_iter()
        .filter(|instance| !object::is_deleting(instance))
        .filter_map(|instance| Some(instance.spec.node_ref?.name))
        .collect();
    names.sort();
    names
}

#[test]
fn every_node_gets_an_instance_with_the_whole_template() {
    let sim = verify(region, |sim| {
        three_nodes(sim);
        let mut template = one_per_zone();
        template["affinity"]["instanceAntiAffinity"] = Value::Null;
        template["topologySpreadConstraints"] = json!([{ "maxSkew": 9, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {} }]);
        sim.put(&balancer(template));
    })
    .expect("converges");
    assert_eq!(bound(&sim), ["p.a1", "p.a2", "p.b1"]);
    let set = sim.get::<DaemonSet>(NS, "lb-web").expect("a set");
    let wanted = balancer(json!({})).spec;
    assert_eq!(set.spec.node_selector, wanted.selector, "expressions too");
    for instance in sim.list::<Instance>() {
        let spec = &instance.spec;
        assert_eq!(object::label(&instance, "lb"), Some("web"));
        assert_eq!(object::annotation(&instance, "a"), Some("b"));
        assert_eq!(spec.topology_spread_constraints.len(), 1);
        assert_eq!(spec.load_balancer_ports, wanted.ports);
        assert_eq!(spec.network_ref, wanted.network_ref);
        let ips: Vec<String> = spec.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["203.0.113.1", "2001:db8::1"]);
        let name = spec.node_ref.clone().expect("bound").name;
        let pinned = json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] }]);
        assert_eq!(
            json!(spec)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
                ["nodeSelectorTerms"],
            pinned
        );
        assert_eq!(
            object::name(&instance),
            instance_name("lb-web", object::uid(&set), &name)
        );
    }
}

#[test]
fn anti_affinity_leaves_one_per_zone_and_the_rest_waits() {
    let sim = verify(region, |sim| {
        three_nodes(sim);
        sim.put(&balancer(one_per_zone()));
    })
    .expect("converges");
    let bound = bound(&sim);
    assert_eq!(bound.len(), 2, "{bound:?}");
    assert_eq!(bound[1], "p.b1");
    assert_eq!(sim.list::<Instance>().len(), 3);
}

#[test]
fn who_waits_for_a_place_gets_it_when_it_becomes_free() {
    let mut sim = region();
    three_nodes(&mut sim);
    sim.put(&balancer(one_per_zone()));
    sim.settle().expect("settles");
    let first = bound(&sim)[0].clone();
    sim.delete::<Node>("", &first);
    sim.settle().expect("settles");
    let now = bound(&sim);
    assert_ne!(now[0], first);
    assert_eq!(now[1..], ["p.b1"]);
}

#[test]
fn an_instance_that_goes_makes_room_as_soon_as_it_goes() {
    let mut sim = region();
    node(&mut sim, "p.a1", "a");
    let instance = |name: &str| -> Instance {
        let mut spec = one_per_zone();
        spec["type"] = json!("LoadBalancer");
        spec["loadBalancerType"] = json!("Internal");
        spec["networkRef"] = json!({ "name": "net" });
        let labels = json!({ "lb": "web" });
        let metadata = json!({ "name": name, "namespace": NS, "labels": labels });
        object(json!({ "metadata": metadata, "spec": spec }))
    };
    // Its hypervisor still has it, so that it does not go at once.
    let mut first = instance("first");
    first.metadata.finalizers = Some(vec!["partition".to_owned()]);
    sim.put(&first);
    sim.settle().expect("settles");
    sim.put(&instance("second"));
    sim.settle().expect("settles");
    let place = |sim: &Sim, name: &str| {
        let instance = sim.get::<Instance>(NS, name).expect("there");
        instance.spec.node_ref.map(|node| node.name)
    };
    assert_eq!(place(&sim, "first").as_deref(), Some("p.a1"));
    assert_eq!(place(&sim, "second"), None);
    sim.delete::<Instance>(NS, "first");
    sim.settle().expect("settles");
    assert!(sim.get::<Instance>(NS, "first").is_some());
    assert_eq!(place(&sim, "second").as_deref(), Some("p.a1"));
}

#[test]
fn a_lost_node_is_replaced_even_while_its_instance_cannot_go() {
    let mut sim = region();
    three_nodes(&mut sim);
    sim.put(&balancer(one_per_zone()));
    sim.settle().expect("settles");
    let first = bound(&sim)[0].clone();
    // The partition's finalizer holds the Instance: its hypervisor does not answer.
    for instance in sim.list::<Instance>() {
        sim.edit::<Instance>(NS, object::name(&instance), |instance| {
            instance.metadata.finalizers = Some(vec![
                "partition.metalnetlet.apinet.openkcm.dev/p".to_owned(),
            ]);
        });
    }
    ready(&mut sim, &first, "Unknown", "PartitionSilent");
    sim.settle().expect("settles");
    assert!(
        bound(&sim).contains(&first),
        "nobody moves for a silent partition"
    );
    ready(&mut sim, &first, "Unknown", "NodeSilent");
    sim.settle().expect("settles");
    let second = bound(&sim)[0].clone();
    assert_ne!(first, second);
    assert_eq!(bound(&sim), [second, "p.b1".to_owned()]);
}

#[test]
fn instances_of_a_removed_node_go_although_they_were_bound() {
    let mut sim = region();
    three_nodes(&mut sim);
    sim.put(&balancer(json!({})));
    sim.settle().expect("settles");
    sim.delete::<Node>("", "p.a1");
    sim.settle().expect("settles");
    assert_eq!(bound(&sim), ["p.a2", "p.b1"]);
    assert_eq!(sim.list::<Instance>().len(), 2);
}

#[test]
fn a_cordoned_node_keeps_what_it_has_and_gets_nothing_new() {
    let mut sim = region();
    three_nodes(&mut sim);
    sim.put(&balancer(json!({})));
    sim.settle().expect("settles");
    sim.edit::<Node>("", "p.a1", |node| node.spec.unschedulable = true);
    sim.settle().expect("settles");
    assert_eq!(bound(&sim), ["p.a1", "p.a2", "p.b1"]);
    let gone = sim.list::<Instance>();
    for instance in gone {
        sim.delete::<Instance>(NS, object::name(&instance));
    }
    sim.settle().expect("settles");
    assert_eq!(bound(&sim), ["p.a2", "p.b1"]);
}

#[test]
fn node_labels_count_when_they_change() {
    let mut sim = region();
    three_nodes(&mut sim);
    let zone_b = json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["b"] }] }] } } } });
    sim.put(&balancer(zone_b));
    sim.settle().expect("settles");
    assert_eq!(bound(&sim), ["p.b1"]);
    node(&mut sim, "p.a1", "b");
    sim.settle().expect("settles");
    assert_eq!(bound(&sim), ["p.a1", "p.b1"]);
    node(&mut sim, "p.b1", "a");
    sim.settle().expect("settles");
    assert_eq!(bound(&sim), ["p.a1"]);
}

#[test]
fn any_change_of_the_template_reaches_all_instances_in_place() {
    let mut sim = region();
    three_nodes(&mut sim);
    sim.put(&balancer(json!({})));
    sim.settle().expect("settles");
    let uids = |sim: &Sim| -> Vec<String> {
        let all = sim.list::<Instance>();
        all.iter()
            .map(|instance| object::uid(instance).to_owned())
            .collect()
    };
    let before = uids(&sim);
    sim.edit::<LoadBalancer>(NS, "web", |balancer| {
        balancer.spec.ips.pop();
        balancer.spec.ports.clear();
        let template = &mut balancer.spec.template;
        template.metadata = Some(
            serde_json::from_value(json!({ "labels": { "lb": "web", "new": "1" } }))
                .expect("metadata"),
        );
        template.spec = serde_json::from_value(one_per_zone()).expect("a spec");
    });
    sim.settle().expect("settles");
    assert_eq!(uids(&sim), before);
    for instance in sim.list::<Instance>() {
        assert_eq!(instance.spec.ips.len(), 1);
        assert!(instance.spec.load_balancer_ports.is_empty());
        assert_eq!(object::label(&instance, "new"), Some("1"));
        assert_eq!(
            object::annotation(&instance, "a"),
            None,
            "what is no longer asked for goes"
        );
        let affinity = instance.spec.affinity.expect("an affinity");
        assert!(affinity.instance_anti_affinity.is_some());
    }
}

#[test]
fn the_balancer_stays_until_the_last_instance_has_let_go() {
    let mut sim = region();
    three_nodes(&mut sim);
    sim.put(&balancer(json!({})));
    sim.settle().expect("settles");
    let made = sim.get::<LoadBalancer>(NS, "web").expect("stays");
    assert!(object::has_finalizer(&made, DATA_PLANE));
    let held = object::name(&sim.list::<Instance>()[0]).to_owned();
    sim.edit::<Instance>(NS, &held, |instance| {
        instance.metadata.finalizers = Some(vec!["partition".to_owned()]);
    });
    sim.delete::<LoadBalancer>(NS, "web");
    sim.settle().expect("settles");
    assert!(sim.get::<DaemonSet>(NS, "lb-web").is_none());
    assert_eq!(sim.list::<Instance>().len(), 1);
    assert!(
        sim.get::<LoadBalancer>(NS, "web").is_some(),
        "its addresses are still balanced somewhere"
    );
    sim.edit::<Instance>(NS, &held, |instance| instance.metadata.finalizers = None);
    sim.settle().expect("settles");
    assert!(sim.list::<Instance>().is_empty());
    assert!(sim.get::<LoadBalancer>(NS, "web").is_none());
}

#[test]
fn the_status_says_which_addresses_are_served() {
    let mut sim = region();
    three_nodes(&mut sim);
    sim.put(&balancer(json!({})));
    sim.settle().expect("settles");
    let served = |sim: &Sim| {
        let status = sim
            .get::<LoadBalancer>(NS, "web")
            .expect("stays")
            .status
            .unwrap_or_default();
        status
            .ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert!(served(&sim).is_empty());
    let one = object::name(&sim.list::<Instance>()[0]).to_owned();
    sim.edit::<Instance>(NS, &one, |instance| {
        instance.status = Some(
            serde_json::from_value(json!({ "ips": ["2001:db8::1", "192.0.2.9"] }))
                .expect("a status"),
        );
    });
    sim.settle().expect("settles");
    assert_eq!(served(&sim), ["2001:db8::1"]);
    sim.edit::<Instance>(NS, &one, |instance| instance.status = None);
    sim.settle().expect("settles");
    assert!(served(&sim).is_empty());
}

#[test]
fn orphans_are_adopted_and_strangers_left_alone() {
    let mut sim = region();
    node(&mut sim, "p.a1", "a");
    sim.put(&balancer(json!({})));
    sim.settle().expect("settles");
    let made = sim.list::<Instance>().remove(0);
    sim.edit::<Instance>(NS, object::name(&made), |instance| {
        instance.metadata.owner_references = None;
    });
    sim.settle().expect("settles");
    let again = sim.list::<Instance>();
    assert_eq!(again.len(), 1);
    assert_eq!(object::uid(&again[0]), object::uid(&made));
    assert!(object::controller_of(&again[0]).is_some());
    // One that no longer carries the labels is let go, and another one takes its place as soon as the name is free.
    sim.edit::<Instance>(NS, object::name(&made), |instance| {
        instance.metadata.labels = None
    });
    sim.settle().expect("settles");
    assert!(
        object::controller_of(&sim.get::<Instance>(NS, object::name(&made)).expect("stays"))
            .is_none()
    );
}

#[test]
fn a_routing_without_balancer_goes_after_a_grace() {
    let mut sim = region();
    let routing: LoadBalancerRouting = object(json!({
        "metadata": { "name": "web", "namespace": NS, "creationTimestamp": crate::CREATED },
    }));
    sim.now_ms = crate::CREATED_MS + 1000;
    sim.put(&routing);
    assert_eq!(sim.settle(), Ok(0));
    sim.now_ms = LATE_MS;
    sim.wake_all();
    sim.settle().expect("settles");
    assert!(sim.list::<LoadBalancerRouting>().is_empty());
}

#[test]
fn names_fit_into_a_label() {
    assert_eq!(daemon_set_name("web"), "lb-web");
    let long = "x".repeat(63);
    let other = format!("{}y", "x".repeat(62));
    assert_eq!(daemon_set_name(&long).len(), 63);
    assert_ne!(daemon_set_name(&long), daemon_set_name(&other));
    let name = instance_name(&daemon_set_name(&long), "uid", "p.n1");
    assert!(name.len() <= 63);
    assert_ne!(name, instance_name(&daemon_set_name(&long), "uid", "p.n2"));
}
