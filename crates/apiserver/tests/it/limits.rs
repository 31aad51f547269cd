//! Overload, compression, health and shutdown, seen by a client that does not retry.

use crate::client::{Client, Credentials};
use crate::support::{eventually, server};
use apiserver::testing::TestServer;
use http::Method;
use serde_json::json;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn credentials(server: &TestServer) -> Credentials {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config");
    server.write_kubeconfig(&path).expect("a kubeconfig");
    Credentials::read(&path).expect("our kubeconfig")
}

pub(crate) async fn connect(server: &TestServer) -> Client {
    Client::connect(&credentials(server))
        .await
        .expect("a connection")
}

fn config_map(name: &str, bytes: usize) -> String {
    json!({ "metadata": { "name": name }, "data": { "a": "x".repeat(bytes) } }).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_are_refused_and_watches_go_on() {
    let server = server().await;
    let mut client = connect(&server).await;
    let mut watching = connect(&server).await;
    let path = format!("{CONFIG_MAPS}?watch=1");
    let mut watch = watching.stream(&path).await.expect("a watch");
    let limits = &server.running.region.limits;
    let all = limits
        .reads
        .acquire_many(limits.reads.available_permits() as u32)
        .await
        .expect("open");
    let response = client
        .answer("GET", CONFIG_MAPS, &[])
        .await
        .expect("an answer");
    assert_eq!(response.status(), 429);
    assert_eq!(
        response
            .headers()
            .get("retry-after")
            .map(|value| value.as_bytes()),
        Some(&b"1"[..])
    );
    drop(client);
    let mut writer = connect(&server).await;
    assert_eq!(
        writer
            .call(
                Method::POST,
                CONFIG_MAPS,
                "application/json",
                config_map("a", 1)
            )
            .await
            .expect("an answer")
            .0,
        201
    );
    assert!(
        watch.next().await.is_some(),
        "running watches are not limited"
    );
    drop(all);
    assert_eq!(writer.get(CONFIG_MAPS).await.expect("an answer").0, 200);
    let (_, metrics) = writer.get("/metrics").await.expect("an answer");
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    for line in [
        "openkcm_apiserver_rejected_requests_total 1",
        "apiserver_longrunning_requests 1",
        "apiserver_storage_objects{resource=\"configmaps\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_are_compressed_when_asked() {
    let server = server().await;
    let mut client = connect(&server).await;
    client
        .call(
            Method::POST,
            CONFIG_MAPS,
            "application/json",
            config_map("large", 200_000),
        )
        .await
        .expect("an answer");
    for (path, gzip) in [(CONFIG_MAPS, true), ("/version", false)] {
        let response = client
            .answer("GET", path, &[("accept-encoding", "gzip")])
            .await
            .expect("an answer");
        assert_eq!(
            response.headers().contains_key("content-encoding"),
            gzip,
            "{path}"
        );
        let bytes = http_body_util::BodyExt::collect(response.into_body())
            .await
            .expect("a body")
            .to_bytes();
        assert_eq!(bytes.starts_with(&[0x1f, 0x8b]), gzip);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_tagged_and_health_is_told() {
    let server = server().await;
    let mut client = connect(&server).await;
    let response = client
        .answer("GET", "/openapi/v3", &[])
        .await
        .expect("an answer");
    let tag = response.headers().get("etag").cloned().expect("an ETag");
    drop(http_body_util::BodyExt::collect(response.into_body()).await);
    let again = client
        .answer(
            "GET",
            "/openapi/v3",
            &[("if-none-match", tag.to_str().expect("text"))],
        )
        .await;
    let again = again.expect("an answer");
    assert_eq!(again.status(), 304);
    drop(http_body_util::BodyExt::collect(again.into_body()).await);
    for path in ["/livez", "/readyz", "/healthz", "/readyz/etcd", "/version/"] {
        assert_eq!(client.get(path).await.expect("an answer").0, 200, "{path}");
    }
    let response = client
        .answer(
            "GET",
            "/apis",
            &[(
                "accept",
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            )],
        )
        .await;
    let response = response.expect("an answer");
    assert!(
        response
            .headers()
            .get("content-type")
            .is_some_and(|value| value.as_bytes().ends_with(b"as=APIGroupDiscoveryList"))
    );
    drop(http_body_util::BodyExt::collect(response.into_body()).await);
    let response = client
        .answer("GET", CONFIG_MAPS, &[("accept", "application/cbor")])
        .await
        .expect("an answer");
    assert_eq!(response.status(), 406);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_carries_hundreds_of_watches() {
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    const WATCHES: usize = 250;
    let server = server().await;
    let stream = credentials(&server).open(&[b"h2"]).await.expect("TLS");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let mut bodies = Vec::new();
    for _ in 0..WATCHES {
        let uri = format!("https://127.0.0.1{CONFIG_MAPS}?watch=1");
        let request = http::Request::get(uri).body(Empty::<bytes::Bytes>::new());
        let response = sender.send_request(request.expect("a request")).await;
        bodies.push(response.expect("an answer").into_body());
    }
    let mut writer = connect(&server).await;
    let made = writer
        .call(
            Method::POST,
            CONFIG_MAPS,
            "application/json",
            config_map("a", 1),
        )
        .await;
    assert_eq!(made.expect("an answer").0, 201);
    for body in &mut bodies {
        let frame = body.frame().await.expect("an event").expect("a frame");
        let data = frame.into_data().expect("data");
        assert!(data.starts_with(b"{\"type\":\"ADDED\""), "{data:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_watches_cleanly() {
    let mut server = server().await;
    let mut watching = connect(&server).await;
    let mut watch = watching
        .stream(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=1"))
        .await
        .expect("a watch");
    server.running.stop().await;
    assert!(watch.next().await.is_none(), "the stream ends");
    eventually("the port is closed", || async {
        client_refused(&server).await.then_some(())
    })
    .await;
}

async fn client_refused(server: &TestServer) -> bool {
    tokio::net::TcpStream::connect(server.running.address)
        .await
        .is_err()
}
