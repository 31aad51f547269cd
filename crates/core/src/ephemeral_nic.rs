//! Machine with an ephemeral interface → NetworkInterface `<machine>-<entry>`, owned and claimed by the machine.
//!
//! Only objects that this controller made (marked, and controlled by the machine) are kept or deleted; an object of the same
//! name by somebody else is never adopted, which is said in an event.

use std::collections::BTreeMap;

use api::{
    compute::Machine,
    ids::is_ephemeral_of,
    names::annotation::{EPHEMERAL_MANAGED_BY, EPHEMERAL_MANAGER},
    networking::{NetworkInterface, NetworkInterfaceTemplateSpec},
};
use controller::{Controller, Key, Op, Plan, Source, Target, World, object};
use serde_json::json;

use crate::index::{self, MACHINE_EPHEMERAL_NIC, NIC_CONTROLLER};

pub struct EphemeralNicController;

impl Controller for EphemeralNicController {
    fn name(&self) -> &'static str {
        "machineephemeralnetworkinterface"
    }

    fn sources(&self) -> Vec<Source> {
        let nics = index::nics().keys(|nic, world| {
            let key = Key::of(nic);
            let wanting = world.indexed::<Machine>(MACHINE_EPHEMERAL_NIC, &key.to_string());
            let owner = object::controller_of(nic).filter(|owner| owner.kind == "Machine");
            let owner = owner.map(|owner| Key::new(&key.namespace, &owner.name));
            wanting
                .iter()
                .map(|machine| Key::of(&**machine))
                .chain(owner)
                .collect()
        });
        vec![index::machines().own_key().build(), nics.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(machine) = world.by_key::<Machine>(key) else {
            return Plan::none();
        };
        if object::is_deleting(&*machine) {
            return Plan::none();
        }
        let wanted = wanted(&machine);
        let mut plan = Plan::none();
        for nic in world.indexed::<NetworkInterface>(NIC_CONTROLLER, object::uid(&*machine)) {
            let ours = is_ephemeral_of(&nic.metadata, object::uid(&*machine));
            if ours && !wanted.contains_key(object::name(&*nic)) && !object::is_deleting(&*nic) {
                plan.push(Op::delete(&*nic));
            }
        }
        for (name, template) in wanted {
            match world.get::<NetworkInterface>(&key.namespace, &name) {
                None => {
                    plan.push(create(&machine, &name, template));
                }
                Some(nic) if !is_ephemeral_of(&nic.metadata, object::uid(&*machine)) => {
                    let note = format!("NetworkInterface {name} exists and is not ours");
                    plan.push(Op::event(
                        &*machine,
                        true,
                        "NameTaken",
                        "CreateNetworkInterface",
                        note,
                    ));
                }
                Some(_) => {}
            }
        }
        plan
    }
}

fn wanted(machine: &Machine) -> BTreeMap<String, &NetworkInterfaceTemplateSpec> {
    let entries = machine.spec.network_interfaces.iter().filter_map(|entry| {
        let template = entry
            .ephemeral
            .as_ref()?
            .network_interface_template
            .as_ref()?;
        Some((entry.object_name(object::name(machine)), template))
    });
    entries.collect()
}

fn create(machine: &Machine, name: &str, template: &NetworkInterfaceTemplateSpec) -> Op {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(
        EPHEMERAL_MANAGED_BY.to_owned(),
        EPHEMERAL_MANAGER.to_owned(),
    );
    let mut spec = json!(template.spec);
    spec["machineRef"] = json!({ "name": object::name(machine), "uid": object::uid(machine) });
    let body = json!({
        "metadata": {
            "labels": meta.labels.unwrap_or_default(),
            "annotations": annotations,
            "ownerReferences": [object::controller_reference(machine)],
        },
        "spec": spec,
    });
    Op::create(
        Target::new::<NetworkInterface>(object::namespace(machine), name),
        body,
    )
}
