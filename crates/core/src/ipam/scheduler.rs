//! PrefixAllocation with a selector → the Prefix that will answer it.
//!
//! Of all selected Prefixes with room one is drawn, each as likely as the others; the lot is derived from the two uids, so that
//! every planner draws the same.

use api::{
    conditions::{self, Verdict},
    ids::uuid5_sha256,
    ipam::{Prefix, PrefixAllocation, PrefixAllocationPhase},
    meta::Condition,
};
use controller::{Controller, Key, Op, Plan, Source, World, object};
use serde_json::json;

use super::{fits, gives, phase, request, serve::locked_status};
use crate::index::{self, ALLOCATION_WAITING_FAMILY};

pub struct PrefixAllocationSchedulerController;

impl Controller for PrefixAllocationSchedulerController {
    fn name(&self) -> &'static str {
        "prefixallocationscheduler"
    }

    fn sources(&self) -> Vec<Source> {
        let prefixes = index::prefixes().keys(|prefix, world| {
            if !gives(prefix) {
                return Vec::new();
            }
            let family = index::family_key(object::namespace(prefix), prefix.spec.ip_family);
            let waiting = world.indexed::<PrefixAllocation>(ALLOCATION_WAITING_FAMILY, &family);
            waiting
                .iter()
                .filter(|allocation| selects(allocation, prefix))
                .map(|allocation| Key::of(&**allocation))
                .collect()
        });
        vec![index::allocations().own_key().build(), prefixes.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(allocation) = world.by_key::<PrefixAllocation>(key) else {
            return Plan::none();
        };
        let open = phase(&allocation) == PrefixAllocationPhase::Pending
            && !object::is_deleting(&*allocation)
            && allocation.spec.prefix_ref.is_none()
            && allocation.spec.prefix_selector.is_some();
        let Some(request) = request(&allocation).filter(|_| open) else {
            return Plan::none();
        };
        let mut suitable = world.list_in::<Prefix>(&key.namespace);
        suitable.retain(|prefix| {
            selects(&allocation, prefix) && fits(prefix, allocation.spec.ip_family, request)
        });
        let uid = object::uid(&*allocation);
        let drawn = suitable
            .iter()
            .max_by_key(|prefix| uuid5_sha256(&format!("{uid}/{}", object::uid(&***prefix))));
        match drawn {
            Some(prefix) => {
                let reference = json!({ "name": object::name(&**prefix) });
                vec![Op::locked(
                    &*allocation,
                    json!({ "spec": { "prefixRef": reference } }),
                )]
                .into()
            }
            None => none(&allocation, world.now_ms()),
        }
    }
}

fn selects(allocation: &PrefixAllocation, prefix: &Prefix) -> bool {
    object::selects(
        allocation.spec.prefix_selector.as_ref(),
        prefix.metadata.labels.as_ref(),
    )
}

/// Says once that there is nobody to ask. A Prefix that gets room wakes the allocation.
fn none(allocation: &PrefixAllocation, now_ms: u64) -> Plan {
    let shown: &[Condition] = match &allocation.status {
        Some(status) => &status.conditions,
        None => &[],
    };
    let message = "no Prefix of the namespace is selected, allocated and has room";
    let verdict = Verdict::not_ready("NoSuitablePrefix", message);
    let generation = allocation.metadata.generation;
    let Some(conditions) = conditions::renewed(shown, &[verdict], generation, now_ms) else {
        return Plan::none();
    };
    vec![
        Op::event(allocation, false, "NoSuitablePrefix", "Scheduling", message),
        locked_status(allocation, json!({ "conditions": conditions })),
    ]
    .into()
}
