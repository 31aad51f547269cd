//! `lab demo`: brings up a region, uses it as a tenant would, breaks every part in turn, and reports what was seen.
//!
//! Every line is a measurement; a step that does not hold makes the exit code 1, and the demo goes on to show the rest.

mod faults;
pub(crate) mod report;
mod services;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kube::Client;
use serde_json::Value;

use crate::client::{
    self, APINET_INTERFACE, APINET_NETWORK, MACHINE, NETWORK, NETWORK_INTERFACE, has_state,
};
use crate::demo::report::Report;
use crate::parts::{APINET_NAMESPACE, Layout};
use crate::state::{self, Record};
use crate::topology::{METALBOND_HTTP_PORT, Topology};
use crate::{Name, UpArgs, commands, machines, network, probe, up};

/// The manifest the demo applies, the same file that the README applies with kubectl.
pub(crate) const EXAMPLE: &str = include_str!("../../../../examples/two-hosts.yaml");
const OBJECTS_TIMEOUT: Duration = Duration::from_secs(30);
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Two hypervisors, two routers, two tenants, four machines; then one part after the other is killed.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Name of the lab.
    #[arg(long, default_value = "demo")]
    name: String,
    /// Leave the region running at the end.
    #[arg(long)]
    keep: bool,
    /// Leave out the part that kills processes.
    #[arg(long)]
    no_faults: bool,
}

/// What every step works with.
pub(crate) struct Region {
    pub record: Record,
    pub topology: Topology,
    pub layout: Layout,
    pub client: Client,
}

/// # Errors
/// The region could not be brought up or taken down.
pub async fn demo(args: &DemoArgs) -> Result<ExitCode> {
    in_a_region(&args.name, args.keep, async |region, report| {
        show(region, args, report).await
    })
    .await
}

/// Brings a lab up, works in it until that is done or Ctrl-C, reports, and takes the lab down unless it shall be kept.
pub(crate) async fn in_a_region(
    name: &str,
    keep: bool,
    work: impl AsyncFnOnce(&Region, &mut Report) -> Result<()>,
) -> Result<ExitCode> {
    let mut report = Report::start();
    report.chapter("A region on this machine");
    let region = start(name, 2).await?;
    report.pass(
        "region up",
        "2 hypervisors, 2 routers, every part a process of its own",
    );
    let result = tokio::select! {
        result = work(&region, &mut report) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(err) = &result {
        report.fail("stopped", &format!("{err:#}"));
    }
    if keep {
        report.note(&format!(
            "the region stays up; take it down with: openkcm lab down --name {name}"
        ));
    } else {
        commands::down(name, false)?;
    }
    Ok(report.finish())
}

/// Brings a lab with two routers up and gathers what the steps need.
pub(crate) async fn start(name: &str, hypervisors: u8) -> Result<Region> {
    let args = UpArgs {
        name: Name {
            name: name.to_owned(),
        },
        hypervisors,
        routers: 2,
        state: None,
    };
    let (record, client) = up::up(&args).await?;
    Ok(Region {
        topology: record.topology()?,
        layout: up::layout(&record)?,
        record,
        client,
    })
}

async fn show(region: &Region, args: &DemoArgs, report: &mut Report) -> Result<()> {
    report.chapter(
        "Two tenants with overlapping addresses: kubectl apply -f examples/two-hosts.yaml",
    );
    objects(region, report).await?;
    report.chapter("Where the packets go");
    let seen = underlay(region, report).await;
    report.check("underlay addresses", seen);
    let seen = routes(region, report).await;
    report.check("routes at the metalbond servers", seen);
    report.chapter("Reachability");
    reachability(region, report).await;
    let seen = captured(region, report).await;
    report.check("underlay packet", seen);
    report.check("TCP throughput", throughput(region).await);
    if !args.no_faults {
        report.chapter("Kill one part after the other (SIGKILL) while red-1 pings red-2");
        faults::faults(region, report).await?;
    }
    report.chapter("Clean-up: kubectl delete -f examples/two-hosts.yaml");
    report.check("nothing is left", cleaned(region).await);
    services::services(region, report).await
}

async fn objects(region: &Region, report: &mut Report) -> Result<()> {
    let begun = Instant::now();
    client::apply(&region.client, EXAMPLE).await?;
    report.pass(
        "apply",
        &format!("7 objects accepted in {} ms", begun.elapsed().as_millis()),
    );
    let since = |what: &str| {
        format!(
            "{what} {} ms after apply began",
            begun.elapsed().as_millis()
        )
    };
    let networks = client::wait(
        &region.client,
        NETWORK,
        "default",
        2,
        OBJECTS_TIMEOUT,
        |o| has_state(o, "Available"),
    )
    .await?;
    report.pass("Networks", &since("2 Available"));
    client::wait(
        &region.client,
        NETWORK_INTERFACE,
        "default",
        4,
        OBJECTS_TIMEOUT,
        |o| has_state(o, "Available"),
    )
    .await?;
    report.pass("NetworkInterfaces", &since("4 Available"));
    client::wait(
        &region.client,
        MACHINE,
        "default",
        4,
        OBJECTS_TIMEOUT,
        |o| has_state(o, "Running"),
    )
    .await?;
    report.pass("Machines", &since("4 Running"));
    for network in &networks {
        let id = network["spec"]["providerID"]
            .as_str()
            .and_then(|p| p.split('/').nth(4))
            .unwrap_or("?")
            .to_owned();
        report.note(&format!(
            "Network {}: VNI {id}",
            text(&network["metadata"]["name"])
        ));
    }
    Ok(())
}

/// The interfaces of each hypervisor as its dpservice reports them.
async fn underlay(region: &Region, report: &mut Report) -> Result<String> {
    let mut count = 0;
    for hv in region.topology.hypervisor_names() {
        for item in dpservice_interfaces(region, &hv).await? {
            let spec = &item["spec"];
            report.note(&format!(
                "{hv}: VNI {} {} and {} at {}",
                spec["vni"],
                text(&spec["primary_ipv4"]),
                text(&spec["primary_ipv6"]),
                text(&spec["underlay_route"])
            ));
            count += 1;
        }
    }
    if count != 4 {
        bail!("dpservice instances hold {count} interfaces, not 4");
    }
    Ok("4 interfaces, each with an underlay address of its host's /64".into())
}

/// What the dpservice of a hypervisor lists, as its command line tool prints it.
pub(crate) async fn dpservice_interfaces(region: &Region, hypervisor: &str) -> Result<Vec<Value>> {
    let out = tokio::process::Command::from(network::inside(
        &region.topology.netns(hypervisor),
        &region.layout.dpservice.display().to_string(),
    ))
    .args([
        "cli",
        "--address",
        "[::1]:1337",
        "list",
        "interfaces",
        "-o",
        "json",
    ])
    .output()
    .await?;
    let listed: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| String::from_utf8_lossy(&out.stderr).into_owned())?;
    Ok(listed["items"].as_array().cloned().unwrap_or_default())
}

/// Both servers must know the same four IPv4 and four IPv6 routes.
async fn routes(region: &Region, report: &mut Report) -> Result<String> {
    let mut counts = Vec::new();
    for router in region.topology.router_names() {
        let url = format!("http://[::1]:{METALBOND_HTTP_PORT}");
        let out = tokio::process::Command::from(network::inside(
            &region.topology.netns(&router),
            &region.layout.openkcm.display().to_string(),
        ))
        .args(["metalbond", "routes", "--url", &url, "-o", "json"])
        .output()
        .await?;
        let listed: Value = serde_json::from_slice(&out.stdout)
            .with_context(|| String::from_utf8_lossy(&out.stderr).into_owned())?;
        let routes = listed["routes"].as_array().cloned().unwrap_or_default();
        let tenant: Vec<&Value> = routes
            .iter()
            .filter(|r| r["vni"] != crate::parts::PUBLIC_VNI)
            .collect();
        for route in &tenant {
            report.note(&format!(
                "{router}: {}: {} -> {}",
                route["vni"],
                text(&route["destination"]),
                text(&route["nextHop"])
            ));
        }
        counts.push(tenant.len());
    }
    if counts.iter().any(|c| *c != 8) {
        bail!("the servers know {counts:?} tenant routes, not 8 each");
    }
    Ok("the same 8 tenant routes at both servers".into())
}

async fn reachability(region: &Region, report: &mut Report) {
    for (from, to, what) in [
        ("red-1", "10.0.0.2", "across hosts, IPv4"),
        ("red-1", "fd00:10::2", "across hosts, IPv6"),
        ("blue-1", "10.0.0.3", "on one host, IPv4"),
        ("blue-1", "fd00:10::3", "on one host, IPv6"),
    ] {
        report.check(&format!("ping {what}"), ping(region, from, to).await);
    }
    for (from, to) in [
        ("red-1", "10.0.0.3"),
        ("red-1", "fd00:10::3"),
        ("blue-2", "10.0.0.1"),
        ("blue-2", "fd00:10::1"),
    ] {
        report.check(
            &format!("isolation {from}"),
            unreachable(region, from, to).await,
        );
    }
}

async fn ping(region: &Region, from: &str, to: &str) -> Result<String> {
    let netns = machines::netns(&region.record, from)?;
    let first = probe::first_reply(&netns, to, REPLY_TIMEOUT).await?;
    let seen = probe::start_ping(&netns, to, 100, Duration::from_millis(10))?
        .report()
        .await?;
    if seen.lost() > 0 {
        bail!("{from} -> {to}: {} of {} lost", seen.lost(), seen.sent);
    }
    Ok(format!(
        "{from} -> {to}: first reply after {} ms; then 100 of 100, mean {} µs",
        first.as_millis(),
        seen.rtt.as_micros()
    ))
}

async fn unreachable(region: &Region, from: &str, to: &str) -> Result<String> {
    let netns = machines::netns(&region.record, from)?;
    let seen = probe::start_ping(&netns, to, 20, Duration::from_millis(10))?
        .report()
        .await?;
    if seen.received > 0 {
        bail!(
            "{from} -> {to}: {} of {} answered, although that address belongs to the other tenant",
            seen.received,
            seen.sent
        );
    }
    Ok(format!(
        "{from} -> {to}: no reply, that address exists only in the other network"
    ))
}

async fn captured(region: &Region, report: &mut Report) -> Result<String> {
    let machine = machines::netns(&region.record, "red-1")?;
    let ping = probe::start_ping(&machine, "10.0.0.2", 200, Duration::from_millis(10))?;
    let packet =
        probe::capture_one(&region.topology.netns("r1"), "ip6 proto 4", REPLY_TIMEOUT).await?;
    drop(ping);
    for line in packet.lines() {
        report.note(line.trim());
    }
    if !packet.contains("10.0.0.") {
        bail!("the captured packet carries no IPv4 packet of the tenant");
    }
    Ok("outer IPv6 between the hosts' underlay addresses, next header 4, inner IPv4".into())
}

async fn throughput(region: &Region) -> Result<String> {
    let (server, client) = (
        machines::netns(&region.record, "red-2")?,
        machines::netns(&region.record, "red-1")?,
    );
    let gbit = probe::throughput(&server, &client, "10.0.0.2", 3).await?;
    Ok(format!(
        "red-1 -> red-2 across hosts, iperf3, 3 s: {gbit:.2} Gbit/s (both hosts share this machine's cores)"
    ))
}

/// Deletes the example and looks for remains in every place that had something.
async fn cleaned(region: &Region) -> Result<String> {
    let begun = Instant::now();
    client::delete(&region.client, EXAMPLE, OBJECTS_TIMEOUT).await?;
    let took = begun.elapsed();
    let none = |kind, namespace| client::api(&region.client, kind, namespace);
    for (kind, namespace) in [
        (NETWORK_INTERFACE, "default"),
        (APINET_NETWORK, APINET_NAMESPACE),
        (APINET_INTERFACE, APINET_NAMESPACE),
    ] {
        let deadline = Instant::now() + OBJECTS_TIMEOUT;
        while !none(kind, namespace)
            .list(&kube::api::ListParams::default())
            .await?
            .items
            .is_empty()
        {
            if Instant::now() > deadline {
                bail!("{} remain in {namespace}", kind.plural);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let prefix = region.topology.machine_netns_prefix();
    let left: Vec<String> = network::existing(&region.topology)?
        .into_iter()
        .filter(|n| n.starts_with(&prefix))
        .collect();
    if !left.is_empty() {
        bail!("namespaces remain: {}", left.join(", "));
    }
    Ok(format!(
        "objects, interfaces and namespaces are gone {} ms after delete",
        took.as_millis()
    ))
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// The pid of a part, once it runs.
pub(crate) fn pid(region: &Region, part: &str) -> Option<i32> {
    state::read_status(&region.record.state)
        .ok()?
        .parts
        .get(part)?
        .pid
}
