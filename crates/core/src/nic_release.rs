//! Frees interfaces whose machine is gone, so that another machine can claim them. A machine of the same name but another
//! uid does not count as the claimer.

use api::{compute::Machine, networking::NetworkInterface};
use controller::{Controller, Key, Op, Plan, Source, Target, World, object};
use serde_json::{Value, json};

use crate::index::{self, NIC_MACHINE};

pub struct NicReleaseController;

impl Controller for NicReleaseController {
    fn name(&self) -> &'static str {
        "networkinterfacerelease"
    }

    fn sources(&self) -> Vec<Source> {
        let machines = index::machines().keys(|machine, world| {
            let nics = world.indexed::<NetworkInterface>(NIC_MACHINE, object::uid(machine));
            nics.iter().map(|nic| Key::of(&**nic)).collect()
        });
        vec![index::nics().own_key().build(), machines.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(nic) = world.by_key::<NetworkInterface>(key) else {
            return Plan::none();
        };
        let Some(claim) = &nic.spec.machine_ref else {
            return Plan::none();
        };
        let machine = world.get::<Machine>(&key.namespace, &claim.name);
        let lives = machine.is_some_and(|machine| object::uid(&*machine) == claim.uid);
        if lives || object::is_deleting(&*nic) {
            return Plan::none();
        }
        let target = Target::new::<Machine>(&key.namespace, &claim.name);
        // The handle belongs to the claim: it names an interface of the machine that is gone.
        let body = json!({ "spec": { "machineRef": Value::Null, "providerID": Value::Null } });
        vec![
            Op::RequireGone {
                target,
                uid: claim.uid.clone(),
            },
            Op::locked(&*nic, body),
        ]
        .into()
    }
}
