//! What every engine must do, one named case per rule. Watch cases are in `watching`.

use super::{Engine, Memory, Redb, commit, create, delete, keys, put, refused, value};
use apiserver::store::{
    At, Expect, InvalidTxn, KEY_BYTES_MAX, StoreError, TXN_OPS_MAX, Txn, TxnOutcome,
    VALUE_BYTES_MAX,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Runs generic cases as tests of one engine.
macro_rules! suite {
    ($engine:ident: $($case:path => $name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "current_thread")]
            async fn $name() {
                $case($engine::fresh()).await;
            }
        )*
    };
}
pub(super) use suite;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod memory {
            use super::*;
            suite!(Memory: $(super::$name => $name),*);
        }
        mod redb {
            use super::*;
            suite!(Redb: $(super::$name => $name),*);
        }
    };
}
pub(super) use cases;

macro_rules! durable_cases {
    ($($name:ident),* $(,)?) => {
        mod redb_durable {
            use super::*;
            suite!(Redb: $(super::$name => $name),*);
        }
    };
}
pub(super) use durable_cases;

cases! {
    empty_store_is_at_revision_zero,
    get_of_missing_key_is_none,
    put_then_get_shows_value_and_revisions,
    each_txn_is_the_next_revision,
    several_ops_are_one_revision,
    update_keeps_the_create_revision,
    recreation_renews_the_create_revision,
    delete_removes_the_key,
    delete_of_absent_key_burns_no_revision,
    empty_txn_burns_no_revision,
    equal_put_is_still_a_revision,
    guard_absent_holds_on_missing_key,
    guard_absent_fails_and_shows_the_holder,
    guard_absent_holds_after_delete,
    guard_mod_rev_holds_on_newest,
    guard_mod_rev_fails_when_stale,
    guard_mod_rev_fails_on_missing_key,
    guard_any_never_fails,
    guard_on_another_key_protects,
    guards_only_txn_commits_at_current,
    first_failing_guard_is_named,
    failed_txn_changes_nothing,
    duplicate_key_is_invalid,
    empty_key_is_invalid,
    long_key_is_invalid,
    large_value_is_invalid,
    too_many_ops_are_invalid,
    concurrent_creates_have_one_winner,
    concurrent_compare_and_set_loses_nothing,
    lock_and_owner_commit_together,
    range_is_limited_to_its_prefix,
    range_is_in_byte_order,
    range_of_empty_prefix_is_everything,
    range_limit_tells_the_rest,
    range_after_is_exclusive,
    range_after_before_the_prefix_starts_at_the_prefix,
    paging_is_one_snapshot_under_writes,
    paging_shows_keys_deleted_meanwhile,
    exactly_sees_the_old_value,
    exactly_before_creation_is_none,
    exactly_sees_a_key_deleted_later,
    exactly_after_deletion_is_none,
    exactly_in_the_future_is_refused_after_waiting,
    at_least_the_past_is_latest,
    at_least_waits_for_the_write,
    at_least_too_far_is_refused,
    reads_see_own_writes,
    compact_keeps_the_newest_version,
    compact_keeps_what_the_floor_shows,
    compact_refuses_older_reads,
    compact_forgets_deleted_keys,
    compact_beyond_current_is_capped,
    compact_backwards_changes_nothing,
    compact_does_not_move_current,
    create_revision_survives_compaction,
}

async fn empty_store_is_at_revision_zero(engine: impl Engine) {
    let store = engine.open();
    assert_eq!((store.current().await, store.floor().await), (0, 0));
    let page = store.range(b"", None, 0, At::Latest).await.unwrap();
    assert_eq!(
        (page.kvs.len(), page.rev, page.more, page.remaining),
        (0, 0, false, 0)
    );
}

async fn get_of_missing_key_is_none(engine: impl Engine) {
    assert_eq!(engine.open().get(b"/a", At::Latest).await.unwrap(), None);
}

async fn put_then_get_shows_value_and_revisions(engine: impl Engine) {
    let store = engine.open();
    let rev = put(&*store, "/a", "1").await;
    let kv = store.get(b"/a", At::Latest).await.unwrap().unwrap();
    assert_eq!((&kv.key[..], &kv.value[..]), (&b"/a"[..], &b"1"[..]));
    assert_eq!((kv.mod_rev, kv.create_rev), (rev, rev));
}

async fn each_txn_is_the_next_revision(engine: impl Engine) {
    let store = engine.open();
    for expected in 1..=5 {
        assert_eq!(put(&*store, "/a", "x").await, expected);
        assert_eq!(store.current().await, expected);
    }
}

async fn several_ops_are_one_revision(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/c", "old").await;
    let rev = commit(
        &*store,
        Txn::new().put("/a", "1").put("/b", "2").delete("/c"),
    )
    .await;
    assert_eq!(rev, 2);
    let page = store.range(b"/", None, 0, At::Latest).await.unwrap();
    assert_eq!(
        page.kvs.iter().map(|kv| kv.mod_rev).collect::<Vec<_>>(),
        [2, 2]
    );
}

async fn update_keeps_the_create_revision(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    let kv = store.get(b"/a", At::Latest).await.unwrap().unwrap();
    assert_eq!((kv.create_rev, kv.mod_rev), (1, 2));
}

async fn recreation_renews_the_create_revision(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    delete(&*store, "/a").await;
    put(&*store, "/a", "2").await;
    let kv = store.get(b"/a", At::Latest).await.unwrap().unwrap();
    assert_eq!((kv.create_rev, kv.mod_rev), (3, 3));
}

async fn delete_removes_the_key(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    assert_eq!(delete(&*store, "/a").await, 2);
    assert_eq!(value(&*store, "/a", At::Latest).await, None);
}

async fn delete_of_absent_key_burns_no_revision(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    assert_eq!(delete(&*store, "/b").await, 1);
    assert_eq!(store.current().await, 1);
}

async fn empty_txn_burns_no_revision(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    assert_eq!(commit(&*store, Txn::new()).await, 1);
}

async fn equal_put_is_still_a_revision(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    assert_eq!(put(&*store, "/a", "1").await, 2);
}

async fn guard_absent_holds_on_missing_key(engine: impl Engine) {
    assert_eq!(create(&*engine.open(), "/a", "1").await, 1);
}

async fn guard_absent_fails_and_shows_the_holder(engine: impl Engine) {
    let store = engine.open();
    create(&*store, "/a", "1").await;
    let txn = Txn::new().expect("/a", Expect::Absent).put("/a", "2");
    let (index, current) = refused(&*store, txn).await;
    let current = current.unwrap();
    assert_eq!(
        (index, &current.value[..], current.mod_rev),
        (0, &b"1"[..], 1)
    );
}

async fn guard_absent_holds_after_delete(engine: impl Engine) {
    let store = engine.open();
    create(&*store, "/a", "1").await;
    delete(&*store, "/a").await;
    assert_eq!(create(&*store, "/a", "2").await, 3);
}

async fn guard_mod_rev_holds_on_newest(engine: impl Engine) {
    let store = engine.open();
    let rev = put(&*store, "/a", "1").await;
    commit(
        &*store,
        Txn::new().expect("/a", Expect::ModRev(rev)).put("/a", "2"),
    )
    .await;
    assert_eq!(value(&*store, "/a", At::Latest).await.unwrap(), "2");
}

async fn guard_mod_rev_fails_when_stale(engine: impl Engine) {
    let store = engine.open();
    let rev = put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    let txn = Txn::new().expect("/a", Expect::ModRev(rev)).put("/a", "3");
    let (_, current) = refused(&*store, txn).await;
    assert_eq!(current.unwrap().mod_rev, 2);
    assert_eq!(value(&*store, "/a", At::Latest).await.unwrap(), "2");
}

async fn guard_mod_rev_fails_on_missing_key(engine: impl Engine) {
    let store = engine.open();
    let txn = Txn::new().expect("/a", Expect::ModRev(1)).put("/a", "1");
    assert_eq!(refused(&*store, txn).await, (0, None));
}

async fn guard_any_never_fails(engine: impl Engine) {
    let store = engine.open();
    commit(&*store, Txn::new().expect("/a", Expect::Any).put("/a", "1")).await;
    commit(&*store, Txn::new().expect("/a", Expect::Any).put("/a", "2")).await;
}

async fn guard_on_another_key_protects(engine: impl Engine) {
    let store = engine.open();
    let fence = put(&*store, "/fence", "1").await;
    put(&*store, "/fence", "2").await;
    let txn = Txn::new()
        .expect("/fence", Expect::ModRev(fence))
        .put("/a", "1");
    refused(&*store, txn).await;
    assert_eq!(value(&*store, "/a", At::Latest).await, None);
}

async fn guards_only_txn_commits_at_current(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    assert_eq!(
        commit(&*store, Txn::new().expect("/a", Expect::ModRev(1))).await,
        1
    );
    refused(&*store, Txn::new().expect("/a", Expect::Absent)).await;
}

async fn first_failing_guard_is_named(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/b", "1").await;
    put(&*store, "/c", "1").await;
    let txn = Txn::new()
        .expect("/a", Expect::Absent)
        .expect("/b", Expect::Absent)
        .expect("/c", Expect::Absent);
    let (index, current) = refused(&*store, txn).await;
    assert_eq!((index, &current.unwrap().key[..]), (1, &b"/b"[..]));
}

async fn failed_txn_changes_nothing(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    let txn = Txn::new()
        .expect("/a", Expect::Absent)
        .put("/b", "1")
        .delete("/a");
    refused(&*store, txn).await;
    assert_eq!(store.current().await, 1);
    assert_eq!(keys(&*store, "", At::Latest).await, ["/a"]);
}

async fn invalid(engine: impl Engine, txn: Txn, expected: InvalidTxn) {
    let store = engine.open();
    match store.txn(txn).await {
        Err(StoreError::Invalid(found)) => assert_eq!(found, expected),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.current().await, 0);
}

async fn duplicate_key_is_invalid(engine: impl Engine) {
    let txn = Txn::new().put("/a", "1").delete("/a");
    invalid(engine, txn, InvalidTxn::DuplicateKey(1)).await;
}

async fn empty_key_is_invalid(engine: impl Engine) {
    invalid(engine, Txn::new().put("", "1"), InvalidTxn::EmptyKey).await;
}

async fn long_key_is_invalid(engine: impl Engine) {
    let txn = Txn::new().put(vec![b'k'; KEY_BYTES_MAX + 1], "1");
    invalid(engine, txn, InvalidTxn::KeyTooLong).await;
}

async fn large_value_is_invalid(engine: impl Engine) {
    let txn = Txn::new().put("/a", vec![0; VALUE_BYTES_MAX + 1]);
    invalid(engine, txn, InvalidTxn::ValueTooLarge).await;
}

async fn too_many_ops_are_invalid(engine: impl Engine) {
    let txn = (0..=TXN_OPS_MAX).fold(Txn::new(), |txn, i| txn.put(format!("/{i}"), "1"));
    invalid(engine, txn, InvalidTxn::TooManyOps).await;
}

async fn concurrent_creates_have_one_winner(engine: impl Engine) {
    let store = engine.open();
    let attempts = (0..32).map(|i| {
        let txn = Txn::new()
            .expect("/lock", Expect::Absent)
            .put("/lock", format!("{i}"));
        store.txn(txn)
    });
    let outcomes = futures::future::join_all(attempts).await;
    let won = |o: &Result<TxnOutcome, _>| matches!(o, Ok(TxnOutcome::Committed(_)));
    assert_eq!(outcomes.iter().filter(|o| won(o)).count(), 1);
    assert_eq!(store.current().await, 1);
}

async fn concurrent_compare_and_set_loses_nothing(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/n", "0").await;
    let clients = (0..8).map(|_| {
        let store = Arc::clone(&store);
        async move {
            for _ in 0..25 {
                loop {
                    let kv = store.get(b"/n", At::Latest).await.unwrap().unwrap();
                    let n: u32 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                    let txn = Txn::new()
                        .expect("/n", Expect::ModRev(kv.mod_rev))
                        .put("/n", (n + 1).to_string());
                    if let TxnOutcome::Committed(_) = store.txn(txn).await.unwrap() {
                        break;
                    }
                }
            }
        }
    });
    futures::future::join_all(clients).await;
    assert_eq!(value(&*store, "/n", At::Latest).await.unwrap(), "200");
    assert_eq!(store.current().await, 201);
}

async fn lock_and_owner_commit_together(engine: impl Engine) {
    let store = engine.open();
    let claim = |owner: &str| {
        Txn::new()
            .expect("/ipaddresses/10.0.0.1", Expect::Absent)
            .expect(format!("/ips/{owner}"), Expect::Absent)
            .put("/ipaddresses/10.0.0.1", owner.to_owned())
            .put(format!("/ips/{owner}"), "10.0.0.1")
    };
    commit(&*store, claim("a")).await;
    let (index, current) = refused(&*store, claim("b")).await;
    assert_eq!((index, &current.unwrap().value[..]), (0, &b"a"[..]));
    assert_eq!(keys(&*store, "/ips/", At::Latest).await, ["/ips/a"]);
}

async fn range_is_limited_to_its_prefix(engine: impl Engine) {
    let store = engine.open();
    for key in ["/a/1", "/a/2", "/ab/1", "/a", "/b/1"] {
        put(&*store, key, "x").await;
    }
    assert_eq!(keys(&*store, "/a/", At::Latest).await, ["/a/1", "/a/2"]);
}

async fn range_is_in_byte_order(engine: impl Engine) {
    let store = engine.open();
    for key in ["/z", "/a/b", "/a-b", "/ä", "/a.b", "/A"] {
        put(&*store, key, "x").await;
    }
    let listed = keys(&*store, "/", At::Latest).await;
    assert_eq!(listed, ["/A", "/a-b", "/a.b", "/a/b", "/z", "/ä"]);
}

async fn range_of_empty_prefix_is_everything(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "x").await;
    put(&*store, "b", "x").await;
    assert_eq!(keys(&*store, "", At::Latest).await, ["/a", "b"]);
}

async fn range_limit_tells_the_rest(engine: impl Engine) {
    let store = engine.open();
    for i in 0..10 {
        put(&*store, &format!("/a/{i}"), "x").await;
    }
    put(&*store, "/b", "x").await;
    let page = store.range(b"/a/", None, 4, At::Latest).await.unwrap();
    assert_eq!(
        (page.kvs.len(), page.more, page.remaining, page.rev),
        (4, true, 6, 11)
    );
    let page = store.range(b"/a/", None, 10, At::Latest).await.unwrap();
    assert_eq!((page.kvs.len(), page.more, page.remaining), (10, false, 0));
}

async fn range_after_is_exclusive(engine: impl Engine) {
    let store = engine.open();
    for key in ["/a/1", "/a/2", "/a/3"] {
        put(&*store, key, "x").await;
    }
    let page = store
        .range(b"/a/", Some(b"/a/2"), 0, At::Latest)
        .await
        .unwrap();
    assert_eq!(page.kvs.len(), 1);
    let page = store
        .range(b"/a/", Some(b"/a/15"), 0, At::Latest)
        .await
        .unwrap();
    assert_eq!(page.kvs.len(), 2);
}

async fn range_after_before_the_prefix_starts_at_the_prefix(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "x").await;
    put(&*store, "/b/1", "x").await;
    let page = store
        .range(b"/b/", Some(b"/"), 0, At::Latest)
        .await
        .unwrap();
    assert_eq!(page.kvs.len(), 1);
}

async fn paging_is_one_snapshot_under_writes(engine: impl Engine) {
    let store = engine.open();
    let expected: BTreeSet<String> = (0..20).map(|i| format!("/a/{i:02}")).collect();
    for key in &expected {
        put(&*store, key, "before").await;
    }
    let mut seen = BTreeSet::new();
    let mut page = store.range(b"/a/", None, 3, At::Latest).await.unwrap();
    let snapshot = page.rev;
    loop {
        for kv in &page.kvs {
            assert_eq!(&kv.value[..], b"before");
            assert!(seen.insert(String::from_utf8(kv.key.to_vec()).unwrap()));
        }
        if !page.more {
            break;
        }
        // Writes around the cursor: updates behind and before it, new keys in the gap.
        put(&*store, "/a/00", "after").await;
        put(&*store, "/a/19", "after").await;
        put(&*store, &format!("/a/10-{}", seen.len()), "new").await;
        let after = page.kvs.last().unwrap().key.clone();
        page = store
            .range(b"/a/", Some(&after), 3, At::Exactly(snapshot))
            .await
            .unwrap();
        assert_eq!(page.rev, snapshot);
        assert_eq!(
            page.remaining as usize + page.kvs.len() + seen.len(),
            expected.len()
        );
    }
    assert_eq!(seen, expected);
}

async fn paging_shows_keys_deleted_meanwhile(engine: impl Engine) {
    let store = engine.open();
    for key in ["/a/1", "/a/2", "/a/3"] {
        put(&*store, key, "x").await;
    }
    let page = store.range(b"/a/", None, 1, At::Latest).await.unwrap();
    delete(&*store, "/a/3").await;
    let rest = store
        .range(b"/a/", Some(b"/a/1"), 0, At::Exactly(page.rev))
        .await
        .unwrap();
    assert_eq!(rest.kvs.len(), 2);
    assert_eq!(keys(&*store, "/a/", At::Latest).await, ["/a/1", "/a/2"]);
}

async fn exactly_sees_the_old_value(engine: impl Engine) {
    let store = engine.open();
    let old = put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    assert_eq!(value(&*store, "/a", At::Exactly(old)).await.unwrap(), "1");
    assert_eq!(
        value(&*store, "/a", At::Exactly(old + 1)).await.unwrap(),
        "2"
    );
}

async fn exactly_before_creation_is_none(engine: impl Engine) {
    let store = engine.open();
    let before = put(&*store, "/x", "1").await;
    put(&*store, "/a", "1").await;
    assert_eq!(value(&*store, "/a", At::Exactly(before)).await, None);
    assert_eq!(keys(&*store, "", At::Exactly(before)).await, ["/x"]);
}

async fn exactly_sees_a_key_deleted_later(engine: impl Engine) {
    let store = engine.open();
    let then = put(&*store, "/a", "1").await;
    delete(&*store, "/a").await;
    assert_eq!(value(&*store, "/a", At::Exactly(then)).await.unwrap(), "1");
    assert_eq!(keys(&*store, "", At::Exactly(then)).await, ["/a"]);
}

async fn exactly_after_deletion_is_none(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    let gone = delete(&*store, "/a").await;
    put(&*store, "/a", "2").await;
    assert_eq!(value(&*store, "/a", At::Exactly(gone)).await, None);
}

async fn exactly_in_the_future_is_refused_after_waiting(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    match store.get(b"/a", At::Exactly(2)).await {
        Err(StoreError::Future {
            requested: 2,
            current: 1,
        }) => {}
        other => panic!("{other:?}"),
    }
}

async fn at_least_the_past_is_latest(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    assert_eq!(value(&*store, "/a", At::AtLeast(1)).await.unwrap(), "2");
    let page = store.range(b"", None, 0, At::AtLeast(1)).await.unwrap();
    assert_eq!(page.rev, 2);
}

async fn at_least_waits_for_the_write(engine: impl Engine) {
    let store = engine.open();
    let read = store.get(b"/a", At::AtLeast(1));
    let (read, _) = futures::join!(read, put(&*store, "/a", "1"));
    assert_eq!(&read.unwrap().unwrap().value[..], b"1");
}

async fn at_least_too_far_is_refused(engine: impl Engine) {
    let store = engine.open();
    match store.range(b"", None, 0, At::AtLeast(7)).await {
        Err(StoreError::Future {
            requested: 7,
            current: 0,
        }) => {}
        other => panic!("{other:?}"),
    }
}

async fn reads_see_own_writes(engine: impl Engine) {
    let store = engine.open();
    for i in 0..50 {
        let rev = put(&*store, "/a", &i.to_string()).await;
        assert!(store.current().await >= rev);
        assert_eq!(
            value(&*store, "/a", At::Latest).await.unwrap(),
            i.to_string()
        );
    }
}

async fn compact_keeps_the_newest_version(engine: impl Engine) {
    let store = engine.open();
    for i in 0..5 {
        put(&*store, "/a", &i.to_string()).await;
    }
    put(&*store, "/b", "b").await;
    store.compact(6).await.unwrap();
    assert_eq!(value(&*store, "/a", At::Latest).await.unwrap(), "4");
    assert_eq!(keys(&*store, "", At::Exactly(6)).await, ["/a", "/b"]);
    assert_eq!(store.floor().await, 6);
}

async fn compact_keeps_what_the_floor_shows(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    put(&*store, "/a", "3").await;
    delete(&*store, "/a").await;
    store.compact(2).await.unwrap();
    assert_eq!(value(&*store, "/a", At::Exactly(2)).await.unwrap(), "2");
    assert_eq!(value(&*store, "/a", At::Exactly(3)).await.unwrap(), "3");
    assert_eq!(value(&*store, "/a", At::Exactly(4)).await, None);
}

async fn compact_refuses_older_reads(engine: impl Engine) {
    let store = engine.open();
    for i in 0..5 {
        put(&*store, "/a", &i.to_string()).await;
    }
    store.compact(3).await.unwrap();
    for rev in 1..3 {
        match store.get(b"/a", At::Exactly(rev)).await {
            Err(StoreError::Compacted {
                requested,
                floor: 3,
            }) => assert_eq!(requested, rev),
            other => panic!("{other:?}"),
        }
        assert!(store.range(b"", None, 0, At::Exactly(rev)).await.is_err());
    }
    assert_eq!(value(&*store, "/a", At::AtLeast(1)).await.unwrap(), "4");
}

async fn compact_forgets_deleted_keys(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    delete(&*store, "/a").await;
    store.compact(2).await.unwrap();
    assert_eq!(
        keys(&*store, "", At::Exactly(2)).await,
        Vec::<String>::new()
    );
    assert_eq!(create(&*store, "/a", "2").await, 3);
}

async fn compact_beyond_current_is_capped(engine: impl Engine) {
    let store = engine.open();
    put(&*store, "/a", "1").await;
    store.compact(1000).await.unwrap();
    assert_eq!((store.floor().await, store.current().await), (1, 1));
    assert_eq!(put(&*store, "/a", "2").await, 2);
    assert_eq!(value(&*store, "/a", At::Exactly(1)).await.unwrap(), "1");
}

async fn compact_backwards_changes_nothing(engine: impl Engine) {
    let store = engine.open();
    for i in 0..5 {
        put(&*store, "/a", &i.to_string()).await;
    }
    store.compact(4).await.unwrap();
    store.compact(2).await.unwrap();
    store.compact(4).await.unwrap();
    assert_eq!(store.floor().await, 4);
}

async fn compact_does_not_move_current(engine: impl Engine) {
    let store = engine.open();
    for i in 0..1500 {
        put(&*store, &format!("/{}", i % 7), "x").await;
    }
    store.compact(1400).await.unwrap();
    assert_eq!((store.current().await, store.floor().await), (1500, 1400));
    assert_eq!(keys(&*store, "", At::Exactly(1400)).await.len(), 7);
    assert_eq!(put(&*store, "/a", "x").await, 1501);
}

async fn create_revision_survives_compaction(engine: impl Engine) {
    let store = engine.open();
    for i in 0..5 {
        put(&*store, "/a", &i.to_string()).await;
    }
    store.compact(5).await.unwrap();
    put(&*store, "/a", "x").await;
    let kv = store.get(b"/a", At::Latest).await.unwrap().unwrap();
    assert_eq!((kv.create_rev, kv.mod_rev), (1, 6));
}
