//! Keys that need a look: each at most once, in order of arrival, some only after a delay. Pure: the clock comes in.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A queue of distinct keys. Its length is bounded by the number of distinct keys, which the tables it serves bound.
#[derive(Debug)]
pub struct Queue<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    later: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            later: BTreeSet::new(),
            due: HashMap::new(),
        }
    }
}

impl<K: Clone + Ord + Hash> Queue<K> {
    /// Wants a look at `key` as soon as possible.
    pub fn push(&mut self, key: K) {
        if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Wants a look at `key` at `at`, or earlier if it was asked for earlier.
    pub fn push_at(&mut self, key: K, at: Instant) {
        match self.due.get(&key) {
            Some(due) if *due <= at => return,
            Some(due) => {
                self.later.remove(&(*due, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), at);
        self.later.insert((at, key));
    }

    /// The next key to look at.
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        while let Some((at, _)) = self.later.first() {
            if *at > now {
                break;
            }
            let Some((_, key)) = self.later.pop_first() else {
                break;
            };
            self.due.remove(&key);
            self.push(key);
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        Some(key)
    }

    /// When the next delayed key is due; meaningful when nothing is ready.
    pub fn deadline(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Keys waiting, delayed ones included.
    pub fn len(&self) -> usize {
        self.ready.len() + self.later.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.later.is_empty()
    }
}

/// How the wait grows from failure to failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The wait after the `attempts`-th failure in a row, counted from 1: doubled each time.
    pub fn after(&self, attempts: u32) -> Duration {
        let factor = 1u32
            .checked_shl(attempts.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.max)
    }
}
