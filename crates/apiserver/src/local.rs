//! The registry without HTTP, tasks or waiting: one caller, a store in memory, a clock that the caller moves, and choices from a seed.
//! For simulations. Every call does what a request does from admission on: defaults, validation, locks, one transaction.
//!
//! What runs beside requests in a server (cache, garbage collector) runs here when it is told to. Authentication, authorisation
//! and the wire are left out; those are tested through the real server.

use crate::auth::User;
use crate::decode::Decoded;
use crate::gc::Collector;
use crate::kinds::Kind;
use crate::nature::Nature;
use crate::object::Encoded;
use crate::query::Query;
use crate::region::{Ranges, Region};
use crate::registry::delete::{DeleteOptions, Propagation};
use crate::registry::patch::PatchType;
use crate::registry::{Part, Write, Written};
use crate::status::{Failure, Outcome};
use crate::store::memory::MemoryStore;
use crate::store::{Change, Rev, StoreError, Watch, WatchMessage};
use bytes::Bytes;
use futures::FutureExt as _;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Which object.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub plural: &'a str,
    /// Empty for cluster scope.
    pub namespace: &'a str,
    pub name: &'a str,
}

/// How an object is changed.
#[derive(Debug, Clone, Copy)]
pub enum Patch {
    /// JSON merge patch.
    Merge,
    /// Server-side apply, taking fields from others.
    Apply,
}

/// What became of an object.
#[derive(Debug, Clone)]
pub struct Event {
    pub rev: Rev,
    pub group: &'static str,
    pub plural: &'static str,
    pub namespace: String,
    pub name: String,
    /// With its resourceVersion; the last one if it is gone.
    pub object: Value,
    pub gone: bool,
}

/// A server of one caller.
#[derive(Debug)]
pub struct Local {
    region: Arc<Region>,
    user: User,
    cached: Watch,
    told: Watch,
    collector: Collector,
}

/// What never waits has its result at once; a store in memory never waits.
fn at_once<T>(future: impl Future<Output = T>) -> Outcome<T> {
    let waits = || Failure::internal("a call that must not wait would wait");
    future.now_or_never().ok_or_else(waits)
}

impl Local {
    /// A server with these namespaces and nothing else.
    pub fn open(ranges: Ranges, seed: u64, now_ms: u64, namespaces: &[&str]) -> Outcome<Local> {
        let store = Arc::new(MemoryStore::default());
        let mut region = Region::new(store, ranges, CancellationToken::new());
        region.nature = Nature::seeded(seed, now_ms);
        let region = Arc::new(region);
        let cached = at_once(region.cache.load(region.store.as_ref()))??;
        let told = at_once(region.store.watch(b"/", 0))??;
        let collector = at_once(Collector::open(&region))??;
        let user = User::server();
        let mut local = Local {
            region,
            user,
            cached,
            told,
            collector,
        };
        for name in namespaces {
            let place = Place {
                group: "",
                version: "v1",
                plural: "namespaces",
                namespace: "",
                name,
            };
            local.create(place, json!({ "metadata": { "name": name } }), "bootstrap")?;
        }
        Ok(local)
    }

    /// Moves the clock.
    pub fn set_now(&self, now_ms: u64) {
        self.region.nature.set_now(now_ms);
    }

    fn kind(&self, place: &Place<'_>) -> Outcome<Arc<Kind>> {
        let found = self
            .region
            .kinds
            .find(place.group, place.version, place.plural);
        found
            .cloned()
            .ok_or_else(|| Failure::not_found(place.group, place.plural, place.name))
    }

    fn write<T>(
        &mut self,
        place: Place<'_>,
        part: Part,
        manager: &str,
        act: impl AsyncFnOnce(&Write<'_>) -> Outcome<T>,
    ) -> Outcome<T> {
        let kind = self.kind(&place)?;
        let user = &self.user;
        let at = (place.namespace, place.name, part);
        let mut write = Write::new(&self.region, &kind, at, user, &Query::default(), manager)?;
        write.manager = manager.to_owned();
        write.manager_given = true;
        let done = at_once(act(&write))?;
        self.follow()?;
        done
    }

    /// Lets the cache see every commit.
    fn follow(&mut self) -> Outcome<()> {
        while let Some(step) = self.region.cache.step(&mut self.cached, 0).now_or_never() {
            step?;
        }
        Ok(())
    }

    pub fn create(&mut self, place: Place<'_>, object: Value, manager: &str) -> Outcome<Value> {
        let duplicates = Vec::new();
        let decoded = Decoded {
            value: object,
            duplicates,
        };
        let written = self.write(place, Part::Main, manager, async |write| {
            write.create(decoded).await
        })?;
        Ok(value(&written))
    }

    /// Changes an object or its status; an apply creates it. The object is returned also when the change let it vanish.
    pub fn patch(
        &mut self,
        place: Place<'_>,
        patch: Patch,
        status: bool,
        body: &Value,
        manager: &str,
    ) -> Outcome<Value> {
        let part = if status { Part::Status } else { Part::Main };
        let (patch_type, query) = match patch {
            Patch::Merge => (PatchType::Merge, Query::default()),
            Patch::Apply => (PatchType::Apply, Query::parse("force=true")),
        };
        let body = Bytes::from(body.to_string());
        let written = self.write(place, part, manager, async |write| {
            write.patch(patch_type, &body, &query).await
        })?;
        Ok(value(&written))
    }

    /// Deletes in the background; finalizers hold the object.
    pub fn delete(&mut self, place: Place<'_>, uid: Option<&str>) -> Outcome<()> {
        let options = DeleteOptions {
            propagation: Some(Propagation::Background),
            uid: uid.map(str::to_owned),
            ..DeleteOptions::default()
        };
        self.write(place, Part::Main, "delete", async |write| {
            write.delete(&options).await
        })?;
        Ok(())
    }

    /// The newest version.
    pub fn get(&mut self, place: Place<'_>) -> Outcome<Option<Value>> {
        let live = self.write(place, Part::Main, "get", async |write| write.live().await)?;
        Ok(live.map(|live| live.value))
    }

    /// What was committed since the last call, in order.
    pub fn events(&mut self) -> Outcome<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(message) = self.told.next().now_or_never() {
            if let WatchMessage::Batch(batch) = message? {
                let of_batch = batch.events.into_iter();
                events.extend(of_batch.filter_map(|change| self.event(batch.rev, change)));
            }
        }
        Ok(events)
    }

    fn event(&self, rev: Rev, change: Change) -> Option<Event> {
        let (kv, gone) = match change {
            Change::Put { kv, .. } => (kv, false),
            Change::Delete { prev } => (prev, true),
        };
        let (id, key) = self.region.cache.locate(&kv.key)?;
        let kind = self.region.kinds.by_id(id)?;
        let (namespace, name) = match key.split_once('/') {
            Some((namespace, name)) if kind.namespaced => (namespace, name),
            _ => ("", key),
        };
        Some(Event {
            rev,
            group: kind.group,
            plural: kind.plural,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            object: Encoded::restore(kv.value.clone()).ok()?.to_value(rev),
            gone,
        })
    }

    /// Lets the garbage collector see what happened and work until it has nothing more to do. A slow round (`all`) looks at every
    /// object that has an owner.
    pub fn collect(&mut self, all: bool) -> Outcome<()> {
        if all {
            self.collector.look_at_all();
        }
        loop {
            let message = self.collector.changes.next().now_or_never();
            match message {
                Some(message) => {
                    let message: Result<WatchMessage, StoreError> = message;
                    self.collector.read(&self.region, message?);
                }
                None if self.collector.is_idle() => return Ok(()),
                None => {
                    at_once(self.collector.work(&self.region))?;
                    self.follow()?;
                }
            }
        }
    }
}

fn value(written: &Written) -> Value {
    written.encoded.to_value(written.rev)
}
