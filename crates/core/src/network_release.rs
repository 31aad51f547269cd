//! Drops accepted peerings whose network is gone. One of the same name but another uid is another network.

use api::networking::Network;
use controller::{Controller, Key, Op, Plan, Source, Target, World, object};
use serde_json::json;

use crate::index::{self, NETWORK_CLAIM};

pub struct NetworkReleaseController;

impl Controller for NetworkReleaseController {
    fn name(&self) -> &'static str {
        "networkrelease"
    }

    fn sources(&self) -> Vec<Source> {
        let networks = index::networks().keys(|network, world| {
            let own = Key::of(network);
            let claiming = world.indexed::<Network>(NETWORK_CLAIM, &own.to_string());
            let mut keys: Vec<Key> = claiming.iter().map(|other| Key::of(&**other)).collect();
            keys.push(own);
            keys
        });
        vec![networks.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(network) = world.by_key::<Network>(key) else {
            return Plan::none();
        };
        let mut plan = Plan::none();
        if object::is_deleting(&*network) {
            return plan;
        }
        let mut kept = Vec::new();
        for claim in &network.spec.incoming_peerings {
            let peer = index::within(&key.namespace, &claim.namespace, &claim.name);
            let live = world.by_key::<Network>(&peer);
            if live.is_some_and(|live| object::uid(&*live) == claim.uid) {
                kept.push(claim);
            } else {
                plan.push(Op::RequireGone {
                    target: Target::new::<Network>(&peer.namespace, &peer.name),
                    uid: claim.uid.clone(),
                });
            }
        }
        if !plan.ops.is_empty() {
            let body = json!({ "spec": { "incomingPeerings": kept } });
            plan.push(Op::locked(&*network, body));
        }
        plan
    }
}
