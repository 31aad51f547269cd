//! Translation between IPv6 and IPv4 (RFC 7915) with the well-known prefix (RFC 6052 §2.1), in place.
//!
//! Which addresses and ports stand for each other is decided elsewhere (network NAT); here only headers change. Not decremented: TTL and
//! hop limit, because the overlay is transparent. Not translated: IPv6 extension headers with meaning, IPv4 options. Translated headers
//! of whole packets carry identification 0 and no fragment flags; pieces of fragmented ones are translated one by one (§4.1, §5.1.1), except
//! those of echo messages, whose checksum depends in IPv6 on a length that no piece shows (§1.2), and of UDP datagrams without a checksum,
//! which IPv6 demands and no piece suffices for (§4.5).

use crate::edit::{self, Change};
use core::net::{Ipv4Addr, Ipv6Addr};
use core::ops::Range;
use net::checksum::{self, pseudo_v4, pseudo_v6};
use net::ipv6::Upper;
use net::{Ipv4, Ipv6, icmp, ipv4, ipv6, protocol};

/// Bytes by which an IPv6 header is longer than an IPv4 header without options.
pub const GROWTH: usize = ipv6::HEADER_LEN - ipv4::HEADER_LEN;
/// Bytes by which an IPv6 packet is longer than an IPv4 packet at most: a piece has a fragment header besides.
pub const GROWTH_MAX: usize = GROWTH + FRAGMENT_LEN;
/// IPv6 fragment header (RFC 8200 §4.5).
const FRAGMENT_LEN: usize = 8;
/// `64:ff9b::/96` as the upper bits of an address.
const WELL_KNOWN: u128 = 0x0064_ff9b << 96;
const MTU_OFFSET: u16 = GROWTH as u16;
/// What a router that does not know RFC 1191 means by MTU 0: the largest IPv6 packet that always passes.
const MTU_DEFAULT: u16 = 1_280;

/// The packet is of a kind that has no counterpart in the other family, or is malformed. It is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTranslatable;

/// The IPv4 address inside an address of the well-known prefix.
#[must_use]
pub fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    (bits >> 32 == WELL_KNOWN >> 32).then(|| Ipv4Addr::from_bits(bits as u32))
}

/// An IPv4 address inside the well-known prefix.
#[must_use]
pub fn embed(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(WELL_KNOWN | u128::from(address.to_bits()))
}

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A> {
    /// From.
    pub source: A,
    /// To.
    pub destination: A,
}

/// Translates the IPv6 packet that fills `packet` and returns where in it the IPv4 packet is.
///
/// `quoted` are the addresses of the packet inside an ICMPv6 error.
pub fn to_v4(
    packet: &mut [u8],
    ends: Ends<Ipv4Addr>,
    quoted: Ends<Ipv4Addr>,
) -> Result<Range<usize>, NotTranslatable> {
    let Outline {
        ends: old,
        class,
        hop_limit,
        protocol,
        header_len: start,
        payload_len: mut length,
        piece,
    } = Outline::of_v6(&Ipv6::new_checked(packet).map_err(|_| NotTranslatable)?)?;
    let transport = packet
        .get_mut(start..start + length)
        .ok_or(NotTranslatable)?;
    if protocol == protocol::ICMPV6 && piece.is_none() && is_error_v6(transport) {
        length = error_to_v4(transport, quoted)?;
    } else {
        let total = u32::try_from(length).map_err(|_| NotTranslatable)?;
        transport_to_v4((protocol, piece), transport, old, ends, total)?;
    }
    let protocol = protocol_v4(protocol);
    let header = header_v4((class, hop_limit, protocol), ends, length, piece)?;
    let begin = start - ipv4::HEADER_LEN;
    packet
        .get_mut(begin..start)
        .ok_or(NotTranslatable)?
        .copy_from_slice(&header);
    Ok(begin..start + length)
}

/// Translates the IPv4 packet at `packet` inside `buffer` and returns where in `buffer` the IPv6 packet is.
///
/// There must be [`GROWTH_MAX`] spare bytes before it and, for an ICMP error, behind it. `quoted` are the addresses of the packet inside an
/// error.
pub fn to_v6(
    buffer: &mut [u8],
    packet: Range<usize>,
    ends: Ends<Ipv6Addr>,
    quoted: Ends<Ipv6Addr>,
) -> Result<Range<usize>, NotTranslatable> {
    let bytes = buffer.get(packet.clone()).ok_or(NotTranslatable)?;
    let Outline {
        ends: old,
        class,
        hop_limit,
        protocol,
        header_len,
        payload_len: mut length,
        piece,
    } = Outline::of_v4(&Ipv4::new_checked(bytes).map_err(|_| NotTranslatable)?)?;
    let start = packet.start + header_len;
    let transport = buffer.get_mut(start..).ok_or(NotTranslatable)?;
    if protocol == protocol::ICMP && piece.is_none() && is_error_v4(transport) {
        length = error_to_v6(transport, length, quoted)?;
        let total = u32::try_from(length).map_err(|_| NotTranslatable)?;
        let message = transport.get_mut(..length).ok_or(NotTranslatable)?;
        let pseudo = pseudo_v6(ends.source, ends.destination, protocol::ICMPV6, total);
        fill_checksum(message, pseudo);
    } else {
        let transport = transport.get_mut(..length).ok_or(NotTranslatable)?;
        transport_to_v6((protocol, piece), transport, old, ends, length)?;
    }
    let protocol = protocol_v6(protocol);
    let header = HeaderV6::new((class, hop_limit, protocol), ends, length, piece)?;
    let begin = start.checked_sub(header.len()).ok_or(NotTranslatable)?;
    header.write(buffer, begin)?;
    Ok(begin..start + length)
}

// ---- headers ---------------------------------------------------------------------------------------------------------------

/// What of an IP header is carried over, and where its payload is.
struct Outline<A> {
    ends: Ends<A>,
    class: u8,
    hop_limit: u8,
    protocol: u8,
    /// With options or extension headers, in bytes.
    header_len: usize,
    /// As announced, in bytes; a quotation may be shorter.
    payload_len: usize,
    /// If it is not the whole packet.
    piece: Option<Piece>,
}

/// Which piece of a fragmented packet.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// In units of eight bytes.
    position: u16,
    has_more: bool,
    identification: u32,
}

impl Piece {
    /// Whether the transport header is in another piece.
    fn is_later(self) -> bool {
        self.position != 0
    }
}

impl Outline<Ipv6Addr> {
    fn of_v6(view: &Ipv6<'_>) -> Result<Outline<Ipv6Addr>, NotTranslatable> {
        let (protocol, offset, piece) = match view.upper() {
            Ok(Upper::Transport {
                protocol, offset, ..
            }) => (protocol, offset, None),
            Ok(Upper::Fragment {
                protocol,
                offset,
                position,
                has_more,
                identification,
                ..
            }) => {
                let piece = Piece {
                    position,
                    has_more,
                    identification,
                };
                (protocol, offset, Some(piece))
            }
            Ok(Upper::SourceRoute | Upper::TooMany) | Err(_) => return Err(NotTranslatable),
        };
        let payload_len = usize::from(view.payload_len()).checked_sub(offset);
        Ok(Outline {
            ends: Ends {
                source: view.source(),
                destination: view.destination(),
            },
            class: view.traffic_class(),
            hop_limit: view.hop_limit(),
            protocol,
            header_len: ipv6::HEADER_LEN + offset,
            payload_len: payload_len.ok_or(NotTranslatable)?,
            piece,
        })
    }
}

impl Outline<Ipv4Addr> {
    fn of_v4(view: &Ipv4<'_>) -> Result<Outline<Ipv4Addr>, NotTranslatable> {
        let piece = view.is_fragment().then(|| Piece {
            position: view.fragment_offset(),
            has_more: view.has_more_fragments(),
            identification: u32::from(view.identification()),
        });
        let header_len = view.header_len();
        let payload_len = usize::from(view.total_len()).checked_sub(header_len);
        Ok(Outline {
            ends: Ends {
                source: view.source(),
                destination: view.destination(),
            },
            class: view.traffic_class(),
            hop_limit: view.ttl(),
            protocol: view.protocol(),
            header_len,
            payload_len: payload_len.ok_or(NotTranslatable)?,
            piece,
        })
    }
}

fn protocol_v4(protocol: u8) -> u8 {
    if protocol == protocol::ICMPV6 {
        protocol::ICMP
    } else {
        protocol
    }
}

fn protocol_v6(protocol: u8) -> u8 {
    if protocol == protocol::ICMP {
        protocol::ICMPV6
    } else {
        protocol
    }
}

fn header_v4(
    (class, ttl, protocol): (u8, u8, u8),
    ends: Ends<Ipv4Addr>,
    payload: usize,
    piece: Option<Piece>,
) -> Result<[u8; ipv4::HEADER_LEN], NotTranslatable> {
    let mut header = ipv4::Header {
        payload_len: u16::try_from(payload).map_err(|_| NotTranslatable)?,
        ttl,
        protocol,
        source: ends.source,
        destination: ends.destination,
    }
    .emit();
    let mut change = Change::default();
    edit::set_word(&mut header, 0, 0x4500 | u16::from(class), &mut change);
    if let Some(piece) = piece {
        let fragment = u16::from(piece.has_more) << 13 | piece.position;
        edit::set_word(&mut header, 4, piece.identification as u16, &mut change);
        edit::set_word(&mut header, 6, fragment, &mut change);
    }
    change.write(&mut header, 10);
    Ok(header)
}

/// An IPv6 header and, for a piece, the fragment header behind it.
struct HeaderV6 {
    fixed: [u8; ipv6::HEADER_LEN],
    fragment: Option<[u8; FRAGMENT_LEN]>,
}

impl HeaderV6 {
    fn new(
        (class, hop_limit, protocol): (u8, u8, u8),
        ends: Ends<Ipv6Addr>,
        payload: usize,
        piece: Option<Piece>,
    ) -> Result<HeaderV6, NotTranslatable> {
        let fragment = piece.map(|piece| {
            let position = piece.position << 3 | u16::from(piece.has_more);
            let [high, low] = position.to_be_bytes();
            let [a, b, c, d] = piece.identification.to_be_bytes();
            [protocol, 0, high, low, a, b, c, d]
        });
        let (next_header, payload) = match fragment {
            Some(_) => (protocol::FRAGMENT, payload + FRAGMENT_LEN),
            None => (protocol, payload),
        };
        let mut fixed = ipv6::Header {
            payload_len: u16::try_from(payload).map_err(|_| NotTranslatable)?,
            next_header,
            hop_limit,
            source: ends.source,
            destination: ends.destination,
        }
        .emit();
        let [first, second, ..] = &mut fixed;
        *first = 0x60 | class >> 4;
        *second = class << 4;
        Ok(HeaderV6 { fixed, fragment })
    }

    /// In bytes.
    fn len(&self) -> usize {
        self.fixed.len() + self.fragment.map_or(0, |fragment| fragment.len())
    }

    fn write(&self, buffer: &mut [u8], at: usize) -> Result<(), NotTranslatable> {
        let place = buffer.get_mut(at..at + self.len()).ok_or(NotTranslatable)?;
        let (fixed, fragment) = place.split_at_mut(self.fixed.len());
        fixed.copy_from_slice(&self.fixed);
        fragment.copy_from_slice(self.fragment.as_ref().map_or(&[], |header| &header[..]));
        Ok(())
    }
}

// ---- transport -------------------------------------------------------------------------------------------------------------

/// Echo types of both families.
const ECHO: [(u8, u8); 2] = [
    (icmp::V6_ECHO_REQUEST, icmp::ECHO_REQUEST),
    (icmp::V6_ECHO_REPLY, icmp::ECHO_REPLY),
];

/// Exchanges the pseudo header below the checksum of a transport whose full length is `total`. (The first piece of a fragmented packet shows
/// another length than the checksum covers; both pseudo headers have the same, so it does not matter.)
fn transport_to_v4(
    (protocol, piece): (u8, Option<Piece>),
    transport: &mut [u8],
    old: Ends<Ipv6Addr>,
    new: Ends<Ipv4Addr>,
    total: u32,
) -> Result<(), NotTranslatable> {
    if !is_header_in(protocol, piece)? {
        return Ok(());
    }
    let mut change = Change::default();
    change.remove_sum(pseudo_v6(old.source, old.destination, protocol, total));
    if protocol == protocol::ICMPV6 {
        let find = |kind| ECHO.iter().find(|(six, _)| *six == kind).map(|echo| echo.1);
        return echo(transport, change, find);
    }
    let total = u16::try_from(total).map_err(|_| NotTranslatable)?;
    change.add_sum(pseudo_v4(new.source, new.destination, protocol, total));
    write_checksum(protocol, transport, change)
}

/// Whether the transport header is at the front of what follows the IP header.
fn is_header_in(protocol: u8, piece: Option<Piece>) -> Result<bool, NotTranslatable> {
    match (protocol, piece) {
        (protocol::ICMP | protocol::ICMPV6, Some(_)) => Err(NotTranslatable),
        (_, Some(piece)) => Ok(!piece.is_later()),
        (_, None) => Ok(true),
    }
}

fn transport_to_v6(
    (protocol, piece): (u8, Option<Piece>),
    transport: &mut [u8],
    old: Ends<Ipv4Addr>,
    new: Ends<Ipv6Addr>,
    total: usize,
) -> Result<(), NotTranslatable> {
    if !is_header_in(protocol, piece)? {
        return Ok(());
    }
    let total = u16::try_from(total).map_err(|_| NotTranslatable)?;
    let target = protocol_v6(protocol);
    let pseudo = pseudo_v6(new.source, new.destination, target, u32::from(total));
    let mut change = Change::default();
    change.add_sum(pseudo);
    if protocol == protocol::ICMP {
        let find = |kind| {
            ECHO.iter()
                .find(|(_, four)| *four == kind)
                .map(|echo| echo.0)
        };
        return echo(transport, change, find);
    }
    if protocol == protocol::UDP && edit::word(transport, 6) == Some(0) {
        if piece.is_some() {
            return Err(NotTranslatable);
        }
        // IPv6 requires a checksum (RFC 7915 §4.5); of a quotation that is cut short it cannot be made.
        if transport.len() == usize::from(total) {
            let sum = checksum::udp(checksum::sum(pseudo, transport));
            edit::set_word(transport, 6, sum, &mut Change::default());
        }
        return Ok(());
    }
    change.remove_sum(pseudo_v4(old.source, old.destination, protocol, total));
    write_checksum(protocol, transport, change)
}

fn write_checksum(
    protocol: u8,
    transport: &mut [u8],
    change: Change,
) -> Result<(), NotTranslatable> {
    match protocol {
        protocol::TCP => change.write(transport, 16),
        protocol::UDP => change.write_udp(transport, 6),
        _ => return Err(NotTranslatable),
    }
    Ok(())
}

/// Gives an echo message the type of the other family; its code is 0 in both.
fn echo(
    transport: &mut [u8],
    mut change: Change,
    find: impl Fn(u8) -> Option<u8>,
) -> Result<(), NotTranslatable> {
    let kind = transport.first().copied().and_then(find);
    let kind = kind.ok_or(NotTranslatable)?;
    edit::set_word(transport, 0, u16::from(kind) << 8, &mut change);
    change.write(transport, 2);
    Ok(())
}

// ---- errors ----------------------------------------------------------------------------------------------------------------

fn is_error_v6(transport: &[u8]) -> bool {
    net::Icmpv6::new_checked(transport).is_ok_and(|message| message.is_error())
}

fn is_error_v4(transport: &[u8]) -> bool {
    net::Icmp::new_checked(transport).is_ok_and(|message| message.is_error())
}

/// Type and code in the first word, pointer or MTU in the second.
#[derive(Clone, Copy, Debug)]
struct ErrorHeader {
    kind: u8,
    code: u8,
    rest: [u8; 4],
}

impl ErrorHeader {
    fn read(transport: &[u8]) -> Option<ErrorHeader> {
        let [kind, code, _, _, a, b, c, d] = *transport.first_chunk::<{ icmp::HEADER_LEN }>()?;
        let rest = [a, b, c, d];
        Some(ErrorHeader { kind, code, rest })
    }

    fn plain(kind: u8, code: u8) -> ErrorHeader {
        let rest = [0; 4];
        ErrorHeader { kind, code, rest }
    }

    /// With checksum 0.
    fn write(self, transport: &mut [u8]) {
        let ErrorHeader {
            kind,
            code,
            rest: [a, b, c, d],
        } = self;
        if let Some(header) = transport.first_chunk_mut::<{ icmp::HEADER_LEN }>() {
            *header = [kind, code, 0, 0, a, b, c, d];
        }
    }

    /// RFC 7915 §5.2.
    fn to_v4(self) -> Option<ErrorHeader> {
        let ErrorHeader { kind, code, rest } = self;
        let unreachable = |code| Some(ErrorHeader::plain(icmp::UNREACHABLE, code));
        match (kind, code) {
            (1, 0 | 2 | 3) => unreachable(1),
            (1, 1) => unreachable(10),
            (1, 4) => unreachable(3),
            (2, _) => {
                let mtu = u32::from_be_bytes(rest).min(u32::from(u16::MAX)) as u16;
                let [high, low] = mtu.saturating_sub(MTU_OFFSET).to_be_bytes();
                let rest = [0, 0, high, low];
                Some(ErrorHeader {
                    rest,
                    ..ErrorHeader::plain(icmp::UNREACHABLE, 4)
                })
            }
            (3, code) => Some(ErrorHeader::plain(icmp::TIME_EXCEEDED, code)),
            (4, 0) => {
                let pointer = match u32::from_be_bytes(rest) {
                    pointer @ (0 | 1) => pointer as u8,
                    4 | 5 => 2,
                    6 => 9,
                    7 => 8,
                    8..=23 => 12,
                    24..=39 => 16,
                    _ => return None,
                };
                let rest = [pointer, 0, 0, 0];
                Some(ErrorHeader {
                    rest,
                    ..ErrorHeader::plain(icmp::PARAMETER_PROBLEM, 0)
                })
            }
            (4, 1) => unreachable(2),
            _ => None,
        }
    }

    /// RFC 7915 §4.2.
    fn to_v6(self) -> Option<ErrorHeader> {
        let ErrorHeader {
            kind,
            code,
            rest: [pointer, _, high, low],
        } = self;
        let problem = |code, pointer: u8| {
            let rest = [0, 0, 0, pointer];
            Some(ErrorHeader {
                rest,
                ..ErrorHeader::plain(4, code)
            })
        };
        match (kind, code) {
            (icmp::UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => Some(ErrorHeader::plain(1, 0)),
            (icmp::UNREACHABLE, 2) => problem(1, 6),
            (icmp::UNREACHABLE, 3) => Some(ErrorHeader::plain(1, 4)),
            (icmp::UNREACHABLE, 4) => {
                let mtu = match u16::from_be_bytes([high, low]) {
                    0 => MTU_DEFAULT,
                    mtu => mtu.saturating_add(MTU_OFFSET).max(MTU_DEFAULT),
                };
                let rest = u32::from(mtu).to_be_bytes();
                Some(ErrorHeader {
                    rest,
                    ..ErrorHeader::plain(2, 0)
                })
            }
            (icmp::UNREACHABLE, 9 | 10 | 13 | 15) => Some(ErrorHeader::plain(1, 1)),
            (icmp::TIME_EXCEEDED, code) => Some(ErrorHeader::plain(3, code)),
            (icmp::PARAMETER_PROBLEM, 0 | 2) => match pointer {
                0 | 1 => problem(0, pointer),
                2 | 3 => problem(0, 4),
                8 => problem(0, 7),
                9 => problem(0, 6),
                12..=15 => problem(0, 8),
                16..=19 => problem(0, 24),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Translates an ICMPv6 error with the packet it quotes; returns the new length.
fn error_to_v4(transport: &mut [u8], ends: Ends<Ipv4Addr>) -> Result<usize, NotTranslatable> {
    let header = ErrorHeader::read(transport).and_then(ErrorHeader::to_v4);
    let header = header.ok_or(NotTranslatable)?;
    let quoted = transport
        .get_mut(icmp::HEADER_LEN..)
        .ok_or(NotTranslatable)?;
    let Outline {
        ends: old,
        class,
        hop_limit,
        protocol,
        header_len: start,
        payload_len: total,
        piece,
    } = Outline::of_v6(&Ipv6::new_embedded(quoted).map_err(|_| NotTranslatable)?)?;
    let inner = quoted.get_mut(start..).ok_or(NotTranslatable)?;
    let total_word = u32::try_from(total).map_err(|_| NotTranslatable)?;
    transport_to_v4((protocol, piece), inner, old, ends, total_word)?;
    let kept = inner.len();
    let protocol = protocol_v4(protocol);
    let inner_header = header_v4((class, hop_limit, protocol), ends, total, piece)?;
    quoted.copy_within(start.., ipv4::HEADER_LEN);
    if let Some(front) = quoted.first_chunk_mut() {
        *front = inner_header;
    }
    let length = icmp::HEADER_LEN + ipv4::HEADER_LEN + kept;
    header.write(transport);
    let message = transport.get_mut(..length).ok_or(NotTranslatable)?;
    fill_checksum(message, 0);
    Ok(length)
}

/// Translates an ICMP error of `length` bytes with the packet it quotes; returns the new length. The checksum is left 0.
fn error_to_v6(
    transport: &mut [u8],
    length: usize,
    ends: Ends<Ipv6Addr>,
) -> Result<usize, NotTranslatable> {
    let header = ErrorHeader::read(transport).and_then(ErrorHeader::to_v6);
    let header = header.ok_or(NotTranslatable)?;
    let quoted = transport
        .get_mut(icmp::HEADER_LEN..length)
        .ok_or(NotTranslatable)?;
    let Outline {
        ends: old,
        class,
        hop_limit,
        protocol,
        header_len,
        payload_len: total,
        piece,
    } = Outline::of_v4(&Ipv4::new_embedded(quoted).map_err(|_| NotTranslatable)?)?;
    let inner = quoted.get_mut(header_len..).ok_or(NotTranslatable)?;
    transport_to_v6((protocol, piece), inner, old, ends, total)?;
    let kept = inner.len();
    let protocol = protocol_v6(protocol);
    let inner_header = HeaderV6::new((class, hop_limit, protocol), ends, total, piece)?;
    let begin = icmp::HEADER_LEN + inner_header.len();
    let new_length = begin + kept;
    if new_length > transport.len() {
        return Err(NotTranslatable);
    }
    let from = icmp::HEADER_LEN + header_len;
    transport.copy_within(from..length, begin);
    inner_header.write(transport, icmp::HEADER_LEN)?;
    header.write(transport);
    Ok(new_length)
}

/// Writes the ICMP checksum of a message whose field holds 0.
fn fill_checksum(message: &mut [u8], pseudo: u32) {
    let sum = checksum::finish(checksum::sum(pseudo, message));
    edit::set_word(message, 2, sum, &mut Change::default());
}
