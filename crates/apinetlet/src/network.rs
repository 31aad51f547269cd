//! User Network → OpenKCM-net Network of the same uid. The server reserves the VNI; we report it back as provider id and
//! state Available.

use api::{
    apinet,
    ids::NetworkProviderId,
    names::{finalizer, manager, origin},
    networking::{Network, NetworkState},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::filter::Filter;

/// Index of OpenKCM-net Networks by the key of the user Network they were made for.
const BY_ORIGIN: &str = "apinetlet-network-origin";

pub struct NetworkController {
    pub filter: Filter,
}

impl Controller for NetworkController {
    fn name(&self) -> &'static str {
        "network"
    }

    fn sources(&self) -> Vec<Source> {
        let user = Watch::<Network>::new().own_key();
        let user = match &self.filter.namespace {
            Some(namespace) => user.namespace(namespace),
            None => user,
        };
        let made = Watch::<apinet::Network>::new()
            .namespace(&self.filter.apinet_namespace)
            .index(BY_ORIGIN, |made| {
                object::origin_key(made, origin::NETWORK)
                    .iter()
                    .map(Key::to_string)
                    .collect()
            })
            .keys(|made, _| {
                object::origin_key(made, origin::NETWORK)
                    .into_iter()
                    .collect()
            });
        vec![user.build(), made.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(user) = world.by_key::<Network>(key) else {
            return self.clean_up(world, key);
        };
        if !self.filter.admits(&*user) {
            return Plan::none();
        }
        let namespace = &self.filter.apinet_namespace;
        let made = world.get::<apinet::Network>(namespace, object::uid(&*user));
        if object::is_deleting(&*user) {
            return delete(&user, made.as_deref());
        }
        self.realize(&user, made.as_deref())
    }
}

impl NetworkController {
    fn realize(&self, user: &Network, made: Option<&apinet::Network>) -> Plan {
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(user, finalizer::APINETLET_NETWORK));
        let state = user.status.as_ref().and_then(|status| status.state);
        if state.is_none() && made.is_none() {
            // Written first, so that a failing apply (no VNI left) leaves a state behind.
            plan.push(set_state(user, NetworkState::Pending));
        }
        let source = object::as_origin(user);
        let (labels, annotations) = (
            source.labels(origin::NETWORK),
            source.annotations(origin::NETWORK),
        );
        if !made.is_some_and(|made| object::carries(made, &labels, &annotations)) {
            let target =
                Target::new::<apinet::Network>(&self.filter.apinet_namespace, object::uid(user));
            let body = json!({
                "metadata": { "labels": labels, "annotations": annotations },
                "spec": {},
            });
            plan.push(Op::apply(target, manager::APINETLET, body));
        }
        let Some(made) =
            made.filter(|made| !made.spec.id.is_empty() && !object::is_deleting(*made))
        else {
            return plan;
        };
        if user.spec.provider_id.is_empty() {
            let id = NetworkProviderId {
                namespace: self.filter.apinet_namespace.clone(),
                name: object::name(made).to_owned(),
                id: made.spec.id.clone(),
                uid: object::uid(made).to_owned(),
            };
            let body = json!({ "spec": { "providerID": id.to_string() } });
            plan.push(Op::patch(Target::of(user), body));
        }
        if state != Some(NetworkState::Available) {
            plan.push(set_state(user, NetworkState::Available));
        }
        plan
    }

    /// The user Network is gone without having waited for us (finalizer removed by hand): nothing it made may stay.
    fn clean_up(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        for made in world.indexed::<apinet::Network>(BY_ORIGIN, &key.to_string()) {
            let Some(source) = api::ids::Origin::of(&made.metadata, origin::NETWORK) else {
                continue;
            };
            if !object::is_deleting(&*made) {
                let target = Target::new::<Network>(&source.namespace, &source.name);
                plan.push(Op::RequireGone {
                    target,
                    uid: source.uid,
                });
                plan.push(Op::delete(&*made));
            }
        }
        plan
    }
}

fn set_state(user: &Network, state: NetworkState) -> Op {
    Op::patch_status(Target::of(user), json!({ "state": state }))
}

/// The OpenKCM-net Network goes first; its own finalizers keep it until all partitions have let go.
fn delete(user: &Network, made: Option<&apinet::Network>) -> Plan {
    let mut plan = Plan::none();
    match made {
        Some(made) if !object::is_deleting(made) => {
            plan.push(Op::delete(made));
        }
        Some(_) => {}
        None => {
            plan.extend(Op::remove_finalizer(user, finalizer::APINETLET_NETWORK));
        }
    }
    plan
}
