//! Values of the command line: their types, and how they are read.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// Tables of a virtual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VniKind {
    Ipv4,
    Ipv6,
    Both,
}

pub(crate) fn vni_type(text: &str) -> Result<VniKind, String> {
    match text.to_ascii_lowercase().as_str() {
        "0" | "ipv4" => Ok(VniKind::Ipv4),
        "1" | "ipv6" => Ok(VniKind::Ipv6),
        "2" | "both" => Ok(VniKind::Both),
        _ => Err("one of ipv4 (0), ipv6 (1), both (2)".to_owned()),
    }
}

/// Which shares of NAT addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NatKind {
    Any,
    Local,
    Neighbor,
}

pub(crate) fn nat_type(text: &str) -> Result<NatKind, String> {
    match text.to_ascii_lowercase().as_str() {
        "0" | "any" => Ok(NatKind::Any),
        "1" | "local" => Ok(NatKind::Local),
        "2" | "neigh" | "neighbor" => Ok(NatKind::Neighbor),
        _ => Err("one of any (0), local (1), neighbor (2)".to_owned()),
    }
}

/// Which packets a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

pub(crate) fn direction(text: &str) -> Result<Direction, String> {
    match text.to_ascii_lowercase().as_str() {
        "0" | "ingress" => Ok(Direction::Ingress),
        "1" | "egress" => Ok(Direction::Egress),
        _ => Err("ingress (0) or egress (1)".to_owned()),
    }
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Drop,
    Accept,
}

pub(crate) fn action(text: &str) -> Result<Action, String> {
    match text.to_ascii_lowercase().as_str() {
        "0" | "drop" | "deny" => Ok(Action::Drop),
        "1" | "accept" | "allow" => Ok(Action::Accept),
        _ => Err("drop (deny, 0) or accept (allow, 1)".to_owned()),
    }
}

/// Transport of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Icmp,
    Tcp,
    Udp,
}

pub(crate) fn transport(text: &str) -> Result<Transport, String> {
    match text.to_ascii_lowercase().as_str() {
        "icmp" | "1" => Ok(Transport::Icmp),
        "tcp" | "6" => Ok(Transport::Tcp),
        "udp" | "17" => Ok(Transport::Udp),
        _ => Err("icmp, tcp or udp".to_owned()),
    }
}

/// A port that a load balancer serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LbPort {
    pub(crate) protocol: proto::dpdk::Protocol,
    pub(crate) port: u16,
}

impl FromStr for LbPort {
    type Err = String;

    fn from_str(text: &str) -> Result<LbPort, String> {
        let parse = || {
            let (protocol, port) = text.split_once('/')?;
            let protocol = match protocol.to_ascii_lowercase().as_str() {
                "tcp" | "6" => proto::dpdk::Protocol::Tcp,
                "udp" | "17" => proto::dpdk::Protocol::Udp,
                _ => return None,
            };
            let port = port.parse().ok()?;
            Some(LbPort { protocol, port })
        };
        parse().ok_or_else(|| "not a port such as TCP/443".to_owned())
    }
}

/// Numbers with unit `ms`, `s` or `m`, such as `1m30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || "a number with a unit, such as 500ms, 4s or 1m".to_owned();
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number: u32 = number.parse().map_err(|_| invalid())?;
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return Err(invalid()),
        };
        total = unit
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(invalid)?;
        rest = tail;
    }
    if total.is_zero() {
        Err(invalid())
    } else {
        Ok(total)
    }
}

/// Prefixes as the user wrote them: the service decides about host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PrefixText {
    pub(crate) address: IpAddr,
    pub(crate) length: u8,
}

impl FromStr for PrefixText {
    type Err = String;

    fn from_str(text: &str) -> Result<PrefixText, String> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let length: u8 = length.parse().ok()?;
            let max = if address.is_ipv4() { 32 } else { 128 };
            (length <= max).then_some(PrefixText { address, length })
        };
        parse().ok_or_else(|| "not a prefix such as 10.1.0.0/24 or fd00::/64".to_owned())
    }
}

impl std::fmt::Display for PrefixText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}
