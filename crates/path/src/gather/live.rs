//! Asking the parts that carry packets and routes. All of it is reading.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use metalnet::dpservice;
use metalnet::plan::observed::Observed;
use net::{PortRange, Vni};
use proto::inspection;
use proto::inspection::explain_request::Ingress;
use proto::inspection::inspection_client::InspectionClient;
use proto::inspection::verdict::Kind;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Endpoint;
use crate::page::fetch;
use crate::snapshot::{Action, Entrance, Question, Rehearsal, Route, RouteKind};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a part may take to answer in all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to an endpoint, from inside its namespace if it names one.
async fn connect(endpoint: &Endpoint) -> Result<TcpStream> {
    let address = endpoint.address.clone();
    let open = move || -> std::io::Result<std::net::TcpStream> {
        let mut last = std::io::Error::other("the name has no address");
        for address in address.to_socket_addrs()? {
            match std::net::TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let stream = match &endpoint.netns {
        Some(netns) => machine::provider::netns::enter(netns, open).await?,
        None => tokio::task::spawn_blocking(open).await?,
    };
    let stream = stream.with_context(|| format!("no connection to {}", endpoint.address))?;
    Ok(TcpStream::from_std(stream)?)
}

/// A channel to a dpservice.
async fn channel(endpoint: &Endpoint) -> Result<tonic::transport::Channel> {
    let connect = {
        let endpoint = endpoint.clone();
        move |_| {
            let endpoint = endpoint.clone();
            async move {
                let stream = connect(&endpoint).await;
                stream
                    .map(TokioIo::new)
                    .map_err(|error| std::io::Error::other(format!("{error:#}")))
            }
        }
    };
    let channel = dpservice::endpoint(&endpoint.address)?
        .connect_with_connector(tower::service_fn(connect))
        .await
        .map_err(|error| anyhow::anyhow!("{}", source(&error)))?;
    Ok(channel)
}

/// Everything that a dpservice holds.
pub(super) async fn inventory(endpoint: &Endpoint) -> Result<Observed> {
    let ask = async { Ok(dpservice::inventory(channel(endpoint).await?).await?) };
    match timeout(ANSWER_TIMEOUT, ask).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
    }
}

/// The cause that a person can do something about: the last one.
fn source(error: &tonic::transport::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// The routes of a metalbond server.
pub(super) async fn routes(endpoint: &Endpoint) -> Result<Vec<Route>> {
    let page: Page = page(endpoint, "/routes.json").await?;
    let mut routes = Vec::new();
    for (vni, destinations) in page.vnet {
        let Some(vni) = Vni::new(vni) else { continue };
        for (key, hops) in destinations {
            let Some(prefix) = prefix_of(&key) else {
                continue;
            };
            for hop in hops {
                let Some(kind) = kind_of(&hop) else { continue };
                routes.push(Route {
                    vni,
                    prefix,
                    next_hop: hop.target_address,
                    kind,
                });
            }
        }
    }
    Ok(routes)
}

/// `/routes.json` as the servers of this protocol publish it.
#[derive(Deserialize)]
struct Page {
    vnet: BTreeMap<u32, BTreeMap<String, Vec<Hop>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Hop {
    target_address: Ipv6Addr,
    #[serde(rename = "Type")]
    kind: i32,
    #[serde(rename = "NATPortRangeFrom")]
    from: u16,
    #[serde(rename = "NATPortRangeTo")]
    to: u16,
}

/// The key is JSON text: `{"IPVersion":4,"Prefix":"10.0.0.1/32"}`.
fn prefix_of(key: &str) -> Option<net::Prefix> {
    let parsed: serde_json::Value = serde_json::from_str(key).ok()?;
    parsed["Prefix"].as_str()?.parse().ok()
}

fn kind_of(hop: &Hop) -> Option<RouteKind> {
    match hop.kind {
        0 => Some(RouteKind::Standard),
        1 => PortRange::new(hop.from, hop.to).map(RouteKind::Nat),
        2 => Some(RouteKind::Target),
        _ => None,
    }
}

/// The state of an edge.
pub(super) async fn edge(endpoint: &Endpoint) -> Result<edge::status::Status> {
    page(endpoint, "/status.json").await
}

async fn page<T: DeserializeOwned>(endpoint: &Endpoint, path: &str) -> Result<T> {
    let ask = async { fetch(connect(endpoint).await?, &endpoint.address, path).await };
    let bytes = match timeout(ANSWER_TIMEOUT, ask).await {
        Ok(answer) => answer?,
        Err(_) => bail!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
    };
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{path} of {} cannot be read", endpoint.address))
}

// ---- rehearsals ------------------------------------------------------------------------------------------------------------

/// Asks a dpservice what it would do with a packet.
pub(super) async fn rehearse(endpoint: &Endpoint, question: &Question) -> Result<Rehearsal> {
    let ask = async {
        let mut client = InspectionClient::new(channel(endpoint).await?);
        let reply = client.explain(request(question)).await;
        match reply {
            Ok(reply) => answer(reply.into_inner()),
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                bail!("it is a dpservice without inspection")
            }
            Err(status) => bail!("{}", status.message()),
        }
    };
    match timeout(ANSWER_TIMEOUT, ask).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
    }
}

fn request(question: &Question) -> inspection::ExplainRequest {
    let Question {
        node: _,
        entrance,
        packet,
    } = question;
    let tuple = inspection::FlowTuple {
        source: packet.source.to_string(),
        destination: packet.destination.to_string(),
        protocol: u32::from(packet.protocol.number()),
        source_port: u32::from(packet.source_port),
        destination_port: u32::from(packet.destination_port),
    };
    inspection::ExplainRequest {
        ingress: Some(match entrance {
            Entrance::Interface(id) => Ingress::InterfaceId(id.clone()),
            Entrance::Underlay(address) => Ingress::Underlay(address.to_string()),
        }),
        packet: Some(inspection::explain_request::Packet::Tuple(tuple)),
        payload_length: 0,
        // A connection that is tracked already would hide what its filters say.
        ignore_connections: true,
    }
}

fn answer(reply: inspection::ExplainResponse) -> Result<Rehearsal> {
    let service = Some(reply.service).filter(|service| service != "none");
    let verdict = reply.verdict.context("an answer without verdict")?;
    let action = match verdict.kind() {
        Kind::Drop => Action::Drop(verdict.reason),
        Kind::Deliver => Action::Deliver(verdict.interface_id),
        Kind::Encapsulate => {
            let to = verdict.underlay_destination.parse();
            Action::Tunnel(to.context("a tunnel without end")?)
        }
        Kind::Reply => Action::Other("answer it itself".to_owned()),
        Kind::Transmit => Action::Other(format!("send it out of {}", verdict.device)),
    };
    Ok(Rehearsal {
        action,
        service: service.unwrap_or_default(),
    })
}
