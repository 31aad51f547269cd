//! What a machine needs beyond the Rust toolchain, and how it gets it: Debian packages by `apt-get`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::shell::{output, root, run, say, step};

/// Debian packages and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "compiles the C parts of TLS"),
    ("libc6-dev", "linking"),
    ("iproute2", "namespaces, links, routes"),
    ("util-linux", "nsenter, setpriv, setsid"),
    ("procps", "sysctl"),
    ("ethtool", "offload settings of links"),
    ("iputils-ping", "ping inside machines"),
    ("curl", "HTTP between machines"),
    ("iperf3", "throughput between machines"),
    ("tcpdump", "packet capture"),
    ("udhcpc", "DHCPv4 client of machines"),
    ("isc-dhcp-client", "DHCPv6 client of machines"),
    (
        "python3-kubernetes",
        "a client of the API server for its tests",
    ),
    (
        "python3-scapy",
        "packets of another stack for dpservice's tests",
    ),
];

/// What building and testing the DPDK driver takes in addition (about 350 MB, mostly DPDK's drivers and libclang).
const DPDK_PACKAGES: &[(&str, &str)] = &[
    ("libdpdk-dev", "DPDK 22.11"),
    ("pkg-config", "finds DPDK"),
    ("libclang1-14", "translates DPDK's headers"),
    ("libclang-common-14-dev", "translates DPDK's headers"),
];

/// What measuring takes in addition.
const BENCH_PACKAGES: &[(&str, &str)] = &[("valgrind", "counts instructions")];

/// What is going to be done on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Build and run with the native drivers.
    Run,
    /// Everything the gate does.
    Develop,
    /// Run benchmarks.
    Measure,
}

/// # Errors
/// Something is missing that set-up cannot install; the error says what to do.
pub fn setup(check_only: bool, scope: Scope) -> Result<()> {
    step("set-up");
    let more = match scope {
        Scope::Run => &[],
        Scope::Develop => DPDK_PACKAGES,
        Scope::Measure => BENCH_PACKAGES,
    };
    let missing: Vec<&(&str, &str)> = PACKAGES
        .iter()
        .chain(more)
        .filter(|(name, _)| !installed(name))
        .collect();
    if missing.is_empty() {
        say("all Debian packages are installed");
    } else {
        say("these Debian packages are needed:");
        for (name, purpose) in &missing {
            say(&format!("  {name:<22} {purpose}"));
        }
        if check_only {
            bail!("install them with: cargo xtask setup");
        }
        install(&missing.iter().map(|(name, _)| *name).collect::<Vec<_>>())?;
    }
    kernel()?;
    hook()
}

fn installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Status}", package])
        .stderr(Stdio::null())
        .output();
    query.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).starts_with("install ok installed"))
}

fn install(packages: &[&str]) -> Result<()> {
    if !is_root()? {
        bail!(
            "installing packages needs root: run the same command with sudo, or install them yourself: apt-get install {}",
            packages.join(" ")
        );
    }
    say("installing them with apt-get");
    // A package list that is out of date fails the installation, a fresh machine has none at all.
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    run(Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null()))
}

/// Root, network namespaces and TAP devices: without them neither the driver tests nor the lab can run.
fn kernel() -> Result<()> {
    if !is_root()? {
        bail!("network namespaces need root: run the same command with sudo");
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!(
            "/dev/net/tun is missing: load the kernel module with: modprobe tun (in a container, add --device /dev/net/tun)"
        );
    }
    let probe = Command::new("unshare")
        .args(["--net", "true"])
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|s| s.success()) {
        bail!(
            "this kernel or container does not allow network namespaces: run on a machine where `unshare --net true` works (in a container, add --privileged)"
        );
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// The pre-commit hook: format and tidy, a few seconds.
fn hook() -> Result<()> {
    let git = root().join(".git");
    if !git.is_dir() {
        return Ok(());
    }
    let file = git.join("hooks/pre-commit");
    if !file.exists() {
        std::fs::create_dir_all(git.join("hooks"))?;
        std::fs::write(
            &file,
            "#!/bin/sh\nset -e\ncargo fmt --all --check\ncargo xtask tidy\n",
        )?;
        run(Command::new("chmod").arg("+x").arg(&file))?;
        say("installed the git hook pre-commit (format and tidy)");
    }
    Ok(())
}
