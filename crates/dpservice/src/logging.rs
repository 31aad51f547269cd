//! Log output on standard output: text for people or one JSON object per line.

use crate::args::{Args, Color, LogFormat};
use anyhow::Context;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Installs the process-wide subscriber.
///
/// # Errors
/// If `--log-level` is not a level or filter, or a subscriber is installed already.
pub fn init(args: &Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log_level)
        .with_context(|| format!("--log-level: \"{}\" is not a level", args.log_level))?;
    let ansi = match args.color {
        Color::Never => false,
        Color::Always => true,
        Color::Auto => std::io::stdout().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_thread_names(true);
    let installed = match args.log_format {
        LogFormat::Text => builder.with_ansi(ansi).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
