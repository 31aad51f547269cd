//! The embedded engine: one redb file, an append-only log, one writer thread with group commit.
//!
//! The file holds two tables. `log` maps (revision, place in the transaction) to one version of one key; keys grow monotonically,
//! so a write appends to the right edge of the tree. `meta` holds the format number and the compaction floor. There is no key
//! index on disk: the whole state is mirrored in memory (`mvcc`) and rebuilt by one scan at start, which makes reads linearizable
//! without touching the file and leaves nothing on disk that could contradict the log.
//!
//! Order of a commit: drain the queue (up to [`GROUP_OPS_MAX`] operations, without waiting: the queue fills while the previous
//! commit syncs), check guards, one durable redb transaction, publish to memory, wake watches, acknowledge. An I/O error stops
//! the engine for good ([`Store::stopped`]); what the disk kept is only known after reopening.
//!
//! Start at [`RedbStore::open`]; the thread lives in `writer`, bytes in `file`.

mod file;
mod writer;

pub use file::{FORMAT, OpenError};

use super::shared::Shared;
use super::{At, Kv, Page, Rev, Store, StoreError, Txn, TxnOutcome, Watch};
use async_trait::async_trait;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use writer::{Request, Writer};

/// Transactions that may wait for the writer. Further callers wait for a permit, which is the backpressure.
pub const WRITE_QUEUE_MAX: usize = 4096;
/// Operations in one group commit.
pub const GROUP_OPS_MAX: usize = 256;
/// Revisions whose history one commit forgets at most, so that compaction never holds up writers.
pub const COMPACT_STEP_MAX: u64 = 512;

/// How much history to keep.
#[derive(Debug, Clone)]
pub struct Options {
    /// Hard limit of revisions in the history.
    pub history_max: usize,
    /// Hard limit of bytes in the history's values.
    pub history_bytes_max: usize,
    /// Revisions kept however old they are, so that a quiet server never forces its clients to list again.
    pub history_min: usize,
    /// Beyond `history_min`, history older than this is forgotten.
    pub history_age: Duration,
    /// Page cache of the file in bytes.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            history_max: 100_000,
            history_bytes_max: 256 << 20,
            history_min: 10_000,
            history_age: Duration::from_secs(600),
            // Reads are answered from memory; the file is only appended to and trimmed.
            cache_bytes: 16 << 20,
        }
    }
}

/// Counters since start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Durable commits of the file.
    pub commits: AtomicU64,
    /// Transactions that committed.
    pub txns_committed: AtomicU64,
    /// Transactions whose guard failed.
    pub txns_failed: AtomicU64,
    /// Callers that had to wait because the queue was full.
    pub queue_full: AtomicU64,
    /// Log rows removed by compaction.
    pub rows_compacted: AtomicU64,
}

/// The embedded store. Dropping it finishes queued transactions and closes the file.
#[derive(Debug)]
pub struct RedbStore {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    queue: Option<mpsc::SyncSender<Request>>,
    permits: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
    /// Held for the lifetime of the store; the kernel lets go of it with the process.
    _lock: Option<std::fs::File>,
}

impl RedbStore {
    /// Opens or creates the store in `dir`, which becomes exclusively ours. Blocking: reads the whole log.
    pub fn open(dir: &Path, options: Options) -> Result<RedbStore, OpenError> {
        let lock = file::lock_dir(dir)?;
        let database = file::open_path(dir, options.cache_bytes)?;
        RedbStore::start(database, options, Some(lock))
    }

    /// Opens the store on any redb backend, without a lock. For tests that simulate disks.
    pub fn open_backend(
        backend: impl redb::StorageBackend,
        options: Options,
    ) -> Result<RedbStore, OpenError> {
        let database = redb::Builder::new()
            .set_cache_size(options.cache_bytes)
            .create_with_backend(backend)
            .map_err(|error| OpenError::Engine(error.into()))?;
        RedbStore::start(database, options, None)
    }

    fn start(
        database: redb::Database,
        options: Options,
        lock: Option<std::fs::File>,
    ) -> Result<RedbStore, OpenError> {
        let state = file::load(&database)?;
        let shared = Shared::new(state);
        let counters = Arc::new(Counters::default());
        // Every request holds a permit (compaction requests too), so the channel never fills.
        let (queue, requests) = mpsc::sync_channel(WRITE_QUEUE_MAX);
        let writer = Writer::new(
            database,
            Arc::clone(&shared),
            Arc::clone(&counters),
            options,
            requests,
        );
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Thread { source })?;
        Ok(RedbStore {
            shared,
            counters,
            queue: Some(queue),
            permits: Arc::new(Semaphore::new(WRITE_QUEUE_MAX)),
            thread: Some(thread),
            _lock: lock,
        })
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Revisions and bytes of values that the history holds now.
    pub fn history(&self) -> (usize, usize) {
        let state = self.shared.read();
        (state.history_len(), state.history_bytes())
    }

    async fn send(
        &self,
        make: impl FnOnce(tokio::sync::OwnedSemaphorePermit) -> Request + Send,
    ) -> Result<(), StoreError> {
        if let Some(stopped) = self.shared.stop_cause() {
            return Err(stopped);
        }
        if self.permits.available_permits() == 0 {
            self.counters.queue_full.fetch_add(1, Ordering::Relaxed);
        }
        let permit = match Arc::clone(&self.permits).acquire_owned().await {
            Ok(permit) => permit,
            Err(_) => return Err(self.shared.stopped().await),
        };
        let sent = match &self.queue {
            Some(queue) => queue.try_send(make(permit)).is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { Err(self.gone()) }
    }

    /// The writer went away without a word, which only happens at shutdown.
    fn gone(&self) -> StoreError {
        self.shared.stop("the writer has ended");
        self.shared
            .stop_cause()
            .unwrap_or_else(|| StoreError::Stopped {
                cause: "the writer has ended".into(),
            })
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
        self.shared.stop("closed");
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn current(&self) -> Rev {
        self.shared.read().rev()
    }

    async fn floor(&self) -> Rev {
        self.shared.read().floor()
    }

    async fn get(&self, key: &[u8], at: At) -> Result<Option<Kv>, StoreError> {
        self.shared.get(key, at).await
    }

    async fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        at: At,
    ) -> Result<Page, StoreError> {
        self.shared.range(prefix, after, limit, at).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.validate()?;
        let (reply, answer) = oneshot::channel();
        self.send(|permit| Request::Txn {
            txn,
            reply,
            _permit: permit,
        })
        .await?;
        match answer.await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.gone()),
        }
    }

    async fn watch(&self, prefix: &[u8], from: Rev) -> Result<Watch, StoreError> {
        self.shared.watch(prefix, from).await
    }

    async fn compact(&self, floor: Rev) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(|permit| Request::Compact {
            floor,
            reply,
            _permit: permit,
        })
        .await?;
        match answer.await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.gone()),
        }
    }

    async fn stopped(&self) -> StoreError {
        self.shared.stopped().await
    }
}
