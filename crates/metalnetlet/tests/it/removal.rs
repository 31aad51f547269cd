//! A partition whose metalnetlet is gone for good, against the API server.

use std::time::{Duration, Instant};

use api::{apinet, names::annotation::IN_DATA_PLANE};
use apiserver::testing::{TestServer, spawn};
use controller::{Kind, Object};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::DynamicObject,
};
use metalnetlet::{RemovalArgs, remove};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::region::APINET_NS;

const DEADLINE: Duration = Duration::from_secs(30);
const OURS: &str = "partition.metalnetlet.apinet.openkcm.dev/old";
const OTHERS: &str = "partition.metalnetlet.apinet.openkcm.dev/new";

struct Region {
    _server: TestServer,
    client: Client,
    args: RemovalArgs,
    _folder: tempfile::TempDir,
}

async fn region() -> Region {
    let server = spawn().await.expect("server");
    let text = server.kubeconfig().expect("kubeconfig");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("admin");
    std::fs::write(&path, &text).expect("written");
    let file = Kubeconfig::from_yaml(&text).expect("yaml");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await;
    let client = Client::try_from(config.expect("a config")).expect("a client");
    let args = RemovalArgs {
        partition: "old".to_owned(),
        kubeconfig: Some(path),
    };
    Region {
        _server: server,
        client,
        args,
        _folder: folder,
    }
}

impl Region {
    fn api<K: Object>(&self) -> Api<DynamicObject> {
        let resource = Kind::of::<K>().api_resource();
        match resource.kind.as_str() {
            "Node" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), APINET_NS, &resource),
        }
    }

    async fn create<K: Object>(&self, name: &str, meta: Value, spec: Value) {
        let kind = Kind::of::<K>();
        let mut body = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": meta, "spec": spec,
        });
        body["metadata"]["name"] = json!(name);
        let object = serde_json::from_value(body).expect("an object");
        let created = self
            .api::<K>()
            .create(&PostParams::default(), &object)
            .await;
        created.expect("created");
    }

    async fn node(&self, name: &str) {
        self.create::<apinet::Node>(name, json!({}), json!({}))
            .await;
    }

    async fn status<K: Object>(&self, name: &str, status: Value) {
        let patch = Patch::Merge(json!({ "status": status }));
        let params = PatchParams::default();
        let patched = self.api::<K>().patch_status(name, &params, &patch).await;
        patched.expect("a status");
    }

    async fn get<K: Object>(&self, name: &str) -> Option<K> {
        let found = self.api::<K>().get_opt(name).await.expect("an answer")?;
        Some(found.try_parse().expect("an object"))
    }

    async fn delete<K: Object>(&self, name: &str) {
        let deleted = self.api::<K>().delete(name, &DeleteParams::default()).await;
        deleted.expect("deleted");
    }

    /// A network of both partitions, and an interface and an Instance on a hypervisor of each.
    async fn fill(&self) {
        self.node("old.n1").await;
        self.node("new.n1").await;
        let held = json!({ "finalizers": [OURS, OTHERS] });
        self.create::<apinet::Network>("net", held, json!({ "id": "300" }))
            .await;
        let peer = |state: &str| json!([{ "id": 400, "state": state }]);
        let peerings = json!({ "old": peer("Pending"), "new": peer("Ready") });
        self.status::<apinet::Network>("net", json!({ "peerings": peerings }))
            .await;
        for (partition, finalizer) in [("old", OURS), ("new", OTHERS)] {
            let meta = json!({
                "finalizers": [finalizer],
                "annotations": { IN_DATA_PLANE: "203.0.113.7" },
            });
            let node = json!({ "name": format!("{partition}.n1") });
            let nic = json!({
                "nodeRef": node, "networkRef": { "name": "net" }, "ips": ["10.0.0.1"],
            });
            let name = format!("of-{partition}");
            self.create::<apinet::NetworkInterface>(&name, meta.clone(), nic)
                .await;
            let user = json!({
                "type": "LoadBalancer", "loadBalancerType": "Internal", "nodeRef": node,
                "networkRef": { "name": "net" }, "ips": ["10.0.0.9"],
            });
            self.create::<apinet::Instance>(&name, meta, user).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_partition_left_behind_blocks_nothing_once_it_is_removed() {
    let region = region().await;
    region.fill().await;
    // Its metalnetlet is gone: what it holds stays although it was deleted.
    region.delete::<apinet::Instance>("of-old").await;
    region.delete::<apinet::Network>("net").await;
    assert!(region.get::<apinet::Network>("net").await.is_some());

    remove(region.args.clone()).await.expect("removed");
    assert!(region.get::<apinet::Node>("old.n1").await.is_none());
    let nic = region.get::<apinet::NetworkInterface>("of-old").await;
    assert!(nic.is_none(), "nobody is left to delete it: {nic:#?}");
    let user = region.get::<apinet::Instance>("of-old").await;
    assert!(user.is_none(), "{user:#?}");
    // Everything of the other partition is as it was.
    assert!(region.get::<apinet::Node>("new.n1").await.is_some());
    let network = region.get::<apinet::Network>("net").await;
    let network = network.expect("the other partition holds it");
    assert_eq!(network.metadata.finalizers, Some(vec![OTHERS.to_owned()]));
    let peerings = network.status.expect("a status").peerings;
    assert_eq!(peerings.keys().collect::<Vec<_>>(), ["new"]);
    let nic = region.get::<apinet::NetworkInterface>("of-new").await;
    let meta = nic.expect("an interface").metadata;
    assert_eq!(meta.finalizers, Some(vec![OTHERS.to_owned()]));
    assert!(
        meta.annotations
            .is_some_and(|all| all.contains_key(IN_DATA_PLANE))
    );
    let user = region.get::<apinet::Instance>("of-new").await;
    let meta = user.expect("an instance").metadata;
    assert_eq!(meta.finalizers, Some(vec![OTHERS.to_owned()]));
    // A second time there is nothing to do.
    remove(region.args.clone()).await.expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_heard_of_is_not_removed() {
    let region = region().await;
    region.fill().await;
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "Heartbeat", "message": "x",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    region
        .status::<apinet::Node>("old.n1", json!({ "conditions": [ready] }))
        .await;
    let refused = remove(region.args.clone()).await.expect_err("refused");
    assert!(refused.to_string().contains("old.n1"), "{refused:#}");
    assert!(region.get::<apinet::Node>("old.n1").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_nodes_come_back_is_not_removed() {
    let region = region().await;
    region.fill().await;
    let mut removal = JoinSet::from_iter([remove(region.args.clone())]);
    // A living metalnetlet publishes its Node again as soon as it misses it.
    let started = Instant::now();
    while region.get::<apinet::Node>("old.n1").await.is_some() {
        assert!(started.elapsed() < DEADLINE, "the Node is deleted first");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    region.node("old.n1").await;
    let ended = removal.join_next().await.expect("it runs");
    let refused = ended.expect("it ends").expect_err("refused");
    assert!(refused.to_string().contains("still runs"), "{refused:#}");
    let nic = region.get::<apinet::NetworkInterface>("of-old").await;
    let finalizers = nic.expect("an interface").metadata.finalizers;
    assert_eq!(finalizers, Some(vec![OURS.to_owned()]));
}
