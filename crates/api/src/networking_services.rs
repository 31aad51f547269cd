//! `networking.openkcm.dev/v1alpha1`: services of a network. Balancing, outgoing traffic, policies.
//!
//! The kinds are named through [`crate::networking`] like the others of their group.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{kind, words};
use crate::meta::{
    Condition, Ip, IpFamily, IpPrefix, LabelSelector, LocalObjectReference, LocalUidReference,
    ObjectMeta, Protocol,
};
use crate::names::NETWORKING;
use crate::networking::IpSource;

/// LoadBalancer spreads connections to its addresses over the network interfaces that it selects.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct LoadBalancer {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    #[serde(default)]
    pub spec: LoadBalancerSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<LoadBalancerStatus>,
}
kind!(LoadBalancer, NETWORKING, "loadbalancers", NamespaceResourceScope, required spec, optional status);

words! {
    /// Where the addresses of a load balancer are reachable.
    LoadBalancerType { Public, Internal }
}

/// What the user wants of a LoadBalancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSpec {
    /// Public gets public addresses; Internal answers inside the network only. Immutable.
    #[serde(rename = "type")]
    pub type_: LoadBalancerType,
    /// Address families, each at most once. Filled in from ips when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<IpFamily>,
    /// Addresses of an Internal load balancer. Dropped for a Public one, whose addresses are chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpSource>,
    /// The network, in the same namespace. Immutable.
    pub network_ref: LocalObjectReference,
    /// Selects the network interfaces that get the connections. Absent means that the LoadBalancerRouting of the same name is
    /// written by somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_interface_selector: Option<LabelSelector>,
    /// Ports that are balanced. Ranges of one protocol may not overlap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<LoadBalancerPort>,
}

/// A port or a range of ports of a load balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerPort {
    /// Transport protocol; absent means TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// First port, 1 to 65535.
    pub port: i32,
    /// Last port of a range; absent means port alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i32>,
}

/// What was observed of a LoadBalancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadBalancerStatus {
    /// Addresses of the load balancer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Ready says whether the load balancer takes connections, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// LoadBalancerRouting lists where the connections of the LoadBalancer of the same name go. It is written by the system, or by
/// the user when the load balancer has no selector.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerRouting {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The network of the destinations.
    pub network_ref: LocalUidReference,
    /// Addresses that get the connections.
    pub destinations: Vec<LoadBalancerDestination>,
}
kind!(LoadBalancerRouting, NETWORKING, "loadbalancerroutings", NamespaceResourceScope, required network_ref, required destinations);

/// One address that gets connections of a load balancer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerDestination {
    /// The address.
    pub ip: Ip,
    /// The network interface that has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<LoadBalancerTargetRef>,
}

/// The network interface behind a destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadBalancerTargetRef {
    /// UID of the network interface.
    pub uid: String,
    /// Name of the network interface.
    pub name: String,
    /// Handle of the realized interface.
    #[serde(
        default,
        rename = "providerID",
        skip_serializing_if = "String::is_empty"
    )]
    pub provider_id: String,
}

/// NATGateway lets the network interfaces of a network without public address reach the internet.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NATGateway {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    #[serde(default)]
    pub spec: NatGatewaySpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<NatGatewayStatus>,
}
kind!(NATGateway, NETWORKING, "natgateways", NamespaceResourceScope, required spec, optional status);

words! {
    /// Kind of the addresses of a NAT gateway.
    NatGatewayType { Public }
}

/// Ports per network interface of a NAT gateway that does not say how many.
pub const NAT_PORTS_DEFAULT: i32 = 2048;

/// What the user wants of a NATGateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatGatewaySpec {
    /// Kind of addresses.
    #[serde(rename = "type")]
    pub type_: NatGatewayType,
    /// Address family of the translated traffic.
    pub ip_family: IpFamily,
    /// The network, in the same namespace. Immutable.
    pub network_ref: LocalObjectReference,
    /// Ports of a public address that each network interface may use, a power of two from 2 to 32768.
    #[serde(default = "nat_ports_default")]
    #[schemars(extend("x-openkcm-default" = NAT_PORTS_DEFAULT))]
    pub ports_per_network_interface: i32,
}

const fn nat_ports_default() -> i32 {
    NAT_PORTS_DEFAULT
}

impl Default for NatGatewaySpec {
    fn default() -> Self {
        Self {
            type_: NatGatewayType::default(),
            ip_family: IpFamily::default(),
            network_ref: LocalObjectReference::default(),
            ports_per_network_interface: NAT_PORTS_DEFAULT,
        }
    }
}

/// What was observed of a NATGateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NatGatewayStatus {
    /// Public addresses behind which the network interfaces appear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Ready says whether every network interface has ports, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// NetworkPolicy restricts the traffic of the network interfaces that it selects to what its rules allow.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NetworkPolicy {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    #[serde(default)]
    pub spec: NetworkPolicySpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<NetworkPolicyStatus>,
}
kind!(NetworkPolicy, NETWORKING, "networkpolicies", NamespaceResourceScope, required spec, optional status);

words! {
    /// A direction that a policy restricts, seen from the selected network interfaces.
    PolicyType { Ingress, Egress }
}

/// What the user wants of a NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// The network, in the same namespace. Immutable.
    pub network_ref: LocalObjectReference,
    /// Selects the network interfaces of the network; an empty selector selects all.
    #[serde(default)]
    pub network_interface_selector: LabelSelector,
    /// What the selected interfaces may receive. What any entry allows is allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<NetworkPolicyIngressRule>,
    /// What the selected interfaces may send. What any entry allows is allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<NetworkPolicyEgressRule>,
    /// Restricted directions. A direction with rules is added; a direction without rules allows nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_types: Vec<PolicyType>,
}

/// What may be received: both a port and a peer must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPolicyIngressRule {
    /// Ports; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NetworkPolicyPort>,
    /// Senders; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<NetworkPolicyPeer>,
}

/// What may be sent: both a port and a peer must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPolicyEgressRule {
    /// Ports; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NetworkPolicyPort>,
    /// Receivers; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<NetworkPolicyPeer>,
}

/// A destination port or a range of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyPort {
    /// Transport protocol; absent means TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// First port, 1 to 65535; absent or 0 means all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Last port of a range; absent means port alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i32>,
}

/// The other side of allowed traffic: exactly one of objectSelector and ipBlock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyPeer {
    /// Objects of the same namespace and network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_selector: Option<ObjectSelector>,
    /// A block of addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

words! {
    /// Kind of the objects that a peer selects.
    PeerKind { NetworkInterface, LoadBalancer, VirtualIP }
}

/// Selects objects of one kind by their labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct ObjectSelector {
    /// Kind of the objects.
    pub kind: PeerKind,
    /// Labels that an object must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements on the labels of an object; all must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

impl ObjectSelector {
    /// The selector without the kind.
    pub fn labels(&self) -> LabelSelector {
        LabelSelector {
            match_labels: Some(self.match_labels.clone()),
            match_expressions: Some(self.match_expressions.clone()),
        }
    }
}

/// A block of addresses with holes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IpBlock {
    /// The block.
    pub cidr: IpPrefix,
    /// Parts of the block that are not meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpPrefix>,
}

/// What was observed of a NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPolicyStatus {
    /// Ready says whether the policy is in force on every selected interface, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
