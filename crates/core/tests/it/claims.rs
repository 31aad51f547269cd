//! Claims that outlived their claimer, and networks that must outlive their users.

use std::sync::Arc;

use api::{
    compute::{Machine, MachinePool},
    names::finalizer,
    networking::{Network, NetworkInterface, VirtualIP},
};
use controller::sim::{Sim, verify};
use core_controllers::{
    MachineReleaseController, NetworkProtectionController, NicReleaseController,
    VirtualIpReleaseController,
};
use serde_json::json;

use crate::{NS, object, uid};

fn region() -> Sim {
    Sim::new(vec![
        Arc::new(NicReleaseController),
        Arc::new(MachineReleaseController),
        Arc::new(VirtualIpReleaseController),
        Arc::new(NetworkProtectionController),
    ])
}

fn machine(sim: &mut Sim) -> String {
    let machine: Machine = object(json!({
        "metadata": { "name": "vm", "namespace": NS },
        "spec": { "machineClassRef": { "name": "small" } },
    }));
    sim.put(&machine);
    uid::<Machine>(sim, "vm")
}

fn nic(claimer: &str) -> NetworkInterface {
    object(json!({
        "metadata": { "name": "nic", "namespace": NS },
        "spec": {
            "networkRef": { "name": "blue" },
            "providerID": "openkcm-net://a/b/c/d",
            "machineRef": { "name": "vm", "uid": claimer },
        },
    }))
}

#[test]
fn an_interface_is_freed_when_its_machine_goes_and_not_before() {
    let sim = verify(region, |sim| {
        let claimer = machine(sim);
        sim.put(&nic(&claimer));
        assert_eq!(sim.settle(), Ok(0));
        sim.delete::<Machine>(NS, "vm");
    })
    .expect("converges");
    let nic = sim.get::<NetworkInterface>(NS, "nic").expect("stays");
    assert_eq!(
        (nic.spec.machine_ref, nic.spec.provider_id.as_str()),
        (None, "")
    );
}

#[test]
fn a_machine_goes_when_its_pool_is_gone_for_good_and_not_before() {
    let gone = |pool_stays: bool| {
        let sim = verify(region, |sim| {
            let pool: MachinePool = object(json!({ "metadata": { "name": "hv1" } }));
            sim.put(&pool);
            let machine: Machine = object(json!({
                "metadata": { "name": "vm", "namespace": NS, "finalizers": [finalizer::MACHINE] },
                "spec": {
                    "machineClassRef": { "name": "small" },
                    "machinePoolRef": { "name": "hv1" },
                },
            }));
            sim.put(&machine);
            sim.delete::<Machine>(NS, "vm");
            sim.settle().expect("settles");
            if !pool_stays {
                sim.delete::<MachinePool>("", "hv1");
            }
        });
        sim.expect("converges").get::<Machine>(NS, "vm").is_none()
    };
    assert!(!gone(true));
    assert!(gone(false));
}

#[test]
fn a_new_machine_of_the_same_name_is_not_the_claimer() {
    let mut sim = region();
    machine(&mut sim);
    sim.put(&nic("its-predecessor"));
    sim.settle().expect("settles");
    assert_eq!(
        sim.get::<NetworkInterface>(NS, "nic")
            .expect("stays")
            .spec
            .machine_ref,
        None
    );
}

#[test]
fn a_virtual_ip_is_freed_when_its_interface_goes() {
    let sim = verify(region, |sim| {
        let claimer = machine(sim);
        sim.put(&nic(&claimer));
        let target = uid::<NetworkInterface>(sim, "nic");
        let vip: VirtualIP = object(json!({
            "metadata": { "name": "www", "namespace": NS },
            "spec": {
                "type": "Public",
                "ipFamily": "IPv4",
                "targetRef": { "name": "nic", "uid": target },
            },
        }));
        sim.put(&vip);
        assert_eq!(sim.settle(), Ok(0));
        sim.delete::<NetworkInterface>(NS, "nic");
    })
    .expect("converges");
    assert_eq!(
        sim.get::<VirtualIP>(NS, "www")
            .expect("stays")
            .spec
            .target_ref,
        None
    );
}

#[test]
fn a_network_stays_as_long_as_an_interface_names_it_even_one_that_is_going() {
    let mut sim = region();
    let network: Network =
        object(json!({ "metadata": { "name": "blue", "namespace": NS }, "spec": {} }));
    sim.put(&network);
    let claimer = machine(&mut sim);
    let mut nic = nic(&claimer);
    nic.metadata.finalizers = Some(vec!["data-plane".to_owned()]);
    sim.put(&nic);
    sim.settle().expect("settles");
    sim.delete::<Network>(NS, "blue");
    sim.delete::<NetworkInterface>(NS, "nic");
    sim.settle().expect("settles");
    assert!(sim.get::<Network>(NS, "blue").is_some());
    sim.edit::<NetworkInterface>(NS, "nic", |nic| nic.metadata.finalizers = None);
    sim.settle().expect("settles");
    assert!(sim.get::<Network>(NS, "blue").is_none());
}
