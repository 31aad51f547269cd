//! The OpenKCM multi-call executable: dispatches to one part and sets up what all parts share (logging, TLS provider, signals).
//!
//! A link named like a part (`metalnet`, `metalbond`, `apinetlet` …) runs that part without naming it.

mod bond;
mod get;
mod outside;
mod pki;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// OpenKCM networking: private networks for machines on many hypervisors.
///
/// Every part of a region is a subcommand. To see all of them work together on this machine: openkcm lab up
#[derive(Debug, Parser)]
#[command(name = "openkcm", version, propagate_version = true)]
struct Cli {
    /// Form of the log on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "OPENKCM_LOG_FORMAT")]
    log_format: LogFormat,
    /// What to log: error, warn, info, debug, trace, or per module such as info,metalnet=debug.
    #[arg(long, global = true, default_value = "info", env = "OPENKCM_LOG")]
    log_level: String,
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Run, inspect and break a whole region on this machine.
    Lab(lab::Args),
    /// Serve the API: user groups, OpenKCM-net, metalnet.
    Apiserver(apiserver::Args),
    /// Run the controllers of the user API and of OpenKCM-net.
    ControllerManager(core_controllers::manager::Args),
    /// Translate user objects into OpenKCM-net objects.
    Apinetlet(apinetlet::Args),
    /// Realise the OpenKCM-net objects of one partition in metalnet.
    Metalnetlet(metalnetlet::Args),
    /// Take a partition out of the region that is gone for good.
    RemovePartition(metalnetlet::RemovalArgs),
    /// The agent of one hypervisor: metalnet objects to dpservice and routes.
    Metalnet(metalnet::Args),
    /// Distribute routes between hypervisors: server, client, inspection.
    Metalbond(bond::Args),
    /// Carry packets between the internet and the hypervisors, on the region's router.
    Edge(outside::Args),
    /// Run the Machines of one pool on a machine runtime.
    Machinepoollet(machine::poollet::Args),
    /// Serve a machine runtime.
    #[command(subcommand)]
    MachineProvider(Provider),
    /// Explain the region: why a packet would arrive or not.
    Get(get::Args),
    /// Issue certificates and kubeconfigs from the region CA.
    Pki(pki::Args),
    /// Print a completion script: source <(openkcm completion bash)
    Completion { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
enum Provider {
    /// Machines as network namespaces of this host.
    Namespace(machine::provider::Args),
}

/// Names under which a link to this executable runs one part.
const LINKS: &[&str] = &[
    "apiserver",
    "controller-manager",
    "apinetlet",
    "metalnetlet",
    "metalnet",
    "metalbond",
    "machinepoollet",
];

fn main() -> ExitCode {
    let cli = Cli::parse_from(arguments());
    match run(cli) {
        Ok(code) => code,
        Err(err) => {
            use std::io::Write as _;
            // Nothing is left to report to if standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command line, with the part that a link's name stands for put in.
fn arguments() -> Vec<std::ffi::OsString> {
    let mut all: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let name = all
        .first()
        .map(std::path::PathBuf::from)
        .and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    if let Some(name) = name.filter(|n| LINKS.contains(&n.as_str())) {
        all.insert(1, name.into());
    }
    all
}

fn run(cli: Cli) -> Result<ExitCode> {
    set_up_logging(&cli)?;
    match cli.part {
        Part::Lab(args) => return lab::main(args),
        Part::Get(args) => return Ok(get::main(args)),
        Part::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "openkcm", &mut script);
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&script).context("standard output")?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let shutdown = CancellationToken::new();
        let watcher = watch_signals(shutdown.clone())?;
        let mut signals = tokio::task::JoinSet::new();
        signals.spawn(watcher);
        serve(cli.part, shutdown).await
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(part: Part, shutdown: CancellationToken) -> Result<()> {
    match part {
        Part::Apiserver(args) => apiserver::run(args, shutdown).await,
        Part::ControllerManager(args) => core_controllers::manager::run(args, shutdown).await,
        Part::Apinetlet(args) => apinetlet::run(args, shutdown).await,
        Part::Metalnetlet(args) => metalnetlet::run(args, shutdown).await,
        Part::RemovePartition(args) => metalnetlet::remove(args).await,
        Part::Metalnet(args) => metalnet::run(args, shutdown).await,
        Part::Metalbond(args) => bond::run(args, shutdown).await,
        Part::Edge(args) => outside::run(args, shutdown).await,
        Part::Machinepoollet(args) => machine::poollet::run(args, shutdown).await,
        Part::MachineProvider(Provider::Namespace(args)) => {
            machine::provider::run(args, shutdown).await
        }
        Part::Pki(args) => pki::run(args),
        Part::Lab(_) | Part::Get(_) | Part::Completion { .. } => Ok(()),
    }
}

/// The first SIGTERM or SIGINT asks for a graceful end, the second ends the process at once.
fn watch_signals(shutdown: CancellationToken) -> Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if shutdown.is_cancelled() {
                std::process::exit(130);
            }
            tracing::info!("stopping");
            shutdown.cancel();
        }
    })
}

fn set_up_logging(cli: &Cli) -> Result<()> {
    // kube's client reports every refused connection as an error; the parts retry and say so themselves.
    let quiet = format!("kube_client::client::builder=off,{}", cli.log_level);
    let filter = tracing_subscriber::EnvFilter::try_new(quiet).with_context(|| {
        format!(
            "--log-level {:?}: use error, warn, info, debug or trace",
            cli.log_level
        )
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    // Several TLS backends may be linked through dependencies; the choice must be explicit, once per process.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is installed already");
    }
    Ok(())
}
