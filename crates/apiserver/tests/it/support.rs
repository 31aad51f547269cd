//! A server, a client, and waiting without sleeping for a fixed time.

use apiserver::pki::Identity;
use apiserver::testing::{TestServer, spawn};
use http::{Method, Request, StatusCode};
use serde_json::Value;
use std::future::Future;
use std::time::{Duration, Instant};

/// Time after which a test that waits gives up.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub async fn server() -> TestServer {
    spawn().await.expect("the server starts")
}

/// A kube client for the administrator.
pub async fn client(server: &TestServer) -> kube::Client {
    client_of(&server.kubeconfig().expect("kubeconfig")).await
}

pub async fn client_as(server: &TestServer, user: &str, groups: &[&str]) -> kube::Client {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    let identity = Identity {
        user: user.to_owned(),
        groups,
    };
    client_of(&server.kubeconfig_for(&identity).expect("kubeconfig")).await
}

async fn client_of(kubeconfig: &str) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
    kube::Client::try_from(config.await.expect("a config")).expect("a client")
}

/// One request; the answer's code and document.
pub async fn call(
    client: &kube::Client,
    method: Method,
    path: &str,
    media_type: &str,
    body: &str,
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(path);
    if !media_type.is_empty() {
        request = request.header("content-type", media_type);
    }
    let request = request
        .body(kube::client::Body::from(body.as_bytes().to_vec()))
        .expect("a request");
    let response = client.send(request).await.expect("an answer");
    let code = response.status();
    let bytes = http_body_util::BodyExt::collect(response.into_body())
        .await
        .expect("a body")
        .to_bytes();
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
    (code, value)
}

pub async fn get(client: &kube::Client, path: &str) -> (StatusCode, Value) {
    call(client, Method::GET, path, "", "").await
}

pub async fn post(client: &kube::Client, path: &str, body: &Value) -> (StatusCode, Value) {
    call(
        client,
        Method::POST,
        path,
        "application/json",
        &body.to_string(),
    )
    .await
}

pub async fn put(client: &kube::Client, path: &str, body: &Value) -> (StatusCode, Value) {
    call(
        client,
        Method::PUT,
        path,
        "application/json",
        &body.to_string(),
    )
    .await
}

pub async fn delete(client: &kube::Client, path: &str) -> (StatusCode, Value) {
    call(client, Method::DELETE, path, "", "").await
}

pub async fn patch(
    client: &kube::Client,
    path: &str,
    kind: &str,
    body: &Value,
) -> (StatusCode, Value) {
    let media_type = match kind {
        "merge" => "application/merge-patch+json",
        "json" => "application/json-patch+json",
        "strategic" => "application/strategic-merge-patch+json",
        "apply" => "application/apply-patch+yaml",
        other => panic!("no patch type {other}"),
    };
    call(client, Method::PATCH, path, media_type, &body.to_string()).await
}

/// Tries until `attempt` yields something, or fails with `what`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
