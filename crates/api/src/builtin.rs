//! Rows of the Kubernetes kinds that the server serves beside ours: the schemas come from the types of
//! `k8s-openapi`, the merge rules, which those lack, from here.

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event as CoreEvent, Namespace, Node, Secret, ServiceAccount,
};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde_json::Value;

use crate::defaults;
use crate::field::FieldError;
use crate::schema::{ListType, MapType, Schema};
use crate::table::{
    Allocation, Cell, Column, ColumnType, Generation, KindInfo, NameRule, Scope, VERBS, age, int,
    name_column, path, schema, since, text, wide,
};
use crate::validate::certificates;
use Scope::{Cluster, Namespaced};

const fn no_rules(_: &Value) -> Vec<FieldError> {
    Vec::new()
}

const fn no_update_rules(_: &Value, _: &Value) -> Vec<FieldError> {
    Vec::new()
}

const fn row(
    group: &'static str,
    kind: [&'static str; 4],
    scope: Scope,
    schema: fn() -> &'static Schema,
    columns: &'static [Column],
) -> KindInfo {
    let [kind, list_kind, plural, singular] = kind;
    KindInfo {
        group,
        version: "v1",
        kind,
        list_kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        scope,
        verbs: VERBS,
        subresources: &[],
        columns,
        selectable: &[],
        name_rule: NameRule::Subdomain,
        generation: Generation::Never,
        locked_update: false,
        builtin: true,
        allocation: Allocation::None,
        schema,
        default: defaults::none,
        validate_create: no_rules,
        validate_update: no_update_rules,
        validate_status: no_update_rules,
    }
}

/// Kinds that are answered and never stored.
const fn review(
    group: &'static str,
    kind: [&'static str; 4],
    scope: Scope,
    schema: fn() -> &'static Schema,
) -> KindInfo {
    KindInfo {
        verbs: &["create"],
        ..row(group, kind, scope, schema, &[])
    }
}

fn list_map(schema: &mut Schema, path: &str, keys: &[&str]) {
    if let Some(list) = schema.at_mut(path) {
        list.list_type = ListType::Map(keys.iter().map(|key| (*key).to_owned()).collect());
    }
}

fn atomic(schema: &mut Schema, path: &str) {
    if let Some(map) = schema.at_mut(path) {
        map.map_type = MapType::Atomic;
    }
}

fn node_rules(schema: &mut Schema) {
    list_map(schema, "status.conditions", &["type"]);
    list_map(schema, "status.addresses", &["type"]);
    if let Some(list) = schema.at_mut("spec.podCIDRs") {
        list.list_type = ListType::Set;
    }
    atomic(schema, "spec.configSource.configMap");
}

fn event_rules(schema: &mut Schema) {
    for path in ["involvedObject", "regarding", "related"] {
        atomic(schema, path);
    }
    // One store serves both event groups; an event of one lacks what only the other requires.
    schema.required.clear();
}

fn service_account_rules(schema: &mut Schema) {
    list_map(schema, "secrets", &["name"]);
    for path in ["secrets", "imagePullSecrets"] {
        if let Some(items) = schema
            .at_mut(path)
            .and_then(|list| list.items.as_deref_mut())
        {
            items.map_type = MapType::Atomic;
        }
    }
}

fn binding_rules(schema: &mut Schema) {
    atomic(schema, "roleRef");
    if let Some(items) = schema
        .at_mut("subjects")
        .and_then(|list| list.items.as_deref_mut())
    {
        items.map_type = MapType::Atomic;
    }
}

fn texts(object: &Value, path: &[&str]) -> String {
    let found = path.iter().try_fold(object, |value, part| value.get(part));
    found.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn keys(object: &Value, field: &str) -> i64 {
    let count = object
        .get(field)
        .and_then(Value::as_object)
        .map_or(0, serde_json::Map::len);
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn config_map_data(object: &Value) -> i64 {
    keys(object, "data") + keys(object, "binaryData")
}

fn secret_data(object: &Value) -> i64 {
    keys(object, "data")
}

fn service_account_secrets(object: &Value) -> i64 {
    let count = object
        .get("secrets")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn node_ready(object: &Value) -> String {
    let conditions = object
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|c| texts(c, &["type"]) == "Ready");
    match ready.map(|c| texts(c, &["status"])).as_deref() {
        Some("True") => "Ready".into(),
        Some(_) => "NotReady".into(),
        None => "Unknown".into(),
    }
}

/// What became of a signing request: what was decided, and whether there is a certificate.
fn signing_state(object: &Value) -> String {
    let conditions = object
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let mut words: Vec<String> = conditions
        .into_iter()
        .flatten()
        .map(|condition| texts(condition, &["type"]))
        .collect();
    if !texts(object, &["status", "certificate"]).is_empty() {
        words.push("Issued".into());
    }
    match words.is_empty() {
        true => "Pending".into(),
        false => words.join(","),
    }
}

fn signing_duration(object: &Value) -> String {
    let seconds = object
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64);
    seconds.map_or("<none>".into(), |seconds| format!("{seconds}s"))
}

fn signing_rules(schema: &mut Schema) {
    list_map(schema, "status.conditions", &["type"]);
}

fn role_ref(object: &Value) -> String {
    format!(
        "{}/{}",
        texts(object, &["roleRef", "kind"]),
        texts(object, &["roleRef", "name"])
    )
}

fn subjects(object: &Value, kind: &str) -> String {
    let list = object
        .get("subjects")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let names = list
        .filter(|subject| texts(subject, &["kind"]) == kind)
        .map(|subject| match (kind, texts(subject, &["namespace"])) {
            ("ServiceAccount", ns) => format!("{ns}/{}", texts(subject, &["name"])),
            (_, _) => texts(subject, &["name"]),
        });
    names.collect::<Vec<_>>().join(", ")
}

fn subject_users(object: &Value) -> String {
    subjects(object, "User")
}

fn subject_groups(object: &Value) -> String {
    subjects(object, "Group")
}

fn subject_accounts(object: &Value) -> String {
    subjects(object, "ServiceAccount")
}

/// The object an event is about, in either event group.
fn event_object(object: &Value) -> String {
    let field = if object.get("regarding").is_some() {
        "regarding"
    } else {
        "involvedObject"
    };
    format!(
        "{}/{}",
        texts(object, &[field, "kind"]).to_lowercase(),
        texts(object, &[field, "name"])
    )
}

/// The text of an event, in either event group.
fn event_message(object: &Value) -> String {
    let note = texts(object, &["note"]);
    let text = if note.is_empty() {
        texts(object, &["message"])
    } else {
        note
    };
    text.trim().to_owned()
}

/// When an event happened last, in either event group.
fn event_last_seen(object: &Value) -> Option<String> {
    let places: [&[&str]; 6] = [
        &["series", "lastObservedTime"],
        &["lastTimestamp"],
        &["deprecatedLastTimestamp"],
        &["eventTime"],
        &["firstTimestamp"],
        &["metadata", "creationTimestamp"],
    ];
    places
        .iter()
        .map(|path| texts(object, path))
        .find(|time| !time.is_empty())
}

const LAST_SEEN: Column = Column {
    name: "Last Seen",
    kind: ColumnType::String,
    format: "",
    description: "Time since the event happened last.",
    priority: 0,
    cell: Cell::SinceText(event_last_seen),
};

const EVENT_COLUMNS: &[Column] = &[
    LAST_SEEN,
    path("Type", "type", "", "Normal or Warning."),
    path("Reason", "reason", "", "One word saying what happened."),
    text("Object", event_object, "What the event is about."),
    text("Message", event_message, "What happened."),
    wide(name_column()),
];

const BINDING_COLUMNS: &[Column] = &[
    name_column(),
    text("Role", role_ref, "The granted role."),
    age(),
    wide(text("Users", subject_users, "Users that have the role.")),
    wide(text("Groups", subject_groups, "Groups that have the role.")),
    wide(text(
        "ServiceAccounts",
        subject_accounts,
        "Service accounts that have the role.",
    )),
];

const ROLE_COLUMNS: &[Column] = &[
    name_column(),
    Column {
        kind: ColumnType::String,
        ..path(
            "Created At",
            "metadata.creationTimestamp",
            "",
            "When the role was created.",
        )
    },
];

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

const SIGNING_COLUMNS: &[Column] = &[
    name_column(),
    age(),
    path("SignerName", "spec.signerName", "", "Who is asked to sign."),
    path("Requestor", "spec.username", "", "Who asks."),
    text(
        "RequestedDuration",
        signing_duration,
        "Life of the certificate that is asked for.",
    ),
    text(
        "Condition",
        signing_state,
        "Pending, or what was decided and done.",
    ),
];

/// Kinds of Kubernetes itself.
pub(crate) static ROWS: &[KindInfo] = &[
    KindInfo {
        short_names: &["ns"],
        name_rule: NameRule::Label,
        subresources: &["status", "finalize"],
        verbs: &[
            "create", "delete", "get", "list", "patch", "update", "watch",
        ],
        selectable: &["status.phase"],
        ..row(
            "",
            ["Namespace", "NamespaceList", "namespaces", "namespace"],
            Cluster,
            schema!(Namespace, |s| list_map(s, "status.conditions", &["type"])),
            &[
                name_column(),
                path("Status", "status.phase", "", "Active or Terminating."),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["cm"],
        ..row(
            "",
            ["ConfigMap", "ConfigMapList", "configmaps", "configmap"],
            Namespaced,
            schema!(ConfigMap),
            &[
                name_column(),
                int("Data", config_map_data, "Number of entries."),
                age(),
            ],
        )
    },
    KindInfo {
        selectable: &["type"],
        ..row(
            "",
            ["Secret", "SecretList", "secrets", "secret"],
            Namespaced,
            schema!(Secret),
            &[
                name_column(),
                path("Type", "type", "Opaque", "Type of the secret."),
                int("Data", secret_data, "Number of entries."),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["sa"],
        subresources: &["token"],
        ..row(
            "",
            [
                "ServiceAccount",
                "ServiceAccountList",
                "serviceaccounts",
                "serviceaccount",
            ],
            Namespaced,
            schema!(ServiceAccount, service_account_rules),
            &[
                name_column(),
                int("Secrets", service_account_secrets, "Number of secrets."),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["no"],
        subresources: &["status"],
        selectable: &["spec.unschedulable"],
        ..row(
            "",
            ["Node", "NodeList", "nodes", "node"],
            Cluster,
            schema!(Node, node_rules),
            &[
                name_column(),
                text("Status", node_ready, "Ready condition of the node."),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["ev"],
        selectable: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ..row(
            "",
            ["Event", "EventList", "events", "event"],
            Namespaced,
            schema!(CoreEvent, event_rules),
            EVENT_COLUMNS,
        )
    },
    KindInfo {
        short_names: &["ev"],
        selectable: &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ..row(
            "events.k8s.io",
            ["Event", "EventList", "events", "event"],
            Namespaced,
            schema!(Event, event_rules),
            EVENT_COLUMNS,
        )
    },
    KindInfo {
        ..row(
            "coordination.k8s.io",
            ["Lease", "LeaseList", "leases", "lease"],
            Namespaced,
            schema!(Lease),
            &[
                name_column(),
                path("Holder", "spec.holderIdentity", "", "Who holds the lease."),
                wide(since(
                    "Renewed",
                    "spec.renewTime",
                    "Time since the last renewal.",
                )),
                age(),
            ],
        )
    },
    KindInfo {
        short_names: &["csr"],
        subresources: &["status", "approval"],
        selectable: &["spec.signerName"],
        validate_create: certificates::request,
        validate_update: certificates::request_update,
        validate_status: certificates::request_status,
        ..row(
            "certificates.k8s.io",
            [
                "CertificateSigningRequest",
                "CertificateSigningRequestList",
                "certificatesigningrequests",
                "certificatesigningrequest",
            ],
            Cluster,
            schema!(CertificateSigningRequest, signing_rules),
            SIGNING_COLUMNS,
        )
    },
    KindInfo {
        name_rule: NameRule::PathSegment,
        ..row(
            RBAC,
            ["Role", "RoleList", "roles", "role"],
            Namespaced,
            schema!(Role),
            ROLE_COLUMNS,
        )
    },
    KindInfo {
        name_rule: NameRule::PathSegment,
        ..row(
            RBAC,
            [
                "ClusterRole",
                "ClusterRoleList",
                "clusterroles",
                "clusterrole",
            ],
            Cluster,
            schema!(ClusterRole),
            ROLE_COLUMNS,
        )
    },
    KindInfo {
        name_rule: NameRule::PathSegment,
        ..row(
            RBAC,
            [
                "RoleBinding",
                "RoleBindingList",
                "rolebindings",
                "rolebinding",
            ],
            Namespaced,
            schema!(RoleBinding, binding_rules),
            BINDING_COLUMNS,
        )
    },
    KindInfo {
        name_rule: NameRule::PathSegment,
        ..row(
            RBAC,
            [
                "ClusterRoleBinding",
                "ClusterRoleBindingList",
                "clusterrolebindings",
                "clusterrolebinding",
            ],
            Cluster,
            schema!(ClusterRoleBinding, binding_rules),
            BINDING_COLUMNS,
        )
    },
    review(
        AUTHORIZATION,
        [
            "SelfSubjectAccessReview",
            "",
            "selfsubjectaccessreviews",
            "selfsubjectaccessreview",
        ],
        Cluster,
        schema!(SelfSubjectAccessReview),
    ),
    review(
        AUTHORIZATION,
        [
            "SelfSubjectRulesReview",
            "",
            "selfsubjectrulesreviews",
            "selfsubjectrulesreview",
        ],
        Cluster,
        schema!(SelfSubjectRulesReview),
    ),
    review(
        AUTHORIZATION,
        [
            "SubjectAccessReview",
            "",
            "subjectaccessreviews",
            "subjectaccessreview",
        ],
        Cluster,
        schema!(SubjectAccessReview),
    ),
    review(
        AUTHORIZATION,
        [
            "LocalSubjectAccessReview",
            "",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
        ],
        Namespaced,
        schema!(LocalSubjectAccessReview),
    ),
    review(
        AUTHENTICATION,
        ["TokenReview", "", "tokenreviews", "tokenreview"],
        Cluster,
        schema!(TokenReview),
    ),
    review(
        AUTHENTICATION,
        [
            "SelfSubjectReview",
            "",
            "selfsubjectreviews",
            "selfsubjectreview",
        ],
        Cluster,
        schema!(SelfSubjectReview),
    ),
];
