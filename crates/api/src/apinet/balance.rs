//! Load balancers: LoadBalancer, its LoadBalancerRouting, and what realizes it: DaemonSet and Instance.
//!
//! LoadBalancer → DaemonSet `lb-<name>` → one Instance per eligible Node → the scheduler sets `nodeRef` → metalnetlet.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetReference;
use crate::macros::{kind, words};
use crate::meta::{Ip, IpFamily, LabelSelector, LocalObjectReference, ObjectMeta, Protocol};
use crate::names::APINET;

/// LoadBalancer spreads connections to its addresses over the destinations of its LoadBalancerRouting.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct LoadBalancer {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the load balancer shall be.
    #[serde(default)]
    pub spec: LoadBalancerSpec,
    /// What is observed of it.
    #[serde(default)]
    pub status: Option<LoadBalancerStatus>,
}
kind!(LoadBalancer, APINET, "loadbalancers", NamespaceResourceScope, required spec, optional status);

words! {
    /// Where the addresses of a load balancer are reachable.
    LoadBalancerType { Public, Internal }
}

/// What a load balancer shall be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSpec {
    /// Public addresses are reserved by the server, Internal ones are taken as they are. Immutable.
    #[serde(rename = "type")]
    pub type_: LoadBalancerType,
    /// OpenKCM-net Network of the destinations. Immutable.
    pub network_ref: LocalObjectReference,
    /// The addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ips: Vec<LoadBalancerIp>,
    /// Balanced ports; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<LoadBalancerPort>,
    /// Which Instances belong to the load balancer; must match the labels of the template. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// What the Instances look like. Type, network, addresses and ports are those of the load balancer.
    #[serde(default)]
    pub template: InstanceTemplate,
}

/// One address of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIp {
    /// Name of the entry, unique in the load balancer.
    pub name: String,
    /// Address family. Filled in from ip when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family: Option<IpFamily>,
    /// The address. Public: given, an IP object of the namespace; absent, the server reserves one. Internal: as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
}

/// A balanced port or range of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerPort {
    /// Transport protocol; absent means TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The port, or the first of the range.
    pub port: i32,
    /// Last port of the range; absent means port alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i32>,
}

/// What is observed of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerStatus {
    /// Addresses that at least one Instance serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Unused; kept for clients that know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i32>,
}

/// LoadBalancerRouting lists the destinations of the LoadBalancer of the same name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct LoadBalancerRouting {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Interfaces that get the connections.
    #[serde(default)]
    pub destinations: Vec<LoadBalancerDestination>,
}
kind!(LoadBalancerRouting, APINET, "loadbalancerroutings", NamespaceResourceScope, required destinations);

/// An interface that gets connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerDestination {
    /// Address of the interface in its network.
    pub ip: Ip,
    /// The interface; absent while it is not realized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetReference>,
}

/// Instance is one realization of a load balancer on one Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Instance {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What runs, and where.
    #[serde(default)]
    pub spec: InstanceSpec,
    /// What the hypervisor reports.
    #[serde(default)]
    pub status: Option<InstanceStatus>,
}
kind!(Instance, APINET, "instances", NamespaceResourceScope, required spec, optional status);

words! {
    /// What an Instance does.
    InstanceType { LoadBalancer }
}

/// What runs on a Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceSpec {
    /// What the Instance does. Required of an Instance, filled in for a template. Immutable.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<InstanceType>,
    /// Where the addresses are reachable. Required of an Instance, filled in for a template. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer_type: Option<LoadBalancerType>,
    /// OpenKCM-net Network of the destinations. Immutable.
    #[serde(default, skip_serializing_if = "is_unnamed")]
    pub network_ref: LocalObjectReference,
    /// Balanced addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Balanced ports; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_ports: Vec<LoadBalancerPort>,
    /// Which Nodes may run the Instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How evenly Instances must be spread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Node that runs the Instance. Set once, by the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ref: Option<LocalObjectReference>,
}

fn is_unnamed(reference: &LocalObjectReference) -> bool {
    reference.name.is_empty()
}

/// Which Nodes may run an Instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Affinity {
    /// By the Nodes themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<NodeAffinity>,
    /// By the Instances that are there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_anti_affinity: Option<InstanceAntiAffinity>,
}

/// Which Nodes may run an Instance, by the Nodes themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeAffinity {
    /// Must hold when the Instance is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_during_scheduling_ignored_during_execution: Option<NodeSelector>,
}

/// A choice of Nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelector {
    /// One of the terms must hold; empty terms hold never.
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// Requirements that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelectorTerm {
    /// About labels of the Node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// About fields of the Node: `metadata.name` with In or NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_fields: Vec<NodeSelectorRequirement>,
}

words! {
    /// How a requirement compares.
    NodeSelectorOperator { In, NotIn, Exists, DoesNotExist, Gt, Lt }
}

/// A requirement of a label or field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeSelectorRequirement {
    /// Label key or field path.
    pub key: String,
    /// How the value is compared.
    pub operator: NodeSelectorOperator,
    /// In and NotIn: some values; Gt and Lt: one whole number; else none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// Which Nodes may not run an Instance, because of others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceAntiAffinity {
    /// Must hold when the Instance is placed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required_during_scheduling_ignored_during_execution: Vec<InstanceAffinityTerm>,
}

/// Instances of the namespace that exclude the Nodes of one place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceAffinityTerm {
    /// The Instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
    /// Node label whose value names the place. A Node without it is in no place.
    pub topology_key: String,
}

words! {
    /// What happens to an Instance whose spread constraint cannot hold.
    UnsatisfiableAction { DoNotSchedule }
}

/// How evenly Instances must be spread over places.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopologySpreadConstraint {
    /// By how many a place may exceed the emptiest one, at least 1.
    #[schemars(range(min = 1))]
    pub max_skew: i32,
    /// Node label whose value names the place. A Node without it is not eligible.
    pub topology_key: String,
    /// What happens when it cannot hold.
    pub when_unsatisfiable: UnsatisfiableAction,
    /// The Instances that are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
}

/// What the hypervisor reports of an Instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Addresses that the data plane of the Node serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Grows with every name collision in the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i32>,
}

/// What Instances look like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceTemplate {
    /// Labels and annotations of the Instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ObjectMeta>,
    /// Spec of the Instances.
    #[serde(default)]
    pub spec: InstanceSpec,
}

/// DaemonSet runs one Instance on every eligible Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct DaemonSet {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Which Instances shall run.
    #[serde(default)]
    pub spec: DaemonSetSpec,
    /// What is observed of them.
    #[serde(default)]
    pub status: Option<DaemonSetStatus>,
}
kind!(DaemonSet, APINET, "daemonsets", NamespaceResourceScope, required spec, optional status);

/// Which Instances shall run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetSpec {
    /// Which Instances belong to the set; must match the labels of the template. The name is historical: it selects no Nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// What the Instances look like.
    pub template: InstanceTemplate,
}

/// What is observed of a DaemonSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetStatus {
    /// Nodes that shall run an Instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_instances: Option<i32>,
    /// Instances that have a Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_instances: Option<i32>,
    /// Unused; kept for clients that know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i32>,
}
