//! Soak: mixed traffic through real packet threads over memory ports, while the configuration changes, links flap, devices go and come, and
//! the threads are restarted.
//!
//! ```text
//! cargo run -p dpservice --example soak -- --seconds 1800
//! ```
//!
//! What must hold: a canary connection gets through again after every disturbance; at the end of each round, once traffic has paused for
//! longer than connections live, nothing is left in any table; what came in has been sent or dropped with a reason; and the memory and
//! descriptors of the process do not grow from round to round.

mod host;
mod traffic;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use host::Host;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use traffic::{Random, Traffic};

/// Between two changes of the configuration.
const CHANGE_INTERVAL: Duration = Duration::from_millis(50);
/// A canary that has not come through by then is stuck.
const CANARY_TIMEOUT: Duration = Duration::from_secs(10);
/// Rounds after which memory has to be flat: by then every table has been touched.
const WARM_ROUNDS: u32 = 5;
/// What resident memory may differ by: pages that the allocator keeps or not.
const GROWTH_MAX_KIB: u64 = 16 << 10;

/// Mixed traffic with disturbances against packet threads.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long it lasts.
    #[arg(long, default_value_t = 1_800)]
    seconds: u64,
    /// Traffic of one round, between two restarts of the packet threads.
    #[arg(long, default_value_t = 30)]
    round_seconds: u64,
    /// Packet threads.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Decides frames and changes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = fix_allocator() {
        say(&format!("soak: {error}"));
        return ExitCode::FAILURE;
    }
    match soak(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("soak: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Begins anew with an allocator that gives large blocks back at once: by default glibc raises that limit with what is freed, and the tables of
/// packet threads that have ended would count as growth.
fn fix_allocator() -> std::io::Result<()> {
    const LIMIT: &str = "MALLOC_MMAP_THRESHOLD_";
    if std::env::var_os(LIMIT).is_some() {
        return Ok(());
    }
    let mut again = std::process::Command::new(std::env::current_exe()?);
    again
        .args(std::env::args_os().skip(1))
        .env(LIMIT, "65536")
        .env("MALLOC_ARENA_MAX", "2");
    Err(again.exec())
}

#[expect(clippy::print_stdout, reason = "the output of the program")]
fn say(line: &str) {
    println!("{line}");
}

async fn soak(arguments: &Arguments) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut random = Random::new(arguments.seed);
    let mut highest = None;
    for round in 1.. {
        let used = one_round(arguments, &mut random, round, end).await?;
        if round <= WARM_ROUNDS {
            let more = |before: Usage| before.resident_kib < used.resident_kib;
            if highest.is_none_or(more) {
                highest = Some(used);
            }
        } else if let Some(before) = highest {
            let limit = before.resident_kib + GROWTH_MAX_KIB;
            ensure!(
                used.resident_kib <= limit,
                "memory grew: {before:?}, now {used:?}"
            );
            let limit = before.descriptors;
            ensure!(
                used.descriptors <= limit,
                "descriptors grew: {before:?}, now {used:?}"
            );
        }
        if Instant::now() >= end {
            break;
        }
    }
    say("soak: passed");
    Ok(())
}

/// What the process holds.
#[derive(Clone, Copy, Debug)]
struct Usage {
    resident_kib: u64,
    descriptors: usize,
}

async fn one_round(
    arguments: &Arguments,
    random: &mut Random,
    round: u32,
    end: Instant,
) -> Result<Usage> {
    let mut host = Host::start(arguments.workers).await?;
    let traffic = Arc::new(Traffic::new(
        arguments.seed ^ u64::from(round),
        host.wires(),
    ));
    let (sender, running) = traffic::spawn(&traffic)?;
    let round_end = end.min(Instant::now() + Duration::from_secs(arguments.round_seconds));
    let (mut changes, mut slowest) = (0_u64, Duration::ZERO);
    while Instant::now() < round_end {
        host.disturb(random, &traffic).await?;
        changes += 1;
        tokio::time::sleep(CHANGE_INTERVAL).await;
        if changes.is_multiple_of(20) {
            slowest = slowest.max(canary(&traffic).await.context("the canary is stuck")?);
        }
    }
    traffic.pause();
    let totals = host.settled().await?;
    drop(running);
    tokio::task::spawn_blocking(move || sender.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the traffic ended abnormally"))?;
    host.stop().await?;
    let used = usage()?;
    say(&format!(
        "round {round:3}: {changes} changes, {} packets, {} dropped, {} connections, canary at most {} ms; {} KiB, {} descriptors",
        totals.packets,
        totals.dropped,
        totals.connections,
        slowest.as_millis(),
        used.resident_kib,
        used.descriptors
    ));
    Ok(used)
}

/// Time until a packet of the machine that nothing is done to comes out at the uplink.
async fn canary(traffic: &Traffic) -> Result<Duration> {
    let start = Instant::now();
    let before = traffic.canaries();
    while traffic.canaries() == before {
        ensure!(start.elapsed() < CANARY_TIMEOUT, "for {CANARY_TIMEOUT:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(start.elapsed())
}

fn usage() -> Result<Usage> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|text| text.split_whitespace().next());
    Ok(Usage {
        resident_kib: number.context("no VmRSS")?.parse()?,
        descriptors: std::fs::read_dir("/proc/self/fd")?.count(),
    })
}
