//! The controllers against a real API server: what the simulation leaves out is in here, above all defaulting, validation,
//! generations, apply and the reservation of addresses.

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    apinet::{
        IP, IPAddress, Instance, LoadBalancer, NATGateway, NATGatewayAutoscaler, NATTable, Network,
        NetworkInterface, NetworkPolicy, NetworkPolicyRule, Node,
    },
    names::identity,
};
use apinet::{
    DaemonSetController, InstanceSchedulerController, IpAddressController, IpClaimController,
    LoadBalancerController, NatAutoscalerController, NatGatewayController, NatReleaseController,
    NetworkIdController, NetworkPolicyController, NodeLifecycleController,
};
use apiserver::{
    pki::Identity,
    testing::{TestServer, spawn},
};
use controller::{Cluster, Controller, Options, Runner};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{NS, object};

const DEADLINE: Duration = Duration::from_secs(60);

async fn client_of(server: &TestServer, user: (&str, &str)) -> Client {
    let identity = Identity {
        user: user.0.to_owned(),
        groups: vec![user.1.to_owned()],
    };
    let text = server.kubeconfig_for(&identity).expect("a kubeconfig");
    let kubeconfig = Kubeconfig::from_yaml(&text).expect("a kubeconfig");
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a config")).expect("a client")
}

struct Region {
    _server: TestServer,
    _tasks: JoinSet<()>,
    client: Client,
    stop: CancellationToken,
}

impl Drop for Region {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A server, and all controllers with the rights of the controller manager.
async fn region() -> Region {
    let server = spawn().await.expect("the server starts");
    let client = client_of(&server, identity::ADMIN).await;
    let manager = client_of(&server, identity::CONTROLLER_MANAGER).await;
    let mut runner = Runner::new("apinet", Cluster::new(manager));
    let grace = Duration::from_secs(40);
    let all: Vec<Arc<dyn Controller>> = vec![
        Arc::new(IpAddressController),
        Arc::new(NetworkIdController),
        Arc::new(IpClaimController),
        Arc::new(LoadBalancerController),
        Arc::new(DaemonSetController),
        Arc::new(InstanceSchedulerController),
        Arc::new(NatGatewayController),
        Arc::new(NatAutoscalerController),
        Arc::new(NatReleaseController),
        Arc::new(NetworkPolicyController),
        Arc::new(NodeLifecycleController { grace }),
    ];
    for controller in all {
        // As in the controller manager: decisions of the scheduler depend on each other.
        let workers = if controller.name() == "instance-scheduler" {
            1
        } else {
            2
        };
        let options = Options {
            workers,
            ..Options::default()
        };
        runner.controller(controller, options);
    }
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { runner.run(stopped).await.expect("the controllers run") });
    Region {
        _server: server,
        _tasks: tasks,
        client,
        stop,
    }
}

impl Region {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NS)
    }

    async fn make<K>(&self, name: &str, spec: Value)
    where
        K: controller::Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let body: K = object(json!({ "metadata": { "name": name }, "spec": spec }));
        let made = self.api::<K>().create(&PostParams::default(), &body).await;
        made.expect("created");
    }

    async fn list<K>(&self) -> Vec<K>
    where
        K: controller::Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let list = self.api::<K>().list(&ListParams::default()).await;
        list.expect("listed").items
    }

    async fn get<K>(&self, name: &str) -> Option<K>
    where
        K: controller::Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        self.api::<K>().get_opt(name).await.expect("read")
    }

    async fn patch<K>(&self, name: &str, body: Value)
    where
        K: controller::Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let patch = Patch::Merge(body);
        let api = self.api::<K>();
        let patched = api.patch(name, &PatchParams::default(), &patch).await;
        patched.expect("patched");
    }

    async fn delete<K>(&self, name: &str)
    where
        K: controller::Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let gone = self.api::<K>().delete(name, &DeleteParams::default()).await;
        gone.expect("deleted");
    }

    async fn nodes(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        for (name, zone) in [("p.a1", "a"), ("p.a2", "a"), ("p.b1", "b")] {
            let node: Node =
                object(json!({ "metadata": { "name": name, "labels": { "zone": zone } } }));
            nodes
                .create(&PostParams::default(), &node)
                .await
                .expect("created");
        }
    }

    async fn locks(&self) -> usize {
        let locks: Api<IPAddress> = Api::all(self.client.clone());
        locks
            .list(&ListParams::default())
            .await
            .expect("listed")
            .items
            .len()
    }
}

/// Asks until the answer is what is wanted.
async fn until<T: PartialEq + Debug>(what: &str, wanted: T, mut ask: impl AsyncFnMut() -> T) {
    let started = Instant::now();
    loop {
        let is = ask().await;
        if is == wanted {
            return;
        }
        assert!(
            started.elapsed() < DEADLINE,
            "{what}: {is:?}, not {wanted:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn balancer() -> Value {
    json!({
        "type": "Public",
        "networkRef": { "name": "net" },
        "ips": [{ "name": "ipv4", "ipFamily": "IPv4" }, { "name": "ipv6", "ipFamily": "IPv6" }],
        "ports": [{ "port": 80 }],
        "selector": { "matchLabels": { "lb": "web" } },
        "template": { "metadata": { "labels": { "lb": "web" } }, "spec": crate::balancing::one_per_zone() },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balancers_reach_nodes_and_leave_nothing() {
    let region = region().await;
    region.nodes().await;
    region.make::<LoadBalancer>("web", balancer()).await;
    let bound = async || {
        let all = region.list::<Instance>().await;
        let bound = all
            .iter()
            .filter(|instance| instance.spec.node_ref.is_some());
        (all.len(), bound.count())
    };
    until("one Instance per zone", (3, 2), bound).await;
    let web = region.get::<LoadBalancer>("web").await.expect("stays");
    let ips: Vec<_> = web.spec.ips.iter().filter_map(|entry| entry.ip).collect();
    for instance in region.list::<Instance>().await {
        assert_eq!(instance.spec.ips, ips);
    }
    // One address leaves while an Instance serves it: it stays locked until the Instance has let go.
    let served = region.list::<Instance>().await.remove(0);
    let name = served.metadata.name.expect("a name");
    let status = Patch::Merge(json!({ "status": { "ips": [ips[0]] } }));
    let instances = region.api::<Instance>();
    instances
        .patch_status(&name, &PatchParams::default(), &status)
        .await
        .expect("reported");
    until("the address is served", vec![ips[0]], async || {
        let web = region.get::<LoadBalancer>("web").await.expect("stays");
        web.status.unwrap_or_default().ips
    })
    .await;
    region
        .patch::<LoadBalancer>(
            "web",
            json!({ "spec": { "ips": [{ "name": "ipv6", "ipFamily": "IPv6" }] } }),
        )
        .await;
    until("the Instances drop the address", true, async || {
        let all = region.list::<Instance>().await;
        all.iter().all(|instance| instance.spec.ips == ips[1..])
    })
    .await;
    assert_eq!(region.locks().await, 2, "the data plane still answers");
    let status = Patch::Merge(json!({ "status": { "ips": [] } }));
    instances
        .patch_status(&name, &PatchParams::default(), &status)
        .await
        .expect("reported");
    until("the address is free", 1, async || region.locks().await).await;
    region.delete::<LoadBalancer>("web").await;
    until("everything is gone", (0, 0, 0), async || {
        let balancers = region.list::<LoadBalancer>().await.len();
        (
            balancers,
            region.list::<Instance>().await.len(),
            region.locks().await,
        )
    })
    .await;
    assert!(region.list::<IP>().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_scale_serve_and_leave_nothing() {
    let region = region().await;
    region.nodes().await;
    let gateway = json!({ "ipFamily": "IPv4", "networkRef": { "name": "net" }, "portsPerNetworkInterface": 32256 });
    region.make::<NATGateway>("gw", gateway).await;
    let scaler = json!({ "natGatewayRef": { "name": "gw" }, "minPublicIPs": 1, "maxPublicIPs": 3 });
    region.make::<NATGatewayAutoscaler>("gw", scaler).await;
    for n in 1..=5 {
        let nic = json!({ "nodeRef": { "name": "p.a1" }, "networkRef": { "name": "net" }, "ips": [format!("10.0.0.{n}")] });
        region
            .make::<NetworkInterface>(&format!("nic{n}"), nic)
            .await;
    }
    let state = async || {
        let gateway = region.get::<NATGateway>("gw").await.expect("stays");
        let table = region.get::<NATTable>("gw").await;
        let rows = table.map(|table| table.ips).unwrap_or_default();
        let sections = rows.iter().map(|row| row.sections.len()).sum::<usize>();
        let nics = region.list::<NetworkInterface>().await;
        let claims = nics
            .iter()
            .filter(|nic| !nic.spec.nat_gateways.is_empty())
            .count();
        (gateway.spec.ips.len(), sections, claims)
    };
    // Two blocks per address: five interfaces need three.
    until("everybody is served", (3, 5, 5), state).await;
    for n in 2..=5 {
        region.delete::<NetworkInterface>(&format!("nic{n}")).await;
    }
    until("drained addresses go", (1, 1, 1), state).await;
    until("and are free", 1, async || region.locks().await).await;
    region.delete::<NATGatewayAutoscaler>("gw").await;
    region.delete::<NATGateway>("gw").await;
    until("everything is gone", (0, 0, 0, 0), async || {
        let nics = region.list::<NetworkInterface>().await;
        let claims = nics
            .iter()
            .map(|nic| nic.spec.nat_gateways.len())
            .sum::<usize>();
        (
            region.list::<NATGateway>().await.len(),
            region.list::<NATTable>().await.len(),
            claims,
            region.locks().await,
        )
    })
    .await;
    assert!(region.list::<IP>().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_resolved_once_and_then_rest() {
    let region = region().await;
    region.make::<Network>("net", json!({})).await;
    let policy = json!({
        "networkRef": { "name": "net" },
        "networkInterfaceSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "ports": [{ "port": 22 }] }],
    });
    region.make::<NetworkPolicy>("pol", policy).await;
    let nic = json!({ "nodeRef": { "name": "p.a1" }, "networkRef": { "name": "net" }, "ips": ["10.0.0.1"] });
    region.make::<NetworkInterface>("nic", nic).await;
    until("the interface is a target", (1, 1, 0), async || {
        let rule = region.get::<NetworkPolicyRule>("pol").await;
        rule.map_or((0, 0, 0), |rule| {
            (
                rule.targets.len(),
                rule.ingress_rule.len(),
                rule.egress_rule.len(),
            )
        })
    })
    .await;
    let version = async || {
        let rule = region.get::<NetworkPolicyRule>("pol").await.expect("stays");
        rule.metadata.resource_version
    };
    let before = version().await;
    // Something happens to the interface that does not concern the rule; the next change does, and comes after it.
    region
        .patch::<NetworkInterface>("nic", json!({ "metadata": { "labels": { "a": "b" } } }))
        .await;
    region
        .patch::<NetworkPolicy>("pol", json!({ "metadata": { "labels": { "a": "b" } } }))
        .await;
    assert_eq!(version().await, before);
    region.delete::<NetworkPolicy>("pol").await;
    until("the rule goes with its policy", 0, async || {
        region.list::<NetworkPolicyRule>().await.len()
    })
    .await;
}
