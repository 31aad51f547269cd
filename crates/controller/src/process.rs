//! The controllers of one process without watches, workers or writes: whoever drives it shows it objects, takes a key, asks for
//! the plan and carries that out. For simulations, where one loop decides what happens next in every process.
//!
//! Unlike [`crate::sim`], caches change only when they are shown something, each watch by itself, so they may be as far behind
//! and as much apart as real ones.

use std::{collections::BTreeSet, sync::Arc};

use kube::core::DynamicObject;

use crate::{
    key::Key,
    plan::Plan,
    runner::Controller,
    source::{Caches, Selector, Source},
    store::{Change, Store},
    world::World,
};

struct Entry {
    controller: Arc<dyn Controller>,
    sources: Vec<Source>,
    queue: BTreeSet<Key>,
}

struct Watched {
    selector: Selector,
    store: Arc<Store>,
}

/// The caches and queues of one process. Starts empty, as a process does.
pub struct Process {
    caches: Caches,
    world: World,
    watches: Vec<Watched>,
    entries: Vec<Entry>,
}

impl Process {
    pub fn new(controllers: Vec<Arc<dyn Controller>>) -> Process {
        let mut caches = Caches::default();
        let mut watches: Vec<Watched> = Vec::new();
        let mut entries = Vec::new();
        for controller in controllers {
            let sources = controller.sources();
            for source in &sources {
                let store = caches.declare(source);
                let selector = &source.selector;
                if watches.iter().all(|watch| watch.selector != *selector) {
                    let selector = selector.clone();
                    watches.push(Watched { selector, store });
                }
            }
            entries.push(Entry {
                controller,
                sources,
                queue: BTreeSet::new(),
            });
        }
        let world = caches.world();
        Process {
            caches,
            world,
            watches,
            entries,
        }
    }

    /// What is watched, in the order of declaration: the numbers that [`Process::show`] and [`Process::hide`] take.
    pub fn watches(&self) -> impl ExactSizeIterator<Item = &Selector> {
        self.watches.iter().map(|watch| &watch.selector)
    }

    /// The keys that a watch has shown.
    pub fn shown(&self, watch: usize) -> Vec<Key> {
        self.watches
            .get(watch)
            .map(|watch| watch.store.keys())
            .unwrap_or_default()
    }

    /// A watch shows an object. One that does not fit its type is absent, as in the runner.
    pub fn show(&mut self, watch: usize, object: DynamicObject) {
        let Some(watched) = self.watches.get(watch) else {
            return;
        };
        if let Ok(Some(change)) = watched.store.put(object) {
            let selector = watched.selector.clone();
            self.wake(&selector, &change);
        }
    }

    /// A watch shows that an object is gone.
    pub fn hide(&mut self, watch: usize, key: &Key) {
        let Some(watched) = self.watches.get(watch) else {
            return;
        };
        if let Some(change) = watched.store.remove(key, None) {
            let selector = watched.selector.clone();
            self.wake(&selector, &change);
        }
    }

    fn wake(&mut self, selector: &Selector, change: &Change) {
        let Change { old, new } = change;
        for entry in &mut self.entries {
            let Entry { sources, queue, .. } = entry;
            for source in sources.iter().filter(|s| s.selector == *selector) {
                if let Some(keys) = &source.keys {
                    for object in [old, new].into_iter().flatten() {
                        queue.extend(keys(object.as_ref(), &self.world));
                    }
                }
                if let (Some(keys), Some(old), None) = (&source.removed_keys, old, new) {
                    queue.extend(keys(old.as_ref(), &self.world));
                }
            }
        }
    }

    /// Queues every key of every object that is known, as the runner does from time to time.
    pub fn resync(&mut self) {
        let Process {
            caches,
            world,
            entries,
            ..
        } = self;
        for Entry { sources, queue, .. } in entries {
            for source in sources {
                let (Some(keys), Some(store)) = (&source.keys, caches.stores.get(&source.selector))
                else {
                    continue;
                };
                for object in store.all() {
                    queue.extend(keys(object.as_ref(), world));
                }
            }
        }
    }

    /// How many keys wait.
    pub fn waiting(&self) -> usize {
        self.entries.iter().map(|entry| entry.queue.len()).sum()
    }

    /// Takes the `n`th waiting key out of the queues, counted over all of them.
    pub fn take(&mut self, mut n: usize) -> Option<(usize, Key)> {
        for (at, entry) in self.entries.iter_mut().enumerate() {
            if n < entry.queue.len() {
                let key = entry.queue.iter().nth(n).cloned()?;
                entry.queue.remove(&key);
                return Some((at, key));
            }
            n -= entry.queue.len();
        }
        None
    }

    /// Queues a key of a controller again.
    pub fn add(&mut self, controller: usize, key: Key) {
        if let Some(entry) = self.entries.get_mut(controller) {
            entry.queue.insert(key);
        }
    }

    pub fn name(&self, controller: usize) -> &'static str {
        self.entries
            .get(controller)
            .map_or("", |entry| entry.controller.name())
    }

    pub fn plan(&self, controller: usize, key: &Key, now_ms: u64) -> Plan {
        let world = World {
            now_ms,
            ..self.world.clone()
        };
        self.entries
            .get(controller)
            .map(|entry| entry.controller.plan(&world, key))
            .unwrap_or_default()
    }
}
