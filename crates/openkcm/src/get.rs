//! `openkcm get`: what is to be known about the region as a whole.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};
use lab::endpoints::{self, Place};
use path::gather::{Endpoint, Endpoints, Region};

#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Explain hop by hop why a packet would arrive or not: openkcm get path web-1 db --port 5432
    ///
    /// Follows the packet through the objects (machine, interface, policies, routes, peerings, NAT, load balancers) and holds what they
    /// promise to what the live data planes do (dpservice, metalbond, edge). Sends no packet and changes nothing.
    #[command(after_help = path::ENDPOINTS_HELP)]
    Path(path::Args),
}

/// Runs the command on a runtime of its own. Any failure is "unknown": exit code 1 is reserved for a packet that does not arrive.
pub fn main(args: Args) -> ExitCode {
    match run(args) {
        Ok(code) => code,
        Err(err) => {
            // Nothing is left to report to if standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {err:#}");
            ExitCode::from(path::EXIT_UNKNOWN)
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let Command::Path(args) = args.command;
    runtime.block_on(path::run(args, &labs()))
}

/// The labs of this machine: their parts are found by themselves.
fn labs() -> Vec<Region> {
    let records = lab::state::list();
    let known = records
        .iter()
        .filter_map(|record| endpoints::endpoints(record).ok());
    known.map(region).collect()
}

fn region(lab: endpoints::Endpoints) -> Region {
    let endpoints::Endpoints {
        lab,
        api_url,
        kubeconfig,
        dataplanes,
        metalbond,
        edges,
    } = lab;
    let all = |places: Vec<Place>| {
        let one = |Place {
                       name,
                       netns,
                       address,
                   }: Place| {
            let netns = Some(netns);
            (name, Endpoint { address, netns })
        };
        places.into_iter().map(one).collect()
    };
    Region {
        name: lab,
        api_url,
        kubeconfig,
        endpoints: Endpoints {
            dataplanes: all(dataplanes),
            servers: all(metalbond),
            edges: all(edges),
        },
    }
}
