//! Classification: what a frame is, before anything is decided about it.
//!
//! Two parsers with one meaning. [`overlay`] handles everything and names a reason for what it refuses. [`fast`] recognises only
//! the plain cases (no options, no extension headers, no fragments; TCP, UDP, echo) in straight-line code and says nothing about
//! the others, which then go through `overlay`. A test feeds both with the same bytes.

use crate::flow::key::{FlowKey, Hasher, Kind, Place, Scope, Transport, Tuple};
use crate::flow::rewrite::Layout;
use crate::fragments::PieceKey;
use crate::verdict::DropReason;
use core::net::{IpAddr, Ipv6Addr};
use net::ethernet;
use net::ipv6::Upper;
use net::{Ethernet, Icmp, Icmpv6, Ipv4, Ipv6, Tcp, Udp, icmp, ipv6, protocol};

/// UDP port of DHCPv4 servers.
pub(crate) const DHCP_SERVER: u16 = 67;
/// UDP port of DHCPv6 servers.
pub(crate) const DHCPV6_SERVER: u16 = 547;

/// What a machine sent.
#[derive(Debug)]
pub(crate) enum FromMachine<'a> {
    Arp,
    /// A neighbour or router solicitation: source, ICMPv6 message.
    Solicitation(Ipv6Addr, &'a [u8]),
    Dhcp,
    Dhcpv6,
    Overlay(Overlay),
}

/// An IP packet of the overlay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overlay {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Length of the IP packet: 40 + payload length for IPv6.
    pub length: u16,
    pub layout: Layout,
    /// If it is one.
    pub piece: Option<Piece>,
    /// The transport, or why it cannot be handled. Kept apart so that addresses are judged first.
    pub l4: Result<L4, DropReason>,
}

impl Overlay {
    /// What all pieces of a fragmented packet show that come in at a place; `None` if it is whole.
    pub(crate) fn piece_key(&self, place: u64) -> Option<PieceKey> {
        let piece = self.piece?;
        Some(PieceKey {
            place,
            source: self.source,
            destination: self.destination,
            protocol: piece.protocol,
            identification: piece.identification,
        })
    }
}

/// What connection tracking needs to know of the transport.
#[derive(Clone, Copy, Debug)]
pub(crate) enum L4 {
    Flow {
        tuple: Tuple,
        tcp_flags: Option<u8>,
    },
    /// An ICMP error about a packet of this tuple.
    Error {
        quoted: Tuple,
    },
    /// A later piece of a fragmented packet: the first one tells.
    Later,
}

/// A piece of a fragmented packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub protocol: u8,
    pub identification: u32,
    pub is_first: bool,
    pub has_more: bool,
}

/// Classifies a frame from a machine.
pub(crate) fn from_machine(frame: &[u8]) -> Result<FromMachine<'_>, DropReason> {
    let ethernet = Ethernet::new_checked(frame).map_err(|_| DropReason::Runt)?;
    let payload = ethernet.payload();
    match ethernet.ethertype() {
        ethernet::TYPE_ARP => Ok(FromMachine::Arp),
        ethernet::TYPE_IPV4 => {
            let overlay = overlay_v4(payload)?;
            let is_dhcp = udp_destination(&overlay) == Some(DHCP_SERVER);
            Ok(if is_dhcp {
                FromMachine::Dhcp
            } else {
                FromMachine::Overlay(overlay)
            })
        }
        ethernet::TYPE_IPV6 => {
            let ip = Ipv6::new_checked(payload).map_err(|_| DropReason::Ipv6Malformed)?;
            if let Ok(Upper::Transport {
                protocol: protocol::ICMPV6,
                bytes,
                ..
            }) = ip.upper()
                && let Some(icmp::V6_NEIGHBOUR_SOLICITATION | icmp::V6_ROUTER_SOLICITATION) =
                    bytes.first().copied()
            {
                return Ok(FromMachine::Solicitation(ip.source(), bytes));
            }
            let overlay = overlay_v6(payload)?;
            let is_dhcp = udp_destination(&overlay) == Some(DHCPV6_SERVER);
            Ok(if is_dhcp {
                FromMachine::Dhcpv6
            } else {
                FromMachine::Overlay(overlay)
            })
        }
        _ => Err(DropReason::UnsupportedEthertype),
    }
}

fn udp_destination(overlay: &Overlay) -> Option<u16> {
    match overlay.l4 {
        Ok(L4::Flow { tuple, .. })
            if tuple.transport == Transport::Udp && overlay.piece.is_none() =>
        {
            Some(tuple.destination_port)
        }
        Ok(_) | Err(_) => None,
    }
}

/// Parses the inner packet of a tunnel whose next header is `protocol`.
pub(crate) fn from_tunnel(protocol: u8, inner: &[u8]) -> Result<Overlay, DropReason> {
    match protocol {
        protocol::IPV4 => overlay_v4(inner),
        protocol::IPV6 => overlay_v6(inner),
        _ => Err(DropReason::UplinkNotTunnel),
    }
}

fn overlay_v4(bytes: &[u8]) -> Result<Overlay, DropReason> {
    let ip = Ipv4::new_checked(bytes).map_err(|_| DropReason::Ipv4Malformed)?;
    if ip.has_source_route() {
        return Err(DropReason::SourceRoute);
    }
    let (source, destination) = (IpAddr::V4(ip.source()), IpAddr::V4(ip.destination()));
    let piece = ip.is_fragment().then(|| Piece {
        protocol: ip.protocol(),
        identification: u32::from(ip.identification()),
        is_first: ip.fragment_offset() == 0,
        has_more: ip.has_more_fragments(),
    });
    let l4 = match &piece {
        Some(piece) => l4_of_piece(source, destination, piece, ip.payload()),
        None => l4_v4(source, destination, ip.protocol(), ip.payload()),
    };
    Ok(Overlay {
        source,
        destination,
        length: ip.total_len(),
        layout: Layout {
            transport: ip.header_len(),
            has_ports: piece.is_none_or(|piece| piece.is_first),
        },
        piece,
        l4,
    })
}

fn overlay_v6(bytes: &[u8]) -> Result<Overlay, DropReason> {
    let ip = Ipv6::new_checked(bytes).map_err(|_| DropReason::Ipv6Malformed)?;
    let (source, destination) = (IpAddr::V6(ip.source()), IpAddr::V6(ip.destination()));
    let mut layout = Layout {
        transport: ipv6::HEADER_LEN,
        has_ports: false,
    };
    let mut piece = None;
    let l4 = match ip.upper() {
        Ok(Upper::Transport {
            protocol,
            offset,
            bytes,
        }) => {
            layout.transport += offset;
            layout.has_ports = true;
            l4_v6(source, destination, protocol, bytes)
        }
        Ok(Upper::Fragment {
            protocol,
            offset,
            position,
            has_more,
            identification,
            bytes,
        }) => {
            let found = Piece {
                protocol,
                identification,
                is_first: position == 0,
                has_more,
            };
            layout.transport += offset;
            layout.has_ports = found.is_first;
            piece = Some(found);
            l4_of_piece(source, destination, &found, bytes)
        }
        Ok(Upper::SourceRoute) => return Err(DropReason::SourceRoute),
        Ok(Upper::TooMany) => return Err(DropReason::ExtensionHeaders),
        Err(_) => return Err(DropReason::Ipv6Malformed),
    };
    let length = ip
        .payload_len()
        .checked_add(40)
        .ok_or(DropReason::Ipv6Malformed)?;
    Ok(Overlay {
        source,
        destination,
        length,
        layout,
        piece,
        l4,
    })
}

fn flow(
    source: IpAddr,
    destination: IpAddr,
    ports: (u16, u16),
    transport: Transport,
    tcp_flags: Option<u8>,
) -> L4 {
    let (source_port, destination_port) = ports;
    L4::Flow {
        tuple: Tuple {
            source,
            destination,
            source_port,
            destination_port,
            transport,
        },
        tcp_flags,
    }
}

/// The first piece has to have the whole transport header (RFC 7112; RFC 1858 §3); nothing behind it is looked at.
fn l4_of_piece(
    source: IpAddr,
    destination: IpAddr,
    piece: &Piece,
    bytes: &[u8],
) -> Result<L4, DropReason> {
    let icmp = match source {
        IpAddr::V4(_) => protocol::ICMP,
        IpAddr::V6(_) => protocol::ICMPV6,
    };
    let is_known = matches!(piece.protocol, protocol::TCP | protocol::UDP);
    if !is_known && piece.protocol != icmp {
        return Err(DropReason::UnsupportedL4);
    }
    if !piece.is_first {
        return Ok(L4::Later);
    }
    if piece.protocol == protocol::TCP {
        return tcp_or_udp(source, destination, piece.protocol, bytes);
    }
    // The length of a datagram is that of all pieces.
    let head = bytes.get(..8).ok_or(DropReason::L4Malformed)?;
    let (request, reply) = match source {
        IpAddr::V4(_) => (icmp::ECHO_REQUEST, icmp::ECHO_REPLY),
        IpAddr::V6(_) => (icmp::V6_ECHO_REQUEST, icmp::V6_ECHO_REPLY),
    };
    let kinds = (icmp, request, reply);
    let tuple = quoted_transport(source, destination, piece.protocol, head, kinds);
    let tuple = tuple.ok_or(DropReason::IcmpUnsupported)?;
    Ok(L4::Flow {
        tuple,
        tcp_flags: None,
    })
}

fn l4_v4(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: &[u8],
) -> Result<L4, DropReason> {
    if protocol != protocol::ICMP {
        return tcp_or_udp(source, destination, protocol, bytes);
    }
    let message = Icmp::new_checked(bytes).map_err(|_| DropReason::L4Malformed)?;
    let identifier = (message.identifier(), message.identifier());
    match message.kind() {
        icmp::ECHO_REQUEST | icmp::ECHO_REPLY => {
            let request = message.kind() == icmp::ECHO_REQUEST;
            Ok(flow(
                source,
                destination,
                identifier,
                Transport::Echo { request },
                None,
            ))
        }
        _ if message.is_error() => {
            let quoted = quoted_v4(message.body()).ok_or(DropReason::IcmpUnrelated)?;
            Ok(L4::Error { quoted })
        }
        _ => Err(DropReason::IcmpUnsupported),
    }
}

fn l4_v6(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: &[u8],
) -> Result<L4, DropReason> {
    if protocol != protocol::ICMPV6 {
        return tcp_or_udp(source, destination, protocol, bytes);
    }
    let message = Icmpv6::new_checked(bytes).map_err(|_| DropReason::L4Malformed)?;
    let identifier = (message.identifier(), message.identifier());
    match message.kind() {
        icmp::V6_ECHO_REQUEST | icmp::V6_ECHO_REPLY => {
            let request = message.kind() == icmp::V6_ECHO_REQUEST;
            Ok(flow(
                source,
                destination,
                identifier,
                Transport::Echo { request },
                None,
            ))
        }
        _ if message.is_error() => {
            let quoted = quoted_v6(message.body()).ok_or(DropReason::IcmpUnrelated)?;
            Ok(L4::Error { quoted })
        }
        _ => Err(DropReason::IcmpUnsupported),
    }
}

fn tcp_or_udp(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: &[u8],
) -> Result<L4, DropReason> {
    match protocol {
        protocol::TCP => {
            let tcp = Tcp::new_checked(bytes).map_err(|_| DropReason::L4Malformed)?;
            let ports = (tcp.source(), tcp.destination());
            Ok(flow(
                source,
                destination,
                ports,
                Transport::Tcp,
                Some(tcp.flags()),
            ))
        }
        protocol::UDP => {
            let udp = Udp::new_checked(bytes).map_err(|_| DropReason::L4Malformed)?;
            let ports = (udp.source(), udp.destination());
            Ok(flow(source, destination, ports, Transport::Udp, None))
        }
        _ => Err(DropReason::UnsupportedL4),
    }
}

/// The tuple of a packet quoted in an ICMP error, which carries at least eight bytes of its transport (RFC 792).
fn quoted_v4(bytes: &[u8]) -> Option<Tuple> {
    let ip = Ipv4::new_embedded(bytes).ok()?;
    let (source, destination) = (IpAddr::V4(ip.source()), IpAddr::V4(ip.destination()));
    if ip.fragment_offset() != 0 {
        return None;
    }
    let request_kinds = (protocol::ICMP, icmp::ECHO_REQUEST, icmp::ECHO_REPLY);
    quoted_transport(
        source,
        destination,
        ip.protocol(),
        ip.payload(),
        request_kinds,
    )
}

/// The same for ICMPv6 (RFC 4443 §2.4 (c)).
fn quoted_v6(bytes: &[u8]) -> Option<Tuple> {
    let ip = Ipv6::new_embedded(bytes).ok()?;
    let (source, destination) = (IpAddr::V6(ip.source()), IpAddr::V6(ip.destination()));
    let request_kinds = (protocol::ICMPV6, icmp::V6_ECHO_REQUEST, icmp::V6_ECHO_REPLY);
    match ip.upper().ok()? {
        Upper::Transport {
            protocol, bytes, ..
        } => quoted_transport(source, destination, protocol, bytes, request_kinds),
        Upper::Fragment {
            protocol,
            position: 0,
            bytes,
            ..
        } => quoted_transport(source, destination, protocol, bytes, request_kinds),
        Upper::Fragment { .. } | Upper::SourceRoute | Upper::TooMany => None,
    }
}

fn tuple_of(l4: L4) -> Option<Tuple> {
    match l4 {
        L4::Flow { tuple, .. } => Some(tuple),
        L4::Error { .. } | L4::Later => None,
    }
}

fn quoted_transport(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: &[u8],
    (icmp_protocol, request_kind, reply_kind): (u8, u8, u8),
) -> Option<Tuple> {
    let [b0, b1, b2, b3, b4, b5, ..] = *bytes.first_chunk::<8>()?;
    let ports = (u16::from_be_bytes([b0, b1]), u16::from_be_bytes([b2, b3]));
    let identifier = u16::from_be_bytes([b4, b5]);
    let (ports, transport) = match protocol {
        protocol::TCP => (ports, Transport::Tcp),
        protocol::UDP => (ports, Transport::Udp),
        _ if protocol == icmp_protocol && (b0 == request_kind || b0 == reply_kind) => (
            (identifier, identifier),
            Transport::Echo {
                request: b0 == request_kind,
            },
        ),
        _ => return None,
    };
    tuple_of(flow(source, destination, ports, transport, None))
}

/// A plain packet, ready to be looked up.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Fast {
    pub key: FlowKey,
    pub length: u16,
    /// Control bits of TCP, 0 for others.
    pub tcp_flags: u8,
}

impl Fast {
    pub(crate) const EMPTY: Fast = Fast {
        key: FlowKey::NONE,
        length: 0,
        tcp_flags: 0,
    };
}

impl Fast {
    /// The same as the complete parser would put it.
    pub(crate) fn overlay(&self) -> Overlay {
        let tuple = self.key.tuple();
        let is_tcp = tuple.transport == Transport::Tcp;
        let layout = if self.key.is_v6() {
            Layout::PLAIN_V6
        } else {
            Layout::PLAIN_V4
        };
        Overlay {
            source: tuple.source,
            destination: tuple.destination,
            length: self.length,
            layout,
            piece: None,
            l4: Ok(L4::Flow {
                tuple,
                tcp_flags: is_tcp.then_some(self.tcp_flags),
            }),
        }
    }
}

/// The fields of an IPv4 packet without options that the fast parser looks at, each read as one little-endian word.
#[derive(Clone, Copy, Debug)]
struct Head {
    front: u64,
    protocol: u8,
    addresses: u64,
    /// The first two words of the transport header, and the third.
    ports: u32,
    third: u16,
}

impl Head {
    /// Taken apart by constant steps, so that one length check is left of it and every field is one load.
    #[inline(always)]
    fn read(bytes: &[u8]) -> Option<Head> {
        let head = bytes.first_chunk::<28>()?;
        let (front, rest) = head.split_first_chunk::<8>()?;
        let ([_, protocol, _, _], rest) = rest.split_first_chunk::<4>()?;
        let (addresses, rest) = rest.split_first_chunk::<8>()?;
        let (ports, rest) = rest.split_first_chunk::<4>()?;
        Some(Head {
            front: u64::from_le_bytes(*front),
            protocol: *protocol,
            addresses: u64::from_le_bytes(*addresses),
            ports: u32::from_le_bytes(*ports),
            third: u16::from_le_bytes(*rest.first_chunk::<2>()?),
        })
    }
}

/// The plain cases of [`overlay_v4`], written to `fast`, and where their entry is looked for; `None` for all others. Fields are read as the
/// processor reads them, see [`FlowKey`].
#[inline(always)]
pub(crate) fn fast_v4(
    hasher: &Hasher,
    scope: Scope,
    bytes: &[u8],
    fast: &mut Fast,
) -> Option<Place> {
    /// Version and header length, and the fragment field without "don't fragment".
    const CHECKED: u64 = 0xff3f_0000_0000_00ff;
    /// The least that is understood: up to the first eight bytes of the transport.
    const LENGTH_MIN: usize = 28;
    let Head {
        front,
        protocol,
        addresses,
        ports,
        third,
    } = Head::read(bytes)?;
    let length = ((front >> 16) as u16).swap_bytes();
    // Both bounds in one comparison.
    let behind = usize::from(length).wrapping_sub(LENGTH_MIN);
    if front & CHECKED != 0x45 || behind > bytes.len() - LENGTH_MIN {
        return None;
    }
    let (ports, kind) = match protocol {
        protocol::UDP if is_plain_udp(third, behind, fast) => (ports, Kind::UDP),
        protocol::TCP if is_plain_tcp(bytes.get(32..34), behind, fast) => (ports, Kind::TCP),
        protocol::ICMP => echo(ports, third, icmp::ECHO_REQUEST, icmp::ECHO_REPLY, fast)?,
        _ => return None,
    };
    fast.length = length;
    // The other words of the key are not looked at: what is left there from an earlier packet does no harm.
    let first = FlowKey::first_v4(scope, kind, ports);
    fast.key.first = first;
    fast.key.addresses[0] = addresses;
    Some(hasher.v4(first, addresses))
}

/// The plain cases of [`overlay_v6`], written to `fast`, and where their entry is looked for; `None` for all others.
#[inline(always)]
pub(crate) fn fast_v6(
    hasher: &Hasher,
    scope: Scope,
    bytes: &[u8],
    fast: &mut Fast,
) -> Option<Place> {
    const LENGTH_MIN: usize = 48;
    let (chunks, _) = bytes.first_chunk::<LENGTH_MIN>()?.as_chunks::<8>();
    let &[front, a, b, c, d, transport] = chunks else {
        return None;
    };
    let front = u64::from_le_bytes(front);
    let payload = ((front >> 32) as u16).swap_bytes();
    let behind = usize::from(payload).wrapping_sub(8);
    // No packet is longer than a length can tell.
    let room = (bytes.len() - LENGTH_MIN).min(usize::from(u16::MAX) - LENGTH_MIN);
    if front & 0xf0 != 0x60 || behind > room {
        return None;
    }
    let transport = u64::from_le_bytes(transport);
    let (ports, third) = (transport as u32, (transport >> 32) as u16);
    let (ports, kind) = match (front >> 48) as u8 {
        protocol::UDP if is_plain_udp(third, behind, fast) => (ports, Kind::UDP),
        protocol::TCP if is_plain_tcp(bytes.get(52..54), behind, fast) => (ports, Kind::TCP),
        protocol::ICMPV6 => echo(
            ports,
            third,
            icmp::V6_ECHO_REQUEST,
            icmp::V6_ECHO_REPLY,
            fast,
        )?,
        _ => return None,
    };
    fast.length = payload + ipv6::HEADER_LEN as u16;
    let addresses = [a, b, c, d].map(u64::from_le_bytes);
    fast.key = FlowKey::v6(scope, kind, ports, addresses);
    Some(hasher.v6(fast.key.first, addresses))
}

/// Whether a TCP header fits, given its bytes 12 and 13 and how many there are behind the first eight.
#[inline(always)]
fn is_plain_tcp(offset_and_flags: Option<&[u8]>, behind: usize, fast: &mut Fast) -> bool {
    let Some(&[offset, flags]) = offset_and_flags else {
        return false;
    };
    fast.tcp_flags = flags;
    offset >= 0x50 && usize::from(offset >> 4) * 4 <= behind + 8
}

/// Whether a UDP length, as read from the wire, fits if there are so many bytes behind the header.
#[inline(always)]
fn is_plain_udp(length: u16, behind: usize, fast: &mut Fast) -> bool {
    fast.tcp_flags = 0;
    // Both bounds in one comparison.
    usize::from(length.swap_bytes()).wrapping_sub(8) <= behind
}

/// The ports and the kind of an echo request or reply, given the first two words of the message and the third.
#[cold]
#[inline(never)]
fn echo(head: u32, third: u16, request: u8, reply: u8, fast: &mut Fast) -> Option<(u32, Kind)> {
    let kind = head as u8;
    fast.tcp_flags = 0;
    let identifier = u32::from(third);
    let ports = identifier | identifier << 16;
    (kind == request || kind == reply).then(|| (ports, Kind::echo(kind == request)))
}
