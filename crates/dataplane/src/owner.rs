//! Which of several workers a packet belongs to.
//!
//! All packets of a connection must meet the same worker, in both directions and whatever is translated on the way. The one thing that no
//! translation of this host touches is the far end: a machine's peer behind the uplink. So a packet to or from the underlay belongs to
//! the worker that the *remote* address (and port, if it is TCP) hashes to; it also follows that all uses of a shared NAT port
//! towards one destination meet in one worker. Between two machines of this host both ends are known, and a symmetric hash of both
//! is taken, with the machine's own address in place of a virtual one. Fragments and other protocols count without ports, so that all of
//! a flow's packets agree. ICMP errors belong to the flow they quote. A virtual service counts as the far end under its real address.

use crate::config::PortKind;
use crate::ipip::TUNNEL_LEN;
use crate::objects::VirtualServiceSpec;
use crate::tables::{Attached, Tables, Target};
use crate::verdict::PortId;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::ethernet::{HEADER_LEN as ETHERNET_LEN, TYPE_IPV4, TYPE_IPV6};
use net::protocol;

/// Addresses that stand for IPv4 (RFC 6052 §2.1): the far end is the IPv4 host.
const NAT64: u128 = 0x0064_ff9b << 96;

/// An end of a connection.
type End = (IpAddr, u16);

/// Number of the worker, of `workers`, to which a packet that came in on `port` belongs.
///
/// Packets that belong to no connection (ARP, neighbour discovery, what cannot be parsed) belong to the worker that the port's number
/// gives, so that they stay in order.
#[must_use]
pub fn owner(tables: &Tables, port: PortId, frame: &[u8], workers: usize) -> usize {
    let by_port = || port.index() % workers.max(1);
    if workers < 2 {
        return 0;
    }
    let Some(configured) = tables.port(port) else {
        return by_port();
    };
    let is_uplink = matches!(configured.kind, PortKind::Uplink(_));
    if let Some(service) = virtual_service(tables, is_uplink, frame) {
        return spread(mix(service), workers);
    }
    let ends = if is_uplink {
        tunnelled(frame).map(|(source, _)| (source, None))
    } else {
        plain(frame).map(|(source, destination)| {
            let attached = configured.interface.as_ref();
            let local = attached.and_then(|attached| local_end(tables, attached, destination));
            match local {
                Some(end) => (end, Some(source)),
                None => (destination, None),
            }
        })
    };
    match ends {
        Some((end, None)) => spread(mix(end), workers),
        Some((end, Some(other))) => spread(flow_hash(end, other), workers),
        None => by_port(),
    }
}

/// A hash of both ends of a connection, the same in both directions.
#[must_use]
pub fn flow_hash(one: (IpAddr, u16), other: (IpAddr, u16)) -> u64 {
    // Addition makes it symmetric.
    mix(one).wrapping_add(mix(other))
}

/// The machine of this host that an address of the network stands for, with the port unchanged.
fn local_end(tables: &Tables, attached: &Attached, (address, port): End) -> Option<End> {
    let routes = tables.routes(attached.vni_slot)?;
    if let Some((_, Target::Own(_) | Target::Alias(_))) = routes.lookup(address) {
        return Some((address, port));
    }
    let IpAddr::V4(address) = address else {
        return None;
    };
    let translated = tables.services.translated(routes.vni, address)?;
    let (_, machine) = translated.vip?;
    Some((IpAddr::V4(machine), port))
}

/// The real end of the virtual service that a frame is for or, on an uplink, from. Its connections share one range of ports, which one
/// worker hands out.
fn virtual_service(tables: &Tables, is_uplink: bool, frame: &[u8]) -> Option<End> {
    let specs = &tables.settings.virtual_services;
    if specs.is_empty() {
        return None;
    }
    let (header, ip) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let spec = match (u16::from_be_bytes([header[12], header[13]]), is_uplink) {
        (TYPE_IPV4, false) => {
            let head = ip.first_chunk::<20>()?;
            let address = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
            let (_, port) = ports(ip.get(usize::from(head[0] & 0x0f) * 4..)?);
            let is_it = |spec: &&VirtualServiceSpec| {
                (spec.protocol, spec.address, spec.port) == (head[9], address, port)
            };
            specs.iter().find(is_it)
        }
        (TYPE_IPV6, true) => {
            let head = ip.first_chunk::<40>()?;
            let address = Ipv6Addr::from(*head.get(8..)?.first_chunk::<16>()?);
            let (port, _) = ports(ip.get(40..)?);
            let is_it = |spec: &&VirtualServiceSpec| {
                (spec.protocol, spec.service, spec.service_port) == (head[6], address, port)
            };
            specs.iter().find(is_it)
        }
        _ => None,
    }?;
    Some((IpAddr::V6(spec.service), spec.service_port))
}

/// Maps a hash to a worker by its upper bits.
fn spread(hash: u64, workers: usize) -> usize {
    ((u128::from(hash) * workers as u128) >> 64) as usize
}

/// A finalizer of splitmix64 (Steele, Lea, Flood 2014) over address and port.
fn mix((address, port): End) -> u64 {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => match address.to_bits() {
            bits if bits >> 32 == NAT64 >> 32 => bits & 0xffff_ffff,
            bits => bits,
        },
    };
    let folded = (bits as u64) ^ ((bits >> 64) as u64).rotate_left(32);
    let z = folded ^ (u64::from(port) << 48);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Source and destination of a machine's packet.
fn plain(frame: &[u8]) -> Option<(End, End)> {
    let (header, ip) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    match u16::from_be_bytes([header[12], header[13]]) {
        TYPE_IPV4 => ends_v4(ip, true),
        TYPE_IPV6 => ends_v6(ip, true),
        _ => None,
    }
}

/// Source and destination inside a tunnel.
fn tunnelled(frame: &[u8]) -> Option<(End, End)> {
    let (outer, inner) = frame.split_first_chunk::<TUNNEL_LEN>()?;
    match outer[20] {
        protocol::IPV4 => ends_v4(inner, true),
        protocol::IPV6 => ends_v6(inner, true),
        _ => None,
    }
}

fn ends_v4(ip: &[u8], may_quote: bool) -> Option<(End, End)> {
    let head = ip.first_chunk::<20>()?;
    let source = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
    let destination = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
    let payload = ip.get(usize::from(head[0] & 0x0f) * 4..)?;
    let is_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
    let (from, to) = match head[9] {
        protocol::TCP if !is_fragment => ports(payload),
        // Destination unreachable, time exceeded, parameter problem quote a packet of the opposite direction.
        protocol::ICMP if may_quote && matches!(payload.first(), Some(3 | 11 | 12)) => {
            let (source, destination) = ends_v4(payload.get(8..)?, false)?;
            return Some((destination, source));
        }
        _ => (0, 0),
    };
    Some(((source.into(), from), (destination.into(), to)))
}

fn ends_v6(ip: &[u8], may_quote: bool) -> Option<(End, End)> {
    let head = ip.first_chunk::<40>()?;
    let source = Ipv6Addr::from(*head.get(8..)?.first_chunk::<16>()?);
    let destination = Ipv6Addr::from(*head.get(24..)?.first_chunk::<16>()?);
    let payload = ip.get(40..)?;
    let (from, to) = match head[6] {
        protocol::TCP => ports(payload),
        // Error messages (RFC 4443 §2.1) have the high bit clear.
        protocol::ICMPV6 if may_quote && payload.first().is_some_and(|kind| kind & 0x80 == 0) => {
            let (source, destination) = ends_v6(payload.get(8..)?, false)?;
            return Some((destination, source));
        }
        _ => (0, 0),
    };
    Some(((source.into(), from), (destination.into(), to)))
}

fn ports(payload: &[u8]) -> (u16, u16) {
    match payload.first_chunk::<4>() {
        Some([a, b, c, d]) => (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
        None => (0, 0),
    }
}
