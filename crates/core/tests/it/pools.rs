//! Pools whose agent fell silent.

use std::sync::Arc;

use api::{compute::MachinePool, names::namespace::MACHINE_POOL_LEASE};
use controller::{Controller, Key, sim::Sim};
use core_controllers::PoolLifecycleController;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;
use std::time::Duration;

use crate::object;

/// 2026-01-01T00:00:00Z, when the pool of these tests last renewed its lease.
const RENEWED_MS: u64 = 1_767_225_600_000;
const GRACE: Duration = Duration::from_secs(50);

fn controller() -> PoolLifecycleController {
    PoolLifecycleController { grace: GRACE }
}

fn region(now_ms: u64) -> Sim {
    let mut sim = Sim::new(vec![Arc::new(controller())]);
    sim.now_ms = now_ms;
    let pool: MachinePool = object(json!({
        "metadata": { "name": "a" },
        "status": { "conditions": [
            { "type": "Ready", "status": "True", "reason": "Running" },
            { "type": "Other", "status": "True" },
        ] },
    }));
    sim.put(&pool);
    let lease: Lease = object(json!({
        "metadata": { "name": "a", "namespace": MACHINE_POOL_LEASE },
        "spec": { "renewTime": "2026-01-01T00:00:00.000000Z" },
    }));
    sim.put(&lease);
    sim
}

fn conditions(sim: &Sim) -> Vec<(String, String)> {
    let status = sim
        .get::<MachinePool>("", "a")
        .expect("pool")
        .status
        .expect("status");
    status
        .conditions
        .into_iter()
        .map(|c| (c.type_, c.status))
        .collect()
}

#[test]
fn a_pool_that_renews_in_time_is_looked_at_again_when_it_would_be_late() {
    let mut sim = region(RENEWED_MS + 20_000);
    assert_eq!(sim.settle(), Ok(0));
    let plan = controller().plan(&sim.world(), &Key::cluster("a"));
    assert_eq!(plan.requeue, Some(Duration::from_millis(30_001)));
}

#[test]
fn a_silent_pool_becomes_unknown_once_and_keeps_its_other_conditions() {
    let mut sim = region(RENEWED_MS + 50_000);
    sim.settle().expect("settles");
    let expected = [("Ready", "Unknown"), ("Other", "True")];
    assert_eq!(
        conditions(&sim),
        expected.map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    sim.wake_all();
    assert_eq!(sim.settle(), Ok(0));
}
