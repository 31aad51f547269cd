//! What exists from the first start on: namespaces, and one role per part of the region.
//!
//! Roles are brought back to what the release says at every start, unless the operator has set
//! `rbac.authorization.kubernetes.io/autoupdate: "false"` on them; namespaces and bindings are only created.

use crate::auth::User;
use crate::decode::Decoded;
use crate::query::Query;
use crate::region::Region;
use crate::registry::{Part, Write};
use crate::status::{Failure, Outcome, Reason};
use api::names::{APINET, COMPUTE, IPAM, METALNET, NETWORKING, certificate, identity, namespace};
use serde_json::{Value, json};
use std::sync::Arc;

const RBAC: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const READ: &[&str] = &["get", "list", "watch"];
const CHANGE: &[&str] = &["get", "list", "watch", "patch", "update"];
const OWN: &[&str] = &[
    "get", "list", "watch", "create", "delete", "patch", "update",
];
const ALL: &[&str] = &["*"];

/// One rule: groups, resources, verbs.
type RuleRow = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);

/// A cluster role, its rules, and the group that has it.
struct RoleRow {
    name: &'static str,
    rules: &'static [RuleRow],
    paths: &'static [&'static str],
    group: Option<&'static str>,
}

/// What every part needs beside its own kinds: to tell of events and to hold a lease.
const COMMON: RuleRow = (
    &["", "events.k8s.io"],
    &["events"],
    &["create", "patch", "update"],
);
const LEASES: RuleRow = (
    &["coordination.k8s.io"],
    &["leases"],
    &[
        "get", "list", "watch", "create", "delete", "patch", "update",
    ],
);

/// Asking for certificates and looking after what became of it.
const ASK: RuleRow = (
    &[certificate::GROUP],
    &["certificatesigningrequests"],
    &["create", "get", "list", "watch"],
);
const ASK_APINETLET: RuleRow = (
    &[certificate::GROUP],
    &["certificatesigningrequests/apinetletclient"],
    &["create"],
);
const ASK_METALNETLET: RuleRow = (
    &[certificate::GROUP],
    &["certificatesigningrequests/metalnetletclient"],
    &["create"],
);
/// The resource of rights at signers. Such rules are about the signer of clients only.
const SIGNERS: &str = "signers";

const ROLES: &[RoleRow] = &[
    RoleRow {
        name: "cluster-admin",
        rules: &[(ALL, ALL, ALL)],
        paths: &["*"],
        group: Some(crate::auth::MASTERS),
    },
    RoleRow {
        name: "system:discovery",
        rules: &[],
        paths: &[
            "/api",
            "/api/*",
            "/apis",
            "/apis/*",
            "/healthz",
            "/livez",
            "/openapi",
            "/openapi/*",
            "/readyz",
            "/version",
            "/version/",
        ],
        group: Some(crate::auth::AUTHENTICATED),
    },
    RoleRow {
        name: "system:basic-user",
        rules: &[
            (
                &["authorization.k8s.io"],
                &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                &["create"],
            ),
            (
                &["authentication.k8s.io"],
                &["selfsubjectreviews"],
                &["create"],
            ),
        ],
        paths: &[],
        group: Some(crate::auth::AUTHENTICATED),
    },
    RoleRow {
        name: "admin",
        rules: &[
            (&[NETWORKING, IPAM, COMPUTE], ALL, ALL),
            (
                &["", "events.k8s.io"],
                &["configmaps", "secrets", "serviceaccounts", "events"],
                ALL,
            ),
            (&[RBAC], &["roles", "rolebindings"], ALL),
            (&[""], &["namespaces"], READ),
        ],
        paths: &[],
        group: None,
    },
    RoleRow {
        name: "edit",
        rules: &[
            (
                &[NETWORKING, IPAM, COMPUTE],
                ALL,
                &[
                    "get",
                    "list",
                    "watch",
                    "create",
                    "delete",
                    "deletecollection",
                    "patch",
                    "update",
                ],
            ),
            (
                &["", "events.k8s.io"],
                &["configmaps", "secrets", "serviceaccounts", "events"],
                ALL,
            ),
            (&[""], &["namespaces"], READ),
        ],
        paths: &[],
        group: None,
    },
    RoleRow {
        name: "view",
        rules: &[
            (&[NETWORKING, IPAM, COMPUTE], ALL, READ),
            (
                &["", "events.k8s.io"],
                &["configmaps", "serviceaccounts", "events"],
                READ,
            ),
            (&[""], &["namespaces"], READ),
        ],
        paths: &[],
        group: None,
    },
    RoleRow {
        name: "openkcm:system:controller-manager",
        rules: &[
            (&[NETWORKING, IPAM, COMPUTE, APINET], ALL, ALL),
            (&[""], &["namespaces", "secrets", "configmaps"], READ),
            (&[certificate::GROUP], &["certificatesigningrequests"], READ),
            (
                &[certificate::GROUP],
                &["certificatesigningrequests/approval"],
                &["update", "patch"],
            ),
            (&[certificate::GROUP], &[SIGNERS], &["approve"]),
            (
                &["authorization.k8s.io"],
                &["subjectaccessreviews"],
                &["create"],
            ),
            COMMON,
            LEASES,
        ],
        paths: &[],
        group: Some(identity::CONTROLLER_MANAGER.1),
    },
    RoleRow {
        name: "apinet.openkcm.dev:system:apinetlets",
        rules: &[
            (
                &[NETWORKING],
                &[
                    "networks",
                    "networkinterfaces",
                    "virtualips",
                    "loadbalancers",
                    "loadbalancerroutings",
                    "natgateways",
                    "networkpolicies",
                ],
                CHANGE,
            ),
            (
                &[NETWORKING],
                &[
                    "networks/status",
                    "networkinterfaces/status",
                    "virtualips/status",
                    "loadbalancers/status",
                    "natgateways/status",
                    "networkpolicies/status",
                ],
                CHANGE,
            ),
            (
                &[NETWORKING],
                &[
                    "networks/finalizers",
                    "networkinterfaces/finalizers",
                    "virtualips/finalizers",
                    "loadbalancers/finalizers",
                    "natgateways/finalizers",
                    "networkpolicies/finalizers",
                ],
                &["update"],
            ),
            (&[IPAM], &["prefixes"], READ),
            // Writes are confined to the let's own namespace by the node rules.
            (
                &[APINET],
                &[
                    "networks",
                    "networkinterfaces",
                    "ips",
                    "loadbalancers",
                    "natgateways",
                    "natgatewayautoscalers",
                    "networkpolicies",
                    "networkpolicyrules",
                    "loadbalancerroutings",
                    "nattables",
                    "instances",
                ],
                OWN,
            ),
            (&[APINET], &["nodes", "ipaddresses", "networkids"], READ),
            (&[""], &["namespaces"], READ),
            ASK,
            ASK_APINETLET,
            COMMON,
            LEASES,
        ],
        paths: &[],
        group: Some(identity::APINETLETS),
    },
    RoleRow {
        name: "apinet.openkcm.dev:system:metalnetlets",
        rules: &[
            (
                &[APINET],
                &["networks", "networkinterfaces", "instances"],
                CHANGE,
            ),
            (
                &[APINET],
                &[
                    "loadbalancers",
                    "loadbalancerroutings",
                    "natgateways",
                    "nattables",
                    "networkpolicies",
                    "networkpolicyrules",
                ],
                READ,
            ),
            (
                &[APINET],
                &[
                    "networks/status",
                    "networkinterfaces/status",
                    "instances/status",
                ],
                CHANGE,
            ),
            (&[APINET], &["nodes", "nodes/status"], OWN),
            (&[METALNET], ALL, OWN),
            (&[""], &["nodes"], CHANGE),
            (&[""], &["namespaces"], READ),
            ASK,
            ASK_METALNETLET,
            COMMON,
            LEASES,
        ],
        paths: &[],
        group: Some(identity::METALNETLETS),
    },
    RoleRow {
        name: "apinet.openkcm.dev:system:apinetlets-bootstrapper",
        rules: &[ASK, ASK_APINETLET],
        paths: &[],
        group: Some(certificate::APINETLETS_BOOTSTRAP),
    },
    RoleRow {
        name: "apinet.openkcm.dev:system:metalnetlets-bootstrapper",
        rules: &[ASK, ASK_METALNETLET],
        paths: &[],
        group: Some(certificate::METALNETLETS_BOOTSTRAP),
    },
    RoleRow {
        name: "networking.metalnet.openkcm.dev:system:metalnets",
        rules: &[
            (
                &[METALNET],
                &["networks", "networkinterfaces", "loadbalancers"],
                CHANGE,
            ),
            (
                &[METALNET],
                &[
                    "networks/status",
                    "networkinterfaces/status",
                    "loadbalancers/status",
                ],
                CHANGE,
            ),
            (
                &[""],
                &["nodes", "nodes/status"],
                &["get", "list", "watch", "create", "patch", "update"],
            ),
            (&[""], &["namespaces"], READ),
            COMMON,
            LEASES,
        ],
        paths: &[],
        group: Some(identity::METALNETS),
    },
    RoleRow {
        name: "compute.openkcm.dev:system:machinepools",
        rules: &[
            (
                &[COMPUTE],
                &["machines", "machines/status", "machines/finalizers"],
                CHANGE,
            ),
            (
                &[COMPUTE],
                &["machinepools", "machinepools/status"],
                &["get", "list", "watch", "create", "patch", "update"],
            ),
            (&[COMPUTE], &["machineclasses"], READ),
            (&[NETWORKING], &["networks", "virtualips"], READ),
            (
                &[NETWORKING],
                &["networkinterfaces", "networkinterfaces/status"],
                CHANGE,
            ),
            (&[IPAM], &["prefixes"], READ),
            (&[""], &["namespaces"], READ),
            COMMON,
            LEASES,
        ],
        paths: &[],
        group: Some(identity::MACHINE_POOLS),
    },
    RoleRow {
        name: "networking.openkcm.dev:system:networkplugins",
        rules: &[
            (&[APINET], &["networks", "nodes"], READ),
            (&[APINET], &["networkinterfaces"], OWN),
            (&[""], &["namespaces"], READ),
            COMMON,
        ],
        paths: &[],
        group: Some(identity::NETWORK_PLUGINS),
    },
];

/// Creates what is missing and refreshes roles.
pub async fn run(region: &Arc<Region>) -> Outcome<()> {
    for name in namespace::BOOTSTRAP {
        create(
            region,
            "",
            "v1",
            "namespaces",
            name,
            json!({ "metadata": { "name": name } }),
        )
        .await?;
    }
    for role in ROLES {
        ensure_role(region, role).await?;
        if let Some(group) = role.group {
            let binding = json!({
                "metadata": bootstrap_metadata(role.name),
                "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": role.name },
                "subjects": [{ "apiGroup": RBAC, "kind": "Group", "name": group }],
            });
            create(
                region,
                RBAC,
                "v1",
                "clusterrolebindings",
                role.name,
                binding,
            )
            .await?;
        }
    }
    Ok(())
}

fn bootstrap_metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
        "annotations": { AUTOUPDATE: "true" },
    })
}

fn rules(role: &RoleRow) -> Vec<Value> {
    let resources = role.rules.iter().map(|(groups, resources, verbs)| {
        let mut rule = json!({ "apiGroups": groups, "resources": resources, "verbs": verbs });
        if let (true, Some(map)) = (*resources == [SIGNERS], rule.as_object_mut()) {
            map.insert("resourceNames".into(), json!([certificate::CLIENT_SIGNER]));
        }
        rule
    });
    let verbs: &[&str] = if role.paths == ["*"] { ALL } else { &["get"] };
    let paths =
        (!role.paths.is_empty()).then(|| json!({ "nonResourceURLs": role.paths, "verbs": verbs }));
    resources.chain(paths).collect()
}

async fn ensure_role(region: &Arc<Region>, role: &RoleRow) -> Outcome<()> {
    let document = json!({ "metadata": bootstrap_metadata(role.name), "rules": rules(role) });
    if create(
        region,
        RBAC,
        "v1",
        "clusterroles",
        role.name,
        document.clone(),
    )
    .await?
    {
        return Ok(());
    }
    let user = User::server();
    let write = write(region, RBAC, "v1", "clusterroles", role.name, &user)?;
    let Some(live) = write.live().await? else {
        return Ok(());
    };
    let kept = live
        .value
        .pointer("/metadata/annotations")
        .and_then(|all| all.get(AUTOUPDATE));
    if kept.and_then(Value::as_str) == Some("false")
        || live.value.get("rules") == document.get("rules")
    {
        return Ok(());
    }
    let mut value = live.value;
    if let (Some(map), Some(rules)) = (value.as_object_mut(), document.get("rules")) {
        map.insert("rules".into(), rules.clone());
    }
    write
        .put(Decoded {
            value,
            duplicates: Vec::new(),
        })
        .await
        .map(|_| ())
}

fn write<'a>(
    region: &'a Arc<Region>,
    group: &str,
    version: &str,
    plural: &str,
    name: &'a str,
    user: &'a User,
) -> Outcome<Write<'a>> {
    let kind = region
        .kinds
        .find(group, version, plural)
        .ok_or_else(|| Failure::internal(format!("kind {plural} is missing")))?;
    Write::new(
        region,
        kind,
        ("", name, Part::Main),
        user,
        &Query::default(),
        "apiserver",
    )
}

/// Whether the object was created; one that exists is left alone.
async fn create(
    region: &Arc<Region>,
    group: &str,
    version: &str,
    plural: &str,
    name: &str,
    value: Value,
) -> Outcome<bool> {
    let user = User::server();
    let write = write(region, group, version, plural, "", &user)?;
    match write
        .create(Decoded {
            value,
            duplicates: Vec::new(),
        })
        .await
    {
        Ok(_) => Ok(true),
        Err(failure) if failure.reason == Reason::AlreadyExists => Ok(false),
        Err(failure) => Err(Failure {
            message: format!("{plural} {name}: {}", failure.message),
            ..failure
        }),
    }
}
