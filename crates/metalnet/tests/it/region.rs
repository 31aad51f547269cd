//! The whole part, twice: real API server, real metalbond servers, real gRPC; only the packets of dpservice are missing.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use api::metalnet::{Network, NetworkInterface};
use apiserver::pki::Identity;
use apiserver::testing::TestServer;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use metalbond::server::{Config, Server};
use metalnet::Args;
use metalnet::model::Uid;
use metalnet::plan::observed::Hop;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::fake_dpservice::Fake;
use crate::sim::{prefix, vni};

const NAMESPACE: &str = "metalnet-system";
/// Far beyond what anything here takes; a test that reaches it has failed.
const DEADLINE: Duration = Duration::from_secs(60);

struct Region {
    server: TestServer,
    client: Client,
    bonds: Vec<Server>,
    dir: TempDir,
}

async fn kube_client(kubeconfig: &Path) -> Client {
    controller::args::client(Some(&kubeconfig.to_owned()))
        .await
        .unwrap()
}

impl Region {
    async fn start(bonds: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = apiserver::testing::spawn().await.unwrap();
        let kubeconfig = dir.path().join("admin");
        server.write_kubeconfig(&kubeconfig).unwrap();
        let client = kube_client(&kubeconfig).await;
        let mut region = Self {
            server,
            client,
            bonds: Vec::new(),
            dir,
        };
        for _ in 0..bonds {
            let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
            region
                .bonds
                .push(metalbond::server::spawn(listener, Config::default()).unwrap());
        }
        region
    }

    fn host(&self, name: &str, devices: u32) -> Host {
        let kubeconfig = self.dir.path().join(name);
        let user = api::names::identity::metalnet(name);
        let groups = vec![api::names::identity::METALNETS.to_owned()];
        let text = self
            .server
            .kubeconfig_for(&Identity { user, groups })
            .unwrap();
        std::fs::write(&kubeconfig, text).unwrap();
        let dp = Fake::start(devices);
        let args = Args {
            kubeconfig: Some(kubeconfig),
            node_name: Some(name.to_owned()),
            metalnet_namespace: Some(NAMESPACE.to_owned()),
            register_node: true,
            dp_service_address: dp.address.to_string(),
            metalbond_peer: self
                .bonds
                .iter()
                .map(|bond| bond.local_addr().to_string())
                .collect(),
            public_vni: 100,
            router_address: Some("fc00::beef".parse().unwrap()),
            enable_ipv6: true,
            metalnet_dir: self.dir.path().join(format!("{name}-state")),
            tapdevice_mod: true,
            tap_count: devices,
            pf_pci_base_addr: "0000:03:00.0".parse().unwrap(),
            multiport_eswitch: false,
            sysfs: "/nonexistent".into(),
            health_probe_bind_address: "0".to_owned(),
        };
        Host {
            args,
            dp,
            agent: None,
        }
    }

    async fn network(&self, name: &str, id: u32) {
        let network: Network = serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": NAMESPACE }, "spec": { "id": id },
        }))
        .unwrap();
        let api = Api::namespaced(self.client.clone(), NAMESPACE);
        api.create(&PostParams::default(), &network).await.unwrap();
    }

    fn nics(&self) -> Api<NetworkInterface> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn nic(
        &self,
        name: &str,
        node: &str,
        ips: &[&str],
        prefixes: &[&str],
    ) -> NetworkInterface {
        let families: Vec<&str> = ips
            .iter()
            .map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" })
            .collect();
        let nic: NetworkInterface = serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "networkRef": { "name": "net" }, "nodeName": node,
                "ips": ips, "ipFamilies": families, "prefixes": prefixes,
            },
        }))
        .unwrap();
        self.nics()
            .create(&PostParams::default(), &nic)
            .await
            .unwrap()
    }

    async fn status(&self, name: &str) -> Value {
        let nic = self.nics().get(name).await.unwrap();
        serde_json::to_value(nic.status.unwrap_or_default()).unwrap()
    }

    async fn ready(&self, name: &str) {
        let start = Instant::now();
        while self.status(name).await["state"] != "Ready" {
            assert!(
                start.elapsed() < DEADLINE,
                "{name} does not become ready: {}",
                self.status(name).await
            );
            tokio::task::yield_now().await;
        }
    }

    async fn gone(&self, name: &str) {
        let start = Instant::now();
        while self.nics().get_opt(name).await.unwrap().is_some() {
            assert!(start.elapsed() < DEADLINE, "{name} does not go");
            tokio::task::yield_now().await;
        }
    }
}

struct Host {
    args: Args,
    dp: Fake,
    agent: Option<JoinSet<anyhow::Result<()>>>,
}

impl Host {
    fn start(&mut self) {
        let mut agent = JoinSet::new();
        agent.spawn(metalnet::run(self.args.clone(), CancellationToken::new()));
        self.agent = Some(agent);
    }

    /// Ends metalnet between two instructions: nothing is flushed or said.
    async fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.abort_all();
            while agent.join_next().await.is_some() {}
        }
    }

    fn hop(&self, destination: &str) -> Option<Hop> {
        self.dp
            .model()
            .remote_routes()
            .get(&(vni(200), prefix(destination)))
            .copied()
    }

    fn underlay(&self, nic: &NetworkInterface) -> Option<Ipv6Addr> {
        let uid = Uid::new(nic.metadata.uid.as_deref()?)?;
        self.dp
            .model()
            .interfaces
            .get(&uid)
            .map(|interface| interface.underlay)
    }

    fn calls(&self, name: &str) -> usize {
        self.dp
            .model()
            .calls
            .iter()
            .filter(|call| **call == name)
            .count()
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    start.elapsed()
}

/// Looks again and again for `time`: the condition must never fail.
async fn always(what: &str, time: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(condition(), "not always: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Two hosts with one interface each, everything programmed.
async fn two_hosts(region: &Region) -> (Host, Host, NetworkInterface, NetworkInterface) {
    let (mut h1, mut h2) = (region.host("h1", 4), region.host("h2", 4));
    h1.start();
    h2.start();
    region.network("net", 200).await;
    let a = region
        .nic("a", "h1", &["10.0.0.1", "2001:db8::1"], &["10.1.0.0/24"])
        .await;
    let b = region.nic("b", "h2", &["10.0.0.2"], &[]).await;
    region.ready("a").await;
    region.ready("b").await;
    until("routes both ways", || {
        let there = h2.hop("10.0.0.1/32").is_some() && h2.hop("10.1.0.0/24").is_some();
        there && h2.hop("2001:db8::1/128").is_some() && h1.hop("10.0.0.2/32").is_some()
    })
    .await;
    (h1, h2, a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn interfaces_become_ready_and_reach_each_other() {
    let region = Region::start(2).await;
    let (h1, h2, a, _) = two_hosts(&region).await;
    assert_eq!(
        h2.hop("10.0.0.1/32").map(|hop| hop.address),
        h1.underlay(&a)
    );
    assert_eq!(
        h2.hop("0.0.0.0/0").map(|hop| hop.address),
        Some("fc00::beef".parse().unwrap())
    );
    let status = region.status("a").await;
    assert_eq!(
        status,
        json!({ "state": "Ready", "tapDevice": { "name": "dtapvf_0" }, "prefixes": ["10.1.0.0/24"] })
    );
    let networks: Api<Network> = Api::namespaced(region.client.clone(), NAMESPACE);
    let mut finalizers = networks
        .get("net")
        .await
        .unwrap()
        .metadata
        .finalizers
        .unwrap();
    finalizers.sort();
    let want = ["h1", "h2"].map(|node| format!("networking.metalnet.openkcm.dev/network-{node}"));
    assert_eq!(finalizers, want);
    let nodes: Api<api::k8s_openapi::api::core::v1::Node> = Api::all(region.client.clone());
    assert!(nodes.get_opt("h1").await.unwrap().is_some());

    // A change of the spec follows through to the other host.
    let patch = json!({ "spec": { "prefixes": ["10.2.0.0/24"] } });
    region
        .nics()
        .patch("a", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    until("the other prefix", || {
        h2.hop("10.2.0.0/24").is_some() && h2.hop("10.1.0.0/24").is_none()
    })
    .await;

    // Deletion leaves nothing.
    networks
        .delete("net", &DeleteParams::default())
        .await
        .unwrap();
    region
        .nics()
        .delete("a", &DeleteParams::default())
        .await
        .unwrap();
    region.gone("a").await;
    assert!(h1.dp.model().interfaces.is_empty() && h1.dp.model().tables.is_empty());
    until("withdrawn", || {
        h2.hop("10.0.0.1/32").is_none() && h2.hop("10.2.0.0/24").is_none()
    })
    .await;
    region
        .nics()
        .delete("b", &DeleteParams::default())
        .await
        .unwrap();
    region.gone("b").await;
    let start = Instant::now();
    while networks.get_opt("net").await.unwrap().is_some() {
        assert!(start.elapsed() < DEADLINE, "the Network does not go");
    }
    let claims = std::fs::read_dir(h1.args.metalnet_dir.join("netfns/claims")).unwrap();
    assert_eq!(claims.count(), 0);
    assert!(region.bonds.iter().all(|bond| bond.routes_len() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_dpservice_is_filled_again_at_once() {
    let region = Region::start(2).await;
    let (mut h1, h2, a, _) = two_hosts(&region).await;
    let old = h1.underlay(&a);
    let version = region
        .nics()
        .get("a")
        .await
        .unwrap()
        .metadata
        .resource_version;
    let start = Instant::now();
    h1.dp.restart();
    let started = start.elapsed();
    until("the interface again", || {
        h1.underlay(&a).is_some() && h1.hop("10.0.0.2/32").is_some()
    })
    .await;
    let filled = start.elapsed();
    until("the new address at the other host", || {
        h2.hop("10.0.0.1/32").map(|hop| hop.address) == h1.underlay(&a)
    })
    .await;
    println!(
        "dpservice restart: listening {started:?}, filled {filled:?}, other host {:?}",
        start.elapsed()
    );
    assert_ne!(h1.underlay(&a), old);
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(h1.calls("Initialize"), 2);
    assert_eq!(
        region
            .nics()
            .get("a")
            .await
            .unwrap()
            .metadata
            .resource_version,
        version,
        "status was not touched"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_metalnet_disturbs_nobody() {
    let region = Region::start(2).await;
    let (mut h1, h2, a, b) = two_hosts(&region).await;
    h1.dp.model().calls.clear();
    h2.dp.model().calls.clear();
    h1.kill().await;
    always(
        "routes stay while it is away",
        Duration::from_secs(1),
        || h2.hop("10.0.0.1/32").is_some() && h1.hop("10.0.0.2/32").is_some(),
    )
    .await;
    h1.start();
    // It works again when something new is realised; nothing old was touched.
    region.nic("c", "h1", &["10.0.0.3"], &[]).await;
    region.ready("c").await;
    until("the new one", || h2.hop("10.0.0.3/32").is_some()).await;
    // Beyond the time for which servers and clients hold routes of lost sessions.
    let hold = Config::default().hold_time + Duration::from_secs(3);
    always("nothing is deleted", hold, || {
        h1.calls("DeleteRoute")
            + h2.calls("DeleteRoute")
            + h1.calls("DeleteInterface")
            + h1.calls("Initialize")
            == 0
    })
    .await;
    assert!(h1.underlay(&a).is_some() && h2.underlay(&b).is_some());
    assert_eq!(
        h1.calls("CreateRoute"),
        0,
        "the routes were found, not made again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_metalbond_server_withdraws_nothing() {
    let mut region = Region::start(2).await;
    let (h1, h2, _, _) = two_hosts(&region).await;
    drop(region.bonds.remove(0));
    let hold = Config::default().hold_time + Duration::from_secs(2);
    let check = always("nothing is deleted", hold, || {
        h1.calls("DeleteRoute") + h2.calls("DeleteRoute") == 0
    });
    let work = async {
        region.nic("c", "h1", &["10.0.0.3"], &[]).await;
        region.ready("c").await;
        until("the other server carries on", || {
            h2.hop("10.0.0.3/32").is_some()
        })
        .await;
    };
    tokio::join!(check, work);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_with_everything_down_and_catches_up() {
    let region = Region::start(1).await;
    let mut h1 = region.host("h1", 2);
    h1.dp.kill();
    h1.args.metalbond_peer = vec!["[::1]:1".to_owned()];
    h1.start();
    region.network("net", 200).await;
    let a = region.nic("a", "h1", &["10.0.0.1"], &[]).await;
    until("the finalizer, which needs no data plane", || {
        std::fs::read_dir(h1.args.metalnet_dir.join("netfns/claims"))
            .is_ok_and(|claims| claims.count() == 1)
    })
    .await;
    h1.dp.restart();
    region.ready("a").await;
    assert!(h1.underlay(&a).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_interfaces_at_once() {
    const EACH: usize = 100;
    let region = Region::start(2).await;
    let (mut h1, mut h2) = (region.host("h1", 126), region.host("h2", 126));
    h1.start();
    h2.start();
    region.network("net", 200).await;
    let start = Instant::now();
    let creations = (0..2 * EACH).map(|n| {
        let (host, region) = (if n % 2 == 0 { "h1" } else { "h2" }, &region);
        async move {
            region
                .nic(
                    &format!("n{n}"),
                    host,
                    &[&format!("10.0.{}.{}", n / 200, n % 200 + 1)],
                    &[],
                )
                .await
        }
    });
    futures::future::join_all(creations).await;
    let created = start.elapsed();
    until("all interfaces and all routes", || {
        [&h1, &h2].iter().all(|host| {
            let model = host.dp.model();
            model.interfaces.len() == EACH && model.remote_routes().len() == EACH + 2
        })
    })
    .await;
    let routed = start.elapsed();
    let states = || async {
        let list = region.nics().list(&Default::default()).await.unwrap();
        let mut states: BTreeMap<String, usize> = BTreeMap::new();
        for nic in list {
            *states
                .entry(format!("{:?}", nic.status.and_then(|s| s.state)))
                .or_default() += 1;
        }
        states
    };
    while states().await.get("Some(Ready)") != Some(&(2 * EACH)) {
        assert!(start.elapsed() < DEADLINE, "{:?}", states().await);
    }
    println!(
        "{} interfaces: created {created:?}, routed {routed:?}, ready {:?}",
        2 * EACH,
        start.elapsed()
    );
}

/// Creation of an interface to its route on another host, one after the other on a quiet region.
#[tokio::test(flavor = "multi_thread")]
async fn latency() {
    let region = Region::start(2).await;
    let (h1, h2, _, _) = two_hosts(&region).await;
    let (mut local, mut spread, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..30 {
        let name = format!("x{n}");
        let start = Instant::now();
        let nic = region.nic(&name, "h1", &["10.0.7.7"], &[]).await;
        until("local", || h1.underlay(&nic).is_some()).await;
        local.push(start.elapsed());
        let made = Instant::now();
        until("remote", || h2.hop("10.0.7.7/32").is_some()).await;
        spread.push(made.elapsed());
        region.ready(&name).await;
        ready.push(start.elapsed());
        region
            .nics()
            .delete(&name, &DeleteParams::default())
            .await
            .unwrap();
        region.gone(&name).await;
        until("withdrawn", || h2.hop("10.0.7.7/32").is_none()).await;
    }
    for (what, times) in [
        ("created to dpservice", local),
        ("dpservice to other host", spread),
        ("created to Ready", ready),
    ] {
        let mut times = times;
        times.sort();
        println!(
            "{what}: p50 {:?}, max {:?}",
            times[times.len() / 2],
            times[times.len() - 1]
        );
    }
}
