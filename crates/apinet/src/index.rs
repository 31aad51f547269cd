//! Names of the shared indexes, and the watches that carry them. One name means one function per kind in the whole process.

use std::collections::BTreeSet;

use api::apinet::{Instance, NATGateway, NetworkInterface, NetworkPolicy};
use api::held;
use api::meta::Ip;
use controller::{Key, Watch, object};

/// Interfaces by the key of their network.
pub const NIC_NETWORK: &str = "apinet-nic-network";
/// Interfaces by the uid of every NAT gateway they claim.
pub const NIC_GATEWAY: &str = "apinet-nic-gateway";
/// Interfaces by the name of their Node.
pub const NIC_NODE: &str = "apinet-nic-node";
/// Interfaces by `namespace/address` of every public and NAT address that their data plane reports or may have.
pub const NIC_IN_USE: &str = "apinet-nic-in-use";
/// NAT gateways by the key of their network.
pub const GATEWAY_NETWORK: &str = "apinet-gateway-network";
/// Policies by the key of their network.
pub const POLICY_NETWORK: &str = "apinet-policy-network";
/// Instances by the key of the DaemonSet that controls them.
pub const INSTANCE_SET: &str = "apinet-instance-set";
/// Instances by the name of their Node; `UNSCHEDULED` for those that wait for one.
pub const INSTANCE_NODE: &str = "apinet-instance-node";
/// Instances by `namespace/address` of every address they have or their data plane reports or may have.
pub const INSTANCE_IN_USE: &str = "apinet-instance-in-use";
/// No Node has this name, because it is no DNS name.
pub const UNSCHEDULED: &str = "<none>";

/// The value of the in-use indexes.
pub fn in_use(namespace: &str, ip: api::meta::Ip) -> String {
    format!("{namespace}/{ip}")
}

/// The key of an object's network, as an index value.
pub fn network(namespace: &str, name: &str) -> String {
    Key::new(namespace, name).to_string()
}

pub fn nics() -> Watch<NetworkInterface> {
    Watch::<NetworkInterface>::new()
        .index(NIC_NETWORK, |nic| {
            vec![network(object::namespace(nic), &nic.spec.network_ref.name)]
        })
        .index(NIC_GATEWAY, |nic| {
            let claims = nic.spec.nat_gateways.iter();
            claims.map(|claim| claim.claim_ref.uid.clone()).collect()
        })
        .index(NIC_NODE, |nic| vec![nic.spec.node_ref.name.clone()])
        .index(NIC_IN_USE, |nic| {
            let namespace = object::namespace(nic);
            let status = nic.status.iter();
            let public = status.clone().flat_map(|status| &status.public_ips);
            let nat = status.flat_map(|status| &status.nat_ips);
            let nat = nat.filter_map(|nat| nat.ip);
            let held = held::of(&nic.metadata).into_iter().map(|held| held.ip());
            let ips: BTreeSet<Ip> = public.copied().chain(nat).chain(held).collect();
            ips.into_iter().map(|ip| in_use(namespace, ip)).collect()
        })
}

pub fn gateways() -> Watch<NATGateway> {
    Watch::<NATGateway>::new().index(GATEWAY_NETWORK, |gateway| {
        vec![network(
            object::namespace(gateway),
            &gateway.spec.network_ref.name,
        )]
    })
}

pub fn policies() -> Watch<NetworkPolicy> {
    Watch::<NetworkPolicy>::new().index(POLICY_NETWORK, |policy| {
        vec![network(
            object::namespace(policy),
            &policy.spec.network_ref.name,
        )]
    })
}

pub fn instances() -> Watch<Instance> {
    Watch::<Instance>::new()
        .index(INSTANCE_SET, |instance| {
            let set = object::controller_of(instance).filter(|owner| owner.kind == "DaemonSet");
            set.map(|set| Key::new(object::namespace(instance), &set.name).to_string())
                .into_iter()
                .collect()
        })
        .index(INSTANCE_NODE, |instance| match &instance.spec.node_ref {
            Some(node) => vec![node.name.clone()],
            None if object::is_deleting(instance) => Vec::new(),
            None => vec![UNSCHEDULED.to_owned()],
        })
        .index(INSTANCE_IN_USE, |instance| {
            let namespace = object::namespace(instance);
            let served = instance.status.iter().flat_map(|status| &status.ips);
            let all = instance.spec.ips.iter().chain(served).copied();
            let held = held::of(&instance.metadata)
                .into_iter()
                .map(|held| held.ip());
            let ips: BTreeSet<Ip> = all.chain(held).collect();
            ips.into_iter().map(|ip| in_use(namespace, ip)).collect()
        })
}
