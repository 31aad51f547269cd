//! `core.apinet.openkcm.dev/v1alpha1`: the region-wide coordination layer, OpenKCM-net.
//!
//! Public addresses and VNIs are handed out here. IPAddress and NetworkID are the lock objects that
//! make double use impossible: each is named by the value it locks. Load balancers with their Instances, NAT gateways and network
//! policies are in the submodules.

mod balance;
mod nat;
mod policy;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{kind, words};
use crate::meta::{
    Condition, Ip, IpFamily, IpPrefix, LocalObjectReference, LocalUidReference, ObjectMeta,
};
use crate::names::APINET;

pub use balance::*;
pub use nat::*;
pub use policy::*;

/// An interface that traffic is for, and the hypervisor it is on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetReference {
    /// UID of the NetworkInterface; what the data plane matches.
    pub uid: String,
    /// Name of the NetworkInterface.
    pub name: String,
    /// Node of the NetworkInterface.
    pub node_ref: LocalObjectReference,
}

/// IP is a public address of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct IP {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The address and who uses it.
    #[serde(default)]
    pub spec: IpSpec,
}
kind!(IP, APINET, "ips", NamespaceResourceScope, required spec);

words! {
    /// Kind of an address.
    IpType { Public }
}

/// An address and who uses it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpSpec {
    /// Kind of address. Immutable.
    #[serde(rename = "type")]
    pub type_: IpType,
    /// Address family. Filled in from ip when absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family: Option<IpFamily>,
    /// The address; reserved by the server when absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
    /// Who uses the address. Written by the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_ref: Option<IpClaimRef>,
}

/// An object of the same namespace that uses an address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IpClaimRef {
    /// Group of the user.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Resource (plural) of the user.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// Name of the user.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// UID of the user.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// IPAddress locks a public address of the region; it is named by the address.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct IPAddress {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The address and the object that holds it.
    #[serde(default)]
    pub spec: IpAddressSpec,
}
kind!(IPAddress, APINET, "ipaddresses", ClusterResourceScope, required spec);

/// A locked address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IpAddressSpec {
    /// The address, equal to the name. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
    /// The object that holds the address. Immutable.
    #[serde(default)]
    pub claim_ref: ClaimRef,
}

/// The holder of a lock object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClaimRef {
    /// Group of the holder.
    #[serde(default)]
    pub group: String,
    /// Resource (plural) of the holder.
    #[serde(default)]
    pub resource: String,
    /// Namespace of the holder.
    #[serde(default)]
    pub namespace: String,
    /// Name of the holder.
    #[serde(default)]
    pub name: String,
    /// UID of the holder.
    #[serde(default)]
    pub uid: String,
}

/// Network is a network with its VNI, named by the UID of the user's Network.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Network {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The VNI and the peers.
    #[serde(default)]
    pub spec: NetworkSpec,
    /// What the partitions report.
    #[serde(default)]
    pub status: Option<NetworkStatus>,
}
kind!(Network, APINET, "networks", NamespaceResourceScope, required spec, optional status);

/// A network and its peers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSpec {
    /// The VNI in decimal; reserved by the server when absent. Immutable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Networks that routes are exchanged with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peerings: Vec<NetworkPeering>,
}

/// A peer of a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPeering {
    /// Name of the peering.
    pub name: String,
    /// VNI of the peer in decimal.
    pub id: String,
    /// Prefixes that are exchanged; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<PeeringPrefix>,
}

/// A prefix that is exchanged with a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeeringPrefix {
    /// Name of the entry.
    pub name: String,
    /// The prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpPrefix>,
}

/// What the partitions report of a Network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkStatus {
    /// State of the peerings by partition.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peerings: BTreeMap<String, Vec<NetworkPeeringStatus>>,
}

words! {
    /// State of a peering.
    NetworkPeeringState { Pending, Ready, Error }
}

/// State of one peering in one partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPeeringStatus {
    /// VNI of the peer.
    pub id: i32,
    /// State of the peering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NetworkPeeringState>,
}

/// NetworkID locks a VNI of the region; it is named by the VNI in decimal.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NetworkID {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The holder of the VNI.
    #[serde(default)]
    pub spec: NetworkIdSpec,
}
kind!(NetworkID, APINET, "networkids", ClusterResourceScope, required spec);

/// The holder of a VNI.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkIdSpec {
    /// The object that holds the VNI. Immutable.
    #[serde(default)]
    pub claim_ref: ClaimRef,
}

/// NetworkInterface is an interface on one hypervisor, made by the machine provider of that hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NetworkInterface {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the interface shall be.
    #[serde(default)]
    pub spec: NetworkInterfaceSpec,
    /// What the hypervisor reports.
    #[serde(default)]
    pub status: Option<NetworkInterfaceStatus>,
}
kind!(NetworkInterface, APINET, "networkinterfaces", NamespaceResourceScope, required spec, optional status);

/// What an interface shall be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceSpec {
    /// OpenKCM-net Node (hypervisor) of the interface. Immutable.
    pub node_ref: LocalObjectReference,
    /// OpenKCM-net Network of the interface. Immutable.
    pub network_ref: LocalObjectReference,
    /// Addresses, at most one per family. Immutable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Prefixes that are routed to the interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpPrefix>,
    /// NAT gateways that the interface uses, at most one per family. Written by the NAT controller.
    #[serde(default, rename = "natGateways", skip_serializing_if = "Vec::is_empty")]
    pub nat_gateways: Vec<NetworkInterfaceNat>,
    /// Host name that the machine learns by DHCP. Immutable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Public addresses, at most one per family.
    #[serde(default, rename = "publicIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub public_ips: Vec<NetworkInterfacePublicIp>,
}

/// Use of a NAT gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceNat {
    /// Address family of the gateway.
    pub ip_family: IpFamily,
    /// The gateway.
    pub claim_ref: LocalUidReference,
}

/// Use of a public address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfacePublicIp {
    /// Name of the entry, unique in the interface.
    pub name: String,
    /// Address family. Filled in from ip when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family: Option<IpFamily>,
    /// The address. Given: an IP object of the namespace. Absent: the server reserves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
}

words! {
    /// State of an interface.
    NetworkInterfaceState { Pending, Ready, Error }
}

/// What the hypervisor reports of an interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceStatus {
    /// Ready once packets can flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NetworkInterfaceState>,
    /// PCI function that carries the interface; excludes tapDevice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<PciAddress>,
    /// TAP device that carries the interface; excludes pciAddress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap_device: Option<TapDevice>,
    /// Prefixes in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpPrefix>,
    /// Public addresses in use.
    #[serde(default, rename = "publicIPs", skip_serializing_if = "Vec::is_empty")]
    pub public_ips: Vec<Ip>,
    /// NAT addresses and port ranges in use.
    #[serde(default, rename = "natIPs", skip_serializing_if = "Vec::is_empty")]
    pub nat_ips: Vec<NatIp>,
}

/// A shared public address and the ports that an interface may use of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatIp {
    /// The address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
    /// First port.
    pub port: i32,
    /// Last port.
    pub end_port: i32,
}

/// A PCI function; all parts are hexadecimal without prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct PciAddress {
    /// PCI domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// PCI bus.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bus: String,
    /// PCI slot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub slot: String,
    /// PCI function.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub function: String,
}

/// A TAP device of the hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct TapDevice {
    /// Name of the kernel interface.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// Node is a hypervisor, named `<partition>.<node of the compute cluster>`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Node {
    /// Standard object metadata; the labels carry the meaning.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Whether the hypervisor takes new work.
    #[serde(default)]
    pub spec: NodeSpec,
    /// Whether the hypervisor is alive.
    #[serde(default)]
    pub status: Option<NodeStatus>,
}
kind!(Node, APINET, "nodes", ClusterResourceScope, required spec, optional status);

/// Whether a hypervisor takes new work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeSpec {
    /// No further Instance is put here; those that are here stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
}

/// Whether a hypervisor is alive. Written by the node life cycle controller from the heartbeat lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// `Ready` is True while heartbeats come and Unknown when they stop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl Node {
    /// Reason of a Ready condition that is not True because the whole partition fell silent at once. That is the reporter's
    /// failure, not that of every hypervisor: nothing is moved.
    pub const PARTITION_SILENT: &'static str = "PartitionSilent";

    /// True when the hypervisor must be taken for dead: its load balancer Instances are placed elsewhere, its interfaces are in
    /// Error. A Node that nobody judges (no Ready condition) counts as alive.
    pub fn is_lost(&self) -> bool {
        let conditions = self.status.iter().flat_map(|status| &status.conditions);
        conditions
            .filter(|condition| condition.type_ == "Ready")
            .any(|ready| ready.status != "True" && ready.reason != Self::PARTITION_SILENT)
    }
}
