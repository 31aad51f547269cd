//! ICMP errors about translated connections (RFC 5508 §4.2): the packet quoted inside is translated like the connection itself, so that
//! the one who gets the error recognises it.
//!
//! Four checksums may be concerned: of the outer IP header, of the ICMP message (which covers the quotation), of the quoted IP header and
//! of the quoted transport header as far as it is there.

use crate::edit::{Change, Side, set_address, set_transport_port};
use core::net::IpAddr;
use net::ipv6::Upper;
use net::{Ipv4, Ipv6, icmp, protocol};

/// One end of the quoted packet as it shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotedEnd {
    /// Its address.
    pub address: IpAddr,
    /// Its port or echo identifier.
    pub port: u16,
}

/// An error on its way *to* the machine: the quoted packet was sent by the machine, so its source (and the error's destination) becomes
/// what the machine knows. `packet` starts with the IP header and ends with the IP packet. False if it is not such an error.
#[must_use]
pub fn translate_inbound(packet: &mut [u8], machine: QuotedEnd) -> bool {
    translate(packet, Side::Source, machine)
}

/// An error *from* the machine about a packet it got: the quoted packet's destination (and the error's source) becomes what the rest of
/// the world knows.
#[must_use]
pub fn translate_outbound(packet: &mut [u8], public: QuotedEnd) -> bool {
    translate(packet, Side::Destination, public)
}

/// Where things are in an error.
#[derive(Clone, Copy, Debug)]
struct Layout {
    icmp: usize,
    quoted: usize,
    /// Transport header of the quoted packet and its protocol; `None` if it is a later fragment.
    transport: Option<(usize, u8)>,
}

/// Sets one end of the quoted packet, and the same address on the opposite side of the error itself.
fn translate(packet: &mut [u8], quoted_side: Side, end: QuotedEnd) -> bool {
    let Some(layout) = layout(packet) else {
        return false;
    };
    let outer_side = match quoted_side {
        Side::Source => Side::Destination,
        Side::Destination => Side::Source,
    };
    let mut outer = Change::default();
    set_address(packet, outer_side, end.address, &mut outer);
    // Everything quoted is covered by the ICMP checksum: sum it before and after.
    let mut message = Change::default();
    let (front, quoted) = packet.split_at_mut(layout.quoted);
    let sum = |bytes: &[u8]| (!net::checksum::checksum(bytes)).to_be_bytes();
    let before = sum(quoted);
    translate_quoted(quoted, quoted_side, end, layout);
    message.replace(&before, &sum(quoted));
    if front.first().map(|first| first >> 4) == Some(6) {
        // ICMPv6 has a pseudo header (RFC 4443 §2.3).
        message.merge(outer);
    }
    message.write(front, layout.icmp + 2);
    true
}

/// Edits the quoted packet in place, with its own checksums.
fn translate_quoted(quoted: &mut [u8], side: Side, end: QuotedEnd, layout: Layout) {
    let mut pseudo = Change::default();
    set_address(quoted, side, end.address, &mut pseudo);
    let Some((offset, protocol)) = layout.transport else {
        return;
    };
    let Some(transport) = quoted.get_mut(offset..) else {
        return;
    };
    if protocol == protocol::ICMP {
        // ICMP has no pseudo header.
        pseudo = Change::default();
    }
    set_transport_port(transport, protocol, side, end.port, pseudo);
}

fn layout(packet: &[u8]) -> Option<Layout> {
    let quoted_at = |icmp: usize| icmp + icmp::HEADER_LEN;
    match packet.first()? >> 4 {
        4 => {
            let outer = Ipv4::new_checked(packet).ok()?;
            let message = net::Icmp::new_checked(outer.payload()).ok()?;
            if outer.protocol() != protocol::ICMP || !message.is_error() || outer.is_fragment() {
                return None;
            }
            let quoted = Ipv4::new_embedded(message.body()).ok()?;
            let icmp = outer.header_len();
            Some(Layout {
                icmp,
                quoted: quoted_at(icmp),
                transport: (quoted.fragment_offset() == 0)
                    .then(|| (quoted.header_len(), quoted.protocol())),
            })
        }
        6 => {
            let outer = Ipv6::new_checked(packet).ok()?;
            let Ok(Upper::Transport {
                protocol: protocol::ICMPV6,
                offset,
                bytes,
            }) = outer.upper()
            else {
                return None;
            };
            let message = net::Icmpv6::new_checked(bytes).ok()?;
            if !message.is_error() {
                return None;
            }
            let quoted = Ipv6::new_embedded(message.body()).ok()?;
            let icmp = net::ipv6::HEADER_LEN + offset;
            let transport = match quoted.upper() {
                Ok(Upper::Transport {
                    protocol, offset, ..
                })
                | Ok(Upper::Fragment {
                    protocol,
                    offset,
                    position: 0,
                    ..
                }) => Some((net::ipv6::HEADER_LEN + offset, protocol)),
                Ok(Upper::Fragment { .. } | Upper::SourceRoute | Upper::TooMany) | Err(_) => None,
            };
            Some(Layout {
                icmp,
                quoted: quoted_at(icmp),
                transport,
            })
        }
        _ => None,
    }
}
