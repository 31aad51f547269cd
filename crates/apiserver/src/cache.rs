//! The watch cache: per kind an ordered map of the current objects and a ring of recent changes.
//!
//! One task follows the store and is the only writer. Readers copy handles under a short lock; watchers keep a position in the
//! ring and read from it at their own pace, so a slow watcher costs nothing and is cut off when the ring has passed it. A restart
//! refills the rings from the store's history: clients resume without listing again.

use crate::kinds::{Kinds, ResourceId};
use crate::object::{Damaged, Encoded};
use crate::status::Failure;
use crate::store::{At, Change, Kv, Rev, Store, StoreError, WatchBatch, WatchMessage};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::watch;

/// Changes kept per kind.
pub const RING_EVENTS_MAX: usize = 16_384;
/// Bytes of superseded and deleted objects kept per kind.
pub const RING_BYTES_MAX: usize = 64 << 20;
/// Changes that a watcher takes per turn.
pub const WATCH_BURST_MAX: usize = 256;
/// How long a request waits for a revision that the cache has not seen.
pub const FRESH_WAIT: Duration = Duration::from_secs(3);
/// Objects read per page when the cache is filled.
const LOAD_PAGE: usize = 5_000;

/// One version of one object.
#[derive(Debug)]
pub struct Entry {
    /// `namespace/name`, or `name` for cluster-scoped kinds.
    pub key: Box<str>,
    pub rev: Rev,
    pub encoded: Encoded,
    pub uid: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// What field selectors may name: read from the document when one asks first, then shared by all of them.
    fields: OnceLock<Box<[Box<str>]>>,
}

impl Entry {
    fn new(key: &str, rev: Rev, encoded: Encoded) -> Result<Entry, Damaged> {
        let head = encoded.head()?;
        let labels = head
            .labels
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        Ok(Entry {
            key: key.into(),
            rev,
            encoded,
            uid: head.uid.into(),
            labels,
            fields: OnceLock::new(),
        })
    }

    /// The entry of a stored version. A damaged one is reported and left out.
    pub fn from_kv(kv: Kv, key: &str) -> Option<Arc<Entry>> {
        let rev = kv.mod_rev;
        let made = Encoded::restore(kv.value).and_then(|encoded| Entry::new(key, rev, encoded));
        match made {
            Ok(entry) => Some(Arc::new(entry)),
            Err(Damaged) => {
                tracing::error!(key, rev, "damaged stored object is left out");
                None
            }
        }
    }

    pub fn namespace(&self) -> &str {
        self.key
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.key
            .split_once('/')
            .map_or(&*self.key, |(_, name)| name)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(k, _)| &**k == key)
            .map(|(_, value)| &**value)
    }

    /// The text of a field, empty when absent. `pointers` are those of the entry's kind.
    pub fn field(&self, pointers: &[String], index: usize) -> &str {
        let fields = self.fields.get_or_init(|| {
            let value = self.value();
            let text = |pointer: &String| -> Box<str> {
                match value.pointer(pointer) {
                    Some(serde_json::Value::String(text)) => text.as_str().into(),
                    None | Some(serde_json::Value::Null) => Box::default(),
                    Some(other) => other.to_string().into(),
                }
            };
            pointers.iter().map(text).collect()
        });
        fields.get(index).map_or("", |text| text)
    }

    pub fn value(&self) -> serde_json::Value {
        self.encoded.to_value(self.rev)
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    pub rev: Rev,
    /// The object before the change.
    pub prev: Option<Arc<Entry>>,
    /// The object after the change; absent when it was deleted.
    pub next: Option<Arc<Entry>>,
}

#[derive(Debug, Default)]
struct Shelf {
    objects: BTreeMap<Box<str>, Arc<Entry>>,
    ring: VecDeque<Arc<Event>>,
    /// Sequence number of the ring's first event.
    first: u64,
    ring_bytes: usize,
    /// All events with a higher revision are in the ring.
    floor: Rev,
    /// Revision of the newest event.
    tip: Rev,
}

impl Shelf {
    fn end(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    fn push(&mut self, event: Event) {
        self.tip = self.tip.max(event.rev);
        self.ring_bytes += event.prev.as_ref().map_or(0, |prev| prev.encoded.len());
        self.ring.push_back(Arc::new(event));
        while self.ring.len() > RING_EVENTS_MAX || self.ring_bytes > RING_BYTES_MAX {
            let Some(old) = self.ring.pop_front() else {
                break;
            };
            self.first += 1;
            self.floor = old.rev;
            self.ring_bytes -= old.prev.as_ref().map_or(0, |prev| prev.encoded.len());
        }
    }
}

#[derive(Debug)]
struct Slot {
    shelf: RwLock<Shelf>,
    /// Sequence number after the newest event; what watchers wait on.
    end: watch::Sender<u64>,
}

impl Slot {
    /// Nothing panics while a shelf is locked, so a poisoned lock hides no half-made change.
    fn read(&self) -> RwLockReadGuard<'_, Shelf> {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Current objects and recent changes of every kind.
#[derive(Debug)]
pub struct Cache {
    slots: Vec<Slot>,
    by_prefix: HashMap<Box<[u8]>, ResourceId>,
    progress: watch::Sender<Rev>,
}

/// Some objects of one kind and the revision they were read at.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub entries: Vec<Arc<Entry>>,
    pub rev: Rev,
}

/// A position in the ring of one kind.
#[derive(Debug)]
pub struct Cursor {
    resource: ResourceId,
    next: u64,
    end: watch::Receiver<u64>,
}

/// What a cursor yields.
#[derive(Debug)]
pub enum Turn {
    Events(Vec<Arc<Event>>),
    /// The ring has passed the cursor.
    Lagged,
}

impl Cache {
    pub fn new(kinds: &Kinds) -> Cache {
        let slots = kinds.iter().map(|_| Slot {
            shelf: RwLock::default(),
            end: watch::Sender::new(0),
        });
        let by_prefix = kinds
            .stored()
            .map(|kind| (kind.prefix().into_boxed_slice(), kind.id));
        Cache {
            slots: slots.collect(),
            by_prefix: by_prefix.collect(),
            progress: watch::Sender::new(0),
        }
    }

    /// Fills the cache and returns the running store watch, for [`Cache::follow`].
    pub async fn load(&self, store: &dyn Store) -> Result<crate::store::Watch, StoreError> {
        let floor = store.floor().await;
        let mut changes = store.watch(b"/", floor).await?;
        let rev = store.current().await;
        let mut after: Option<bytes::Bytes> = None;
        loop {
            let page = store
                .range(b"/", after.as_deref(), LOAD_PAGE, At::Exactly(rev))
                .await?;
            after = page.kvs.last().map(|kv| kv.key.clone());
            page.kvs.into_iter().for_each(|kv| self.insert(kv));
            if !page.more {
                break;
            }
        }
        for slot in &self.slots {
            slot.shelf
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .floor = floor;
        }
        // History up to `rev` only refills the rings: the objects above already contain it.
        while *self.progress.borrow() < rev {
            self.step(&mut changes, rev).await?;
        }
        Ok(changes)
    }

    /// Applies changes until the store stops. Returns why.
    pub async fn follow(&self, mut changes: crate::store::Watch) -> StoreError {
        loop {
            if let Err(error) = self.step(&mut changes, 0).await {
                return error;
            }
        }
    }

    pub(crate) async fn step(
        &self,
        changes: &mut crate::store::Watch,
        history: Rev,
    ) -> Result<(), StoreError> {
        let rev = match changes.next().await? {
            WatchMessage::Batch(batch) => {
                let rev = batch.rev;
                self.apply(batch, history);
                rev
            }
            WatchMessage::Progress(rev) => rev,
        };
        self.progress.send_if_modified(|progress| {
            let newer = rev > *progress;
            *progress = rev.max(*progress);
            newer
        });
        Ok(())
    }

    pub(crate) fn locate<'a>(&self, key: &'a [u8]) -> Option<(ResourceId, &'a str)> {
        let mut slashes = key
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| at);
        let (prefix, rest) = key.split_at_checked(slashes.nth(2)? + 1)?;
        Some((
            *self.by_prefix.get(prefix)?,
            std::str::from_utf8(rest).ok()?,
        ))
    }

    fn slot(&self, resource: ResourceId) -> Option<&Slot> {
        self.slots.get(resource.0)
    }

    fn insert(&self, kv: Kv) {
        let full = kv.key.clone();
        let Some((resource, key)) = self.locate(&full) else {
            return;
        };
        if let (Some(slot), Some(entry)) = (self.slot(resource), Entry::from_kv(kv, key)) {
            let mut shelf = slot.shelf.write().unwrap_or_else(PoisonError::into_inner);
            shelf.tip = shelf.tip.max(entry.rev);
            shelf.objects.insert(entry.key.clone(), entry);
        }
    }

    /// Applies one revision. All its changes of one kind become visible together.
    fn apply(&self, batch: WatchBatch, history: Rev) {
        let rev = batch.rev;
        let mut by_resource: Vec<(ResourceId, Vec<Event>)> = Vec::with_capacity(1);
        for change in batch.events {
            let full = change.key().clone();
            let Some((resource, key)) = self.locate(&full) else {
                continue;
            };
            let event = self.event(resource, key, change, rev);
            match by_resource.iter_mut().find(|(id, _)| *id == resource) {
                Some((_, events)) => events.push(event),
                None => by_resource.push((resource, vec![event])),
            }
        }
        for (resource, events) in by_resource {
            let Some(slot) = self.slot(resource) else {
                continue;
            };
            let end = {
                let mut shelf = slot.shelf.write().unwrap_or_else(PoisonError::into_inner);
                for event in events {
                    if rev > history {
                        match (&event.next, &event.prev) {
                            (Some(next), _) => {
                                shelf.objects.insert(next.key.clone(), Arc::clone(next));
                            }
                            (None, Some(prev)) => {
                                shelf.objects.remove(&prev.key);
                            }
                            (None, None) => {}
                        }
                    }
                    shelf.push(event);
                }
                shelf.end()
            };
            slot.end.send_replace(end);
        }
    }

    /// Builds an event; the version that the cache already holds is shared, not parsed again.
    fn event(&self, resource: ResourceId, key: &str, change: Change, rev: Rev) -> Event {
        let known = self.get(resource, key);
        let shared = |kv: Kv| {
            let found = known
                .as_ref()
                .filter(|entry| entry.rev == kv.mod_rev)
                .cloned();
            found.or_else(|| Entry::from_kv(kv, key))
        };
        match change {
            Change::Put { kv, prev } => Event {
                rev,
                prev: prev.and_then(shared),
                next: shared(kv),
            },
            Change::Delete { prev } => Event {
                rev,
                prev: shared(prev),
                next: None,
            },
        }
    }

    /// The revision up to which the cache knows everything.
    pub fn progress(&self) -> Rev {
        *self.progress.borrow()
    }

    /// Waits until the cache knows everything up to `rev`.
    pub async fn wait_for(&self, rev: Rev) -> Result<(), Failure> {
        if self.progress() >= rev {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|progress| *progress >= rev);
        match tokio::time::timeout(FRESH_WAIT, reached).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::revision_too_large(rev, self.progress())),
        }
    }

    /// One object as the cache knows it.
    pub fn get(&self, resource: ResourceId, key: &str) -> Option<Arc<Entry>> {
        self.slot(resource)?.read().objects.get(key).cloned()
    }

    /// All objects of a kind, or those of one namespace, in key order.
    pub fn list(&self, resource: ResourceId, namespace: Option<&str>) -> Snapshot {
        let progress = self.progress();
        let Some(slot) = self.slot(resource) else {
            return Snapshot {
                entries: Vec::new(),
                rev: progress,
            };
        };
        let shelf = slot.read();
        Snapshot {
            entries: entries(&shelf, namespace),
            rev: progress.max(shelf.tip),
        }
    }

    /// Number of objects of a kind.
    pub fn count(&self, resource: ResourceId) -> usize {
        self.slot(resource)
            .map_or(0, |slot| slot.read().objects.len())
    }

    /// Number of changes of a kind so far: tells whether anything derived from the kind is still current.
    pub fn changes(&self, resource: ResourceId) -> u64 {
        self.slot(resource).map_or(0, |slot| *slot.end.borrow())
    }

    /// The objects now, and a cursor for every change after them.
    pub fn list_and_watch(
        &self,
        resource: ResourceId,
        namespace: Option<&str>,
    ) -> Option<(Snapshot, Cursor)> {
        let slot = self.slot(resource)?;
        let progress = self.progress();
        let end = slot.end.subscribe();
        let shelf = slot.read();
        let snapshot = Snapshot {
            entries: entries(&shelf, namespace),
            rev: progress.max(shelf.tip),
        };
        Some((
            snapshot,
            Cursor {
                resource,
                next: shelf.end(),
                end,
            },
        ))
    }

    /// A cursor for every change after `rev`.
    pub async fn watch(&self, resource: ResourceId, rev: Rev) -> Result<Cursor, Failure> {
        self.wait_for(rev).await?;
        let Some(slot) = self.slot(resource) else {
            return Err(Failure::no_such_path());
        };
        let end = slot.end.subscribe();
        let shelf = slot.read();
        if rev < shelf.floor {
            return Err(Failure::expired(format!(
                "too old resource version: {rev} ({})",
                shelf.floor
            )));
        }
        let skipped = shelf.ring.partition_point(|event| event.rev <= rev);
        Ok(Cursor {
            resource,
            next: shelf.first + skipped as u64,
            end,
        })
    }

    /// What happened since the last turn; empty when nothing did. Never waits.
    pub fn turn(&self, cursor: &mut Cursor) -> Turn {
        let Some(slot) = self.slot(cursor.resource) else {
            return Turn::Lagged;
        };
        let shelf = slot.read();
        let Some(skipped) = cursor.next.checked_sub(shelf.first) else {
            return Turn::Lagged;
        };
        let skipped = usize::try_from(skipped)
            .unwrap_or(usize::MAX)
            .min(shelf.ring.len());
        let events: Vec<Arc<Event>> = shelf
            .ring
            .range(skipped..)
            .take(WATCH_BURST_MAX)
            .cloned()
            .collect();
        cursor.next += events.len() as u64;
        Turn::Events(events)
    }

    /// Whether there is something for the cursor.
    pub fn pending(&self, cursor: &Cursor) -> bool {
        self.changes(cursor.resource) > cursor.next
    }

    /// Waits until there is something for the cursor. Cancel safe.
    pub async fn ready(&self, cursor: &mut Cursor) {
        let next = cursor.next;
        // The sender lives as long as the cache, which the caller holds: the wait cannot fail.
        if cursor.end.wait_for(|end| *end > next).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn entries(shelf: &Shelf, namespace: Option<&str>) -> Vec<Arc<Entry>> {
    let Some(namespace) = namespace else {
        return shelf.objects.values().cloned().collect();
    };
    let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
    // '0' is the byte after '/': the range holds exactly the keys of the namespace.
    let range: (Bound<&str>, Bound<&str>) = (Bound::Included(&from), Bound::Excluded(&to));
    shelf
        .objects
        .range::<str, _>(range)
        .map(|(_, entry)| Arc::clone(entry))
        .collect()
}
