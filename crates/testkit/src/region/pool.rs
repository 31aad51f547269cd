//! The plans of a hypervisor's machinepoollet and machine provider, over its rack.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use controller::{Controller, Key, Plan, Source, World};
use machine::poollet::{machine as machines, pool};
use machine::provider::plan::{self as provider, Inputs};
use machine::provider::shell;

use crate::region::rack::{Rack, open};

/// Time between heartbeats of a pool.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// What a heartbeat is worth.
const LEASE: Duration = Duration::from_secs(4);

type Shared = Arc<Mutex<Rack>>;

struct Machines(Shared);

impl Controller for Machines {
    fn name(&self) -> &'static str {
        "machines"
    }

    fn sources(&self) -> Vec<Source> {
        machines::sources(&open(&self.0).pool)
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        machines::plan_when_known(world, key, &open(&self.0).snapshot)
    }
}

struct Pool(Shared);

impl Controller for Pool {
    fn name(&self) -> &'static str {
        "machinepool"
    }

    fn sources(&self) -> Vec<Source> {
        pool::sources(&open(&self.0).pool)
    }

    fn plan(&self, world: &World, _: &Key) -> Plan {
        let rack = open(&self.0);
        let settings = pool::Settings {
            pool: rack.pool.clone(),
            provider_id: format!("sim://{}", rack.pool),
            region: String::new(),
            zone: rack.pool.clone(),
            heartbeat: HEARTBEAT,
            lease_duration: LEASE,
        };
        pool::plan(world, &settings, &rack.snapshot)
    }
}

struct Namespaces(Shared);

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        "namespaces"
    }

    fn sources(&self) -> Vec<Source> {
        shell::sources(&open(&self.0).node)
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let rack = open(&self.0);
        let record = rack.records.get(&key.name);
        provider::plan(&Inputs {
            record,
            live: &shell::live(world, &key.name),
            devices: &rack.devices_of(&key.name),
            netns: record.is_some_and(|record| rack.namespaces.contains(&record.netns)),
            node: &rack.node,
        })
    }
}

/// The controllers of the machinepoollet; its machines come first, its pool second.
pub fn poollet(rack: &Shared) -> Vec<Arc<dyn Controller>> {
    vec![
        Arc::new(Machines(rack.clone())),
        Arc::new(Pool(rack.clone())),
    ]
}

/// The controller of the provider.
pub fn provider(rack: &Shared) -> Vec<Arc<dyn Controller>> {
    vec![Arc::new(Namespaces(rack.clone()))]
}
