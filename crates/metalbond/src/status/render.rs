//! The texts of the status pages. Pure: routes in, text out.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::PRODUCT_VERSION;
use crate::route::{Destination, IpVersion, NextHop, Route};

/// Routes shown on the HTML page; JSON and YAML have them all.
const HTML_ROUTES_MAX: usize = 10_000;

/// A connection on `/peers.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerRow {
    pub(crate) peer: String,
    pub(crate) direction: &'static str,
    pub(crate) node: String,
    pub(crate) state: &'static str,
    pub(crate) age_s: u64,
    pub(crate) paced: bool,
    pub(crate) routes: usize,
    pub(crate) held: usize,
    pub(crate) subscriptions: Vec<u32>,
    pub(crate) backlog: usize,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

/// VNI to destination (as the key text) to hops, each in display order.
type Tree = BTreeMap<u32, BTreeMap<String, Vec<NextHop>>>;

fn tree(routes: Vec<Route>) -> Tree {
    let mut tree = Tree::new();
    for Route {
        vni,
        destination,
        next_hop,
    } in routes
    {
        let destinations = tree.entry(vni).or_default();
        destinations
            .entry(destination_key(&destination))
            .or_default()
            .push(next_hop);
    }
    for hops in tree.values_mut().flat_map(BTreeMap::values_mut) {
        hops.sort_by_cached_key(|hop| (hop.addr.to_string(), *hop));
    }
    tree
}

/// The reference serialises a destination to JSON text before it uses it as a key.
fn destination_key(destination: &Destination) -> String {
    let version = match destination.version() {
        IpVersion::V4 => 4,
        IpVersion::V6 => 6,
    };
    format!("{{\"IPVersion\":{version},\"Prefix\":\"{destination}\"}}")
}

#[derive(Serialize)]
struct HopRow {
    #[serde(rename = "TargetAddress")]
    target_address: String,
    #[serde(rename = "TargetVNI")]
    target_vni: u32,
    #[serde(rename = "Type")]
    hop_type: i32,
    #[serde(rename = "NATPortRangeFrom")]
    from: u16,
    #[serde(rename = "NATPortRangeTo")]
    to: u16,
}

impl From<&NextHop> for HopRow {
    fn from(
        NextHop {
            addr,
            target_vni,
            hop_type,
        }: &NextHop,
    ) -> Self {
        let (from, to) = hop_type.ports();
        Self {
            target_address: addr.to_string(),
            target_vni: *target_vni,
            hop_type: hop_type.number(),
            from,
            to,
        }
    }
}

#[derive(Serialize)]
struct Page {
    date: String,
    vnet: BTreeMap<String, BTreeMap<String, Vec<HopRow>>>,
    #[serde(rename = "metalbondVersion")]
    version: &'static str,
}

/// `/routes.json`: keys sort as text.
pub(super) fn routes_json(date: &str, routes: Vec<Route>) -> String {
    let rows = |hops: Vec<NextHop>| hops.iter().map(HopRow::from).collect();
    let vnet = tree(routes).into_iter().map(|(vni, destinations)| {
        let destinations = destinations
            .into_iter()
            .map(|(key, hops)| (key, rows(hops)));
        (vni.to_string(), destinations.collect())
    });
    let page = Page {
        date: date.to_owned(),
        vnet: vnet.collect(),
        version: PRODUCT_VERSION,
    };
    // Text keys and plain numbers always serialise.
    serde_json::to_string_pretty(&page).unwrap_or_default()
}

/// `/routes.yaml`: VNIs sort as numbers.
pub(super) fn routes_yaml(date: &str, routes: Vec<Route>) -> String {
    let mut text = format!("date: \"{date}\"\n");
    let tree = tree(routes);
    text.push_str(if tree.is_empty() {
        "vnet: {}\n"
    } else {
        "vnet:\n"
    });
    for (vni, destinations) in &tree {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "    {vni}:");
        for (key, hops) in destinations {
            let _ = writeln!(text, "        '{key}':");
            for hop in hops.iter().map(HopRow::from) {
                let HopRow {
                    target_address,
                    target_vni,
                    hop_type,
                    from,
                    to,
                } = hop;
                let _ = write!(
                    text,
                    "            - targetaddress: {target_address}\n              \
                     targetvni: {target_vni}\n              type: {hop_type}\n              \
                     natportrangefrom: {from}\n              natportrangeto: {to}\n",
                );
            }
        }
    }
    let _ = writeln!(text, "metalbondversion: {PRODUCT_VERSION}");
    text
}

/// The page for people. All values are numbers and addresses, so nothing needs escaping.
pub(super) fn routes_html(date: &str, mut routes: Vec<Route>) -> String {
    let total = routes.len();
    routes.sort_unstable();
    routes.truncate(HTML_ROUTES_MAX);
    let mut destinations: BTreeMap<u32, BTreeMap<Destination, Vec<NextHop>>> = BTreeMap::new();
    for Route {
        vni,
        destination,
        next_hop,
    } in routes
    {
        destinations
            .entry(vni)
            .or_default()
            .entry(destination)
            .or_default()
            .push(next_hop);
    }
    let mut text = String::from(
        "<!DOCTYPE html><html><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" \
         content=\"5\"><title>metalbond routes</title></head><body>\n<h1>Routes</h1>\n<p>\
         <a href=\"/routes.json\">JSON</a> <a href=\"/routes.yaml\">YAML</a> \
         <a href=\"/peers.json\">peers</a> <a href=\"/metrics\">metrics</a></p>\n<p>VNIs:",
    );
    for vni in destinations.keys() {
        let _ = write!(text, " <a href=\"#vni{vni}\">{vni}</a>");
    }
    text.push_str("</p>\n");
    if total > HTML_ROUTES_MAX {
        let _ = writeln!(
            text,
            "<p>The first {HTML_ROUTES_MAX} of {total} routes are shown.</p>"
        );
    }
    for (vni, destinations) in &destinations {
        let _ = writeln!(text, "<h2 id=\"vni{vni}\">VNI {vni}</h2>\n<ul>");
        for (destination, hops) in destinations {
            html_destination(&mut text, destination, hops);
        }
        text.push_str("</ul>\n");
    }
    let _ = writeln!(
        text,
        "<footer>{PRODUCT_VERSION}, {date}</footer></body></html>"
    );
    text
}

fn html_destination(text: &mut String, destination: &Destination, hops: &[NextHop]) {
    let count = hops.len();
    let _ = writeln!(text, "<li>{destination} ({count} next hops)<table>");
    for NextHop {
        addr,
        target_vni,
        hop_type,
    } in hops
    {
        let _ = write!(text, "<tr><td>{addr}");
        if *target_vni != 0 {
            let _ = write!(text, " [{target_vni}]");
        }
        let _ = write!(text, "</td><td>{}</td><td>", hop_type.name());
        if let crate::route::HopType::Nat { from, to } = hop_type {
            let _ = write!(text, "{from}-{to}");
        }
        text.push_str("</td></tr>\n");
    }
    text.push_str("</table></li>\n");
}

/// `/peers.json`.
pub(super) fn peers_json(mut peers: Vec<PeerRow>) -> String {
    peers.sort_by(|a, b| a.peer.cmp(&b.peer));
    serde_json::to_string_pretty(&peers).unwrap_or_default()
}
