//! The health service.

use crate::harness::{DEADLINE, Server};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test]
async fn check() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel().await);
    for (service, status) in [
        ("", ServingStatus::Serving),
        ("dpdkironcore.v1.DPDKironcore", ServingStatus::Serving),
        ("somebody.else", ServingStatus::ServiceUnknown),
    ] {
        let reply = client.check(ask(service)).await.unwrap().into_inner();
        assert_eq!(reply.status(), status, "\"{service}\"");
    }
}

#[tokio::test]
async fn watch_tells_the_end() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel().await);
    let unknown = client.watch(ask("somebody.else")).await.unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.message()),
        (Code::NotFound, "Service not found")
    );
    let mut stream = client.watch(ask("")).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    server.shutdown.cancel();
    let next = tokio::time::timeout(DEADLINE, stream.message())
        .await
        .expect("a change");
    assert_eq!(next.unwrap().unwrap().status(), ServingStatus::NotServing);
    let end = tokio::time::timeout(DEADLINE, stream.message())
        .await
        .expect("an end");
    assert_eq!(end.unwrap_err().code(), Code::Cancelled);
}
