//! What a durable engine must do beyond the common contract: survive being closed, and guard its directory.

use super::contract::{durable_cases, suite};
use super::{Engine, Redb, delete, keys, put, value};
use apiserver::store::{At, Txn};

durable_cases! {
    reopen_shows_everything,
    reopen_keeps_history_readable,
    reopen_keeps_the_floor,
    revision_is_not_reused_after_all_is_deleted_and_compacted,
    reopen_after_compaction_equals_before,
    dropped_future_is_all_or_nothing,
    directory_is_exclusive,
    unknown_format_is_refused,
}

async fn reopen_shows_everything(engine: impl Engine) {
    let store = engine.open();
    for i in 0..20 {
        put(&*store, &format!("/a/{i}"), &i.to_string()).await;
    }
    put(&*store, "/a/3", "again").await;
    delete(&*store, "/a/4").await;
    let before = store.range(b"", None, 0, At::Latest).await.unwrap();
    drop(store);
    let store = engine.open();
    assert_eq!(store.range(b"", None, 0, At::Latest).await.unwrap(), before);
    assert_eq!(put(&*store, "/b", "x").await, 23);
}

async fn reopen_keeps_history_readable(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    delete(&*store, "/a").await;
    put(&*store, "/a", "3").await;
    drop(store);
    let store = engine.open();
    assert_eq!(value(&*store, "/a", At::Exactly(1)).await.unwrap(), "1");
    assert_eq!(value(&*store, "/a", At::Exactly(2)).await, None);
    let kv = store.get(b"/a", At::Latest).await.unwrap().unwrap();
    assert_eq!((kv.create_rev, kv.mod_rev), (3, 3));
}

async fn reopen_keeps_the_floor(engine: impl Engine) {
    let store = engine.open();
    for i in 0..10 {
        put(&*store, "/a", &i.to_string()).await;
    }
    store.compact(7).await.unwrap();
    drop(store);
    let store = engine.open();
    assert_eq!((store.floor().await, store.current().await), (7, 10));
    assert_eq!(value(&*store, "/a", At::Exactly(7)).await.unwrap(), "6");
    assert!(store.get(b"/a", At::Exactly(6)).await.is_err());
}

async fn revision_is_not_reused_after_all_is_deleted_and_compacted(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    delete(&*store, "/a").await;
    store.compact(2).await.unwrap();
    drop(store);
    let store = engine.open();
    assert_eq!(store.current().await, 2);
    assert_eq!(put(&*store, "/a", "1").await, 3);
}

async fn reopen_after_compaction_equals_before(engine: impl Engine) {
    let store = engine.open();
    for i in 0..700 {
        put(&*store, &format!("/{}", i % 40), &i.to_string()).await;
        if i % 3 == 0 {
            delete(&*store, &format!("/{}", i % 20)).await;
        }
    }
    let floor = store.current().await - 100;
    store.compact(floor).await.unwrap();
    let at_floor = store.range(b"", None, 0, At::Exactly(floor)).await.unwrap();
    let latest = store.range(b"", None, 0, At::Latest).await.unwrap();
    drop(store);
    let store = engine.open();
    assert_eq!(
        store.range(b"", None, 0, At::Exactly(floor)).await.unwrap(),
        at_floor
    );
    assert_eq!(store.range(b"", None, 0, At::Latest).await.unwrap(), latest);
}

async fn dropped_future_is_all_or_nothing(engine: impl Engine) {
    let store = engine.open();
    for i in 0..50 {
        let txn = Txn::new()
            .put(format!("/a/{i}"), "x")
            .put(format!("/b/{i}"), "x");
        // Polled once, then dropped: the transaction is queued or it is not.
        assert!(futures::FutureExt::now_or_never(store.txn(txn)).is_none());
    }
    put(&*store, "/end", "x").await;
    let count = |prefix| keys(&*store, prefix, At::Latest);
    assert_eq!(count("/a/").await.len(), count("/b/").await.len());
}

async fn directory_is_exclusive(engine: Redb) {
    let _store = engine.open();
    let path = engine.0.path();
    let error = apiserver::store::redb::RedbStore::open(path, Default::default()).unwrap_err();
    let expected = format!("in use by another process (pid {})", std::process::id());
    assert!(error.to_string().contains(&expected), "{error}");
}

async fn unknown_format_is_refused(engine: Redb) {
    let path = engine.0.path().join("store.redb");
    let database = ::redb::Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    let meta = ::redb::TableDefinition::<&str, u64>::new("meta");
    write
        .open_table(meta)
        .unwrap()
        .insert("format", 99)
        .unwrap();
    write.commit().unwrap();
    drop(database);
    let error =
        apiserver::store::redb::RedbStore::open(engine.0.path(), Default::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the store has format 99, this release reads format 1"
    );
}
