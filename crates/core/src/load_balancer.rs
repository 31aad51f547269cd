//! LoadBalancer with a selector → LoadBalancerRouting of the same name: one destination per address of every available
//! interface of the network that the selector matches.

use std::sync::Arc;

use api::{
    meta::LocalUidReference,
    names::manager,
    networking::{
        LoadBalancer, LoadBalancerDestination, LoadBalancerRouting, LoadBalancerTargetRef, Network,
        NetworkInterface, NetworkInterfaceState,
    },
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;

use crate::index::{self, LOAD_BALANCER_NETWORK, NIC_NETWORK};

pub struct LoadBalancerController;

impl Controller for LoadBalancerController {
    fn name(&self) -> &'static str {
        "loadbalancer"
    }

    fn sources(&self) -> Vec<Source> {
        let routings = Watch::<LoadBalancerRouting>::new().own_key();
        let networks = index::networks().keys(|network, world| {
            let balancers = of_network(world, &Key::of(network));
            balancers
                .iter()
                .map(|balancer| Key::of(&**balancer))
                .collect()
        });
        let nics = index::nics().keys(|nic, world| {
            let network = Key::new(object::namespace(nic), &nic.spec.network_ref.name);
            if !is_available(nic) {
                return Vec::new();
            }
            of_network(world, &network)
                .iter()
                .filter(|balancer| selects(balancer, nic))
                .map(|balancer| Key::of(&**balancer))
                .collect()
        });
        vec![
            index::load_balancers().own_key().build(),
            routings.build(),
            networks.build(),
            nics.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(balancer) = world.by_key::<LoadBalancer>(key) else {
            return Plan::none();
        };
        // Without a selector somebody else writes the routing.
        if object::is_deleting(&*balancer) || balancer.spec.network_interface_selector.is_none() {
            return Plan::none();
        }
        let network = &balancer.spec.network_ref.name;
        let Some(network) = world.get::<Network>(&key.namespace, network) else {
            return Plan::none();
        };
        let reference = LocalUidReference::new(object::name(&*network), object::uid(&*network));
        let destinations = destinations(world, &balancer);
        if let Some(shown) = world.by_key::<LoadBalancerRouting>(key) {
            let owner = object::controller_of(&*shown).map(|owner| owner.uid.as_str());
            match owner {
                // That of a namesake which is gone: it is collected, and its going wakes us.
                Some(owner) if owner != object::uid(&*balancer) => return Plan::none(),
                Some(_) if shown.network_ref == reference && shown.destinations == destinations => {
                    return Plan::none();
                }
                Some(_) | None => {}
            }
        }
        vec![Op::apply(
            Target::new::<LoadBalancerRouting>(&key.namespace, &key.name),
            manager::LOAD_BALANCER,
            json!({
                "metadata": { "ownerReferences": [owner(&balancer)] },
                "networkRef": reference,
                "destinations": destinations,
            }),
        )]
        .into()
    }
}

/// The routing may go before its load balancer, so it does not block it.
fn owner(balancer: &LoadBalancer) -> serde_json::Value {
    let mut owner = object::controller_reference(balancer);
    if let Some(owner) = owner.as_object_mut() {
        owner.remove("blockOwnerDeletion");
    }
    owner
}

fn of_network(world: &World, network: &Key) -> Vec<Arc<LoadBalancer>> {
    world.indexed::<LoadBalancer>(LOAD_BALANCER_NETWORK, &network.to_string())
}

fn selects(balancer: &LoadBalancer, nic: &NetworkInterface) -> bool {
    object::selects(
        balancer.spec.network_interface_selector.as_ref(),
        nic.metadata.labels.as_ref(),
    )
}

fn is_available(nic: &NetworkInterface) -> bool {
    let status = nic.status.as_ref();
    status.is_some_and(|status| status.state == Some(NetworkInterfaceState::Available))
}

/// In the order of the names, so that the same world gives the same list. An interface that is being deleted gets nothing new.
fn destinations(world: &World, balancer: &LoadBalancer) -> Vec<LoadBalancerDestination> {
    let network = Key::new(object::namespace(balancer), &balancer.spec.network_ref.name);
    let mut nics = world.indexed::<NetworkInterface>(NIC_NETWORK, &network.to_string());
    nics.retain(|nic| selects(balancer, nic) && is_available(nic) && !object::is_deleting(&**nic));
    nics.sort_by_key(|nic| object::name(&**nic).to_owned());
    let destinations = nics.iter().flat_map(|nic| {
        let ips = nic.status.iter().flat_map(|status| &status.ips);
        ips.map(|ip| LoadBalancerDestination {
            ip: *ip,
            target_ref: Some(LoadBalancerTargetRef {
                uid: object::uid(&**nic).to_owned(),
                name: object::name(&**nic).to_owned(),
                provider_id: nic.spec.provider_id.clone(),
            }),
        })
    });
    destinations.collect()
}
