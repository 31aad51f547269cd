//! What an edge shows: one JSON document, and the same as metrics.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::counters::{DropReason, Figures, Path};
use crate::table::{Ignored, Routes, Row};

/// Routes on the status page; metrics count all of them.
pub const ROWS_MAX: usize = 10_000;

/// The document at `/status.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Tunnel address.
    pub address: Ipv6Addr,
    /// Network device.
    pub device: String,
    /// Largest packet of machines, bytes.
    pub mtu: u16,
    /// The region's public addresses.
    pub public_prefixes: Vec<String>,
    /// Default routes announced now.
    pub announced: Vec<String>,
    /// metalbond servers.
    pub servers: Vec<Server>,
    /// Routes in use; `routes` shows the first ones.
    pub routes_total: usize,
    /// Public addresses and where they go.
    pub routes: Vec<Route>,
    /// Announcements that are not used, by reason.
    pub ignored: Vec<Count>,
    /// Packets by path.
    pub paths: Vec<PathCount>,
    /// Packets dropped, by reason.
    pub drops: Vec<DropCount>,
    /// The device's driver.
    pub driver: Vec<Count>,
}

/// A metalbond server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// As configured.
    pub address: String,
    /// Whether there is a session.
    pub established: bool,
    /// Sessions so far.
    pub sessions: u64,
}

/// A public prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The prefix.
    pub prefix: String,
    /// Next hops.
    pub hops: Vec<Hop>,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// Underlay address.
    pub address: Ipv6Addr,
    /// First port and one past the last, if it owns ports only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<[u16; 2]>,
}

/// A named number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// What is counted.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// Traffic of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathCount {
    /// Which path.
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Bytes of the inner packets.
    pub bytes: u64,
}

/// Drops for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// Why.
    pub name: String,
    /// Packets dropped in silence.
    pub dropped: u64,
    /// Packets dropped whose sender was told.
    pub answered: u64,
}

/// The routes for the page.
#[must_use]
pub fn routes(routes: &Routes) -> Vec<Route> {
    let hop = |(address, ports): (Ipv6Addr, Option<net::PortRange>)| Hop {
        address,
        ports: ports.map(|range| [range.first(), range.end()]),
    };
    let route = |Row { prefix, hops }: Row| Route {
        prefix: prefix.to_string(),
        hops: hops.into_iter().map(hop).collect(),
    };
    routes.rows(ROWS_MAX).into_iter().map(route).collect()
}

/// Why announcements are not used.
#[must_use]
pub fn ignored(routes: &Routes) -> Vec<Count> {
    let count = |(reason, count): (Ignored, u64)| Count {
        name: reason.name().to_owned(),
        count,
    };
    routes.ignored().map(count).collect()
}

/// All paths.
#[must_use]
pub fn paths(figures: &Figures) -> Vec<PathCount> {
    let count = |path: Path| PathCount {
        name: path.name().to_owned(),
        packets: figures.packets(path),
        bytes: figures.bytes(path),
    };
    Path::ALL.into_iter().map(count).collect()
}

/// All reasons.
#[must_use]
pub fn drops(figures: &Figures) -> Vec<DropCount> {
    let count = |reason: DropReason| DropCount {
        name: reason.name().to_owned(),
        dropped: figures.dropped(reason),
        answered: figures.answered(reason),
    };
    DropReason::ALL.into_iter().map(count).collect()
}

/// The figures in the text format of Prometheus.
pub fn render_metrics(status: &Status, out: &mut String) {
    let Status {
        address: _,
        device: _,
        mtu: _,
        public_prefixes: _,
        announced,
        servers,
        routes_total,
        routes: _,
        ignored,
        paths,
        drops,
        driver,
    } = status;
    let established = servers.iter().filter(|server| server.established).count();
    let sessions: u64 = servers.iter().map(|server| server.sessions).sum();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "openkcm_edge_routes {routes_total}");
    let _ = writeln!(out, "openkcm_edge_default_routes {}", announced.len());
    let _ = writeln!(out, "openkcm_edge_servers_established {established}");
    let _ = writeln!(out, "openkcm_edge_sessions_total {sessions}");
    for Count { name, count } in ignored {
        let _ = writeln!(
            out,
            "openkcm_edge_routes_ignored_total{{reason=\"{name}\"}} {count}"
        );
    }
    for PathCount {
        name,
        packets,
        bytes,
    } in paths
    {
        let _ = writeln!(
            out,
            "openkcm_edge_packets_total{{path=\"{name}\"}} {packets}"
        );
        let _ = writeln!(out, "openkcm_edge_bytes_total{{path=\"{name}\"}} {bytes}");
    }
    for DropCount {
        name,
        dropped,
        answered,
    } in drops
    {
        for (told, count) in [("no", dropped), ("yes", answered)] {
            let _ = writeln!(
                out,
                "openkcm_edge_drops_total{{reason=\"{name}\",answered=\"{told}\"}} {count}"
            );
        }
    }
    for Count { name, count } in driver {
        let _ = writeln!(
            out,
            "openkcm_edge_device_total{{counter=\"{name}\"}} {count}"
        );
    }
}
