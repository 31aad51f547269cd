//! Reading a packet: its ends, what it belongs to, and the port that says who owns a shared address.
//!
//! The hash is the same for both directions of a connection, and an ICMP error counts for the connection whose packet it quotes, so that
//! everything about a connection reaches one hypervisor.

use core::net::IpAddr;

use dataplane::flow_hash;
use net::ipv6::Upper;
use net::{Icmp, Icmpv6, Ipv4, Ipv6, icmp, protocol};

use crate::counters::DropReason;

/// What is needed of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Bytes of the packet, header included.
    pub length: u16,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// What it belongs to.
    pub flow: Flow,
    /// Whether an ICMP error may be sent about it: not about an error (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)), nor about a fragment that does
    /// not show what it is.
    pub answerable: bool,
}

/// What a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Of both ends and the protocol; the same in both directions.
    pub hash: u64,
    /// The port on the side of the packet's destination.
    pub port: Port,
}

/// A port or what stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// TCP or UDP port, or identifier of an echo.
    Known(u16),
    /// The protocol has none.
    Absent,
    /// A fragment. Even the first one counts as having none, so that all pieces take one way.
    Fragment,
}

/// Reads a packet of either family.
///
/// # Errors
/// Why it is not to be forwarded.
pub fn parse(bytes: &[u8]) -> Result<Inner, DropReason> {
    let inner = match bytes.first().map(|first| first >> 4) {
        Some(4) => parse_v4(bytes),
        Some(6) => parse_v6(bytes),
        Some(_) | None => Err(DropReason::Malformed),
    }?;
    if is_martian(inner.source) || is_martian(inner.destination) {
        return Err(DropReason::Martian);
    }
    Ok(inner)
}

/// Reads a packet that may be cut short, as errors quote it; its length is that of `bytes`.
pub fn parse_quoted(bytes: &[u8]) -> Option<Inner> {
    let (source, destination, ttl, quoted) = match bytes.first()? >> 4 {
        4 => {
            let view = Ipv4::new_embedded(bytes).ok()?;
            let quoted = quoted_v4(bytes)?;
            (
                IpAddr::V4(view.source()),
                view.destination().into(),
                view.ttl(),
                quoted,
            )
        }
        6 => {
            let view = Ipv6::new_embedded(bytes).ok()?;
            let quoted = quoted_v6(bytes)?;
            (
                IpAddr::V6(view.source()),
                view.destination().into(),
                view.hop_limit(),
                quoted,
            )
        }
        _ => return None,
    };
    let Quoted {
        ends: (_, (_, port)),
        protocol,
        ..
    } = quoted;
    if is_martian(source) || is_martian(destination) {
        return None;
    }
    Some(Inner {
        source,
        destination,
        length: u16::try_from(bytes.len()).ok()?,
        ttl,
        flow: Flow {
            hash: hash(quoted.ends, protocol),
            port: Port::Known(port),
        },
        answerable: quoted.answerable,
    })
}

fn parse_v4(bytes: &[u8]) -> Result<Inner, DropReason> {
    let view = Ipv4::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
    if view.has_source_route() {
        return Err(DropReason::SourceRoute);
    }
    let ends = (IpAddr::V4(view.source()), IpAddr::V4(view.destination()));
    let (flow, answerable) = if view.is_fragment() {
        fragment(ends, view.protocol())
    } else {
        transport(ends, view.protocol(), view.payload())?
    };
    Ok(Inner {
        source: ends.0,
        destination: ends.1,
        length: view.total_len(),
        ttl: view.ttl(),
        flow,
        answerable,
    })
}

fn parse_v6(bytes: &[u8]) -> Result<Inner, DropReason> {
    let view = Ipv6::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
    let ends = (IpAddr::V6(view.source()), IpAddr::V6(view.destination()));
    let (flow, answerable) = match view.upper().map_err(|_| DropReason::Malformed)? {
        Upper::Transport {
            protocol, bytes, ..
        } => transport(ends, protocol, bytes)?,
        Upper::Fragment { protocol, .. } => fragment(ends, protocol),
        Upper::SourceRoute => return Err(DropReason::SourceRoute),
        Upper::TooMany => return Err(DropReason::ExtensionHeaders),
    };
    Ok(Inner {
        source: ends.0,
        destination: ends.1,
        length: u16::try_from(usize::from(view.payload_len()) + net::ipv6::HEADER_LEN)
            .map_err(|_| DropReason::Malformed)?,
        ttl: view.hop_limit(),
        flow,
        answerable,
    })
}

fn fragment((source, destination): (IpAddr, IpAddr), protocol: u8) -> (Flow, bool) {
    let flow = Flow {
        hash: hash(((source, 0), (destination, 0)), protocol),
        port: Port::Fragment,
    };
    (flow, false)
}

fn transport(
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    payload: &[u8],
) -> Result<(Flow, bool), DropReason> {
    let of = |from, to, port, answerable| {
        let ends = ((source, from), (destination, to));
        let flow = Flow {
            hash: hash(ends, protocol),
            port,
        };
        Ok((flow, answerable))
    };
    match protocol {
        protocol::TCP | protocol::UDP => {
            let (from, to) = ports(payload).ok_or(DropReason::Malformed)?;
            of(from, to, Port::Known(to), true)
        }
        protocol::ICMP => {
            let message = Icmp::new_checked(payload).map_err(|_| DropReason::Malformed)?;
            let id = message.identifier();
            match message.kind() {
                icmp::ECHO_REQUEST | icmp::ECHO_REPLY => of(id, id, Port::Known(id), true),
                _ if message.is_error() => {
                    Ok(error(quoted_v4(message.body()), source, destination))
                }
                _ => of(0, 0, Port::Absent, false),
            }
        }
        protocol::ICMPV6 => {
            let message = Icmpv6::new_checked(payload).map_err(|_| DropReason::Malformed)?;
            let id = message.identifier();
            match message.kind() {
                icmp::V6_ECHO_REQUEST | icmp::V6_ECHO_REPLY => of(id, id, Port::Known(id), true),
                _ if message.is_error() => {
                    Ok(error(quoted_v6(message.body()), source, destination))
                }
                _ => of(0, 0, Port::Absent, false),
            }
        }
        _ => of(0, 0, Port::Absent, true),
    }
}

/// The flow of an error: that of the quoted packet, if the error goes to the quoted packet's sender, as it should.
fn error(quoted: Option<Quoted>, source: IpAddr, destination: IpAddr) -> (Flow, bool) {
    let flow = match quoted {
        Some(Quoted { ends, protocol, .. }) if ends.0.0 == destination => Flow {
            hash: hash(ends, protocol),
            port: Port::Known(ends.0.1),
        },
        Some(_) | None => Flow {
            hash: hash(((source, 0), (destination, 0)), protocol::ICMP),
            port: Port::Absent,
        },
    };
    (flow, false)
}

type Ends = ((IpAddr, u16), (IpAddr, u16));

struct Quoted {
    ends: Ends,
    protocol: u8,
    answerable: bool,
}

/// Reads a quoted packet; `None` if its ports are not there.
fn quoted_v4(bytes: &[u8]) -> Option<Quoted> {
    let view = Ipv4::new_embedded(bytes).ok()?;
    if view.is_fragment() {
        return None;
    }
    let ends = (view.source().into(), view.destination().into());
    quoted(ends, view.protocol(), view.payload())
}

fn quoted_v6(bytes: &[u8]) -> Option<Quoted> {
    let view = Ipv6::new_embedded(bytes).ok()?;
    let ends = (view.source().into(), view.destination().into());
    match view.upper().ok()? {
        Upper::Transport {
            protocol, bytes, ..
        } => quoted(ends, protocol, bytes),
        Upper::Fragment { .. } | Upper::SourceRoute | Upper::TooMany => None,
    }
}

fn quoted((source, destination): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Option<Quoted> {
    let ((from, to), answerable) = match protocol {
        protocol::TCP | protocol::UDP => (ports(payload)?, true),
        protocol::ICMP | protocol::ICMPV6 => {
            let message = Icmp::new_checked(payload).ok()?;
            let is_echo = matches!(
                (protocol, message.kind()),
                (protocol::ICMP, icmp::ECHO_REQUEST | icmp::ECHO_REPLY)
                    | (
                        protocol::ICMPV6,
                        icmp::V6_ECHO_REQUEST | icmp::V6_ECHO_REPLY
                    )
            );
            let id = if is_echo { message.identifier() } else { 0 };
            ((id, id), is_echo)
        }
        _ => ((0, 0), true),
    };
    Some(Quoted {
        ends: ((source, from), (destination, to)),
        protocol,
        answerable,
    })
}

fn ports(payload: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *payload.first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn hash((one, other): Ends, protocol: u8) -> u64 {
    flow_hash(one, other).wrapping_add(u64::from(protocol) << 56)
}

/// Whether no router may forward from or to this address.
fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [first, ..] = a.octets();
            first == 0
                || a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_broadcast()
        }
        IpAddr::V6(a) => {
            a.is_unspecified()
                || a.is_loopback()
                || a.is_unicast_link_local()
                || a.is_multicast()
                || a.to_ipv4_mapped().is_some()
        }
    }
}
