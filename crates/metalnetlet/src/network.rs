//! OpenKCM-net Network → metalnet Network of the same uid with the VNI.
//!
//! Deletion waits for the interfaces of this partition: a network must not go under a living interface. Peerings belong to
//! later work; their fields are left to whoever will own them.

use api::{apinet, ids::Origin, metalnet, names::manager, names::origin};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::partition::Partition;

/// Index of metalnet Networks by the key of their OpenKCM-net Network.
const BY_ORIGIN: &str = "metalnetlet-network-origin";
/// Index of OpenKCM-net interfaces (of any partition) by the key of their Network.
pub(crate) const BY_NETWORK: &str = "metalnetlet-nic-network";

pub struct NetworkController {
    pub partition: Partition,
}

impl Controller for NetworkController {
    fn name(&self) -> &'static str {
        "network"
    }

    fn sources(&self) -> Vec<Source> {
        let networks = Watch::<apinet::Network>::new().own_key();
        let partition = self.partition.clone();
        let users = Watch::<apinet::NetworkInterface>::new()
            .index(BY_NETWORK, |nic| vec![network_of(nic).to_string()])
            .keys(move |nic, _| {
                partition
                    .node_of(nic)
                    .map(|_| network_of(nic))
                    .into_iter()
                    .collect()
            });
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
        vec![networks.build(), users.build(), made.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(network) = world.by_key::<apinet::Network>(key) else {
            return clean_up(world, key);
        };
        let namespace = &self.partition.metalnet_namespace;
        let made = world.get::<metalnet::Network>(namespace, object::uid(&*network));
        let used = self.is_used(world, key);
        let mirrored = used || !self.partition.only_used_networks;
        if mirrored && !object::is_deleting(&*network) {
            return self.realize(&network, made.as_deref());
        }
        if used {
            return Plan::none();
        }
        self.let_go(&network, made.as_deref())
    }
}

impl NetworkController {
    fn is_used(&self, world: &World, key: &Key) -> bool {
        let nics = world.indexed::<apinet::NetworkInterface>(BY_NETWORK, &key.to_string());
        nics.iter().any(|nic| self.partition.node_of(nic).is_some())
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
        let fits = made
            .is_some_and(|made| made.spec.id == id && object::carries(made, &labels, &annotations));
        if !fits {
            let target = Target::new::<metalnet::Network>(
                &self.partition.metalnet_namespace,
                object::uid(network),
            );
            let body = json!({
                "metadata": { "labels": labels, "annotations": annotations },
                "spec": { "id": id },
            });
            plan.push(Op::apply(target, manager::METALNETLET, body));
        }
        plan
    }

    fn let_go(&self, network: &apinet::Network, made: Option<&metalnet::Network>) -> Plan {
        let mut plan = Plan::none();
        match made {
            Some(made) if object::is_deleting(made) => {}
            Some(made) => {
                plan.push(Op::delete(made));
            }
            None => {
                plan.extend(Op::remove_finalizer(network, &self.partition.finalizer()));
            }
        }
        plan
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

pub(crate) fn network_of(nic: &apinet::NetworkInterface) -> Key {
    Key::new(object::namespace(nic), &nic.spec.network_ref.name)
}
