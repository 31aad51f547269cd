//! Rules that every kind obeys: unknown fields, generated names, dry runs, generations, deletion, revisions of lists, expired pages.

use crate::limits::connect;
use crate::support::{call, client, client_as, delete, eventually, get, patch, post, put, server};
use apiserver::testing::TestServer;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const NETWORKS: &str = "/apis/networking.openkcm.dev/v1alpha1/namespaces/default/networks";
const NICS: &str = "/apis/networking.openkcm.dev/v1alpha1/namespaces/default/networkinterfaces";

async fn setup() -> (TestServer, kube::Client) {
    let server = server().await;
    let client = client(&server).await;
    (server, client)
}

fn config_map(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

fn rev(object: &Value) -> &str {
    object["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision")
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_and_duplicate_fields_are_refused_told_or_dropped() {
    let (_server, client) = setup().await;
    let body = r#"{"metadata":{"name":"NAME","labels":{"a":"1","a":"2"}},"spec":{"typo":1}}"#;
    for (validation, code, told) in [
        ("Strict", 400, 0),
        ("Warn", 201, 2),
        ("Ignore", 201, 0),
        ("", 201, 2),
    ] {
        let body = body.replace("NAME", &format!("n{}", validation.to_lowercase()));
        let request = Request::post(format!("{NETWORKS}?fieldValidation={validation}"))
            .header("content-type", "application/json")
            .body(kube::client::Body::from(body.into_bytes()))
            .expect("a request");
        let response = client.send(request).await.expect("an answer");
        assert_eq!(response.status().as_u16(), code, "{validation}");
        let warnings = response.headers().get_all("warning").iter();
        let warnings: Vec<&str> = warnings.filter_map(|value| value.to_str().ok()).collect();
        assert_eq!(warnings.len(), told, "{validation}: {warnings:?}");
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await;
        let answer: Value =
            serde_json::from_slice(&bytes.expect("a body").to_bytes()).expect("JSON");
        let expected = [
            r#"unknown field "spec.typo""#,
            r#"duplicate field "metadata.labels.a""#,
        ];
        if code == 400 {
            let message = answer["message"].as_str().expect("a message");
            assert!(
                expected.iter().all(|text| message.contains(text)),
                "{message}"
            );
        } else {
            assert_eq!(answer["spec"].get("typo"), None);
            assert_eq!(answer["metadata"]["labels"]["a"], "2");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_generated() {
    let (_server, client) = setup().await;
    let long = "p".repeat(80);
    let mut seen = std::collections::BTreeSet::new();
    for prefix in ["a-", "a-", "a-", long.as_str()] {
        let (code, made) = post(
            &client,
            CONFIG_MAPS,
            &json!({ "metadata": { "generateName": prefix } }),
        )
        .await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        let name = made["metadata"]["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        let kept = prefix.len().min(58);
        assert!(
            name.len() == kept + 5 && name.starts_with(&prefix[..kept]),
            "{name}"
        );
        let suffix = &name[kept..];
        assert!(
            suffix
                .bytes()
                .all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b)),
            "{name}"
        );
        assert!(seen.insert(name));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_runs_answer_and_change_nothing() {
    let (_server, client) = setup().await;
    let (_, kept) = post(&client, CONFIG_MAPS, &config_map("kept")).await;
    let kept_path = format!("{CONFIG_MAPS}/kept?dryRun=All&fieldManager=test");
    let before = get(&client, CONFIG_MAPS).await.1;
    let new = format!("{CONFIG_MAPS}?dryRun=All");
    let (code, answer) = post(
        &client,
        &new,
        &json!({ "metadata": { "generateName": "g-" } }),
    )
    .await;
    assert_eq!(code, StatusCode::CREATED);
    assert!(
        answer["metadata"]["name"]
            .as_str()
            .is_some_and(|name| name.len() == 7),
        "{answer}"
    );
    assert_eq!(
        post(&client, &new, &config_map("kept")).await.0,
        StatusCode::CONFLICT
    );
    assert_eq!(
        post(&client, &new, &config_map("Bad")).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    let mut changed = kept.clone();
    changed["data"] = json!({ "a": "b" });
    let (code, answer) = put(&client, &kept_path, &changed).await;
    assert_eq!((code, &answer["data"]["a"]), (StatusCode::OK, &json!("b")));
    let apply = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "kept" }, "data": { "a": "b" } });
    for (kind, body) in [
        ("merge", json!({ "data": { "a": "b" } })),
        ("strategic", json!({ "data": { "a": "b" } })),
        (
            "json",
            json!([{ "op": "add", "path": "/data", "value": { "a": "b" } }]),
        ),
        ("apply", apply.clone()),
    ] {
        let (code, answer) = patch(&client, &kept_path, kind, &body).await;
        assert_eq!(
            (code, &answer["data"]["a"]),
            (StatusCode::OK, &json!("b")),
            "{kind}: {answer}"
        );
    }
    let fresh = format!("{CONFIG_MAPS}/fresh?dryRun=All&fieldManager=test");
    let mut named = apply;
    named["metadata"]["name"] = json!("fresh");
    assert_eq!(
        patch(&client, &fresh, "apply", &named).await.0,
        StatusCode::CREATED
    );
    assert_eq!(delete(&client, &kept_path).await.0, StatusCode::OK);
    assert_eq!(delete(&client, &new).await.0, StatusCode::OK);
    assert_eq!(
        get(&client, CONFIG_MAPS).await.1,
        before,
        "no object and no revision came of it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generations_count_changes_of_the_specification() {
    let (_server, client) = setup().await;
    let nic = json!({ "metadata": { "name": "n" }, "spec": { "networkRef": { "name": "x" }, "ipFamilies": ["IPv4"], "ips": [{ "value": "10.0.0.1" }] }, "status": { "state": "Available" } });
    let (code, made) = post(&client, NICS, &nic).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    assert_ne!(
        made.pointer("/status/state"),
        Some(&json!("Available")),
        "status is not written here"
    );
    let path = format!("{NICS}/n");
    let status = format!("{path}/status");
    for (at, patch_body, generation, label) in [
        (
            &path,
            json!({ "metadata": { "labels": { "a": "b" } } }),
            1,
            "metadata does not count",
        ),
        (
            &path,
            json!({ "status": { "state": "Error" } }),
            1,
            "status is not written here",
        ),
        (
            &status,
            json!({ "status": { "state": "Available" } }),
            1,
            "status does not count",
        ),
        (
            &status,
            json!({ "spec": { "machineRef": { "name": "m", "uid": "u" } } }),
            1,
            "spec is not written here",
        ),
        (
            &path,
            json!({ "spec": { "machineRef": { "name": "m", "uid": "u" } } }),
            2,
            "spec counts",
        ),
        (
            &path,
            json!({ "spec": { "machineRef": { "name": "m", "uid": "u" } } }),
            2,
            "no change does not count",
        ),
    ] {
        let (code, answer) = patch(&client, at, "merge", &patch_body).await;
        assert_eq!(code, StatusCode::OK, "{label}: {answer}");
        assert_eq!(
            answer["metadata"]["generation"], generation,
            "{label}: {answer}"
        );
    }
    let (_, last) = get(&client, &path).await;
    assert_eq!(last["status"]["state"], "Available");
    let (_, same) = patch(
        &client,
        &path,
        "merge",
        &json!({ "metadata": { "labels": { "a": "b" } } }),
    )
    .await;
    assert_eq!(
        rev(&same),
        rev(&last),
        "a write that changes nothing keeps the revision"
    );
}

/// What a status says is written through its own door only, and nothing else is written through that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn specification_and_status_are_written_apart() {
    let (_server, client) = setup().await;
    let net = json!({ "name": "x" });
    let public = json!({ "type": "Public", "ipFamily": "IPv4", "networkRef": net });
    let ips = json!({ "ips": ["203.0.113.9"] });
    let policy =
        json!({ "policyTypes": ["Ingress"], "networkRef": net, "networkInterfaceSelector": {} });
    let condition = json!({ "type": "Ready", "status": "True", "reason": "Said", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let balancer = json!({ "type": "Public", "ipFamilies": ["IPv4"], "networkRef": net, "ports": [{ "port": 80 }] });
    for (group, plural, spec, status) in [
        (
            "networking",
            "networks",
            json!({ "peerings": [{ "name": "p", "networkRef": net }] }),
            json!({ "state": "Available" }),
        ),
        (
            "networking",
            "virtualips",
            json!({ "type": "Public", "ipFamily": "IPv4" }),
            json!({ "ip": "203.0.113.9" }),
        ),
        ("networking", "loadbalancers", balancer, ips.clone()),
        ("networking", "natgateways", public, ips),
        (
            "networking",
            "networkpolicies",
            policy,
            json!({ "conditions": [condition] }),
        ),
        (
            "ipam",
            "prefixes",
            json!({ "prefix": "10.0.0.0/8" }),
            json!({ "phase": "Allocated" }),
        ),
        (
            "compute",
            "machines",
            json!({ "machineClassRef": { "name": "small" } }),
            json!({ "state": "Running" }),
        ),
    ] {
        let all = format!("/apis/{group}.openkcm.dev/v1alpha1/namespaces/default/{plural}");
        let body = json!({ "metadata": { "name": "o" }, "spec": spec, "status": status });
        let (field, word) = status
            .as_object()
            .and_then(|all| all.iter().next())
            .expect("a field");
        let (code, made) = post(&client, &all, &body).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        assert_ne!(&made["status"][field], word, "{plural}: a new object");
        let path = format!("{all}/o");
        let mut forged = made.clone();
        forged["status"] = status.clone();
        let (code, kept) = put(&client, &path, &forged).await;
        assert_eq!(code, StatusCode::OK, "{kept}");
        assert_ne!(&kept["status"][field], word, "{plural}: a changed object");
        let both = json!({ "spec": null, "status": status });
        let (code, told) = patch(&client, &format!("{path}/status"), "merge", &both).await;
        assert_eq!(code, StatusCode::OK, "{told}");
        assert_eq!(told["spec"], made["spec"], "{plural}");
        assert_eq!(&told["status"][field], word, "{plural}");
        let mut plain = told.clone();
        plain.as_object_mut().expect("an object").remove("status");
        let (code, kept) = put(&client, &path, &plain).await;
        assert_eq!(code, StatusCode::OK, "{kept}");
        assert_eq!(
            &kept["status"][field], word,
            "{plural}: kept by a change without status"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_waits_for_finalizers() {
    let (_server, client) = setup().await;
    let path = format!("{CONFIG_MAPS}/f");
    let body = json!({ "metadata": { "name": "f", "finalizers": ["example.org/a"] } });
    let (_, made) = post(&client, CONFIG_MAPS, &body).await;
    let wrong = json!({ "preconditions": { "uid": "other" } }).to_string();
    let (code, _) = call(&client, Method::DELETE, &path, "application/json", &wrong).await;
    assert_eq!(code, StatusCode::CONFLICT);
    let (code, first) = delete(&client, &path).await;
    assert_eq!(code, StatusCode::OK);
    assert!(
        first["metadata"]["deletionTimestamp"].is_string(),
        "{first}"
    );
    assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 0);
    let (code, second) = delete(&client, &path).await;
    assert_eq!(
        (code, rev(&second)),
        (StatusCode::OK, rev(&first)),
        "nothing changes"
    );
    let (code, answer) = post(&client, CONFIG_MAPS, &config_map("f")).await;
    assert_eq!(
        (code, &answer["reason"]),
        (StatusCode::CONFLICT, &json!("AlreadyExists"))
    );
    let more = json!({ "metadata": { "finalizers": ["example.org/a", "example.org/b"] } });
    let (code, answer) = patch(&client, &path, "merge", &more).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let undead = json!({ "metadata": { "deletionTimestamp": null, "labels": { "a": "b" } } });
    let (_, answer) = patch(&client, &path, "merge", &undead).await;
    assert!(
        answer["metadata"]["deletionTimestamp"].is_string(),
        "{answer}"
    );
    let (code, _) = patch(
        &client,
        &path,
        "merge",
        &json!({ "metadata": { "finalizers": null } }),
    )
    .await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(get(&client, &path).await.0, StatusCode::NOT_FOUND);
    let (code, again) = post(&client, CONFIG_MAPS, &config_map("f")).await;
    assert_eq!(code, StatusCode::CREATED);
    assert_ne!(again["metadata"]["uid"], made["metadata"]["uid"]);
}

/// `REV` is the current revision, `PAGE` a token.
const REVISIONS: &[(&str, u16)] = &[
    ("", 200),
    ("resourceVersion=0", 200),
    ("resourceVersion=REV", 200),
    ("limit=1", 200),
    ("limit=1&resourceVersion=REV", 200),
    ("limit=-1", 200),
    ("limit=x", 400),
    ("resourceVersionMatch=Exact", 422),
    ("resourceVersionMatch=NotOlderThan", 422),
    ("resourceVersion=0&resourceVersionMatch=Exact", 422),
    ("resourceVersion=0&resourceVersionMatch=NotOlderThan", 200),
    ("resourceVersion=REV&resourceVersionMatch=Exact", 200),
    ("resourceVersion=REV&resourceVersionMatch=NotOlderThan", 200),
    ("resourceVersion=REV&resourceVersionMatch=Newer", 422),
    ("resourceVersion=-1", 422),
    ("continue=PAGE", 200),
    ("continue=PAGE&limit=1", 200),
    ("continue=PAGE&resourceVersion=0", 200),
    ("continue=PAGE&resourceVersion=REV", 400),
    ("continue=PAGE&resourceVersionMatch=Exact", 422),
    (
        "watch=1&timeoutSeconds=1&resourceVersionMatch=NotOlderThan",
        422,
    ),
    ("watch=1&timeoutSeconds=1&sendInitialEvents=true", 422),
    (
        "watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=Exact",
        422,
    ),
    ("watch=1&timeoutSeconds=x", 400),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_of_lists() {
    let (_server, client) = setup().await;
    for name in ["a", "b", "c"] {
        post(&client, CONFIG_MAPS, &config_map(name)).await;
    }
    let (_, page) = get(&client, &format!("{CONFIG_MAPS}?limit=1")).await;
    let token = page["metadata"]["continue"].as_str().expect("a token");
    let mut wrong = Vec::new();
    for (query, expected) in REVISIONS {
        let query = query.replace("REV", rev(&page)).replace("PAGE", token);
        let (code, answer) = get(&client, &format!("{CONFIG_MAPS}?{query}")).await;
        if code.as_u16() != *expected {
            wrong.push(format!("{query}: {code}, not {expected}: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// kube's client would ask again and again, as it is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_nobody_has_yet_is_waited_for_then_refused() {
    let server = server().await;
    let mut client = connect(&server).await;
    let (code, body) = client
        .get(&format!("{CONFIG_MAPS}?resourceVersion=99999999"))
        .await
        .expect("an answer");
    assert_eq!(code, 504);
    let answer: Value = serde_json::from_slice(&body).expect("a status");
    assert_eq!(answer["details"]["retryAfterSeconds"], 1);
    assert_eq!(
        answer["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_page_offers_to_go_on() {
    let (server, client) = setup().await;
    for name in ["a", "c", "e"] {
        post(&client, CONFIG_MAPS, &config_map(name)).await;
    }
    let (_, page) = get(&client, &format!("{CONFIG_MAPS}?limit=1")).await;
    let token = page["metadata"]["continue"].as_str().expect("a token");
    post(&client, CONFIG_MAPS, &config_map("d")).await;
    let store = &server.running.region.store;
    store
        .compact(store.current().await)
        .await
        .expect("compacted");
    let (code, answer) = get(&client, &format!("{CONFIG_MAPS}?limit=1&continue={token}")).await;
    assert_eq!(
        (code, &answer["reason"]),
        (StatusCode::GONE, &json!("Expired"))
    );
    let token = answer["metadata"]["continue"].as_str().expect("a way on");
    let (code, rest) = get(&client, &format!("{CONFIG_MAPS}?continue={token}")).await;
    assert_eq!((code, names(&rest)), (StatusCode::OK, vec!["c", "d", "e"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_impersonate_is_treated_as_the_other() {
    let (server, admin) = setup().await;
    let jane = client_as(&server, "jane", &[]).await;
    for (client, user, group, expected) in [
        (&admin, "jane", "", 403),
        (&admin, "jane", "system:masters", 200),
        (&admin, "", "system:masters", 400),
        (&jane, "openkcm:admin", "", 403),
        (&jane, "jane", "system:masters", 403),
    ] {
        let mut request = Request::get(CONFIG_MAPS);
        for (header, value) in [("impersonate-user", user), ("impersonate-group", group)] {
            if !value.is_empty() {
                request = request.header(header, value);
            }
        }
        let request = request
            .body(kube::client::Body::empty())
            .expect("a request");
        let response = client.send(request).await.expect("an answer");
        assert_eq!(response.status().as_u16(), expected, "{user} {group}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wide_and_deep_family_goes_with_its_ancestor() {
    const WIDE: usize = 200;
    const DEEP: usize = 4;
    let (_server, client) = setup().await;
    let made = |name: String, owner: Option<Value>| {
        let client = &client;
        async move {
            let mut body = config_map(&name);
            if let Some(owner) = owner {
                let meta = &owner["metadata"];
                body["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": meta["name"], "uid": meta["uid"] }]);
            }
            let (code, answer) = post(client, CONFIG_MAPS, &body).await;
            assert_eq!(code, StatusCode::CREATED, "{answer}");
            answer
        }
    };
    let root = made("root".into(), None).await;
    let bystander = made("bystander".into(), None).await;
    for child in 0..WIDE {
        let mut above = made(format!("c{child}"), Some(root.clone())).await;
        if child % 50 == 0 {
            for level in 0..DEEP {
                above = made(format!("c{child}-{level}"), Some(above)).await;
            }
        }
    }
    // A reference to a predecessor of the same name: that owner is gone, whoever is called so now.
    let mut stale = bystander.clone();
    stale["metadata"]["uid"] = json!("00000000-0000-0000-0000-000000000000");
    made("stale".into(), Some(stale)).await;
    delete(
        &client,
        &format!("{CONFIG_MAPS}/root?propagationPolicy=Background"),
    )
    .await;
    eventually("the family is gone", || async {
        let (_, list) = get(&client, CONFIG_MAPS).await;
        (names(&list) == ["bystander"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_takes_nothing_while_it_ends() {
    let (_server, client) = setup().await;
    let namespaces = "/api/v1/namespaces";
    let (_, made) = post(
        &client,
        namespaces,
        &json!({ "metadata": { "name": "ending" } }),
    )
    .await;
    assert_eq!(
        made["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "ending"
    );
    assert_eq!(made["status"]["phase"], "Active");
    let inside = format!("{namespaces}/ending/configmaps");
    let held = json!({ "metadata": { "name": "held", "finalizers": ["example.org/a"] } });
    assert_eq!(post(&client, &inside, &held).await.0, StatusCode::CREATED);
    assert_eq!(
        post(&client, &inside, &config_map("loose")).await.0,
        StatusCode::CREATED
    );
    let path = format!("{namespaces}/ending");
    delete(&client, &path).await;
    let (code, answer) = post(&client, &inside, &config_map("late")).await;
    assert_eq!(code, StatusCode::FORBIDDEN, "{answer}");
    assert_eq!(
        answer["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    eventually("the condition names what is left", || async {
        let (_, now) = get(&client, &path).await;
        let condition = &now["status"]["conditions"][0];
        let message = condition["message"].as_str().unwrap_or_default();
        (now["status"]["phase"] == "Terminating"
            && message.contains("configmaps has 1 resource instances"))
        .then_some(())
    })
    .await;
    assert_eq!(names(&get(&client, &inside).await.1), ["held"]);
    let (code, _) = patch(
        &client,
        &format!("{inside}/held"),
        "merge",
        &json!({ "metadata": { "finalizers": null } }),
    )
    .await;
    assert_eq!(code, StatusCode::OK);
    eventually("the namespace is gone", || async {
        (get(&client, &path).await.0 == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
}
