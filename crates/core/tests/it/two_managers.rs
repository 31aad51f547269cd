//! Two controller managers that both believe they lead, on one real API server: whatever they do to each other, no address is
//! given twice, everybody gets one, and then there is quiet.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use api::{
    conditions,
    ipam::{Prefix, PrefixAllocation},
    meta::IpPrefix,
    names::identity,
    networking::{LoadBalancer, NetworkInterface, VirtualIP},
};
use apiserver::{
    pki::Identity,
    testing::{TestServer, spawn},
};
use controller::Object;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    NS,
    region::{args, client_of},
};

const DEADLINE: Duration = Duration::from_secs(60);

struct Managers {
    _server: TestServer,
    client: Client,
    _folder: tempfile::TempDir,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Managers {
    async fn start(count: usize) -> Managers {
        let server = spawn().await.expect("server");
        let client = client_of(&server.kubeconfig().expect("kubeconfig")).await;
        let folder = tempfile::tempdir().expect("folder");
        let (user, group) = identity::CONTROLLER_MANAGER;
        let identity = Identity {
            user: user.to_owned(),
            groups: vec![group.to_owned()],
        };
        let file = folder.path().join("manager");
        std::fs::write(&file, server.kubeconfig_for(&identity).expect("kubeconfig"))
            .expect("written");
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let flags = [format!("--kubeconfig={}", file.display())];
            let (manager, stop) = (args(&flags), stop.clone());
            tasks.spawn(async move {
                core_controllers::manager::run(manager, stop)
                    .await
                    .expect("controller manager");
            });
        }
        Managers {
            _server: server,
            client,
            _folder: folder,
            tasks,
            stop,
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NS)
    }

    async fn create<K>(&self, body: Value)
    where
        K: Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let object: K = serde_json::from_value(body).expect("an object");
        self.api::<K>()
            .create(&PostParams::default(), &object)
            .await
            .expect("created");
    }

    async fn list<K>(&self) -> Vec<K>
    where
        K: Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let list = self.api::<K>().list(&ListParams::default()).await;
        list.expect("a list").items
    }

    /// Lists until the condition holds.
    async fn until<K>(&self, what: &str, holds: impl Fn(&[K]) -> bool) -> Vec<K>
    where
        K: Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let all = self.list::<K>().await;
            if holds(&all) {
                return all;
            }
            let texts = all.iter().map(|object| json!(object)["status"].to_string());
            let texts: Vec<String> = texts.collect();
            assert!(Instant::now() < deadline, "not {what}: {texts:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a manager ended well");
        }
    }
}

fn root(name: &str, value: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "tier": "site" } }, "spec": { "prefix": value } })
}

fn is_ready(prefix: &Prefix) -> bool {
    let status = prefix.status.as_ref();
    status.is_some_and(|status| conditions::is_ready(&status.conditions))
}

fn given(allocations: &[PrefixAllocation]) -> Vec<(String, IpPrefix)> {
    let given = allocations.iter().filter_map(|allocation| {
        let parent = allocation.spec.prefix_ref.as_ref()?.name.clone();
        Some((parent, allocation.status.as_ref()?.prefix?))
    });
    given.collect()
}

fn assert_disjoint(given: &[(String, IpPrefix)]) {
    for (i, (parent, prefix)) in given.iter().enumerate() {
        for (other_parent, other) in given.iter().skip(i + 1) {
            assert!(
                parent != other_parent || !prefix.overlaps(*other),
                "{parent} gave {prefix} and {other}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_managers_give_no_address_twice_and_then_fall_silent() {
    let region = Managers::start(2).await;
    for (name, value) in [("one", "10.1.0.0/24"), ("two", "10.2.0.0/24")] {
        region.create::<Prefix>(root(name, value)).await;
    }
    for n in 0..40 {
        let named =
            json!({ "prefixLength": 32, "ipFamily": "IPv4", "parentRef": { "name": "one" } });
        let selecting = json!({ "prefixLength": 30, "ipFamily": "IPv4",
            "parentSelector": { "matchLabels": { "tier": "site" } } });
        for (kind, spec) in [("n", named), ("s", selecting)] {
            let name = format!("{kind}{n}");
            region
                .create::<Prefix>(json!({ "metadata": { "name": name }, "spec": spec }))
                .await;
        }
        let nic = json!({ "metadata": { "name": format!("nic{n}") }, "spec": {
            "networkRef": { "name": "shop" }, "ipFamilies": ["IPv4"],
            "ips": [{ "ephemeral": { "prefixTemplate": { "spec": { "parentRef": { "name": "one" } } } } }],
        } });
        region.create::<NetworkInterface>(nic).await;
    }
    let all = 2 + 3 * 40;
    region
        .until::<Prefix>("ready", |prefixes| {
            prefixes.len() == all && prefixes.iter().all(is_ready)
        })
        .await;
    let before = region.list::<PrefixAllocation>().await;
    let given_before = given(&before);
    assert_eq!(given_before.len(), all - 2);
    assert_disjoint(&given_before);
    for parent in ["one", "two"] {
        let status = region
            .api::<Prefix>()
            .get(parent)
            .await
            .expect("there")
            .status;
        let listed: BTreeSet<IpPrefix> = status.expect("status").used.into_iter().collect();
        let mine = given_before.iter().filter(|(of, _)| of == parent);
        assert_eq!(
            listed,
            mine.map(|(_, prefix)| *prefix).collect(),
            "{parent}"
        );
    }
    // Half of them go; what they had is given to newcomers.
    for n in 0..20 {
        for name in [format!("n{n}"), format!("s{n}")] {
            let params = DeleteParams::default();
            region
                .api::<Prefix>()
                .delete(&name, &params)
                .await
                .expect("deleted");
        }
        let spec =
            json!({ "prefixLength": 32, "ipFamily": "IPv4", "parentRef": { "name": "one" } });
        let late = json!({ "metadata": { "name": format!("late{n}") }, "spec": spec });
        region.create::<Prefix>(late).await;
    }
    region
        .until::<Prefix>("ready again", |prefixes| {
            prefixes.len() == all - 20 && prefixes.iter().all(is_ready)
        })
        .await;
    let settled = region
        .until::<PrefixAllocation>("collected", |allocations| allocations.len() == all - 22)
        .await;
    assert_disjoint(&given(&settled));
    // Nothing is written any more: both see a world that is as they want it.
    let versions = async || -> Vec<Option<String>> {
        let prefixes = region
            .list::<Prefix>()
            .await
            .into_iter()
            .map(|prefix| prefix.metadata);
        let allocations = region.list::<PrefixAllocation>().await.into_iter();
        let allocations = allocations.map(|allocation| allocation.metadata);
        prefixes
            .chain(allocations)
            .map(|meta| meta.resource_version)
            .collect()
    };
    let deadline = Instant::now() + DEADLINE;
    let mut last = versions().await;
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < deadline, "still writing");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = versions().await;
        if now != last {
            last = now;
            quiet_since = Instant::now();
        }
    }
    region.stop().await;
}

/// The server's own rules, defaults and garbage collection under the controllers, and the delete-everything-at-once of a user.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_plan_is_deleted_all_at_once() {
    let region = Managers::start(1).await;
    region.create::<Prefix>(root("site", "10.0.0.0/16")).await;
    region
        .create::<Prefix>(json!({ "metadata": { "name": "shop" }, "spec": { "ipFamily": "IPv4", "prefixLength": 24,
            "parentSelector": { "matchLabels": { "tier": "site" } } } }))
        .await;
    let address = json!({ "ephemeral": { "prefixTemplate": { "spec": { "parentRef": { "name": "shop" } } } } });
    region
        .create::<NetworkInterface>(json!({ "metadata": { "name": "web" }, "spec": {
            "networkRef": { "name": "shop" }, "ipFamilies": ["IPv4"], "ips": [address],
            "prefixes": [{ "ephemeral": { "prefixTemplate": { "spec": {
                "ipFamily": "IPv4", "prefixLength": 28, "parentRef": { "name": "shop" } } } } }],
            "virtualIP": { "ephemeral": { "virtualIPTemplate": { "spec": {
                "type": "Public", "ipFamily": "IPv4", "reclaimPolicy": "Retain" } } } },
        } }))
        .await;
    region
        .create::<LoadBalancer>(json!({ "metadata": { "name": "inner" }, "spec": {
            "type": "Internal", "ipFamilies": ["IPv4"], "ips": [address], "networkRef": { "name": "shop" },
            "ports": [{ "port": 80 }],
        } }))
        .await;
    let prefixes = region
        .until::<Prefix>("ready", |all| all.len() == 5 && all.iter().all(is_ready))
        .await;
    let blocks: Vec<String> = prefixes
        .iter()
        .filter_map(|prefix| prefix.spec.prefix.map(|block| block.bits().to_string()))
        .collect();
    assert_eq!(
        blocks,
        ["32", "24", "16", "32", "28"],
        "inner-0, shop, site, web-0, web-pf-0"
    );
    let all = (DeleteParams::default(), ListParams::default());
    region
        .api::<Prefix>()
        .delete_collection(&all.0, &all.1)
        .await
        .expect("deleted");
    region
        .api::<LoadBalancer>()
        .delete_collection(&all.0, &all.1)
        .await
        .expect("deleted");
    region
        .api::<NetworkInterface>()
        .delete_collection(&all.0, &all.1)
        .await
        .expect("deleted");
    region.until::<Prefix>("gone", <[Prefix]>::is_empty).await;
    region
        .until::<PrefixAllocation>("gone", <[PrefixAllocation]>::is_empty)
        .await;
    // What is retained is free for the next interface.
    let kept = region
        .until::<VirtualIP>("released", |all| {
            all.iter().all(|vip| vip.spec.target_ref.is_none())
        })
        .await;
    assert_eq!(kept.len(), 1);
    region.stop().await;
}
