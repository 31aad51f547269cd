//! The API server under load, as its clients see it: another process, TLS on loopback, the embedded store on disk.
//!
//! `cargo bench -p apiserver --bench server -- [-o json] [--dir DIR] [--only PART,…] [--server PROGRAM] [--quick]`. Clients and server share the machine, so every figure
//! includes the cost of the client. Measured: durable creates per second with 1, 16 and 64 clients; watch fan-out to 10 and 1 000
//! watchers with the lag from request to event; a list of 4 000 objects; memory; restart to ready with 10 000 and 100 000 objects.

#[path = "../tests/it/client.rs"]
mod client;
#[path = "../tests/it/process.rs"]
mod process;

use anyhow::Context as _;
use clap::Parser as _;
use client::Client;
use http::Method;
use process::Process;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Objects that lists and changes meet.
const EXISTING: u64 = 4_000;
/// Longer than filling a store takes.
const LONG: Duration = Duration::from_secs(600);
const COLLECTION: &str =
    "/apis/networking.openkcm.dev/v1alpha1/namespaces/default/networkinterfaces";

#[derive(clap::Parser)]
struct Cli {
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Run the server in this process instead (used by the bench itself).
    #[arg(long, hide = true)]
    serve: Option<PathBuf>,
    /// Folder of the store; its disk is what is measured.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// `json` for machines.
    #[arg(short, default_value = "table")]
    output: String,
    /// Another build of the server to measure: run as `PROGRAM apiserver --state …`.
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
    /// Only these parts: memory, creates, requests, watch, restart.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Shorter runs, for trying out.
    #[arg(long)]
    quick: bool,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match &cli.serve {
        Some(state) => runtime.block_on(process::serve(state)),
        None => runtime.block_on(measure(&cli)),
    }
}

impl Cli {
    async fn start(&self, state: &Path) -> anyhow::Result<(Process, Duration)> {
        let mut command = match &self.server {
            None => Command::new(std::env::current_exe()?),
            Some(program) => Command::new(program),
        };
        match &self.server {
            None => command.arg("--serve").arg(state),
            Some(_) => command.arg("apiserver").arg("--state").arg(state).args([
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                "0",
            ]),
        };
        Process::start(&mut command, state).await
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

/// Processor time that a process has used.
fn cpu(server: &Process) -> anyhow::Result<Duration> {
    /// Ticks per second of `/proc`, the same on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id()))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat line")?;
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS))
}

/// Resident memory in KiB.
fn rss_kib(server: &Process) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or_default();
    Ok(number.parse()?)
}

fn nanos() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}

/// About 1 KiB of what the region really stores.
fn object(name: &str) -> String {
    json!({
        "apiVersion": "networking.openkcm.dev/v1alpha1",
        "kind": "NetworkInterface",
        "metadata": {
            "name": name,
            "labels": { "app.kubernetes.io/name": "bench", "tier": "front" },
            "annotations": { "bench/sent": nanos().to_string(), "bench/padding": "x".repeat(300) },
        },
        "spec": {
            "networkRef": { "name": "shop" },
            "ipFamilies": ["IPv4", "IPv6"],
            "ips": [{ "value": "10.0.0.1" }, { "value": "fd00::1" }],
        },
    })
    .to_string()
}

fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted
        .get(at)
        .map_or(0.0, |latency| latency.as_secs_f64() * 1_000.0)
}

/// What clients ask for, over and over.
#[derive(Debug, Clone, Copy)]
enum Work {
    Create,
    Get,
    /// A merge patch of the status, as controllers send it.
    StatusPatch,
    /// Server-side apply that changes a label.
    Apply,
}

impl Work {
    fn request(self, label: &str, index: u64) -> (Method, String, &'static str, String) {
        let name = match self {
            Work::Create => format!("{label}-{index}"),
            Work::Get | Work::StatusPatch | Work::Apply => format!("{label}-{}", index % EXISTING),
        };
        let one = format!("{COLLECTION}/{name}");
        let json = "application/json";
        match self {
            Work::Create => (Method::POST, COLLECTION.to_owned(), json, object(&name)),
            Work::Get => (Method::GET, one, json, String::new()),
            Work::StatusPatch => {
                let status = json!({ "status": { "state": "Available", "lastStateTransitionTime": "2026-01-01T00:00:00Z", "ips": [format!("10.0.{}.{}", index / 250 % 250, index % 250)] } });
                let path = format!("{one}/status");
                let media_type = "application/merge-patch+json";
                (Method::PATCH, path, media_type, status.to_string())
            }
            Work::Apply => {
                let config = json!({
                    "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "NetworkInterface",
                    "metadata": { "name": name, "labels": { "applied": index.to_string() } },
                });
                let path = format!("{one}?fieldManager=bench&force=true");
                (
                    Method::PATCH,
                    path,
                    "application/apply-patch+yaml",
                    config.to_string(),
                )
            }
        }
    }
}

/// Works from `clients` connections until the time or the number is reached.
async fn load(
    server: &Process,
    work: Work,
    label: &str,
    clients: usize,
    time: Duration,
    count: u64,
) -> anyhow::Result<(f64, Vec<Duration>)> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..clients {
        let (next, credentials, label) = (
            Arc::clone(&next),
            Arc::clone(&server.credentials),
            label.to_owned(),
        );
        tasks.spawn(async move {
            let mut client = Client::connect(&credentials).await?;
            let mut latencies = Vec::new();
            while started.elapsed() < time {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    break;
                }
                let (method, path, media_type, body) = work.request(&label, index);
                let sent = Instant::now();
                let (code, body) = client.call(method, &path, media_type, body).await?;
                anyhow::ensure!(
                    code < 300,
                    "{work:?} answered {code}: {}",
                    String::from_utf8_lossy(&body)
                );
                latencies.push(sent.elapsed());
            }
            Ok::<_, anyhow::Error>(latencies)
        });
    }
    let mut all = Vec::new();
    while let Some(latencies) = tasks.join_next().await {
        all.extend(latencies??);
    }
    let rate = all.len() as f64 / started.elapsed().as_secs_f64();
    all.sort_unstable();
    Ok((rate, all))
}

/// A row of the report about one kind of work.
async fn row(
    server: &Process,
    work: Work,
    clients: usize,
    time: Duration,
) -> anyhow::Result<Value> {
    let before = cpu(server)?;
    let (rate, latencies) = load(server, work, "c", clients, time, u64::MAX).await?;
    let used = cpu(server)?.saturating_sub(before);
    Ok(json!({
        "work": format!("{work:?}"),
        "clients": clients,
        "per_s": rate.round(),
        "p50_ms": percentile(&latencies, 0.5),
        "p99_ms": percentile(&latencies, 0.99),
        "server_cpu_us": used.as_secs_f64() * 1e6 / latencies.len().max(1) as f64,
    }))
}

/// Watchers that look at every event's lag; the others only count.
const SAMPLED: usize = 10;

/// The sending times that events of a chunk carry.
fn sent_times(chunk: &[u8]) -> impl Iterator<Item = u128> {
    const MARK: &[u8] = b"\"bench/sent\":\"";
    chunk
        .windows(MARK.len())
        .enumerate()
        .filter(|(_, window)| *window == MARK)
        .filter_map(|(at, _)| {
            let digits = chunk.get(at + MARK.len()..)?;
            let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
            std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()
        })
}

async fn fan_out(
    server: &Process,
    watchers: usize,
    writers: usize,
    time: Duration,
) -> anyhow::Result<Value> {
    let (_, list) = Client::connect(&server.credentials)
        .await?
        .get(&format!("{COLLECTION}?limit=1"))
        .await?;
    let list: Value = serde_json::from_slice(&list)?;
    let rev = list
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let delivered = Arc::new(AtomicU64::new(0));
    let end = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for index in 0..watchers {
        let mut client = Client::connect(&server.credentials).await?;
        let path = format!("{COLLECTION}?watch=1&resourceVersion={rev}");
        let mut body = client.stream(&path).await?;
        let (delivered, end) = (Arc::clone(&delivered), end.clone());
        tasks.spawn(async move {
            let _open = client;
            let mut lags = Vec::new();
            while let Some(Some(chunk)) = end.run_until_cancelled(body.next()).await {
                delivered.fetch_add(
                    chunk.iter().filter(|byte| **byte == b'\n').count() as u64,
                    Ordering::Relaxed,
                );
                if index < SAMPLED {
                    let now = nanos();
                    lags.extend(
                        sent_times(&chunk)
                            .map(|sent| Duration::from_nanos(now.saturating_sub(sent) as u64)),
                    );
                }
            }
            lags
        });
    }
    let label = format!("w{watchers}");
    let started = Instant::now();
    let (rate, all) = load(server, Work::Create, &label, writers, time, u64::MAX).await?;
    let expected = all.len() as u64 * watchers as u64;
    while delivered.load(Ordering::Relaxed) < expected
        && started.elapsed() < time + Duration::from_secs(30)
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    let count = delivered.load(Ordering::Relaxed);
    end.cancel();
    let mut lags = Vec::new();
    while let Some(more) = tasks.join_next().await {
        lags.extend(more?);
    }
    lags.sort_unstable();
    Ok(json!({
        "watchers": watchers,
        "writers": writers,
        "creates_per_s": rate.round(),
        "events_per_s": (count as f64 / seconds).round(),
        "missing": expected.saturating_sub(count),
        "lag_p50_ms": percentile(&lags, 0.5),
        "lag_p99_ms": percentile(&lags, 0.99),
    }))
}

/// Fills a store, kills the server and starts it again.
async fn restart(cli: &Cli, state: &Path, objects: u64) -> anyhow::Result<Value> {
    let (server, _) = cli.start(state).await?;
    load(&server, Work::Create, "r", 64, LONG, objects).await?;
    let before = rss_kib(&server)?;
    drop(server);
    let (server, ready) = cli.start(state).await?;
    Ok(json!({
        "objects": objects,
        "ready_ms": ready.as_secs_f64() * 1_000.0,
        "rss_before_mib": before as f64 / 1024.0,
        "rss_after_mib": rss_kib(&server)? as f64 / 1024.0,
    }))
}

/// Start of an empty server, its memory, and a list of all objects.
async fn memory(cli: &Cli, state: &Path) -> anyhow::Result<Value> {
    let (server, ready) = cli.start(state).await?;
    let idle = rss_kib(&server)?;
    load(&server, Work::Create, "l", 16, LONG, EXISTING).await?;
    let full = rss_kib(&server)?;
    let mut client = Client::connect(&server.credentials).await?;
    let mut lists = Vec::new();
    let mut bytes = 0;
    for _ in 0..20 {
        let sent = Instant::now();
        let (code, body) = client.get(COLLECTION).await?;
        anyhow::ensure!(code == 200, "list answered {code}");
        lists.push(sent.elapsed());
        bytes = body.len();
    }
    lists.sort_unstable();
    Ok(json!({
        "ready_empty_ms": ready.as_secs_f64() * 1_000.0,
        "rss_idle_mib": idle as f64 / 1024.0,
        "rss_4000_mib": full as f64 / 1024.0,
        "rss_per_object_kib": full.saturating_sub(idle) as f64 / EXISTING as f64,
        "list_4000_p50_ms": percentile(&lists, 0.5),
        "list_4000_mib": bytes as f64 / 1_048_576.0,
        "rss_after_lists_mib": rss_kib(&server)? as f64 / 1024.0,
    }))
}

async fn measure(cli: &Cli) -> anyhow::Result<()> {
    let time = Duration::from_secs(if cli.quick { 2 } else { 5 });
    let base = match &cli.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            tempfile::tempdir_in(dir)?
        }
        None => tempfile::tempdir_in(".")?,
    };
    let mut report = serde_json::Map::new();
    if cli.wants("memory") {
        let row = memory(cli, &base.path().join("memory")).await?;
        report.insert("memory".into(), json!([row]));
    }
    if cli.wants("creates") {
        let mut rows = Vec::new();
        for clients in [1, 16, 64] {
            let (server, _) = cli.start(&base.path().join(format!("c{clients}"))).await?;
            rows.push(row(&server, Work::Create, clients, time).await?);
        }
        report.insert("creates".into(), Value::Array(rows));
    }
    if cli.wants("requests") {
        let (server, _) = cli.start(&base.path().join("requests")).await?;
        load(&server, Work::Create, "c", 16, LONG, EXISTING).await?;
        let mut rows = Vec::new();
        for work in [Work::Get, Work::StatusPatch, Work::Apply] {
            rows.push(row(&server, work, 16, time).await?);
        }
        report.insert("requests".into(), Value::Array(rows));
    }
    if cli.wants("watch") {
        let mut rows = Vec::new();
        for (watchers, writers) in [(10, 1), (10, 16), (1_000, 1)] {
            let state = base.path().join(format!("w{watchers}-{writers}"));
            let (server, _) = cli.start(&state).await?;
            rows.push(fan_out(&server, watchers, writers, time).await?);
        }
        report.insert("watch".into(), Value::Array(rows));
    }
    if cli.wants("restart") {
        let mut rows = Vec::new();
        let sizes: &[u64] = if cli.quick {
            &[10_000]
        } else {
            &[10_000, 100_000]
        };
        for objects in sizes {
            let state = base.path().join(format!("r{objects}"));
            rows.push(restart(cli, &state, *objects).await?);
        }
        report.insert("restart".into(), Value::Array(rows));
    }
    print(&Value::Object(report), &cli.output)
}

fn print(report: &Value, output: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if output == "json" {
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    for (key, value) in report.as_object().into_iter().flatten() {
        match value {
            Value::Array(rows) => {
                for row in rows {
                    let cells: Vec<String> = row
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(key, value)| format!("{key} {}", number(value)))
                        .collect();
                    writeln!(out, "{key:24} {}", cells.join("  "))?;
                }
            }
            value => writeln!(out, "{key:24} {}", number(value))?,
        }
    }
    Ok(())
}

fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if value.is_f64() => format!("{number:.2}"),
        _ => value.to_string(),
    }
}
