//! The region on one machine: `openkcm lab …`.
//!
//! [`topology`] computes names and addresses, [`network`] makes them real, [`parts`] lists the processes, [`supervisor`] keeps
//! them running. [`commands`] is what an operator types; [`demo`] shows a region working and failing, [`bench`] and [`scale`]
//! measure it, [`storm`] torments it.
//! What runs here is what runs in a data centre: the same executables with the same flags.

pub mod bench;
pub mod client;
pub mod commands;
pub mod demo;
pub mod endpoints;
pub mod internet;
pub mod machines;
pub mod network;
pub mod outside;
pub mod parts;
pub mod probe;
pub mod scale;
pub mod state;
pub mod storm;
pub mod supervisor;
pub mod topology;
pub mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};

/// Run a whole region on this machine: hypervisors and routers as network namespaces, every part as a real process.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Which lab a command is about.
#[derive(Debug, Clone, ClapArgs)]
pub struct Name {
    /// Name of the lab; several may run side by side.
    #[arg(long, default_value = "lab", env = "OPENKCM_LAB")]
    pub name: String,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct UpArgs {
    #[command(flatten)]
    pub name: Name,
    /// How many hypervisors.
    #[arg(long, default_value_t = 2)]
    pub hypervisors: u8,
    /// How many routers, each with a metalbond server; every hypervisor has one uplink to each.
    #[arg(long, default_value_t = 2)]
    pub routers: u8,
    /// Where the lab keeps its files (default: /var/lib/openkcm/lab/NAME). API objects found there are kept.
    #[arg(long)]
    pub state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a lab and wait until it is ready.
    Up(UpArgs),
    /// Show the parts with state and pid; without --name, of every lab.
    Status {
        #[arg(long, env = "OPENKCM_LAB")]
        name: Option<String>,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Print the path of the administrator's kubeconfig: export KUBECONFIG=$(openkcm lab kubeconfig)
    Kubeconfig {
        #[command(flatten)]
        name: Name,
    },
    /// Run a command inside a machine, or in the internet: openkcm lab exec red-1 -- ping -c 3 10.0.0.2
    Exec {
        #[command(flatten)]
        name: Name,
        /// The machine, as NAME or NAMESPACE/NAME; or `internet`, `mgmt`, a router (`r1`), a hypervisor (`hv1`).
        machine: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show packets on the underlay or of one machine, live: openkcm lab capture underlay -- -c 10
    Capture {
        #[command(flatten)]
        name: Name,
        /// `underlay`, `internet`, or a machine as NAME or NAMESPACE/NAME.
        target: String,
        /// Further arguments and filter for tcpdump.
        #[arg(last = true)]
        tcpdump: Vec<String>,
    },
    /// Show the log of a part.
    Logs {
        #[command(flatten)]
        name: Name,
        /// The part, as in `openkcm lab status`.
        part: String,
        /// Keep following.
        #[arg(short, long)]
        follow: bool,
    },
    /// Kill a part (SIGKILL unless told otherwise); its supervisor starts it again.
    Kill {
        #[command(flatten)]
        name: Name,
        /// The part, as in `openkcm lab status`.
        part: String,
        /// Signal name, such as TERM, STOP, CONT.
        #[arg(short, long, default_value = "KILL")]
        signal: String,
    },
    /// Take a hypervisor off every network, which to all others looks like a power cut.
    Disconnect {
        #[command(flatten)]
        name: Name,
        /// The hypervisor, such as hv2.
        hypervisor: String,
    },
    /// Put a hypervisor back on its networks.
    Connect {
        #[command(flatten)]
        name: Name,
        /// The hypervisor, such as hv2.
        hypervisor: String,
    },
    /// Stop a lab and remove everything it made.
    Down {
        #[command(flatten)]
        name: Name,
        /// Keep the state directory (API objects, certificates, logs) for the next `up`.
        #[arg(long)]
        keep_state: bool,
    },
    /// Bring up a region, use it, break it, and report what happened.
    Demo(demo::DemoArgs),
    /// Measure a region: apply to first ping, many interfaces at once, memory per process.
    Bench(bench::BenchArgs),
    /// Fill a region: many hypervisors, interfaces, load balancers and policies; what they cost, and that idling costs nothing.
    Scale(scale::ScaleArgs),
    /// Torment a region: hostile frames into machine ports and uplinks, hostile bytes into every listening port.
    Storm(storm::StormArgs),
    /// Send hostile frames from this namespace; started by `storm`.
    #[command(hide = true)]
    InjectFrames(storm::inject::FramesArgs),
    /// Send hostile bytes from this namespace; started by `storm`.
    #[command(hide = true)]
    InjectBytes(storm::inject::BytesArgs),
    /// Serve HTTP, echo and DNS in a lab's internet; started by `up`.
    #[command(hide = true)]
    Internet(internet::InternetArgs),
    /// Keep the parts of a lab running; started by `up`.
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        name: Name,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Runs a lab command on a runtime of its own (one thread: see [`supervisor`]).
///
/// # Errors
/// What the command could not do and what to do about it.
pub fn main(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ok = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match args.command {
        Command::Up(args) => ok(runtime.block_on(up::up(&args)).map(drop)),
        Command::Status { name, output } => commands::status(name.as_deref(), output),
        Command::Kubeconfig { name } => ok(commands::kubeconfig(&name.name)),
        Command::Exec {
            name,
            machine,
            command,
        } => commands::exec(&name.name, &machine, &command),
        Command::Capture {
            name,
            target,
            tcpdump,
        } => commands::capture(&name.name, &target, &tcpdump),
        Command::Logs { name, part, follow } => commands::logs(&name.name, &part, follow),
        Command::Kill { name, part, signal } => ok(commands::kill(&name.name, &part, &signal)),
        Command::Disconnect { name, hypervisor } => {
            ok(commands::plug(&name.name, &hypervisor, false))
        }
        Command::Connect { name, hypervisor } => ok(commands::plug(&name.name, &hypervisor, true)),
        Command::Down { name, keep_state } => ok(commands::down(&name.name, keep_state)),
        Command::Demo(args) => runtime.block_on(demo::demo(&args)),
        Command::Bench(args) => ok(runtime.block_on(bench::bench(&args))),
        Command::Scale(args) => ok(runtime.block_on(scale::scale(&args))),
        Command::Storm(args) => runtime.block_on(storm::storm(&args)),
        Command::InjectFrames(args) => ok(runtime.block_on(storm::inject::frames(&args))),
        Command::InjectBytes(args) => ok(runtime.block_on(storm::inject::bytes(&args))),
        Command::Internet(args) => ok(runtime.block_on(internet::serve(&args))),
        Command::Supervise { name } => ok(runtime.block_on(up::supervise(&name.name))),
    }
}

/// Writes a line for the person at the terminal. A closed pipe ends nothing: the command's effect matters more.
pub(crate) fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}
