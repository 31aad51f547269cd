//! Real SIGKILL: a child process writes and reports every acknowledgement; what it reported must be there afterwards.

use super::value;
use apiserver::store::redb::{Options, RedbStore};
use apiserver::store::{At, Store, Txn, TxnOutcome};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const ROUNDS: usize = 12;
const CHILD_DIR: &str = "OPENKCM_TEST_STORE_DIR";
const CHILD_ROUND: &str = "OPENKCM_TEST_STORE_ROUND";

/// Not a case of its own: the body of the child process, which the test below starts.
#[test]
fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let round = std::env::var(CHILD_ROUND).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        // Little history, so that compaction runs while we are killed.
        let options = Options {
            history_max: 200,
            ..Options::default()
        };
        let store = RedbStore::open(Path::new(&dir), options).unwrap();
        let writers = (0..8).map(|writer| {
            let (store, round) = (&store, &round);
            async move {
                for i in 0u64.. {
                    // Two keys that must agree: one overwritten for ever, one new each time.
                    let text = format!("{round}.{writer}.{i}");
                    let txn = Txn::new()
                        .put(format!("/counter/{writer}"), text.clone())
                        .put(format!("/log/{text}"), text.clone());
                    let TxnOutcome::Committed(rev) = store.txn(txn).await.unwrap() else {
                        panic!("no guard can fail");
                    };
                    // One write call per line: a killed process leaves no half line in a user-space buffer.
                    let line = format!("ack {rev} {text}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            }
        });
        futures::future::join_all(writers).await;
    });
}

fn run_child(dir: &Path, round: usize, acks: usize) -> Vec<(u64, String)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::crash::child_writes_until_killed",
            "--nocapture",
        ])
        .env(CHILD_DIR, dir)
        .env(CHILD_ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let parse = |line: &str| {
        let mut words = line.strip_prefix("ack ")?.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
    };
    while acknowledged.len() < acks {
        let line = lines.next().expect("the child ended by itself").unwrap();
        acknowledged.extend(parse(&line));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had reported before the signal, without a line cut short.
    acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| parse(&line)));
    acknowledged
}

#[test]
fn acknowledged_writes_survive_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        // Killed at varied moments: a few hundred acknowledgements in, at an odd place.
        all.extend(run_child(dir.path(), round, 40 + round * 37 % 200));
        runtime.block_on(async {
            let store = RedbStore::open(dir.path(), Options::default()).unwrap();
            let newest = all.iter().map(|(rev, _)| *rev).max().unwrap();
            assert!(store.current().await >= newest);
            for (rev, text) in &all {
                let key = format!("/log/{text}");
                let kv = store.get(key.as_bytes(), At::Latest).await.unwrap();
                let kv = kv.unwrap_or_else(|| panic!("round {round}: lost {text} of {rev}"));
                assert_eq!((&kv.value[..], kv.mod_rev), (text.as_bytes(), *rev));
            }
            // A transaction is there as a whole: each counter names a log entry.
            for writer in 0..8 {
                if let Some(text) = value(&store, &format!("/counter/{writer}"), At::Latest).await {
                    assert!(
                        value(&store, &format!("/log/{text}"), At::Latest)
                            .await
                            .is_some()
                    );
                }
            }
        });
    }
}
