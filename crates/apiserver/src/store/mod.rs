//! Versioned key-value storage behind one small trait.
//!
//! Every object of the region lives under a byte key `/<group>/<resource>/[<namespace>/]<name>`. One global revision
//! counter per store is the `resourceVersion` of the whole server: it only grows, is never reused, and survives restart and
//! compaction. Engines: [`memory::MemoryStore`] (tests, simulation) and [`redb::RedbStore`] (one file, group commit).
//! [`contract`] is the suite that every engine must pass.
//!
//! What an engine guarantees:
//! - one transaction is one revision, atomic, and its guards are checked at commit;
//! - a read at revision `r` sees exactly the changes up to `r`, nothing more and nothing less;
//! - a watch from `r` yields every later change of its prefix exactly once, in order, batched by revision;
//! - once [`Store::txn`] answered [`TxnOutcome::Committed`], the change survives SIGKILL and power loss (memory excepted);
//! - a transaction that failed or whose future was dropped is wholly there or wholly absent;
//! - history older than the floor answers [`StoreError::Compacted`], never a silent gap.
//!
//! What this module deliberately is not: it knows nothing of JSON, kinds, or time to live. Expiry is done above by a sweeper.

use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

pub mod memory;
pub(crate) mod mvcc;
pub mod redb;
pub(crate) mod shared;

/// A point in the store's history. Zero is the empty store before its first write.
pub type Rev = u64;

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest value in bytes. The HTTP layer refuses bodies over 3 MiB, defaulting may add to that.
pub const VALUE_BYTES_MAX: usize = 8 << 20;
/// Most operations (and most guards) in one transaction.
pub const TXN_OPS_MAX: usize = 128;
/// How long a read or a watch waits for a revision that has not happened yet.
pub const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// One version of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kv {
    pub key: Bytes,
    pub value: Bytes,
    /// Revision that wrote this version.
    pub mod_rev: Rev,
    /// Revision that created the key (the first write after it was absent).
    pub create_rev: Rev,
}

/// Which state a read wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Everything committed before the call (linearizable).
    Latest,
    /// Like `Latest`, but not before this revision: waits up to [`FUTURE_WAIT`] for it.
    AtLeast(Rev),
    /// Exactly the state at this revision, which must not be compacted. Waits like `AtLeast`.
    Exactly(Rev),
}

/// One page of a range read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub kvs: Vec<Kv>,
    /// The revision this page shows. Later pages of the same listing ask for `At::Exactly(rev)`.
    pub rev: Rev,
    /// Whether keys of the prefix follow after the last one of this page.
    pub more: bool,
    /// How many keys follow.
    pub remaining: u64,
}

/// What must hold of a key for a transaction to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// The newest version is this one.
    ModRev(Rev),
    /// No condition. Present so that callers can build guards uniformly.
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub key: Bytes,
    pub expect: Expect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: Bytes,
        value: Bytes,
    },
    /// Deleting an absent key changes nothing.
    Delete {
        key: Bytes,
    },
}

impl Op {
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// An atomic change. Each key may occur in at most one operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub guards: Vec<Guard>,
    pub ops: Vec<Op>,
}

impl Txn {
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Adds a guard.
    #[must_use]
    pub fn expect(mut self, key: impl Into<Bytes>, expect: Expect) -> Txn {
        self.guards.push(Guard {
            key: key.into(),
            expect,
        });
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
        });
        self
    }

    /// Adds a removal.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Bytes>) -> Txn {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// The revision of the change. A transaction that changes nothing burns no revision and names the current one.
    Committed(Rev),
    /// The first guard (by index) that did not hold, and the newest version of its key.
    Failed { index: usize, current: Option<Kv> },
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put { kv: Kv, prev: Option<Kv> },
    Delete { prev: Kv },
}

impl Change {
    pub fn key(&self) -> &Bytes {
        match self {
            Change::Put { kv, .. } => &kv.key,
            Change::Delete { prev } => &prev.key,
        }
    }
}

/// All changes of one revision that lie under the watched prefix, in the order of the transaction's operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    pub rev: Rev,
    pub events: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchMessage {
    Batch(WatchBatch),
    /// Every change of the prefix up to and including this revision has been delivered.
    Progress(Rev),
}

/// Why the store did not do what was asked, and what the caller may do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// List again: history up to `floor` is gone.
    #[error("revision {requested} is compacted, the oldest available one is {floor}")]
    Compacted { requested: Rev, floor: Rev },
    /// Retry in a second: the revision has not happened within [`FUTURE_WAIT`].
    #[error("revision {requested} is in the future, the current one is {current}")]
    Future { requested: Rev, current: Rev },
    /// The caller's mistake; retrying does not help.
    #[error("invalid transaction: {0}")]
    Invalid(#[from] InvalidTxn),
    /// The engine stopped after an I/O failure or on shutdown. A transaction in flight may or may not be durable. After an I/O
    /// failure the process must exit: what the kernel kept of unsynced pages is unknown, only re-reading the file tells.
    #[error("the store has stopped: {cause}")]
    Stopped { cause: Arc<str> },
}

/// Transactions that no state can accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTxn {
    #[error("key {0} of the operations occurs twice")]
    DuplicateKey(usize),
    #[error("empty key")]
    EmptyKey,
    #[error("key longer than {KEY_BYTES_MAX} bytes")]
    KeyTooLong,
    #[error("value larger than {VALUE_BYTES_MAX} bytes")]
    ValueTooLarge,
    #[error("more than {TXN_OPS_MAX} guards or operations")]
    TooManyOps,
}

impl Txn {
    /// Checks what can be checked without looking at any state.
    pub fn validate(&self) -> Result<(), InvalidTxn> {
        if self.ops.len() > TXN_OPS_MAX || self.guards.len() > TXN_OPS_MAX {
            return Err(InvalidTxn::TooManyOps);
        }
        for key in self
            .guards
            .iter()
            .map(|g| &g.key)
            .chain(self.ops.iter().map(Op::key))
        {
            match key.len() {
                0 => return Err(InvalidTxn::EmptyKey),
                n if n > KEY_BYTES_MAX => return Err(InvalidTxn::KeyTooLong),
                _ => {}
            }
        }
        for (index, op) in self.ops.iter().enumerate() {
            if let Op::Put { value, .. } = op
                && value.len() > VALUE_BYTES_MAX
            {
                return Err(InvalidTxn::ValueTooLarge);
            }
            if self
                .ops
                .iter()
                .take(index)
                .any(|earlier| earlier.key() == op.key())
            {
                return Err(InvalidTxn::DuplicateKey(index));
            }
        }
        Ok(())
    }
}

/// The storage engine. See the module documentation for the guarantees.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// The newest committed revision. Never goes back.
    async fn current(&self) -> Rev;

    /// The oldest revision that [`At::Exactly`] and [`Store::watch`] still accept.
    async fn floor(&self) -> Rev;

    async fn get(&self, key: &[u8], at: At) -> Result<Option<Kv>, StoreError>;

    /// Keys starting with `prefix`, in byte order, strictly after `after` when given. `limit` 0 means no limit.
    async fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        at: At,
    ) -> Result<Page, StoreError>;

    /// Commits atomically or tells the first guard that failed. Dropping the future does not take the transaction back.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Changes of `prefix` after revision `from`.
    async fn watch(&self, prefix: &[u8], from: Rev) -> Result<Watch, StoreError>;

    /// Forgets history up to `floor` (capped at the current revision), keeping the newest version of every key.
    async fn compact(&self, floor: Rev) -> Result<(), StoreError>;

    /// Resolves when the engine stops, with the cause. After an I/O failure the process must then exit.
    async fn stopped(&self) -> StoreError;
}

/// A running watch. It pulls from the history, so a slow reader costs no memory; one that falls behind the compaction floor
/// gets [`StoreError::Compacted`].
#[derive(Debug)]
pub struct Watch(Box<dyn WatchSource>);

impl Watch {
    pub fn new(source: impl WatchSource + 'static) -> Watch {
        Watch(Box::new(source))
    }

    /// The next message; waits until there is one. Cancel safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<WatchMessage, StoreError> {
        self.0.next().await
    }
}

/// What an engine implements to feed a [`Watch`]. Must be cancel safe.
#[async_trait]
pub trait WatchSource: Send + std::fmt::Debug {
    async fn next(&mut self) -> Result<WatchMessage, StoreError>;
}
