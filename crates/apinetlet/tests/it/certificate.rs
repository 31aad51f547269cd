//! apinetlet that asks for its certificate itself: the first one with a kubeconfig that may do nothing else, and a new one before
//! the old one ends, without being started again.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use api::{
    names::{certificate, identity},
    networking::Network,
};
use apinet::CertificateApprovalController;
use apiserver::{
    pki::{Identity, issue_kubeconfig},
    testing::{TestServer, spawn},
};
use clap::{Args as _, FromArgMatches as _};
use controller::{
    Cluster, Options, Runner,
    certificate::{Validity, validity},
};
use kube::{
    Api, Client,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::region::{APINET_NS, NS};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn renewal_is_due_before_the_end() {
    let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let until = from + Duration::from_secs(1000);
    let due = Validity { from, until }.due(0.8);
    assert_eq!(due, from + Duration::from_secs(800));
}

async fn client(text: &str) -> Client {
    let file = Kubeconfig::from_yaml(text).expect("yaml");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await;
    Client::try_from(config.expect("config")).expect("client")
}

fn write(server: &TestServer, path: &Path, user: &str, group: &str, life: Duration) {
    let identity = Identity {
        user: user.to_owned(),
        groups: vec![group.to_owned()],
    };
    let now = SystemTime::now();
    issue_kubeconfig(&server.running.ca, &identity, &server.url, path, now, life)
        .expect("a kubeconfig");
}

fn start(tasks: &mut JoinSet<()>, folder: &Path, stop: &CancellationToken) {
    let flags = [
        format!("--kubeconfig={}", folder.join("user").display()),
        format!(
            "--api-net-kubeconfig={}",
            folder.join("apinetlet").display()
        ),
        format!(
            "--bootstrap-kubeconfig={}",
            folder.join("bootstrap").display()
        ),
        "--rotate-certificates".to_owned(),
        format!("--api-net-namespace={APINET_NS}"),
    ];
    let command =
        apinetlet::Args::augment_args(clap::Command::new("apinetlet").no_binary_name(true));
    let args = apinetlet::Args::from_arg_matches(&command.get_matches_from(flags)).expect("flags");
    let stop = stop.clone();
    tasks.spawn(async move { apinetlet::run(args, stop).await.expect("apinetlet") });
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_certificate_is_asked_for_and_renewed_in_time() {
    let server = spawn().await.expect("server");
    let folder = tempfile::tempdir().expect("folder");
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let _stop = stop.clone().drop_guard();

    let (user, group) = identity::CONTROLLER_MANAGER;
    let manager = Identity {
        user: user.to_owned(),
        groups: vec![group.to_owned()],
    };
    let manager = client(&server.kubeconfig_for(&manager).expect("kubeconfig")).await;
    let mut runner = Runner::new("apinet", Cluster::new(manager.clone()));
    let approval = CertificateApprovalController::new(manager);
    runner.controller(std::sync::Arc::new(approval), Options::default());
    let stopped = stop.clone();
    tasks.spawn(async move { runner.run(stopped).await.expect("the controllers run") });

    let year = Duration::from_secs(365 * 86_400);
    let own = identity::apinetlet(APINET_NS);
    let path = folder.path().join("apinetlet");
    write(
        &server,
        &folder.path().join("user"),
        &own,
        identity::APINETLETS,
        year,
    );
    let bootstrap = folder.path().join("bootstrap");
    write(
        &server,
        &bootstrap,
        "system:bootstrap:abcdef",
        certificate::APINETLETS_BOOTSTRAP,
        year,
    );
    let first = stop.child_token();
    start(&mut tasks, folder.path(), &first);
    eventually("the first certificate", async || path.exists()).await;

    // It works: a network gets its counterpart.
    let admin = client(&server.kubeconfig().expect("kubeconfig")).await;
    let network = |name: &str| -> Network {
        let body = json!({ "metadata": { "name": name }, "spec": {} });
        serde_json::from_value(body).expect("a network")
    };
    let networks = Api::<Network>::namespaced(admin.clone(), NS);
    let works = async |name: &str| {
        let made = networks
            .create(&PostParams::default(), &network(name))
            .await;
        made.expect("created");
        eventually("the network's provider id", async || {
            let network = networks.get(name).await.expect("read");
            !network.spec.provider_id.is_empty()
        })
        .await;
    };
    works("first").await;

    // One that is nearly over (valid since five minutes ago, as all are) is renewed at once, and the part goes on with the new one.
    write(
        &server,
        &path,
        &own,
        identity::APINETLETS,
        Duration::from_secs(60),
    );
    let short = validity(&path).expect("a certificate");
    first.cancel();
    start(&mut tasks, folder.path(), &stop);
    eventually("a longer certificate", async || {
        validity(&path).is_ok_and(|now| now.until > short.until + Duration::from_secs(3600))
    })
    .await;
    works("second").await;
}
