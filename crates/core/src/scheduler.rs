//! Puts machines on pools. One worker, so that every decision sees all earlier ones.
//!
//! A pool is eligible if it is Ready, carries the wanted labels, has no taint the machine does not tolerate, and has room for
//! the class. Among eligible pools the one with most room wins, then the one with fewest machines, then the first by name:
//! deterministic, and it spreads machines.

use std::collections::BTreeMap;

use api::{
    compute::{Machine, MachinePool, MachinePoolState},
    meta::{Quantity, Taint},
};
use controller::{Controller, Key, Op, Plan, Source, Watch, World, object};
use serde_json::json;

use crate::index::{self, MACHINE_POOL, UNSCHEDULED};

pub struct SchedulerController;

impl Controller for SchedulerController {
    fn name(&self) -> &'static str {
        "machinescheduler"
    }

    fn sources(&self) -> Vec<Source> {
        let machines = index::machines()
            .keys(|machine, _| match machine.spec.machine_pool_ref {
                None => vec![Key::of(machine)],
                Some(_) => Vec::new(),
            })
            .removed_keys(|_, world| unscheduled(world));
        let pools = Watch::<MachinePool>::new().keys(|_, world| unscheduled(world));
        vec![machines.build(), pools.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(machine) = world.by_key::<Machine>(key) else {
            return Plan::none();
        };
        if object::is_deleting(&*machine) || machine.spec.machine_pool_ref.is_some() {
            return Plan::none();
        }
        let class = machine.spec.machine_class_ref.name.as_str();
        let pools = world.list::<MachinePool>();
        let best = pools
            .iter()
            .filter(|pool| accepts(pool, &machine))
            .filter_map(|pool| {
                let bound = world.indexed::<Machine>(MACHINE_POOL, object::name(&**pool));
                let of_class = bound
                    .iter()
                    .filter(|m| m.spec.machine_class_ref.name == class);
                let room = room(pool, class, of_class.count());
                (room > 0).then_some((room, std::cmp::Reverse(bound.len()), pool))
            })
            // The list is ordered by name, and the first of equals is kept by comparing the rest only.
            .reduce(|best, next| {
                if (next.0, next.1) > (best.0, best.1) {
                    next
                } else {
                    best
                }
            });
        match best {
            Some((_, _, pool)) => {
                let reference = json!({ "name": object::name(&**pool) });
                vec![Op::locked(
                    &*machine,
                    json!({ "spec": { "machinePoolRef": reference } }),
                )]
                .into()
            }
            None => {
                let note = format!(
                    "none of {} machine pools has room for class {class}",
                    pools.len()
                );
                vec![Op::event(
                    &*machine,
                    false,
                    "OutOfCapacity",
                    "Scheduling",
                    note,
                )]
                .into()
            }
        }
    }
}

fn unscheduled(world: &World) -> Vec<Key> {
    let machines = world.indexed::<Machine>(MACHINE_POOL, UNSCHEDULED);
    machines.iter().map(|machine| Key::of(&**machine)).collect()
}

fn accepts(pool: &MachinePool, machine: &Machine) -> bool {
    let wanted = &machine.spec.machine_pool_selector;
    is_ready(pool)
        && !object::is_deleting(pool)
        && wanted
            .iter()
            .all(|(key, value)| object::label(pool, key) == Some(value))
        && pool
            .spec
            .taints
            .iter()
            .all(|taint| tolerates(machine, taint))
}

fn tolerates(machine: &Machine, taint: &Taint) -> bool {
    machine
        .spec
        .tolerations
        .iter()
        .any(|toleration| toleration.tolerates(taint))
}

/// The Ready condition decides; a pool that reports no such condition is judged by its state.
fn is_ready(pool: &MachinePool) -> bool {
    let Some(status) = &pool.status else {
        return false;
    };
    match status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
    {
        Some(condition) => condition.status == "True",
        None => status.state == Some(MachinePoolState::Ready),
    }
}

/// Machines of the class that still fit. The pool's own `allocatable` lags behind and may count less for other reasons, our
/// own count of bound machines is exact: the smaller one is safe.
fn room(pool: &MachinePool, class: &str, bound: usize) -> i64 {
    let Some(status) = &pool.status else { return 0 };
    let resource = format!("class/machine.{class}");
    let bound = i64::try_from(bound).unwrap_or(i64::MAX);
    let free = count(&status.capacity, &resource).map(|capacity| capacity.saturating_sub(bound));
    let allocatable = count(&status.allocatable, &resource);
    match (free, allocatable) {
        (Some(free), Some(allocatable)) => free.min(allocatable),
        (Some(free), None) => free,
        (None, Some(allocatable)) => allocatable,
        (None, None) => 0,
    }
}

/// Counts are whole numbers, possibly written with `k`.
fn count(resources: &BTreeMap<String, Quantity>, name: &str) -> Option<i64> {
    let Quantity(text) = resources.get(name)?;
    match text.strip_suffix('k') {
        Some(thousands) => thousands.parse::<i64>().ok()?.checked_mul(1000),
        None => text.parse().ok(),
    }
}
