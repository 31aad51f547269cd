//! `networking.openkcm.dev/v1alpha1`: what a user says about networks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ipam::PrefixTemplateSpec;
use crate::macros::{kind, words};
use crate::meta::{
    Condition, Ip, IpFamily, IpPrefix, LocalObjectReference, LocalUidReference, ObjectMeta, Time,
    UidReference,
};
use crate::names::NETWORKING;

pub use crate::networking_services::{
    IpBlock, LoadBalancer, LoadBalancerDestination, LoadBalancerPort, LoadBalancerRouting,
    LoadBalancerSpec, LoadBalancerStatus, LoadBalancerTargetRef, LoadBalancerType,
    NAT_PORTS_DEFAULT, NATGateway, NatGatewaySpec, NatGatewayStatus, NatGatewayType, NetworkPolicy,
    NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec, NetworkPolicyStatus, ObjectSelector, PeerKind, PolicyType,
};

/// Network is an isolated layer-3 network: interfaces of one network reach each other, others do not.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Network {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    #[serde(default)]
    pub spec: NetworkSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<NetworkStatus>,
}
kind!(Network, NETWORKING, "networks", NamespaceResourceScope, required spec, optional status);

/// What the user wants of a Network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// Handle of the realized network, `openkcm-net://<namespace>/<name>/<VNI>/<uid>`. Set once by the system.
    #[serde(
        default,
        rename = "providerID",
        skip_serializing_if = "String::is_empty"
    )]
    pub provider_id: String,
    /// Networks that this network wants to exchange routes with. Both sides must list each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub peerings: Vec<NetworkPeering>,
    /// Networks that list this network and are listed by it. Written by the system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub incoming_peerings: Vec<UidReference>,
}

/// One wanted peering.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPeering {
    /// Name of the peering, unique in the network.
    pub name: String,
    /// The network to peer with.
    pub network_ref: NetworkPeeringRef,
    /// What this network exposes to the peer; empty exposes everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<PeeringPrefix>,
}

/// The other side of a peering.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPeeringRef {
    /// Namespace of the peer; empty means the own namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the peer.
    pub name: String,
}

/// A prefix that a network exposes to a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeeringPrefix {
    /// Name of the entry, unique in the network.
    pub name: String,
    /// The exposed prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpPrefix>,
    /// ipam Prefix of the own namespace that holds the exposed prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_ref: Option<LocalObjectReference>,
}

words! {
    /// State of a network.
    NetworkState { Pending, Available, Error }
}

/// What was observed of a Network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkStatus {
    /// Available once the network has a VNI and may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NetworkState>,
    /// State of the wanted peerings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub peerings: Vec<NetworkPeeringStatus>,
    /// Ready says whether the network may be used, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

words! {
    /// State of one peering.
    NetworkPeeringState { Pending, Ready, Error }
}

/// What was observed of one peering.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPeeringStatus {
    /// Name of the peering.
    pub name: String,
    /// State of the peering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NetworkPeeringState>,
    /// What is exposed to the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<PeeringPrefixStatus>,
}

/// One exposed prefix.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeeringPrefixStatus {
    /// Name of the entry.
    pub name: String,
    /// The exposed prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpPrefix>,
}

/// NetworkInterface connects a machine to a network.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NetworkInterface {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    #[serde(default)]
    pub spec: NetworkInterfaceSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<NetworkInterfaceStatus>,
}
kind!(NetworkInterface, NETWORKING, "networkinterfaces", NamespaceResourceScope, required spec, optional status);

/// What the user wants of a NetworkInterface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceSpec {
    /// Handle of the realized interface, `openkcm-net://<namespace>/<name>/<node>/<uid>`. Written by the system.
    #[serde(
        default,
        rename = "providerID",
        skip_serializing_if = "String::is_empty"
    )]
    pub provider_id: String,
    /// The network to connect to, in the same namespace. Immutable.
    pub network_ref: LocalObjectReference,
    /// The machine that uses the interface. Written by the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_ref: Option<LocalUidReference>,
    /// Address families, one per entry of ips, each at most once. Filled in from ips when absent. Immutable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<IpFamily>,
    /// Addresses of the interface, one per address family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpSource>,
    /// Prefixes that are routed to the interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<PrefixSource>,
    /// Public address of the interface.
    #[serde(default, rename = "virtualIP", skip_serializing_if = "Option::is_none")]
    pub virtual_ip: Option<VirtualIpSource>,
    /// Hints for the machine provider. Immutable.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// Where an address comes from: exactly one of value and ephemeral.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IpSource {
    /// A fixed address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Ip>,
    /// An ipam Prefix made for the owner and deleted with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralPrefixSource>,
}

/// Where a prefix comes from: exactly one of value and ephemeral.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrefixSource {
    /// A fixed prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<IpPrefix>,
    /// An ipam Prefix made for the owner and deleted with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralPrefixSource>,
}

/// An ipam Prefix made for its owner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralPrefixSource {
    /// Template of the ipam Prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_template: Option<PrefixTemplateSpec>,
}

/// Where a public address comes from: exactly one of virtualIPRef and ephemeral.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VirtualIpSource {
    /// A VirtualIP of the same namespace.
    #[serde(
        default,
        rename = "virtualIPRef",
        skip_serializing_if = "Option::is_none"
    )]
    pub virtual_ip_ref: Option<LocalObjectReference>,
    /// A VirtualIP made for the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralVirtualIpSource>,
}

/// A VirtualIP made for an interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EphemeralVirtualIpSource {
    /// Template of the VirtualIP.
    #[serde(
        default,
        rename = "virtualIPTemplate",
        skip_serializing_if = "Option::is_none"
    )]
    pub virtual_ip_template: Option<VirtualIpTemplateSpec>,
}

/// Template of a VirtualIP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VirtualIpTemplateSpec {
    /// Labels and annotations of the VirtualIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ObjectMeta>,
    /// Spec of the VirtualIP.
    pub spec: EphemeralVirtualIpSpec,
}

words! {
    /// What happens to an ephemeral VirtualIP when its interface goes.
    ReclaimPolicy { Delete, Retain }
}

/// Spec of a VirtualIP that is made for an interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralVirtualIpSpec {
    /// Kind of address.
    #[serde(rename = "type")]
    pub type_: VirtualIpType,
    /// Address family.
    pub ip_family: IpFamily,
    /// The interface that uses the address. Written by the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<LocalUidReference>,
    /// Retain keeps the VirtualIP when the interface goes; the default is Delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim_policy: Option<ReclaimPolicy>,
}

words! {
    /// State of a network interface.
    NetworkInterfaceState { Pending, Available, Error }
}

/// What was observed of a NetworkInterface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceStatus {
    /// Available once a machine uses the interface and its hypervisor reports it ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NetworkInterfaceState>,
    /// When the state changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_state_transition_time: Option<Time>,
    /// Addresses in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Prefixes in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpPrefix>,
    /// Public address in use.
    #[serde(default, rename = "virtualIP", skip_serializing_if = "Option::is_none")]
    pub virtual_ip: Option<Ip>,
    /// Shared public addresses that outgoing connections appear from, and which of their ports.
    #[serde(default, rename = "natIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub nat_ips: Vec<NetworkInterfaceNatIp>,
    /// Ready says whether traffic flows, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A shared public address and the ports that an interface uses of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceNatIp {
    /// The address.
    pub ip: Ip,
    /// First port.
    pub port: i32,
    /// Last port.
    pub end_port: i32,
}

/// Template of a NetworkInterface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkInterfaceTemplateSpec {
    /// Labels and annotations of the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ObjectMeta>,
    /// Spec of the interface.
    pub spec: NetworkInterfaceSpec,
}

/// VirtualIP is a public address that can move between network interfaces.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct VirtualIP {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    #[serde(default)]
    pub spec: VirtualIpSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<VirtualIpStatus>,
}
kind!(VirtualIP, NETWORKING, "virtualips", NamespaceResourceScope, required spec, optional status);

words! {
    /// Kind of a virtual address.
    VirtualIpType { Public }
}

/// What the user wants of a VirtualIP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIpSpec {
    /// Kind of address. Immutable.
    #[serde(rename = "type")]
    pub type_: VirtualIpType,
    /// Address family. Immutable.
    pub ip_family: IpFamily,
    /// The network interface that uses the address. Written by the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<LocalUidReference>,
}

/// What was observed of a VirtualIP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VirtualIpStatus {
    /// The reserved address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
    /// Ready says whether the address is reserved, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
