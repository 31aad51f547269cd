//! The API's side of the shell: watches that feed the agent, and the writes it asks for.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use api::k8s_openapi::jiff::Timestamp;
use controller::health::Pulse;
use controller::runner::watch_pause;
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

/// What the agent reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Network,
    Nic,
    Balancer,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; WATCHES] = [Kind::Network, Kind::Nic, Kind::Balancer];

    /// How the API names it.
    pub fn resource(self) -> ApiResource {
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
        let mut view = View::new(kind);
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
                        () = tokio::time::sleep(watch_pause(&error, failures)) => {}
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
        let synced = view.is_synced();
        for input in view.take(&self.reader, event) {
            self.report(input).await;
        }
        if view.is_synced() && !synced && self.synced.fetch_add(1, Ordering::AcqRel) + 1 == WATCHES
        {
            self.report(Input::ApiSynced).await;
        }
    }

    async fn report(&self, input: Input) {
        if self.inputs.send(input).await.is_err() {
            tracing::debug!("the agent has stopped");
        }
    }

    async fn write_one(&self, op: &ApiOp) -> Result<Written, ApiError> {
        match op {
            ApiOp::Warn {
                kind,
                meta,
                reason,
                note,
            } => self.warn(kind, meta, reason, note).await,
            op => match Change::of(op) {
                Some(change) => self.patch(change).await,
                None => Ok(Written::Nothing),
            },
        }
    }

    async fn patch(&self, change: Change<'_>) -> Result<Written, ApiError> {
        let Change {
            kind,
            key,
            body,
            status,
        } = change;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &key.namespace, &kind.resource());
        let params = PatchParams {
            field_manager: Some(api::names::manager::METALNET.to_owned()),
            ..Default::default()
        };
        let patch = Patch::Merge(body);
        let result = if status {
            api.patch_status(&key.name, &params, &patch).await
        } else {
            api.patch(&key.name, &params, &patch).await
        };
        let object = result.map_err(api_error)?;
        Ok(written(&self.reader, kind, object))
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

/// A write of the agent as the API takes it: a merge patch. Pure.
#[derive(Debug, Clone, PartialEq)]
pub struct Change<'a> {
    pub kind: Kind,
    pub key: &'a ObjectKey,
    pub body: Value,
    /// The patch is one of the status.
    pub status: bool,
}

impl<'a> Change<'a> {
    /// `None` for warnings, which are no change.
    pub fn of(op: &'a ApiOp) -> Option<Self> {
        let (kind, meta, body, status) = match op {
            ApiOp::NicFinalizers { meta, finalizers } => {
                (Kind::Nic, meta, locked(meta, finalizers), false)
            }
            ApiOp::NicStatus { meta, status } => {
                let body = json!({ "status": status_value(status) });
                (Kind::Nic, meta, body, true)
            }
            ApiOp::NetworkFinalizers { meta, finalizers } => {
                (Kind::Network, meta, locked(meta, finalizers), false)
            }
            ApiOp::NetworkPeerings { meta, peerings } => {
                let list: Vec<Value> = peerings
                    .iter()
                    .map(|(id, state)| json!({ "id": id, "state": word(*state) }))
                    .collect();
                let body = json!({ "status": { "peerings": list } });
                (Kind::Network, meta, body, true)
            }
            ApiOp::BalancerFinalizers { meta, finalizers } => {
                (Kind::Balancer, meta, locked(meta, finalizers), false)
            }
            ApiOp::BalancerStatus { meta, state } => {
                let body = json!({ "status": { "state": word(*state) } });
                (Kind::Balancer, meta, body, true)
            }
            ApiOp::Warn { .. } => return None,
        };
        let key = &meta.key;
        Some(Self {
            kind,
            key,
            body,
            status,
        })
    }
}

/// What the API's answer to a write says to the agent. Pure.
pub fn written(reader: &Reader, kind: Kind, object: DynamicObject) -> Written {
    match kind {
        Kind::Network => parse::network(object).map_or(Written::Nothing, |network| {
            Written::Network(Box::new(network))
        }),
        Kind::Nic => match reader.nic(object) {
            Seen::Local(nic) => Written::Nic(nic),
            Seen::Foreign(_) | Seen::Unusable => Written::Nothing,
        },
        Kind::Balancer => match reader.balancer(object) {
            Seen::Local(balancer) => Written::Balancer(balancer),
            Seen::Foreign(_) | Seen::Unusable => Written::Nothing,
        },
    }
}

/// What one watch has shown so far. Pure.
#[derive(Debug)]
pub struct View {
    kind: Kind,
    known: BTreeMap<ObjectKey, Uid>,
    listed: HashSet<ObjectKey>,
    synced: bool,
}

impl View {
    /// Nothing yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            known: BTreeMap::new(),
            listed: HashSet::new(),
            synced: false,
        }
    }

    /// Whether everything has been listed once.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What an event means for the agent.
    pub fn take(&mut self, reader: &Reader, event: Event<DynamicObject>) -> Vec<Input> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed.insert(key_of(&object));
                self.seen(reader, object)
            }
            Event::Apply(object) => self.seen(reader, object),
            Event::Delete(object) => {
                let key = key_of(&object);
                let gone = self.known.remove(&key);
                self.gone(key, gone).into_iter().collect()
            }
            Event::InitDone => {
                let keys = self.known.keys();
                let missing = keys.filter(|key| !self.listed.contains(*key));
                let missing: Vec<ObjectKey> = missing.cloned().collect();
                let gone = missing.into_iter().filter_map(|key| {
                    let uid = self.known.remove(&key);
                    self.gone(key, uid)
                });
                let gone = gone.collect();
                self.listed.clear();
                self.synced = true;
                gone
            }
        }
    }

    fn seen(&mut self, reader: &Reader, object: DynamicObject) -> Vec<Input> {
        let key = key_of(&object);
        let (uid, input) = match self.kind {
            Kind::Network => match parse::network(object) {
                Some(network) => (network.meta.uid.clone(), Input::Network(Box::new(network))),
                None => return Vec::new(),
            },
            Kind::Nic => match reader.nic(object) {
                Seen::Local(nic) => (nic.meta.uid.clone(), Input::Nic(nic)),
                Seen::Foreign(uid) => return self.foreign(key, uid),
                Seen::Unusable => return unusable(&key),
            },
            Kind::Balancer => match reader.balancer(object) {
                Seen::Local(balancer) => (balancer.meta.uid.clone(), Input::Balancer(balancer)),
                Seen::Foreign(uid) => return self.foreign(key, uid),
                Seen::Unusable => return unusable(&key),
            },
        };
        let old = self.known.insert(key.clone(), uid.clone());
        let replaced = old.filter(|old| *old != uid);
        let gone = replaced.and_then(|old| self.gone(key, Some(old)));
        gone.into_iter().chain([input]).collect()
    }

    /// Another node's: only news if it was ours before.
    fn foreign(&mut self, key: ObjectKey, uid: Uid) -> Vec<Input> {
        if self.known.get(&key) != Some(&uid) {
            return Vec::new();
        }
        self.known.remove(&key);
        self.gone(key, Some(uid)).into_iter().collect()
    }

    fn gone(&self, key: ObjectKey, uid: Option<Uid>) -> Option<Input> {
        match self.kind {
            Kind::Network => Some(Input::NetworkGone(key)),
            Kind::Nic => uid.map(Input::NicGone),
            Kind::Balancer => uid.map(Input::BalancerGone),
        }
    }
}

fn unusable(key: &ObjectKey) -> Vec<Input> {
    tracing::warn!(object = %key, "its UID cannot be used as an id in the data plane");
    Vec::new()
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
        observed_generation,
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
        "observedGeneration": observed_generation,
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
