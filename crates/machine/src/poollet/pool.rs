//! The MachinePool object of this node, and its heartbeat.
//!
//! The pool says which classes it can run and how many machines; the lease says that the poollet lives. The scheduler trusts
//! only a pool whose condition Ready is True, and the core controllers turn it to Unknown when the heartbeat stops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::compute::{
    Machine, MachineClass, MachinePool, MachinePoolCondition, MachinePoolState, MachinePoolStatus,
};
use api::k8s_openapi::api::coordination::v1::Lease;
use api::meta::{LocalObjectReference, Quantity};
use api::names::{label, manager, namespace as namespaces};
use api::quantity;
use controller::object::{is_deleting, name};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World};
use proto::machine::MachineClassStatus;
use serde_json::json;

use super::runtime::{Runtime, Snapshot};
use super::status::to_time;

/// What does not change while the poollet runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the pool.
    pub pool: String,
    /// Handle of the pool.
    pub provider_id: String,
    /// Region label of the pool; empty for none.
    pub region: String,
    /// Zone label of the pool; empty for none.
    pub zone: String,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// How long a heartbeat is worth.
    pub lease_duration: Duration,
}

/// The controller of the pool.
pub struct Pool {
    /// The runtime.
    pub runtime: Arc<Runtime>,
    /// What does not change.
    pub settings: Settings,
}

/// Name of the runtime class that a MachineClass stands for: the one of the same name and resources, else the only one with
/// these resources.
pub fn runtime_class(class: &MachineClass, offered: &[MachineClassStatus]) -> Option<String> {
    let wanted = resources(class)?;
    let mut same = offered
        .iter()
        .filter_map(|status| status.machine_class.as_ref())
        .filter(|offer| {
            let have = offer
                .capabilities
                .iter()
                .flat_map(|capabilities| &capabilities.resources);
            have.map(|(name, amount)| (name.clone(), *amount))
                .collect::<BTreeMap<_, _>>()
                == wanted
        });
    let first = same
        .clone()
        .find(|offer| offer.name == name(class))
        .or_else(|| same.next())?;
    let unique = first.name == name(class) || same.next().is_none();
    unique.then(|| first.name.clone())
}

/// Resources in the runtime's units: cpu in thousandths, everything else whole.
fn resources(class: &MachineClass) -> Option<BTreeMap<String, i64>> {
    let resource = |(name, amount): (&String, &Quantity)| {
        let thousandths = quantity::parse(&amount.0)?;
        let amount = if name == "cpu" {
            thousandths
        } else {
            thousandths / 1000
        };
        Some((name.clone(), i64::try_from(amount).ok()?))
    };
    class.capabilities.iter().map(resource).collect()
}

/// Name of the resource that counts machines of a class.
fn resource_name(class: &str) -> String {
    format!("class/machine.{class}")
}

/// Plans the pool. `runtime` is what the runtime last reported.
pub fn plan(world: &World, settings: &Settings, runtime: &Snapshot) -> Plan {
    let mut plan = Plan::none();
    let target = Target::new::<MachinePool>("", &settings.pool);
    let pool = world.get::<MachinePool>("", &settings.pool);
    let fresh = pool
        .as_ref()
        .is_none_or(|pool| pool.spec.provider_id != settings.provider_id);
    if fresh
        || pool
            .as_ref()
            .is_some_and(|pool| !has_topology(pool, settings))
    {
        let mut labels = BTreeMap::new();
        for (key, value) in [
            (label::TOPOLOGY_REGION, &settings.region),
            (label::TOPOLOGY_ZONE, &settings.zone),
        ] {
            if !value.is_empty() {
                labels.insert(key, value);
            }
        }
        let body =
            json!({"metadata": {"labels": labels}, "spec": {"providerID": settings.provider_id}});
        plan.push(Op::apply(target.clone(), manager::POOLLET, body));
    }
    let old = pool
        .as_ref()
        .and_then(|pool| pool.status.clone())
        .unwrap_or_default();
    let wanted = status(world, settings, runtime, pool.as_deref(), &old);
    if pool
        .as_ref()
        .is_none_or(|pool| pool.status.as_ref() != Some(&wanted))
    {
        plan.push(Op::patch_status(target, json!(wanted)));
    }
    heartbeat(world, settings, &mut plan);
    plan
}

fn has_topology(pool: &MachinePool, settings: &Settings) -> bool {
    let has = |key: &str, value: &str| {
        value.is_empty() || controller::object::label(pool, key) == Some(value)
    };
    has(label::TOPOLOGY_REGION, &settings.region) && has(label::TOPOLOGY_ZONE, &settings.zone)
}

fn status(
    world: &World,
    settings: &Settings,
    runtime: &Snapshot,
    pool: Option<&MachinePool>,
    old: &MachinePoolStatus,
) -> MachinePoolStatus {
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    for machine in world.list::<Machine>() {
        let here = machine
            .spec
            .machine_pool_ref
            .as_ref()
            .is_some_and(|pool| pool.name == settings.pool);
        if here {
            *used
                .entry(machine.spec.machine_class_ref.name.clone())
                .or_default() += 1;
        }
    }
    let (mut available, mut capacity, mut allocatable) =
        (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for class in world.list::<MachineClass>() {
        let Some(offer) = runtime_class(&class, &runtime.classes) else {
            continue;
        };
        let quantity = runtime
            .classes
            .iter()
            .find(|status| {
                status
                    .machine_class
                    .as_ref()
                    .is_some_and(|class| class.name == offer)
            })
            .map_or(0, |status| status.quantity);
        let class = name(class.as_ref());
        let free = (quantity - used.get(class).copied().unwrap_or(0)).max(0);
        available.push(LocalObjectReference::new(class));
        capacity.insert(resource_name(class), Quantity(quantity.to_string()));
        allocatable.insert(resource_name(class), Quantity(free.to_string()));
    }
    MachinePoolStatus {
        state: Some(if runtime.healthy {
            MachinePoolState::Ready
        } else {
            MachinePoolState::Error
        }),
        conditions: vec![ready(world, runtime, pool, old)],
        available_machine_classes: available,
        capacity,
        allocatable,
        addresses: old.addresses.clone(),
        daemon_endpoints: old.daemon_endpoints.clone(),
    }
}

fn ready(
    world: &World,
    runtime: &Snapshot,
    pool: Option<&MachinePool>,
    old: &MachinePoolStatus,
) -> MachinePoolCondition {
    let (status, reason, message) = if runtime.healthy {
        ("True", "RuntimeHealthy", "")
    } else {
        (
            "False",
            "RuntimeUnhealthy",
            "the machine runtime does not answer",
        )
    };
    let now = to_time(world.now_ms());
    let before = old
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    let same = before.filter(|condition| condition.status == status && condition.reason == reason);
    let mut condition = MachinePoolCondition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: pool.and_then(|pool| pool.metadata.generation),
        last_update_time: before.and_then(|condition| condition.last_update_time.clone()),
        last_transition_time: same
            .and_then(|condition| condition.last_transition_time.clone())
            .or_else(|| Some(now.clone())),
    };
    // The lease is the sign of life: a status that says the same as before is not written again.
    if before != Some(&condition) {
        condition.last_update_time = Some(now);
    }
    condition
}

/// Renews the lease when it is due, and asks to be planned again when it will be.
fn heartbeat(world: &World, settings: &Settings, plan: &mut Plan) {
    let lease = world.get::<Lease>(namespaces::MACHINE_POOL_LEASE, &settings.pool);
    let renewed = lease
        .as_ref()
        .and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
    let period = u64::try_from(settings.heartbeat.as_millis()).unwrap_or(u64::MAX);
    let age = renewed.map_or(u64::MAX, |time| {
        world
            .now_ms()
            .saturating_sub(u64::try_from(time.0.as_millisecond()).unwrap_or(0))
    });
    if age < period {
        plan.requeue_after(Duration::from_millis(period - age));
        return;
    }
    let now = to_time(world.now_ms());
    let body = json!({"spec": {
        "holderIdentity": settings.pool,
        "leaseDurationSeconds": settings.lease_duration.as_secs(),
        "renewTime": format!("{:.6}", now.0),
    }});
    let target = Target::new::<Lease>(namespaces::MACHINE_POOL_LEASE, &settings.pool);
    plan.push(Op::apply(target, manager::POOLLET, body));
    plan.requeue_after(settings.heartbeat);
}

/// What is watched for a pool.
pub fn sources(pool: &str) -> Vec<Source> {
    let own = format!("metadata.name={pool}");
    let machines = format!("spec.machinePoolRef.name={pool}");
    let pool = pool.to_owned();
    let key = move || vec![Key::cluster(&pool)];
    let (of_class, of_machine, of_lease) = (key.clone(), key.clone(), key.clone());
    vec![
        Watch::<MachinePool>::new()
            .fields(own.clone())
            .keys(move |_, _| key())
            .build(),
        Watch::<MachineClass>::new()
            .keys(move |_, _| of_class())
            .build(),
        Watch::<Machine>::new()
            .fields(machines)
            .keys(move |machine, _| {
                if is_deleting(machine) {
                    Vec::new()
                } else {
                    of_machine()
                }
            })
            .build(),
        Watch::<Lease>::new()
            .namespace(namespaces::MACHINE_POOL_LEASE)
            .fields(own)
            .keys(move |_, _| of_lease())
            .build(),
    ]
}

impl Controller for Pool {
    fn name(&self) -> &'static str {
        "machinepool"
    }

    fn sources(&self) -> Vec<Source> {
        sources(&self.settings.pool)
    }

    fn plan(&self, world: &World, _: &Key) -> Plan {
        plan(world, &self.settings, &self.runtime.snapshot())
    }
}
