//! A process of controllers: watches that lag, workers that interleave, plans that a crash cuts off.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use controller::process::Process;
use controller::queue::backoff;
use controller::source::Selector;
use controller::{Class, Controller, Key, Op};
use kube_core::DynamicObject;
use rand::Rng;
use rand::rngs::StdRng;

use crate::region::rack::{Done, Hands};
use crate::region::store::{Resource, Store};

/// Plans that a process carries out at a time.
const FLIGHTS_MAX: usize = 6;
/// Controllers of a process.
const CONTROLLERS_MAX: usize = 64;
/// Longest time that a worker waits for its own writes to appear.
const CAUGHT_UP_MS: u64 = 1_000;

/// A number of changes that no store reaches.
const BEHIND: usize = usize::MAX;

pub type Make = Box<dyn Fn() -> Vec<Arc<dyn Controller>>>;

struct Watching {
    resource: Resource,
    scope: Scope,
    /// Changes of the kind that were looked at.
    cursor: usize,
    /// Shows nothing until then.
    stalled_until: u64,
    /// History was lost: everything is listed next.
    relist: bool,
}

/// Which objects of the kind a watch shows.
#[derive(Clone)]
struct Scope {
    namespace: Option<String>,
    /// A label that must be there.
    label: Option<String>,
    /// The path of a field, as a JSON pointer, and its value.
    field: Option<(String, String)>,
}

impl Scope {
    fn of(selector: &Selector) -> Scope {
        let field = selector.fields.as_ref();
        let field = field.and_then(|text| text.split_once('='));
        Scope {
            namespace: selector.namespace.clone(),
            label: selector.labels.clone(),
            field: field.map(|(path, value)| {
                let path = path.replace('.', "/");
                (format!("/{path}"), value.to_owned())
            }),
        }
    }

    fn has(&self, key: &Key, object: &DynamicObject) -> bool {
        let Scope {
            namespace,
            label,
            field,
        } = self;
        let labels = object.metadata.labels.as_ref();
        namespace.as_ref().is_none_or(|name| *name == key.namespace)
            && label
                .as_ref()
                .is_none_or(|label| labels.is_some_and(|labels| labels.contains_key(label)))
            && field.as_ref().is_none_or(|(path, value)| {
                let found = match path.as_str() {
                    "/metadata/name" => Some(key.name.as_str()),
                    path => object.data.pointer(path).and_then(|value| value.as_str()),
                };
                found == Some(value)
            })
    }
}

struct Flight {
    controller: usize,
    key: Key,
    ops: VecDeque<Op>,
    requeue_ms: Option<u64>,
    wrote: Vec<(Resource, usize)>,
    /// Carried out; waits until the caches show it, or until then. Or waits for an answer, which comes then.
    done_at: Option<u64>,
    answered: bool,
}

/// One process of the control plane.
pub struct Part {
    pub name: &'static str,
    make: Make,
    /// What it acts on besides the API.
    pub hands: Option<Hands>,
    /// Controllers with one worker.
    alone: &'static [&'static str],
    /// The kinds that its watches are about.
    resources: Vec<Resource>,
    process: Process,
    watches: Vec<Watching>,
    flights: Vec<Flight>,
    delayed: BTreeMap<(u64, usize, Key), Option<Class>>,
    failures: BTreeMap<(usize, Key), u32>,
    dirty: BTreeSet<(usize, Key)>,
    /// Changes of the store at which no watch was behind.
    level: Cell<usize>,
    /// Refusals that repetition does not heal, for the report.
    pub refused: Vec<String>,
}

/// What a part did, for the history.
pub struct Deed {
    pub controller: &'static str,
    pub key: Key,
    pub op: Op,
    pub result: Result<(), String>,
}

impl Part {
    pub fn new(name: &'static str, make: Make, store: &mut Store) -> Part {
        let process = Process::new(make());
        let kinds = process.watches().map(|selector| &selector.kind);
        let resources = kinds.map(|kind| store.resource(&kind.group, &kind.plural));
        let mut part = Part {
            name,
            resources: resources.collect(),
            make,
            hands: None,
            alone: &[
                "machinescheduler",
                "instance-scheduler",
                "natgatewayautoscaler",
            ],
            process,
            watches: Vec::new(),
            flights: Vec::new(),
            delayed: BTreeMap::new(),
            failures: BTreeMap::new(),
            dirty: BTreeSet::new(),
            level: Cell::new(BEHIND),
            refused: Vec::new(),
        };
        part.watch();
        part
    }

    fn watch(&mut self) {
        let watches = self.resources.iter().zip(self.process.watches());
        let watches = watches.map(|(resource, selector)| Watching {
            resource: *resource,
            scope: Scope::of(selector),
            cursor: 0,
            stalled_until: 0,
            relist: true,
        });
        self.watches = watches.collect();
        self.level.set(BEHIND);
    }

    /// The process dies, and another one starts with nothing.
    pub fn crash(&mut self) {
        self.process = Process::new((self.make)());
        self.flights.clear();
        self.delayed.clear();
        self.failures.clear();
        self.dirty.clear();
        self.watch();
        if let Some(hands) = &self.hands {
            hands.crash();
        }
    }

    /// Whether there is no process at the moment, or none that could reach anybody.
    fn is_held(&self) -> bool {
        self.hands.as_ref().is_some_and(Hands::is_held)
    }

    /// One watch shows nothing for a while.
    pub fn stall(&mut self, until: u64, rng: &mut StdRng) {
        let at = rng.random_range(0..self.watches.len().max(1));
        if let Some(watch) = self.watches.get_mut(at) {
            watch.stalled_until = until;
        }
    }

    /// One watch loses its place: what happened meanwhile is never shown, only what is.
    pub fn skip(&mut self, rng: &mut StdRng) {
        let at = rng.random_range(0..self.watches.len().max(1));
        if let Some(watch) = self.watches.get_mut(at) {
            watch.relist = true;
            self.level.set(BEHIND);
        }
    }

    /// A key comes back at that time, as it would if heartbeats came and stopped: here one in the far future stands for many.
    pub fn remind(&mut self, controller: &str, key: Key, at: u64) {
        let found = (0..CONTROLLERS_MAX).find(|found| self.process.name(*found) == controller);
        if let Some(found) = found {
            self.delayed.insert((at, found, key), None);
        }
    }

    /// Every key is planned again, as from time to time.
    pub fn resync(&mut self) {
        self.process.resync();
    }

    fn lag(&self, at: usize, store: &Store) -> bool {
        self.watches
            .get(at)
            .is_some_and(|watch| watch.relist || watch.cursor < store.changes_of(watch.resource))
    }

    /// Whether any watch is behind. Looked at before every step, and mostly nothing has changed.
    fn lags(&self, store: &Store) -> bool {
        if self.level.get() == store.changes {
            return false;
        }
        let lags = (0..self.watches.len()).any(|at| self.lag(at, store));
        if !lags {
            self.level.set(store.changes);
        }
        lags
    }

    fn synced(&self) -> bool {
        self.watches.iter().all(|watch| !watch.relist)
    }

    /// Whether something can be done now.
    pub fn is_busy(&self, store: &Store, now: u64) -> bool {
        if self.is_held() {
            return false;
        }
        let can_watch = self.lags(store)
            && (0..self.watches.len()).any(|at| {
                self.lag(at, store) && self.watches.get(at).is_some_and(|w| w.stalled_until <= now)
            });
        let can_plan = self.process.waiting() > 0
            && self.flights.len() < FLIGHTS_MAX
            && self.watches.iter().all(|watch| !watch.relist);
        let can_write = self
            .flights
            .iter()
            .any(|f| f.done_at.is_none_or(|at| at <= now));
        let next = self.delayed.keys().next();
        let due = next.is_some_and(|(at, _, _)| *at <= now);
        let woken = self.hands.as_ref().is_some_and(Hands::is_woken);
        can_watch || can_plan || can_write || due || woken
    }

    /// When something can be done although nothing happens.
    pub fn deadline(&self) -> Option<u64> {
        if self.is_held() {
            return None;
        }
        let stalled = self.watches.iter().map(|watch| watch.stalled_until);
        let flights = self.flights.iter().filter_map(|flight| flight.done_at);
        let delayed = self.delayed.keys().next().map(|(at, _, _)| *at);
        stalled
            .filter(|at| *at > 0)
            .chain(flights)
            .chain(delayed)
            .min()
    }

    /// Whether nothing is left to do but wait.
    pub fn is_quiet(&self, store: &Store) -> bool {
        if let Some(hands) = &self.hands
            && (hands.is_departed() || hands.is_woken())
        {
            return hands.is_departed();
        }
        self.flights.is_empty()
            && self.process.waiting() == 0
            && !self.lags(store)
            && self.delayed.values().all(|class| class.is_none())
    }

    /// Keys that failed and wait, for the report.
    pub fn failing(&self) -> Vec<String> {
        let failing = self.delayed.iter().filter(|(_, class)| class.is_some());
        failing
            .map(|((_, at, key), class)| format!("{} {key} {class:?}", self.process.name(*at)))
            .collect()
    }

    /// Does one thing. Returns the operation that was carried out, if it was that.
    pub fn step(&mut self, store: &mut Store, now: u64, rng: &mut StdRng) -> Option<Deed> {
        self.promote(now);
        for (controller, key) in self.hands.iter().flat_map(Hands::woken) {
            self.process.add(controller, key);
        }
        for watch in &mut self.watches {
            if watch.stalled_until <= now {
                watch.stalled_until = 0;
            }
        }
        let shows = (0..self.watches.len()).filter(|at| {
            self.lag(*at, store) && self.watches.get(*at).is_some_and(|w| w.stalled_until == 0)
        });
        let shows: Vec<usize> = shows.collect();
        let writes = self.flights.iter().enumerate();
        let writes = writes.filter(|(_, f)| f.done_at.is_none_or(|at| at <= now));
        let writes: Vec<usize> = writes.map(|(at, _)| at).collect();
        let plans = self.process.waiting() > 0 && self.flights.len() < FLIGHTS_MAX && self.synced();
        let most = shows.len() + 2 * writes.len() + usize::from(plans) * 2;
        let mut choice = rng.random_range(0..most.max(1));
        if let Some(at) = shows.get(choice) {
            self.show(*at, store, rng.random_range(1..8));
            return None;
        }
        choice = choice.saturating_sub(shows.len());
        if let Some(at) = writes.get(choice / 2) {
            return self.write(*at, store, now, rng);
        }
        if plans {
            self.plan(now, rng);
        }
        None
    }

    /// Shows up to `most` changes of a watch.
    fn show(&mut self, at: usize, store: &Store, most: usize) {
        let Some(watch) = self.watches.get_mut(at) else {
            return;
        };
        let Some(history) = store.history(watch.resource) else {
            return;
        };
        let scope = &watch.scope;
        if std::mem::take(&mut watch.relist) {
            watch.cursor = history.changes.len();
            for key in self.process.shown(at) {
                let live = history.live.get(&key);
                if live.is_none_or(|change| !scope.has(&key, &change.object)) {
                    self.process.hide(at, &key);
                }
            }
            for (key, change) in &history.live {
                if scope.has(key, &change.object) {
                    self.process.show(at, change.object.clone());
                }
            }
        } else {
            let changes = history.changes.iter().skip(watch.cursor).take(most);
            for change in changes {
                watch.cursor += 1;
                // What leaves the selection is shown as gone, as servers do.
                if change.gone || !scope.has(&change.key, &change.object) {
                    self.process.hide(at, &change.key);
                } else {
                    self.process.show(at, change.object.clone());
                }
            }
        }
    }

    fn plan(&mut self, now: u64, rng: &mut StdRng) {
        let n = rng.random_range(0..self.process.waiting());
        let Some((controller, key)) = self.process.take(n) else {
            return;
        };
        let busy = |flight: &Flight| flight.controller == controller && flight.key == key;
        if self.flights.iter().any(busy) {
            self.dirty.insert((controller, key));
            return;
        }
        let alone = self.alone.contains(&self.process.name(controller));
        let others = |flight: &Flight| flight.controller == controller;
        if alone && self.flights.iter().any(others) {
            // One worker, which is not done: the key waits.
            self.delayed.insert((now + 20, controller, key), None);
            return;
        }
        self.delayed
            .retain(|(_, at, other), _| *at != controller || *other != key);
        let plan = self.process.plan(controller, &key, now);
        let requeue_ms = plan.requeue.map(|after| after.as_millis() as u64);
        self.flights.push(Flight {
            controller,
            key,
            ops: plan.ops.into(),
            requeue_ms,
            wrote: Vec::new(),
            done_at: None,
            answered: false,
        });
    }

    fn write(&mut self, at: usize, store: &mut Store, now: u64, rng: &mut StdRng) -> Option<Deed> {
        let flight = self.flights.get_mut(at)?;
        if std::mem::take(&mut flight.answered) {
            flight.done_at = None;
        }
        let Some(op) = flight.ops.pop_front() else {
            let wrote = std::mem::take(&mut flight.wrote);
            let waited = flight.done_at.is_some();
            let stalled_until = self.catch_up(&wrote, store);
            match (stalled_until, self.flights.get_mut(at)) {
                (Some(until), Some(flight)) if !waited => {
                    flight.done_at = Some(until.min(now + CAUGHT_UP_MS));
                }
                _ => self.finish(at, None, now),
            }
            return None;
        };
        let result = match (&op, &self.hands) {
            (Op::Act(act), Some(hands)) => match hands.act(&flight.key, act, now, rng) {
                Done::Answered => Ok(()),
                Done::Failed(refusal) => Err(refusal),
                Done::Then(next, at) => {
                    flight.ops.push_front(next);
                    flight.answered = true;
                    flight.done_at = Some(at);
                    Ok(())
                }
            },
            _ => store.execute(&op, self.name),
        };
        if let Some(target) = op.target() {
            let resource = store.resource(&target.kind.group, &target.kind.plural);
            let count = store.changes_of(resource);
            flight.wrote.push((resource, count));
        }
        let deed = Deed {
            controller: self.process.name(flight.controller),
            key: flight.key.clone(),
            op,
            result: result.as_ref().copied().map_err(|r| r.text.clone()),
        };
        if let Err(refusal) = result {
            if matches!(refusal.class, Class::Permanent | Class::Bug) {
                let what = format!(
                    "{} {} {}: {}",
                    self.name, deed.controller, deed.key, refusal.text
                );
                self.refused.push(what);
            }
            self.finish(at, Some(refusal.class), now);
        }
        Some(deed)
    }

    /// The worker waits until the caches show what it wrote. Returns until when a stalled watch keeps it waiting.
    fn catch_up(&mut self, wrote: &[(Resource, usize)], store: &Store) -> Option<u64> {
        let mut stalled = None;
        for (resource, count) in wrote {
            for at in 0..self.watches.len() {
                let behind = |w: &&Watching| w.resource == *resource && w.cursor < *count;
                let Some(watch) = self.watches.get(at).filter(behind) else {
                    continue;
                };
                if watch.stalled_until > 0 {
                    stalled = stalled.max(Some(watch.stalled_until));
                } else {
                    let most = count - watch.cursor;
                    self.show(at, store, most);
                }
            }
        }
        stalled
    }

    fn finish(&mut self, at: usize, failed: Option<Class>, now: u64) {
        let Flight {
            controller,
            key,
            requeue_ms,
            ..
        } = self.flights.swap_remove(at);
        let id = (controller, key.clone());
        let after = match failed {
            None => {
                self.failures.remove(&id);
                requeue_ms
            }
            Some(class) => {
                let failures = self.failures.entry(id.clone()).or_insert(0);
                *failures += 1;
                Some(backoff(class, *failures).as_millis() as u64)
            }
        };
        if self.dirty.remove(&id) && !matches!(failed, Some(Class::Retry)) {
            self.process.add(controller, key);
        } else if let Some(after) = after {
            self.delayed.insert((now + after, controller, key), failed);
        }
    }

    fn promote(&mut self, now: u64) {
        while let Some((at, _, _)) = self.delayed.keys().next() {
            if *at > now {
                return;
            }
            if let Some(((_, controller, key), _)) = self.delayed.pop_first() {
                self.process.add(controller, key);
            }
        }
    }
}
