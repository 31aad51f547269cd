//! From a flow entry to rules.
//!
//! A rule may do for a packet only what software would do, byte for byte, so whatever software looks at must be in the pattern, or be known to
//! hold for every packet of the flow. What neither can be said of stays in software.

use super::rule::{Action as Do, Ipv4Match, Ipv6Match, Item, Rule};
use super::{Nic, Stays};
use crate::config::PortKind;
use crate::conntrack::TcpState;
use crate::flow::adjacency::Adjacency;
use crate::flow::key::{Transport, Tuple};
use crate::flow::{Action, Entry};
use crate::ipip::TUNNEL_LEN;
use crate::tables::Tables;
use crate::verdict::PortId;
use core::net::{IpAddr, Ipv6Addr};
use net::ethernet::{HEADER_LEN as ETHERNET_LEN, TYPE_IPV4, TYPE_IPV6};
use net::{Mac, icmp, ipv6, protocol};

/// Timeouts below this many seconds leave no time to read counters.
const TIMEOUT_MIN_S: u32 = 5;
/// Priority of flows, and of the exceptions to them.
const PRIORITY: u32 = 1;
const PRIORITY_EXCEPTION: u32 = 0;

/// A decided entry and what belongs to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decided<'a> {
    pub entry: &'a Entry,
    /// What packets show when they leave.
    pub leaves: Tuple,
    /// The tunnel of an entry that encapsulates.
    pub tunnel: Option<&'a Adjacency>,
    pub tcp: TcpState,
    pub timeout_s: u32,
}

/// Where packets of an entry come in.
enum From {
    Machine(PortId),
    /// With the outer destination.
    Tunnel(Ipv6Addr),
}

/// The rules that do for the packets of an entry what software does.
pub(crate) fn translate(
    tables: &Tables,
    nic: &Nic,
    decided: &Decided<'_>,
) -> Result<Vec<Rule>, Stays> {
    let Decided {
        entry, timeout_s, ..
    } = *decided;
    check_flow(decided)?;
    if timeout_s < TIMEOUT_MIN_S {
        return Err(Stays::ShortTimeout);
    }
    let from = match entry.ingress.underlay_slot() {
        None => From::Machine(PortId(entry.ingress.number())),
        Some(slot) => {
            let part = tables.underlay.key_at(slot).ok_or(Stays::OtherPort)?;
            From::Tunnel(part.on(tables.settings.host))
        }
    };
    let actions = actions(tables, nic, decided, &from)?;
    let mut rules = Vec::new();
    for port in ingress_ports(tables, nic, &from) {
        if tables.is_capturing(port) {
            return Err(Stays::Captured);
        }
        if may_not_fit(nic, port, decided.tunnel, &from) {
            return Err(Stays::MayNotFit);
        }
        let rule = |ttl, priority, actions| Rule {
            port,
            transfer: true,
            priority,
            pattern: pattern(&from, entry, ttl),
            actions,
        };
        if tables.settings.decrement_hops {
            // A packet that may not travel further is answered by software.
            for spent in [0, 1] {
                rules.push(rule(Some(spent), PRIORITY_EXCEPTION, vec![Do::Software]));
            }
        }
        rules.push(rule(None, PRIORITY, actions.clone()));
    }
    if rules.is_empty() {
        return Err(Stays::OtherPort);
    }
    Ok(rules)
}

/// Whether rules can express what becomes of the flow.
fn check_flow(decided: &Decided<'_>) -> Result<(), Stays> {
    let Decided {
        entry, leaves, tcp, ..
    } = *decided;
    let shows = entry.key.tuple();
    if entry.has(Entry::FAMILY) {
        return Err(Stays::FamilyChange);
    }
    if entry.has(Entry::METERED) {
        return Err(Stays::RateLimit);
    }
    match shows.transport {
        Transport::Tcp if tcp != TcpState::Established => Err(Stays::Handshake),
        Transport::Echo { .. } if shows.source.is_ipv6() => Err(Stays::EchoIpv6),
        Transport::Echo { .. } if shows.source_port != leaves.source_port => {
            Err(Stays::EchoIdentifier)
        }
        Transport::Tcp | Transport::Udp | Transport::Echo { .. } => Ok(()),
    }
}

/// Ports of the NIC where packets of the flow may come in: tunnelled ones use either uplink.
fn ingress_ports(tables: &Tables, nic: &Nic, from: &From) -> Vec<PortId> {
    let candidates: Vec<PortId> = match from {
        From::Machine(port) => vec![*port],
        From::Tunnel(_) => {
            let ports = (0..).map(PortId).zip(tables.ports.iter());
            let uplinks = ports.filter(|(_, port)| matches!(port.kind, PortKind::Uplink(_)));
            uplinks.map(|(number, _)| number).collect()
        }
    };
    let ours = candidates.into_iter();
    ours.filter(|port| nic.mtu(*port).is_some()).collect()
}

/// Rules cannot match lengths, so that no packet of the port may be too long.
fn may_not_fit(nic: &Nic, port: PortId, tunnel: Option<&Adjacency>, from: &From) -> bool {
    let Some(tunnel) = tunnel else {
        return false;
    };
    let around = match from {
        From::Machine(_) => 0,
        From::Tunnel(_) => ipv6::HEADER_LEN as u16,
    };
    nic.mtu(port)
        .is_none_or(|mtu| mtu.saturating_sub(around) > tunnel.inner_max)
}

fn pattern(from: &From, entry: &Entry, ttl: Option<u8>) -> Vec<Item> {
    let shows = entry.key.tuple();
    let mut pattern = Vec::with_capacity(5);
    match from {
        From::Machine(_) => pattern.push(Item::Ethernet {
            ethertype: if shows.source.is_ipv6() {
                TYPE_IPV6
            } else {
                TYPE_IPV4
            },
        }),
        From::Tunnel(destination) => {
            pattern.push(Item::Ethernet {
                ethertype: TYPE_IPV6,
            });
            pattern.push(Item::Ipv6(Ipv6Match {
                destination: Some((*destination, 128)),
                next_header: Some(if shows.source.is_ipv6() {
                    protocol::IPV6
                } else {
                    protocol::IPV4
                }),
                // A relayed packet keeps its outer header but for what is set, and what we send is unmarked.
                unmarked: entry.action == Action::Encap,
                ..Ipv6Match::default()
            }));
        }
    }
    let is_v6 = shows.source.is_ipv6();
    let following = match shows.transport {
        Transport::Tcp => protocol::TCP,
        Transport::Udp => protocol::UDP,
        Transport::Echo { .. } if is_v6 => protocol::ICMPV6,
        Transport::Echo { .. } => protocol::ICMP,
    };
    match (shows.source, shows.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => pattern.push(Item::Ipv4(Ipv4Match {
            source,
            destination,
            protocol: following,
            ttl,
        })),
        (IpAddr::V6(source), IpAddr::V6(destination)) => pattern.push(Item::Ipv6(Ipv6Match {
            source: Some(source),
            destination: Some((destination, 128)),
            next_header: Some(following),
            hop_limit: ttl,
            unmarked: false,
        })),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
    let (source, destination) = (shows.source_port, shows.destination_port);
    pattern.push(match shows.transport {
        Transport::Tcp => Item::Tcp {
            source,
            destination,
        },
        Transport::Udp => Item::Udp {
            source,
            destination,
        },
        Transport::Echo { request } => Item::Echo {
            kind: if request {
                icmp::ECHO_REQUEST
            } else {
                icmp::ECHO_REPLY
            },
            identifier: source,
        },
    });
    pattern
}

fn actions(
    tables: &Tables,
    nic: &Nic,
    decided: &Decided<'_>,
    from: &From,
) -> Result<Vec<Do>, Stays> {
    let Decided {
        entry,
        leaves,
        tunnel,
        timeout_s,
        ..
    } = decided;
    let mut changes = translation(&entry.key.tuple(), leaves);
    if tables.settings.decrement_hops {
        changes.push(Do::DecrementTtl);
    }
    let mut actions = vec![
        Do::Count,
        Do::Age {
            timeout_s: *timeout_s,
        },
    ];
    let to = match (from, entry.action, tunnel) {
        (From::Machine(_), Action::Encap, Some(tunnel)) => {
            actions.append(&mut changes);
            actions.push(Do::RawDecap(ETHERNET_LEN));
            actions.push(Do::RawEncap(tunnel.header.to_vec()));
            tunnel.port
        }
        (From::Tunnel(_), Action::Encap, Some(tunnel)) => {
            if !changes.is_empty() {
                return Err(Stays::InsideTunnel);
            }
            let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = tunnel.header;
            actions.extend([
                Do::SetDestinationMac(Mac([d0, d1, d2, d3, d4, d5])),
                Do::SetSourceMac(Mac([s0, s1, s2, s3, s4, s5])),
                Do::SetIpv6Source(tunnel.source()),
                Do::SetIpv6Destination(tunnel.destination()),
                Do::SetTtl(tunnel.header[21]),
            ]);
            tunnel.port
        }
        (_, Action::Deliver, _) => {
            let to = PortId(entry.target as u16);
            let port = tables.port(to).ok_or(Stays::OtherPort)?;
            match from {
                From::Machine(_) => actions.extend([
                    Do::SetDestinationMac(port.learned.mac()),
                    Do::SetSourceMac(port.mac),
                ]),
                From::Tunnel(_) => {
                    let header = port.delivery_header(entry.key.is_v6());
                    actions.push(Do::RawDecap(TUNNEL_LEN));
                    actions.push(Do::RawEncap(header.to_vec()));
                }
            }
            actions.append(&mut changes);
            to
        }
        (_, Action::Undecided | Action::Encap, _) => return Err(Stays::OtherPort),
    };
    if nic.mtu(to).is_none() {
        return Err(Stays::OtherPort);
    }
    actions.push(Do::Port(to));
    Ok(actions)
}

/// The changes of addresses and ports. Families are the same, and identifiers of echoes do not change.
fn translation(shows: &Tuple, leaves: &Tuple) -> Vec<Do> {
    let mut changes = Vec::new();
    if let IpAddr::V4(source) = leaves.source
        && leaves.source != shows.source
    {
        changes.push(Do::SetIpv4Source(source));
    }
    if let IpAddr::V4(destination) = leaves.destination
        && leaves.destination != shows.destination
    {
        changes.push(Do::SetIpv4Destination(destination));
    }
    if leaves.source_port != shows.source_port {
        changes.push(Do::SetSourcePort(leaves.source_port));
    }
    if leaves.destination_port != shows.destination_port {
        changes.push(Do::SetDestinationPort(leaves.destination_port));
    }
    changes
}
