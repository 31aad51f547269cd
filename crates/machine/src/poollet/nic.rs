//! From a NetworkInterface of the user API to the interface that the runtime is asked for. Pure.

use std::collections::HashMap;

use api::compute::Machine;
use api::ids;
use api::ipam::{Prefix, PrefixPhase};
use api::meta::{Ip, LocalUidReference};
use api::names::label;
use api::networking::{IpSource, Network, NetworkInterface, NetworkState};
use controller::World;
use controller::object::{is_controlled_by, is_deleting, name, namespace, uid};
use proto::machine::NetworkInterface as RuntimeInterface;
use serde_json::json;

/// Attribute that says what object an interface was made of.
const NIC_LABELS: &str = "rawNICLabels";

/// Whose a NetworkInterface is, seen from a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours.
    Ours,
    /// Another machine's.
    Taken,
    /// Nobody's.
    Free,
}

/// Who claims `nic`.
pub fn claim(nic: &NetworkInterface, machine: &Machine) -> Claim {
    match &nic.spec.machine_ref {
        None => Claim::Free,
        Some(LocalUidReference { uid: owner, .. }) if owner == uid(machine) => Claim::Ours,
        Some(_) => Claim::Taken,
    }
}

/// The runtime interface for entry `entry`, or why there is none yet.
pub fn translate(
    world: &World,
    entry: &str,
    nic: &NetworkInterface,
) -> Result<RuntimeInterface, String> {
    let network_name = &nic.spec.network_ref.name;
    let network = world.get::<Network>(namespace(nic), network_name);
    let network = network.ok_or_else(|| format!("network {network_name} does not exist"))?;
    let state = network.status.as_ref().and_then(|status| status.state);
    // Without the handle the runtime could not tell which network is meant.
    if state != Some(NetworkState::Available) || network.spec.provider_id.is_empty() {
        return Err(format!("network {network_name} is not available"));
    }
    let mut ips = Vec::new();
    for (i, source) in nic.spec.ips.iter().enumerate() {
        ips.push(resolve(world, nic, i, source)?.to_string());
    }
    Ok(RuntimeInterface {
        name: entry.to_owned(),
        network_id: network.spec.provider_id.clone(),
        ips,
        attributes: attributes(nic, &network),
    })
}

fn resolve(
    world: &World,
    nic: &NetworkInterface,
    index: usize,
    source: &IpSource,
) -> Result<Ip, String> {
    if let Some(value) = source.value {
        return Ok(value);
    }
    let prefix_name = ids::ephemeral_ip_prefix_name(name(nic), index);
    let prefix = world.get::<Prefix>(namespace(nic), &prefix_name);
    let prefix = prefix.ok_or_else(|| format!("prefix {prefix_name} does not exist"))?;
    if !is_controlled_by(prefix.as_ref(), uid(nic)) || is_deleting(prefix.as_ref()) {
        return Err(format!(
            "prefix {prefix_name} does not belong to the interface"
        ));
    }
    let phase = prefix.status.as_ref().and_then(|status| status.phase);
    match (phase, prefix.spec.prefix) {
        (Some(PrefixPhase::Allocated), Some(block)) => Ok(Ip(block.addr())),
        _ => Err(format!("prefix {prefix_name} is not allocated")),
    }
}

/// Of which NetworkInterface a runtime interface was made.
pub fn uid_of(interface: &RuntimeInterface) -> Option<String> {
    let labels = interface.attributes.get(NIC_LABELS)?;
    let mut labels: HashMap<String, String> = serde_json::from_str(labels).ok()?;
    labels.remove(label::POOLLET_NIC_UID)
}

/// What the provider may want to know beyond the interface itself. Only what never changes, because a changed attribute
/// replaces the interface.
fn attributes(nic: &NetworkInterface, network: &Network) -> HashMap<String, String> {
    let nic_labels = json!({
        label::POOLLET_NIC_UID: uid(nic),
        label::POOLLET_NIC_NAMESPACE: namespace(nic),
        label::POOLLET_NIC_NAME: name(nic),
    });
    let network_labels = json!({
        label::POOLLET_NETWORK_UID: uid(network),
        label::POOLLET_NETWORK_NAMESPACE: namespace(network),
        label::POOLLET_NETWORK_NAME: name(network),
    });
    let mut attributes: HashMap<String, String> = nic
        .spec
        .attributes
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    attributes.insert(NIC_LABELS.to_owned(), nic_labels.to_string());
    attributes.insert("rawNetworkLabels".to_owned(), network_labels.to_string());
    attributes
}
