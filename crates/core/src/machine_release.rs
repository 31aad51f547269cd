//! Lets machines go whose pool is gone for good. An operator says so by deleting the MachinePool; nobody else can know.
//!
//! The agent of a pool holds its machines until the runtime has none of them left. One that lives makes its pool anew; of one that
//! is gone, nobody would ever lift that hold.

use api::{
    compute::{Machine, MachinePool},
    names::finalizer,
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};

use crate::index::{self, MACHINE_POOL};

pub struct MachineReleaseController;

impl Controller for MachineReleaseController {
    fn name(&self) -> &'static str {
        "machinerelease"
    }

    fn sources(&self) -> Vec<Source> {
        let pools = Watch::<MachinePool>::new().removed_keys(|pool, world| {
            let machines = world.indexed::<Machine>(MACHINE_POOL, object::name(pool));
            machines.iter().map(|machine| Key::of(&**machine)).collect()
        });
        vec![index::machines().own_key().build(), pools.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(machine) = world.by_key::<Machine>(key) else {
            return plan;
        };
        let Some(pool) = &machine.spec.machine_pool_ref else {
            return plan;
        };
        let lift = Op::remove_finalizer(&*machine, finalizer::MACHINE);
        let there = world.get::<MachinePool>("", &pool.name).is_some();
        if let Some(lift) = lift.filter(|_| object::is_deleting(&*machine) && !there) {
            let target = Target::new::<MachinePool>("", &pool.name);
            plan.push(Op::require_absent(target));
            plan.push(lift);
        }
        plan
    }
}
