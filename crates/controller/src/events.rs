//! Events for users (`kubectl describe`), sent beside the reconcile path: bounded, rate limited per object, and dropped
//! rather than allowed to slow a controller down. Events are hints; conditions and status carry the truth.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{api::events::v1::Event, jiff::Timestamp};
use kube::Api;
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{execute::cluster_of, plan::Regarding, runner::Cluster};

/// Events waiting to be sent.
pub const EVENTS_QUEUED_MAX: usize = 1024;
/// An object may have this many events at once...
pub const EVENTS_BURST_MAX: u32 = 10;
/// ...and one more after each such time.
pub const EVENTS_REFILL: Duration = Duration::from_secs(30);
/// The same reason for the same object is said again only after this time.
pub const EVENT_REPEAT_AFTER: Duration = Duration::from_secs(300);
/// Objects whose rate is remembered; beyond that the memory is dropped and starts anew.
pub const EVENT_OBJECTS_MAX: usize = 4096;
/// The API's bound on notes is 1 KiB.
const NOTE_MAX: usize = 1000;

struct Item {
    regarding: Regarding,
    warning: bool,
    reason: &'static str,
    action: &'static str,
    note: String,
}

struct Bucket {
    tokens: u32,
    refilled: Instant,
    said: HashMap<(&'static str, String), Instant>,
}

/// Handle for sending; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Item>,
    buckets: Arc<Mutex<HashMap<String, Bucket>>>,
}

impl Recorder {
    pub(crate) fn new() -> (Recorder, Receiver) {
        let (queue, items) = mpsc::channel(EVENTS_QUEUED_MAX);
        (
            Recorder {
                queue,
                buckets: Arc::default(),
            },
            Receiver { items },
        )
    }

    /// Whether the event will be sent.
    pub(crate) fn send(
        &self,
        regarding: Regarding,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        mut note: String,
    ) -> bool {
        while note.len() > NOTE_MAX {
            note.pop();
        }
        if !self.admits(&regarding.uid, reason, &note, Instant::now()) {
            return false;
        }
        self.queue
            .try_send(Item {
                regarding,
                warning,
                reason,
                action,
                note,
            })
            .is_ok()
    }

    fn admits(&self, uid: &str, reason: &'static str, note: &str, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= EVENT_OBJECTS_MAX && !buckets.contains_key(uid) {
            buckets.clear();
        }
        let bucket = buckets.entry(uid.to_owned()).or_insert_with(|| Bucket {
            tokens: EVENTS_BURST_MAX,
            refilled: now,
            said: HashMap::new(),
        });
        while bucket.tokens < EVENTS_BURST_MAX && now >= bucket.refilled + EVENTS_REFILL {
            bucket.tokens += 1;
            bucket.refilled += EVENTS_REFILL;
        }
        if bucket.tokens == EVENTS_BURST_MAX {
            bucket.refilled = now;
        }
        bucket.said.retain(|_, at| now < *at + EVENT_REPEAT_AFTER);
        let words = (reason, note.to_owned());
        if bucket.tokens == 0 || bucket.said.contains_key(&words) {
            return false;
        }
        bucket.tokens -= 1;
        bucket.said.insert(words, now);
        true
    }
}

pub(crate) struct Receiver {
    items: mpsc::Receiver<Item>,
}

impl Receiver {
    /// Sends until shutdown. A failed send is logged and forgotten.
    pub(crate) async fn run(
        mut self,
        clusters: Vec<Cluster>,
        reporter: String,
        shutdown: CancellationToken,
    ) {
        let instance = format!("{reporter}-{}", std::process::id());
        loop {
            let item = tokio::select! {
                item = self.items.recv() => item,
                () = shutdown.cancelled() => None,
            };
            let Some(item) = item else { return };
            if let Err(error) = post(&clusters, &reporter, &instance, item).await {
                tracing::debug!(err = %error, "event was not recorded");
            }
        }
    }
}

async fn post(
    clusters: &[Cluster],
    reporter: &str,
    instance: &str,
    item: Item,
) -> Result<(), kube::Error> {
    let Item {
        regarding: Regarding { target, uid },
        warning,
        reason,
        action,
        note,
    } = item;
    let namespace = match target.key.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    let suffix: u64 = rand::random();
    let name: String = target.key.name.chars().take(200).collect();
    let event = json!({
        "metadata": { "name": format!("{name}.{suffix:016x}"), "namespace": namespace },
        "eventTime": format!("{:.6}", Timestamp::now()),
        "reportingController": reporter,
        "reportingInstance": instance,
        "action": action,
        "reason": reason,
        "regarding": {
            "apiVersion": target.kind.api_version(),
            "kind": target.kind.kind,
            "namespace": target.key.namespace,
            "name": target.key.name,
            "uid": uid,
        },
        "note": note,
        "type": if warning { "Warning" } else { "Normal" },
    });
    let event: Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
    let client = cluster_of(clusters, &target.kind.group).client.clone();
    let api: Api<Event> = Api::namespaced(client, namespace);
    api.create(&Default::default(), &event).await.map(|_| ())
}
