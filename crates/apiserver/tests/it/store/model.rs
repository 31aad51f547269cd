//! Random transactions, reads, watches, compactions and restarts against a naive model: one full map per revision.

use super::{Engine, Memory, Redb};
use apiserver::store::{
    At, Change, Expect, Kv, Rev, Store, StoreError, Txn, TxnOutcome, WatchMessage,
};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Clone)]
enum Step {
    /// (guard key, guard choice), (key, delete?)
    Txn(Vec<(u8, u8)>, Vec<(u8, bool)>),
    Get {
        key: u8,
        back: u8,
    },
    Range {
        prefix: u8,
        after: Option<u8>,
        limit: u8,
        back: u8,
    },
    Watch {
        prefix: u8,
        back: u8,
    },
    Compact {
        back: u8,
    },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..12u8;
    let txn = (
        vec((key.clone(), 0..4u8), 0..3),
        vec((key.clone(), any::<bool>()), 0..4),
    );
    let range = (0..4u8, proptest::option::of(key.clone()), 0..5u8, 0..20u8);
    let step = prop_oneof![
        10 => txn.prop_map(|(guards, ops)| Step::Txn(guards, ops)),
        3 => (key, 0..20u8).prop_map(|(key, back)| Step::Get { key, back }),
        3 => range.prop_map(|(prefix, after, limit, back)| Step::Range { prefix, after, limit, back }),
        2 => (0..4u8, 0..20u8).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0..30u8).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ];
    vec(step, 1..60)
}

fn key(index: u8) -> Bytes {
    format!(
        "/{}/{}",
        ["a", "b", "ab"][usize::from(index % 3)],
        index / 3
    )
    .into()
}

fn prefix(index: u8) -> &'static [u8] {
    [&b""[..], b"/a", b"/a/", b"/b/"][usize::from(index % 4)]
}

type State = BTreeMap<Bytes, Kv>;

/// `states[r]` is the store at revision `r`.
struct Model {
    states: Vec<State>,
    floor: Rev,
}

impl Model {
    fn rev(&self) -> Rev {
        self.states.len() as Rev - 1
    }

    fn at(&self, rev: Rev) -> &State {
        &self.states[rev as usize]
    }

    fn latest(&self) -> &State {
        self.at(self.rev())
    }

    fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        for (index, guard) in txn.guards.iter().enumerate() {
            let current = self.latest().get(&guard.key).cloned();
            let holds = match guard.expect {
                Expect::Any => true,
                Expect::Absent => current.is_none(),
                Expect::ModRev(rev) => current.as_ref().is_some_and(|kv| kv.mod_rev == rev),
            };
            if !holds {
                return TxnOutcome::Failed { index, current };
            }
        }
        let rev = self.rev() + 1;
        let mut state = self.latest().clone();
        let mut changed = false;
        for op in &txn.ops {
            match op {
                apiserver::store::Op::Put { key, value } => {
                    let create_rev = state.get(key).map_or(rev, |kv| kv.create_rev);
                    let kv = Kv {
                        key: key.clone(),
                        value: value.clone(),
                        mod_rev: rev,
                        create_rev,
                    };
                    state.insert(key.clone(), kv);
                    changed = true;
                }
                apiserver::store::Op::Delete { key } => changed |= state.remove(key).is_some(),
            }
        }
        if !changed {
            return TxnOutcome::Committed(rev - 1);
        }
        self.states.push(state);
        TxnOutcome::Committed(rev)
    }

    /// What a watch of `prefix` must show from one revision to the next, as a map because the model forgets the order of ops.
    fn changes(&self, rev: Rev, prefix: &[u8]) -> BTreeMap<Bytes, Change> {
        let (before, after) = (self.at(rev - 1), self.at(rev));
        let written = after
            .values()
            .filter(|kv| kv.mod_rev == rev)
            .map(|kv| Change::Put {
                kv: kv.clone(),
                prev: before.get(&kv.key).cloned(),
            });
        let deleted = before.values().filter(|kv| !after.contains_key(&kv.key));
        let deleted = deleted.map(|prev| Change::Delete { prev: prev.clone() });
        written
            .chain(deleted)
            .filter(|change| change.key().starts_with(prefix))
            .map(|change| (change.key().clone(), change))
            .collect()
    }
}

fn build(model: &Model, guards: &[(u8, u8)], ops: &[(u8, bool)], salt: usize) -> Txn {
    let mut txn = Txn::new();
    for (k, choice) in guards {
        let current = model.latest().get(&key(*k)).map(|kv| kv.mod_rev);
        let expect = match (choice, current) {
            (0, _) => Expect::Absent,
            (1, Some(rev)) => Expect::ModRev(rev),
            (1, None) => Expect::Absent,
            (2, _) => Expect::ModRev(model.rev() / 2),
            _ => Expect::Any,
        };
        txn = txn.expect(key(*k), expect);
    }
    for (index, (k, delete)) in ops.iter().enumerate() {
        if ops[..index].iter().any(|(earlier, _)| earlier == k) {
            continue;
        }
        txn = if *delete {
            txn.delete(key(*k))
        } else {
            txn.put(key(*k), format!("{salt}.{index}"))
        };
    }
    txn
}

async fn check_watch(store: &dyn Store, model: &Model, prefix: &[u8], from: Rev) {
    let mut watch = match store.watch(prefix, from).await {
        Ok(watch) => watch,
        Err(StoreError::Compacted { floor, .. }) => {
            assert!(from < model.floor);
            assert_eq!(floor, model.floor);
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let mut seen = from;
    while seen < model.rev() {
        let (rev, events) = match super::next(&mut watch).await {
            WatchMessage::Batch(batch) => (batch.rev, batch.events),
            WatchMessage::Progress(rev) => (rev + 1, Vec::new()),
        };
        for skipped in seen + 1..rev {
            assert!(
                model.changes(skipped, prefix).is_empty(),
                "missed {skipped}"
            );
        }
        if !events.is_empty() {
            let shown = events.into_iter().map(|c| (c.key().clone(), c)).collect();
            assert_eq!(model.changes(rev, prefix), shown);
            seen = rev;
        } else {
            seen = rev - 1;
        }
    }
}

async fn run<E: Engine>(durable: bool, steps: &[Step]) {
    let engine = E::fresh();
    let mut store: Arc<dyn Store> = engine.open();
    let mut model = Model {
        states: vec![State::new()],
        floor: 0,
    };
    for (salt, step) in steps.iter().enumerate() {
        match step {
            Step::Txn(guards, ops) => {
                let txn = build(&model, guards, ops, salt);
                let expected = model.txn(&txn);
                assert_eq!(store.txn(txn).await.unwrap(), expected);
                assert_eq!(store.current().await, model.rev());
            }
            Step::Get { key: k, back } => {
                let rev = model.rev().saturating_sub(Rev::from(*back));
                match store.get(&key(*k), At::Exactly(rev)).await {
                    Ok(kv) => assert_eq!(kv.as_ref(), model.at(rev).get(&key(*k))),
                    Err(StoreError::Compacted { .. }) => assert!(rev < model.floor),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Range {
                prefix: p,
                after,
                limit,
                back,
            } => {
                let rev = model.rev().saturating_sub(Rev::from(*back));
                let after = after.map(key);
                let limit = usize::from(*limit);
                let page = store
                    .range(prefix(*p), after.as_deref(), limit, At::Exactly(rev))
                    .await;
                let page = match page {
                    Ok(page) => page,
                    Err(StoreError::Compacted { .. }) if rev < model.floor => continue,
                    Err(error) => panic!("{error}"),
                };
                let all: Vec<Kv> = model
                    .at(rev)
                    .values()
                    .filter(|kv| kv.key.starts_with(prefix(*p)))
                    .filter(|kv| after.as_ref().is_none_or(|after| kv.key > *after))
                    .cloned()
                    .collect();
                let cut = if limit == 0 {
                    all.len()
                } else {
                    limit.min(all.len())
                };
                assert_eq!(page.kvs, all[..cut]);
                assert_eq!(page.remaining as usize, all.len() - cut);
                assert_eq!((page.more, page.rev), (cut < all.len(), rev));
            }
            Step::Watch { prefix: p, back } => {
                let from = model.rev().saturating_sub(Rev::from(*back));
                check_watch(&*store, &model, prefix(*p), from).await;
            }
            Step::Compact { back } => {
                let floor = model.rev().saturating_sub(Rev::from(*back));
                store.compact(floor).await.unwrap();
                model.floor = model.floor.max(floor);
                assert_eq!(store.floor().await, model.floor);
            }
            Step::Reopen if durable => {
                drop(store);
                store = engine.open();
                assert_eq!(store.current().await, model.rev());
                assert_eq!(store.floor().await, model.floor);
            }
            Step::Reopen => {}
        }
    }
    check_watch(&*store, &model, b"", model.floor).await;
}

fn check<E: Engine>(durable: bool, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&steps(), |steps| {
            runtime.block_on(run::<E>(durable, &steps));
            Ok(())
        })
        .unwrap();
}

#[test]
fn memory_equals_the_model() {
    check::<Memory>(false, 400);
}

#[test]
fn redb_equals_the_model() {
    check::<Redb>(true, 60);
}
