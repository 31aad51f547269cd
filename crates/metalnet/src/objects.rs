//! The API's side of the shell: watches that feed the agent, and the writes it asks for.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use api::k8s_openapi::jiff::Timestamp;
use controller::health::Pulse;
use futures::StreamExt as _;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::{Input, Written};
use crate::model::{DeviceStatus, Meta, NicStatus, ObjectKey, State, Uid};
use crate::parse::{self, Reader, Seen};
use crate::plan::ops::{ApiError, ApiOp};
use crate::services::NatShare;

/// The server ends a watch after this many seconds, which bounds how long a dead connection goes unnoticed.
const WATCH_SECONDS: u32 = 240;
/// Objects per page of a list.
const LIST_PAGE: u32 = 500;
/// Longest pause before a broken watch is taken up again.
pub const RECONNECT_MAX: Duration = Duration::from_millis(250);
/// Longest pause while the server refuses the watch.
pub const REFUSED_MAX: Duration = Duration::from_secs(2);
/// How long one write may take.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest note of an event, in bytes; the API takes 1 KiB.
const NOTE_MAX: usize = 1000;
const WATCHES: usize = 3;
/// Pause between looks at the API server for the health page, and how long it may take to answer one.
/// Together less than a failure counts, see [`controller::health::PULSE_HEALED_AFTER`].
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How the conversations with the API server go.
#[derive(Debug, Default)]
pub struct Pulses {
    pub networks: Pulse,
    pub nics: Pulse,
    pub balancers: Pulse,
    /// A server that accepts connections and never answers breaks no watch; a small read finds it.
    pub server: Pulse,
}

/// The API as metalnet uses it.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    /// Only objects of this namespace, or all.
    namespace: Option<String>,
    reader: Reader,
    inputs: mpsc::Sender<Input>,
    synced: Arc<AtomicUsize>,
    events: Arc<AtomicU64>,
    pulses: Arc<Pulses>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Network,
    Nic,
    Balancer,
}

impl Kind {
    fn resource(self) -> ApiResource {
        match self {
            Self::Network => ApiResource::erase::<api::metalnet::Network>(&()),
            Self::Nic => ApiResource::erase::<api::metalnet::NetworkInterface>(&()),
            Self::Balancer => ApiResource::erase::<api::metalnet::LoadBalancer>(&()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Network => "Network",
            Self::Nic => "NetworkInterface",
            Self::Balancer => "LoadBalancer",
        }
    }
}

impl Objects {
    /// Objects of `namespace` (or of all) seen by `reader`.
    pub fn new(
        client: Client,
        namespace: Option<String>,
        reader: Reader,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        Self {
            client,
            namespace,
            reader,
            inputs,
            synced: Arc::default(),
            events: Arc::default(),
            pulses: Arc::default(),
        }
    }

    /// For the health page.
    pub fn pulses(&self) -> Arc<Pulses> {
        self.pulses.clone()
    }

    /// Looks at the API server from time to time until shutdown.
    pub async fn probe(self, shutdown: CancellationToken) {
        let api: Api<DynamicObject> = match &self.namespace {
            Some(namespace) => {
                Api::namespaced_with(self.client.clone(), namespace, &Kind::Network.resource())
            }
            None => Api::all_with(self.client.clone(), &Kind::Network.resource()),
        };
        let one = ListParams::default().limit(1);
        loop {
            match tokio::time::timeout(PROBE_TIMEOUT, api.list_metadata(&one)).await {
                Ok(Ok(_)) => self.pulses.server.well(),
                Ok(Err(error)) => self.pulses.server.failed(error.to_string()),
                Err(_) => self.pulses.server.failed("no answer in time".to_owned()),
            }
            tokio::select! {
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Watches Networks until shutdown.
    pub async fn watch_networks(self, shutdown: CancellationToken) {
        self.watch(Kind::Network, shutdown).await;
    }

    /// Watches NetworkInterfaces until shutdown.
    pub async fn watch_nics(self, shutdown: CancellationToken) {
        self.watch(Kind::Nic, shutdown).await;
    }

    /// Watches LoadBalancers until shutdown.
    pub async fn watch_balancers(self, shutdown: CancellationToken) {
        self.watch(Kind::Balancer, shutdown).await;
    }

    /// Carries out the writes that come through `ops` until shutdown; the agent bounds how many are under way.
    pub async fn write(self, mut ops: mpsc::Receiver<ApiOp>, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                op = ops.recv() => {
                    let Some(op) = op else { return };
                    let this = self.clone();
                    tasks.spawn(async move {
                        let result = match tokio::time::timeout(WRITE_TIMEOUT, this.write_one(&op)).await {
                            Ok(result) => result,
                            Err(_) => Err(ApiError::Unavailable("timed out".to_owned())),
                        };
                        this.report(Input::Api { op, result }).await;
                    });
                }
                Some(_) = tasks.join_next() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn watch(self, kind: Kind, shutdown: CancellationToken) {
        let api: Api<DynamicObject> = match &self.namespace {
            Some(namespace) => {
                Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
            }
            None => Api::all_with(self.client.clone(), &kind.resource()),
        };
        let config = watcher::Config::default()
            .timeout(WATCH_SECONDS)
            .page_size(LIST_PAGE);
        let mut stream = watcher(api, config).boxed();
        let mut view = View {
            kind,
            known: HashMap::new(),
            listed: HashSet::new(),
            synced: false,
        };
        let mut failures = 0u32;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = shutdown.cancelled() => return,
            };
            // The stream of a watcher never ends by itself.
            let Some(event) = event else { return };
            match event {
                Ok(event) => {
                    failures = 0;
                    // A listing that begins proves nothing yet.
                    if !matches!(event, Event::Init) {
                        self.pulse(kind).well();
                    }
                    self.take(&mut view, event).await;
                }
                Err(error) => {
                    self.pulse(kind).failed(error.to_string());
                    if failures == 0 {
                        tracing::info!(kind = kind.name(), err = %error, "watch interrupted");
                    }
                    failures = failures.saturating_add(1);
                    tokio::select! {
                        () = tokio::time::sleep(pause(&error, failures)) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
            }
        }
    }

    fn pulse(&self, kind: Kind) -> &Pulse {
        match kind {
            Kind::Network => &self.pulses.networks,
            Kind::Nic => &self.pulses.nics,
            Kind::Balancer => &self.pulses.balancers,
        }
    }

    async fn take(&self, view: &mut View, event: Event<DynamicObject>) {
        match event {
            Event::Init => view.listed.clear(),
            Event::InitApply(object) => {
                view.listed.insert(key_of(&object));
                self.seen(view, object).await;
            }
            Event::Apply(object) => self.seen(view, object).await,
            Event::Delete(object) => {
                let key = key_of(&object);
                let gone = view.known.remove(&key);
                self.gone(view.kind, key, gone).await;
            }
            Event::InitDone => {
                let missing: Vec<ObjectKey> = view
                    .known
                    .keys()
                    .filter(|key| !view.listed.contains(*key))
                    .cloned()
                    .collect();
                for key in missing {
                    let gone = view.known.remove(&key);
                    self.gone(view.kind, key, gone).await;
                }
                view.listed.clear();
                if !view.synced {
                    view.synced = true;
                    if self.synced.fetch_add(1, Ordering::AcqRel) + 1 == WATCHES {
                        self.report(Input::ApiSynced).await;
                    }
                }
            }
        }
    }

    async fn seen(&self, view: &mut View, object: DynamicObject) {
        let key = key_of(&object);
        let (uid, input) = match view.kind {
            Kind::Network => match parse::network(object) {
                Some(network) => (network.meta.uid.clone(), Input::Network(Box::new(network))),
                None => return,
            },
            Kind::Nic => match self.reader.nic(object) {
                Seen::Local(nic) => (nic.meta.uid.clone(), Input::Nic(nic)),
                Seen::Foreign(uid) => return self.foreign(view, key, uid).await,
                Seen::Unusable => return unusable(&key),
            },
            Kind::Balancer => match self.reader.balancer(object) {
                Seen::Local(balancer) => (balancer.meta.uid.clone(), Input::Balancer(balancer)),
                Seen::Foreign(uid) => return self.foreign(view, key, uid).await,
                Seen::Unusable => return unusable(&key),
            },
        };
        if let Some(old) = view
            .known
            .insert(key.clone(), uid.clone())
            .filter(|old| *old != uid)
        {
            self.gone(view.kind, key, Some(old)).await;
        }
        self.report(input).await;
    }

    /// Another node's: only news if it was ours before.
    async fn foreign(&self, view: &mut View, key: ObjectKey, uid: Uid) {
        if view.known.get(&key) == Some(&uid) {
            view.known.remove(&key);
            self.gone(view.kind, key, Some(uid)).await;
        }
    }

    async fn gone(&self, kind: Kind, key: ObjectKey, uid: Option<Uid>) {
        match (kind, uid) {
            (Kind::Network, _) => self.report(Input::NetworkGone(key)).await,
            (Kind::Nic, Some(uid)) => self.report(Input::NicGone(uid)).await,
            (Kind::Balancer, Some(uid)) => self.report(Input::BalancerGone(uid)).await,
            (Kind::Nic | Kind::Balancer, None) => {}
        }
    }

    async fn report(&self, input: Input) {
        if self.inputs.send(input).await.is_err() {
            tracing::debug!("the agent has stopped");
        }
    }

    async fn write_one(&self, op: &ApiOp) -> Result<Written, ApiError> {
        match op {
            ApiOp::NicFinalizers { meta, finalizers } => {
                let object = self
                    .patch(Kind::Nic, meta, &locked(meta, finalizers), false)
                    .await?;
                Ok(self.written_nic(object))
            }
            ApiOp::NicStatus { meta, status } => {
                let object = self
                    .patch(
                        Kind::Nic,
                        meta,
                        &json!({ "status": status_value(status) }),
                        true,
                    )
                    .await?;
                Ok(self.written_nic(object))
            }
            ApiOp::NetworkFinalizers { meta, finalizers } => {
                let object = self
                    .patch(Kind::Network, meta, &locked(meta, finalizers), false)
                    .await?;
                Ok(written_network(object))
            }
            ApiOp::NetworkPeerings { meta, peerings } => {
                let list: Vec<Value> = peerings
                    .iter()
                    .map(|(id, state)| json!({ "id": id, "state": word(*state) }))
                    .collect();
                let object = self
                    .patch(
                        Kind::Network,
                        meta,
                        &json!({ "status": { "peerings": list } }),
                        true,
                    )
                    .await?;
                Ok(written_network(object))
            }
            ApiOp::BalancerFinalizers { meta, finalizers } => {
                let patch = locked(meta, finalizers);
                let object = self.patch(Kind::Balancer, meta, &patch, false).await?;
                Ok(self.written_balancer(object))
            }
            ApiOp::BalancerStatus { meta, state } => {
                let patch = json!({ "status": { "state": word(*state) } });
                let object = self.patch(Kind::Balancer, meta, &patch, true).await?;
                Ok(self.written_balancer(object))
            }
            ApiOp::Warn {
                kind,
                meta,
                reason,
                note,
            } => self.warn(kind, meta, reason, note).await,
        }
    }

    async fn patch(
        &self,
        kind: Kind,
        meta: &Meta,
        patch: &Value,
        status: bool,
    ) -> Result<DynamicObject, ApiError> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &meta.key.namespace, &kind.resource());
        let params = PatchParams {
            field_manager: Some(api::names::manager::METALNET.to_owned()),
            ..Default::default()
        };
        let patch = Patch::Merge(patch);
        let result = if status {
            api.patch_status(&meta.key.name, &params, &patch).await
        } else {
            api.patch(&meta.key.name, &params, &patch).await
        };
        result.map_err(api_error)
    }

    fn written_nic(&self, object: DynamicObject) -> Written {
        match self.reader.nic(object) {
            Seen::Local(nic) => Written::Nic(nic),
            Seen::Foreign(_) | Seen::Unusable => Written::Nothing,
        }
    }

    fn written_balancer(&self, object: DynamicObject) -> Written {
        match self.reader.balancer(object) {
            Seen::Local(balancer) => Written::Balancer(balancer),
            Seen::Foreign(_) | Seen::Unusable => Written::Nothing,
        }
    }

    async fn warn(
        &self,
        kind: &str,
        meta: &Meta,
        reason: &str,
        note: &str,
    ) -> Result<Written, ApiError> {
        let now = Timestamp::now();
        let count = self.events.fetch_add(1, Ordering::Relaxed);
        let name: String = meta.key.name.chars().take(200).collect();
        let mut note = note.to_owned();
        while note.len() > NOTE_MAX {
            note.pop();
        }
        let event = json!({
            "metadata": {
                "namespace": meta.key.namespace,
                "name": format!("{name}.{:x}.{count:x}", now.as_nanosecond()),
            },
            "eventTime": format!("{now:.6}"),
            "reportingController": api::names::manager::METALNET,
            "reportingInstance": format!("metalnet-{}", self.reader.node),
            "action": "Reconcile",
            "reason": reason,
            "regarding": {
                "apiVersion": format!("{}/{}", api::names::METALNET, api::names::VERSION),
                "kind": kind,
                "namespace": meta.key.namespace,
                "name": meta.key.name,
                "uid": meta.uid.as_str(),
            },
            "note": note,
            "type": "Warning",
        });
        let event = serde_json::from_value::<api::k8s_openapi::api::events::v1::Event>(event)
            .map_err(|error| ApiError::Refused(error.to_string()))?;
        let api = Api::namespaced(self.client.clone(), &meta.key.namespace);
        api.create(&PostParams::default(), &event)
            .await
            .map(|_| Written::Nothing)
            .map_err(api_error)
    }
}

/// What one watch has shown so far.
struct View {
    kind: Kind,
    known: HashMap<ObjectKey, Uid>,
    listed: HashSet<ObjectKey>,
    synced: bool,
}

fn unusable(key: &ObjectKey) {
    tracing::warn!(object = %key, "its UID cannot be used as an id in the data plane");
}

fn written_network(object: DynamicObject) -> Written {
    parse::network(object).map_or(Written::Nothing, |network| {
        Written::Network(Box::new(network))
    })
}

fn key_of(object: &DynamicObject) -> ObjectKey {
    ObjectKey {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    }
}

/// A merge patch replaces the list of finalizers as a whole: the version makes sure that nobody's is lost.
fn locked(meta: &Meta, finalizers: &[String]) -> Value {
    json!({ "metadata": { "resourceVersion": meta.resource_version, "finalizers": finalizers } })
}

/// `null` removes a field in a merge patch.
fn status_value(status: &NicStatus) -> Value {
    let NicStatus {
        state,
        device,
        prefixes,
        virtual_ips,
        nat,
        targets,
    } = status;
    let (pci, tap) = match device {
        None => (Value::Null, Value::Null),
        Some(DeviceStatus::Tap { name }) => (Value::Null, json!({ "name": name })),
        Some(DeviceStatus::Pci {
            domain,
            bus,
            slot,
            function,
        }) => (
            json!({ "domain": domain, "bus": bus, "slot": slot, "function": function }),
            Value::Null,
        ),
    };
    let nat = nat.map(|NatShare { address, ports }| {
        json!({ "ip": address, "port": ports.first(), "endPort": ports.end() })
    });
    let first = virtual_ips.first();
    let more: Vec<&IpAddr> = virtual_ips.iter().skip(1).collect();
    json!({
        "state": state.map(word),
        "pciAddress": pci,
        "tapDevice": tap,
        "prefixes": list(prefixes),
        "virtualIP": first,
        "virtualIPs": list(&more),
        "natIP": nat,
        "loadBalancerTargets": list(targets),
    })
}

fn list<T: Serialize>(items: &[T]) -> Value {
    if items.is_empty() {
        Value::Null
    } else {
        json!(items)
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Pending => "Pending",
        State::Ready => "Ready",
        State::Error => "Error",
    }
}

fn api_error(error: kube::Error) -> ApiError {
    match &error {
        kube::Error::Api(status) => match status.code {
            409 => ApiError::Conflict,
            404 => ApiError::NotFound,
            408 | 425 | 429 => ApiError::Unavailable(error.to_string()),
            400..=499 => ApiError::Refused(error.to_string()),
            _ => ApiError::Unavailable(error.to_string()),
        },
        _ => ApiError::Unavailable(error.to_string()),
    }
}

/// Short while the server is away, longer while it refuses.
fn pause(error: &watcher::Error, failures: u32) -> Duration {
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
