//! Marks a pool whose agent has fallen silent: Ready becomes Unknown, and the scheduler leaves it alone.
//!
//! Silence is judged by the pool's heartbeat lease against the time of planning, so replicas and restarts agree. Clocks of
//! a region are assumed to be within a few seconds of each other; the grace period is 50 s.

use api::{compute::MachinePool, names::namespace};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World};
use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use serde_json::{Value, json};
use std::time::Duration;

/// A pool may be silent for this long.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(50);

pub struct PoolLifecycleController {
    pub grace: Duration,
}

impl Controller for PoolLifecycleController {
    fn name(&self) -> &'static str {
        "machinepoollifecycle"
    }

    fn sources(&self) -> Vec<Source> {
        // Heartbeats wake nobody: a key comes back by itself when its lease would run out.
        let leases = Watch::<Lease>::new().namespace(namespace::MACHINE_POOL_LEASE);
        vec![
            Watch::<MachinePool>::new().own_key().build(),
            leases.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(pool) = world.by_key::<MachinePool>(key) else {
            return plan;
        };
        let ready = pool.status.as_ref().is_some_and(|status| {
            let mut conditions = status.conditions.iter();
            conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
        let lease = world.get::<Lease>(namespace::MACHINE_POOL_LEASE, &key.name);
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
        // Without a lease there is no heartbeat to miss: the pool is not run by an agent that promises one.
        let (true, Some(renewed)) = (ready, renewed) else {
            return plan;
        };
        let now = i64::try_from(world.now_ms()).unwrap_or(i64::MAX);
        let silent = now.saturating_sub(renewed.0.as_millisecond());
        let grace = i64::try_from(self.grace.as_millis()).unwrap_or(i64::MAX);
        if silent < grace {
            let left = u64::try_from(grace - silent).unwrap_or(0);
            plan.requeue_after(Duration::from_millis(left.saturating_add(1)));
        } else {
            plan.push(mark_unknown(&pool, now));
            let note = format!("no heartbeat for {} s", silent / 1000);
            plan.push(Op::event(
                &*pool,
                true,
                "MachinePoolSilent",
                "Heartbeat",
                note,
            ));
        }
        plan
    }
}

fn mark_unknown(pool: &MachinePool, now_ms: i64) -> Op {
    let now = Timestamp::from_second(now_ms / 1000)
        .ok()
        .map(|now| now.to_string());
    let conditions: Vec<Value> = pool
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .map(|condition| match condition.type_.as_str() {
            "Ready" => json!({
                "type": "Ready",
                "status": "Unknown",
                "reason": "MachinePoolStatusUnknown",
                "message": "the agent of the machine pool stopped its heartbeat",
                "lastUpdateTime": now,
                "lastTransitionTime": now,
            }),
            _ => json!(condition),
        })
        .collect();
    let body = json!({
        "metadata": { "resourceVersion": pool.metadata.resource_version },
        "status": { "conditions": conditions },
    });
    Op::Patch {
        target: Target::of(pool),
        body,
        status: true,
    }
}
