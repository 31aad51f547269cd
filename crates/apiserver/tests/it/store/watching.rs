//! The watch rules every engine must keep.

use super::contract::{cases, durable_cases, suite};
use super::{Engine, Memory, Redb, commit, delete, next, put};
use apiserver::store::{Change, Kv, Rev, Store, StoreError, Txn, Watch, WatchMessage};
use std::sync::Arc;

cases! {
    watch_delivers_a_creation,
    watch_delivers_an_update_with_the_previous_state,
    watch_delivers_a_deletion_with_the_last_state,
    watch_is_limited_to_its_prefix,
    watch_batches_one_revision,
    watch_from_the_past_replays,
    watch_from_current_is_silent_until_the_next_change,
    watch_is_exact_under_concurrent_writers,
    watch_reports_progress_for_foreign_changes,
    progress_is_never_ahead_of_undelivered_changes,
    watch_below_the_floor_is_refused,
    watch_from_the_floor_works,
    watch_overtaken_by_compaction_is_told,
    watch_of_history_has_previous_state_after_compaction,
    watch_from_the_future_waits,
    watch_too_far_in_the_future_is_refused,
    watches_are_independent,
    watch_survives_cancelled_waits,
    watch_does_not_see_failed_txns,
    watch_follows_delete_and_recreate,
}

durable_cases! {
    watch_resumes_over_a_restart,
    watch_ends_when_the_store_closes,
}

/// The next batch, skipping progress; checks that progress never goes back.
async fn batch(watch: &mut Watch) -> (Rev, Vec<Change>) {
    loop {
        if let WatchMessage::Batch(batch) = next(watch).await {
            return (batch.rev, batch.events);
        }
    }
}

fn kv(key: &str, value: &str, create_rev: Rev, mod_rev: Rev) -> Kv {
    Kv {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        mod_rev,
        create_rev,
    }
}

async fn watch_delivers_a_creation(engine: impl Engine) {
    let store = engine.open();
    let mut watch = store.watch(b"/", 0).await.unwrap();
    put(&*store, "/a", "1").await;
    let expected = vec![Change::Put {
        kv: kv("/a", "1", 1, 1),
        prev: None,
    }];
    assert_eq!(batch(&mut watch).await, (1, expected));
}

async fn watch_delivers_an_update_with_the_previous_state(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    let mut watch = store.watch(b"/", 1).await.unwrap();
    put(&*store, "/a", "2").await;
    let prev = Some(kv("/a", "1", 1, 1));
    let expected = vec![Change::Put {
        kv: kv("/a", "2", 1, 2),
        prev,
    }];
    assert_eq!(batch(&mut watch).await, (2, expected));
}

async fn watch_delivers_a_deletion_with_the_last_state(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    let mut watch = store.watch(b"/", 1).await.unwrap();
    delete(&*store, "/a").await;
    let expected = vec![Change::Delete {
        prev: kv("/a", "1", 1, 1),
    }];
    assert_eq!(batch(&mut watch).await, (2, expected));
}

async fn watch_is_limited_to_its_prefix(engine: impl Engine) {
    let store = engine.open();
    let mut watch = store.watch(b"/a/", 0).await.unwrap();
    commit(&*store, Txn::new().put("/a", "x").put("/ab/1", "x")).await;
    commit(&*store, Txn::new().put("/b/1", "x").put("/a/1", "x")).await;
    let (rev, events) = batch(&mut watch).await;
    assert_eq!(
        (rev, events.len(), &events[0].key()[..]),
        (2, 1, &b"/a/1"[..])
    );
}

async fn watch_batches_one_revision(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/c", "x").await;
    let mut watch = store.watch(b"/", 1).await.unwrap();
    commit(
        &*store,
        Txn::new().put("/b", "x").delete("/c").put("/a", "x"),
    )
    .await;
    let (rev, events) = batch(&mut watch).await;
    let keys: Vec<_> = events.iter().map(|event| event.key().to_vec()).collect();
    assert_eq!(
        (rev, keys),
        (2, vec![b"/b".to_vec(), b"/c".to_vec(), b"/a".to_vec()])
    );
}

async fn watch_from_the_past_replays(engine: impl Engine) {
    let store = engine.open();
    for i in 0..1000 {
        put(&*store, "/a", &i.to_string()).await;
    }
    let mut watch = store.watch(b"/", 300).await.unwrap();
    for rev in 301..=1000 {
        assert_eq!(batch(&mut watch).await.0, rev);
    }
}

async fn watch_from_current_is_silent_until_the_next_change(engine: impl Engine) {
    let store = engine.open();
    let rev = put(&*store, "/a", "1").await;
    let mut watch = store.watch(b"/", rev).await.unwrap();
    assert!(futures::FutureExt::now_or_never(watch.next()).is_none());
    put(&*store, "/a", "2").await;
    assert_eq!(batch(&mut watch).await.0, rev + 1);
}

async fn watch_is_exact_under_concurrent_writers(engine: impl Engine) {
    let store = engine.open();
    let mut watch = store.watch(b"/a/", 0).await.unwrap();
    let writers = (0..8).map(|writer| {
        let store = Arc::clone(&store);
        async move {
            for i in 0..40 {
                let prefix = if i % 4 == 0 { "/b" } else { "/a" };
                put(&*store, &format!("{prefix}/{writer}"), &i.to_string()).await;
            }
        }
    });
    let reader = async {
        let (mut count, mut last, mut newest) = (0, 0, [-1; 8]);
        while count < 8 * 30 {
            let (rev, events) = batch(&mut watch).await;
            assert!(rev > last);
            last = rev;
            for event in events {
                let Change::Put { kv, .. } = event else {
                    panic!("{event:?}")
                };
                let writer = usize::from(kv.key[3] - b'0');
                let value: i32 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                assert!(
                    value > newest[writer],
                    "each writer's changes come in order"
                );
                newest[writer] = value;
                count += 1;
            }
        }
        count
    };
    let (_, count) = futures::join!(futures::future::join_all(writers), reader);
    assert_eq!(count, 240);
}

async fn watch_reports_progress_for_foreign_changes(engine: impl Engine) {
    let store = engine.open();
    let mut watch = store.watch(b"/a/", 0).await.unwrap();
    put(&*store, "/b", "1").await;
    let rev = put(&*store, "/b", "2").await;
    loop {
        match next(&mut watch).await {
            WatchMessage::Progress(seen) if seen == rev => break,
            WatchMessage::Progress(seen) => assert!(seen < rev),
            WatchMessage::Batch(batch) => panic!("{batch:?}"),
        }
    }
}

async fn progress_is_never_ahead_of_undelivered_changes(engine: impl Engine) {
    let store = engine.open();
    for i in 0..2000 {
        put(&*store, if i % 3 == 0 { "/a/x" } else { "/b" }, "x").await;
    }
    let mut watch = store.watch(b"/a/", 0).await.unwrap();
    let (mut told, mut batches) = (0, 0);
    while told < 2000 {
        match next(&mut watch).await {
            WatchMessage::Progress(rev) => {
                // Changes of the prefix are at 1, 4, 7, …: all up to `rev` must have come.
                assert_eq!(batches, rev.div_ceil(3));
                assert!(rev > told);
                told = rev;
            }
            WatchMessage::Batch(batch) => {
                assert!(batch.rev > told);
                told = batch.rev;
                batches += 1;
            }
        }
    }
}

async fn expect_compacted(store: &dyn Store, from: Rev) {
    match store.watch(b"/", from).await {
        Err(StoreError::Compacted { requested, .. }) => assert_eq!(requested, from),
        other => panic!("{other:?}"),
    }
}

async fn watch_below_the_floor_is_refused(engine: impl Engine) {
    let store = engine.open();
    for i in 0..5 {
        put(&*store, "/a", &i.to_string()).await;
    }
    store.compact(3).await.unwrap();
    expect_compacted(&*store, 2).await;
    expect_compacted(&*store, 0).await;
}

async fn watch_from_the_floor_works(engine: impl Engine) {
    let store = engine.open();
    for i in 0..5 {
        put(&*store, "/a", &i.to_string()).await;
    }
    store.compact(3).await.unwrap();
    let mut watch = store.watch(b"/", 3).await.unwrap();
    assert_eq!(batch(&mut watch).await.0, 4);
    assert_eq!(batch(&mut watch).await.0, 5);
}

async fn watch_overtaken_by_compaction_is_told(engine: impl Engine) {
    let store = engine.open();
    let mut watch = store.watch(b"/", 0).await.unwrap();
    for i in 0..5 {
        put(&*store, "/a", &i.to_string()).await;
    }
    store.compact(4).await.unwrap();
    match watch.next().await {
        Err(StoreError::Compacted {
            requested: 0,
            floor: 4,
        }) => {}
        other => panic!("{other:?}"),
    }
}

async fn watch_of_history_has_previous_state_after_compaction(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    delete(&*store, "/a").await;
    store.compact(1).await.unwrap();
    let mut watch = store.watch(b"/", 1).await.unwrap();
    let prev = Some(kv("/a", "1", 1, 1));
    let expected = vec![Change::Put {
        kv: kv("/a", "2", 1, 2),
        prev,
    }];
    assert_eq!(batch(&mut watch).await, (2, expected));
    let expected = vec![Change::Delete {
        prev: kv("/a", "2", 1, 2),
    }];
    assert_eq!(batch(&mut watch).await, (3, expected));
}

async fn watch_from_the_future_waits(engine: impl Engine) {
    let store = engine.open();
    let (watch, _) = futures::join!(store.watch(b"/", 1), put(&*store, "/a", "1"));
    let mut watch = watch.unwrap();
    put(&*store, "/a", "2").await;
    assert_eq!(batch(&mut watch).await.0, 2);
}

async fn watch_too_far_in_the_future_is_refused(engine: impl Engine) {
    match engine.open().watch(b"/", 9).await {
        Err(StoreError::Future {
            requested: 9,
            current: 0,
        }) => {}
        other => panic!("{other:?}"),
    }
}

async fn watches_are_independent(engine: impl Engine) {
    let store = engine.open();
    let mut first = store.watch(b"/", 0).await.unwrap();
    let mut second = store.watch(b"/", 0).await.unwrap();
    put(&*store, "/a", "1").await;
    assert_eq!(batch(&mut first).await.0, 1);
    drop(first);
    put(&*store, "/a", "2").await;
    assert_eq!(batch(&mut second).await.0, 1);
    assert_eq!(batch(&mut second).await.0, 2);
}

async fn watch_survives_cancelled_waits(engine: impl Engine) {
    let store = engine.open();
    let mut watch = store.watch(b"/", 0).await.unwrap();
    for rev in 1..=20 {
        let _ = futures::FutureExt::now_or_never(async {
            watch.next().await.unwrap();
            panic!("nothing can be there yet");
        });
        put(&*store, "/a", "x").await;
        assert_eq!(batch(&mut watch).await.0, rev);
    }
}

async fn watch_does_not_see_failed_txns(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    let mut watch = store.watch(b"/", 1).await.unwrap();
    let txn = Txn::new()
        .expect("/a", apiserver::store::Expect::Absent)
        .put("/b", "x");
    super::refused(&*store, txn).await;
    put(&*store, "/a", "2").await;
    let (rev, events) = batch(&mut watch).await;
    assert_eq!((rev, &events[0].key()[..]), (2, &b"/a"[..]));
}

async fn watch_follows_delete_and_recreate(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    delete(&*store, "/a").await;
    put(&*store, "/a", "2").await;
    let mut watch = store.watch(b"/", 0).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.extend(batch(&mut watch).await.1);
    }
    let expected = [
        Change::Put {
            kv: kv("/a", "1", 1, 1),
            prev: None,
        },
        Change::Delete {
            prev: kv("/a", "1", 1, 1),
        },
        Change::Put {
            kv: kv("/a", "2", 3, 3),
            prev: None,
        },
    ];
    assert_eq!(seen, expected);
}

async fn watch_resumes_over_a_restart(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    commit(&*store, Txn::new().delete("/a").put("/b", "x")).await;
    let mut watch = store.watch(b"/", 1).await.unwrap();
    let before = [batch(&mut watch).await, batch(&mut watch).await];
    drop(watch);
    drop(store);
    let store = engine.open();
    let mut watch = store.watch(b"/", 1).await.unwrap();
    let after = [batch(&mut watch).await, batch(&mut watch).await];
    assert_eq!(before, after);
}

async fn watch_ends_when_the_store_closes(engine: impl Engine) {
    let store = engine.open();
    let mut watch = store.watch(b"/", 0).await.unwrap();
    put(&*store, "/a", "1").await;
    drop(store);
    assert_eq!(batch(&mut watch).await.0, 1);
    assert!(matches!(
        watch.next().await,
        Err(StoreError::Stopped { .. })
    ));
}
