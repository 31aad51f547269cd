//! Which of several workers a packet belongs to.
//!
//! All packets of a connection must meet the same worker, in both directions and whatever is translated on the way. The one thing that no
//! translation of this host touches is the far end: a machine's peer behind the uplink. So a packet to or from the underlay belongs to
//! the worker that the *remote* address (and port, if it is TCP) hashes to; it also follows that all uses of a shared NAT port
//! towards one destination meet in one worker. Between two machines of this host both ends are known, and a symmetric hash of both
//! is taken, with the machine's own address in place of a virtual one. (Not so for what a load balancer's target answers: that came by the
//! fabric, even if from a machine of this host.) All but TCP counts without ports, so that all of a flow's packets agree, fragments too; of fragmented TCP segments, a [`Sorter`] remembers the ports. ICMP errors belong to the flow they quote. A virtual
//! service counts as the far end under its real address.

use crate::config::PortKind;
use crate::flow::Coarse;
use crate::fragments::{Fragments, PieceKey};
use crate::ipip::TUNNEL_LEN;
use crate::objects::VirtualServiceSpec;
use crate::sync::Message;
use crate::tables::{Attached, Tables, Target};
use crate::time::Instant;
use crate::verdict::PortId;
use crate::virtual_service::service_number;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::ethernet::{HEADER_LEN as ETHERNET_LEN, TYPE_IPV4, TYPE_IPV6};
use net::protocol;

/// Addresses that stand for IPv4 (RFC 6052 §2.1): the far end is the IPv4 host.
const NAT64: u128 = 0x0064_ff9b << 96;

/// An end of a connection.
type End = (IpAddr, u16);

/// Says which worker packets belong to, for one thread that receives them: [`owner`], and beyond that for the later pieces of fragmented TCP
/// segments, and of packets to virtual services, whose first piece came by the same thread. (Network cards and kernels spread fragments by their addresses only, so they do.)
#[derive(Debug)]
pub struct Sorter {
    pieces: Fragments<(u16, u16)>,
}

impl Sorter {
    pub(crate) fn new(hash_seed: u64) -> Sorter {
        let pieces = Fragments::new(hash_seed);
        Sorter { pieces }
    }

    /// Number of the worker, see [`owner`].
    pub fn owner(
        &mut self,
        tables: &Tables,
        port: PortId,
        frame: &[u8],
        workers: usize,
        now: Instant,
    ) -> usize {
        let known = Some(&mut self.pieces);
        let (place, now) = (u64::from(port.0), Coarse::of(now));
        find(tables, port, frame, workers, Pieces { known, place, now })
    }
}

/// What is known about pieces of segments.
struct Pieces<'a> {
    known: Option<&'a mut Fragments<(u16, u16)>>,
    place: u64,
    now: Coarse,
}

impl Pieces<'_> {
    /// The ports of a packet of which `payload` is the first piece or a later one.
    fn ports(
        &mut self,
        protocol: u8,
        (source, destination): (IpAddr, IpAddr),
        (identification, is_first): (u32, bool),
        payload: &[u8],
    ) -> (u16, u16) {
        let key = PieceKey {
            place: self.place,
            source,
            destination,
            protocol,
            identification,
        };
        let shown = ports(payload);
        match (&mut self.known, is_first) {
            (Some(known), true) => {
                known.remember(key, shown, self.now);
                shown
            }
            (None, true) => shown,
            (Some(known), false) => known.find(&key, self.now).unwrap_or_default(),
            (None, false) => (0, 0),
        }
    }
}

/// Number of the worker, of `workers`, to which a packet that came in on `port` belongs.
///
/// Packets that belong to no connection (ARP, neighbour discovery, what cannot be parsed) belong to the worker that the port's number
/// gives, so that they stay in order.
#[must_use]
pub fn owner(tables: &Tables, port: PortId, frame: &[u8], workers: usize) -> usize {
    let pieces = Pieces {
        known: None,
        place: 0,
        now: Coarse(0),
    };
    find(tables, port, frame, workers, pieces)
}

fn find(
    tables: &Tables,
    port: PortId,
    frame: &[u8],
    workers: usize,
    mut pieces: Pieces<'_>,
) -> usize {
    let by_port = || port.index() % workers.max(1);
    if workers < 2 {
        return 0;
    }
    let Some(configured) = tables.port(port) else {
        return by_port();
    };
    let is_uplink = matches!(configured.kind, PortKind::Uplink(_));
    if let Some(service) = virtual_service(tables, is_uplink, frame, &mut pieces) {
        return spread(mix(service), workers);
    }
    let ends = if is_uplink {
        tunnelled(frame, &mut pieces).map(|(source, _)| (source, None))
    } else {
        plain(frame, &mut pieces).map(|(source, destination)| {
            let attached = configured.interface.as_ref();
            // In the name of a load balancer it answers what came by the fabric, from whomever.
            let attached = attached.filter(|attached| !attached.services.serves(source.0));
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

/// Number of the worker, of `workers`, that has to take over the connection that another instance tells of; `None` if it tells of none that
/// concerns this host.
#[must_use]
pub fn owner_of_message(tables: &Tables, message: &Message, workers: usize) -> Option<usize> {
    let end = match message {
        Message::NatTaken(used, _) | Message::NatGivenBack(used) => {
            let port = match used.remote.protocol {
                protocol::TCP => used.remote.port,
                _ => 0,
            };
            (IpAddr::V4(used.remote.address), port)
        }
        Message::VirtualConnection(used) => {
            let mut specs = tables.settings.virtual_services.iter();
            let spec = specs.find(|spec| spec.is_at(used.protocol, used.address, used.port))?;
            (IpAddr::V6(spec.service), spec.service_port)
        }
        Message::MachineMac(..) | Message::Request => return None,
    };
    Some(match workers {
        0 | 1 => 0,
        _ => spread(mix(end), workers),
    })
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
fn virtual_service(
    tables: &Tables,
    is_uplink: bool,
    frame: &[u8],
    pieces: &mut Pieces<'_>,
) -> Option<End> {
    let specs = &tables.settings.virtual_services;
    if specs.is_empty() {
        return None;
    }
    let (header, ip) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let spec = match (u16::from_be_bytes([header[12], header[13]]), is_uplink) {
        (TYPE_IPV4, false) => {
            let head = ip.first_chunk::<20>()?;
            let address = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
            let by_address =
                |spec: &&VirtualServiceSpec| (spec.protocol, spec.address) == (head[9], address);
            // Most packets are to none, and need not be remembered if they are pieces.
            specs.iter().find(by_address)?;
            let (_, port) = ports_v4(head, ip, pieces)?;
            specs.iter().find(|spec| spec.is_at(head[9], address, port))
        }
        (TYPE_IPV6, true) => {
            let head = ip.first_chunk::<40>()?;
            let address = Ipv6Addr::from(*head.get(8..)?.first_chunk::<16>()?);
            let payload = ip.get(40..)?;
            if head[6] == protocol::FRAGMENT {
                // All pieces show the number of the service in the address that they are for.
                let to = Ipv6Addr::from(*head.get(24..)?.first_chunk::<16>()?);
                let spec = specs.get(service_number(to)?);
                spec.filter(|spec| {
                    Some(&spec.protocol) == payload.first() && spec.service == address
                })
            } else {
                let (port, _) = ports(payload);
                let is_it = |spec: &&VirtualServiceSpec| {
                    (spec.protocol, spec.service, spec.service_port) == (head[6], address, port)
                };
                specs.iter().find(is_it)
            }
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
fn plain(frame: &[u8], pieces: &mut Pieces<'_>) -> Option<(End, End)> {
    let (header, ip) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    match u16::from_be_bytes([header[12], header[13]]) {
        TYPE_IPV4 => ends_v4(ip, Some(pieces)),
        TYPE_IPV6 => ends_v6(ip, Some(pieces)),
        _ => None,
    }
}

/// Source and destination inside a tunnel.
fn tunnelled(frame: &[u8], pieces: &mut Pieces<'_>) -> Option<(End, End)> {
    let (outer, inner) = frame.split_first_chunk::<TUNNEL_LEN>()?;
    match outer[20] {
        protocol::IPV4 => ends_v4(inner, Some(pieces)),
        protocol::IPV6 => ends_v6(inner, Some(pieces)),
        _ => None,
    }
}

/// Ends of a packet or, without `pieces`, of one that an error quotes.
fn ends_v4(ip: &[u8], pieces: Option<&mut Pieces<'_>>) -> Option<(End, End)> {
    let head = ip.first_chunk::<20>()?;
    let source = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
    let destination = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
    let payload = ip.get(usize::from(head[0] & 0x0f) * 4..)?;
    let (from, to) = match (head[9], pieces) {
        (protocol::TCP, Some(pieces)) => ports_v4(head, ip, pieces)?,
        (protocol::TCP, None) => ports(payload),
        // Destination unreachable, time exceeded, parameter problem quote a packet of the opposite direction.
        (protocol::ICMP, Some(_)) if matches!(payload.first(), Some(3 | 11 | 12)) => {
            let (source, destination) = ends_v4(payload.get(8..)?, None)?;
            return Some((destination, source));
        }
        _ => (0, 0),
    };
    Some(((source.into(), from), (destination.into(), to)))
}

/// Ports of the packet at `ip` with this header, or those that its first piece showed.
fn ports_v4(head: &[u8; 20], ip: &[u8], pieces: &mut Pieces<'_>) -> Option<(u16, u16)> {
    let payload = ip.get(usize::from(head[0] & 0x0f) * 4..)?;
    let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff;
    if fragment == 0 {
        return Some(ports(payload));
    }
    let source = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
    let destination = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
    let identification = u32::from(u16::from_be_bytes([head[4], head[5]]));
    let which = (identification, fragment & 0x1fff == 0);
    Some(pieces.ports(head[9], (source.into(), destination.into()), which, payload))
}

fn ends_v6(ip: &[u8], pieces: Option<&mut Pieces<'_>>) -> Option<(End, End)> {
    let head = ip.first_chunk::<40>()?;
    let source = Ipv6Addr::from(*head.get(8..)?.first_chunk::<16>()?);
    let destination = Ipv6Addr::from(*head.get(24..)?.first_chunk::<16>()?);
    let payload = ip.get(40..)?;
    let (from, to) = match (head[6], pieces) {
        (protocol::TCP, _) => ports(payload),
        (protocol::FRAGMENT, pieces) if payload.first() == Some(&protocol::TCP) => {
            let (header, piece) = payload.split_first_chunk::<8>()?;
            let [_, _, high, low, identification @ ..] = *header;
            let (ends, is_first) = ((source.into(), destination.into()), high == 0 && low < 8);
            match pieces {
                Some(pieces) => {
                    let identification = u32::from_be_bytes(identification);
                    pieces.ports(protocol::TCP, ends, (identification, is_first), piece)
                }
                None => ports(piece),
            }
        }
        // Error messages (RFC 4443 §2.1) have the high bit clear.
        (protocol::ICMPV6, Some(_)) if payload.first().is_some_and(|kind| kind & 0x80 == 0) => {
            let (source, destination) = ends_v6(payload.get(8..)?, None)?;
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
