//! The command `edge`: runs the region's edge, and shows one that runs.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use clap::{Args as ClapArgs, Subcommand};
use edge::status::{DropCount, Hop, PathCount, Route, Server, Status};
use tokio_util::sync::CancellationToken;

use crate::bond::{self, Output};

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[group(skip)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<edge::Args>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show routes and counters of a running edge: openkcm edge status --url http://[::1]:4713
    Status {
        /// Address of its pages (`--http`).
        #[arg(long, default_value = "http://[::1]:4713")]
        url: String,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

/// # Errors
/// The edge could not start or lost its device, or the page did not answer.
pub async fn run(args: Args, shutdown: CancellationToken) -> Result<()> {
    match (args.command, args.run) {
        (Some(Command::Status { url, output }), _) => status(&url, output).await,
        (None, Some(args)) => edge::run(args, shutdown).await,
        // The parser asks for the flags of one or the other.
        (None, None) => anyhow::bail!("flags are missing; see: openkcm edge --help"),
    }
}

async fn status(url: &str, output: Output) -> Result<()> {
    use std::io::Write as _;
    let body = bond::get(url, "/status.json").await?;
    let status: Status = serde_json::from_slice(&body)
        .with_context(|| format!("{url} is not the page of an edge"))?;
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&status)?,
        Output::Table => table(&status),
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

/// What a person wants to know first; the rest is in the JSON form.
fn table(status: &Status) -> String {
    let mut text = String::new();
    let none = |list: &[String]| match list {
        [] => "nothing".to_owned(),
        some => some.join(", "),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "edge {} on {}", status.address, status.device);
    let _ = writeln!(text, "announces  {}", none(&status.announced));
    let _ = writeln!(text, "public     {}", none(&status.public_prefixes));
    for Server {
        address,
        established,
        ..
    } in &status.servers
    {
        let state = if *established { "established" } else { "down" };
        let _ = writeln!(text, "metalbond  {address} {state}");
    }
    let _ = writeln!(
        text,
        "\n{:<28} NEXT HOPS ({} in all)",
        "DESTINATION", status.routes_total
    );
    for Route { prefix, hops } in &status.routes {
        let hop = |Hop { address, ports }: &Hop| match ports {
            Some([first, end]) => format!("{address} ports {first}-{}", end.saturating_sub(1)),
            None => address.to_string(),
        };
        let hops: Vec<String> = hops.iter().map(hop).collect();
        let _ = writeln!(text, "{prefix:<28} {}", hops.join(", "));
    }
    let _ = writeln!(text, "\n{:<28} {:>12} {:>15}", "PATH", "PACKETS", "BYTES");
    for PathCount {
        name,
        packets,
        bytes,
    } in &status.paths
    {
        let _ = writeln!(text, "{name:<28} {packets:>12} {bytes:>15}");
    }
    let _ = writeln!(
        text,
        "\n{:<28} {:>12} {:>15}",
        "DROPPED", "SILENTLY", "ANSWERED"
    );
    for DropCount {
        name,
        dropped,
        answered,
    } in status.drops.iter().filter(|d| d.dropped + d.answered > 0)
    {
        let _ = writeln!(text, "{name:<28} {dropped:>12} {answered:>15}");
    }
    text
}
