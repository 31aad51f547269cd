//! Creates and removes a lab's namespaces and links with iproute2, in few calls: one batch per namespace.
//! Creation starts from a clean slate (leftovers of the same lab are removed first), removal tolerates what is already gone.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::outside;
use crate::topology::{End, Link, Topology};

/// # Errors
/// iproute2 is missing or refuses a command; its own message is part of the error.
pub fn create(topology: &Topology) -> Result<()> {
    remove(topology)?;
    let namespaces: Vec<String> = topology
        .netns_all()
        .iter()
        .map(|n| format!("netns add {n}"))
        .collect();
    batch(None, &namespaces)?;
    for namespace in topology.netns_all() {
        prepare(topology, &namespace)?;
    }
    batch(
        Some(&topology.netns("mgmt")),
        &[
            "link add br0 type bridge".into(),
            "link set br0 up".into(),
            topology.api_address_line(),
        ],
    )?;
    for link in topology.links() {
        create_link(&link)?;
    }
    for (namespace, lines) in topology.underlay_batches() {
        batch(Some(&namespace), &lines)?;
    }
    Ok(())
}

/// Loopback up, no duplicate address detection (every address is ours alone), what routers and the internet need besides.
fn prepare(topology: &Topology, namespace: &str) -> Result<()> {
    batch(Some(namespace), &["link set lo up".into()])?;
    let mut settings = vec![
        "net.ipv6.conf.all.accept_dad=0",
        "net.ipv6.conf.default.accept_dad=0",
        "net.ipv6.conf.default.accept_ra=0",
    ];
    settings.extend(outside::settings(topology, namespace));
    let status = inside(namespace, "sysctl")
        .arg("-q")
        .arg("-w")
        .args(settings)
        .stdin(Stdio::null())
        .status();
    match status.context("cannot run sysctl (package procps)")? {
        s if s.success() => Ok(()),
        s => bail!("sysctl in namespace {namespace} failed: {s}"),
    }
}

fn create_link(link: &Link) -> Result<()> {
    let place = |end: &End| match &end.netns {
        Some(n) => format!("netns {n}"),
        None => String::new(),
    };
    let line = format!(
        "link add name {} {} address {} mtu {mtu} type veth peer name {} {} address {} mtu {mtu}",
        link.left.name,
        place(&link.left),
        link.left.mac,
        link.right.name,
        place(&link.right),
        link.right.mac,
        mtu = link.mtu
    );
    batch(None, &[line])?;
    for end in [&link.left, &link.right] {
        let mut lines: Vec<String> = end
            .addresses
            .iter()
            .map(|a| format!("addr add {a} dev {} nodad", end.name))
            .collect();
        if let Some(bridge) = end.bridge {
            lines.push(format!("link set {} master {bridge}", end.name));
        }
        lines.push(format!("link set {} up", end.name));
        batch(end.netns.as_deref(), &lines)?;
    }
    Ok(())
}

/// Takes a hypervisor off every network: to all others this looks like a power cut. It sees its links without a carrier.
///
/// # Errors
/// iproute2 refuses; the lab is not up.
pub fn disconnect(topology: &Topology, hypervisor: u8) -> Result<()> {
    for plug in topology.plugs(hypervisor) {
        batch(Some(&plug.netns), &plug.out)?;
    }
    Ok(())
}

/// The reverse of [`disconnect`]. Idempotent.
///
/// # Errors
/// iproute2 refuses; the lab is not up.
pub fn connect(topology: &Topology, hypervisor: u8) -> Result<()> {
    for plug in topology.plugs(hypervisor) {
        batch(Some(&plug.netns), &plug.back)?;
    }
    Ok(())
}

/// Kills what still runs in the lab's namespaces and deletes them, machines included. Idempotent.
///
/// # Errors
/// iproute2 is missing.
pub fn remove(topology: &Topology) -> Result<()> {
    for namespace in existing(topology)? {
        for pid in pids(&namespace)? {
            // The process may have ended since it was listed; that is the goal anyway.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        ip(&["netns", "del", &namespace])?;
    }
    // It vanishes with its peer's namespace, but only some time after the namespace is deleted.
    if let Err(err) = ip(&["link", "del", &topology.host_device()])
        && ip_output(&["-o", "link", "show", &topology.host_device()]).is_ok()
    {
        return Err(err);
    }
    Ok(())
}

/// Namespaces of this lab that exist now, its machines' first.
///
/// # Errors
/// iproute2 is missing.
pub fn existing(topology: &Topology) -> Result<Vec<String>> {
    let listed = ip_output(&["netns", "list"])?;
    let names: Vec<&str> = listed
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    let machines = names
        .iter()
        .filter(|n| n.starts_with(&topology.machine_netns_prefix()))
        .map(|n| (*n).to_owned());
    let own = topology.netns_all();
    let parts = names
        .iter()
        .filter(|n| own.iter().any(|o| o == *n))
        .map(|n| (*n).to_owned());
    Ok(machines.chain(parts).collect())
}

fn pids(namespace: &str) -> Result<Vec<i32>> {
    let out = ip_output(&["netns", "pids", namespace])?;
    Ok(out
        .split_whitespace()
        .filter_map(|p| p.parse().ok())
        .collect())
}

/// A command that runs inside a namespace. `nsenter` and not `ip netns exec`, because the latter also makes a private mount
/// namespace, in which a machine's namespace created by a provider would stay invisible to everybody else.
pub fn inside(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg("--")
        .arg(program);
    command
}

fn batch(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(n) = namespace {
        command.args(["-netns", n]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip (package iproute2)")?;
    if let Some(stdin) = &mut child.stdin {
        for line in lines {
            writeln!(stdin, "{line}")?;
        }
    }
    let out = child.wait_with_output()?;
    if out.status.success() {
        return Ok(());
    }
    bail!(
        "ip -batch failed{}: {}\n{}",
        namespace.map(|n| format!(" in {n}")).unwrap_or_default(),
        String::from_utf8_lossy(&out.stderr).trim(),
        lines.join("\n")
    )
}

fn ip(args: &[&str]) -> Result<()> {
    ip_output(args).map(drop)
}

fn ip_output(args: &[&str]) -> Result<String> {
    let out = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip (package iproute2)")?;
    if !out.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
