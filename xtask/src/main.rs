//! Development tasks, run as `cargo xtask <task>`. Start with [`Task`]; the packages a machine needs are in [`setup`],
//! the rules that no lint can check in [`tidy`].

mod setup;
mod shell;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum as _};

use crate::setup::Scope;
use crate::shell::{cargo, run, step};

/// Development tasks of OpenKCM networking.
///
/// On a fresh Debian 12 with rustup, as root: `cargo xtask demo` shows a region working, `cargo xtask test` proves it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the project needs on this machine and say what that is (Debian packages; needs root), and the git hook.
    Setup {
        /// Only say what is missing.
        #[arg(long)]
        check: bool,
    },
    /// Build, bring up a region with two hypervisors and two routers, and show it working, failing and recovering.
    ///
    /// Uses the same build as the tests, which is ready soonest; `--release` takes several times longer to build and shows what
    /// the region can do.
    Demo {
        /// Build with full optimization.
        #[arg(long)]
        release: bool,
        /// Passed on to `openkcm lab demo`; see `cargo xtask demo -- --help`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Every test: unit, property, contract suites, and the lab scenarios with real processes and packets (needs root).
    Test {
        /// Leave out the lab scenarios.
        #[arg(long)]
        no_lab: bool,
    },
    /// The whole gate, the same here and on the build machine: set-up, format, clippy, tidy, test.
    Ci,
    /// Check the rules that no lint can: tiers, file heads and sizes, documents.
    Tidy,
    /// Torment a region for ten minutes: hostile frames and bytes, with a ping beside them (needs root).
    Storm {
        /// Passed on to `openkcm lab storm`; see `cargo xtask storm -- --help`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Play many seeds of the simulated region: every controller, metalbond and the packet engines in one thread per seed, under
    /// random users and random faults. A seed that fails says how to play it again.
    ///
    /// Builds the crate `testkit` and all below it with optimization; needs no root and no set-up.
    Sim {
        /// `--seeds N`, `--seed FIRST`, `--threads N`, `--verbose`; see `cargo xtask sim -- --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Boot a QEMU guest on DPDK's vhost-user device with hugepages: it gets its address by DHCP and pings another machine (needs root, Debian's
    /// qemu-system-x86; about half a minute after the build).
    Guest,
    /// Run the benchmarks and compare them with their baselines.
    Bench {
        /// Only these; all without a name.
        names: Vec<Benchmark>,
    },
}

fn main() -> ExitCode {
    match perform(Args::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            shell::say(&format!("error: {err:#}"));
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Setup { check } => setup::setup(check, Scope::Develop),
        Task::Demo { release, args } => lab("demo", release, &args),
        Task::Storm { args } => lab("storm", true, &args),
        Task::Sim { args } => sim(&args),
        Task::Test { no_lab } => test(no_lab),
        Task::Ci => ci(),
        Task::Tidy => tidy::tidy(),
        Task::Guest => guest(),
        Task::Bench { names } => bench(&names),
    }
}

/// Builds the executables and runs a lab command that reports what it saw.
fn lab(command: &str, release: bool, args: &[String]) -> Result<()> {
    setup::setup(false, Scope::Run)?;
    let folder = if release {
        step("building (release)");
        cargo(&["build", "--release", "-p", "openkcm", "-p", "dpservice"])?;
        "release"
    } else {
        step("building (as for the tests)");
        cargo(&["build", "--workspace", "--bins"])?;
        "debug"
    };
    let program = shell::target_dir()?.join(folder).join("openkcm");
    run(std::process::Command::new(program)
        .args(["lab", command])
        .args(args)
        .current_dir(shell::root()))
}

/// Builds the simulated region with optimization and plays seeds.
fn sim(args: &[String]) -> Result<()> {
    step("building (release): testkit");
    cargo(&["build", "--release", "-p", "testkit", "--bin", "sim"])?;
    let program = shell::target_dir()?.join("release").join("sim");
    run(std::process::Command::new(program).args(args))
}

/// Builds dpservice with DPDK and the program that plays with the guest.
fn guest() -> Result<()> {
    setup::setup(false, Scope::Develop)?;
    step("building");
    let targets = ["--bin", "dpservice", "--example", "guest"];
    cargo(&[&["build"], DPDK, &targets].concat())?;
    let program = shell::target_dir()?.join("debug/examples/guest");
    run(&mut std::process::Command::new(program))
}

fn test(no_lab: bool) -> Result<()> {
    setup::setup(false, Scope::Develop)?;
    step("building");
    // Executables and tests in one go: the same set of features, so that nothing is compiled twice. The lab scenarios run them.
    cargo(&["build", "--workspace", "--bins", "--tests"])?;
    step("tests");
    if no_lab {
        cargo(&["test", "--workspace", "--exclude", "lab"])?;
    } else {
        cargo(&["test", "--workspace"])?;
    }
    // After the scenarios, which start the plain executable.
    step("tests of the DPDK driver");
    cargo(&[&["test"], DPDK, &["--test", "it", "dpdk"]].concat())
}

/// The packages with the DPDK driver in it; everything below them is shared with the plain build.
const DPDK: &[&str] = &[
    "--package",
    "ports",
    "--package",
    "dpservice",
    "--features",
    "dpdk",
];

fn ci() -> Result<()> {
    setup::setup(false, Scope::Develop)?;
    step("format");
    cargo(&["fmt", "--all", "--check"])?;
    step("clippy");
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    let lint = [
        &["clippy"],
        DPDK,
        &["--package", "dpdk", "--all-targets", "--", "-D", "warnings"],
    ];
    cargo(&lint.concat())?;
    step("tidy");
    tidy::tidy()?;
    test(false)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Benchmark {
    /// Cycles per packet, instructions against their baseline, two threads beside one, changes under a million flows.
    Packet,
    /// Routes and peers of a metalbond server.
    Metalbond,
    /// The API server's storage.
    Store,
    /// The API server over HTTP.
    Server,
    /// Bulk TCP between machines on two hosts, beside the kernel's own tunnel (needs root).
    Bulk,
    /// A whole region.
    Lab,
}

/// Runs the chosen benchmarks, all for none.
fn bench(chosen: &[Benchmark]) -> Result<()> {
    setup::setup(false, Scope::Measure)?;
    for benchmark in Benchmark::value_variants() {
        if !chosen.is_empty() && !chosen.contains(benchmark) {
            continue;
        }
        step(&format!("benchmark {benchmark:?}"));
        let (package, target) = match benchmark {
            Benchmark::Packet => {
                packet_bench()?;
                continue;
            }
            Benchmark::Metalbond => ("metalbond", "hub"),
            Benchmark::Store => ("apiserver", "store"),
            Benchmark::Server => ("apiserver", "server"),
            Benchmark::Bulk => ("dpservice", "bulk"),
            Benchmark::Lab => {
                lab("bench", true, &[])?;
                continue;
            }
        };
        cargo(&["bench", "--package", package, "--bench", target])?;
    }
    Ok(())
}

fn packet_bench() -> Result<()> {
    const PACKET: [&str; 5] = ["bench", "--package", "dataplane", "--bench", "packet"];
    let parts: [&[&str]; 4] = [
        &[],
        &["--", "--instructions"],
        &["--", "--workers", "2"],
        &["--", "--changes"],
    ];
    parts
        .iter()
        .try_for_each(|part| cargo(&[&PACKET, *part].concat()))
}
