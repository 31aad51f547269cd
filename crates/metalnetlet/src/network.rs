//! OpenKCM-net Network → metalnet Network of the same uid with the VNI and the peers; the state of the peerings comes back.
//!
//! Deletion waits for the interfaces and Instances of this partition: a network must not go under a living user.

use api::{apinet, ids::Origin, metalnet, names::manager, names::origin};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::{Value, json};

use crate::partition::Partition;
use crate::{departed, instance};

/// Index of metalnet Networks by the key of their OpenKCM-net Network.
const BY_ORIGIN: &str = "metalnetlet-network-origin";
/// Index of OpenKCM-net interfaces (of any partition) by the key of their Network.
pub(crate) const BY_NETWORK: &str = "metalnetlet-nic-network";

/// Index of OpenKCM-net Networks by their VNI.
const BY_ID: &str = "metalnetlet-network-id";

pub struct NetworkController {
    pub partition: Partition,
}

impl Controller for NetworkController {
    fn name(&self) -> &'static str {
        "network"
    }

    fn sources(&self) -> Vec<Source> {
        // A peer may need this one mirrored, and this one its peers.
        let networks = Watch::<apinet::Network>::new()
            .index(BY_ID, |network| vec![network.spec.id.clone()])
            .keys(|network, world| {
                let mut keys = peers(world, network);
                keys.push(Key::of(network));
                keys
            });
        let partition = self.partition.clone();
        let users = Watch::<apinet::NetworkInterface>::new()
            .index(BY_NETWORK, |nic| vec![network_of(nic).to_string()])
            .keys(move |nic, world| match partition.node_of(nic) {
                Some(_) => with_peers(world, network_of(nic)),
                None => Vec::new(),
            });
        let partition = self.partition.clone();
        let instances = Watch::<apinet::Instance>::new()
            .index(instance::BY_NETWORK, |user| {
                vec![instance::network_of(user).to_string()]
            })
            .keys(
                move |user, world| match instance::node_of(&partition, user) {
                    Some(_) => with_peers(world, instance::network_of(user)),
                    None => Vec::new(),
                },
            );
        let made = Watch::<metalnet::Network>::new()
            .namespace(&self.partition.metalnet_namespace)
            .index(BY_ORIGIN, |made| {
                object::origin_key(made, origin::METALNET_NETWORK)
                    .iter()
                    .map(Key::to_string)
                    .collect()
            })
            .keys(|made, _| {
                object::origin_key(made, origin::METALNET_NETWORK)
                    .into_iter()
                    .collect()
            });
        // A hypervisor that left may have been the last that held a Network.
        let nodes = Watch::<apinet::Node>::new().removed_keys(|_, world| {
            let networks = world.list::<metalnet::Network>();
            let going = networks.iter().filter(|made| object::is_deleting(&***made));
            going
                .filter_map(|made| object::origin_key(&**made, origin::METALNET_NETWORK))
                .collect()
        });
        vec![
            networks.build(),
            users.build(),
            instances.build(),
            made.build(),
            nodes.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(network) = world.by_key::<apinet::Network>(key) else {
            return clean_up(world, key);
        };
        let namespace = &self.partition.metalnet_namespace;
        let made = world.get::<metalnet::Network>(namespace, object::uid(&*network));
        let used = self.is_used(world, key);
        // The routes of a network reach its peers also where only they are used.
        let peered = || {
            let peers = peers(world, &network);
            peers.iter().any(|peer| self.is_used(world, peer))
        };
        let mirrored = used || !self.partition.only_used_networks || peered();
        if mirrored && !object::is_deleting(&*network) {
            return self.realize(&network, made.as_deref());
        }
        if used {
            return Plan::none();
        }
        let mut plan = Plan::let_go(&*network, &self.partition.finalizer(), made.as_deref());
        if let Some(made) = &made {
            plan.extend(departed::lift_network(world, &self.partition, made));
        }
        plan
    }
}

impl NetworkController {
    fn is_used(&self, world: &World, key: &Key) -> bool {
        let nics = world.indexed::<apinet::NetworkInterface>(BY_NETWORK, &key.to_string());
        let instances = world.indexed::<apinet::Instance>(instance::BY_NETWORK, &key.to_string());
        let nics = nics.iter().map(|nic| self.partition.node_of(nic).is_some());
        let instances = instances.iter();
        let instances = instances.map(|user| instance::node_of(&self.partition, user).is_some());
        nics.chain(instances).any(|local| local)
    }

    fn realize(&self, network: &apinet::Network, made: Option<&metalnet::Network>) -> Plan {
        // The server validates the id; one that is no number (foreign server) cannot be realized here.
        let Ok(id) = network.spec.id.parse::<i32>() else {
            return Plan::none();
        };
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(network, &self.partition.finalizer()));
        let source = object::as_origin(network);
        let labels = source.labels(origin::METALNET_NETWORK);
        let annotations = source.annotations(origin::METALNET_NETWORK);
        let spec = self.wanted(network, id);
        let fits = made
            .is_some_and(|made| made.spec == spec && object::carries(made, &labels, &annotations));
        if !fits {
            let target = Target::new::<metalnet::Network>(
                &self.partition.metalnet_namespace,
                object::uid(network),
            );
            let body = json!({
                "metadata": { "labels": labels, "annotations": annotations },
                "spec": spec,
            });
            plan.push(Op::apply(target, manager::METALNETLET, body));
        }
        plan.extend(made.and_then(|made| self.report(network, made)));
        plan
    }

    fn wanted(&self, network: &apinet::Network, id: i32) -> metalnet::NetworkSpec {
        let mut spec = metalnet::NetworkSpec {
            id,
            ..metalnet::NetworkSpec::default()
        };
        let peerings = network.spec.peerings.iter();
        for peering in peerings.filter(|_| self.partition.peering) {
            // The server validates the id; one that is no number (foreign server) cannot be realized here.
            let Ok(peer) = peering.id.parse::<i32>() else {
                continue;
            };
            if spec.peered_ids.contains(&peer) {
                continue;
            }
            spec.peered_ids.push(peer);
            // A filter whose prefixes are not known yet lets nothing through; no filter at all lets everything through.
            if !peering.prefixes.is_empty() {
                let known = peering.prefixes.iter().filter_map(|entry| entry.prefix);
                spec.peered_prefixes.push(metalnet::PeeredPrefix {
                    id: peer,
                    prefixes: known.collect(),
                });
            }
        }
        spec
    }

    /// The state of the peerings in this partition, if it differs from what is shown.
    fn report(&self, network: &apinet::Network, made: &metalnet::Network) -> Option<Op> {
        if !self.partition.peering {
            return None;
        }
        let name = self.partition.name();
        let status = made.status.iter().flat_map(|status| &status.peerings);
        let mut wanted: Vec<apinet::NetworkPeeringStatus> = status
            .map(
                |metalnet::NetworkPeeringStatus { id, state }| apinet::NetworkPeeringStatus {
                    id: *id,
                    state: state.map(|state| match state {
                        metalnet::State::Pending => apinet::NetworkPeeringState::Pending,
                        metalnet::State::Ready => apinet::NetworkPeeringState::Ready,
                        metalnet::State::Error => apinet::NetworkPeeringState::Error,
                    }),
                },
            )
            .collect();
        wanted.sort_by_key(|peering| peering.id);
        let shown = network.status.as_ref();
        let shown = shown.and_then(|status| status.peerings.get(name));
        if shown.map_or(&[][..], Vec::as_slice) == wanted {
            return None;
        }
        // Only our own entry: the other partitions write theirs.
        let entry = if wanted.is_empty() {
            Value::Null
        } else {
            json!(wanted)
        };
        let status = json!({ "peerings": { name: entry } });
        Some(Op::patch_status(Target::of(network), status))
    }
}

fn clean_up(world: &World, key: &Key) -> Plan {
    let mut plan = Plan::none();
    for made in world.indexed::<metalnet::Network>(BY_ORIGIN, &key.to_string()) {
        let Some(source) = Origin::of(&made.metadata, origin::METALNET_NETWORK) else {
            continue;
        };
        if !object::is_deleting(&*made) {
            let target = Target::new::<apinet::Network>(&source.namespace, &source.name);
            plan.push(Op::RequireGone {
                target,
                uid: source.uid,
            });
            plan.push(Op::delete(&*made));
        }
    }
    plan
}

/// The Networks that a Network lists as peers.
fn peers(world: &World, network: &apinet::Network) -> Vec<Key> {
    let peerings = network.spec.peerings.iter();
    let found = peerings.flat_map(|peering| world.indexed::<apinet::Network>(BY_ID, &peering.id));
    found.map(|peer| Key::of(&*peer)).collect()
}

/// A Network and its peers: who uses the one needs the others.
fn with_peers(world: &World, key: Key) -> Vec<Key> {
    let network = world.by_key::<apinet::Network>(&key);
    let mut keys = network.map_or_else(Vec::new, |network| peers(world, &network));
    keys.push(key);
    keys
}

pub(crate) fn network_of(nic: &apinet::NetworkInterface) -> Key {
    Key::new(object::namespace(nic), &nic.spec.network_ref.name)
}
