//! The executables: `dpservice`, and the same as `dpservice-bin` and `dpservice-cli`, as scripts written for the reference call them.

use crate::{Args, VERSION, cli, logging, run};
use clap::error::ErrorKind;
use std::ffi::OsString;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs the service. Called `dpservice-cli`, or with `cli` or `inspect` as first argument, it is the client.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == "cli") {
        arguments.remove(1);
        return cli::main(arguments);
    }
    if arguments.get(1).is_some_and(|first| first == "inspect") {
        return cli::main(arguments);
    }
    let name = arguments
        .first()
        .map(std::path::Path::new)
        .and_then(std::path::Path::file_name);
    if name.is_some_and(|name| name == "dpservice-cli") {
        return cli::main(arguments);
    }
    match serve(arguments) {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write;
            // Standard error may be closed: the exit code tells then.
            let _ = writeln!(std::io::stderr(), "dpservice: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    #[cfg_attr(
        not(feature = "dpdk"),
        expect(unused_mut, reason = "DPDK sets the number of workers")
    )]
    let mut args = match Args::load(arguments, std::env::var_os("DP_CONF")) {
        Ok(args) => args,
        Err(error) => return report_usage(error),
    };
    if args.version {
        use std::io::Write;
        writeln!(std::io::stdout(), "DP Service version {VERSION}")?;
        return Ok(ExitCode::SUCCESS);
    }
    logging::init(&args)?;
    #[cfg(feature = "dpdk")]
    if !args.eal.is_empty() {
        args.validate()?;
        crate::dpdk::start(&mut args)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let service = run(args, shutdown.clone());
        tokio::pin!(service);
        tokio::select! {
            result = &mut service => return result.map(|()| ExitCode::SUCCESS),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("Stopping");
        shutdown.cancel();
        tokio::select! {
            result = service => result.map(|()| ExitCode::SUCCESS),
            // A second signal ends the process at once.
            _ = terminate.recv() => Ok(ExitCode::FAILURE),
            _ = interrupt.recv() => Ok(ExitCode::FAILURE),
        }
    })
}

/// Help and usage errors are printed by the command line library; other errors concern the configuration file.
fn report_usage(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    let usage = error.downcast::<clap::Error>()?;
    usage.print()?;
    Ok(match usage.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
