//! Registers this machine as a core/v1 Node and keeps its lease fresh, where no kubelet does.

use std::time::Duration;

use api::k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use api::k8s_openapi::api::core::v1::Node;
use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use api::k8s_openapi::jiff::Timestamp;
use api::meta::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Where leases of nodes live.
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
const RENEW_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// Creates the Node if it does not exist and renews its lease until shutdown. Nothing else waits for this.
pub async fn register(client: Client, name: String, shutdown: CancellationToken) {
    let mut failed = false;
    loop {
        let renewed = tokio::time::timeout(RENEW_TIMEOUT, renew(&client, &name)).await;
        let renewed = renewed.unwrap_or_else(|late| Err(kube::Error::Service(Box::new(late))));
        let pause = match renewed {
            Ok(()) => {
                failed = false;
                RENEW_INTERVAL
            }
            Err(error) => {
                if !failed {
                    tracing::info!(node = name, err = %error, "the node could not be registered, will be retried");
                }
                failed = true;
                RETRY_INTERVAL
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn renew(client: &Client, name: &str) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    if nodes.get_opt(name).await?.is_none() {
        let labels = [(HOSTNAME_LABEL.to_owned(), name.to_owned())].into();
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        tolerate_existing(
            nodes
                .create(
                    &PostParams::default(),
                    &Node {
                        metadata,
                        ..Node::default()
                    },
                )
                .await,
        )?;
        tracing::info!(node = name, "node registered");
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let spec = LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    let patch = Patch::Merge(json!({ "spec": spec }));
    match leases.patch(name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let metadata = ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            };
            let lease = Lease {
                metadata,
                spec: Some(spec),
            };
            tolerate_existing(leases.create(&PostParams::default(), &lease).await)
        }
        other => other.map(|_| ()),
    }
}

fn tolerate_existing<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}
