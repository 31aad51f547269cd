//! Garbage collection by owner references: background, foreground, orphan.
//!
//! The collector keeps an index from owner UID to dependents, fed by the store's changes. It looks at an object again when one of its
//! owners vanishes or is being deleted, when it is written with owners, and on a slow full round that heals whatever was missed.
//! Deletions carry the UID as precondition, so that a successor of the same name is never hit.

use crate::auth::User;
use crate::kinds::{Kind, ResourceId};
use crate::object::{self, Encoded, Head, OwnerReference};
use crate::query::Query;
use crate::region::Region;
use crate::registry::delete::{DeleteOptions, Propagation};
use crate::registry::update::Proposal;
use crate::registry::{Part, Write, cache_key};
use crate::status::{Outcome, Reason};
use crate::store::{At, Change, Kv, StoreError, Watch, WatchMessage};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Time between two full rounds.
const FULL_ROUND_EVERY: Duration = Duration::from_secs(30);
/// Objects looked at before new changes are read again.
const BATCH_MAX: usize = 512;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// An object: kind and key in the cache.
type Place = (ResourceId, Box<str>);

#[derive(Debug, Default)]
struct Index {
    /// Owner UID to dependents.
    dependents: HashMap<Box<str>, BTreeSet<Place>>,
    /// Dependent to its owners' UIDs, to undo the above.
    owners: HashMap<Place, Vec<Box<str>>>,
    /// Objects to look at.
    pending: BTreeSet<Place>,
}

impl Index {
    fn put(&mut self, place: &Place, head: &Head) {
        let uids: Vec<Box<str>> = head
            .owner_references
            .iter()
            .map(|owner| owner.uid.as_str().into())
            .collect();
        if self.owners.get(place) != Some(&uids) {
            self.forget(place);
            for uid in &uids {
                self.dependents
                    .entry(uid.clone())
                    .or_default()
                    .insert(place.clone());
            }
            if !uids.is_empty() {
                self.owners.insert(place.clone(), uids);
            }
        }
        let waits = head
            .finalizers
            .iter()
            .any(|finalizer| finalizer == FOREGROUND || finalizer == ORPHAN);
        if !head.owner_references.is_empty() || (head.deletion_timestamp.is_some() && waits) {
            self.pending.insert(place.clone());
        }
        if head.deletion_timestamp.is_some() {
            self.wake_dependents(&head.uid);
        }
    }

    fn forget(&mut self, place: &Place) {
        for uid in self.owners.remove(place).unwrap_or_default() {
            if let Some(places) = self.dependents.get_mut(&uid) {
                places.remove(place);
                if places.is_empty() {
                    self.dependents.remove(&uid);
                }
            }
        }
    }

    fn remove(&mut self, region: &Region, place: &Place, head: &Head) {
        // Owners in foreground deletion wait for their last dependent.
        for owner in &head.owner_references {
            if let Some(owner) = owner_place(region, &head.namespace, owner) {
                self.pending.insert(owner);
            }
        }
        self.forget(place);
        self.wake_dependents(&head.uid);
    }

    fn wake_dependents(&mut self, uid: &str) {
        self.pending
            .extend(self.dependents.get(uid).into_iter().flatten().cloned());
    }
}

fn owner_place(region: &Region, namespace: &str, owner: &OwnerReference) -> Option<Place> {
    let kind = region.kinds.by_kind(&owner.api_version, &owner.kind)?;
    Some((kind.id, cache_key(kind, namespace, &owner.name).into()))
}

fn place_of(region: &Region, kv: &Kv) -> Option<(Place, Head)> {
    let (id, key) = region.cache.locate(&kv.key)?;
    let head = Encoded::restore(kv.value.clone())
        .and_then(|encoded| encoded.head())
        .ok()?;
    Some(((id, key.into()), head))
}

/// Collects garbage for as long as the server runs.
pub async fn run(region: Arc<Region>) -> StoreError {
    loop {
        match collect(&region).await {
            // Only a collector that fell behind the history comes here; it starts over.
            Ok(()) | Err(StoreError::Compacted { .. }) => {}
            Err(error) => return error,
        }
    }
}

async fn collect(region: &Arc<Region>) -> Result<(), StoreError> {
    let mut collector = Collector::open(region).await?;
    let mut round = tokio::time::interval(FULL_ROUND_EVERY);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if collector.is_idle() {
            tokio::select! {
                message = collector.changes.next() => collector.read(region, message?),
                _ = round.tick() => collector.look_at_all(),
            }
        }
        collector.work(region).await;
    }
}

/// The collector between two changes. Whoever drives it says when time has passed.
#[derive(Debug)]
pub(crate) struct Collector {
    index: Index,
    pub(crate) changes: Watch,
    retry: Vec<Place>,
}

impl Collector {
    /// Knows what the cache knows.
    pub(crate) async fn open(region: &Region) -> Result<Collector, StoreError> {
        let mut index = Index::default();
        let from = region.cache.progress();
        let changes = region.store.watch(b"/", from).await?;
        for kind in region.kinds.stored() {
            for entry in region.cache.list(kind.id, None).entries {
                if let Ok(head) = entry.encoded.head() {
                    index.put(&(kind.id, entry.key.clone()), &head);
                }
            }
        }
        Ok(Collector {
            index,
            changes,
            retry: Vec::new(),
        })
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.index.pending.is_empty()
    }

    pub(crate) fn read(&mut self, region: &Region, message: WatchMessage) {
        read(region, &mut self.index, message);
    }

    /// The slow round: everything that has an owner, and what did not work.
    pub(crate) fn look_at_all(&mut self) {
        let Collector { index, retry, .. } = self;
        index.pending.extend(index.owners.keys().cloned());
        index.pending.extend(retry.drain(..));
    }

    /// Looks at up to [`BATCH_MAX`] objects.
    pub(crate) async fn work(&mut self, region: &Arc<Region>) {
        for _ in 0..BATCH_MAX {
            let Some(place) = self.index.pending.pop_first() else {
                break;
            };
            let Some(kind) = region.kinds.by_id(place.0) else {
                continue;
            };
            let user = User::server();
            if let Err(failure) = look(region, &self.index, kind, &place, &user).await
                && !matches!(failure.reason, Reason::NotFound | Reason::Conflict)
            {
                tracing::warn!(object = %place.1, kind = kind.kind, failure = %failure.message, "not collected, will be tried again");
                self.retry.push(place);
            }
        }
    }
}

fn read(region: &Region, index: &mut Index, message: WatchMessage) {
    let WatchMessage::Batch(batch) = message else {
        return;
    };
    for change in &batch.events {
        match change {
            Change::Put { kv, .. } => {
                if let Some((place, head)) = place_of(region, kv) {
                    index.put(&place, &head);
                }
            }
            Change::Delete { prev } => {
                if let Some((place, head)) = place_of(region, prev) {
                    index.remove(region, &place, &head);
                }
            }
        }
    }
}

fn split<'a>(kind: &Kind, key: &'a str) -> (&'a str, &'a str) {
    if kind.namespaced {
        key.split_once('/').unwrap_or(("", key))
    } else {
        ("", key)
    }
}

/// Looks at one object: finishes its own deletion, or deletes it when its owners are gone.
async fn look(
    region: &Arc<Region>,
    index: &Index,
    kind: &Arc<Kind>,
    place: &Place,
    user: &User,
) -> Outcome<()> {
    let (namespace, name) = split(kind, &place.1);
    let write = Write::new(
        region,
        kind,
        (namespace, name, Part::Main),
        user,
        &Query::default(),
        "garbage-collector",
    )?;
    let Some(head) = committed(&write).await? else {
        return Ok(());
    };
    if head.deletion_timestamp.is_some() {
        if head.finalizers.iter().any(|finalizer| finalizer == ORPHAN) {
            return orphan(region, index, &write, &head, user).await;
        }
        if head
            .finalizers
            .iter()
            .any(|finalizer| finalizer == FOREGROUND)
        {
            return foreground(region, index, &write, &head, user).await;
        }
        return Ok(());
    }
    if head.owner_references.is_empty() {
        return Ok(());
    }
    judge_owners(region, &write, &head).await
}

enum Owner {
    /// Alive, or not to be judged.
    Alive,
    /// Being deleted in the foreground and waiting for this dependent.
    Waiting,
    Gone,
    /// Its kind is not known, or it cannot own this object: leave the object alone.
    Unknown,
}

async fn owner_state(
    region: &Arc<Region>,
    namespace: &str,
    owner: &OwnerReference,
) -> Outcome<Owner> {
    let Some(kind) = region.kinds.by_kind(&owner.api_version, &owner.kind) else {
        return Ok(Owner::Unknown);
    };
    if kind.namespaced && namespace.is_empty() {
        // A cluster-scoped object cannot be owned by a namespaced one.
        return Ok(Owner::Unknown);
    }
    let key = crate::registry::store_key(kind, namespace, &owner.name);
    // Live, not cached: an owner written a moment ago counts.
    let Some(kv) = region.store.get(&key, crate::store::At::Latest).await? else {
        return Ok(Owner::Gone);
    };
    let Ok(head) = Encoded::restore(kv.value).and_then(|encoded| encoded.head()) else {
        return Ok(Owner::Unknown);
    };
    Ok(match () {
        () if head.uid != owner.uid => Owner::Gone,
        () if head.deletion_timestamp.is_some()
            && head.finalizers.iter().any(|f| f == FOREGROUND) =>
        {
            Owner::Waiting
        }
        () => Owner::Alive,
    })
}

async fn judge_owners(region: &Arc<Region>, write: &Write<'_>, head: &Head) -> Outcome<()> {
    let mut states = BTreeMap::new();
    for (at, owner) in head.owner_references.iter().enumerate() {
        states.insert(at, owner_state(region, write.namespace, owner).await?);
    }
    if states
        .values()
        .any(|state| matches!(state, Owner::Alive | Owner::Unknown))
    {
        return drop_dead_owners(write, head, &states).await;
    }
    let waiting = states.values().any(|state| matches!(state, Owner::Waiting));
    let finalizers = &head.finalizers;
    let propagation = match () {
        () if finalizers.iter().any(|f| f == ORPHAN) => Propagation::Orphan,
        () if waiting || finalizers.iter().any(|f| f == FOREGROUND) => Propagation::Foreground,
        () => Propagation::Background,
    };
    let options = DeleteOptions {
        propagation: Some(propagation),
        uid: Some(head.uid.clone()),
        ..DeleteOptions::default()
    };
    write.delete(&options).await?;
    region.metrics.collected.inc();
    Ok(())
}

/// An object whose other owner lives loses the references to dead ones.
async fn drop_dead_owners(
    write: &Write<'_>,
    head: &Head,
    states: &BTreeMap<usize, Owner>,
) -> Outcome<()> {
    let dead: HashSet<&str> = head
        .owner_references
        .iter()
        .enumerate()
        .filter(|(at, _)| matches!(states.get(at), Some(Owner::Gone)))
        .map(|(_, owner)| owner.uid.as_str())
        .collect();
    if dead.is_empty() {
        Ok(())
    } else {
        drop_owners(write, &head.uid, &dead).await
    }
}

async fn drop_owners(write: &Write<'_>, uid: &str, owners: &HashSet<&str>) -> Outcome<()> {
    let result = write.change(|live| {
        let live = live.ok_or_else(|| write.not_found())?;
        if object::metadata_text(&live.value, "uid") != uid {
            return Err(write.not_found());
        }
        let mut object = live.value.clone();
        let kept: Vec<Value> = object::metadata(&object, "ownerReferences")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|owner| {
                owner
                    .get("uid")
                    .and_then(Value::as_str)
                    .is_none_or(|uid| !owners.contains(uid))
            })
            .cloned()
            .collect();
        match kept.is_empty() {
            true => {
                object::remove_metadata(&mut object, "ownerReferences");
            }
            false => object::set_metadata(&mut object, "ownerReferences", Value::Array(kept)),
        }
        Ok(Proposal {
            object,
            warnings: Vec::new(),
            track: true,
        })
    });
    result.await.map(|_| ())
}

/// The dependents of an object as the index knows them, ready to be written. References across namespaces do not count.
fn dependents<'a>(
    region: &'a Arc<Region>,
    index: &'a Index,
    owner: &Write<'_>,
    uid: &str,
    user: &'a User,
) -> Outcome<Vec<Write<'a>>> {
    let known = index.dependents.get(uid).into_iter().flatten();
    let placed = known.filter_map(|(id, key)| {
        let kind = region.kinds.by_id(*id)?;
        let (namespace, name) = split(kind, key);
        let foreign =
            kind.namespaced && !owner.namespace.is_empty() && namespace != owner.namespace;
        (!foreign).then_some((kind, namespace, name))
    });
    placed
        .map(|(kind, namespace, name)| {
            let place = (namespace, name, Part::Main);
            Write::new(
                region,
                kind,
                place,
                user,
                &Query::default(),
                "garbage-collector",
            )
        })
        .collect()
}

/// An object's metadata as it was committed last.
async fn committed(write: &Write<'_>) -> Outcome<Option<Head>> {
    let key = crate::registry::store_key(write.kind, write.namespace, write.name);
    let stored = write.region.store.get(&key, At::Latest).await?;
    Ok(stored.and_then(|kv| Encoded::restore(kv.value).ok()?.head().ok()))
}

/// A dependent as it was committed last, and its reference to the owner; nothing when either is gone.
async fn reference(dependent: &Write<'_>, owner: &str) -> Outcome<Option<(Head, OwnerReference)>> {
    let head = committed(dependent).await?;
    Ok(head.and_then(|head| {
        let mut references = head.owner_references.iter();
        let found = references.find(|reference| reference.uid == owner)?.clone();
        Some((head, found))
    }))
}

/// Frees the dependents of an object that is deleted without them, then lets it go.
async fn orphan(
    region: &Arc<Region>,
    index: &Index,
    write: &Write<'_>,
    head: &Head,
    user: &User,
) -> Outcome<()> {
    let owner = HashSet::from([head.uid.as_str()]);
    for one in dependents(region, index, write, &head.uid, user)? {
        let Some((dependent, _)) = reference(&one, &head.uid).await? else {
            continue;
        };
        match drop_owners(&one, &dependent.uid, &owner).await {
            Err(failure) if failure.reason != Reason::NotFound => return Err(failure),
            _ => {}
        }
    }
    drop_finalizer(write, &head.uid, ORPHAN).await
}

/// Deletes the dependents that block an object, and lets it go when none is left.
async fn foreground(
    region: &Arc<Region>,
    index: &Index,
    write: &Write<'_>,
    head: &Head,
    user: &User,
) -> Outcome<()> {
    let all = dependents(region, index, write, &head.uid, user)?;
    for one in &all {
        if let Some((dependent, _)) = reference(one, &head.uid).await?
            && dependent.deletion_timestamp.is_none()
        {
            judge_owners(region, one, &dependent).await?;
        }
    }
    // Dependents without finalizers are gone by now; the rest wake us when they go.
    for one in &all {
        let left = reference(one, &head.uid).await?;
        if left.is_some_and(|(_, reference)| reference.block_owner_deletion) {
            return Ok(());
        }
    }
    drop_finalizer(write, &head.uid, FOREGROUND).await
}

async fn drop_finalizer(write: &Write<'_>, uid: &str, finalizer: &str) -> Outcome<()> {
    let result = write.change(|live| {
        let live = live.ok_or_else(|| write.not_found())?;
        if object::metadata_text(&live.value, "uid") != uid {
            return Err(write.not_found());
        }
        let mut object = live.value.clone();
        let kept: Vec<Value> = object::finalizers(&object)
            .into_iter()
            .filter(|known| *known != finalizer)
            .map(Value::from)
            .collect();
        object::set_finalizers(&mut object, kept);
        Ok(Proposal {
            object,
            warnings: Vec::new(),
            track: true,
        })
    });
    result.await.map(|_| ())
}
