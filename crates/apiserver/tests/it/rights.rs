//! Who may do what: every identity of the region against a table of actions, as `kubectl auth can-i` asks.

use crate::support::{client, client_as, get, patch, post, put, server};
use http::StatusCode;
use serde_json::{Value, json};

const APINET: &str = "core.apinet.openkcm.dev";
const NETWORKING: &str = "networking.openkcm.dev";
const METALNET: &str = "networking.metalnet.openkcm.dev";
const COMPUTE: &str = "compute.openkcm.dev";

/// Identities: user, group.
const WHO: [(&str, &str); 7] = [
    ("openkcm:admin", "system:masters"),
    (
        "openkcm:system:controller-manager",
        "openkcm:system:controllers",
    ),
    (
        "apinet.openkcm.dev:system:apinetlet:openkcm-net-system",
        "apinet.openkcm.dev:system:apinetlets",
    ),
    (
        "apinet.openkcm.dev:system:metalnetlet:lab",
        "apinet.openkcm.dev:system:metalnetlets",
    ),
    (
        "networking.metalnet.openkcm.dev:system:metalnet:h1",
        "networking.metalnet.openkcm.dev:system:metalnets",
    ),
    (
        "compute.openkcm.dev:system:machinepool:h1",
        "compute.openkcm.dev:system:machinepools",
    ),
    (
        "networking.openkcm.dev:system:networkplugin:h1",
        "networking.openkcm.dev:system:networkplugins",
    ),
];

/// Verb, group, resource, and who of the above may: one letter each, `y` or `-`.
const TABLE: &[(&str, &str, &str, &str)] = &[
    ("list", NETWORKING, "networks", "yyy--y-"),
    ("create", NETWORKING, "networks", "yy-----"),
    ("update", NETWORKING, "networks", "yyy----"),
    ("update", NETWORKING, "networks/status", "yyy----"),
    ("update", NETWORKING, "networkinterfaces/status", "yyy--y-"),
    ("delete", NETWORKING, "networkinterfaces", "yy-----"),
    ("patch", NETWORKING, "virtualips/status", "yyy----"),
    ("create", APINET, "networks", "yyy----"),
    ("create", APINET, "ips", "yyy----"),
    ("delete", APINET, "ipaddresses", "yy-----"),
    ("get", APINET, "networks", "yyyy--y"),
    ("create", APINET, "networkinterfaces", "yyy---y"),
    ("patch", APINET, "networkinterfaces/status", "yy-y---"),
    ("create", APINET, "nodes", "yy-y---"),
    ("create", METALNET, "networkinterfaces", "y--y---"),
    ("patch", METALNET, "networkinterfaces/status", "y--yy--"),
    ("delete", METALNET, "networks", "y--y---"),
    ("list", COMPUTE, "machines", "yy---y-"),
    ("create", COMPUTE, "machines", "yy-----"),
    ("patch", COMPUTE, "machines/status", "yy---y-"),
    ("create", COMPUTE, "machinepools", "yy---y-"),
    ("create", "", "nodes", "y---y--"),
    ("list", "", "secrets", "yy-----"),
    ("create", "", "secrets", "y------"),
    ("create", "", "namespaces", "y------"),
    ("create", "events.k8s.io", "events", "yyyyyyy"),
    ("update", "coordination.k8s.io", "leases", "yyyyyy-"),
    (
        "create",
        "rbac.authorization.k8s.io",
        "clusterroles",
        "y------",
    ),
    (
        "create",
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "yyyyyyy",
    ),
    (
        "create",
        "authorization.k8s.io",
        "subjectaccessreviews",
        "yy-----",
    ),
    (
        "create",
        "certificates.k8s.io",
        "certificatesigningrequests",
        "y-yy---",
    ),
    (
        "update",
        "certificates.k8s.io",
        "certificatesigningrequests/approval",
        "yy-----",
    ),
    (
        "create",
        "certificates.k8s.io",
        "certificatesigningrequests/apinetletclient",
        "y-y----",
    ),
    (
        "create",
        "certificates.k8s.io",
        "certificatesigningrequests/metalnetletclient",
        "y--y---",
    ),
    ("impersonate", "", "users", "y------"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_identity_may_do_its_work_and_nothing_else() {
    let server = server().await;
    let mut wrong = Vec::new();
    for (at, (user, group)) in WHO.iter().enumerate() {
        let client = client_as(&server, user, &[group]).await;
        for (verb, api_group, resource, expected) in TABLE {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let review = json!({ "spec": { "resourceAttributes": {
                "verb": verb, "group": api_group, "resource": resource, "subresource": subresource, "namespace": "openkcm-net-system",
            } } });
            let (code, answer) = post(
                &client,
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                &review,
            )
            .await;
            assert_eq!(code, StatusCode::CREATED, "{answer}");
            let allowed = answer.pointer("/status/allowed").and_then(Value::as_bool) == Some(true);
            if allowed != (expected.as_bytes().get(at) == Some(&b'y')) {
                wrong.push(format!(
                    "{user}: {verb} {resource}/{subresource} in {api_group:?}: {allowed}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_write_only_what_belongs_to_their_place() {
    let server = server().await;
    let admin = client(&server).await;
    let [_, _, apinetlet, metalnetlet, metalnet, pool, plugin] = WHO;
    let nics =
        "/apis/core.apinet.openkcm.dev/v1alpha1/namespaces/openkcm-net-system/networkinterfaces";
    let nic = |name: &str, node: &str| json!({ "metadata": { "name": name }, "spec": { "networkRef": { "name": "n" }, "nodeRef": { "name": node } } });
    let provider = client_as(&server, plugin.0, &[plugin.1]).await;
    assert_eq!(
        post(&provider, nics, &nic("own", "lab.h1")).await.0,
        StatusCode::CREATED
    );
    assert_eq!(
        post(&provider, nics, &nic("foreign", "lab.h2")).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        post(&admin, nics, &nic("other", "far.h1")).await.0,
        StatusCode::CREATED
    );
    let let_of_lab = client_as(&server, metalnetlet.0, &[metalnetlet.1]).await;
    for (name, expected) in [("own", StatusCode::OK), ("other", StatusCode::FORBIDDEN)] {
        let path = format!("{nics}/{name}/status");
        let (_, mut object) = get(&admin, &format!("{nics}/{name}")).await;
        object["status"] = json!({ "state": "Ready" });
        assert_eq!(put(&let_of_lab, &path, &object).await.0, expected, "{name}");
    }
    let networks = |namespace: &str| {
        format!("/apis/core.apinet.openkcm.dev/v1alpha1/namespaces/{namespace}/networks")
    };
    let network = json!({ "metadata": { "name": "n" }, "spec": {} });
    let apinetlet = client_as(&server, apinetlet.0, &[apinetlet.1]).await;
    assert_eq!(
        post(&apinetlet, &networks("openkcm-net-system"), &network)
            .await
            .0,
        StatusCode::CREATED
    );
    assert_eq!(
        post(&apinetlet, &networks("default"), &network).await.0,
        StatusCode::FORBIDDEN
    );
    let poollet = client_as(&server, pool.0, &[pool.1]).await;
    let pools = "/apis/compute.openkcm.dev/v1alpha1/machinepools";
    let made =
        |name: &str| json!({ "metadata": { "name": name }, "spec": { "providerID": "x://y" } });
    assert_eq!(
        post(&poollet, pools, &made("h1")).await.0,
        StatusCode::CREATED
    );
    assert_eq!(
        post(&poollet, pools, &made("h2")).await.0,
        StatusCode::FORBIDDEN
    );
    let metalnet = client_as(&server, metalnet.0, &[metalnet.1]).await;
    assert_eq!(
        get(&metalnet, &networks("openkcm-net-system")).await.0,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_hands_out_rights_that_he_does_not_have() {
    let server = server().await;
    let admin = client(&server).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let binding = |name: &str, role: &str| {
        json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane" }],
        })
    };
    assert_eq!(
        post(
            &admin,
            &format!("{rbac}/rolebindings"),
            &binding("a", "admin")
        )
        .await
        .0,
        StatusCode::CREATED
    );
    let jane = client_as(&server, "jane", &[]).await;
    let role = |resource: &str| json!({ "metadata": { "name": resource }, "rules": [{ "apiGroups": [""], "resources": [resource], "verbs": ["get"] }] });
    let roles = format!("{rbac}/roles");
    crate::support::eventually("jane has her role", || async {
        (get(&jane, &roles).await.0 == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(
        post(&jane, &roles, &role("configmaps")).await.0,
        StatusCode::CREATED
    );
    assert_eq!(
        post(&jane, &roles, &role("nodes")).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        post(
            &jane,
            &format!("{rbac}/rolebindings"),
            &binding("b", "cluster-admin")
        )
        .await
        .0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        post(
            &jane,
            &format!("{rbac}/rolebindings"),
            &binding("c", "view")
        )
        .await
        .0,
        StatusCode::CREATED
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_that_creates_needs_the_right_to_create() {
    let server = server().await;
    let admin = client(&server).await;
    let [_, _, _, _, metalnet, ..] = WHO;
    let metalnet = client_as(&server, metalnet.0, &[metalnet.1]).await;
    let path = "/apis/networking.metalnet.openkcm.dev/v1alpha1/namespaces/default/networks/n";
    let network = |label: &str| {
        json!({
            "apiVersion": "networking.metalnet.openkcm.dev/v1alpha1", "kind": "Network",
            "metadata": { "name": "n", "labels": { label: "x" } }, "spec": { "id": 300 },
        })
    };
    let by = |manager: &str| format!("{path}?fieldManager={manager}");
    let (code, answer) = patch(&metalnet, &by("m"), "apply", &network("a")).await;
    assert_eq!(code, StatusCode::FORBIDDEN, "{answer}");
    assert!(
        answer["message"]
            .as_str()
            .is_some_and(|text| text.contains("cannot create resource")),
        "{answer}"
    );
    let (code, answer) = patch(&admin, &by("admin"), "apply", &network("a")).await;
    assert_eq!(code, StatusCode::CREATED, "{answer}");
    let (code, answer) = patch(&metalnet, &by("m"), "apply", &network("a")).await;
    assert_eq!(code, StatusCode::OK, "what exists he may patch: {answer}");
}
