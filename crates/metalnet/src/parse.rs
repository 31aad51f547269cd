//! From API objects to the model: the edge where everything is checked.
//!
//! Objects arrive untyped, so that one that cannot be read (in a cluster where the kinds are plain custom resources,
//! nothing checks addresses) is an error on that object instead of the end of the watch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::meta::{Ip, IpFamily, IpPrefix, ObjectMeta};
use api::metalnet as wire;
use kube::core::DynamicObject;

use serde::de::DeserializeOwned;

use crate::parse_services as services;
use crate::services::{LoadBalancer, RULES_MAX, TARGETS_MAX};

use crate::model::{
    DeviceStatus, Filter, ID_LENGTH_MAX, Meta, Network, Nic, NicSpec, NicStatus, ObjectKey,
    PREFIXES_MAX, Prefix, SpecError, State, Uid, Vni,
};

/// Who reads, and what this node can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    pub node: String,
    pub ipv6: bool,
}

/// An object that belongs to a node, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// Ours to realise, or to tear down.
    Local(Box<T>),
    /// Another node's, or nobody's.
    Foreign(Uid),
    /// Its UID cannot serve as an id in the data plane.
    Unusable,
}

impl Reader {
    /// Reads a NetworkInterface.
    pub fn nic(&self, object: DynamicObject) -> Seen<Nic> {
        let Some(meta) = meta(&object.metadata) else {
            return Seen::Unusable;
        };
        let data = object.data;
        if !self.is_ours(&meta, &data) {
            return Seen::Foreign(meta.uid);
        }
        let network = network_of(&meta, &data);
        let spec = part::<wire::NetworkInterfaceSpec>(&data, "spec");
        let spec = spec
            .map_err(|error| SpecError::Unreadable(error.to_string()))
            .and_then(|spec| self.nic_spec(&spec));
        let status = part::<Option<wire::NetworkInterfaceStatus>>(&data, "status")
            .ok()
            .flatten();
        Seen::Local(Box::new(Nic {
            meta,
            network,
            spec,
            status: nic_status(status.unwrap_or_default()),
        }))
    }

    /// Reads a LoadBalancer.
    pub fn balancer(&self, object: DynamicObject) -> Seen<LoadBalancer> {
        let Some(meta) = meta(&object.metadata) else {
            return Seen::Unusable;
        };
        let data = object.data;
        if !self.is_ours(&meta, &data) {
            return Seen::Foreign(meta.uid);
        }
        let network = network_of(&meta, &data);
        let spec = part::<wire::LoadBalancerSpec>(&data, "spec");
        let status = part::<Option<wire::LoadBalancerStatus>>(&data, "status");
        let state = status.ok().flatten().and_then(|status| status.state);
        Seen::Local(Box::new(LoadBalancer {
            meta,
            network,
            spec: services::balancer(spec, self.ipv6),
            state: state.map(from_wire),
        }))
    }

    fn is_ours(&self, meta: &Meta, data: &serde_json::Value) -> bool {
        let node = data.pointer("/spec/nodeName");
        match node.and_then(|value| value.as_str()).unwrap_or_default() {
            // Taken off its node and then deleted: whoever still holds the finalizer's word lets go.
            "" => meta.deleting,
            node => node == self.node,
        }
    }

    fn nic_spec(&self, spec: &wire::NetworkInterfaceSpec) -> Result<NicSpec, SpecError> {
        let wire::NetworkInterfaceSpec {
            network_ref: _,
            ip_families,
            ips,
            virtual_ip,
            virtual_ips,
            prefixes,
            load_balancer_targets,
            nat,
            node_name: _,
            firewall_rules,
            metering_rate,
            hostname,
        } = spec;
        let (ipv4, ipv6) = addresses(ip_families, ips)?;
        let rates = metering_rate.clone().unwrap_or_default();
        let wire::MeteringRate {
            total_rate,
            public_rate,
        } = rates;
        if let (Some(total), Some(public)) = (total_rate, public_rate)
            && total < public
            && total != 0
        {
            return Err(SpecError::Metering { total, public });
        }
        if hostname.len() > ID_LENGTH_MAX {
            return Err(SpecError::Hostname(hostname.len()));
        }
        if prefixes.len() > PREFIXES_MAX {
            return Err(SpecError::PrefixCount(prefixes.len()));
        }
        if load_balancer_targets.len() > TARGETS_MAX {
            return Err(SpecError::TargetCount(load_balancer_targets.len()));
        }
        if firewall_rules.len() > RULES_MAX {
            return Err(SpecError::RuleCount(firewall_rules.len()));
        }
        let set = |list: &[IpPrefix]| list.iter().copied().filter_map(masked).collect();
        let mut problems = Vec::new();
        let asked = virtual_ip
            .iter()
            .chain(virtual_ips)
            .map(|Ip(address)| *address);
        let (vip, public) = services::virtual_ips(asked, &mut problems);
        let nat = nat.as_ref().map(services::nat).transpose();
        let mut prefixes: BTreeSet<Prefix> = set(prefixes);
        prefixes.extend(&public);
        let spec = NicSpec {
            ipv4,
            ipv6,
            prefixes,
            public,
            total_rate: total_rate.unwrap_or_default(),
            public_rate: public_rate.unwrap_or_default(),
            hostname: hostname.clone(),
            vip,
            nat: nat.unwrap_or_else(|problem| {
                problems.push(problem);
                None
            }),
            targets: set(load_balancer_targets),
            rules: services::rules(firewall_rules)?,
            problems,
        };
        let routed = spec.prefixes.iter().chain(&spec.targets).copied();
        let mut all = spec.host_prefixes().chain(routed);
        match all.find(|prefix| prefix.address().is_ipv6()) {
            Some(prefix) if !self.ipv6 => Err(SpecError::Ipv6Disabled(prefix)),
            Some(_) | None => Ok(spec),
        }
    }
}

/// Reads a Network; `None` if it has no usable UID.
pub fn network(object: DynamicObject) -> Option<Network> {
    let meta = meta(&object.metadata)?;
    let data = object.data;
    let id = data.pointer("/spec/id").and_then(serde_json::Value::as_u64);
    let vni = id.and_then(|id| parse_vni(i64::try_from(id).ok()?));
    let spec = part::<wire::NetworkSpec>(&data, "spec").unwrap_or_default();
    let wire::NetworkSpec {
        id: _,
        peered_ids,
        peered_prefixes,
    } = spec;
    let mut peers: BTreeMap<Vni, Filter> = peered_ids
        .iter()
        .filter_map(|id| parse_vni(i64::from(*id)))
        .map(|vni| (vni, Filter::All))
        .collect();
    for wire::PeeredPrefix { id, prefixes } in peered_prefixes {
        if let Some(filter) = parse_vni(i64::from(id)).and_then(|vni| peers.get_mut(&vni)) {
            *filter = Filter::Within(prefixes.into_iter().filter_map(masked).collect());
        }
    }
    let status = part::<Option<wire::NetworkStatus>>(&data, "status")
        .ok()
        .flatten()
        .unwrap_or_default();
    let peering = |peering: wire::NetworkPeeringStatus| {
        let wire::NetworkPeeringStatus { id, state } = peering;
        Some((u32::try_from(id).ok()?, state.map(from_wire)))
    };
    let peerings = status.peerings.into_iter().filter_map(peering).collect();
    Some(Network {
        meta,
        vni,
        peers,
        peerings,
    })
}

/// The Network that an object names.
fn network_of(meta: &Meta, data: &serde_json::Value) -> ObjectKey {
    let name = data.pointer("/spec/networkRef/name");
    ObjectKey {
        namespace: meta.key.namespace.clone(),
        name: name
            .and_then(|value| value.as_str())
            .unwrap_or_default()
            .to_owned(),
    }
}

fn part<T: DeserializeOwned>(data: &serde_json::Value, name: &str) -> Result<T, serde_json::Error> {
    T::deserialize(data.get(name).unwrap_or(&serde_json::Value::Null))
}

fn meta(meta: &ObjectMeta) -> Option<Meta> {
    Some(Meta {
        key: ObjectKey {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        },
        uid: Uid::new(meta.uid.as_deref()?)?,
        generation: meta.generation.unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        finalizers: meta.finalizers.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
    })
}

fn parse_vni(id: i64) -> Option<Vni> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id > 0)
        .and_then(Vni::new)
}

pub(crate) fn masked(prefix: IpPrefix) -> Option<Prefix> {
    Prefix::new(prefix.addr(), prefix.bits())
}

/// The addresses by family. The unspecified address stands for "none", as it does in the data plane.
fn addresses(
    families: &[IpFamily],
    ips: &[Ip],
) -> Result<(Option<std::net::Ipv4Addr>, Option<std::net::Ipv6Addr>), SpecError> {
    if families.len() != ips.len() {
        return Err(SpecError::FamilyCount {
            ips: ips.len(),
            families: families.len(),
        });
    }
    let (mut ipv4, mut ipv6) = (None, None);
    for (index, (family, Ip(address))) in families.iter().zip(ips).enumerate() {
        let twice = match (family, *address) {
            (IpFamily::IPv4, IpAddr::V4(address)) => ipv4.replace(address).is_some(),
            (IpFamily::IPv6, IpAddr::V6(address)) => ipv6.replace(address).is_some(),
            (IpFamily::IPv4, IpAddr::V6(_)) | (IpFamily::IPv6, IpAddr::V4(_)) => {
                return Err(SpecError::FamilyMismatch {
                    index,
                    family: *family,
                });
            }
        };
        if twice {
            return Err(SpecError::FamilyTwice(*family));
        }
        if address.is_multicast() || address.is_loopback() {
            return Err(SpecError::AddressUse(*address));
        }
    }
    let ipv4 = ipv4.filter(|address| !address.is_unspecified());
    let ipv6 = ipv6.filter(|address| !address.is_unspecified());
    if ipv4.is_none() && ipv6.is_none() {
        return Err(SpecError::NoAddress);
    }
    Ok((ipv4, ipv6))
}

fn nic_status(status: wire::NetworkInterfaceStatus) -> NicStatus {
    let wire::NetworkInterfaceStatus {
        observed_generation,
        state,
        pci_address,
        tap_device,
        virtual_ip,
        virtual_ips,
        nat_ip,
        prefixes,
        load_balancer_targets,
    } = status;
    let pci = pci_address.map(
        |wire::PciAddress {
             domain,
             bus,
             slot,
             function,
         }| DeviceStatus::Pci {
            domain,
            bus,
            slot,
            function,
        },
    );
    let tap = tap_device.map(|wire::TapDevice { name }| DeviceStatus::Tap { name });
    NicStatus {
        observed_generation,
        state: state.map(from_wire),
        // Both at once is never written by us; seeing it makes the next write set it right.
        device: match (pci, tap) {
            (Some(device), None) | (None, Some(device)) => Some(device),
            (None, None) | (Some(_), Some(_)) => None,
        },
        prefixes: prefixes.iter().map(ToString::to_string).collect(),
        virtual_ips: virtual_ip
            .iter()
            .chain(&virtual_ips)
            .map(|Ip(address)| *address)
            .collect(),
        nat: nat_ip.and_then(|nat| services::nat(&nat).ok()),
        targets: load_balancer_targets
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

fn from_wire(state: wire::State) -> State {
    match state {
        wire::State::Pending => State::Pending,
        wire::State::Ready => State::Ready,
        wire::State::Error => State::Error,
    }
}
