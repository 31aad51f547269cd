//! Keeps a network while something uses it: an interface, a load balancer or a NAT gateway names it, or another network has
//! accepted its peering. Something that is being deleted still uses the network until it is gone. Policies do not keep a network.

use api::{
    names::finalizer,
    networking::{LoadBalancer, NATGateway, Network, NetworkInterface},
};
use controller::{Controller, Key, Op, Plan, Source, World, object};

use crate::index::{self, LOAD_BALANCER_NETWORK, NAT_GATEWAY_NETWORK, NETWORK_CLAIM, NIC_NETWORK};

pub struct NetworkProtectionController;

impl Controller for NetworkProtectionController {
    fn name(&self) -> &'static str {
        "networkprotection"
    }

    fn sources(&self) -> Vec<Source> {
        let networks = index::networks().keys(|network, _| {
            let mut keys = vec![Key::of(network)];
            keys.extend(index::claimed(network));
            keys
        });
        let nics = index::nics()
            .keys(|nic, _| vec![Key::new(object::namespace(nic), &nic.spec.network_ref.name)]);
        let balancers = index::load_balancers().keys(|balancer, _| {
            let network = &balancer.spec.network_ref.name;
            vec![Key::new(object::namespace(balancer), network)]
        });
        let gateways = index::nat_gateways().keys(|gateway, _| {
            let network = &gateway.spec.network_ref.name;
            vec![Key::new(object::namespace(gateway), network)]
        });
        vec![
            networks.build(),
            nics.build(),
            balancers.build(),
            gateways.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(network) = world.by_key::<Network>(key) else {
            return Plan::none();
        };
        let op = if !object::is_deleting(&*network) {
            Op::add_finalizer(&*network, finalizer::NETWORK)
        } else if is_used(world, &network, key) {
            None
        } else {
            Op::remove_finalizer(&*network, finalizer::NETWORK)
        };
        op.into_iter().collect::<Vec<_>>().into()
    }
}

fn is_used(world: &World, network: &Network, key: &Key) -> bool {
    let name = key.to_string();
    let claimed = || {
        let others = world.indexed::<Network>(NETWORK_CLAIM, &name);
        others.iter().any(|other| {
            // A network that goes as well cannot let go of its peers any more, and takes the peering with it.
            let claims = other.spec.incoming_peerings.iter();
            let mut uids = claims.map(|claim| claim.uid.as_str());
            !object::is_deleting(&**other) && uids.any(|uid| uid == object::uid(network))
        })
    };
    !world
        .indexed::<NetworkInterface>(NIC_NETWORK, &name)
        .is_empty()
        || !world
            .indexed::<LoadBalancer>(LOAD_BALANCER_NETWORK, &name)
            .is_empty()
        || !world
            .indexed::<NATGateway>(NAT_GATEWAY_NETWORK, &name)
            .is_empty()
        || claimed()
}
