//! Measures the embedded store on a real disk: durable transactions, load, restart, list, watch fan-out.
//!
//! Run with `cargo bench --profile release -p apiserver --bench store`; the state goes under the target directory, or where
//! `OPENKCM_BENCH_DIR` says.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark, run by hand"
)]

use apiserver::store::redb::{Options, RedbStore};
use apiserver::store::{At, Expect, Rev, Store, Txn, TxnOutcome, WatchMessage};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const VALUE_BYTES: usize = 1024;
const LOAD_OBJECTS: usize = 100_000;
const RUN: Duration = Duration::from_secs(4);

fn value(seed: usize) -> Vec<u8> {
    // Half compressible, as JSON is.
    (0..VALUE_BYTES)
        .map(|i| {
            if i % 2 == 0 {
                b'a'
            } else {
                (i * 31 + seed * 17) as u8
            }
        })
        .collect()
}

fn open(dir: &Path) -> Arc<RedbStore> {
    Arc::new(RedbStore::open(dir, Options::default()).unwrap())
}

async fn create(store: &RedbStore, key: String, value: Vec<u8>) -> Rev {
    let txn = Txn::new()
        .expect(key.clone(), Expect::Absent)
        .put(key, value);
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Committed(rev) => rev,
        TxnOutcome::Failed { .. } => panic!("the key was taken"),
    }
}

fn percentile(sorted: &[Duration], p: usize) -> Duration {
    sorted[(sorted.len() * p / 100).min(sorted.len() - 1)]
}

/// Creates by `clients` in parallel for a fixed time.
async fn creates(dir: &Path, clients: usize) {
    let store = open(dir);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < RUN {
                let key = format!("/bench/{clients}/{client}/{:08}", times.len());
                let begin = Instant::now();
                create(&store, key, value(times.len())).await;
                times.push(begin.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    let elapsed = start.elapsed();
    times.sort();
    let commits = store
        .counters()
        .commits
        .load(std::sync::atomic::Ordering::Relaxed);
    println!(
        "creates, {clients:>2} clients: {:>6.0}/s  p50 {:>7.3?}  p99 {:>7.3?}  ({:.1} per commit)",
        times.len() as f64 / elapsed.as_secs_f64(),
        percentile(&times, 50),
        percentile(&times, 99),
        times.len() as f64 / commits as f64,
    );
}

async fn load(dir: &Path) {
    let store = open(dir);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..64 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for i in (client..LOAD_OBJECTS).step_by(64) {
                create(&store, format!("/load/{i:08}"), value(i)).await;
            }
        });
    }
    tasks.join_all().await;
    println!("load of {LOAD_OBJECTS}: {:.2?}", start.elapsed());
    let start = Instant::now();
    let page = store.range(b"/load/", None, 0, At::Latest).await.unwrap();
    println!("list of {}: {:.2?}", page.kvs.len(), start.elapsed());
    let start = Instant::now();
    let mut after = None;
    let mut pages = 0;
    loop {
        let page = store
            .range(b"/load/", after.as_deref(), 500, At::Latest)
            .await
            .unwrap();
        pages += 1;
        if !page.more {
            break;
        }
        after = page.kvs.last().map(|kv| kv.key.clone());
    }
    println!("list in {pages} pages of 500: {:.2?}", start.elapsed());
}

async fn restart(dir: &Path) {
    let size = std::fs::metadata(dir.join("store.redb")).unwrap().len();
    let start = Instant::now();
    let store = open(dir);
    println!(
        "restart with {LOAD_OBJECTS} objects, {} MiB: {:.2?}, revision {}, RSS {} MiB",
        size >> 20,
        start.elapsed(),
        store.current().await,
        resident_mib()
    );
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        >> 10
}

/// Writes at a fixed rate while `watchers` follow; lag is from acknowledgement to delivery.
async fn fan_out(dir: &Path, watchers: usize) {
    const EVENTS: usize = 1000;
    let store = open(dir);
    let from = store.current().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let mut watch = store.watch(b"/fan/", from).await.unwrap();
        tasks.spawn(async move {
            let mut seen = Vec::with_capacity(EVENTS);
            while seen.len() < EVENTS {
                if let WatchMessage::Batch(batch) = watch.next().await.unwrap() {
                    seen.push((batch.rev, Instant::now()));
                }
            }
            seen
        });
    }
    let start = Instant::now();
    let mut acknowledged = std::collections::HashMap::new();
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    for i in 0..EVENTS {
        tick.tick().await;
        let rev = create(&store, format!("/fan/{watchers}/{i}"), value(i)).await;
        acknowledged.insert(rev, Instant::now());
    }
    let all = tasks.join_all().await;
    let elapsed = start.elapsed();
    let mut lags: Vec<Duration> = all
        .iter()
        .flatten()
        .map(|(rev, at)| at.saturating_duration_since(acknowledged[rev]))
        .collect();
    lags.sort();
    println!(
        "watch, {watchers:>4} watchers, {:>3.0} writes/s: {:>7.0} deliveries/s, lag p50 {:.3?} p99 {:.3?}",
        EVENTS as f64 / elapsed.as_secs_f64(),
        lags.len() as f64 / elapsed.as_secs_f64(),
        percentile(&lags, 50),
        percentile(&lags, 99)
    );
}

fn main() {
    let base = std::env::var_os("OPENKCM_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(base).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for clients in [1, 16, 64] {
            creates(&dir.path().join(clients.to_string()), clients).await;
        }
        let loaded = dir.path().join("load");
        load(&loaded).await;
        restart(&loaded).await;
        for watchers in [10, 1000] {
            fan_out(&loaded, watchers).await;
        }
    });
}
