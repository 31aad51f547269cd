//! `lab scale`: fills a region, and shows what every object costs the API server, that policies and load balancers hold among
//! many, that an idle region writes nothing but leases, and how soon everything is gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{
    self, LOAD_BALANCER, MACHINE, NETWORK, NETWORK_INTERFACE, NETWORK_POLICY, has_state, is_ready,
};
use crate::demo::{self, Region};
use crate::parts::TAPS_PER_HYPERVISOR;
use crate::{bench, commands, machines, probe, say};

/// Longest time for everything to become ready, and to vanish again.
const LIMIT: Duration = Duration::from_mins(20);
/// Clients that apply objects at the same time.
const CLIENTS: usize = 16;
/// A region that has not written for so long has settled.
const SETTLED: Duration = Duration::from_secs(15);
/// How long the idle region is watched: longer than the resync of any controller that has one below a minute.
const IDLE: Duration = Duration::from_mins(1);
/// Pairs of machines that are tried, allowed and forbidden each.
const PAIRS: u32 = 20;
/// How long a packet may take to follow the objects.
const PACKETS_LIMIT: Duration = Duration::from_secs(5);

/// Many of everything: machines in groups, a load balancer and a policy per group.
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// Name of the lab.
    #[arg(long, default_value = "scale")]
    name: String,
    /// Hypervisors, each with all its parts.
    #[arg(long, default_value_t = 10)]
    hypervisors: u8,
    /// Machines with one interface each, spread over the hypervisors.
    #[arg(long, default_value_t = 1000)]
    interfaces: u32,
    /// Groups of machines, each with one internal load balancer and one policy: only the next group reaches it.
    #[arg(long, default_value_t = 100)]
    groups: u32,
    /// Leave the region running at the end.
    #[arg(long)]
    keep: bool,
}

/// # Errors
/// An argument is out of range, the region did not come up, or something did not hold.
pub async fn scale(args: &ScaleArgs) -> Result<()> {
    check(args)?;
    let region = demo::start(&args.name, args.hypervisors).await?;
    let result = measure(&region, args).await;
    if !args.keep {
        commands::down(&args.name, false)?;
    }
    result
}

fn check(args: &ScaleArgs) -> Result<()> {
    let ports = u32::from(args.hypervisors) * u32::from(TAPS_PER_HYPERVISOR);
    ensure!(
        args.interfaces <= ports,
        "--interfaces {}: {} hypervisors have {ports} machine ports",
        args.interfaces,
        args.hypervisors
    );
    ensure!(
        (3..=250).contains(&args.groups) && args.groups <= args.interfaces,
        "--groups {}: use 3 to 250, and no more than there are interfaces",
        args.groups
    );
    Ok(())
}

async fn measure(region: &Region, args: &ScaleArgs) -> Result<()> {
    client::apply_all(&region.client, &[network()]).await?;
    client::wait(&region.client, NETWORK, "default", 1, LIMIT, is_ready).await?;
    let before = writes(region).await?;
    fill(region, args).await?;
    settle(region).await?;
    costs(&difference(&before, &writes(region).await?), args);
    policies(region, args).await?;
    balancers(region, args).await?;
    idle(region).await?;
    bench::memory(region)?;
    empty(region, args).await
}

// ---- objects ---------------------------------------------------------------------------------------------------------------

fn network() -> Value {
    json!({"apiVersion": NETWORK.api_version, "kind": "Network", "metadata": {"name": "scale"}})
}

fn ipv4(machine: u32) -> String {
    let host = machine + 1;
    format!("10.30.{}.{}", host / 256, host % 256)
}

/// Address of a group's load balancer.
fn service(group: u32) -> String {
    format!("10.31.0.{}", group + 1)
}

fn machine(number: u32, args: &ScaleArgs) -> Value {
    let pool = format!("hv{}", number % u32::from(args.hypervisors) + 1);
    let group = format!("g{}", number % args.groups);
    json!({"apiVersion": MACHINE.api_version, "kind": "Machine", "metadata": {"name": format!("m{number}")}, "spec": {
        "machineClassRef": {"name": "small"},
        "machinePoolRef": {"name": pool},
        "networkInterfaces": [{"name": "main", "ephemeral": {"networkInterfaceTemplate": {
            "metadata": {"labels": {"group": group}},
            "spec": {"networkRef": {"name": "scale"}, "ipFamilies": ["IPv4"], "ips": [{"value": ipv4(number)}]},
        }}}],
    }})
}

fn balancer(group: u32) -> Value {
    json!({"apiVersion": LOAD_BALANCER.api_version, "kind": "LoadBalancer", "metadata": {"name": format!("g{group}")}, "spec": {
        "type": "Internal", "ipFamilies": ["IPv4"], "ips": [{"value": service(group)}],
        "networkRef": {"name": "scale"},
        "networkInterfaceSelector": {"matchLabels": {"group": format!("g{group}")}},
        "ports": [{"protocol": "TCP", "port": 80}],
    }})
}

/// Only the next group reaches this one.
fn policy(group: u32, args: &ScaleArgs) -> Value {
    let next = format!("g{}", (group + 1) % args.groups);
    json!({"apiVersion": NETWORK_POLICY.api_version, "kind": "NetworkPolicy", "metadata": {"name": format!("g{group}")}, "spec": {
        "networkRef": {"name": "scale"},
        "networkInterfaceSelector": {"matchLabels": {"group": format!("g{group}")}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"objectSelector": {"kind": "NetworkInterface", "matchLabels": {"group": next}}}]}],
    }})
}

fn objects(args: &ScaleArgs) -> Vec<Value> {
    let groups = 0..args.groups;
    let services = groups.flat_map(|group| [policy(group, args), balancer(group)]);
    services
        .chain((0..args.interfaces).map(|number| machine(number, args)))
        .collect()
}

/// Applies everything at once and waits until all of it is ready.
async fn fill(region: &Region, args: &ScaleArgs) -> Result<()> {
    let all = objects(args);
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for share in all.chunks(all.len().div_ceil(CLIENTS)) {
        let (client, share) = (region.client.clone(), share.to_vec());
        clients.spawn(async move { client::apply_all(&client, &share).await });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    let seconds = |what: &str| {
        let elapsed = begun.elapsed().as_secs_f64();
        say(&format!("{what} {elapsed:.1} s after apply began"));
    };
    seconds(&format!("{} objects accepted", all.len()));
    let (groups, count) = (
        usize::try_from(args.groups)?,
        usize::try_from(args.interfaces)?,
    );
    let client = &region.client;
    client::wait(client, NETWORK_INTERFACE, "default", count, LIMIT, is_ready).await?;
    seconds(&format!("{count} NetworkInterfaces Ready"));
    client::wait(client, LOAD_BALANCER, "default", groups, LIMIT, is_ready).await?;
    seconds(&format!("{groups} LoadBalancers Ready"));
    client::wait(client, NETWORK_POLICY, "default", groups, LIMIT, is_ready).await?;
    seconds(&format!("{groups} NetworkPolicies Ready"));
    let running = |o: &Value| has_state(o, "Running");
    client::wait(client, MACHINE, "default", count, LIMIT, running).await?;
    seconds(&format!("{count} Machines Running"));
    Ok(())
}

/// Deletes everything at once, owners first.
async fn empty(region: &Region, args: &ScaleArgs) -> Result<()> {
    let mut all = vec![network()];
    all.extend(objects(args).into_iter().rev());
    let begun = Instant::now();
    client::delete_all(&region.client, &all, LIMIT).await?;
    let asked = begun.elapsed();
    loop {
        let left = client::remains(&region.client).await?;
        let Some(first) = left.first() else { break };
        ensure!(
            begun.elapsed() < LIMIT,
            "{} objects remain, such as {first}",
            left.len()
        );
        sleep(Duration::from_millis(500)).await;
    }
    say(&format!(
        "all gone {:.1} s after the deletion began, {:.1} s after the last request",
        begun.elapsed().as_secs_f64(),
        (begun.elapsed().saturating_sub(asked)).as_secs_f64()
    ));
    Ok(())
}

// ---- writes ----------------------------------------------------------------------------------------------------------------

/// Accepted writes by group and resource since the API server started.
type Writes = BTreeMap<String, u64>;

async fn writes(region: &Region) -> Result<Writes> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = region.client.request_text(request).await?;
    Ok(parse_writes(&text))
}

/// Lines such as `apiserver_request_total{verb="PATCH",group="",resource="nodes",code="200"} 7`.
fn parse_writes(metrics: &str) -> Writes {
    let mut found = Writes::new();
    for line in metrics.lines() {
        let Some(line) = line.strip_prefix("apiserver_request_total{") else {
            continue;
        };
        let Some((labels, count)) = line.rsplit_once("} ") else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split('"').next()
        };
        let is_write = matches!(
            label("verb"),
            Some("create" | "update" | "patch" | "delete" | "deletecollection")
        );
        if !is_write || !label("code").is_some_and(|code| code.starts_with('2')) {
            continue;
        }
        let (group, resource) = (
            label("group").unwrap_or_default(),
            label("resource").unwrap_or_default(),
        );
        let name = format!("{resource}.{group}")
            .trim_end_matches('.')
            .to_owned();
        *found.entry(name).or_default() += count.parse::<u64>().unwrap_or(0);
    }
    found
}

fn difference(before: &Writes, after: &Writes) -> Writes {
    let grown = after.iter().map(|(name, count)| {
        let old = before.get(name).copied().unwrap_or(0);
        (name.clone(), count.saturating_sub(old))
    });
    grown.filter(|(_, count)| *count > 0).collect()
}

fn is_lease(name: &str) -> bool {
    name.starts_with("leases.")
}

/// Waits until nothing but leases is written any more.
async fn settle(region: &Region) -> Result<()> {
    let begun = Instant::now();
    loop {
        let before = writes(region).await?;
        sleep(SETTLED).await;
        let mut since = difference(&before, &writes(region).await?);
        since.retain(|name, _| !is_lease(name));
        if since.is_empty() {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < LIMIT,
            "the region does not come to rest; it still writes {since:?}"
        );
    }
}

fn costs(written: &Writes, args: &ScaleArgs) {
    let asked = f64::from(args.interfaces + 2 * args.groups);
    let total: u64 = written.values().sum();
    say(&format!(
        "{total} writes for {asked} objects of the user: {:.1} each",
        total as f64 / asked
    ));
    say(&format!("{:<60} {:>8}", "RESOURCE", "WRITES"));
    for (name, count) in written {
        say(&format!("{name:<60} {count:>8}"));
    }
}

async fn idle(region: &Region) -> Result<()> {
    let before = writes(region).await?;
    sleep(IDLE).await;
    let written = difference(&before, &writes(region).await?);
    let (leases, rest): (Writes, Writes) = written.into_iter().partition(|(n, _)| is_lease(n));
    ensure!(
        rest.is_empty(),
        "an idle region wrote {rest:?} within {} s",
        IDLE.as_secs()
    );
    say(&format!(
        "idle for {} s: {} writes of leases, no other",
        IDLE.as_secs(),
        leases.values().sum::<u64>()
    ));
    Ok(())
}

// ---- packets ---------------------------------------------------------------------------------------------------------------

/// The next group gets through, the one after it does not.
async fn policies(region: &Region, args: &ScaleArgs) -> Result<()> {
    let step = (args.groups / PAIRS).max(1);
    let targets: Vec<u32> = (0..args.groups)
        .step_by(usize::try_from(step)?)
        .take(usize::try_from(PAIRS)?)
        .collect();
    for target in &targets {
        let netns = |machine: u32| machines::netns(&region.record, &format!("m{machine}"));
        let address = ipv4(*target);
        let [next, other] = [1, 2].map(|n| (target + n) % args.groups);
        probe::first_reply(&netns(next)?, &address, PACKETS_LIMIT)
            .await
            .with_context(|| format!("m{next} must reach m{target}"))?;
        if probe::first_reply(&netns(other)?, &address, Duration::from_millis(300))
            .await
            .is_ok()
        {
            bail!("m{other} reaches m{target}, which no policy allows");
        }
    }
    say(&format!(
        "policies hold: {} allowed pairs reach each other, {} forbidden pairs do not",
        targets.len(),
        targets.len()
    ));
    Ok(())
}

/// A load balancer leads to a machine of its group.
async fn balancers(region: &Region, args: &ScaleArgs) -> Result<()> {
    let tried = [0, args.groups / 2, args.groups - 1];
    for group in tried {
        let members: Vec<u32> = (group..args.interfaces)
            .step_by(usize::try_from(args.groups)?)
            .collect();
        let mut servers = Vec::new();
        for member in &members {
            let netns = machines::netns(&region.record, &format!("m{member}"))?;
            probe::own_address(&netns, &service(group))?;
            servers.push(probe::serve(
                &netns,
                &region.layout.openkcm,
                &format!("m{member}"),
                80,
            )?);
        }
        let from = machines::netns(&region.record, &format!("m{}", (group + 1) % args.groups))?;
        let url = format!("http://{}/", service(group));
        let page = probe::fetch_until(&from, &url, PACKETS_LIMIT).await?;
        let answered = members.iter().any(|m| page.contains(&format!("m{m}")));
        ensure!(answered, "load balancer g{group} was answered by {page:?}");
    }
    say(&format!(
        "load balancers lead to their groups: {} tried",
        tried.len()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_by_resource_and_only_if_they_were_accepted() {
        let text = "# TYPE apiserver_request counter\n\
                    apiserver_request_total{verb=\"patch\",group=\"a.b\",resource=\"networks\",code=\"200\"} 3\n\
                    apiserver_request_total{verb=\"create\",group=\"a.b\",resource=\"networks\",code=\"201\"} 2\n\
                    apiserver_request_total{verb=\"create\",group=\"a.b\",resource=\"networks\",code=\"409\"} 9\n\
                    apiserver_request_total{verb=\"list\",group=\"\",resource=\"nodes\",code=\"200\"} 9\n\
                    apiserver_request_total{verb=\"update\",group=\"\",resource=\"nodes\",code=\"200\"} 1\n";
        let seen = parse_writes(text);
        assert_eq!(
            seen,
            Writes::from([("networks.a.b".into(), 5), ("nodes".into(), 1)])
        );
        let later = Writes::from([("networks.a.b".into(), 7), ("nodes".into(), 1)]);
        assert_eq!(
            difference(&seen, &later),
            Writes::from([("networks.a.b".into(), 2)])
        );
    }
}
