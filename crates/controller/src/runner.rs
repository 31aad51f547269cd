//! Drives controllers: one watch per distinct selector, one queue and a few workers per controller, one executor.
//!
//! Life of a change: watch event → store → the key functions of every subscribed controller → queue → worker → `plan` →
//! execute → wait until the caches show the writes → next key. A server that goes away costs nothing but time: watches
//! resume from the last version within [`RECONNECT_MAX`] of its return and nothing is listed again unless history was lost.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::StreamExt;
use kube::{
    Api, Resource,
    core::DynamicObject,
    runtime::watcher::{self, Event, watcher},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Class, Error},
    events::Recorder,
    execute::{Executed, Executor, cluster_of},
    health::Health,
    key::Key,
    leader::Fence,
    metrics::{ControllerMetrics, WatchMetrics, bump},
    plan::{Act, Plan},
    queue::{Outcome, Queue},
    source::{Caches, KeysFn, Selector, Source},
    store::{Change, Store},
    world::World,
};

/// Longest pause between two attempts to reach a server that is away.
pub const RECONNECT_MAX: Duration = Duration::from_millis(250);
/// Longest pause after a refusal (forbidden, unknown resource).
pub const REFUSED_MAX: Duration = Duration::from_secs(2);
/// Every object wakes its keys at least this often, so that a missed wake-up cannot last.
pub const RESYNC_DEFAULT: Duration = Duration::from_secs(600);
pub const WORKERS_DEFAULT: usize = 4;
/// A list is fetched in pages of this size.
const LIST_PAGE: u32 = 500;
/// The server ends a watch after this many seconds, which bounds how long a silently dead connection goes unnoticed.
const WATCH_SECONDS: u32 = 240;

/// A controller: what it watches and what it wants. `plan` is pure; only `act` may touch the outside.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn sources(&self) -> Vec<Source>;

    /// Total, deterministic, idempotent, without clock, randomness or IO.
    fn plan(&self, world: &World, key: &Key) -> Plan;

    /// Executes an [`crate::Op::Act`] of this controller. Its outcome belongs into state that the next `plan` reads; the key
    /// is planned again right after.
    async fn act(&self, _world: &World, key: &Key, act: Act) -> Result<(), Error> {
        Err(Error::Bug(format!(
            "{} cannot execute {} for {key}",
            self.name(),
            act.label
        )))
    }
}

/// One API server, and the groups that are to be found there.
#[derive(Clone)]
pub struct Cluster {
    pub client: kube::Client,
    /// Groups served here; a group nobody claims is looked for at the first cluster of the runner.
    pub groups: Vec<String>,
}

impl Cluster {
    pub fn new(client: kube::Client) -> Cluster {
        Cluster {
            client,
            groups: Vec::new(),
        }
    }

    pub fn with_groups(client: kube::Client, groups: &[&str]) -> Cluster {
        Cluster {
            client,
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        }
    }
}

/// How a controller is run.
pub struct Options {
    /// Keys in work at a time. One makes the controller sequential: each plan sees all earlier writes.
    pub workers: usize,
    /// Keys from other event sources (a data plane, a bus).
    pub keys: Option<mpsc::Receiver<Key>>,
    pub resync: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            workers: WORKERS_DEFAULT,
            keys: None,
            resync: RESYNC_DEFAULT,
        }
    }
}

struct Entry {
    controller: Arc<dyn Controller>,
    options: Options,
    queue: Arc<Queue>,
    metrics: Arc<ControllerMetrics>,
}

struct Subscriber {
    queue: Arc<Queue>,
    keys: Option<KeysFn>,
    removed_keys: Option<KeysFn>,
}

struct WatchTask {
    selector: Selector,
    store: Arc<Store>,
    subscribers: Vec<Subscriber>,
    metrics: Arc<WatchMetrics>,
}

/// The set of controllers of one process. Declare clusters and controllers, then [`Runner::run`].
pub struct Runner {
    part: String,
    clusters: Vec<Cluster>,
    caches: Caches,
    subscribers: HashMap<Selector, Vec<Subscriber>>,
    entries: Vec<Entry>,
    health: Option<Arc<Health>>,
    fence: Option<Fence>,
}

impl Runner {
    /// `part` names the process in events, metrics and as the default field manager. The first cluster is the default one.
    pub fn new(part: impl Into<String>, cluster: Cluster) -> Runner {
        Runner {
            part: part.into(),
            clusters: vec![cluster],
            caches: Caches::default(),
            subscribers: HashMap::new(),
            entries: Vec::new(),
            health: None,
            fence: None,
        }
    }

    pub fn cluster(&mut self, cluster: Cluster) -> &mut Runner {
        self.clusters.push(cluster);
        self
    }

    pub fn health(&mut self, health: Arc<Health>) -> &mut Runner {
        self.health = Some(health);
        self
    }

    /// Writes only while this lease is held.
    pub fn fence(&mut self, fence: Fence) -> &mut Runner {
        self.fence = Some(fence);
        self
    }

    pub fn controller(&mut self, controller: Arc<dyn Controller>, options: Options) -> &mut Runner {
        let queue = Arc::new(Queue::default());
        for source in controller.sources() {
            self.caches.declare(&source);
            let Source {
                selector,
                keys,
                removed_keys,
                ..
            } = source;
            let subscriber = Subscriber {
                queue: queue.clone(),
                keys,
                removed_keys,
            };
            self.subscribers
                .entry(selector)
                .or_default()
                .push(subscriber);
        }
        self.entries.push(Entry {
            controller,
            options,
            queue,
            metrics: Arc::default(),
        });
        self
    }

    /// Only caches; for shells that read what no controller watches.
    pub fn source(&mut self, source: &Source) -> &mut Runner {
        self.caches.declare(source);
        self
    }

    /// Reads of the caches from outside. Complete once the runner is ready, and only for kinds declared before this call.
    pub fn world(&self) -> World {
        self.caches.world()
    }

    /// Runs until shutdown. Returns early only if one of its own tasks dies, which is a bug.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Runner {
            part,
            clusters,
            caches,
            mut subscribers,
            entries,
            health,
            fence,
        } = self;
        let world = caches.world();
        let (recorder, events) = Recorder::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(events.run(clusters.clone(), part.clone(), shutdown.clone()));

        let mut watches = BTreeMap::new();
        for (selector, store) in &caches.stores {
            let metrics = Arc::<WatchMetrics>::default();
            watches.insert(format!("{selector:?}"), (store.clone(), metrics.clone()));
            let task = WatchTask {
                selector: selector.clone(),
                store: store.clone(),
                subscribers: subscribers.remove(selector).unwrap_or_default(),
                metrics,
            };
            let client = cluster_of(&clusters, &selector.kind.group).client.clone();
            tasks.spawn(task.run(client, world.clone(), shutdown.clone()));
        }
        let queues: Arc<[Arc<Queue>]> = entries.iter().map(|entry| entry.queue.clone()).collect();
        if let Some(health) = &health {
            health.watch(
                part.clone(),
                &watches,
                entries.iter().map(|entry| {
                    (
                        entry.controller.name(),
                        entry.metrics.clone(),
                        entry.queue.clone(),
                    )
                }),
            );
        }

        let synced = async {
            for store in caches.stores.values() {
                store.wait_synced().await;
            }
        };
        tokio::select! {
            () = synced => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        tracing::info!(
            part,
            controllers = entries.len(),
            watches = watches.len(),
            "ready"
        );
        if let Some(health) = &health {
            health.set_ready();
        }

        let executor = Arc::new(Executor {
            clusters,
            recorder,
            fence,
            manager: part,
            unreachable: false.into(),
        });
        for Entry {
            controller,
            options,
            queue,
            metrics,
        } in entries
        {
            let Options {
                workers,
                keys,
                resync,
            } = options;
            tasks.spawn(feed(queue.clone(), keys, shutdown.clone()));
            let owned: Vec<_> = task_sources(&controller, &caches);
            tasks.spawn(resync_loop(
                queue.clone(),
                owned,
                world.clone(),
                resync,
                shutdown.clone(),
            ));
            for _ in 0..workers.max(1) {
                tasks.spawn(work(
                    controller.clone(),
                    queue.clone(),
                    metrics.clone(),
                    executor.clone(),
                    world.clone(),
                    queues.clone(),
                ));
            }
        }
        supervise(tasks, &queues, shutdown).await
    }
}

fn task_sources(controller: &Arc<dyn Controller>, caches: &Caches) -> Vec<(Arc<Store>, KeysFn)> {
    controller
        .sources()
        .into_iter()
        .filter_map(|source| Some((caches.stores.get(&source.selector)?.clone(), source.keys?)))
        .collect()
}

/// Waits for shutdown; lets work in progress finish, because every write is bounded in time.
async fn supervise(
    mut tasks: JoinSet<()>,
    queues: &[Arc<Queue>],
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mut result = Ok(());
    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = tasks.join_next() => {
            if let Some(Err(error)) = ended {
                result = Err(Error::Bug(format!("a task of the runner ended: {error}")));
            } else if !shutdown.is_cancelled() {
                result = Err(Error::Bug("a task of the runner ended by itself".to_owned()));
            }
        }
    }
    for queue in queues {
        queue.close();
    }
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(5), drained)
        .await
        .is_err()
    {
        tasks.abort_all();
    }
    result
}

/// Forwards keys of an external source; idles if there is none, or when its sender is gone.
async fn feed(queue: Arc<Queue>, keys: Option<mpsc::Receiver<Key>>, shutdown: CancellationToken) {
    if let Some(mut keys) = keys {
        loop {
            tokio::select! {
                key = keys.recv() => match key {
                    Some(key) => queue.add(key),
                    None => break,
                },
                () = shutdown.cancelled() => return,
            }
        }
    }
    shutdown.cancelled().await;
}

async fn resync_loop(
    queue: Arc<Queue>,
    sources: Vec<(Arc<Store>, KeysFn)>,
    world: World,
    every: Duration,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.cancelled() => return,
        }
        for (store, keys) in &sources {
            for object in store.all() {
                for key in keys(object.as_ref(), &world) {
                    queue.add(key);
                }
            }
        }
    }
}

async fn work(
    controller: Arc<dyn Controller>,
    queue: Arc<Queue>,
    metrics: Arc<ControllerMetrics>,
    executor: Arc<Executor>,
    world: World,
    queues: Arc<[Arc<Queue>]>,
) {
    while let Some(key) = queue.next().await {
        let started = tokio::time::Instant::now();
        let now_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            });
        let world = World {
            now_ms,
            ..world.clone()
        };
        let plan = controller.plan(&world, &key);
        bump(&metrics.plans);
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        metrics.plan_micros.fetch_add(micros, Ordering::Relaxed);
        if !plan.ops.is_empty() {
            tracing::debug!(controller = controller.name(), %key, ops = plan.ops.len(), "plan");
            tracing::trace!(controller = controller.name(), %key, ?plan, "plan");
        }
        let requeue = plan.requeue;
        let outcome = match executor
            .execute(&controller, &world, &key, plan, &metrics)
            .await
        {
            Ok(Executed { acted, reconnected }) => {
                if reconnected {
                    queues.iter().for_each(|queue| queue.retry_now());
                }
                match requeue {
                    _ if acted => Outcome::Again(Duration::ZERO),
                    Some(after) => Outcome::Again(after),
                    None => Outcome::Done,
                }
            }
            Err(error) => {
                let class = error.class();
                metrics.error(class);
                report(controller.name(), &key, class, &error);
                Outcome::Failed(class)
            }
        };
        queue.done(key, outcome);
    }
}

fn report(controller: &str, key: &Key, class: Class, error: &Error) {
    match class {
        Class::Conflict => tracing::debug!(controller, %key, err = %error, "conflict"),
        Class::Retry => tracing::info!(controller, %key, err = %error, "will be retried"),
        Class::Permanent => tracing::warn!(controller, %key, err = %error, "refused"),
        Class::Bug => tracing::error!(controller, %key, err = %error, "bug"),
    }
}

impl WatchTask {
    async fn run(self, client: kube::Client, world: World, shutdown: CancellationToken) {
        let Selector {
            kind,
            namespace,
            labels,
            fields,
        } = &self.selector;
        let resource = kind.api_resource();
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let mut config = watcher::Config::default()
            .timeout(WATCH_SECONDS)
            .page_size(LIST_PAGE);
        config.label_selector = labels.clone();
        config.field_selector = fields.clone();
        let mut stream = watcher(api, config).boxed();
        let mut listed = HashSet::new();
        let mut failures = 0u32;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = shutdown.cancelled() => return,
            };
            // The stream of a watcher never ends.
            let Some(event) = event else { return };
            match event {
                Ok(event) => {
                    // A listing that begins proves nothing yet.
                    if !matches!(event, Event::Init) {
                        self.metrics.pulse.well();
                    }
                    if failures > 0 {
                        failures = 0;
                        self.subscribers.iter().for_each(|s| s.queue.retry_now());
                    }
                    self.handle(event, &mut listed, &world);
                }
                Err(error) => {
                    bump(&self.metrics.restarts);
                    self.metrics.pulse.failed(error.to_string());
                    if failures == 0 {
                        tracing::info!(kind = kind.kind, err = %error, "watch interrupted");
                    }
                    failures = failures.saturating_add(1);
                    tokio::select! {
                        () = tokio::time::sleep(watch_pause(&error, failures)) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
            }
        }
    }

    fn handle(&self, event: Event<DynamicObject>, listed: &mut HashSet<Key>, world: &World) {
        bump(&self.metrics.events);
        match event {
            Event::Init => {
                bump(&self.metrics.relists);
                listed.clear();
            }
            Event::InitApply(object) => {
                listed.insert(Key::of(&object));
                self.put(object, world);
            }
            Event::InitDone => {
                for key in self.store.keys() {
                    if !listed.contains(&key) {
                        self.removed(self.store.remove(&key, None), world);
                    }
                }
                listed.clear();
                self.store.mark_synced();
            }
            Event::Apply(object) => self.put(object, world),
            Event::Delete(object) => {
                let version = object.meta().resource_version.clone();
                let change = self.store.remove(&Key::of(&object), version.as_deref());
                self.removed(change, world);
            }
        }
    }

    fn put(&self, object: DynamicObject, world: &World) {
        let key = Key::of(&object);
        match self.store.put(object) {
            Ok(Some(change)) => self.wake(&change, world),
            Ok(None) => {}
            Err(error) => {
                bump(&self.metrics.undecodable);
                let kind = &self.selector.kind.kind;
                tracing::warn!(kind, %key, err = %error, "object does not fit its type");
            }
        }
    }

    fn removed(&self, change: Option<Change>, world: &World) {
        if let Some(change) = change {
            self.wake(&change, world);
        }
    }

    fn wake(&self, change: &Change, world: &World) {
        let Change { old, new } = change;
        for subscriber in &self.subscribers {
            let Subscriber {
                queue,
                keys,
                removed_keys,
            } = subscriber;
            let seen = [old, new].into_iter().flatten();
            let woken = keys
                .iter()
                .flat_map(|keys| seen.clone().flat_map(|object| keys(object.as_ref(), world)));
            woken.for_each(|key| queue.add(key));
            if let (Some(removed_keys), Some(old), None) = (removed_keys, old, new) {
                removed_keys(old.as_ref(), world)
                    .into_iter()
                    .for_each(|key| queue.add(key));
            }
        }
    }
}

/// How long to wait after the `failures`th failure of a watch in a row: short while the server is away, longer while it refuses.
pub fn watch_pause(error: &watcher::Error, failures: u32) -> Duration {
    let refused = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => {
            (400..500).contains(&status.code)
        }
        _ => false,
    };
    let max = if refused { REFUSED_MAX } else { RECONNECT_MAX };
    Duration::from_millis(10)
        .saturating_mul(1 << failures.min(10))
        .min(max)
}
