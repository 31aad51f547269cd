//! The outside world of a lab, computed like the rest of its topology: a namespace `internet` behind the routers. Pure.
//!
//! ```text
//!   internet ──192.0.2.0/30── r1 (edge-r1) ── hypervisors        203.0.113.1, 2001:db8:203::1: the internet's server
//!      └───────192.0.2.4/30── r2 (edge-r2) ── hypervisors        r1 ── r2: the way round, should one edge or uplink fail
//! ```
//!
//! Addresses come from the blocks for documentation (RFC 5737, RFC 3849): they belong to nobody, and no lab leaks them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::topology::{End, Link, Topology, UNDERLAY_MTU};

/// Name of the namespace's role.
pub const ROLE: &str = "internet";
/// The region's public addresses.
pub const PUBLIC_PREFIXES: [&str; 2] = ["198.51.100.0/24", "2001:db8:100::/64"];
/// The internet's server.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The internet's server.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 1);
/// Port of an edge's status page.
pub const EDGE_HTTP_PORT: u16 = 4713;
/// Metric of the ways round: worse than any the kernel gives by itself.
const BACKUP: &str = "metric 4096";

/// The tunnel address of a router's edge: in the router's part of the underlay, but no address of its kernel.
pub fn edge_address(topology: &Topology, router: u8) -> Ipv6Addr {
    let [a, b, c, ..] = topology.router_address(router).segments();
    Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0xe)
}

/// Both ends of the link to the internet: ours last.
fn transfer_v4(router: u8) -> [Ipv4Addr; 2] {
    let base = 4 * (router - 1);
    [1, 2].map(|n| Ipv4Addr::new(192, 0, 2, base + n))
}

fn transfer_v6(router: u8) -> [Ipv6Addr; 2] {
    [1, 2].map(|n| Ipv6Addr::new(0x2001, 0xdb8, 1, u16::from(router), 0, 0, 0, n))
}

/// A router's end of the link between the routers.
fn between_v4(router: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 128 + router)
}

fn between_v6(router: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0xff, 0, 0, 0, u16::from(router))
}

/// The veth pairs to the internet, and the one between two routers.
pub fn links(topology: &Topology) -> Vec<Link> {
    let end = |role: &str, name: &str, mac: String, v4: Ipv4Addr, v4_len: u8, v6: Ipv6Addr| End {
        netns: Some(topology.netns(role)),
        name: name.to_owned(),
        mac,
        addresses: vec![format!("{v4}/{v4_len}"), format!("{v6}/64")],
        bridge: None,
    };
    let mut links: Vec<Link> = (1..=topology.routers)
        .map(|j| {
            let router = format!("r{j}");
            let ([v4_left, v4_right], [v6_left, v6_right]) = (transfer_v4(j), transfer_v6(j));
            let left = topology.mac(4, j, 1);
            let right = topology.mac(4, j, 2);
            Link {
                left: end(ROLE, &router, left, v4_left, 30, v6_left),
                right: end(&router, "inet0", right, v4_right, 30, v6_right),
                mtu: 1500,
            }
        })
        .collect();
    if topology.routers == 2 {
        let [left, right] = [1, 2].map(|j| {
            let (v4, v6) = (between_v4(j), between_v6(j));
            end(&format!("r{j}"), "peer0", topology.mac(5, 1, j), v4, 29, v6)
        });
        let mtu = UNDERLAY_MTU;
        links.push(Link { left, right, mtu });
    }
    links
}

/// Lines for `ip -batch` in each namespace, after the links exist.
pub fn batches(topology: &Topology) -> Vec<(String, Vec<String>)> {
    let mut all = vec![(topology.netns(ROLE), internet(topology))];
    for j in 1..=topology.routers {
        all.push((topology.netns(&format!("r{j}")), router(topology, j)));
    }
    all
}

/// The internet reaches the region through all routers; flows are spread, and a router whose link is down is left out.
fn internet(topology: &Topology) -> Vec<String> {
    let mut lines = vec![
        format!("addr add {SERVER_V4}/32 dev lo"),
        format!("addr add {SERVER_V6}/128 dev lo nodad"),
    ];
    let [v4, v6] = PUBLIC_PREFIXES;
    let mut hops = [String::new(), String::new()];
    for j in 1..=topology.routers {
        let ([_, via_v4], [_, via_v6]) = (transfer_v4(j), transfer_v6(j));
        let [for_v4, for_v6] = &mut hops;
        for_v4.push_str(&format!(" nexthop via {via_v4} dev r{j}"));
        for_v6.push_str(&format!(" nexthop via {via_v6} dev r{j}"));
    }
    let [for_v4, for_v6] = hops;
    lines.push(format!("route add {v4} src {SERVER_V4}{for_v4}"));
    lines.push(format!("route add {v6} src {SERVER_V6}{for_v6}"));
    lines
}

/// A router's ways: the internet by its own link; and by the other router what its own edge or links do not carry at the moment.
fn router(topology: &Topology, j: u8) -> Vec<String> {
    let ([via_v4, _], [via_v6, _]) = (transfer_v4(j), transfer_v6(j));
    let underlay = topology.underlay_prefix();
    let mut lines = vec![
        format!("route add default via {via_v4} dev inet0"),
        format!("route add default via {via_v6} dev inet0"),
        // Tunnel packets to an edge that is down must not follow the default route.
        format!("route add unreachable {underlay} {BACKUP}"),
    ];
    if topology.routers != 2 {
        for prefix in PUBLIC_PREFIXES {
            lines.push(format!("route add unreachable {prefix} {BACKUP}"));
        }
        return lines;
    }
    let other = 3 - j;
    let (v4, v6) = (between_v4(other), between_v6(other));
    let [public_v4, public_v6] = PUBLIC_PREFIXES;
    let other_router = topology.router_address(other);
    lines.extend([
        format!("route add default via {v4} dev peer0 {BACKUP}"),
        format!("route add default via {v6} dev peer0 {BACKUP}"),
        format!("route add {public_v4} via {v4} dev peer0 {BACKUP}"),
        format!("route add {public_v6} via {v6} dev peer0 {BACKUP}"),
        format!("route add {other_router}/64 via {v6} dev peer0"),
    ]);
    for i in 1..=topology.hypervisors {
        let hypervisor = topology.underlay_address(i);
        lines.push(format!(
            "route add {hypervisor}/64 via {v6} dev peer0 {BACKUP}"
        ));
    }
    lines
}

/// Kernel settings of a namespace beside those that all have.
pub fn settings(topology: &Topology, namespace: &str) -> &'static [&'static str] {
    const ROUTER: &[&str] = &[
        "net.ipv6.conf.all.forwarding=1",
        "net.ipv4.ip_forward=1",
        "net.ipv4.conf.all.ignore_routes_with_linkdown=1",
        "net.ipv6.conf.default.ignore_routes_with_linkdown=1",
        "net.ipv6.conf.all.ignore_routes_with_linkdown=1",
    ];
    const INTERNET: &[&str] = &[
        "net.ipv4.fib_multipath_hash_policy=1",
        "net.ipv6.fib_multipath_hash_policy=1",
        "net.ipv4.conf.all.ignore_routes_with_linkdown=1",
        "net.ipv6.conf.default.ignore_routes_with_linkdown=1",
        "net.ipv6.conf.all.ignore_routes_with_linkdown=1",
    ];
    let is_router = topology
        .router_names()
        .any(|router| topology.netns(&router) == namespace);
    if is_router {
        ROUTER
    } else if namespace == topology.netns(ROLE) {
        INTERNET
    } else {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfer_networks_are_apart_and_hold_both_ends() {
        assert_eq!(
            (transfer_v4(1), transfer_v4(2)),
            (
                ["192.0.2.1", "192.0.2.2"].map(|a| a.parse().unwrap()),
                ["192.0.2.5", "192.0.2.6"].map(|a| a.parse().unwrap())
            )
        );
    }

    #[test]
    fn an_edge_has_an_address_that_no_kernel_has() {
        let topology = Topology::new("x", 1, 2).unwrap();
        let lines: Vec<String> = topology
            .underlay_batches()
            .into_iter()
            .chain(batches(&topology))
            .flat_map(|(_, lines)| lines)
            .filter(|line| line.starts_with("addr"))
            .collect();
        for j in 1..=2 {
            let address = edge_address(&topology, j).to_string();
            assert!(lines.iter().all(|line| !line.contains(&address)));
        }
        assert_ne!(edge_address(&topology, 1), edge_address(&topology, 2));
    }

    #[test]
    fn one_router_alone_has_no_way_round() {
        let topology = Topology::new("x", 2, 1).unwrap();
        assert_eq!(links(&topology).len(), 1);
        assert!(router(&topology, 1).iter().all(|l| !l.contains("peer0")));
    }
}
