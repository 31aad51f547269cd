//! Measuring what a machine sees: pings with every reply's time, throughput, one captured packet.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};

use crate::network;

/// What a running ping lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PingReport {
    pub sent: u32,
    pub received: u32,
    /// Longest time between two replies that followed each other, less the interval.
    pub gap: Duration,
    /// Mean round trip.
    pub rtt: Duration,
}

impl PingReport {
    pub fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.received)
    }
}

/// A ping that runs in the background.
#[derive(Debug)]
pub struct Ping {
    child: Child,
    count: u32,
    interval: Duration,
}

fn command(netns: &str, program: &str) -> Command {
    let mut command = Command::from(network::inside(netns, program));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Starts `count` pings every `interval` towards `to`.
///
/// # Errors
/// ping is missing (package iputils-ping).
pub fn start_ping(netns: &str, to: &str, count: u32, interval: Duration) -> Result<Ping> {
    let child = command(netns, "ping")
        .args([
            "-n",
            "-D",
            "-W",
            "1",
            "-c",
            &count.to_string(),
            "-i",
            &format!("{:.3}", interval.as_secs_f64()),
            to,
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run ping (package iputils-ping)")?;
    Ok(Ping {
        child,
        count,
        interval,
    })
}

impl Ping {
    /// # Errors
    /// The process could not be waited for.
    pub async fn report(self) -> Result<PingReport> {
        let out = self.child.wait_with_output().await?;
        Ok(parse_ping(
            &String::from_utf8_lossy(&out.stdout),
            self.count,
            self.interval,
        ))
    }
}

/// One line per reply: `[1700000000.123456] 64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.061 ms`. Counted by sequence number
/// and not by ping's own summary, which leaves out packets that could not be sent.
fn parse_ping(text: &str, count: u32, interval: Duration) -> PingReport {
    let mut times = Vec::new();
    let mut sequences = Vec::new();
    let mut round_trips = Vec::new();
    for line in text
        .lines()
        .filter(|l| l.contains("bytes from") && !l.contains("DUP!"))
    {
        let field = |key: &str| {
            line.split(key)
                .nth(1)
                .and_then(|rest| rest.split_whitespace().next())
        };
        let stamp = line
            .strip_prefix('[')
            .and_then(|l| l.split(']').next())
            .and_then(|t| t.parse::<f64>().ok());
        if let (Some(stamp), Some(sequence)) = (
            stamp,
            field("icmp_seq=").and_then(|s| s.parse::<u32>().ok()),
        ) {
            times.push(stamp);
            sequences.push(sequence);
            round_trips.extend(field("time=").and_then(|t| t.parse::<f64>().ok()));
        }
    }
    sequences.sort_unstable();
    sequences.dedup();
    let widest = times
        .windows(2)
        .map(|w| w.last().copied().unwrap_or_default() - w.first().copied().unwrap_or_default())
        .fold(0.0, f64::max);
    let mean = if round_trips.is_empty() {
        0.0
    } else {
        round_trips.iter().sum::<f64>() / round_trips.len() as f64
    };
    PingReport {
        sent: count,
        received: u32::try_from(sequences.len()).unwrap_or(u32::MAX),
        gap: Duration::from_secs_f64(widest).saturating_sub(interval),
        rtt: Duration::from_secs_f64(mean / 1000.0),
    }
}

/// Pings until the first reply, at most `limit`.
///
/// # Errors
/// No reply within `limit`.
pub async fn first_reply(netns: &str, to: &str, limit: Duration) -> Result<Duration> {
    let begun = std::time::Instant::now();
    while begun.elapsed() < limit {
        let status = command(netns, "ping")
            .args(["-n", "-q", "-c", "1", "-W", "0.1", to])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await?;
        if status.success() {
            return Ok(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bail!("no reply from {to} within {limit:?}")
}

/// # Errors
/// iperf3 is missing or got no connection.
pub async fn throughput(server: &str, client: &str, address: &str, seconds: u32) -> Result<f64> {
    let mut listening = command(server, "iperf3")
        .args(["-s", "-1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run iperf3")?;
    let mut last = String::new();
    for _ in 0..50 {
        let out = command(client, "iperf3")
            .args(["-c", address, "-t", &seconds.to_string(), "-J"])
            .output()
            .await?;
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        if let Some(bits) = report["end"]["sum_received"]["bits_per_second"].as_f64() {
            listening.wait().await?;
            return Ok(bits / 1e9);
        }
        last = report["error"].to_string();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("iperf3 got no result: {last}")
}

/// Waits for one packet that `filter` matches and returns tcpdump's description of it.
///
/// # Errors
/// tcpdump is missing or saw no such packet within `limit`.
pub async fn capture_one(netns: &str, filter: &str, limit: Duration) -> Result<String> {
    let running = command(netns, "tcpdump")
        .args(["-n", "-v", "-i", "any", "-c", "1", filter])
        .stderr(Stdio::null())
        .output();
    let out = tokio::time::timeout(limit, running)
        .await
        .context("no such packet seen")?
        .context("cannot run tcpdump")?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Gives a machine a further address of its own, without a network.
///
/// # Errors
/// The machine is gone.
pub fn own_address(netns: &str, address: &str) -> Result<()> {
    let done = network::inside(netns, "ip")
        .args(["address", "add", address, "dev", "lo"])
        .output()?;
    if !done.status.success() {
        bail!(
            "cannot give {netns} the address {address}: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(())
}

/// Starts an HTTP server whose page says who asked, and `name`. It ends when the handle is dropped.
///
/// # Errors
/// The program cannot be run.
pub fn serve(netns: &str, openkcm: &std::path::Path, name: &str, port: u16) -> Result<Child> {
    command(netns, &openkcm.display().to_string())
        .args(["lab", "internet", "--http-only", "--address", "0.0.0.0"])
        .args(["--name", name, "--http-port", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run a server")
}

/// One HTTP page.
///
/// # Errors
/// curl is missing, or there was no answer within two seconds.
pub async fn fetch(netns: &str, url: &str) -> Result<String> {
    let out = command(netns, "curl")
        .args(["--silent", "--show-error", "--fail", "--max-time", "2", url])
        .output()
        .await
        .context("cannot run curl")?;
    if !out.status.success() {
        bail!(
            "no page from {url}: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// The same, trying again until `limit`.
///
/// # Errors
/// The last failure.
pub async fn fetch_until(netns: &str, url: &str, limit: Duration) -> Result<String> {
    let begun = std::time::Instant::now();
    loop {
        match fetch(netns, url).await {
            Err(_) if begun.elapsed() < limit => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_counted_by_sequence_number_and_the_longest_silence_is_found() {
        let text = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.\n\
                    [100.000000] 64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.10 ms\n\
                    [100.100000] 64 bytes from 10.0.0.2: icmp_seq=2 ttl=64 time=0.30 ms\n\
                    [100.100500] 64 bytes from 10.0.0.2: icmp_seq=2 ttl=64 time=0.40 ms (DUP!)\n\
                    ping: sendmsg: Network is unreachable\n\
                    [100.600000] 64 bytes from 10.0.0.2: icmp_seq=7 ttl=64 time=0.20 ms\n";
        let report = parse_ping(text, 7, Duration::from_millis(100));
        assert_eq!((report.sent, report.received, report.lost()), (7, 3, 4));
        assert!((report.gap.as_secs_f64() - 0.4).abs() < 1e-6);
        assert!((report.rtt.as_secs_f64() - 0.0002).abs() < 1e-9);
    }
}
