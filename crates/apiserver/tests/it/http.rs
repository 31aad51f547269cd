//! The API at the level of requests: resource versions, watches, finalizers, allocation, rights.

use crate::support::{
    DEADLINE, call, client, client_as, delete, eventually, get, patch, post, put, server,
};
use apiserver::testing::TestServer;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const NETWORKS: &str =
    "/apis/core.apinet.openkcm.dev/v1alpha1/namespaces/openkcm-net-system/networks";
const NETWORK_IDS: &str = "/apis/core.apinet.openkcm.dev/v1alpha1/networkids";
const IPS: &str = "/apis/core.apinet.openkcm.dev/v1alpha1/namespaces/openkcm-net-system/ips";
const ADDRESSES: &str = "/apis/core.apinet.openkcm.dev/v1alpha1/ipaddresses";
const NICS: &str =
    "/apis/core.apinet.openkcm.dev/v1alpha1/namespaces/openkcm-net-system/networkinterfaces";

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "a": "b" } })
}

fn named(kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "core.apinet.openkcm.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn rev(value: &Value) -> u64 {
    text(value, "/metadata/resourceVersion")
        .parse()
        .expect("a resourceVersion")
}

async fn setup() -> (TestServer, kube::Client) {
    let server = server().await;
    let client = client(&server).await;
    (server, client)
}

/// The first `count` events of a watch.
async fn events(client: &kube::Client, path: &str, count: usize) -> Vec<Value> {
    let request = Request::get(path)
        .body(kube::client::Body::empty())
        .expect("a request");
    let response = client.send(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    let mut body = http_body_util::BodyStream::new(response.into_body());
    let mut text = Vec::new();
    let read = async {
        while let Some(frame) = body.try_next().await.expect("a frame") {
            if let Ok(data) = frame.into_data() {
                text.extend_from_slice(&data);
            }
            if text.iter().filter(|byte| **byte == b'\n').count() >= count {
                break;
            }
        }
    };
    tokio::time::timeout(DEADLINE, read)
        .await
        .expect("events in time");
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("a JSON line"))
        .collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| text(event, "/type")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_locked_by_resource_version() {
    let (_server, client) = setup().await;
    let (code, made) = post(&client, NETWORKS, &named("Network", "n", json!({}))).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let path = format!("{NETWORKS}/n");
    let mut unlocked = made.clone();
    unlocked["metadata"]["resourceVersion"] = Value::Null;
    let (code, answer) = put(&client, &path, &unlocked).await;
    assert_eq!(
        (code, text(&answer, "/reason")),
        (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
        "{answer}"
    );
    let mut labelled = made.clone();
    labelled["metadata"]["labels"] = json!({ "a": "b" });
    let (code, changed) = put(&client, &path, &labelled).await;
    assert_eq!(code, StatusCode::OK, "{changed}");
    assert!(rev(&changed) > rev(&made));
    assert_eq!(
        changed["metadata"]["generation"],
        made["metadata"]["generation"]
    );
    let (code, answer) = put(&client, &path, &labelled).await;
    assert_eq!(
        (code, text(&answer, "/reason")),
        (StatusCode::CONFLICT, "Conflict")
    );
    let (code, same) = put(&client, &path, &changed).await;
    assert_eq!(
        (code, rev(&same)),
        (StatusCode::OK, rev(&changed)),
        "a write that changes nothing keeps the revision"
    );
    let (_, answer) = put(
        &client,
        &format!("{NETWORKS}/absent"),
        &named("Network", "absent", json!({})),
    )
    .await;
    assert_ne!(text(&answer, "/status"), "Success");
    let precondition = json!({ "preconditions": { "uid": "other" } }).to_string();
    let (code, _) = call(
        &client,
        Method::DELETE,
        &path,
        "application/json",
        &precondition,
    )
    .await;
    assert_eq!(code, StatusCode::CONFLICT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_status_documents() {
    let (_server, client) = setup().await;
    let (code, answer) = get(&client, &format!("{CONFIG_MAPS}/x")).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert_eq!(text(&answer, "/message"), "configmaps \"x\" not found");
    assert_eq!(
        answer["details"],
        json!({ "name": "x", "kind": "configmaps" })
    );
    let bad: [(Method, &str, &str, &str, u16); 13] = [
        (Method::GET, "/apis/none/v1/things", "", "", 404),
        (
            Method::GET,
            "/api/v1/namespaces/default/configmaps?labelSelector=a%20b",
            "",
            "",
            400,
        ),
        (
            Method::GET,
            "/api/v1/configmaps?fieldSelector=data.a%3Db",
            "",
            "",
            400,
        ),
        (
            Method::GET,
            "/api/v1/configmaps?resourceVersion=x",
            "",
            "",
            422,
        ),
        (Method::GET, "/api/v1/configmaps?continue=%21", "", "", 400),
        (Method::POST, CONFIG_MAPS, "application/json", "{", 400),
        (Method::POST, CONFIG_MAPS, "application/json", "[]", 400),
        (Method::POST, CONFIG_MAPS, "application/cbor", "{}", 415),
        (
            Method::POST,
            "/api/v1/namespaces/absent/configmaps",
            "application/json",
            "{\"metadata\":{\"name\":\"a\"}}",
            404,
        ),
        (
            Method::POST,
            CONFIG_MAPS,
            "application/json",
            "{\"kind\":\"Secret\",\"metadata\":{\"name\":\"a\"}}",
            400,
        ),
        (
            Method::POST,
            CONFIG_MAPS,
            "application/json",
            "{\"metadata\":{\"name\":\"A\"}}",
            422,
        ),
        (Method::PUT, CONFIG_MAPS, "application/json", "{}", 405),
        (
            Method::PATCH,
            "/api/v1/namespaces/default/configmaps/x",
            "application/merge-patch+json",
            "{}",
            404,
        ),
    ];
    for (method, path, media_type, body, expected) in bad {
        let (code, answer) = call(&client, method.clone(), path, media_type, body).await;
        assert_eq!(
            (code.as_u16(), text(&answer, "/kind")),
            (expected, "Status"),
            "{method} {path}: {answer}"
        );
    }
    for mebibytes in [4, 16] {
        let data = "x".repeat(mebibytes << 20);
        let large = json!({ "metadata": { "name": "large" }, "data": { "a": data } });
        let (code, answer) = post(&client, CONFIG_MAPS, &large).await;
        assert_eq!(code, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_paged_at_one_revision() {
    let (_server, client) = setup().await;
    for index in 0..5 {
        post(&client, CONFIG_MAPS, &config_map(&format!("m{index}"))).await;
    }
    let (_, first) = get(&client, &format!("{CONFIG_MAPS}?&limit=2")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    post(&client, CONFIG_MAPS, &config_map("m9")).await;
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        assert_eq!(rev(&page), rev(&first));
        let items = page["items"].as_array().expect("items").clone();
        names.extend(
            items
                .iter()
                .map(|item| text(item, "/metadata/name").to_owned()),
        );
        let next = text(&page, "/metadata/continue").to_owned();
        if next.is_empty() {
            break;
        }
        page = get(&client, &format!("{CONFIG_MAPS}?limit=2&continue={next}"))
            .await
            .1;
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4"]);
    let (_, exact) = get(
        &client,
        &format!(
            "{CONFIG_MAPS}?resourceVersion={}&resourceVersionMatch=Exact",
            rev(&first)
        ),
    )
    .await;
    assert_eq!(exact["items"].as_array().map(Vec::len), Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_deliver_every_change_once() {
    let (_server, client) = setup().await;
    let (_, made) = post(&client, CONFIG_MAPS, &config_map("a")).await;
    let path = format!("{CONFIG_MAPS}/a");
    let (_, labelled) = patch(
        &client,
        &path,
        "merge",
        &json!({ "metadata": { "labels": { "x": "y" } } }),
    )
    .await;
    patch(
        &client,
        &path,
        "merge",
        &json!({ "metadata": { "labels": { "x": null } } }),
    )
    .await;
    delete(&client, &path).await;
    let from = format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", rev(&made));
    let all = events(&client, &from, 3).await;
    assert_eq!(types(&all), ["MODIFIED", "MODIFIED", "DELETED"]);
    assert!(
        rev(&all[0]["object"]) == rev(&labelled) && rev(&all[2]["object"]) > rev(&all[1]["object"])
    );
    let selected = events(&client, &format!("{from}&labelSelector=x%3Dy"), 2).await;
    assert_eq!(types(&selected), ["ADDED", "DELETED"]);
    assert_eq!(rev(&selected[1]["object"]), rev(&all[1]["object"]));
    post(&client, CONFIG_MAPS, &config_map("b")).await;
    let streamed =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&watch=1";
    let initial = events(&client, &format!("{CONFIG_MAPS}?{streamed}"), 2).await;
    assert_eq!(types(&initial), ["ADDED", "BOOKMARK"]);
    assert_eq!(
        text(
            &initial[1],
            "/object/metadata/annotations/k8s.io~1initial-events-end"
        ),
        "true"
    );
    let ended = events(
        &client,
        &format!(
            "{CONFIG_MAPS}?watch=1&resourceVersion={}&allowWatchBookmarks=1&timeoutSeconds=1",
            rev(&made)
        ),
        9,
    )
    .await;
    assert_eq!(
        types(&ended).last(),
        Some(&"BOOKMARK"),
        "a bookmark comes before the end"
    );
    let (code, _) = get(
        &client,
        &format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true"),
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let table = Request::get(format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(kube::client::Body::empty())
        .expect("a request");
    let body = client.send(table).await.expect("an answer").into_body();
    let bytes = http_body_util::BodyExt::collect(body)
        .await
        .expect("a body")
        .to_bytes();
    let event: Value = serde_json::from_slice(&bytes).expect("one event");
    assert_eq!(event["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_of_another_history_ends_the_watch_with_410() {
    let (_server, client) = setup().await;
    let seen = events(
        &client,
        &format!("{CONFIG_MAPS}?watch=1&resourceVersion=99999999"),
        1,
    )
    .await;
    assert_eq!(types(&seen), ["ERROR"]);
    assert_eq!(seen[0]["object"]["code"], 410);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_follow_their_owners() {
    let (_server, client) = setup().await;
    let (_, root) = post(&client, CONFIG_MAPS, &config_map("root")).await;
    let mut owner = root;
    for level in 0..4 {
        let mut child = config_map(&format!("level-{level}"));
        child["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "ConfigMap", "blockOwnerDeletion": true,
            "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        }]);
        owner = post(&client, CONFIG_MAPS, &child).await.1;
    }
    let mut stranger = config_map("stranger");
    stranger["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "root", "uid": "another" }]);
    post(&client, CONFIG_MAPS, &stranger).await;
    eventually("the object of an absent owner goes", || async {
        (get(&client, &format!("{CONFIG_MAPS}/stranger")).await.0 == StatusCode::NOT_FOUND)
            .then_some(())
    })
    .await;
    assert_eq!(
        get(&client, CONFIG_MAPS).await.1["items"]
            .as_array()
            .map(Vec::len),
        Some(5)
    );
    delete(
        &client,
        &format!("{CONFIG_MAPS}/root?propagationPolicy=Foreground"),
    )
    .await;
    eventually("the whole tree goes", || async {
        let (_, list) = get(&client, CONFIG_MAPS).await;
        (list["items"] == json!([])).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_and_their_numbers_appear_and_vanish_together() {
    let (_server, client) = setup().await;
    let (code, made) = post(&client, NETWORKS, &named("Network", "n", json!({}))).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let id = text(&made, "/spec/id").to_owned();
    let (code, lock) = get(&client, &format!("{NETWORK_IDS}/{id}")).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(lock["spec"]["claimRef"]["uid"], made["metadata"]["uid"]);
    assert_eq!(
        lock["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"],
        "one transaction"
    );
    let (code, answer) = post(
        &client,
        NETWORKS,
        &named("Network", "m", json!({ "id": id })),
    )
    .await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(text(&answer, "/details/causes/0/field"), "spec.id");
    for wrong in ["7", "016", "x", "16777216"] {
        let (code, _) = post(
            &client,
            NETWORKS,
            &named("Network", "m", json!({ "id": wrong })),
        )
        .await;
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}");
    }
    let (code, _) = delete(&client, &format!("{NETWORK_IDS}/{id}")).await;
    assert_eq!(code, StatusCode::CONFLICT, "a number in use stays");
    post(
        &client,
        &format!("{NETWORKS}?dryRun=All"),
        &named("Network", "dry", json!({})),
    )
    .await;
    assert_eq!(
        get(&client, NETWORK_IDS).await.1["items"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    delete(&client, &format!("{NETWORKS}/n")).await;
    assert_eq!(
        get(&client, &format!("{NETWORK_IDS}/{id}")).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_networks_get_different_numbers() {
    let (_server, client) = setup().await;
    let made = futures::stream::iter(0..200).map(|index| {
        let client = client.clone();
        async move {
            post(
                &client,
                NETWORKS,
                &named("Network", &format!("n{index}"), json!({})),
            )
            .await
        }
    });
    let made: Vec<_> = made.buffer_unordered(32).collect().await;
    let mut ids: Vec<&str> = made
        .iter()
        .map(|(code, network)| {
            assert_eq!(*code, StatusCode::CREATED, "{network}");
            text(network, "/spec/id")
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    assert_eq!(
        get(&client, NETWORK_IDS).await.1["items"]
            .as_array()
            .map(Vec::len),
        Some(200)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_locked_claimed_and_released() {
    let (_server, client) = setup().await;
    let (code, ip) = post(
        &client,
        IPS,
        &named(
            "IP",
            "static",
            json!({ "type": "Public", "ipFamily": "IPv4" }),
        ),
    )
    .await;
    assert_eq!(code, StatusCode::CREATED, "{ip}");
    let address = text(&ip, "/spec/ip").to_owned();
    let (_, lock) = get(&client, &format!("{ADDRESSES}/{address}")).await;
    assert_eq!(lock["spec"]["claimRef"]["uid"], ip["metadata"]["uid"]);
    let outside = json!({ "type": "Public", "ip": "10.0.0.1", "ipFamily": "IPv4" });
    assert_eq!(
        post(&client, IPS, &named("IP", "outside", outside)).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    let nic = json!({
        "networkRef": { "name": "n" }, "nodeRef": { "name": "p.h" }, "ips": ["10.0.0.2"],
        "publicIPs": [{ "name": "a", "ipFamily": "IPv4", "ip": address }, { "name": "b", "ipFamily": "IPv6" }],
    });
    let (code, made) = post(&client, NICS, &named("NetworkInterface", "nic", nic)).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let ephemeral = text(&made, "/spec/publicIPs/1/ip").to_owned();
    assert!(ephemeral.starts_with("2001:db8:1:"), "{made}");
    assert_eq!(
        get(
            &client,
            &format!("{ADDRESSES}/{}", ephemeral.replace(':', "%3A"))
        )
        .await
        .0,
        StatusCode::OK
    );
    let (_, claimed) = get(&client, &format!("{IPS}/static")).await;
    assert_eq!(claimed["spec"]["claimRef"]["uid"], made["metadata"]["uid"]);
    // Deleting an address in use waits for its user.
    assert_eq!(
        delete(&client, &format!("{IPS}/static")).await.0,
        StatusCode::OK
    );
    assert_eq!(
        get(&client, &format!("{ADDRESSES}/{address}")).await.0,
        StatusCode::OK
    );
    // A list without addresses keeps them.
    let same = json!({ "spec": { "publicIPs": [{ "name": "b", "ipFamily": "IPv6" }] } });
    let (code, kept) = patch(&client, &format!("{NICS}/nic"), "merge", &same).await;
    assert_eq!(
        (code, text(&kept, "/spec/publicIPs/0/ip")),
        (StatusCode::OK, ephemeral.as_str()),
        "{kept}"
    );
    assert_eq!(
        get(&client, &format!("{ADDRESSES}/{address}")).await.0,
        StatusCode::NOT_FOUND,
        "released with its last user"
    );
    assert_eq!(
        delete(&client, &format!("{NICS}/nic")).await.0,
        StatusCode::OK
    );
    for path in [ADDRESSES, IPS] {
        assert_eq!(get(&client, path).await.1["items"], json!([]), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_may_do_more_than_his_role() {
    let server = server().await;
    let jane = client_as(&server, "jane", &[]).await;
    let (code, answer) = get(&jane, CONFIG_MAPS).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        text(&answer, "/message"),
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(get(&jane, "/version").await.0, StatusCode::OK);
    assert_eq!(get(&jane, "/metrics").await.0, StatusCode::FORBIDDEN);
    let admin = client(&server).await;
    let metalnet = client_as(
        &server,
        "networking.metalnet.openkcm.dev:system:metalnet:h1",
        &["networking.metalnet.openkcm.dev:system:metalnets"],
    )
    .await;
    let node =
        |name: &str| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
    assert_eq!(
        post(&metalnet, "/api/v1/nodes", &node("h1")).await.0,
        StatusCode::CREATED
    );
    assert_eq!(
        post(&metalnet, "/api/v1/nodes", &node("h2")).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(get(&metalnet, NETWORKS).await.0, StatusCode::FORBIDDEN);
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "r" },
        "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"] }],
    });
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    assert_eq!(post(&admin, roles, &role).await.0, StatusCode::CREATED);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "b" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane" }],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(
        post(&admin, bindings, &binding).await.0,
        StatusCode::CREATED
    );
    eventually("jane may list", || async {
        (get(&jane, CONFIG_MAPS).await.0 == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(
        get(&jane, "/api/v1/configmaps").await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        post(&jane, CONFIG_MAPS, &config_map("x")).await.0,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_resumes_watches_without_a_new_list() {
    use apiserver::store::redb::{Options, RedbStore};
    use apiserver::testing::{ranges, spawn_with};
    let folder = tempfile::tempdir().expect("a folder");
    let open = || {
        std::sync::Arc::new(
            RedbStore::open(folder.path(), Options::default()).expect("the store opens"),
        )
    };
    let mut first = spawn_with(open(), ranges())
        .await
        .expect("the server starts");
    let admin = client(&first).await;
    let (_, made) = post(&admin, CONFIG_MAPS, &config_map("a")).await;
    delete(&admin, &format!("{CONFIG_MAPS}/a")).await;
    post(&admin, CONFIG_MAPS, &config_map("b")).await;
    first.running.stop().await;
    drop(admin);
    drop(first);
    let second = eventually("the store is released", || async {
        let store = RedbStore::open(folder.path(), Options::default()).ok()?;
        spawn_with(std::sync::Arc::new(store), ranges()).await.ok()
    })
    .await;
    let admin = client(&second).await;
    let seen = events(
        &admin,
        &format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", rev(&made)),
        2,
    )
    .await;
    assert_eq!(types(&seen), ["DELETED", "ADDED"]);
    assert_eq!(
        get(&admin, CONFIG_MAPS).await.1["items"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
}
