//! Values as dpservice's messages carry them.

use std::net::IpAddr;
use std::str::FromStr;

use net::PortRange;
use proto::dpdk;

use crate::model::{Prefix, Uid, Vni};
use crate::plan::ops::DpError;
use crate::services::{Action, BalancedPort, Direction, Matching, Ports, Rule, Transport};

/// "Any" in ports, ICMP types and codes.
const ANY: i32 = -1;

/// Addresses travel as text in `bytes` fields.
pub(super) fn id(uid: &Uid) -> Vec<u8> {
    uid.as_str().as_bytes().to_vec()
}

pub(super) fn to_address(address: IpAddr) -> dpdk::IpAddress {
    let ipver = if address.is_ipv4() {
        dpdk::IpVersion::Ipv4
    } else {
        dpdk::IpVersion::Ipv6
    };
    dpdk::IpAddress {
        ipver: ipver.into(),
        address: address.to_string().into_bytes(),
    }
}

pub(super) fn to_prefix(prefix: &Prefix) -> dpdk::Prefix {
    dpdk::Prefix {
        ip: Some(to_address(prefix.address())),
        length: u32::from(prefix.len()),
        underlay_route: Vec::new(),
    }
}

pub(super) fn from_prefix(prefix: &dpdk::Prefix) -> Result<Prefix, DpError> {
    let ip: IpAddr = address(
        prefix.ip.as_ref().map_or(&[][..], |ip| &ip.address),
        "prefix",
    )?;
    let length = u8::try_from(prefix.length).ok();
    length
        .and_then(|length| Prefix::new(ip, length))
        .ok_or_else(|| unreadable("prefix length"))
}

pub(super) fn from_vni(vni: u32) -> Result<Vni, DpError> {
    Vni::new(vni).ok_or_else(|| unreadable("VNI"))
}

pub(super) fn address<A: FromStr>(text: &[u8], what: &str) -> Result<A, DpError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| unreadable(what))
}

pub(super) fn optional<A: FromStr>(
    text: &[u8],
    unset: fn(&A) -> bool,
) -> Result<Option<A>, DpError> {
    if text.is_empty() {
        return Ok(None);
    }
    address(text, "address").map(|address| Some(address).filter(|address| !unset(address)))
}

pub(super) fn unreadable(what: &str) -> DpError {
    DpError::Argument(format!("dpservice returned a {what} that cannot be read"))
}

pub(super) fn from_ports(first: u32, end: u32) -> Result<PortRange, DpError> {
    let ends = (u16::try_from(first), u16::try_from(end));
    match ends {
        (Ok(first), Ok(end)) => PortRange::new(first, end),
        _ => None,
    }
    .ok_or_else(|| unreadable("port range"))
}

pub(super) fn to_balanced(port: &BalancedPort) -> dpdk::LbPort {
    let protocol = match port.transport {
        Transport::Tcp => dpdk::Protocol::Tcp,
        Transport::Udp => dpdk::Protocol::Udp,
    };
    dpdk::LbPort {
        port: u32::from(port.port),
        protocol: protocol.into(),
    }
}

pub(super) fn from_balanced(port: &dpdk::LbPort) -> Result<BalancedPort, DpError> {
    let transport = match port.protocol() {
        dpdk::Protocol::Tcp => Transport::Tcp,
        dpdk::Protocol::Udp => Transport::Udp,
        _ => return Err(unreadable("protocol")),
    };
    let port = u16::try_from(port.port).map_err(|_| unreadable("port"))?;
    Ok(BalancedPort { transport, port })
}

pub(super) fn to_rule(id: &str, rule: &Rule) -> dpdk::FirewallRule {
    let Rule {
        direction,
        action,
        priority,
        source,
        destination,
        matching,
    } = rule;
    let direction = match direction {
        Direction::Ingress => dpdk::TrafficDirection::Ingress,
        Direction::Egress => dpdk::TrafficDirection::Egress,
    };
    let action = match action {
        Action::Accept => dpdk::FirewallAction::Accept,
        Action::Deny => dpdk::FirewallAction::Drop,
    };
    dpdk::FirewallRule {
        id: id.as_bytes().to_vec(),
        direction: direction.into(),
        action: action.into(),
        priority: u32::from(*priority),
        source_prefix: Some(to_prefix(source)),
        destination_prefix: Some(to_prefix(destination)),
        protocol_filter: Some(dpdk::ProtocolFilter {
            filter: to_filter(*matching),
        }),
    }
}

fn to_filter(matching: Matching) -> Option<dpdk::protocol_filter::Filter> {
    use dpdk::protocol_filter::Filter;
    let first = |ports: Ports| ports.map_or(ANY, |(first, _)| i32::from(first));
    let last = |ports: Ports| ports.map_or(ANY, |(_, last)| i32::from(last));
    let byte = |value: Option<u8>| value.map_or(ANY, i32::from);
    Some(match matching {
        Matching::Any => return None,
        Matching::Tcp {
            source,
            destination,
        } => Filter::Tcp(dpdk::TcpFilter {
            src_port_lower: first(source),
            src_port_upper: last(source),
            dst_port_lower: first(destination),
            dst_port_upper: last(destination),
        }),
        Matching::Udp {
            source,
            destination,
        } => Filter::Udp(dpdk::UdpFilter {
            src_port_lower: first(source),
            src_port_upper: last(source),
            dst_port_lower: first(destination),
            dst_port_upper: last(destination),
        }),
        Matching::Icmp { kind, code } => Filter::Icmp(dpdk::IcmpFilter {
            icmp_type: byte(kind),
            icmp_code: byte(code),
        }),
    })
}

/// `None` for a rule that we would never have written.
pub(super) fn from_rule(rule: &dpdk::FirewallRule) -> Option<Rule> {
    let filter = rule.protocol_filter.as_ref();
    Some(Rule {
        direction: match rule.direction() {
            dpdk::TrafficDirection::Ingress => Direction::Ingress,
            dpdk::TrafficDirection::Egress => Direction::Egress,
        },
        action: match rule.action() {
            dpdk::FirewallAction::Accept => Action::Accept,
            dpdk::FirewallAction::Drop => Action::Deny,
        },
        priority: u16::try_from(rule.priority).ok()?,
        source: from_prefix(rule.source_prefix.as_ref()?).ok()?,
        destination: from_prefix(rule.destination_prefix.as_ref()?).ok()?,
        matching: match filter.and_then(|filter| filter.filter.as_ref()) {
            None => Matching::Any,
            Some(filter) => from_filter(filter)?,
        },
    })
}

fn from_filter(filter: &dpdk::protocol_filter::Filter) -> Option<Matching> {
    use dpdk::protocol_filter::Filter;
    Some(match filter {
        Filter::Tcp(tcp) => Matching::Tcp {
            source: range(tcp.src_port_lower, tcp.src_port_upper)?,
            destination: range(tcp.dst_port_lower, tcp.dst_port_upper)?,
        },
        Filter::Udp(udp) => Matching::Udp {
            source: range(udp.src_port_lower, udp.src_port_upper)?,
            destination: range(udp.dst_port_lower, udp.dst_port_upper)?,
        },
        Filter::Icmp(icmp) => Matching::Icmp {
            kind: octet(icmp.icmp_type)?,
            code: octet(icmp.icmp_code)?,
        },
    })
}

fn range(first: i32, last: i32) -> Option<Ports> {
    if first == ANY {
        return Some(None);
    }
    let first = u16::try_from(first).ok()?;
    let last = if last == ANY {
        u16::MAX
    } else {
        u16::try_from(last).ok()?
    };
    Some(Some((first, last)))
}

fn octet(value: i32) -> Option<Option<u8>> {
    if value == ANY {
        return Some(None);
    }
    u8::try_from(value).ok().map(Some)
}
