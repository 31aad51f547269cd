//! Interfaces that a machine provider made on a hypervisor that is gone for good: nobody else would ever delete them.
//!
//! A hypervisor whose Node is deleted but that lives has its Node back at once, and its provider makes what it needs anew.

use api::{
    apinet::{NetworkInterface, Node},
    names::label,
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};

use crate::collect;
use crate::index::{self, NIC_NODE};

pub struct DepartedController;

impl Controller for DepartedController {
    fn name(&self) -> &'static str {
        "departedinterface"
    }

    fn sources(&self) -> Vec<Source> {
        let nodes = Watch::<Node>::new().removed_keys(|node, world| {
            let nics = world.indexed::<NetworkInterface>(NIC_NODE, object::name(node));
            nics.iter().map(|nic| Key::of(&**nic)).collect()
        });
        vec![index::nics().own_key().build(), nodes.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(nic) = world.by_key::<NetworkInterface>(key) else {
            return plan;
        };
        let node = nic.spec.node_ref.name.as_str();
        let made = object::label(&*nic, label::MACHINE_ID).is_some();
        if !made || object::is_deleting(&*nic) || world.get::<Node>("", node).is_some() {
            return plan;
        }
        // Its Node may be about to come.
        if let Some(left) = collect::grace_left(&*nic, world.now_ms()) {
            plan.requeue_after(left);
            return plan;
        }
        plan.push(Op::require_absent(Target::new::<Node>("", node)));
        plan.push(Op::delete(&*nic));
        plan
    }
}
