//! What both engines share around [`Mvcc`]: the lock, waiting for revisions, pulling watches, and the stop signal.

use super::mvcc::Mvcc;
use super::{At, FUTURE_WAIT, Kv, Page, Rev, StoreError, Watch, WatchBatch, WatchMessage};
use super::{WatchSource, mvcc};
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;

/// Batches that a watch takes from the history per lock.
const WATCH_PULL_MAX: usize = 256;

/// What readers wait on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signal {
    rev: Rev,
    stopped: Option<Arc<str>>,
}

/// The visible state and its signal.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<Mvcc>,
    signal: watch::Sender<Signal>,
}

impl Shared {
    pub(crate) fn new(state: Mvcc) -> Arc<Shared> {
        let signal = watch::Sender::new(Signal {
            rev: state.rev(),
            stopped: None,
        });
        Arc::new(Shared {
            state: RwLock::new(state),
            signal,
        })
    }

    /// No code path panics while holding the lock, so a poisoned lock cannot hide a half-made change.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Mvcc> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Mvcc> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes staged changes visible and wakes everybody who waits.
    pub(crate) fn publish(&self, staged: mvcc::Staged) {
        if staged.records.is_empty() {
            return;
        }
        let rev = {
            let mut state = self.write();
            state.publish(staged);
            state.rev()
        };
        self.signal.send_modify(|signal| signal.rev = rev);
    }

    /// Marks the engine as stopped; the first cause stays.
    pub(crate) fn stop(&self, cause: &str) {
        self.signal.send_if_modified(|signal| {
            let first = signal.stopped.is_none();
            if first {
                signal.stopped = Some(cause.into());
            }
            first
        });
    }

    pub(crate) fn stop_cause(&self) -> Option<StoreError> {
        self.signal
            .borrow()
            .stopped
            .clone()
            .map(|cause| StoreError::Stopped { cause })
    }

    pub(crate) async fn stopped(&self) -> StoreError {
        let mut signal = self.signal.subscribe();
        let cause = match signal.wait_for(|signal| signal.stopped.is_some()).await {
            Ok(signal) => signal.stopped.clone(),
            Err(_) => None,
        };
        StoreError::Stopped {
            cause: cause.unwrap_or_else(|| "closed".into()),
        }
    }

    /// Waits until `rev` has been published.
    pub(crate) async fn wait_for(&self, rev: Rev) -> Result<(), StoreError> {
        if let Some(stopped) = self.stop_cause() {
            return Err(stopped);
        }
        if self.signal.borrow().rev >= rev {
            return Ok(());
        }
        let mut signal = self.signal.subscribe();
        let reached = signal.wait_for(|signal| signal.rev >= rev || signal.stopped.is_some());
        match tokio::time::timeout(FUTURE_WAIT, reached).await {
            Ok(_) => self.stop_cause().map_or(Ok(()), Err),
            Err(_) => Err(StoreError::Future {
                requested: rev,
                current: self.read().rev(),
            }),
        }
    }

    /// Runs `read` on the state at the revision that `at` means.
    async fn at<T>(
        &self,
        at: At,
        read: impl FnOnce(&Mvcc, Rev) -> T + Send,
    ) -> Result<T, StoreError> {
        let wanted = match at {
            At::Latest => 0,
            At::AtLeast(rev) | At::Exactly(rev) => rev,
        };
        self.wait_for(wanted).await?;
        let state = self.read();
        match at {
            At::Latest | At::AtLeast(_) => Ok(read(&state, state.rev())),
            At::Exactly(rev) if rev < state.floor() => Err(StoreError::Compacted {
                requested: rev,
                floor: state.floor(),
            }),
            At::Exactly(rev) => Ok(read(&state, rev)),
        }
    }

    pub(crate) async fn get(&self, key: &[u8], at: At) -> Result<Option<Kv>, StoreError> {
        self.at(at, |state, rev| state.get(key, rev)).await
    }

    pub(crate) async fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        at: At,
    ) -> Result<Page, StoreError> {
        self.at(at, |state, rev| state.range(prefix, after, limit, rev))
            .await
    }

    pub(crate) async fn watch(
        self: &Arc<Self>,
        prefix: &[u8],
        from: Rev,
    ) -> Result<Watch, StoreError> {
        self.wait_for(from).await?;
        let floor = self.read().floor();
        if from < floor {
            return Err(StoreError::Compacted {
                requested: from,
                floor,
            });
        }
        Ok(Watch::new(Pull {
            signal: self.signal.subscribe(),
            shared: Arc::clone(self),
            prefix: prefix.to_vec(),
            ready: VecDeque::new(),
            seen: from,
            told: from,
        }))
    }
}

/// A watch that reads the history at its own pace.
#[derive(Debug)]
struct Pull {
    shared: Arc<Shared>,
    signal: watch::Receiver<Signal>,
    prefix: Vec<u8>,
    ready: VecDeque<WatchBatch>,
    /// History has been looked at up to here.
    seen: Rev,
    /// The reader has been told everything up to here.
    told: Rev,
}

impl Pull {
    /// The next message that needs no waiting.
    fn poll(&mut self) -> Result<Option<WatchMessage>, StoreError> {
        if self.ready.is_empty() {
            let state = self.shared.read();
            let Some((batches, seen)) = state.since(&self.prefix, self.seen, WATCH_PULL_MAX) else {
                return Err(StoreError::Compacted {
                    requested: self.seen,
                    floor: state.floor(),
                });
            };
            self.ready.extend(batches);
            self.seen = seen;
        }
        if let Some(batch) = self.ready.pop_front() {
            self.told = batch.rev;
            return Ok(Some(WatchMessage::Batch(batch)));
        }
        if self.seen > self.told {
            self.told = self.seen;
            return Ok(Some(WatchMessage::Progress(self.seen)));
        }
        Ok(None)
    }
}

#[async_trait]
impl WatchSource for Pull {
    async fn next(&mut self) -> Result<WatchMessage, StoreError> {
        loop {
            let stopped = {
                let signal = self.signal.borrow_and_update();
                signal.stopped.clone()
            };
            if let Some(message) = self.poll()? {
                return Ok(message);
            }
            if let Some(cause) = stopped {
                return Err(StoreError::Stopped { cause });
            }
            if self.signal.changed().await.is_err() {
                return Err(StoreError::Stopped {
                    cause: "closed".into(),
                });
            }
        }
    }
}
