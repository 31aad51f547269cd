//! `ipam.openkcm.dev/v1alpha1`: address plan. A Prefix is cut from another Prefix by a PrefixAllocation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::macros::{kind, words};
use crate::meta::{
    Condition, IpFamily, IpPrefix, LabelSelector, LocalObjectReference, ObjectMeta, Time,
};
use crate::names::IPAM;

/// Prefix is a block of addresses: a root of the address plan or a part of another Prefix.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Prefix {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    #[serde(default)]
    pub spec: PrefixSpec,
    /// What was observed.
    #[serde(default)]
    pub status: Option<PrefixStatus>,
}
kind!(Prefix, IPAM, "prefixes", NamespaceResourceScope, required spec, optional status);

/// What the user wants of a Prefix. Without parentRef and parentSelector it is a root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrefixSpec {
    /// Address family. Filled in from prefix when absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family: Option<IpFamily>,
    /// The block of addresses. A root must give it; a child may. Set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpPrefix>,
    /// Wanted length in bits, for a child without prefix. Set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<i32>,
    /// The Prefix to cut from. Set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_ref: Option<LocalObjectReference>,
    /// Selects the Prefix to cut from by its labels. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_selector: Option<LabelSelector>,
}

impl PrefixSpec {
    /// A root of the address plan has no parent.
    pub fn is_root(&self) -> bool {
        self.parent_ref.is_none() && self.parent_selector.is_none()
    }
}

words! {
    /// Phase of a Prefix.
    PrefixPhase { Pending, Allocated }
}

/// What was observed of a Prefix.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrefixStatus {
    /// Allocated is final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<PrefixPhase>,
    /// When the phase changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_phase_transition_time: Option<Time>,
    /// Parts that were given away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used: Vec<IpPrefix>,
    /// Which PrefixAllocation has which of these parts. Written together with used, under the version of the Prefix, so that no
    /// two writers can give one part away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<PrefixGrant>,
    /// Ready says whether the block is allocated, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A part of a Prefix and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrefixGrant {
    /// Name of the PrefixAllocation, in the same namespace.
    pub name: String,
    /// UID of the PrefixAllocation.
    pub uid: String,
    /// The part.
    pub prefix: IpPrefix,
}

/// Template of a Prefix.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrefixTemplateSpec {
    /// Labels and annotations of the Prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ObjectMeta>,
    /// Spec of the Prefix.
    #[serde(default)]
    pub spec: PrefixSpec,
}

/// PrefixAllocation asks a Prefix for a part of it. It is immutable; its result is final.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
pub struct PrefixAllocation {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The request.
    #[serde(default)]
    pub spec: PrefixAllocationSpec,
    /// The answer.
    #[serde(default)]
    pub status: Option<PrefixAllocationStatus>,
}
kind!(PrefixAllocation, IPAM, "prefixallocations", NamespaceResourceScope, required spec, optional status);

/// The request of a PrefixAllocation: exactly one of prefix and prefixLength.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrefixAllocationSpec {
    /// Address family. Filled in from prefix when absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family: Option<IpFamily>,
    /// Request for exactly this block. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpPrefix>,
    /// Request for any block of this length in bits. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<i32>,
    /// The Prefix to cut from. Set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_ref: Option<LocalObjectReference>,
    /// Selects the Prefix to cut from by its labels. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_selector: Option<LabelSelector>,
}

words! {
    /// Phase of a PrefixAllocation.
    PrefixAllocationPhase { Pending, Allocated, Failed }
}

/// The answer to a PrefixAllocation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrefixAllocationStatus {
    /// The block that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpPrefix>,
    /// Allocated and Failed are final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<PrefixAllocationPhase>,
    /// When the phase changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_phase_transition_time: Option<Time>,
    /// Ready says whether a block was given, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
