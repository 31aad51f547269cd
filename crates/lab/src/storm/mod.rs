//! `lab storm`: hostile frames into machine ports and uplinks, hostile bytes into every listening port, and a ping beside them.
//!
//! The region must not notice: no part dies, the ping of uninvolved machines goes on, and afterwards everything works.

mod frames;
pub mod inject;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::client::{self, MACHINE, has_state};
use crate::demo::report::Report;
use crate::demo::{self, EXAMPLE, Region};
use crate::outside::EDGE_HTTP_PORT;
use crate::storm::frames::Target;
use crate::topology::{API_PORT, METALBOND_HTTP_PORT, METALBOND_PORT};
use crate::{bench, machines, network, probe, state};

const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// A machine that forged its own hardware address is asked for the true one by dpservice's next periodic announcement, at most 30 s
/// later; until then it is its own victim.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(45);
/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// Longest silence that the ping may see: longer than any pause of a busy machine, as the storm shares its cores with everything else.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Share of pings that may be lost, in percent.
const LOST_PERCENT_MAX: u32 = 1;

/// Memory by which a part may grow during the storm.
const GROWTH_MAX_BYTES: u64 = 128 << 20;

/// Ten minutes of hostile frames and bytes against a region, with a ping beside them.
#[derive(Debug, Clone, Args)]
pub struct StormArgs {
    /// Name of the lab.
    #[arg(long, default_value = "storm")]
    name: String,
    /// How long the storm lasts.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Frames per second from each of the four senders (two machines, two uplinks).
    #[arg(long, default_value_t = 3_000)]
    rate: u32,
    /// Decides every frame and byte; printed, so that a run can be repeated.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the region running at the end.
    #[arg(long)]
    keep: bool,
}

/// # Errors
/// The region could not be brought up or taken down.
pub async fn storm(args: &StormArgs) -> Result<ExitCode> {
    demo::in_a_region(&args.name, args.keep, async |region, report| {
        rage(region, args, report).await
    })
    .await
}

async fn rage(region: &Region, args: &StormArgs, report: &mut Report) -> Result<()> {
    client::apply(&region.client, EXAMPLE).await?;
    client::wait(&region.client, MACHINE, "default", 4, READY_TIMEOUT, |o| {
        has_state(o, "Running")
    })
    .await?;
    let netns = machines::netns(&region.record, "red-1")?;
    probe::first_reply(&netns, "10.0.0.2", READY_TIMEOUT).await?;
    report.chapter(&format!(
        "{} s of storm, seed {}: blue-1 and blue-2 send hostile frames, both routers send them to the hypervisors, hostile bytes go to every listening port; red-1 pings red-2",
        args.seconds, args.seed
    ));
    let before = state::read_status(&region.record.state)?;
    let weights = bench::resident(region)?;
    let mut senders = Vec::new();
    for (number, sender) in senders_of(region).await?.into_iter().enumerate() {
        senders.push((
            sender.name.clone(),
            sender.start(region, args, number as u64)?,
        ));
    }
    let pings = u32::try_from(args.seconds * 1_000 / PING_INTERVAL.as_millis() as u64)?;
    let seen = probe::start_ping(&netns, "10.0.0.2", pings, PING_INTERVAL)?
        .report()
        .await?;
    for (name, child) in senders {
        report.check(&name, sent(child).await);
    }
    report.check("a ping beside it", judge(seen));
    report.chapter("Afterwards");
    report.check("no part died", alive(region, &before));
    report.check("memory", grown(&weights, &bench::resident(region)?));
    for (from, to) in [
        ("red-1", "10.0.0.2"),
        ("red-2", "fd00:10::1"),
        ("blue-1", "10.0.0.3"),
    ] {
        let netns = machines::netns(&region.record, from)?;
        let reply = probe::first_reply(&netns, to, RECOVERY_TIMEOUT).await;
        report.check(
            &format!("ping {from} -> {to}"),
            reply.map(|took| format!("reply after {} ms", took.as_millis())),
        );
    }
    let deleted = client::delete(&region.client, EXAMPLE, READY_TIMEOUT).await;
    report.check(
        "delete everything",
        deleted.map(|()| "nothing left".to_owned()),
    );
    Ok(())
}

fn judge(seen: probe::PingReport) -> Result<String> {
    let summary = format!(
        "lost {} of {}, longest silence {} ms, mean round trip {} µs",
        seen.lost(),
        seen.sent,
        seen.gap.as_millis(),
        seen.rtt.as_micros()
    );
    if seen.lost() * 100 > seen.sent * LOST_PERCENT_MAX || seen.gap > SILENCE_MAX {
        bail!("{summary}");
    }
    Ok(summary)
}

/// Every part is the same process as before.
fn alive(region: &Region, before: &state::LabStatus) -> Result<String> {
    let after = state::read_status(&region.record.state)?;
    let changed: Vec<&str> = before
        .parts
        .values()
        .filter(|old| after.parts.get(&old.name).map(|new| new.pid) != Some(old.pid))
        .map(|old| old.name.as_str())
        .collect();
    if !changed.is_empty() {
        bail!("these are new processes: {}", changed.join(", "));
    }
    Ok(format!(
        "{} processes are those from before",
        before.parts.len()
    ))
}

/// What hostile input may make a part keep: caches and allocator slack, but not more than this.
fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Result<String> {
    let growth = after.iter().map(|(part, now)| {
        let then = before.get(part).copied().unwrap_or(0);
        (now.saturating_sub(then), part)
    });
    let Some((most, part)) = growth.max() else {
        bail!("no part runs");
    };
    let summary = format!("{part} grew most, by {} MiB", most >> 20);
    if most > GROWTH_MAX_BYTES {
        bail!("{summary}");
    }
    Ok(summary)
}

/// A process that sends from inside a namespace.
struct Sender {
    name: String,
    netns: String,
    args: Vec<String>,
}

impl Sender {
    fn start(&self, region: &Region, args: &StormArgs, number: u64) -> Result<Child> {
        let openkcm = region.layout.openkcm.display().to_string();
        let mut command = Command::from(network::inside(&self.netns, &openkcm));
        command.arg("lab").args(&self.args).args([
            "--seed",
            &args
                .seed
                .wrapping_mul(1_000)
                .wrapping_add(number)
                .to_string(),
            "--seconds",
            &args.seconds.to_string(),
        ]);
        if self.args.iter().any(|arg| arg == "inject-frames") {
            command.args(["--rate", &args.rate.to_string()]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))
    }
}

async fn sent(child: Child) -> Result<String> {
    let out = child.wait_with_output().await?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let counted: Value = serde_json::from_slice(&out.stdout).context("the sender told nothing")?;
    let number = |key: &str| counted[key].as_u64().unwrap_or(0);
    let bytes = number("bytes");
    if number("sent") + number("connections") == 0 {
        bail!("nothing was sent: {counted}");
    }
    Ok(match counted.get("frames") {
        Some(_) => format!("{} frames sent, {bytes} bytes", number("sent")),
        None => format!(
            "{} connections, {} refused, {bytes} bytes",
            number("connections"),
            number("refused")
        ),
    })
}

/// An interface as dpservice lists it.
struct Interface {
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    underlay: Ipv6Addr,
}

async fn interfaces(region: &Region, hypervisor: &str) -> Result<Vec<Interface>> {
    let listed = demo::dpservice_interfaces(region, hypervisor).await?;
    listed
        .iter()
        .map(|item| {
            let field = |key: &str| item["spec"][key].as_str().unwrap_or_default().to_owned();
            Ok(Interface {
                ipv4: field("primary_ipv4").parse()?,
                ipv6: field("primary_ipv6").parse()?,
                underlay: field("underlay_route").parse()?,
            })
        })
        .collect()
}

async fn senders_of(region: &Region) -> Result<Vec<Sender>> {
    let mut senders = Vec::new();
    let mut all = Vec::new();
    for hypervisor in region.topology.hypervisor_names() {
        all.extend(interfaces(region, &hypervisor).await?);
    }
    for machine in ["blue-1", "blue-2"] {
        let netns = machines::netns(&region.record, machine)?;
        let target = Target {
            source: mac(&netns, "eth0").await?,
            destination: [0xff; 6],
            ipv4: all.iter().map(|i| i.ipv4).collect(),
            ipv6: all.iter().map(|i| i.ipv6).collect(),
            underlay: Vec::new(),
        };
        senders.push(frames_from(machine, &netns, "eth0", &target)?);
    }
    for (hypervisor, router) in [("hv1", "r1"), ("hv2", "r2")] {
        let netns = region.topology.netns(router);
        let uplink = if router == "r1" { "pf0" } else { "pf1" };
        let own = interfaces(region, hypervisor).await?;
        let target = Target {
            source: mac(&netns, hypervisor).await?,
            destination: mac(&region.topology.netns(hypervisor), uplink).await?,
            ipv4: all.iter().map(|i| i.ipv4).collect(),
            ipv6: all.iter().map(|i| i.ipv6).collect(),
            underlay: own.iter().map(|i| i.underlay).collect(),
        };
        senders.push(frames_from(
            &format!("{router} to {hypervisor}"),
            &netns,
            hypervisor,
            &target,
        )?);
    }
    for hypervisor in ["hv1", "hv2"] {
        senders.push(bytes_from(region, hypervisor, vec!["[::1]:1337".into()]));
    }
    for j in 1..=region.topology.routers {
        let addresses = vec![
            format!("[{}]:{METALBOND_PORT}", region.topology.router_address(j)),
            format!("[::1]:{METALBOND_HTTP_PORT}"),
            format!("[::1]:{EDGE_HTTP_PORT}"),
        ];
        senders.push(bytes_from(region, &format!("r{j}"), addresses));
    }
    let api = format!("[{}]:{API_PORT}", region.topology.api_address());
    senders.push(bytes_from(region, "mgmt", vec![api]));
    Ok(senders)
}

fn frames_from(name: &str, netns: &str, device: &str, target: &Target) -> Result<Sender> {
    Ok(Sender {
        name: format!("frames from {name}"),
        netns: netns.to_owned(),
        args: vec![
            "inject-frames".into(),
            "--device".into(),
            device.into(),
            "--target".into(),
            serde_json::to_string(target)?,
        ],
    })
}

fn bytes_from(region: &Region, role: &str, addresses: Vec<String>) -> Sender {
    let name = format!("bytes to {} in {role}", addresses.join(" "));
    let args = std::iter::once("inject-bytes".to_owned())
        .chain(addresses)
        .collect();
    Sender {
        name,
        netns: region.topology.netns(role),
        args,
    }
}

async fn mac(netns: &str, device: &str) -> Result<[u8; 6]> {
    let out = Command::from(network::inside(netns, "ip"))
        .args(["-j", "link", "show", "dev", device])
        .output()
        .await?;
    let listed: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("{netns} has no device {device}"))?;
    let text = listed[0]["address"].as_str().unwrap_or_default().to_owned();
    let mut mac = [0; 6];
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    for (place, byte) in mac.iter_mut().zip(bytes) {
        *place = byte.with_context(|| format!("{device} has a strange address: {text}"))?;
    }
    Ok(mac)
}
