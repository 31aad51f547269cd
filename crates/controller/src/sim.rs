//! An API server of a few lines, in memory, for tests of plans: it carries out operations on JSON objects and drives
//! controllers until nothing is left to do. No network, clock or randomness; uids and versions are counters.
//!
//! It is deliberately coarse: lists are replaced whole, nothing is validated or defaulted, no field conflicts exist. It does
//! know finalizers, version locks, uid preconditions, ownership of applied fields (what a manager stops applying goes away)
//! and garbage collection. What the real server adds is tested against the real server.
//!
//! Other parts of the region are played by further controllers: a fake metalnet is a [`Controller`] that writes status.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

use crate::{
    key::{Key, Kind, Object, Target},
    plan::{Op, Plan},
    runner::Controller,
    source::{Caches, Source},
    world::World,
};

/// A run that plans more often than this does not converge.
pub const STEPS_MAX: usize = 20_000;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Conflict,
    NotFound,
    AlreadyExists,
    StillThere,
    Injected,
}

struct Entry {
    controller: Arc<dyn Controller>,
    sources: Vec<Source>,
    queue: BTreeSet<Key>,
    failed: BTreeSet<Key>,
}

/// The simulated region.
pub struct Sim {
    objects: BTreeMap<Target, Value>,
    /// Last applied body by object and manager.
    applied: BTreeMap<(Target, String, bool), Value>,
    incarnations: BTreeMap<Target, u64>,
    revision: u64,
    caches: Caches,
    world: World,
    entries: Vec<Entry>,
    /// Every executed operation, for assertions on what was touched.
    pub log: Vec<Op>,
    /// Fails the operation after this many, once.
    pub fail_after: Option<usize>,
    pub now_ms: u64,
}

impl Sim {
    pub fn new(controllers: Vec<Arc<dyn Controller>>) -> Sim {
        let mut caches = Caches::default();
        let entries: Vec<Entry> = controllers
            .into_iter()
            .map(|controller| {
                let sources = controller.sources();
                for source in &sources {
                    caches.declare(source);
                }
                Entry {
                    controller,
                    sources,
                    queue: BTreeSet::new(),
                    failed: BTreeSet::new(),
                }
            })
            .collect();
        let world = caches.world();
        Sim {
            objects: BTreeMap::new(),
            applied: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            revision: 0,
            caches,
            world,
            entries,
            log: Vec::new(),
            fail_after: None,
            now_ms: 0,
        }
    }

    /// What plans read.
    pub fn world(&self) -> World {
        World {
            now_ms: self.now_ms,
            ..self.world.clone()
        }
    }

    /// Creates or replaces an object, as a user would.
    pub fn put<K: Object>(&mut self, object: &K) {
        let target = Target::of(object);
        let mut value = serde_json::to_value(object).unwrap_or_default();
        if let Some(live) = self.objects.get(&target) {
            value["metadata"]["uid"] = live["metadata"]["uid"].clone();
        }
        self.store(target, value);
    }

    /// Changes an object in place. Does nothing if it is absent.
    pub fn edit<K: Object>(&mut self, namespace: &str, name: &str, change: impl FnOnce(&mut K)) {
        if let Some(mut object) = self.get::<K>(namespace, name) {
            change(&mut object);
            self.put(&object);
        }
    }

    /// Deletes an object, as a user would: finalizers hold it.
    pub fn delete<K: Object>(&mut self, namespace: &str, name: &str) {
        self.delete_target(&Target::new::<K>(namespace, name));
    }

    pub fn get<K: Object>(&self, namespace: &str, name: &str) -> Option<K> {
        let value = self.objects.get(&Target::new::<K>(namespace, name))?;
        serde_json::from_value(value.clone()).ok()
    }

    pub fn list<K: Object>(&self) -> Vec<K> {
        let kind = Kind::of::<K>();
        let values = self
            .objects
            .iter()
            .filter(|(target, _)| target.kind == kind);
        values
            .filter_map(|(_, value)| serde_json::from_value(value.clone()).ok())
            .collect()
    }

    /// All objects without versions, for comparing outcomes.
    pub fn snapshot(&self) -> BTreeMap<String, Value> {
        let objects = self.objects.iter().map(|(target, value)| {
            let mut value = value.clone();
            if let Some(meta) = value["metadata"].as_object_mut() {
                meta.remove("resourceVersion");
            }
            (
                format!("{}/{} {}", target.kind.group, target.kind.kind, target.key),
                value,
            )
        });
        objects.collect()
    }

    /// Plans and executes until no key is left. Returns the number of executed operations, or `Err` with the keys that kept
    /// it busy.
    pub fn settle(&mut self) -> Result<usize, Vec<String>> {
        let before = self.log.len();
        for _ in 0..STEPS_MAX {
            let Some((at, key)) = self.next_key() else {
                return Ok(self.log.len() - before);
            };
            self.step(at, &key);
        }
        let busy = self.entries.iter().flat_map(|entry| {
            entry
                .queue
                .iter()
                .map(|key| format!("{} {key}", entry.controller.name()))
        });
        Err(busy.collect())
    }

    /// Wakes every key of every controller, as a restart does.
    pub fn wake_all(&mut self) {
        let targets: Vec<Target> = self.objects.keys().cloned().collect();
        for target in targets {
            self.wake(&target);
        }
    }

    fn next_key(&mut self) -> Option<(usize, Key)> {
        let waiting = self.entries.iter_mut().enumerate();
        waiting
            .filter_map(|(at, entry)| entry.queue.pop_first().map(|key| (at, key)))
            .next()
    }

    fn step(&mut self, at: usize, key: &Key) {
        let Some(controller) = self.entries.get(at).map(|entry| entry.controller.clone()) else {
            return;
        };
        let Plan { ops, requeue: _ } = controller.plan(&self.world(), key);
        let mut changed = false;
        for op in ops {
            match self.execute(&op) {
                Ok(()) => {
                    changed |= op.target().is_some();
                    self.log.push(op);
                }
                Err(refusal) => {
                    if let Some(entry) = self.entries.get_mut(at) {
                        entry.failed.insert(key.clone());
                    }
                    // An injected failure does not repeat, so nothing else would bring the key back.
                    changed |= refusal == Refusal::Injected;
                    break;
                }
            }
        }
        if changed {
            for entry in &mut self.entries {
                let failed = std::mem::take(&mut entry.failed);
                entry.queue.extend(failed);
            }
        }
    }

    fn execute(&mut self, op: &Op) -> Result<(), Refusal> {
        if self.fail_after == Some(self.log.len()) {
            self.fail_after = None;
            return Err(Refusal::Injected);
        }
        match op {
            Op::Apply {
                target,
                body,
                manager,
                status,
            } => self.apply(target, body, manager, *status),
            Op::Patch {
                target,
                body,
                status: _,
            } => self.patch(target, body),
            Op::Create { target, body } => {
                if self.objects.contains_key(target) {
                    return Err(Refusal::AlreadyExists);
                }
                self.store(target.clone(), body.clone());
                Ok(())
            }
            Op::Delete { target, uid } => match self.uid(target) {
                None => Ok(()),
                Some(live) if live == *uid || uid.is_empty() => {
                    self.delete_target(target);
                    Ok(())
                }
                Some(_) => Err(Refusal::Conflict),
            },
            Op::RequireGone { target, uid } => match self.uid(target) {
                Some(live) if live == *uid => Err(Refusal::StillThere),
                _ => Ok(()),
            },
            Op::RequireSame { target, version } => {
                let live = self.objects.get(target);
                let live = live.and_then(|live| live["metadata"]["resourceVersion"].as_str());
                match live.unwrap_or_default() == version {
                    true => Ok(()),
                    false => Err(Refusal::Conflict),
                }
            }
            Op::Event { .. } | Op::Act(_) => Ok(()),
        }
    }

    fn uid(&self, target: &Target) -> Option<String> {
        let live = self.objects.get(target)?;
        Some(
            live["metadata"]["uid"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    }

    fn apply(
        &mut self,
        target: &Target,
        body: &Value,
        manager: &str,
        status: bool,
    ) -> Result<(), Refusal> {
        let mut live = match self.objects.get(target) {
            Some(live) => live.clone(),
            None if status => return Err(Refusal::NotFound),
            None => json!({}),
        };
        let owner = (target.clone(), manager.to_owned(), status);
        if let Some(before) = self.applied.get(&owner) {
            remove_missing(&mut live, before, body);
        }
        merge(&mut live, body, false);
        self.applied.insert(owner, body.clone());
        self.store(target.clone(), live);
        Ok(())
    }

    fn patch(&mut self, target: &Target, body: &Value) -> Result<(), Refusal> {
        let Some(mut live) = self.objects.get(target).cloned() else {
            return Err(Refusal::NotFound);
        };
        for lock in ["resourceVersion", "uid"] {
            let wanted = &body["metadata"][lock];
            if !wanted.is_null() && *wanted != live["metadata"][lock] {
                return Err(Refusal::Conflict);
            }
        }
        merge(&mut live, body, true);
        self.store(target.clone(), live);
        Ok(())
    }

    fn store(&mut self, target: Target, mut value: Value) {
        let deleting = !value["metadata"]["deletionTimestamp"].is_null();
        let held = value["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        if deleting && !held {
            self.remove(&target);
            return;
        }
        if let Some(live) = self.objects.get(&target) {
            let mut same = value.clone();
            same["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
            if same == *live {
                return;
            }
        }
        if value["metadata"]["uid"].is_null() {
            let incarnation = self.incarnations.entry(target.clone()).or_insert(0);
            *incarnation += 1;
            let text = format!("{}/{target}/{incarnation}", target.kind.group);
            value["metadata"]["uid"] = json!(api::ids::uuid5_sha256(&text));
        }
        self.revision += 1;
        value["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.wake(&target);
        self.objects.insert(target.clone(), value.clone());
        if let Ok(object) = serde_json::from_value::<DynamicObject>(value) {
            for store in self.caches.stores.values() {
                if store.kind == target.kind {
                    // An object that does not fit its type is absent for controllers, as in the runner.
                    let _undecodable = store.put(object.clone());
                }
            }
        }
        self.wake(&target);
    }

    fn delete_target(&mut self, target: &Target) {
        let Some(mut value) = self.objects.get(target).cloned() else {
            return;
        };
        if value["metadata"]["deletionTimestamp"].is_null() {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            self.store(target.clone(), value);
        }
    }

    fn remove(&mut self, target: &Target) {
        self.wake(target);
        let Some(value) = self.objects.remove(target) else {
            return;
        };
        self.applied.retain(|(applied, _, _), _| applied != target);
        let removed = self.caches.stores.iter().filter_map(|(selector, store)| {
            let change = (store.kind == target.kind).then(|| store.remove(&target.key, None))??;
            Some((selector.clone(), change.old?))
        });
        let removed: Vec<_> = removed.collect();
        let world = self.world();
        for entry in &mut self.entries {
            for (selector, old) in &removed {
                let sources = entry
                    .sources
                    .iter()
                    .filter(|source| source.selector == *selector);
                for removed_keys in sources.filter_map(|source| source.removed_keys.as_ref()) {
                    entry.queue.extend(removed_keys(old.as_ref(), &world));
                }
            }
        }
        let uid = &value["metadata"]["uid"];
        let owned: Vec<Target> = self
            .objects
            .iter()
            .filter(|(_, object)| {
                let owners = object["metadata"]["ownerReferences"].as_array();
                owners
                    .into_iter()
                    .flatten()
                    .any(|owner| owner["uid"] == *uid)
            })
            .map(|(target, _)| target.clone())
            .collect();
        owned.iter().for_each(|target| self.delete_target(target));
    }

    /// Queues the keys that the current state of `target` stands for; called before and after each change.
    fn wake(&mut self, target: &Target) {
        let world = self.world();
        for entry in &mut self.entries {
            for source in &entry.sources {
                let (Some(keys), true) = (&source.keys, source.selector.kind == target.kind) else {
                    continue;
                };
                let store = self.caches.stores.get(&source.selector);
                if let Some(object) = store.and_then(|store| store.get(&target.key)) {
                    entry.queue.extend(keys(object.as_ref(), &world));
                }
            }
        }
    }
}

/// Plays `script` on simulations made by `make` and checks what every set of controllers owes its users: it settles; planning
/// again from scratch changes nothing; and a failure before any single operation leads to the same end.
///
/// Returns the undisturbed simulation, or what went wrong.
pub fn verify(make: impl Fn() -> Sim, script: impl Fn(&mut Sim)) -> Result<Sim, String> {
    let mut undisturbed = make();
    script(&mut undisturbed);
    undisturbed
        .settle()
        .map_err(|busy| format!("does not settle: {busy:?}"))?;
    let ops = undisturbed.log.len();
    let expected = undisturbed.snapshot();
    undisturbed.wake_all();
    undisturbed
        .settle()
        .map_err(|busy| format!("does not settle again: {busy:?}"))?;
    // Events are hints; that they are not said twice is the recorder's job.
    let extra = undisturbed
        .log
        .iter()
        .skip(ops)
        .find(|op| !matches!(op, Op::Event { .. }));
    if let Some(extra) = extra {
        return Err(format!("not idempotent: {extra:?}"));
    }
    for at in 0..ops {
        let mut disturbed = make();
        disturbed.fail_after = Some(at);
        script(&mut disturbed);
        disturbed
            .settle()
            .map_err(|busy| format!("failure {at}: does not settle: {busy:?}"))?;
        if disturbed.snapshot() != expected {
            let found = disturbed.snapshot();
            return Err(format!(
                "failure {at} leads elsewhere:\n{found:#?}\nnot\n{expected:#?}"
            ));
        }
    }
    Ok(undisturbed)
}

/// RFC 7386 if `nulls_remove`; an apply keeps nulls out of the way.
fn merge(live: &mut Value, patch: &Value, nulls_remove: bool) {
    let Some(patch) = patch.as_object() else {
        *live = patch.clone();
        return;
    };
    if !live.is_object() {
        *live = Value::Object(Map::new());
    }
    let Some(map) = live.as_object_mut() else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            if nulls_remove {
                map.remove(name);
            }
        } else {
            merge(
                map.entry(name.clone()).or_insert(Value::Null),
                value,
                nulls_remove,
            );
        }
    }
}

/// Removes from `live` what `before` had and `after` no longer has.
fn remove_missing(live: &mut Value, before: &Value, after: &Value) {
    let (Some(live), Some(before)) = (live.as_object_mut(), before.as_object()) else {
        return;
    };
    for (name, old) in before {
        match after.get(name) {
            None => {
                if let Some(value) = live.get_mut(name) {
                    remove_missing(value, old, &Value::Null);
                    if !old.is_object() || value.as_object().is_some_and(Map::is_empty) {
                        live.remove(name);
                    }
                }
            }
            Some(new) => {
                if let Some(value) = live.get_mut(name) {
                    remove_missing(value, old, new);
                }
            }
        }
    }
}
