//! What the services of OpenKCM-net mean for one interface: public addresses, its ports of a NAT address, the load balancer
//! addresses that it serves.

use std::collections::BTreeSet;

use api::apinet;
use api::meta::{Ip, IpFamily, IpPrefix};
use api::metalnet;
use controller::{Key, World, object};

use crate::partition::Partition;

/// Index of NATTables, LoadBalancerRoutings and NetworkPolicyRules by the UID of each interface that they are about.
pub(crate) const BY_TARGET: &str = "metalnetlet-target-uid";

/// Public addresses: the first IPv4 one, and the IPv6 ones, which the data plane does not translate but routes.
pub(crate) fn virtual_ips(
    public_ips: &[apinet::NetworkInterfacePublicIp],
) -> (Option<Ip>, Vec<Ip>) {
    let known = || public_ips.iter().filter_map(|entry| entry.ip);
    let v4 = known().find(|ip| ip.family() == IpFamily::IPv4);
    let v6 = known().filter(|ip| ip.family() == IpFamily::IPv6);
    (v4, v6.collect())
}

/// The ports that the interface may use of a shared address: those in the table of the gateway that it claims. IPv4 only,
/// because the data plane needs no translation for IPv6.
pub(crate) fn nat(world: &World, nic: &apinet::NetworkInterface) -> Option<metalnet::Nat> {
    let namespace = object::namespace(nic);
    let claims = nic.spec.nat_gateways.iter();
    let mut tables = claims.filter_map(|claim| {
        let table = world.get::<apinet::NATTable>(namespace, &claim.claim_ref.name)?;
        // A gateway deleted and made again has other ports than the one that was claimed.
        let mut owners = table.metadata.owner_references.iter().flatten();
        let fits = owners.all(|owner| owner.uid == claim.claim_ref.uid);
        (fits && !object::is_deleting(&*table)).then_some(table)
    });
    tables.find_map(|table| section(&table, object::uid(nic)))
}

fn section(table: &apinet::NATTable, uid: &str) -> Option<metalnet::Nat> {
    let shared = table
        .ips
        .iter()
        .filter(|shared| shared.ip.family() == IpFamily::IPv4);
    let mut sections = shared.flat_map(|shared| {
        let sections = shared.sections.iter();
        sections.map(|section| (shared.ip, section))
    });
    let (ip, section) = sections.find(|(_, section)| {
        let target = section.target_ref.as_ref();
        target.is_some_and(|target| target.uid == uid)
    })?;
    Some(metalnet::Nat {
        ip,
        port: section.port,
        // One past the last. The very last port cannot be expressed and stays unused.
        end_port: section.end_port.saturating_add(1).min(i32::from(u16::MAX)),
    })
}

/// Ports in use, as OpenKCM-net counts them: with the last one.
pub(crate) fn nat_ip(nat: metalnet::Nat) -> apinet::NatIp {
    let metalnet::Nat { ip, port, end_port } = nat;
    apinet::NatIp {
        ip: Some(ip),
        port,
        end_port: end_port.saturating_sub(1),
    }
}

/// The addresses of the load balancers of the interface's network that send it connections.
pub(crate) fn load_balancer_targets(
    world: &World,
    nic: &apinet::NetworkInterface,
) -> Vec<IpPrefix> {
    let (namespace, uid) = (object::namespace(nic), object::uid(nic));
    let routings = world.indexed::<apinet::LoadBalancerRouting>(BY_TARGET, uid);
    let routings = routings.iter().filter(|routing| {
        object::namespace(&***routing) == namespace && !object::is_deleting(&***routing)
    });
    let balancers = routings.filter_map(|routing| {
        let name = object::name(&**routing);
        let balancer = world.get::<apinet::LoadBalancer>(namespace, name)?;
        let serves = !object::is_deleting(&*balancer)
            && balancer.spec.network_ref.name == nic.spec.network_ref.name;
        serves.then_some(balancer)
    });
    let addresses: BTreeSet<_> = balancers
        .flat_map(|balancer| {
            let ips = balancer.spec.ips.iter();
            ips.filter_map(|entry| entry.ip.map(|Ip(address)| address))
                .collect::<Vec<_>>()
        })
        .collect();
    addresses.into_iter().map(IpPrefix::host).collect()
}

/// The interfaces of this partition that a table sends ports to.
pub(crate) fn table_targets(table: &apinet::NATTable) -> Vec<&apinet::TargetReference> {
    let sections = table.ips.iter().flat_map(|shared| &shared.sections);
    sections
        .filter_map(|section| section.target_ref.as_ref())
        .collect()
}

/// The interfaces that a load balancer sends connections to.
pub(crate) fn destinations(routing: &apinet::LoadBalancerRouting) -> Vec<&apinet::TargetReference> {
    let destinations = routing.destinations.iter();
    destinations
        .filter_map(|destination| destination.target_ref.as_ref())
        .collect()
}

/// Keys of those of the interfaces that are on nodes of this partition.
pub(crate) fn local_keys(
    partition: &Partition,
    namespace: &str,
    targets: Vec<&apinet::TargetReference>,
) -> Vec<Key> {
    let local = targets
        .into_iter()
        .filter(|target| partition.cluster_node(&target.node_ref.name).is_some());
    local
        .map(|target| Key::new(namespace, &target.name))
        .collect()
}

pub(crate) fn uids(targets: Vec<&apinet::TargetReference>) -> Vec<String> {
    targets
        .into_iter()
        .map(|target| target.uid.clone())
        .collect()
}

/// UIDs of the interfaces that a policy restricts.
pub(crate) fn restricted(rule: &apinet::NetworkPolicyRule) -> Vec<String> {
    let targets = rule.targets.iter();
    targets
        .filter_map(|target| target.target_ref.as_ref())
        .map(|target| target.uid.clone())
        .collect()
}
