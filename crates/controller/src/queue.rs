//! The work queue of one controller: every key is queued once, worked on by one worker at a time, and comes back after a
//! delay or a growing back-off. Bounded by [`KEYS_MAX`]; what does not fit is counted and found again by the next resync.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{error::Class, key::Key};

/// Keys known to one queue: waiting, delayed or in work.
pub const KEYS_MAX: usize = 1 << 20;
pub const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// A server that is away is tried again at least this often; the first success ends all such waits at once.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_millis(300);
pub const CONFLICT_BACKOFF_MAX: Duration = Duration::from_millis(500);
pub const PERMANENT_BACKOFF_MAX: Duration = Duration::from_secs(60);

/// How working on a key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Again(Duration),
    Failed(Class),
}

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    active: HashSet<Key>,
    /// Came in while active: queued again when done.
    dirty: HashSet<Key>,
    delayed: BTreeMap<(Instant, u64), (Key, Option<Class>)>,
    due: HashMap<Key, (Instant, u64)>,
    failures: HashMap<Key, u32>,
    sequence: u64,
    closed: bool,
}

#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
    overflows: AtomicU64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something about this key changed: work on it as soon as possible, whatever wait it was in.
    pub fn add(&self, key: Key) {
        let mut state = self.lock();
        state.undelay(&key);
        if state.active.contains(&key) {
            state.dirty.insert(key);
            return;
        }
        if state.queued.contains(&key) {
            return;
        }
        if state.queued.len() + state.due.len() >= KEYS_MAX {
            self.overflows.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.queued.insert(key.clone());
        state.ready.push_back(key);
        drop(state);
        self.wake.notify_one();
    }

    /// The next key, exclusively ours until [`Queue::done`]. `None` when closed.
    pub async fn next(&self) -> Option<Key> {
        loop {
            let notified = self.wake.notified();
            let due = {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    state.active.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.keys().next().map(|(due, _)| *due)
            };
            match due {
                Some(due) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => notified.await,
            }
        }
    }

    pub fn done(&self, key: Key, outcome: Outcome) {
        let mut state = self.lock();
        state.active.remove(&key);
        let (after, class) = match outcome {
            Outcome::Done => {
                state.failures.remove(&key);
                (None, None)
            }
            Outcome::Again(after) => {
                state.failures.remove(&key);
                (Some(after), None)
            }
            Outcome::Failed(class) => {
                let failures = state.failures.entry(key.clone()).or_insert(0);
                *failures += 1;
                (Some(backoff(class, *failures)), Some(class))
            }
        };
        // A change during the work means that the outcome is outdated; except that a retry must not spin.
        let spins = matches!(class, Some(Class::Retry));
        if state.dirty.remove(&key) && !spins {
            state.queued.insert(key.clone());
            state.ready.push_back(key);
        } else if let Some(after) = after {
            state.delay(key, Instant::now() + after, class);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The server answers again: everything that waits because it did not comes at once.
    pub fn retry_now(&self) {
        let mut state = self.lock();
        let waiting: Vec<Key> = state
            .delayed
            .values()
            .filter(|(_, class)| matches!(class, Some(Class::Retry | Class::Conflict)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in waiting {
            state.undelay(&key);
            state.failures.remove(&key);
            if state.queued.insert(key.clone()) {
                state.ready.push_back(key);
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    /// Ready and active keys, then delayed ones.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.lock();
        (state.queued.len() + state.active.len(), state.delayed.len())
    }

    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Nothing ready and nothing in work.
    pub fn is_idle(&self) -> bool {
        self.depth().0 == 0
    }
}

impl State {
    fn delay(&mut self, key: Key, due: Instant, class: Option<Class>) {
        self.undelay(&key);
        self.sequence += 1;
        let slot = (due, self.sequence);
        self.due.insert(key.clone(), slot);
        self.delayed.insert(slot, (key, class));
    }

    fn undelay(&mut self, key: &Key) {
        if let Some(slot) = self.due.remove(key) {
            self.delayed.remove(&slot);
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some((&slot, _)) = self.delayed.first_key_value() {
            if slot.0 > now {
                return;
            }
            if let Some((key, _)) = self.delayed.remove(&slot) {
                self.due.remove(&key);
                if self.queued.insert(key.clone()) {
                    self.ready.push_back(key);
                }
            }
        }
    }
}

/// Doubles from [`BACKOFF_MIN`] up to the cap of the class. No jitter: keys differ in when they fail, and plans are cheap.
pub fn backoff(class: Class, failures: u32) -> Duration {
    let max = match class {
        Class::Retry => RETRY_BACKOFF_MAX,
        Class::Conflict => CONFLICT_BACKOFF_MAX,
        Class::Permanent | Class::Bug => PERMANENT_BACKOFF_MAX,
    };
    let doublings = failures.saturating_sub(1).min(20);
    BACKOFF_MIN.saturating_mul(1 << doublings).min(max)
}
