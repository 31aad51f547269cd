//! `lab bench`: what a region takes for one more machine and for many interfaces at once, and what its processes weigh.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::client::{self, MACHINE, NETWORK, NETWORK_INTERFACE, has_state};
use crate::demo::{self, Region};
use crate::{commands, machines, probe, say, state};

const LIMIT: Duration = Duration::from_secs(120);

/// Apply-to-first-ping of single machines, then many machines at once; memory per process.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Name of the lab.
    #[arg(long, default_value = "bench")]
    name: String,
    /// How many single machines to time.
    #[arg(long, default_value_t = 20)]
    singles: u32,
    /// How many machines with one interface each to create at once.
    #[arg(long, default_value_t = 200)]
    many: u32,
    /// Leave the region running at the end.
    #[arg(long)]
    keep: bool,
}

/// # Errors
/// The region did not come up or an object did not become ready.
pub async fn bench(args: &BenchArgs) -> Result<()> {
    let region = demo::start(&args.name, 2).await?;
    let result = measure(&region, args).await;
    if !args.keep {
        commands::down(&args.name, false)?;
    }
    result
}

async fn measure(region: &Region, args: &BenchArgs) -> Result<()> {
    let network = json!({"apiVersion": NETWORK.api_version, "kind": "Network", "metadata": {"name": "bench"}});
    client::apply(&region.client, &network.to_string()).await?;
    client::wait(&region.client, NETWORK, "default", 1, LIMIT, |o| {
        has_state(o, "Available")
    })
    .await?;
    client::apply(&region.client, &machine(0, Some("hv1")).to_string()).await?;
    client::wait(&region.client, MACHINE, "default", 1, LIMIT, |o| {
        has_state(o, "Running")
    })
    .await?;
    singles(region, args.singles).await?;
    many(region, 1 + args.singles, args.many).await?;
    memory(region)
}

/// Machine `n`; its addresses derive from its number.
fn machine(n: u32, pool: Option<&str>) -> Value {
    let mut spec = json!({
        "machineClassRef": {"name": "small"},
        "networkInterfaces": [{"name": "primary", "ephemeral": {"networkInterfaceTemplate": {"spec": {
            "networkRef": {"name": "bench"},
            "ipFamilies": ["IPv4", "IPv6"],
            "ips": [{"value": ipv4(n)}, {"value": format!("fd00:20::{:x}", n + 1)}],
        }}}}],
    });
    if let Some(pool) = pool {
        spec["machinePoolRef"] = json!({"name": pool});
    }
    json!({"apiVersion": MACHINE.api_version, "kind": "Machine", "metadata": {"name": format!("m{n}")}, "spec": spec})
}

fn ipv4(n: u32) -> String {
    let host = n + 1;
    format!("10.20.{}.{}", host / 256, host % 256)
}

/// From the apply request to the first reply that machine `m0` gets from the new one.
async fn singles(region: &Region, count: u32) -> Result<()> {
    let observer = machines::netns(&region.record, "m0")?;
    let mut times = Vec::new();
    for n in 1..=count {
        let begun = Instant::now();
        let pool = if n % 2 == 0 { "hv1" } else { "hv2" };
        client::apply(&region.client, &machine(n, Some(pool)).to_string()).await?;
        probe::first_reply(&observer, &ipv4(n), LIMIT)
            .await
            .with_context(|| format!("machine m{n}"))?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let at = |percent: usize| {
        times
            .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
            .map_or(0, Duration::as_millis)
    };
    say(&format!(
        "apply to first ping, one more machine, {count} times: median {} ms, p90 {} ms, worst {} ms",
        at(50),
        at(90),
        at(100)
    ));
    Ok(())
}

async fn many(region: &Region, first: u32, count: u32) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let begun = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for n in first..first + count {
        let client = region.client.clone();
        let pool = if n % 2 == 0 { "hv1" } else { "hv2" };
        requests.spawn(
            async move { client::apply(&client, &machine(n, Some(pool)).to_string()).await },
        );
    }
    while let Some(done) = requests.join_next().await {
        done??;
    }
    let accepted = begun.elapsed();
    let all = usize::try_from(first + count)?;
    client::wait(
        &region.client,
        NETWORK_INTERFACE,
        "default",
        all,
        LIMIT,
        |o| has_state(o, "Available"),
    )
    .await?;
    let ready = begun.elapsed();
    client::wait(&region.client, MACHINE, "default", all, LIMIT, |o| {
        has_state(o, "Running")
    })
    .await?;
    say(&format!(
        "{count} machines at once: accepted after {} ms, all NetworkInterfaces Available after {} ms ({:.0}/s), all Machines Running after {} ms",
        accepted.as_millis(),
        ready.as_millis(),
        f64::from(count) / ready.as_secs_f64(),
        begun.elapsed().as_millis()
    ));
    sample(region, first, count).await
}

/// All pairs of every tenth machine.
async fn sample(region: &Region, first: u32, count: u32) -> Result<()> {
    let chosen: Vec<u32> = (first..first + count)
        .step_by(usize::try_from((count / 10).max(1))?)
        .collect();
    let mut pairs = 0;
    for from in &chosen {
        let netns = machines::netns(&region.record, &format!("m{from}"))?;
        for to in chosen.iter().filter(|to| *to != from) {
            probe::first_reply(&netns, &ipv4(*to), Duration::from_secs(5))
                .await
                .with_context(|| format!("m{from} -> m{to}"))?;
            pairs += 1;
        }
    }
    say(&format!(
        "all {pairs} ordered pairs of {} sampled machines reach each other",
        chosen.len()
    ));
    Ok(())
}

/// Resident memory of every part, in bytes.
pub(crate) fn resident(region: &Region) -> Result<BTreeMap<String, u64>> {
    let status = state::read_status(&region.record.state)?;
    let running = status.parts.values();
    running
        .map(|part| {
            let Some(pid) = part.pid else {
                bail!("{} is not running", part.name)
            };
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let kib = status
                .lines()
                .find_map(|l| l.strip_prefix("VmRSS:"))
                .and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or(0);
            Ok((part.name.clone(), kib << 10))
        })
        .collect()
}

/// Processor time of a process, in seconds.
fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15 (user and system ticks of 10 ms), counted after the command name in parentheses.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: f64 = [11, 12]
        .iter()
        .filter_map(|i| fields.get(*i)?.parse::<f64>().ok())
        .sum();
    Ok(ticks / 100.0)
}

pub(crate) fn memory(region: &Region) -> Result<()> {
    let resident = resident(region)?;
    say(&format!("{:<22} {:>10} {:>12}", "PART", "RSS MiB", "CPU s"));
    for part in state::read_status(&region.record.state)?.parts.values() {
        let Some(pid) = part.pid else {
            bail!("{} is not running", part.name)
        };
        let bytes = resident.get(&part.name).copied().unwrap_or(0);
        say(&format!(
            "{:<22} {:>10.1} {:>12.2}",
            part.name,
            bytes as f64 / f64::from(1 << 20),
            cpu_seconds(pid)?
        ));
    }
    Ok(())
}
