//! Networks that list each other peer: each gets the other into `spec.incomingPeerings`, with its uid.
//!
//! A peer counts while it exists, is available, is not being deleted and lists this network. A peer that is being deleted is let
//! go of at once; otherwise each of two deleted networks would wait for the other (see `network_protection`).

use api::{
    meta::UidReference,
    networking::{Network, NetworkState},
};
use controller::{Controller, Key, Op, Plan, Source, World, object};
use serde_json::json;

use crate::index::{self, NETWORK_CLAIM, NETWORK_PEER};

pub struct NetworkPeeringController;

impl Controller for NetworkPeeringController {
    fn name(&self) -> &'static str {
        "networkpeering"
    }

    fn sources(&self) -> Vec<Source> {
        let networks = index::networks().keys(|network, world| {
            let own = Key::of(network);
            let key = own.to_string();
            let listing = world.indexed::<Network>(NETWORK_PEER, &key);
            let claiming = world.indexed::<Network>(NETWORK_CLAIM, &key);
            let others = listing.iter().chain(&claiming);
            let mut keys: Vec<Key> = others.map(|other| Key::of(&**other)).collect();
            keys.extend(index::peers(network));
            keys.push(own);
            keys
        });
        vec![networks.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(network) = world.by_key::<Network>(key) else {
            return Plan::none();
        };
        if object::is_deleting(&*network) || !is_available(&network) {
            return Plan::none();
        }
        let accepted = index::peers(&network).filter_map(|peer| accepted(world, key, &peer));
        let accepted: Vec<UidReference> = accepted.collect();
        if accepted == network.spec.incoming_peerings {
            return Plan::none();
        }
        let body = json!({ "spec": { "incomingPeerings": accepted } });
        vec![Op::locked(&*network, body)].into()
    }
}

fn is_available(network: &Network) -> bool {
    let status = network.status.as_ref();
    status.is_some_and(|status| status.state == Some(NetworkState::Available))
}

fn accepted(world: &World, own: &Key, peer: &Key) -> Option<UidReference> {
    let network = world.by_key::<Network>(peer)?;
    let mutual = index::peers(&network).any(|key| key == *own);
    let lives = is_available(&network) && !object::is_deleting(&*network);
    (mutual && lives && peer != own).then(|| UidReference {
        namespace: peer.namespace.clone(),
        name: peer.name.clone(),
        uid: object::uid(&*network).to_owned(),
    })
}
