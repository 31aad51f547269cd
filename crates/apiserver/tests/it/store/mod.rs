//! Storage: the contract suite over every engine, a model-based property test, and crashes.

mod contract;
mod crash;
mod durable;
mod model;
mod power;
mod watching;

use apiserver::store::memory::MemoryStore;
use apiserver::store::redb::{Options, RedbStore};
use apiserver::store::{At, Expect, Kv, Rev, Store, Txn, TxnOutcome, Watch, WatchMessage};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for something that must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// Where a contract case gets its stores from.
pub trait Engine {
    fn fresh() -> Self;
    /// Opens the store; a durable engine shows what earlier openings left, which must be dropped by then.
    fn open(&self) -> Arc<dyn Store>;
}

pub struct Memory;

impl Engine for Memory {
    fn fresh() -> Memory {
        Memory
    }

    fn open(&self) -> Arc<dyn Store> {
        Arc::new(MemoryStore::default())
    }
}

pub struct Redb(tempfile::TempDir);

impl Engine for Redb {
    fn fresh() -> Redb {
        Redb(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Arc<dyn Store> {
        Arc::new(RedbStore::open(self.0.path(), Options::default()).unwrap())
    }
}

pub async fn commit(store: &dyn Store, txn: Txn) -> Rev {
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Committed(rev) => rev,
        TxnOutcome::Failed { index, current } => panic!("guard {index} failed on {current:?}"),
    }
}

pub async fn refused(store: &dyn Store, txn: Txn) -> (usize, Option<Kv>) {
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Committed(rev) => panic!("committed at {rev}"),
        TxnOutcome::Failed { index, current } => (index, current),
    }
}

pub async fn put(store: &dyn Store, key: &str, value: &str) -> Rev {
    commit(store, Txn::new().put(key.to_owned(), value.to_owned())).await
}

pub async fn create(store: &dyn Store, key: &str, value: &str) -> Rev {
    let txn = Txn::new().expect(key.to_owned(), Expect::Absent);
    commit(store, txn.put(key.to_owned(), value.to_owned())).await
}

pub async fn delete(store: &dyn Store, key: &str) -> Rev {
    commit(store, Txn::new().delete(key.to_owned())).await
}

pub async fn value(store: &dyn Store, key: &str, at: At) -> Option<String> {
    let kv = store.get(key.as_bytes(), at).await.unwrap();
    kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

pub async fn keys(store: &dyn Store, prefix: &str, at: At) -> Vec<String> {
    let page = store.range(prefix.as_bytes(), None, 0, at).await.unwrap();
    page.kvs
        .iter()
        .map(|kv| String::from_utf8(kv.key.to_vec()).unwrap())
        .collect()
}

pub async fn next(watch: &mut Watch) -> WatchMessage {
    tokio::time::timeout(DEADLINE, watch.next())
        .await
        .expect("watch is silent")
        .unwrap()
}
