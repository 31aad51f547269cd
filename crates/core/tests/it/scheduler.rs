//! Where machines go.

use std::{collections::BTreeMap, sync::Arc};

use api::compute::{Machine, MachinePool};
use controller::{
    Op,
    sim::{Sim, verify},
};
use core_controllers::SchedulerController;
use serde_json::{Value, json};

use crate::{NS, object};

fn region() -> Sim {
    Sim::new(vec![Arc::new(SchedulerController)])
}

fn pool(name: &str, slots: u32) -> MachinePool {
    object(json!({
        "metadata": { "name": name, "labels": { "zone": name } },
        "spec": { "providerID": "x" },
        "status": {
            "conditions": [{ "type": "Ready", "status": "True" }],
            "capacity": { "class/machine.small": slots.to_string() },
            "allocatable": { "class/machine.small": slots.to_string() },
        },
    }))
}

fn machine(name: &str, extra: Value) -> Machine {
    let mut spec = json!({ "machineClassRef": { "name": "small" } });
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    object(json!({ "metadata": { "name": name, "namespace": NS }, "spec": spec }))
}

fn place(sim: &Sim, name: &str) -> Option<String> {
    let machine = sim.get::<Machine>(NS, name).expect("machine");
    machine.spec.machine_pool_ref.map(|pool| pool.name)
}

#[test]
fn machines_are_spread_and_never_exceed_capacity() {
    let sim = verify(region, |sim| {
        sim.put(&pool("a", 2));
        sim.put(&pool("b", 3));
        for number in 0..7 {
            sim.put(&machine(&format!("m{number}"), json!({})));
        }
    })
    .expect("converges");
    let mut placed = BTreeMap::new();
    for number in 0..7 {
        *placed
            .entry(place(&sim, &format!("m{number}")))
            .or_insert(0) += 1;
    }
    let pool = |name: &str| Some(name.to_owned());
    assert_eq!(
        placed,
        BTreeMap::from([(None, 2), (pool("a"), 2), (pool("b"), 3)])
    );
}

#[test]
fn equal_pools_take_turns() {
    let mut sim = region();
    sim.put(&pool("a", 10));
    sim.put(&pool("b", 10));
    let mut places = Vec::new();
    for number in 0..4 {
        let name = format!("m{number}");
        sim.put(&machine(&name, json!({})));
        sim.settle().expect("settles");
        places.push(place(&sim, &name).expect("placed"));
    }
    assert_eq!(places, ["a", "b", "a", "b"]);
}

/// One machine with this extra spec and one pool with these changes.
fn check(extra: Value, change: impl Fn(&mut MachinePool), expected: Option<&str>) {
    let mut sim = region();
    let mut pool = pool("a", 1);
    change(&mut pool);
    sim.put(&pool);
    sim.put(&machine("m", extra.clone()));
    sim.settle().expect("settles");
    assert_eq!(
        place(&sim, "m").as_deref(),
        expected,
        "{extra} {:?}",
        pool.spec
    );
}

fn taint(pool: &mut MachinePool) {
    pool.spec.taints = serde_json::from_value(json!([
        { "key": "gpu", "value": "yes", "effect": "NoSchedule" },
    ]))
    .expect("taints");
}

fn condition(pool: &mut MachinePool, status: &str) {
    if let Some(condition) = pool.status.as_mut().and_then(|s| s.conditions.first_mut()) {
        condition.status = status.to_owned();
    }
}

#[test]
fn only_eligible_pools_are_used() {
    check(json!({}), |_| {}, Some("a"));
    check(
        json!({ "machinePoolSelector": { "zone": "a" } }),
        |_| {},
        Some("a"),
    );
    check(
        json!({ "machinePoolSelector": { "zone": "b" } }),
        |_| {},
        None,
    );
    check(json!({}), taint, None);
    check(
        json!({ "tolerations": [{ "key": "gpu", "operator": "Exists" }] }),
        taint,
        Some("a"),
    );
    check(
        json!({ "tolerations": [{ "key": "gpu", "value": "no" }] }),
        taint,
        None,
    );
    check(json!({}), |pool| condition(pool, "False"), None);
    check(json!({}), |pool| condition(pool, "Unknown"), None);
    check(
        json!({ "machineClassRef": { "name": "large" } }),
        |_| {},
        None,
    );
    check(json!({}), |pool| pool.status = None, None);
}

#[test]
fn a_machine_without_room_is_told_so_and_scheduled_when_room_appears() {
    let mut sim = region();
    sim.put(&pool("a", 1));
    sim.put(&machine("first", json!({})));
    sim.settle().expect("settles");
    sim.put(&machine("second", json!({})));
    sim.settle().expect("settles");
    assert_eq!(place(&sim, "second"), None);
    assert!(sim.log.iter().any(|op| matches!(
        op,
        Op::Event {
            reason: "OutOfCapacity",
            ..
        }
    )));
    sim.delete::<Machine>(NS, "first");
    sim.settle().expect("settles");
    assert_eq!(place(&sim, "second").as_deref(), Some("a"));
}

#[test]
fn a_new_pool_takes_waiting_machines() {
    let mut sim = region();
    sim.put(&machine("m", json!({})));
    sim.settle().expect("settles");
    sim.put(&pool("a", 1));
    sim.settle().expect("settles");
    assert_eq!(place(&sim, "m").as_deref(), Some("a"));
}
