//! User Network → OpenKCM-net Network of the same uid. The server reserves the VNI; we report it back as provider id and
//! state Available. Peerings that both sides want are handed over with the VNI of the peer, and their state comes back.
//!
//! A peering exposes what its prefixes say. While one of them is not known yet (an ipam Prefix without a block), only the
//! known ones are exposed; while none is known, the peering is left out: an empty list would expose everything.

use api::{
    apinet,
    conditions::Verdict,
    ids::NetworkProviderId,
    ipam::Prefix,
    meta::UidReference,
    names::{finalizer, manager, origin},
    networking::{
        Network, NetworkPeering, NetworkPeeringState, NetworkPeeringStatus, NetworkState,
        NetworkStatus, PeeringPrefixStatus,
    },
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::{
    filter::Filter,
    made::{self, Mapping, Marks},
    prefixes,
};

const MAPPING: Mapping = Mapping {
    origin: origin::NETWORK,
    index: "apinetlet-network-origin",
    finalizer: finalizer::APINETLET_NETWORK,
};
/// Index of user Networks by the uid of the networks they peer with.
const BY_PEER: &str = "apinetlet-network-peer";
/// Index of user Networks by the keys of the ipam Prefixes that say what they expose.
const BY_PREFIX: &str = "apinetlet-network-prefix";

pub struct NetworkController {
    pub filter: Filter,
    /// Without peering, no peerings are handed over and none are reported.
    pub peering: bool,
}

impl Controller for NetworkController {
    fn name(&self) -> &'static str {
        "network"
    }

    fn sources(&self) -> Vec<Source> {
        let mut user = Watch::<Network>::new()
            .index(BY_PEER, |network| {
                let peers = network.spec.incoming_peerings.iter();
                peers.map(|peer| peer.uid.clone()).collect()
            })
            .index(BY_PREFIX, exposing_prefixes)
            .keys(|network, _| {
                let mut woken = vec![Key::of(network)];
                woken.extend(network.spec.peerings.iter().map(|p| peer_key(network, p)));
                woken
            });
        let mut prefixes = Watch::<Prefix>::new().keys(|prefix, world| {
            let key = Key::of(prefix).to_string();
            keys(&world.indexed::<Network>(BY_PREFIX, &key))
        });
        if let Some(namespace) = &self.filter.namespace {
            user = user.namespace(namespace);
            prefixes = prefixes.namespace(namespace);
        }
        let made = MAPPING
            .watch::<apinet::Network>(&self.filter)
            .keys(|made, world| {
                let mut woken = keys(&world.indexed::<Network>(BY_PEER, object::name(made)));
                woken.extend(object::origin_key(made, origin::NETWORK));
                woken
            });
        vec![user.build(), prefixes.build(), made.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        MAPPING.plan(world, &self.filter, key, |user, made| {
            self.realize(world, user, made)
        })
    }
}

impl NetworkController {
    fn realize(&self, world: &World, user: &Network, made: Option<&apinet::Network>) -> Plan {
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(user, finalizer::APINETLET_NETWORK));
        let shown = user.status.clone().unwrap_or_default();
        if made.is_none_or(|made| !is_usable(made)) {
            // Written first, so that a failing apply (no VNI left) leaves a state behind.
            let verdict = Verdict::not_ready("Pending", "waits for a VNI");
            let mut pending = shown.clone();
            pending.state = Some(shown.state.unwrap_or(NetworkState::Pending));
            plan.extend(status_patch(user, &shown, pending, verdict, world.now_ms()));
        }
        let marks = Marks::of(user, origin::NETWORK);
        let peerings = self.agreed_peerings(world, user);
        if !made.is_some_and(|made| marks.are_on(made) && made.spec.peerings == peerings) {
            let target =
                Target::new::<apinet::Network>(&self.filter.apinet_namespace, object::uid(user));
            let body = json!({
                "metadata": marks.metadata(),
                "spec": { "peerings": peerings },
            });
            plan.push(Op::apply(target, manager::APINETLET, body));
        }
        let Some(made) = made.filter(|made| is_usable(made)) else {
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
        plan.extend(self.report(user, made, &shown, world.now_ms()));
        plan
    }

    /// The peerings that both networks want and whose other side has a VNI.
    fn agreed_peerings(&self, world: &World, user: &Network) -> Vec<apinet::NetworkPeering> {
        if !self.peering {
            return Vec::new();
        }
        let wanted = user.spec.peerings.iter();
        wanted
            .filter_map(|peering| {
                let key = peer_key(user, peering);
                let claims = user.spec.incoming_peerings.iter();
                let claim = claims.into_iter().find(|c| claim_key(user, c) == key)?;
                let peer = self.peer(world, user, claim, &key)?;
                Some(apinet::NetworkPeering {
                    name: peering.name.clone(),
                    id: peer.spec.id.clone(),
                    prefixes: exposed(world, user, peering)?,
                })
            })
            .collect()
    }

    /// The other side, unless it has withdrawn. The claim alone is not enough: it is a field of the user's own object, and
    /// nobody joins a network that does not name him.
    fn peer(
        &self,
        world: &World,
        user: &Network,
        claim: &UidReference,
        key: &Key,
    ) -> Option<std::sync::Arc<apinet::Network>> {
        let foreign = self.filter.namespace.is_some() && key.namespace != object::namespace(user);
        // A network of a namespace that we do not watch cannot be asked.
        if !foreign {
            let peer = world.by_key::<Network>(key)?;
            let own = Key::of(user);
            let returned = peer
                .spec
                .peerings
                .iter()
                .any(|back| peer_key(&peer, back) == own);
            if object::uid(&*peer) != claim.uid || object::is_deleting(&*peer) || !returned {
                return None;
            }
        }
        world
            .get::<apinet::Network>(&self.filter.apinet_namespace, &claim.uid)
            .filter(|peer| is_usable(peer))
    }

    fn report(
        &self,
        user: &Network,
        made: &apinet::Network,
        shown: &NetworkStatus,
        now_ms: u64,
    ) -> Option<Op> {
        let mut wanted = shown.clone();
        wanted.state = Some(NetworkState::Available);
        wanted.peerings = if self.peering {
            let peerings = user.spec.peerings.iter();
            peerings.map(|peering| observed(peering, made)).collect()
        } else {
            Vec::new()
        };
        let note = format!("the network has VNI {}", made.spec.id);
        let verdict = Verdict::ready("Available", note);
        status_patch(user, shown, wanted, verdict, now_ms)
    }
}

fn status_patch(
    user: &Network,
    shown: &NetworkStatus,
    wanted: NetworkStatus,
    verdict: Verdict,
    now_ms: u64,
) -> Option<Op> {
    let is_same = *shown == wanted;
    let NetworkStatus {
        state,
        peerings,
        conditions: before,
    } = wanted;
    let status = json!({ "state": state, "peerings": peerings });
    made::report(user, &before, verdict, is_same, now_ms, status)
}

fn is_usable(made: &apinet::Network) -> bool {
    !made.spec.id.is_empty() && !object::is_deleting(made)
}

/// What the peer may see. `None` while nothing of it is known.
fn exposed(
    world: &World,
    user: &Network,
    peering: &NetworkPeering,
) -> Option<Vec<apinet::PeeringPrefix>> {
    let entries = peering.prefixes.iter();
    let known: Vec<apinet::PeeringPrefix> = entries
        .filter_map(|entry| {
            let referenced = || {
                let reference = entry.prefix_ref.as_ref()?;
                let prefix = world.get::<Prefix>(object::namespace(user), &reference.name)?;
                prefixes::allocated(&prefix)
            };
            let prefix = entry.prefix.or_else(referenced)?;
            Some(apinet::PeeringPrefix {
                name: entry.name.clone(),
                prefix: Some(prefix),
            })
        })
        .collect();
    let nothing_known = known.is_empty() && !peering.prefixes.is_empty();
    (!nothing_known).then_some(known)
}

/// State of a wanted peering over all partitions: the worst that any of them reports, Pending before the first report.
fn observed(peering: &NetworkPeering, made: &apinet::Network) -> NetworkPeeringStatus {
    let agreed = made.spec.peerings.iter().find(|p| p.name == peering.name);
    let state = agreed.map_or(NetworkPeeringState::Pending, |agreed| {
        let partitions = made.status.iter().flat_map(|s| s.peerings.values());
        let reports = partitions
            .flatten()
            .filter(|report| report.id.to_string() == agreed.id);
        let states = reports.map(|report| report.state.unwrap_or_default());
        match states.max_by_key(|state| badness(*state)) {
            Some(apinet::NetworkPeeringState::Ready) => NetworkPeeringState::Ready,
            Some(apinet::NetworkPeeringState::Error) => NetworkPeeringState::Error,
            Some(apinet::NetworkPeeringState::Pending) | None => NetworkPeeringState::Pending,
        }
    });
    let prefixes = agreed
        .filter(|_| state == NetworkPeeringState::Ready)
        .map(|agreed| agreed.prefixes.as_slice())
        .unwrap_or_default();
    NetworkPeeringStatus {
        name: peering.name.clone(),
        state: Some(state),
        prefixes: prefixes
            .iter()
            .map(
                |apinet::PeeringPrefix { name, prefix }| PeeringPrefixStatus {
                    name: name.clone(),
                    prefix: *prefix,
                },
            )
            .collect(),
    }
}

fn badness(state: apinet::NetworkPeeringState) -> u8 {
    match state {
        apinet::NetworkPeeringState::Ready => 0,
        apinet::NetworkPeeringState::Pending => 1,
        apinet::NetworkPeeringState::Error => 2,
    }
}

fn peer_key(network: &Network, peering: &NetworkPeering) -> Key {
    let reference = &peering.network_ref;
    named(network, &reference.namespace, &reference.name)
}

fn claim_key(network: &Network, claim: &UidReference) -> Key {
    named(network, &claim.namespace, &claim.name)
}

/// An empty namespace means the network's own.
fn named(network: &Network, namespace: &str, name: &str) -> Key {
    let namespace = match namespace {
        "" => object::namespace(network),
        given => given,
    };
    Key::new(namespace, name)
}

fn exposing_prefixes(network: &Network) -> Vec<String> {
    let entries = network.spec.peerings.iter().flat_map(|p| &p.prefixes);
    let references = entries.filter_map(|entry| entry.prefix_ref.as_ref());
    let namespace = object::namespace(network);
    references
        .map(|reference| Key::new(namespace, &reference.name).to_string())
        .collect()
}

fn keys(networks: &[std::sync::Arc<Network>]) -> Vec<Key> {
    networks.iter().map(|network| Key::of(&**network)).collect()
}
