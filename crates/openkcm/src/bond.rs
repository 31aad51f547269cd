//! `openkcm metalbond`: the server, the client, and a look at what a running server or client knows.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Accept clients and pass their routes on to the subscribers of each VNI.
    Server(metalbond::server::Args),
    /// Subscribe to and announce routes from the command line.
    Client(metalbond::client::cli::Args),
    /// Show the routes that a server or client knows: openkcm metalbond routes --url http://[::1]:4712
    Routes {
        /// Address of its status pages (`--http`).
        #[arg(long, default_value = "http://[::1]:4712")]
        url: String,
        /// Only this VNI.
        #[arg(long)]
        vni: Option<u32>,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

/// Form of what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// # Errors
/// The part could not start, or the status page did not answer.
pub async fn run(args: Args, shutdown: CancellationToken) -> Result<()> {
    match args.command {
        Command::Server(args) => metalbond::server::run(args, shutdown).await,
        Command::Client(args) => metalbond::client::cli::run(args, shutdown).await,
        Command::Routes { url, vni, output } => routes(&url, vni, output).await,
    }
}

/// `/routes.json` as the servers of this protocol publish it.
#[derive(Deserialize)]
struct Page {
    vnet: BTreeMap<u32, BTreeMap<String, Vec<Hop>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Hop {
    target_address: String,
    #[serde(rename = "TargetVNI")]
    target_vni: u32,
    #[serde(rename = "Type")]
    kind: i32,
    #[serde(rename = "NATPortRangeFrom")]
    from: u16,
    #[serde(rename = "NATPortRangeTo")]
    to: u16,
}

/// One route, one row.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    vni: u32,
    destination: String,
    next_hop: String,
    target_vni: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat_ports: Option<String>,
}

async fn routes(url: &str, vni: Option<u32>, output: Output) -> Result<()> {
    let body = get(url, "/routes.json").await?;
    let page: Page = serde_json::from_slice(&body)
        .with_context(|| format!("{url} is not a metalbond status page"))?;
    let mut rows = Vec::new();
    for (number, destinations) in page.vnet {
        for (key, hops) in destinations
            .into_iter()
            .filter(|_| vni.is_none_or(|wanted| wanted == number))
        {
            rows.extend(hops.into_iter().map(|hop| row(number, &key, hop)));
        }
    }
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&serde_json::json!({ "routes": rows }))?,
        Output::Table => table(&rows),
    };
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn row(
    vni: u32,
    key: &str,
    Hop {
        target_address,
        target_vni,
        kind,
        from,
        to,
    }: Hop,
) -> Row {
    // The key is JSON text: {"IPVersion":4,"Prefix":"10.0.0.1/32"}.
    let parsed: serde_json::Value = serde_json::from_str(key).unwrap_or_default();
    Row {
        vni,
        destination: parsed["Prefix"].as_str().unwrap_or(key).to_owned(),
        next_hop: target_address,
        target_vni,
        kind: match kind {
            0 => "standard",
            1 => "nat",
            2 => "loadBalancerTarget",
            _ => "unknown",
        },
        nat_ports: (kind == 1).then(|| format!("{from}-{to}")),
    }
}

fn table(rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|r| r.destination.len())
        .max()
        .unwrap_or(0)
        .max("DESTINATION".len());
    let mut text = format!(
        "{:>8}  {:<width$}  {:<18}  NEXT HOP",
        "VNI", "DESTINATION", "TYPE"
    );
    for r in rows {
        text.push_str(&format!(
            "\n{:>8}  {:<width$}  {:<18}  {}",
            r.vni, r.destination, r.kind, r.next_hop
        ));
        if let Some(ports) = &r.nat_ports {
            text.push_str(&format!(" ports {ports}"));
        }
    }
    text
}

/// Reads a status page of a part.
pub async fn get(url: &str, page: &str) -> Result<Vec<u8>> {
    let Some(authority) = url
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'))
    else {
        bail!("--url {url:?}: write it as http://HOST:PORT, such as http://[::1]:4712");
    };
    let stream = TcpStream::connect(authority)
        .await
        .with_context(|| format!("nobody listens at {url}; is the server started with --http?"))?;
    path::page::fetch(stream, authority, page).await
}
