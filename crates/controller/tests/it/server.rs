//! The whole runner against the API server: writes, restarts and failures of the server, election of a leader.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use apiserver::{
    pki::Ca,
    store::{Store, memory::MemoryStore},
    testing::{TestServer, ranges, spawn, spawn_at},
};
use controller::{
    Cluster, Controller, Key, Op, Options, Plan, Runner, Source, Target, Watch, World,
    leader::{self, Election},
    object,
};
use http::Request;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Long enough for a loaded machine; a test that needs it fails anyway.
const DEADLINE: Duration = Duration::from_secs(20);

async fn client(server: &TestServer) -> Client {
    let file = Kubeconfig::from_yaml(&server.kubeconfig().expect("kubeconfig")).expect("yaml");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("config")).expect("client")
}

/// Asks until the answer is yes.
async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !ask().await {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Copies each labelled ConfigMap to a Secret and holds it until the copy is gone. Counts its plans that write.
#[derive(Default)]
struct Copier {
    writing_plans: AtomicUsize,
}

const FINALIZER: &str = "test.openkcm.dev/copier";

impl Controller for Copier {
    fn name(&self) -> &'static str {
        "copier"
    }

    fn sources(&self) -> Vec<Source> {
        let sources = Watch::<ConfigMap>::new().labels("copy=yes").own_key();
        vec![sources.build(), Watch::<Secret>::new().own_key().build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(source) = world.by_key::<ConfigMap>(key) else {
            return plan;
        };
        let copy = world.by_key::<Secret>(key);
        if object::is_deleting(&*source) {
            match copy {
                Some(copy) => plan.push(Op::delete(&*copy)),
                None => plan.extend(Op::remove_finalizer(&*source, FINALIZER)),
            };
        } else {
            plan.extend(Op::add_finalizer(&*source, FINALIZER));
            let annotations = source.data.clone().unwrap_or_default();
            let live = copy.map(|copy| copy.metadata.annotations.clone().unwrap_or_default());
            if live.as_ref() != Some(&annotations) {
                let target = Target::new::<Secret>(&*key.namespace, &*key.name);
                let body = json!({ "metadata": { "annotations": annotations } });
                plan.push(Op::apply(target, "copier", body));
            }
        }
        if !plan.is_none() {
            self.writing_plans.fetch_add(1, Ordering::Relaxed);
        }
        plan
    }
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([("copy".to_owned(), "yes".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([("value".to_owned(), value.to_owned())].into()),
        ..ConfigMap::default()
    }
}

async fn copy(client: &Client, name: &str) -> Option<String> {
    let secret = Api::<Secret>::namespaced(client.clone(), "default")
        .get_opt(name)
        .await
        .ok()??;
    secret.metadata.annotations?.get("value").cloned()
}

async fn create(client: &Client, name: &str, value: &str) {
    let api = Api::<ConfigMap>::namespaced(client.clone(), "default");
    api.create(&PostParams::default(), &config_map(name, value))
        .await
        .expect("created");
}

struct Running {
    copier: Arc<Copier>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

fn start(client: &Client) -> Running {
    let copier = Arc::<Copier>::default();
    let mut runner = Runner::new("test", Cluster::new(client.clone()));
    runner.controller(copier.clone(), Options::default());
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let run = runner.run(stop.clone());
    tasks.spawn(async move { run.await.expect("the runner ends well") });
    Running {
        copier,
        tasks,
        stop,
    }
}

impl Running {
    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no panic");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_followed_through_their_life_with_as_few_writes_as_possible() {
    let server = spawn().await.expect("server");
    let client = client(&server).await;
    create(&client, "before", "1").await;
    let running = start(&client);
    for number in 0..20 {
        create(&client, &format!("c{number}"), "1").await;
    }
    for name in ["before", "c0", "c19"] {
        eventually("the copy", || async {
            copy(&client, name).await.as_deref() == Some("1")
        })
        .await;
    }
    let api = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let change = json!({ "data": { "value": "2" } });
    api.patch("c0", &PatchParams::default(), &Patch::Merge(&change))
        .await
        .expect("patched");
    eventually("the change", || async {
        copy(&client, "c0").await.as_deref() == Some("2")
    })
    .await;
    api.delete("c0", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually("the end", || async {
        api.get_opt("c0").await.expect("answer").is_none()
    })
    .await;
    assert_eq!(copy(&client, "c0").await, None);
    // 21 objects once each; one change; two steps of deletion. A second plan from a stale cache would show up here.
    assert_eq!(running.copier.writing_plans.load(Ordering::Relaxed), 24);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_promptly_after_the_server_was_killed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let (ca, _) = Ca::create(std::time::SystemTime::now()).expect("CA");
    let ca = Arc::new(ca);
    let server = spawn_at(store.clone(), ranges(), ca.clone(), 0)
        .await
        .expect("server");
    let port = server.running.address.port();
    let client = client(&server).await;
    let running = start(&client);
    create(&client, "a", "1").await;
    eventually("the copy", || async { copy(&client, "a").await.is_some() }).await;
    drop(server);
    let api = Api::<ConfigMap>::namespaced(client.clone(), "default");
    eventually("the outage", || async { api.get("a").await.is_err() }).await;
    let mut restarted = spawn_at(store.clone(), ranges(), ca.clone(), port).await;
    let deadline = Instant::now() + DEADLINE;
    while restarted.is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        restarted = spawn_at(store.clone(), ranges(), ca.clone(), port).await;
    }
    let server = restarted.expect("the port is free again");
    let back = Instant::now();
    create(&client, "b", "1").await;
    eventually("the copy", || async { copy(&client, "b").await.is_some() }).await;
    let resumed = back.elapsed();
    println!(
        "resumed {} ms after the server's return",
        resumed.as_millis()
    );
    assert!(resumed < Duration::from_secs(2), "{resumed:?}");
    running.stop().await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_leads_and_hands_over_when_it_stops() {
    let server = spawn().await.expect("server");
    let client = client(&server).await;
    let election = Election::new("kube-system", "test");
    let leading = Arc::new(AtomicUsize::new(0));
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let (client, election, led) = (client.clone(), election.clone(), leading.clone());
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        let shutdown = stop.clone();
        task.spawn(async move {
            leader::run(client, election, shutdown, |fence, stop| async move {
                assert!(fence.is_held());
                led.fetch_add(1, Ordering::SeqCst);
                stop.cancelled().await;
                led.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
            .await
            .expect("ends well");
        });
        replicas.push((task, stop));
        eventually("a leader", || async { leading.load(Ordering::SeqCst) == 1 }).await;
    }
    // Both electors live in one process, and still only one may lead.
    assert_eq!(leading.load(Ordering::SeqCst), 1);
    let (mut first, stop) = replicas.remove(0);
    stop.cancel();
    while let Some(ended) = first.join_next().await {
        ended.expect("no panic");
    }
    eventually("the next leader", || async {
        leading.load(Ordering::SeqCst) == 1
    })
    .await;
}

/// What becomes of the requests of the runner under test, by a seeded draw: most pass; some are refused with the codes of an
/// overloaded server, some are carried out and their answers are lost.
fn troubled(client: Client, seed: u64) -> Client {
    let draw = Arc::new(std::sync::Mutex::new(StdRng::seed_from_u64(seed)));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, draw) = (client.clone(), draw.clone());
        async move {
            let write = request.method() != http::Method::GET;
            let luck = draw.lock().expect("lock").random_range(0..100);
            let refusal = match luck {
                0..15 => Some(504),
                15..25 => Some(429),
                25..30 => Some(500),
                _ => None,
            };
            if let Some(code) = refusal.filter(|_| write || luck < 5) {
                let text = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "reason": "Timeout", "message": "too slow", "code": code,
                });
                let answer = http::Response::builder()
                    .status(code)
                    .header("content-type", "application/json")
                    .body(Body::from(text.to_string().into_bytes()));
                return Ok(answer.expect("response"));
            }
            let answer = client.send(request).await;
            match luck {
                30..50 if write => Err(kube::Error::Service("the answer was lost".into())),
                _ => answer,
            }
        }
    });
    Client::new(service, "default")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_forgotten_while_the_server_fails_half_of_the_writes() {
    const OBJECTS: usize = 60;
    let server = spawn().await.expect("server");
    let client = client(&server).await;
    let names: Vec<String> = (0..OBJECTS).map(|number| format!("t{number}")).collect();
    let running = start(&troubled(client.clone(), 1));
    for name in &names {
        create(&client, name, "1").await;
    }
    let shown = async |value: Option<&str>| {
        for name in &names {
            eventually(name, || async {
                copy(&client, name).await.as_deref() == value
            })
            .await;
        }
    };
    shown(Some("1")).await;
    let api = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let change = Patch::Merge(json!({ "data": { "value": "2" } }));
    for name in &names {
        let patched = api.patch(name, &PatchParams::default(), &change).await;
        patched.expect("patched");
    }
    shown(Some("2")).await;
    for name in &names {
        api.delete(name, &DeleteParams::default())
            .await
            .expect("deleted");
    }
    for name in &names {
        eventually("the end", || async {
            api.get_opt(name).await.expect("answer").is_none()
        })
        .await;
    }
    shown(None).await;
    running.stop().await;
}
