//! apinetlet as it runs, with its own identity and rights, against the API server: what the simulation is too coarse for.
//! The server defaults, reserves addresses and merges lists by name; a plan that does not expect what it reads back would
//! write for ever.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use api::{
    apinet,
    conditions::{self, READY},
    names::identity,
    networking::{LoadBalancer, NATGateway, Network, NetworkPolicy, VirtualIP},
};
use apiserver::{
    pki::Identity,
    testing::{TestServer, spawn},
};
use clap::{Args as _, FromArgMatches as _};
use controller::{Kind, Object, object};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::region::{APINET_NS, NS};

const DEADLINE: Duration = Duration::from_secs(20);

struct Region {
    server: TestServer,
    client: Client,
    folder: tempfile::TempDir,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Region {
    async fn start() -> Region {
        let server = spawn().await.expect("server");
        let kubeconfig = server.kubeconfig().expect("kubeconfig");
        let file = Kubeconfig::from_yaml(&kubeconfig).expect("yaml");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await;
        let mut region = Region {
            server,
            client: Client::try_from(config.expect("config")).expect("client"),
            folder: tempfile::tempdir().expect("folder"),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        region.run();
        region
    }

    /// The part with the flags and the rights that it has in a region.
    fn run(&mut self) {
        let identity = Identity {
            user: identity::apinetlet(APINET_NS),
            groups: vec![identity::APINETLETS.to_owned()],
        };
        let path = self.folder.path().join("apinetlet");
        let text = self.server.kubeconfig_for(&identity).expect("kubeconfig");
        std::fs::write(&path, text).expect("written");
        let command =
            apinetlet::Args::augment_args(clap::Command::new("apinetlet").no_binary_name(true));
        let flags = [
            format!("--kubeconfig={}", path.display()),
            format!("--api-net-namespace={APINET_NS}"),
        ];
        let args = apinetlet::Args::from_arg_matches(&command.get_matches_from(flags));
        let args = args.expect("flags");
        self.stop = CancellationToken::new();
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { apinetlet::run(args, stop).await.expect("apinetlet") });
    }

    async fn restart(&mut self) {
        self.end().await;
        self.run();
    }

    async fn end(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a part ended well");
        }
    }

    fn api<K: Object>(&self, namespace: &str) -> Api<DynamicObject> {
        let resource = Kind::of::<K>().api_resource();
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    /// Applies an object of the default namespace, as a user.
    async fn apply<K: Object>(&self, name: &str, spec: Value) {
        let kind = Kind::of::<K>();
        let body = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.kind,
            "metadata": { "name": name, "labels": { "app": "web" } },
            "spec": spec,
        });
        let params = PatchParams::apply("user").force();
        self.api::<K>(NS)
            .patch(name, &params, &Patch::Apply(&body))
            .await
            .expect("applied");
    }

    async fn get<K: Object>(&self, namespace: &str, name: &str) -> Option<K> {
        let found = self.api::<K>(namespace).get_opt(name).await;
        let found = found.expect("an answer")?;
        let value = serde_json::to_value(found).expect("JSON");
        Some(serde_json::from_value(value).expect("of the kind"))
    }

    /// Reads until the condition holds; returns the object.
    async fn until<K: Object>(&self, name: &str, holds: impl Fn(&K) -> bool) -> K {
        self.until_in(NS, name, holds).await
    }

    async fn until_in<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        holds: impl Fn(&K) -> bool,
    ) -> K {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = self.get::<K>(namespace, name).await;
            if let Some(object) = found.clone().filter(|object| holds(object)) {
                return object;
            }
            assert!(
                Instant::now() < deadline,
                "{name} did not get there: {found:#?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Versions of all objects of a kind by name.
    async fn versions<K: Object>(&self, namespace: &str) -> BTreeMap<String, String> {
        let all = self.api::<K>(namespace).list(&ListParams::default()).await;
        let all = all.expect("a list").items.into_iter();
        all.map(|object| {
            let kind = Kind::of::<K>().plural;
            let name = object.metadata.name.unwrap_or_default();
            let version = object.metadata.resource_version.unwrap_or_default();
            (format!("{namespace} {kind} {name}"), version)
        })
        .collect()
    }

    async fn all_versions(&self) -> BTreeMap<String, String> {
        let mut all = self.versions::<Network>(NS).await;
        all.extend(self.versions::<VirtualIP>(NS).await);
        all.extend(self.versions::<LoadBalancer>(NS).await);
        all.extend(self.versions::<NATGateway>(NS).await);
        all.extend(self.versions::<NetworkPolicy>(NS).await);
        all.extend(self.versions::<apinet::Network>(APINET_NS).await);
        all.extend(self.versions::<apinet::IP>(APINET_NS).await);
        all.extend(self.versions::<apinet::LoadBalancer>(APINET_NS).await);
        all.extend(
            self.versions::<apinet::LoadBalancerRouting>(APINET_NS)
                .await,
        );
        all.extend(self.versions::<apinet::NATGateway>(APINET_NS).await);
        all.extend(
            self.versions::<apinet::NATGatewayAutoscaler>(APINET_NS)
                .await,
        );
        all.extend(self.versions::<apinet::NetworkPolicy>(APINET_NS).await);
        all
    }

    async fn network(&self, name: &str) -> Network {
        self.apply::<Network>(name, json!({})).await;
        self.until::<Network>(name, |network| {
            conditions::is_ready(&network.status.clone().unwrap_or_default().conditions)
        })
        .await
    }

    /// One object of every kind, with every list and an empty selector in use.
    async fn everything(&self) {
        self.network("shop").await;
        self.apply::<VirtualIP>("www", json!({ "type": "Public", "ipFamily": "IPv4" }))
            .await;
        let network = json!({ "name": "shop" });
        self.apply::<LoadBalancer>(
            "web",
            json!({
                "type": "Public", "ipFamilies": ["IPv4", "IPv6"], "networkRef": network,
                "networkInterfaceSelector": { "matchLabels": { "app": "web" } },
                "ports": [{ "port": 80 }, { "protocol": "TCP", "port": 8000, "endPort": 8010 }],
            }),
        )
        .await;
        self.apply::<LoadBalancer>(
            "inner",
            json!({
                "type": "Internal", "networkRef": network, "ips": [{ "value": "10.0.0.9" }],
                "ports": [{ "protocol": "UDP", "port": 53 }],
            }),
        )
        .await;
        self.apply::<NATGateway>(
            "out",
            json!({ "type": "Public", "ipFamily": "IPv4", "networkRef": network }),
        )
        .await;
        let web = json!({ "kind": "NetworkInterface", "matchLabels": { "app": "web" } });
        self.apply::<NetworkPolicy>(
            "db",
            json!({
                "networkRef": network,
                "networkInterfaceSelector": {},
                "ingress": [{
                    "from": [{ "objectSelector": web }, { "ipBlock": { "cidr": "10.0.0.0/8" } }],
                    "ports": [{ "port": 80 }, { "protocol": "UDP", "port": 1, "endPort": 2 }],
                }],
                "policyTypes": ["Egress"],
            }),
        )
        .await;
    }

    async fn made<U: Object, M: Object>(&self, name: &str) -> M {
        let user = self.get::<U>(NS, name).await.expect("the user object");
        self.until_in::<M>(APINET_NS, object::uid(&user), |_| true)
            .await
    }
}

fn reason<C: AsRef<[api::meta::Condition]>>(conditions: C) -> String {
    let ready = conditions::find(conditions.as_ref(), READY);
    ready.map_or_else(String::new, |ready| ready.reason.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_gets_its_counterpart_and_a_restart_writes_nothing() {
    let mut region = Region::start().await;
    region.everything().await;
    let _made: apinet::LoadBalancer = region.made::<LoadBalancer, _>("web").await;
    let inner = region
        .until::<LoadBalancer>("inner", |lb| {
            !lb.status.clone().unwrap_or_default().ips.is_empty()
        })
        .await;
    assert_eq!(
        json!(inner.status.expect("status").ips),
        json!(["10.0.0.9"])
    );
    region
        .until::<VirtualIP>("www", |vip| {
            vip.status.clone().unwrap_or_default().ip.is_some()
        })
        .await;
    let gateway: apinet::NATGateway = region.made::<NATGateway, _>("out").await;
    let scaler: apinet::NATGatewayAutoscaler = region.made::<NATGateway, _>("out").await;
    assert_eq!(scaler.spec.nat_gateway_ref.name, object::name(&gateway));
    region
        .until::<NATGateway>("out", |gateway| {
            reason(&gateway.status.clone().unwrap_or_default().conditions) == "AddressPending"
        })
        .await;
    let policy: apinet::NetworkPolicy = region.made::<NetworkPolicy, _>("db").await;
    assert_eq!(policy.spec.ingress.len(), 1);
    assert_eq!(policy.spec.policy_types.len(), 2);
    region
        .until::<NetworkPolicy>("db", |policy| {
            reason(&policy.status.clone().unwrap_or_default().conditions) == "Resolving"
        })
        .await;
    let routing: apinet::LoadBalancerRouting = region.made::<LoadBalancer, _>("web").await;
    assert_eq!(routing.destinations, []);

    // A fresh process plans every object anew. Those that it meets last are made afterwards.
    let before = region.all_versions().await;
    region.restart().await;
    region.network("sentinel").await;
    region
        .apply::<VirtualIP>("sentinel", json!({ "type": "Public", "ipFamily": "IPv6" }))
        .await;
    region
        .until::<VirtualIP>("sentinel", |vip| {
            vip.status.clone().unwrap_or_default().ip.is_some()
        })
        .await;
    let after = region.all_versions().await;
    for (object, version) in before {
        assert_eq!(after.get(&object), Some(&version), "{object} was written");
    }
    region.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peering_that_both_sides_want_is_handed_over_with_its_filter() {
    let mut region = Region::start().await;
    let shop = region.network("shop").await;
    let bills = region.network("bills").await;
    let side = |peer: &Network, prefixes: Value| {
        let name = object::name(peer);
        json!({
            "peerings": [{ "name": "p", "networkRef": { "name": name }, "prefixes": prefixes }],
            "incomingPeerings": [{ "name": name, "namespace": NS, "uid": object::uid(peer) }],
        })
    };
    let exposed = json!([{ "name": "web", "prefix": "10.0.1.0/24" }]);
    region
        .apply::<Network>("shop", side(&bills, exposed.clone()))
        .await;
    region
        .apply::<Network>("bills", side(&shop, json!([])))
        .await;
    let vni = |network: &Network| {
        let id: Result<api::ids::NetworkProviderId, _> = network.spec.provider_id.parse();
        id.expect("a provider id").id
    };
    let made = region
        .until_in::<apinet::Network>(APINET_NS, object::uid(&shop), |made| {
            !made.spec.peerings.is_empty()
        })
        .await;
    assert_eq!(
        json!(made.spec.peerings),
        json!([{ "name": "p", "id": vni(&bills), "prefixes": exposed }])
    );
    let id: i32 = vni(&bills).parse().expect("a VNI");
    let report = json!({ "status": { "peerings": { "lab": [{ "id": id, "state": "Ready" }] } } });
    region
        .api::<apinet::Network>(APINET_NS)
        .patch_status(
            object::uid(&shop),
            &PatchParams::default(),
            &Patch::Merge(&report),
        )
        .await
        .expect("reported");
    let shown = region
        .until::<Network>("shop", |network| {
            let peerings = network.status.clone().unwrap_or_default().peerings;
            peerings.first().is_some_and(|p| !p.prefixes.is_empty())
        })
        .await;
    assert_eq!(
        json!(shown.status.expect("status").peerings),
        json!([{ "name": "p", "state": "Ready", "prefixes": exposed }])
    );
    // One side takes its entry away: both ends of the peering go.
    region.apply::<Network>("bills", json!({})).await;
    region
        .until_in::<apinet::Network>(APINET_NS, object::uid(&shop), |made| {
            made.spec.peerings.is_empty()
        })
        .await;
    region.end().await;
}
#[tokio::test(flavor = "multi_thread")]
async fn applying_again_keeps_the_addresses_that_the_server_chose() {
    let mut region = Region::start().await;
    region.everything().await;
    let both = |lb: &LoadBalancer| lb.status.clone().unwrap_or_default().ips.len() == 2;
    let before = region.until::<LoadBalancer>("web", both).await;
    let status = before.status.expect("status");
    assert_eq!(reason(&status.conditions), "NoDestinations");
    let before = status.ips;
    assert_eq!(before[0].family(), api::meta::IpFamily::IPv4);
    assert_eq!(before[1].family(), api::meta::IpFamily::IPv6);
    region
        .apply::<LoadBalancer>(
            "web",
            json!({
                "type": "Public", "ipFamilies": ["IPv4", "IPv6"], "networkRef": { "name": "shop" },
                "ports": [{ "port": 443 }],
            }),
        )
        .await;
    let user = region.get::<LoadBalancer>(NS, "web").await.expect("there");
    let made = region
        .until_in::<apinet::LoadBalancer>(APINET_NS, object::uid(&user), |made| {
            made.spec.ports.len() == 1
        })
        .await;
    let kept: Vec<_> = made.spec.ips.iter().filter_map(|entry| entry.ip).collect();
    assert_eq!(kept, before);

    // The autoscaler's addresses are not ours: a change of the gateway leaves them alone.
    let gateway: apinet::NATGateway = region.made::<NATGateway, _>("out").await;
    let more = json!({ "spec": { "ips": [{ "name": "one" }] } });
    region
        .api::<apinet::NATGateway>(APINET_NS)
        .patch(
            object::name(&gateway),
            &PatchParams::default(),
            &Patch::Merge(&more),
        )
        .await
        .expect("scaled");
    let shown = |gateway: &NATGateway| !gateway.status.clone().unwrap_or_default().ips.is_empty();
    let scaled = region.until::<NATGateway>("out", shown).await;
    let address = scaled.status.expect("status").ips;
    let spec = json!({
        "type": "Public", "ipFamily": "IPv4", "networkRef": { "name": "shop" },
        "portsPerNetworkInterface": 64,
    });
    region.apply::<NATGateway>("out", spec).await;
    let gateway = region
        .until_in::<apinet::NATGateway>(APINET_NS, object::name(&gateway), |made| {
            made.spec.ports_per_network_interface == 64
        })
        .await;
    let kept: Vec<_> = gateway.spec.ips.iter().filter_map(|e| e.ip).collect();
    assert_eq!(kept, address);
    region.end().await;
}
