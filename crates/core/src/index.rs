//! Names of the shared indexes. One name means one function per kind in the whole process, so they live in one place.

use api::{
    compute::Machine,
    ids,
    ipam::{Prefix, PrefixAllocation, PrefixAllocationPhase, PrefixPhase},
    meta::IpFamily,
    names::label,
    networking::{IpSource, LoadBalancer, NATGateway, Network, NetworkInterface},
};
use controller::{Key, Watch, object};

/// Machines by pool; `UNSCHEDULED` for those without one.
pub const MACHINE_POOL: &str = "core-machine-pool";
/// No pool has this name, because it is no DNS name.
pub const UNSCHEDULED: &str = "<none>";
/// Machines by the key of every interface that is made for them.
pub const MACHINE_EPHEMERAL_NIC: &str = "core-machine-ephemeral-nic";
/// Interfaces by the uid of their controller.
pub const NIC_CONTROLLER: &str = "core-nic-controller";
/// Interfaces by the uid of the machine that claims them.
pub const NIC_MACHINE: &str = "core-nic-machine";
/// Interfaces by the key of their network.
pub const NIC_NETWORK: &str = "core-nic-network";
/// Interfaces by the key of every Prefix that is made for them.
pub const NIC_EPHEMERAL_PREFIX: &str = "core-nic-ephemeral-prefix";
/// Load balancers by the key of their network.
pub const LOAD_BALANCER_NETWORK: &str = "core-load-balancer-network";
/// Load balancers by the key of every Prefix that is made for them.
pub const LOAD_BALANCER_EPHEMERAL_PREFIX: &str = "core-load-balancer-ephemeral-prefix";
/// NAT gateways by the key of their network.
pub const NAT_GATEWAY_NETWORK: &str = "core-nat-gateway-network";
/// Networks by the key of every network whose peering they have accepted.
pub const NETWORK_CLAIM: &str = "core-network-claim";
/// Networks by the key of every network that they want to peer with.
pub const NETWORK_PEER: &str = "core-network-peer";
/// Prefixes by the uid of their controller.
pub const PREFIX_CONTROLLER: &str = "core-prefix-controller";
/// Prefixes without a part of their own yet, by the key of the parent they name.
pub const PREFIX_WAITING_PARENT: &str = "core-prefix-waiting-parent";
/// Prefixes without a part of their own yet that select their parent, by namespace and family.
pub const PREFIX_WAITING_FAMILY: &str = "core-prefix-waiting-family";
/// Allocations by the key of the Prefix that answers them.
pub const ALLOCATION_PARENT: &str = "core-allocation-parent";
/// Allocations by the uid of the Prefix that asks.
pub const ALLOCATION_REQUESTER: &str = "core-allocation-requester";
/// Allocations that nobody answers yet, by namespace and family.
pub const ALLOCATION_WAITING_FAMILY: &str = "core-allocation-waiting-family";

pub fn machines() -> Watch<Machine> {
    Watch::<Machine>::new()
        .index(MACHINE_POOL, |machine| {
            let pool = machine
                .spec
                .machine_pool_ref
                .as_ref()
                .map(|pool| pool.name.clone());
            match pool {
                Some(pool) => vec![pool],
                None if object::is_deleting(machine) => Vec::new(),
                None => vec![UNSCHEDULED.to_owned()],
            }
        })
        .index(MACHINE_EPHEMERAL_NIC, |machine| {
            let entries = machine.spec.network_interfaces.iter();
            let made = entries.filter(|entry| entry.ephemeral.is_some());
            let namespace = object::namespace(machine);
            made.map(|entry| Key::new(namespace, entry.object_name(object::name(machine))))
                .map(|key| key.to_string())
                .collect()
        })
}

pub fn nics() -> Watch<NetworkInterface> {
    Watch::<NetworkInterface>::new()
        .index(NIC_CONTROLLER, |nic| {
            object::controller_of(nic)
                .map(|owner| owner.uid.clone())
                .into_iter()
                .collect()
        })
        .index(NIC_MACHINE, |nic| {
            nic.spec
                .machine_ref
                .iter()
                .map(|machine| machine.uid.clone())
                .collect()
        })
        .index(NIC_NETWORK, |nic| {
            vec![Key::new(object::namespace(nic), &nic.spec.network_ref.name).to_string()]
        })
        .index(NIC_EPHEMERAL_PREFIX, nic_prefixes)
}

fn nic_prefixes(nic: &NetworkInterface) -> Vec<String> {
    let (namespace, name) = (object::namespace(nic), object::name(nic));
    let ips = nic.spec.ips.iter().enumerate();
    let ips = ips.filter(|(_, source)| source.ephemeral.is_some());
    let routed = nic.spec.prefixes.iter().enumerate();
    let routed = routed.filter(|(_, source)| source.ephemeral.is_some());
    ips.map(|(i, _)| ids::ephemeral_ip_prefix_name(name, i))
        .chain(routed.map(|(i, _)| ids::ephemeral_prefix_name(name, i)))
        .map(|made| Key::new(namespace, made).to_string())
        .collect()
}

pub fn load_balancers() -> Watch<LoadBalancer> {
    let is_made = |source: &IpSource| source.ephemeral.is_some();
    Watch::<LoadBalancer>::new()
        .index(LOAD_BALANCER_NETWORK, |balancer| {
            let network = &balancer.spec.network_ref.name;
            vec![Key::new(object::namespace(balancer), network).to_string()]
        })
        .index(LOAD_BALANCER_EPHEMERAL_PREFIX, move |balancer| {
            let (namespace, name) = (object::namespace(balancer), object::name(balancer));
            let ips = balancer.spec.ips.iter().enumerate();
            ips.filter(|(_, source)| is_made(source))
                .map(|(i, _)| Key::new(namespace, ids::ephemeral_ip_prefix_name(name, i)))
                .map(|key| key.to_string())
                .collect()
        })
}

pub fn nat_gateways() -> Watch<NATGateway> {
    Watch::<NATGateway>::new().index(NAT_GATEWAY_NETWORK, |gateway| {
        let network = &gateway.spec.network_ref.name;
        vec![Key::new(object::namespace(gateway), network).to_string()]
    })
}

/// The networks that a network wants to peer with.
pub fn peers(network: &Network) -> impl Iterator<Item = Key> {
    let own = object::namespace(network);
    let peerings = network.spec.peerings.iter();
    peerings.map(move |peering| {
        within(
            own,
            &peering.network_ref.namespace,
            &peering.network_ref.name,
        )
    })
}

/// The networks whose peering a network has accepted.
pub fn claimed(network: &Network) -> impl Iterator<Item = Key> {
    let own = object::namespace(network);
    let claims = network.spec.incoming_peerings.iter();
    claims.map(move |claim| within(own, &claim.namespace, &claim.name))
}

/// A reference that may leave out its own namespace.
pub fn within(own: &str, namespace: &str, name: &str) -> Key {
    Key::new(if namespace.is_empty() { own } else { namespace }, name)
}

pub fn networks() -> Watch<Network> {
    Watch::<Network>::new()
        .index(NETWORK_CLAIM, |network| {
            claimed(network).map(|key| key.to_string()).collect()
        })
        .index(NETWORK_PEER, |network| {
            peers(network).map(|key| key.to_string()).collect()
        })
}

/// Value of the indexes by namespace and family.
pub fn family_key(namespace: &str, family: Option<IpFamily>) -> String {
    Key::new(namespace, family.map_or("", IpFamily::as_str)).to_string()
}

pub fn prefixes() -> Watch<Prefix> {
    let waits = |prefix: &Prefix| {
        let status = prefix.status.as_ref();
        let allocated = status.is_some_and(|status| status.phase == Some(PrefixPhase::Allocated));
        !allocated && !prefix.spec.is_root()
    };
    Watch::<Prefix>::new()
        .index(PREFIX_CONTROLLER, |prefix| {
            let owner = object::controller_of(prefix);
            owner.map(|owner| owner.uid.clone()).into_iter().collect()
        })
        .index(PREFIX_WAITING_PARENT, move |prefix| {
            let parent = prefix.spec.parent_ref.iter().filter(|_| waits(prefix));
            parent
                .map(|parent| Key::new(object::namespace(prefix), &parent.name).to_string())
                .collect()
        })
        .index(PREFIX_WAITING_FAMILY, move |prefix| {
            let selecting = waits(prefix) && prefix.spec.parent_ref.is_none();
            selecting
                .then(|| family_key(object::namespace(prefix), prefix.spec.ip_family))
                .into_iter()
                .collect()
        })
}

pub fn allocations() -> Watch<PrefixAllocation> {
    Watch::<PrefixAllocation>::new()
        .index(ALLOCATION_PARENT, |allocation| {
            let parent = allocation.spec.prefix_ref.iter();
            parent
                .map(|parent| Key::new(object::namespace(allocation), &parent.name).to_string())
                .collect()
        })
        .index(ALLOCATION_REQUESTER, |allocation| {
            let requester = object::label(allocation, label::REQUESTER_UID);
            requester.map(str::to_owned).into_iter().collect()
        })
        .index(ALLOCATION_WAITING_FAMILY, |allocation| {
            let status = allocation.status.as_ref();
            let phase = status.and_then(|status| status.phase).unwrap_or_default();
            let waits = phase == PrefixAllocationPhase::Pending
                && allocation.spec.prefix_ref.is_none()
                && allocation.spec.prefix_selector.is_some();
            let key = || family_key(object::namespace(allocation), allocation.spec.ip_family);
            waits.then(key).into_iter().collect()
        })
}
