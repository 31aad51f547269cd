//! Kills one part after the other under a running ping and measures what the ping lost and when the part was back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

use crate::demo::report::Report;
use crate::demo::{Region, pid};
use crate::{machines, probe};

/// Between two pings: fine enough to see a loss of a few milliseconds.
const INTERVAL: Duration = Duration::from_millis(10);
/// Pings before the kill.
const BEFORE: Duration = Duration::from_millis(300);
/// How long the ping goes on in all; a lost route shows within the hold time of a session.
const WATCHED: Duration = Duration::from_secs(5);
/// What a machine may miss when its data plane dies and comes back.
const DATAPLANE_GAP_MAX: Duration = Duration::from_secs(3);

/// The parts to kill, and whether the data plane itself is hit.
const VICTIMS: &[(&str, bool)] = &[
    ("apiserver", false),
    ("controller-manager", false),
    ("apinetlet", false),
    ("metalnetlet", false),
    ("metalnet-hv1", false),
    ("machinepoollet-hv1", false),
    ("provider-hv1", false),
    ("metalbond-r1", false),
    ("dpservice-hv1", true),
];

pub(super) async fn faults(region: &Region, report: &mut Report) -> Result<()> {
    for (victim, dataplane) in VICTIMS {
        report.check(
            &format!("kill {victim}"),
            fault(region, victim, *dataplane).await,
        );
    }
    Ok(())
}

/// Kills `victim` once while red-1 pings red-2.
async fn fault(region: &Region, victim: &str, dataplane: bool) -> Result<String> {
    let red = machines::netns(&region.record, "red-1")?;
    let gap_max = if dataplane {
        DATAPLANE_GAP_MAX
    } else {
        Duration::ZERO
    };
    let summary = fault_under(region, victim, &[(red.clone(), "10.0.0.2")], gap_max).await?;
    if dataplane {
        probe::first_reply(&red, "fd00:10::2", DATAPLANE_GAP_MAX)
            .await
            .context("IPv6 did not come back")?;
    }
    Ok(summary)
}

/// Kills `victim` once while every given namespace pings its address. Nothing may be lost, or what is lost may take less than `gap_max`.
pub(crate) async fn fault_under(
    region: &Region,
    victim: &str,
    watched: &[(String, &str)],
    gap_max: Duration,
) -> Result<String> {
    let count = u32::try_from(WATCHED.as_millis() / INTERVAL.as_millis()).unwrap_or(u32::MAX);
    let old = pid(region, victim).with_context(|| format!("{victim} is not running"))?;
    let mut pings = Vec::new();
    for (netns, to) in watched {
        pings.push(probe::start_ping(netns, to, count, INTERVAL)?);
    }
    sleep(BEFORE).await;
    kill(Pid::from_raw(old), Signal::SIGKILL).with_context(|| format!("cannot kill {victim}"))?;
    let back = restarted(region, victim, old).await?;
    let mut summary = format!("restarted after {} ms", back.as_millis());
    let mut tolerated = true;
    for ping in pings {
        let seen = ping.report().await?;
        summary.push_str(&format!(
            "; ping lost {} of {}, longest silence {} ms",
            seen.lost(),
            seen.sent,
            seen.gap.as_millis()
        ));
        tolerated &= seen.lost() == 0 || (seen.received > 0 && seen.gap < gap_max);
    }
    if !tolerated {
        bail!("{summary}");
    }
    Ok(summary)
}

/// Waits until the supervisor runs a new process of the part.
async fn restarted(region: &Region, victim: &str, old: i32) -> Result<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        if pid(region, victim).is_some_and(|now| now != old) {
            return Ok(begun.elapsed());
        }
        sleep(Duration::from_millis(5)).await;
    }
    bail!("{victim} was not started again within {WATCHED:?}")
}
