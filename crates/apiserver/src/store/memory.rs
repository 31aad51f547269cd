//! The engine without durability: for tests, simulation and throw-away servers.

use super::mvcc::{Mvcc, Staged};
use super::shared::Shared;
use super::{At, Kv, Page, Rev, Store, StoreError, Txn, TxnOutcome, Watch};
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};

/// Everything in memory; state is lost with the process.
#[derive(Debug)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    /// Makes check-and-publish one step; readers do not take it.
    writer: Mutex<()>,
    history_max: usize,
}

/// History kept by default, in revisions.
pub const HISTORY_MAX: usize = 100_000;

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new(HISTORY_MAX)
    }
}

impl MemoryStore {
    /// A store that keeps at least the newest `history_max` revisions for watches and exact reads.
    pub fn new(history_max: usize) -> MemoryStore {
        let shared = Shared::new(Mvcc::default());
        MemoryStore {
            shared,
            writer: Mutex::new(()),
            history_max,
        }
    }

    fn commit(&self, txn: &Txn) -> TxnOutcome {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut staged = Staged::default();
        let outcome = self.shared.read().stage(&mut staged, txn);
        self.shared.publish(staged);
        let mut state = self.shared.write();
        // Trim in steps: a compaction per write would cost more than it frees.
        if state.history_len() > self.history_max + self.history_max / 8 {
            let floor = state.rev().saturating_sub(self.history_max as Rev);
            state.compact(floor);
        }
        outcome
    }
}

#[async_trait]
impl Store for MemoryStore {
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
        Ok(self.commit(&txn))
    }

    async fn watch(&self, prefix: &[u8], from: Rev) -> Result<Watch, StoreError> {
        self.shared.watch(prefix, from).await
    }

    async fn compact(&self, floor: Rev) -> Result<(), StoreError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.write().compact(floor);
        Ok(())
    }

    async fn stopped(&self) -> StoreError {
        self.shared.stopped().await
    }
}
