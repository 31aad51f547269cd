//! The command: flags in, table or JSON out, the verdict as exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use api::meta::IpFamily;
use clap::{Args as ClapArgs, ValueEnum};
use kube::config::{KubeConfigOptions, Kubeconfig};
use net::Vni;

use crate::gather::{self, Endpoint, Endpoints, Region};
use crate::model::{Path, Protocol, Verdict};
use crate::query::{End, Query};
use crate::snapshot::Snapshot;
use crate::{explain_and_ask, render};

/// How often data planes are asked: an answer can lead to another hypervisor, such as that of a load balancer's target.
const ROUNDS_MAX: usize = 4;

/// Exit code if what decides could not be found out, or the question was wrong.
pub const EXIT_UNKNOWN: u8 = 2;

/// What `--help` says at the end.
pub const ENDPOINTS_HELP: &str = "\
Ends:
  web-1, shop/web-1         a machine (NAMESPACE/NAME)
  nic/web-1-front           a network interface
  lb/web, vip/bastion       a load balancer, a virtual IP
  10.50.2.1, 2001:db8::7    an address, as the sender's network sees it
  internet                  somebody outside; as the first end: who connects to a public address

Without --port it is a ping; with --port, TCP; to a load balancer, its first port.

Data planes: in a lab, all of its parts are found and asked by themselves. Elsewhere name
those that can be reached with --dataplane, --metalbond and --edge, for instance through forwarded
ports (ssh -L 13371:localhost:1337 hv1). Without them the objects alone decide, and the answer says so.

Exit code: 0 the packet and its answer arrive, 1 one of them does not, 2 unknown or a wrong question.

Examples:
  openkcm get path web-1 db --port 5432
  openkcm get path web-1 internet --protocol udp --port 53
  openkcm get path internet lb/web
  openkcm get path clerk web-1 --both-ways -o json";

#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Who sends: a machine, nic/NAME, an outside address, or `internet`.
    #[arg(value_name = "A")]
    from: String,
    /// Who is to receive: a machine, nic/NAME, lb/NAME, vip/NAME, an address, or `internet`.
    #[arg(value_name = "B")]
    to: String,
    /// Namespace of names without one.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Destination port.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Transport (default: tcp with --port, else icmp).
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// Source port (default: 49152).
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    source_port: Option<u16>,
    /// Address family (default: what both ends have, IPv4 first).
    #[arg(long, value_enum)]
    family: Option<Family>,
    /// Also explain a connection from B to A.
    #[arg(long)]
    both_ways: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Kubeconfig (default: $KUBECONFIG, then ~/.kube/config).
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The lab to look at (default: the one that the kubeconfig is of, if it is one).
    #[arg(long, value_name = "NAME", env = "OPENKCM_LAB")]
    lab: Option<String>,
    /// The control port of a hypervisor's dpservice; repeatable.
    #[arg(long, value_name = "NODE=HOST:PORT", value_parser = pair)]
    dataplane: Vec<(String, String)>,
    /// The status page of a metalbond server; repeatable.
    #[arg(long, value_name = "HOST:PORT")]
    metalbond: Vec<String>,
    /// The status page of an edge; repeatable.
    #[arg(long, value_name = "HOST:PORT")]
    edge: Vec<String>,
    /// VNI in which public addresses are announced.
    #[arg(long, value_name = "VNI", default_value_t = 100)]
    public_vni: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Family {
    Ipv4,
    Ipv6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((node, address)) if !node.is_empty() && !address.is_empty() => {
            Ok((node.to_owned(), address.to_owned()))
        }
        _ => Err("write it as NODE=HOST:PORT, such as hv1=localhost:13371".to_owned()),
    }
}

/// Explains and prints. `regions` are those whose parts run on this machine.
///
/// # Errors
/// An end cannot be read, or the API server does not answer. The caller ends with [`EXIT_UNKNOWN`].
pub async fn run(args: Args, regions: &[Region]) -> Result<ExitCode> {
    let query = query(&args)?;
    let (client, endpoints) = connect(&args, regions).await?;
    let vni = Vni::new(args.public_vni)
        .with_context(|| format!("--public-vni {}: a VNI has 24 bits", args.public_vni))?;
    let mut snapshot = gather::snapshot(&client, &endpoints, Some(vni)).await?;
    let mut paths = vec![follow(&endpoints, &mut snapshot, &query).await];
    if args.both_ways {
        paths.push(follow(&endpoints, &mut snapshot, &query.reversed()).await);
    }
    let text = match args.output {
        Output::Table => render::table(&paths),
        Output::Json => serde_json::to_string_pretty(&render::json(&paths))?,
    };
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(ExitCode::from(exit_code(&paths)))
}

/// Explains, asks the data planes what the explanation would like to know, and explains again.
async fn follow(endpoints: &Endpoints, snapshot: &mut Snapshot, query: &Query) -> Path {
    let (mut path, mut questions) = explain_and_ask(snapshot, query);
    for _ in 0..ROUNDS_MAX {
        if questions.is_empty() {
            break;
        }
        gather::rehearse(endpoints, snapshot, questions).await;
        (path, questions) = explain_and_ask(snapshot, query);
    }
    path
}

/// The worst of all directions.
fn exit_code(paths: &[Path]) -> u8 {
    let is_lost = |path: &Path| match path.verdict {
        Verdict::DoesNotArrive | Verdict::AnswerIsLost => true,
        Verdict::Arrives | Verdict::Unknown => false,
    };
    if paths.iter().any(is_lost) {
        1
    } else if paths.iter().any(|path| path.verdict == Verdict::Unknown) {
        EXIT_UNKNOWN
    } else {
        0
    }
}

fn query(args: &Args) -> Result<Query> {
    let ports = args.port.or(args.source_port);
    if let (Some(Protocol::Icmp | Protocol::Icmpv6), Some(_)) = (args.protocol, ports) {
        bail!("--protocol icmp has no ports; leave --port and --source-port away");
    }
    Ok(Query {
        from: End::parse(&args.from, &args.namespace)?,
        to: End::parse(&args.to, &args.namespace)?,
        protocol: args.protocol,
        port: args.port,
        source_port: args.source_port,
        family: args.family.map(|family| match family {
            Family::Ipv4 => IpFamily::IPv4,
            Family::Ipv6 => IpFamily::IPv6,
        }),
    })
}

/// The API server, and the parts that can be asked.
async fn connect(args: &Args, regions: &[Region]) -> Result<(kube::Client, Endpoints)> {
    let lab = match &args.lab {
        None => None,
        Some(name) => {
            let found = regions.iter().find(|region| region.name == *name);
            let region = found.with_context(|| {
                let names: Vec<&str> = regions.iter().map(|r| r.name.as_str()).collect();
                format!(
                    "--lab {name}: no such lab is up (there are: {}); see: openkcm lab status",
                    names.join(", ")
                )
            })?;
            Some(region)
        }
    };
    let file = args
        .kubeconfig
        .clone()
        .or_else(|| lab.map(|region| region.kubeconfig.clone()));
    let mut config = match file {
        Some(path) => {
            let read = Kubeconfig::read_from(&path);
            let read = read.with_context(|| format!("cannot read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context(
            "no kubeconfig; give --kubeconfig, set KUBECONFIG, or name a lab with --lab",
        )?,
    };
    config.connect_timeout = Some(std::time::Duration::from_secs(5));
    let url = config.cluster_url.to_string();
    let here = |region: &&Region| url.trim_end_matches('/') == region.api_url.trim_end_matches('/');
    let region = lab.or_else(|| regions.iter().find(here));
    let mut endpoints = region.map_or_else(Endpoints::default, |r| r.endpoints.clone());
    add(args, &mut endpoints);
    Ok((kube::Client::try_from(config)?, endpoints))
}

/// What was named on the command line comes in addition; a node named there replaces the one that was found.
fn add(args: &Args, endpoints: &mut Endpoints) {
    let plain = |address: &str| Endpoint {
        address: authority(address).to_owned(),
        netns: None,
    };
    for (node, address) in &args.dataplane {
        endpoints.dataplanes.retain(|(known, _)| known != node);
        endpoints.dataplanes.push((node.clone(), plain(address)));
    }
    for address in &args.metalbond {
        endpoints.servers.push((address.clone(), plain(address)));
    }
    for address in &args.edge {
        endpoints.edges.push((address.clone(), plain(address)));
    }
}

/// The addresses of status pages are often at hand as URLs.
fn authority(text: &str) -> &str {
    let rest = text.strip_prefix("http://").unwrap_or(text);
    rest.trim_end_matches('/')
}
