//! NetworkID: deletes those whose Network is gone or never came.

use api::apinet::{Network, NetworkID};
use controller::{Controller, Key, Op, Plan, Source, Watch, World, object};

use crate::collect::{claimer, grace_left};

/// NetworkIDs by the uid of their claimer.
const BY_CLAIMER: &str = "apinet-network-id-claimer";

pub struct NetworkIdController;

impl Controller for NetworkIdController {
    fn name(&self) -> &'static str {
        "networkidgc"
    }

    fn sources(&self) -> Vec<Source> {
        let ids = Watch::<NetworkID>::new()
            .own_key()
            .index(BY_CLAIMER, |id| vec![id.spec.claim_ref.uid.clone()]);
        let holders = Watch::<Network>::new().keys(|network, world| {
            let held = world.indexed::<NetworkID>(BY_CLAIMER, object::uid(network));
            held.iter().map(|id| Key::of(&**id)).collect()
        });
        vec![ids.build(), holders.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(id) = world.by_key::<NetworkID>(key) else {
            return plan;
        };
        let claim = &id.spec.claim_ref;
        let claimed = claim.resource == "networks"
            && world
                .get::<Network>(&claim.namespace, &claim.name)
                .is_some_and(|network| object::uid(&*network) == claim.uid);
        if claimed || object::is_deleting(&*id) {
            return plan;
        }
        if let Some(left) = grace_left(&*id, world.now_ms()) {
            plan.requeue_after(left);
            return plan;
        }
        let target = claimer(&claim.group, &claim.resource, &claim.namespace, &claim.name);
        plan.extend(target.map(|target| Op::RequireGone {
            target,
            uid: claim.uid.clone(),
        }));
        plan.push(Op::delete(&*id));
        plan
    }
}
