//! `openkcm pki`: certificates of the region CA on the command line.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use apiserver::pki::{Ca, Identity, issue_kubeconfig};
use clap::{Args as ClapArgs, Subcommand};

const SECONDS_PER_DAY: u64 = 86_400;

#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a kubeconfig with a new client certificate:
    /// openkcm pki issue --ca STATE/pki --user openkcm:admin --group system:masters --server https://… --out admin.yaml
    Issue {
        /// Folder of the region CA (the API server's `--state` folder, subfolder pki); made if it does not exist.
        #[arg(long)]
        ca: PathBuf,
        /// User name (common name of the certificate).
        #[arg(long)]
        user: String,
        /// Group (organization of the certificate); repeatable.
        #[arg(long)]
        group: Vec<String>,
        /// URL of the API server.
        #[arg(long)]
        server: String,
        /// Where to write the kubeconfig (mode 0600).
        #[arg(long)]
        out: PathBuf,
        /// Life of the certificate in days.
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
}

/// # Errors
/// The CA cannot be read or made, or the file cannot be written.
pub fn run(args: Args) -> Result<()> {
    let Command::Issue {
        ca,
        user,
        group,
        server,
        out,
        days,
    } = args.command;
    let now = SystemTime::now();
    let ca =
        Ca::load_or_create(&ca, now).with_context(|| format!("region CA in {}", ca.display()))?;
    let identity = Identity {
        user,
        groups: group,
    };
    issue_kubeconfig(
        &ca,
        &identity,
        &server,
        &out,
        now,
        Duration::from_secs(u64::from(days) * SECONDS_PER_DAY),
    )?;
    tracing::info!(user = identity.user, file = %out.display(), "issued");
    Ok(())
}
