//! Network policies: NetworkPolicy as it was asked for, NetworkPolicyRule as it is to be enforced.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{kind, words};
use crate::meta::{
    Ip, IpFamily, IpPrefix, LabelSelector, LocalObjectReference, LocalUidReference, ObjectMeta,
    Protocol,
};
use crate::names::APINET;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

/// Priority of a policy that says nothing; lower comes first.
pub const POLICY_PRIORITY_DEFAULT: i32 = 1000;

/// NetworkPolicy restricts what interfaces of a network may receive and send.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct NetworkPolicy {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The policy.
    #[serde(default)]
    pub spec: NetworkPolicySpec,
}
kind!(NetworkPolicy, APINET, "networkpolicies", NamespaceResourceScope, required spec);

words! {
    /// Direction of traffic, seen from the interface.
    PolicyType { Ingress, Egress }
}

/// What interfaces may receive and send.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// OpenKCM-net Network of the interfaces. Immutable.
    pub network_ref: LocalObjectReference,
    /// The restricted interfaces of that network; an empty selector means all.
    #[serde(default)]
    pub network_interface_selector: LabelSelector,
    /// Lower comes first; absent means 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// What may come in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<NetworkPolicyIngressRule>,
    /// What may go out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<NetworkPolicyEgressRule>,
    /// Restricted directions. A direction that is listed and has no rule is closed.
    pub policy_types: Vec<PolicyType>,
}

/// Something that may come in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPolicyIngressRule {
    /// Where from; absent means anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<NetworkPolicyPeer>,
    /// To which ports; absent means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NetworkPolicyPort>,
}

/// Something that may go out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPolicyEgressRule {
    /// Where to; absent means anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<NetworkPolicyPeer>,
    /// To which ports; absent means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NetworkPolicyPort>,
}

/// The other side of a connection: at most one of the two; neither means anywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyPeer {
    /// Objects of the same network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_selector: Option<ObjectSelector>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

words! {
    /// Kind of the objects that a selector of a policy chooses.
    PolicyObjectKind { NetworkInterface, LoadBalancer }
}

/// Objects of the namespace and network of the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectSelector {
    /// Kind of the objects.
    pub kind: PolicyObjectKind,
    /// Labels that they carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements of their labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

impl ObjectSelector {
    /// The labels and requirements alone.
    pub fn labels(&self) -> LabelSelector {
        LabelSelector {
            match_labels: Some(self.match_labels.clone()),
            match_expressions: Some(self.match_expressions.clone()),
        }
    }
}

/// A block of addresses with holes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct IpBlock {
    /// The block.
    pub cidr: IpPrefix,
    /// Parts of the block that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpPrefix>,
}

/// Destination ports. No port means all of the protocol; nothing at all means all of TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyPort {
    /// Transport protocol; absent means TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The port, or the first of the range; absent or 0 means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Last port of the range; absent means port alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i32>,
}

/// NetworkPolicyRule is a NetworkPolicy of the same name with all selectors resolved. Written by the controller manager; a reader
/// needs no other object.
///
/// A target that is listed here accepts, in each direction of policyTypes, what one of the rules of that direction allows and
/// nothing else (together with the other policies that list it). Directions that are not in policyTypes are not restricted.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyRule {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The OpenKCM-net Network that all addresses are of.
    #[serde(default)]
    pub network_ref: LocalUidReference,
    /// Restricted interfaces, one entry for each address.
    #[serde(default)]
    pub targets: Vec<PolicyTarget>,
    /// Lower comes first.
    #[serde(default)]
    pub priority: Option<i32>,
    /// Restricted directions.
    #[serde(default)]
    pub policy_types: Vec<PolicyType>,
    /// What may come in.
    #[serde(default)]
    pub ingress_rule: Vec<PolicyRule>,
    /// What may go out.
    #[serde(default)]
    pub egress_rule: Vec<PolicyRule>,
}
kind!(
    NetworkPolicyRule,
    APINET,
    "networkpolicyrules",
    NamespaceResourceScope,
    required network_ref,
    required targets,
    optional priority,
    required policy_types,
    required ingress_rule,
    required egress_rule
);

/// A restricted interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTarget {
    /// Address of the interface in its network.
    pub ip: Ip,
    /// The interface. Its uid decides: addresses repeat in other networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<LocalUidReference>,
}

/// Something that is allowed: from or to any of ipBlock and ips, on any of networkPolicyPorts. A rule always has a peer: "anywhere"
/// is written as 0.0.0.0/0 and ::/0, and a rule whose selectors choose nothing is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Stable identity: a UUID over policy, direction and content, so an unchanged rule keeps it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Blocks of addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_block: Vec<IpBlock>,
    /// Addresses of chosen objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<PolicyObjectIp>,
    /// Destination ports, with protocol always and with endPort wherever there is a port; none means all ports of all protocols.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_policy_ports: Vec<NetworkPolicyPort>,
}

/// An address of a chosen object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyObjectIp {
    /// Address family.
    pub ip_family: IpFamily,
    /// The address as a prefix of one address.
    pub prefix: IpPrefix,
}
