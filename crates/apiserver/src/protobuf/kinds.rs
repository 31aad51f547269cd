//! Field numbers and types of the built-in kinds that clients send as protobuf.
//!
//! The numbers are part of Kubernetes' public API. "Pointer" types can say "zero" as opposed to "absent".

use serde_json::{Map, Value};

/// A message's fields.
#[derive(Debug)]
pub(super) struct Message {
    pub name: &'static str,
    pub fields: &'static [Field],
}

#[derive(Debug)]
pub(super) struct Field {
    pub number: u32,
    /// Member name in JSON.
    pub name: &'static str,
    pub kind: Type,
}

/// How a field's value is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Type {
    Text,
    TextPointer,
    /// Base64 in JSON.
    Bytes,
    Int,
    IntPointer,
    Bool,
    BoolPointer,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// `FieldsV1`: JSON inside bytes.
    Fields,
    /// A message that only wraps a list of strings, which is what JSON shows.
    Items,
    Message(&'static Message),
    List(&'static Type),
    /// Keys are strings.
    Map(&'static Type),
}

impl Type {
    /// What an element of a list or map is when it was sent empty.
    pub(super) fn zero(&self) -> Value {
        match self {
            Type::Text | Type::TextPointer | Type::Bytes => "".into(),
            Type::Int | Type::IntPointer => 0.into(),
            Type::Bool | Type::BoolPointer => false.into(),
            Type::Time | Type::MicroTime => Value::Null,
            Type::Items | Type::List(_) => Value::Array(Vec::new()),
            Type::Fields | Type::Message(_) | Type::Map(_) => Value::Object(Map::new()),
        }
    }
}

/// Declares a message table.
macro_rules! table {
    ($name:ident: $($number:literal $field:literal $kind:expr),* $(,)?) => {
        pub(super) const $name: Message = Message {
            name: stringify!($name),
            fields: &[$(Field { number: $number, name: $field, kind: $kind }),*],
        };
    };
}

use Type::{
    Bool, BoolPointer, Bytes, Fields, Int, IntPointer, Items, List, Map as Keyed, Message as Of,
    MicroTime, Text, TextPointer, Time,
};

const TEXTS: Type = List(&Text);
const LABELS: Type = Keyed(&Text);
const BLOBS: Type = Keyed(&Bytes);

/// Number of the raw message in the envelope.
pub(super) const UNKNOWN_RAW: u32 = 2;

table! { TYPE_META: 1 "apiVersion" Text, 2 "kind" Text }
table! { UNKNOWN: 1 "typeMeta" Of(&TYPE_META), 3 "contentEncoding" Text, 4 "contentType" Text }
table! { RAW: 1 "raw" Bytes }
table! { ITEMS: 1 "items" TEXTS }
table! { TIMESTAMP: 1 "seconds" Int, 2 "nanos" Int }

table! { OWNER_REFERENCE:
    1 "kind" Text, 3 "name" Text, 4 "uid" Text, 5 "apiVersion" Text, 6 "controller" BoolPointer,
    7 "blockOwnerDeletion" BoolPointer,
}
table! { MANAGED_FIELDS:
    1 "manager" Text, 2 "operation" Text, 3 "apiVersion" Text, 4 "time" Time, 6 "fieldsType" Text, 7 "fieldsV1" Fields,
    8 "subresource" Text,
}
table! { OBJECT_META:
    1 "name" Text, 2 "generateName" Text, 3 "namespace" Text, 5 "uid" Text, 6 "resourceVersion" Text, 7 "generation" Int,
    8 "creationTimestamp" Time, 9 "deletionTimestamp" Time, 10 "deletionGracePeriodSeconds" IntPointer,
    11 "labels" LABELS, 12 "annotations" LABELS, 13 "ownerReferences" List(&Of(&OWNER_REFERENCE)), 14 "finalizers" TEXTS,
    17 "managedFields" List(&Of(&MANAGED_FIELDS)),
}
const META: Type = Of(&OBJECT_META);

table! { PRECONDITIONS: 1 "uid" TextPointer, 2 "resourceVersion" TextPointer }
table! { DELETE_OPTIONS:
    1 "gracePeriodSeconds" IntPointer, 2 "preconditions" Of(&PRECONDITIONS), 3 "orphanDependents" BoolPointer,
    4 "propagationPolicy" TextPointer, 5 "dryRun" TEXTS, 6 "ignoreStoreReadErrorWithClusterBreakingPotential" BoolPointer,
}
table! { REQUIREMENT: 1 "key" Text, 2 "operator" Text, 3 "values" TEXTS }
table! { LABEL_SELECTOR: 1 "matchLabels" LABELS, 2 "matchExpressions" List(&Of(&REQUIREMENT)) }

// core/v1
table! { OBJECT_REFERENCE:
    1 "kind" Text, 2 "namespace" Text, 3 "name" Text, 4 "uid" Text, 5 "apiVersion" Text, 6 "resourceVersion" Text,
    7 "fieldPath" Text,
}
table! { LOCAL_REFERENCE: 1 "name" Text }
table! { NAMESPACE_SPEC: 1 "finalizers" TEXTS }
table! { NAMESPACE_CONDITION:
    1 "type" Text, 2 "status" Text, 4 "lastTransitionTime" Time, 5 "reason" Text, 6 "message" Text,
}
table! { NAMESPACE_STATUS: 1 "phase" Text, 2 "conditions" List(&Of(&NAMESPACE_CONDITION)) }
table! { NAMESPACE: 1 "metadata" META, 2 "spec" Of(&NAMESPACE_SPEC), 3 "status" Of(&NAMESPACE_STATUS) }
table! { CONFIG_MAP: 1 "metadata" META, 2 "data" LABELS, 3 "binaryData" BLOBS, 4 "immutable" BoolPointer }
table! { SECRET:
    1 "metadata" META, 2 "data" BLOBS, 3 "type" Text, 4 "stringData" LABELS, 5 "immutable" BoolPointer,
}
table! { SERVICE_ACCOUNT:
    1 "metadata" META, 2 "secrets" List(&Of(&OBJECT_REFERENCE)), 3 "imagePullSecrets" List(&Of(&LOCAL_REFERENCE)),
    4 "automountServiceAccountToken" BoolPointer,
}
table! { EVENT_SOURCE: 1 "component" Text, 2 "host" Text }
table! { EVENT_SERIES: 1 "count" Int, 2 "lastObservedTime" MicroTime }
table! { CORE_EVENT:
    1 "metadata" META, 2 "involvedObject" Of(&OBJECT_REFERENCE), 3 "reason" Text, 4 "message" Text,
    5 "source" Of(&EVENT_SOURCE), 6 "firstTimestamp" Time, 7 "lastTimestamp" Time, 8 "count" Int, 9 "type" Text,
    10 "eventTime" MicroTime, 11 "series" Of(&EVENT_SERIES), 12 "action" Text, 13 "related" Of(&OBJECT_REFERENCE),
    14 "reportingComponent" Text, 15 "reportingInstance" Text,
}

// events.k8s.io/v1
table! { EVENT:
    1 "metadata" META, 2 "eventTime" MicroTime, 3 "series" Of(&EVENT_SERIES), 4 "reportingController" Text,
    5 "reportingInstance" Text, 6 "action" Text, 7 "reason" Text, 8 "regarding" Of(&OBJECT_REFERENCE),
    9 "related" Of(&OBJECT_REFERENCE), 10 "note" Text, 11 "type" Text, 12 "deprecatedSource" Of(&EVENT_SOURCE),
    13 "deprecatedFirstTimestamp" Time, 14 "deprecatedLastTimestamp" Time, 15 "deprecatedCount" Int,
}

// coordination.k8s.io/v1
table! { LEASE_SPEC:
    1 "holderIdentity" TextPointer, 2 "leaseDurationSeconds" IntPointer, 3 "acquireTime" MicroTime,
    4 "renewTime" MicroTime, 5 "leaseTransitions" IntPointer, 6 "strategy" TextPointer, 7 "preferredHolder" TextPointer,
}
table! { LEASE: 1 "metadata" META, 2 "spec" Of(&LEASE_SPEC) }

// rbac.authorization.k8s.io/v1
table! { POLICY_RULE:
    1 "verbs" TEXTS, 2 "apiGroups" TEXTS, 3 "resources" TEXTS, 4 "resourceNames" TEXTS, 5 "nonResourceURLs" TEXTS,
}
table! { ROLE: 1 "metadata" META, 2 "rules" List(&Of(&POLICY_RULE)) }
table! { AGGREGATION_RULE: 1 "clusterRoleSelectors" List(&Of(&LABEL_SELECTOR)) }
table! { CLUSTER_ROLE:
    1 "metadata" META, 2 "rules" List(&Of(&POLICY_RULE)), 3 "aggregationRule" Of(&AGGREGATION_RULE),
}
table! { SUBJECT: 1 "kind" Text, 2 "apiGroup" Text, 3 "name" Text, 4 "namespace" Text }
table! { ROLE_REF: 1 "apiGroup" Text, 2 "kind" Text, 3 "name" Text }
table! { BINDING: 1 "metadata" META, 2 "subjects" List(&Of(&SUBJECT)), 3 "roleRef" Of(&ROLE_REF) }

// authorization.k8s.io/v1
table! { SELECTOR_ATTRIBUTES: 1 "rawSelector" Text, 2 "requirements" List(&Of(&REQUIREMENT)) }
table! { RESOURCE_ATTRIBUTES:
    1 "namespace" Text, 2 "verb" Text, 3 "group" Text, 4 "version" Text, 5 "resource" Text, 6 "subresource" Text,
    7 "name" Text, 8 "fieldSelector" Of(&SELECTOR_ATTRIBUTES), 9 "labelSelector" Of(&SELECTOR_ATTRIBUTES),
}
table! { NON_RESOURCE_ATTRIBUTES: 1 "path" Text, 2 "verb" Text }
table! { ACCESS_STATUS: 1 "allowed" Bool, 2 "reason" Text, 3 "evaluationError" Text, 4 "denied" Bool }
table! { ACCESS_SPEC:
    1 "resourceAttributes" Of(&RESOURCE_ATTRIBUTES), 2 "nonResourceAttributes" Of(&NON_RESOURCE_ATTRIBUTES),
    3 "user" Text, 4 "groups" TEXTS, 5 "extra" Keyed(&Items), 6 "uid" Text,
}
// The review of oneself uses the first two fields of the general one.
table! { ACCESS_REVIEW: 1 "metadata" META, 2 "spec" Of(&ACCESS_SPEC), 3 "status" Of(&ACCESS_STATUS) }
table! { RULES_SPEC: 1 "namespace" Text }
table! { RULES_REVIEW: 1 "metadata" META, 2 "spec" Of(&RULES_SPEC) }

// authentication.k8s.io/v1
table! { SELF_REVIEW: 1 "metadata" META }
table! { TOKEN_REVIEW_SPEC: 1 "token" Text, 2 "audiences" TEXTS }
table! { TOKEN_REVIEW: 1 "metadata" META, 2 "spec" Of(&TOKEN_REVIEW_SPEC) }
table! { BOUND_OBJECT: 1 "kind" Text, 2 "apiVersion" Text, 3 "name" Text, 4 "uid" Text }
table! { TOKEN_REQUEST_SPEC:
    1 "audiences" TEXTS, 3 "boundObjectRef" Of(&BOUND_OBJECT), 4 "expirationSeconds" IntPointer,
}
table! { TOKEN_REQUEST: 1 "metadata" META, 2 "spec" Of(&TOKEN_REQUEST_SPEC) }

// certificates.k8s.io/v1
table! { SIGNING_SPEC:
    1 "request" Bytes, 2 "username" Text, 3 "uid" Text, 4 "groups" TEXTS, 5 "usages" TEXTS, 6 "extra" Keyed(&Items),
    7 "signerName" Text, 8 "expirationSeconds" IntPointer,
}
table! { SIGNING_CONDITION:
    1 "type" Text, 2 "reason" Text, 3 "message" Text, 4 "lastUpdateTime" Time, 5 "lastTransitionTime" Time,
    6 "status" Text,
}
table! { SIGNING_STATUS: 1 "conditions" List(&Of(&SIGNING_CONDITION)), 2 "certificate" Bytes }
table! { SIGNING_REQUEST:
    1 "metadata" META, 2 "spec" Of(&SIGNING_SPEC), 3 "status" Of(&SIGNING_STATUS),
}

/// The table of a kind. Delete options come under any group, because clients use the group of what they delete.
pub(super) fn lookup(group: &str, kind: &str) -> Option<&'static Message> {
    Some(match (group, kind) {
        (_, "DeleteOptions") => &DELETE_OPTIONS,
        ("", "Namespace") => &NAMESPACE,
        ("", "ConfigMap") => &CONFIG_MAP,
        ("", "Secret") => &SECRET,
        ("", "ServiceAccount") => &SERVICE_ACCOUNT,
        ("", "Event") => &CORE_EVENT,
        ("events.k8s.io", "Event") => &EVENT,
        ("coordination.k8s.io", "Lease") => &LEASE,
        ("rbac.authorization.k8s.io", "Role") => &ROLE,
        ("rbac.authorization.k8s.io", "ClusterRole") => &CLUSTER_ROLE,
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => &BINDING,
        (
            "authorization.k8s.io",
            "SelfSubjectAccessReview" | "SubjectAccessReview" | "LocalSubjectAccessReview",
        ) => &ACCESS_REVIEW,
        ("authorization.k8s.io", "SelfSubjectRulesReview") => &RULES_REVIEW,
        ("authentication.k8s.io", "SelfSubjectReview") => &SELF_REVIEW,
        ("authentication.k8s.io", "TokenReview") => &TOKEN_REVIEW,
        ("authentication.k8s.io", "TokenRequest") => &TOKEN_REQUEST,
        ("certificates.k8s.io", "CertificateSigningRequest") => &SIGNING_REQUEST,
        _ => return None,
    })
}
