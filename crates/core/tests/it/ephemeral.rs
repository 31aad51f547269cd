//! Objects made on behalf of machines and interfaces.

use std::sync::Arc;

use api::{
    compute::Machine,
    networking::{NetworkInterface, VirtualIP},
};
use controller::{
    Op,
    object::controller_of,
    sim::{Sim, verify},
};
use core_controllers::{EphemeralNicController, EphemeralVirtualIpController};
use serde_json::{Value, json};

use crate::{NS, object, uid};

fn region() -> Sim {
    Sim::new(vec![
        Arc::new(EphemeralNicController),
        Arc::new(EphemeralVirtualIpController),
    ])
}

fn machine(entries: &[&str]) -> Machine {
    let entries: Vec<Value> = entries
        .iter()
        .map(|name| {
            json!({
                "name": name,
                "ephemeral": { "networkInterfaceTemplate": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": {
                        "networkRef": { "name": "blue" },
                        "ipFamilies": ["IPv4"],
                        "ips": [{ "value": "10.0.0.1" }],
                    },
                } },
            })
        })
        .collect();
    object(json!({
        "metadata": { "name": "vm", "namespace": NS },
        "spec": { "machineClassRef": { "name": "small" }, "networkInterfaces": entries },
    }))
}

#[test]
fn an_ephemeral_interface_is_made_owned_and_claimed() {
    let sim = verify(region, |sim| sim.put(&machine(&["primary"]))).expect("converges");
    let nic = sim.get::<NetworkInterface>(NS, "vm-primary").expect("made");
    let machine = uid::<Machine>(&sim, "vm");
    assert_eq!(
        json!(nic.spec.machine_ref),
        json!({ "name": "vm", "uid": machine })
    );
    assert_eq!(nic.spec.network_ref.name, "blue");
    let owner = controller_of(&nic).expect("controlled");
    assert_eq!(
        (owner.kind.as_str(), owner.uid.as_str()),
        ("Machine", machine.as_str())
    );
    assert_eq!(json!(nic.metadata.labels), json!({ "app": "web" }));
    assert_eq!(
        json!(nic.metadata.annotations),
        json!({ "common.openkcm.dev/ephemeral-managed-by": "ephemeral-manager" })
    );
}

#[test]
fn an_entry_that_leaves_takes_its_interface_along_and_others_stay() {
    let sim = verify(region, |sim| {
        sim.put(&machine(&["a", "b"]));
        sim.settle().expect("settles");
        let foreign: NetworkInterface = object(json!({
            "metadata": { "name": "vm-c", "namespace": NS },
            "spec": { "networkRef": { "name": "blue" } },
        }));
        sim.put(&foreign);
        sim.put(&machine(&["b"]));
    })
    .expect("converges");
    let left: Vec<_> = sim
        .list::<NetworkInterface>()
        .into_iter()
        .map(|nic| nic.metadata.name)
        .collect();
    assert_eq!(left, [Some("vm-b".to_owned()), Some("vm-c".to_owned())]);
}

#[test]
fn a_name_taken_by_somebody_else_is_never_adopted_and_is_used_once_it_is_free() {
    let mut sim = region();
    let foreign: NetworkInterface = object(json!({
        "metadata": { "name": "vm-primary", "namespace": NS },
        "spec": { "networkRef": { "name": "red" } },
    }));
    sim.put(&foreign);
    sim.put(&machine(&["primary"]));
    sim.settle().expect("settles");
    let nic = sim
        .get::<NetworkInterface>(NS, "vm-primary")
        .expect("untouched");
    assert_eq!(
        (nic.spec.network_ref.name.as_str(), nic.spec.machine_ref),
        ("red", None)
    );
    assert!(sim.log.iter().any(|op| matches!(
        op,
        Op::Event {
            reason: "NameTaken",
            ..
        }
    )));
    sim.delete::<NetworkInterface>(NS, "vm-primary");
    sim.settle().expect("settles");
    let nic = sim.get::<NetworkInterface>(NS, "vm-primary").expect("made");
    assert_eq!(nic.spec.network_ref.name, "blue");
}

#[test]
fn deleting_the_machine_leaves_nothing() {
    let sim = verify(region, |sim| {
        sim.put(&machine(&["a"]));
        sim.settle().expect("settles");
        sim.delete::<Machine>(NS, "vm");
    })
    .expect("converges");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

fn nic(policy: &str) -> NetworkInterface {
    object(json!({
        "metadata": { "name": "nic", "namespace": NS },
        "spec": {
            "networkRef": { "name": "blue" },
            "virtualIP": { "ephemeral": { "virtualIPTemplate": {
                "spec": { "type": "Public", "ipFamily": "IPv4", "reclaimPolicy": policy },
            } } },
        },
    }))
}

#[test]
fn an_ephemeral_virtual_ip_follows_its_reclaim_policy() {
    for (policy, survivors) in [("Delete", 0), ("Retain", 1)] {
        let sim = verify(region, |sim| {
            sim.put(&nic(policy));
            sim.settle().expect("settles");
            sim.delete::<NetworkInterface>(NS, "nic");
        })
        .expect("converges");
        assert_eq!(sim.list::<VirtualIP>().len(), survivors, "{policy}");
    }
}

#[test]
fn a_retained_virtual_ip_gets_an_owner_when_the_policy_becomes_delete() {
    let sim = verify(region, |sim| {
        sim.put(&nic("Retain"));
        sim.settle().expect("settles");
        sim.put(&nic("Delete"));
    })
    .expect("converges");
    let vip = sim.get::<VirtualIP>(NS, "nic").expect("virtual IP");
    assert_eq!(
        controller_of(&vip).expect("controlled").uid,
        uid::<NetworkInterface>(&sim, "nic")
    );
}
