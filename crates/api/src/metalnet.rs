//! `networking.metalnet.openkcm.dev/v1alpha1`: what metalnet realizes on the hypervisors of one compute
//! cluster. Can also be installed as custom resources in a foreign cluster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{kind, words};
use crate::meta::{Ip, IpFamily, IpPrefix, LocalObjectReference, ObjectMeta};
use crate::names::METALNET;

pub use crate::apinet::{PciAddress, TapDevice};

/// Network is a VNI and its peers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Network {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The VNI and its peers.
    pub spec: NetworkSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<NetworkStatus>,
}
kind!(Network, METALNET, "networks", NamespaceResourceScope, required spec, optional status);

/// A VNI and its peers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// The VNI, 24 bits.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub id: i32,
    /// VNIs that routes are exchanged with.
    #[serde(default, rename = "peeredIDs", skip_serializing_if = "Vec::is_empty")]
    pub peered_ids: Vec<i32>,
    /// What is exchanged with a peer. A peer without an entry gets everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub peered_prefixes: Vec<PeeredPrefix>,
}

/// What is exchanged with one peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeeredPrefix {
    /// VNI of the peer.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub id: i32,
    /// Allowed prefixes; an empty list allows nothing.
    pub prefixes: Vec<IpPrefix>,
}

/// What was observed of a Network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkStatus {
    /// State of the peerings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peerings: Vec<NetworkPeeringStatus>,
}

words! {
    /// State of a metalnet object.
    State { Pending, Ready, Error }
}

/// State of one peering.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPeeringStatus {
    /// VNI of the peer.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub id: i32,
    /// State of the peering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
}

/// NetworkInterface is an interface that dpservice realizes on one node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NetworkInterface {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the interface shall be.
    pub spec: NetworkInterfaceSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<NetworkInterfaceStatus>,
}
kind!(NetworkInterface, METALNET, "networkinterfaces", NamespaceResourceScope, required spec, optional status);

/// What an interface shall be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceSpec {
    /// metalnet Network of the same namespace.
    pub network_ref: LocalObjectReference,
    /// Address families, index by index those of ips.
    #[schemars(length(min = 1, max = 2))]
    pub ip_families: Vec<IpFamily>,
    /// Addresses, at most one per family.
    #[schemars(length(min = 1, max = 2))]
    pub ips: Vec<Ip>,
    /// Public address that stands for the interface alone.
    #[serde(default, rename = "virtualIP", skip_serializing_if = "Option::is_none")]
    pub virtual_ip: Option<Ip>,
    /// Further public addresses of the interface alone. At most one IPv4 address in all; IPv6 addresses are not translated
    /// but routed to the machine, which must hold them itself.
    #[serde(default, rename = "virtualIPs", skip_serializing_if = "Vec::is_empty")]
    pub virtual_ips: Vec<Ip>,
    /// Prefixes that are routed to the interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpPrefix>,
    /// Load balancer addresses that the interface serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_targets: Vec<IpPrefix>,
    /// Shared public address for outgoing traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<Nat>,
    /// Node that realizes the interface; absent means nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Firewall rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub firewall_rules: Vec<FirewallRule>,
    /// Limits of outgoing traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metering_rate: Option<MeteringRate>,
    /// Host name that the machine learns by DHCP.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
}

/// A shared public address and a range of its ports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nat {
    /// The address.
    pub ip: Ip,
    /// First port.
    #[schemars(range(min = 0, max = 65535))]
    pub port: i32,
    /// End of the ports, exclusive.
    #[schemars(range(min = 0, max = 65535))]
    pub end_port: i32,
}

/// Limits of outgoing traffic in Mbit/s; 0 is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeteringRate {
    /// All traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_rate: Option<u64>,
    /// Traffic that leaves the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_rate: Option<u64>,
}

words! {
    /// Direction of a firewall rule, as the machine sees it.
    FirewallDirection { Ingress, Egress }
}

words! {
    /// What a firewall rule does.
    FirewallAction { Accept, Deny }
}

/// A firewall rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirewallRule {
    /// Identity of the rule.
    #[serde(rename = "firewallRuleID")]
    pub firewall_rule_id: String,
    /// Which traffic is looked at.
    pub direction: FirewallDirection,
    /// What is done with it.
    pub action: FirewallAction,
    /// 0 is the most important; the default is 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535), extend("x-openkcm-default" = 1000))]
    pub priority: Option<i32>,
    /// Address family of the rule.
    pub ip_family: IpFamily,
    /// Source addresses; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix: Option<IpPrefix>,
    /// Destination addresses; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_prefix: Option<IpPrefix>,
    /// Protocol; absent means every protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_match: Option<ProtocolMatch>,
}

words! {
    /// Protocol of a firewall rule.
    ProtocolType { TCP, UDP, ICMP }
}

/// Which packets of a protocol a firewall rule matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolMatch {
    /// The protocol.
    pub protocol_type: ProtocolType,
    /// ICMP type and code; absent means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMatch>,
    /// Ports; absent means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_range: Option<PortMatch>,
}

/// ICMP type and code; -1 is any.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IcmpMatch {
    /// ICMP type.
    #[schemars(range(min = -1, max = 255))]
    pub icmp_type: i32,
    /// ICMP code.
    #[schemars(range(min = -1, max = 255))]
    pub icmp_code: i32,
}

/// Ports; -1 is any.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortMatch {
    /// First source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 65535))]
    pub src_port: Option<i32>,
    /// Last source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 65535))]
    pub end_src_port: Option<i32>,
    /// First destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 65535))]
    pub dst_port: Option<i32>,
    /// Last destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 65535))]
    pub end_dst_port: Option<i32>,
}

/// What was observed of an interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceStatus {
    /// The generation of the spec that the data plane last was brought in line with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready once dpservice has the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// PCI function that carries the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_address: Option<PciAddress>,
    /// TAP device that carries the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap_device: Option<TapDevice>,
    /// Public address in use.
    #[serde(default, rename = "virtualIP", skip_serializing_if = "Option::is_none")]
    pub virtual_ip: Option<Ip>,
    /// Further public addresses in use.
    #[serde(default, rename = "virtualIPs", skip_serializing_if = "Vec::is_empty")]
    pub virtual_ips: Vec<Ip>,
    /// NAT address and ports in use.
    #[serde(default, rename = "natIP", skip_serializing_if = "Option::is_none")]
    pub nat_ip: Option<Nat>,
    /// Prefixes in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpPrefix>,
    /// Load balancer addresses in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_targets: Vec<IpPrefix>,
}

/// LoadBalancer is one instance of a load balancer address on one node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct LoadBalancer {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the load balancer shall be.
    #[serde(default)]
    pub spec: Option<LoadBalancerSpec>,
    /// What was observed.
    #[serde(default)]
    pub status: Option<LoadBalancerStatus>,
}
kind!(LoadBalancer, METALNET, "loadbalancers", NamespaceResourceScope, optional spec, optional status);

words! {
    /// Where a load balancer address is announced.
    LoadBalancerType { Public, Internal }
}

/// What a load balancer shall be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSpec {
    /// metalnet Network of the same namespace.
    pub network_ref: LocalObjectReference,
    /// Where the address is announced.
    #[serde(rename = "type")]
    pub type_: LoadBalancerType,
    /// Address family.
    pub ip_family: IpFamily,
    /// The balanced address.
    pub ip: Ip,
    /// The balanced ports.
    #[schemars(length(min = 1))]
    pub ports: Vec<LoadBalancerPort>,
    /// Node that carries this instance; absent means nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// A balanced port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadBalancerPort {
    /// Transport protocol, `TCP` or `UDP`.
    pub protocol: String,
    /// The port.
    #[schemars(range(min = 0, max = 65535))]
    pub port: i32,
}

/// What was observed of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadBalancerStatus {
    /// Ready once dpservice has the load balancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
}
