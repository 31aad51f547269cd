//! The change of addresses and ports that an entry prescribes, with the checksums that cover them.
//!
//! Everything is worked out when the entry is decided: the new words as they go on the wire, and the differences of both checksums (RFC 1624), so a
//! packet costs a handful of loads and stores. One's-complement sums do not depend on the byte order (RFC 1071 §2 (B)), hence words are taken
//! as the processor reads them.

use super::Entry;
use super::key::{Transport, Tuple, wire_addresses_v4, wire_ports};
use core::net::IpAddr;
use net::{ipv4, ipv6};

/// Where the parts of an IP packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes from the IP header to the transport header.
    pub transport: usize,
    /// False for later fragments, whose payload does not begin with a transport header.
    pub has_ports: bool,
}

impl Layout {
    /// Of an IPv4 packet without options.
    pub(crate) const PLAIN_V4: Layout = Layout {
        transport: ipv4::HEADER_LEN,
        has_ports: true,
    };
    /// Of an IPv6 packet without extension headers.
    pub(crate) const PLAIN_V6: Layout = Layout {
        transport: ipv6::HEADER_LEN,
        has_ports: true,
    };
}

const fn sum32(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

const fn sum64(word: u64) -> u32 {
    sum32(word as u32) + sum32((word >> 32) as u32)
}

const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A checksum field after what it covers changed by `delta`: `!(!field + delta)` in one's complement, which is a difference with its borrow
/// brought round.
#[inline(always)]
const fn adjust(field: [u8; 2], delta: u16) -> [u8; 2] {
    let (difference, borrows) = u16::from_le_bytes(field).overflowing_sub(delta);
    difference.wrapping_sub(borrows as u16).to_le_bytes()
}

/// Prescribes that packets of `entry`, which show `from`, shall show `to`. False (and unchanged) if there is no such change within a family.
#[must_use]
pub(crate) fn prescribe(entry: &mut Entry, from: &Tuple, to: &Tuple) -> bool {
    if from == to {
        entry.flags &= !Entry::TRANSLATED;
        return true;
    }
    let (IpAddr::V4(s0), IpAddr::V4(d0), IpAddr::V4(s1), IpAddr::V4(d1)) =
        (from.source, from.destination, to.source, to.destination)
    else {
        return false;
    };
    let (old, new) = (wire_addresses_v4(s0, d0), wire_addresses_v4(s1, d1));
    let (old_ports, new_ports) = (wire_ports(from), wire_ports(to));
    let header = fold(sum64(!old) + sum64(new));
    let transport = match from.transport {
        // The only number is the identifier, and there is no pseudo header (RFC 792).
        Transport::Echo { .. } => fold((!old_ports & 0xffff) + (new_ports & 0xffff)),
        Transport::Tcp | Transport::Udp => {
            fold(sum64(!old) + sum64(new) + sum32(!old_ports) + sum32(new_ports))
        }
    };
    entry.flags |= Entry::TRANSLATED;
    entry.rewrite = new;
    let [_, extension, ..] = &mut entry.key.addresses;
    *extension = u64::from(new_ports) | u64::from(header) << 32 | u64::from(transport) << 48;
    true
}

/// Carries out the change of a [`Entry::TRANSLATED`] entry on the IP packet at the front of `packet`; false if it is too short, which the parser
/// has excluded.
#[inline]
#[must_use]
pub(crate) fn apply(entry: &Entry, packet: &mut [u8], layout: Layout) -> bool {
    let [_, extension, ..] = entry.key.addresses;
    let (header_delta, transport_delta) = ((extension >> 32) as u16, (extension >> 48) as u16);
    let Some((header, rest)) = packet.split_first_chunk_mut::<{ ipv4::HEADER_LEN }>() else {
        return false;
    };
    let protocol = header[9];
    [header[10], header[11]] = adjust([header[10], header[11]], header_delta);
    if let Some(addresses) = header.last_chunk_mut::<8>() {
        *addresses = entry.rewrite.to_le_bytes();
    }
    if !layout.has_ports {
        return true;
    }
    let transport = rest.get_mut(layout.transport.saturating_sub(ipv4::HEADER_LEN)..);
    let Some(transport) = transport else {
        return false;
    };
    apply_transport(protocol, transport, extension as u32, transport_delta)
}

#[inline(always)]
fn apply_transport(protocol: u8, bytes: &mut [u8], ports: u32, delta: u16) -> bool {
    let Some(head) = bytes.first_chunk_mut::<8>() else {
        return false;
    };
    let [p0, p1, p2, p3] = ports.to_le_bytes();
    match protocol {
        net::protocol::UDP => {
            [head[0], head[1], head[2], head[3]] = [p0, p1, p2, p3];
            // Zero means "no checksum" (RFC 768) and stays; a result of zero is written as its other form.
            if [head[6], head[7]] != [0, 0] {
                let sum = u16::from_le_bytes(adjust([head[6], head[7]], delta));
                let sum = sum.wrapping_sub(u16::from(sum == 0));
                [head[6], head[7]] = sum.to_le_bytes();
            }
        }
        net::protocol::ICMP => {
            [head[4], head[5]] = [p0, p1];
            [head[2], head[3]] = adjust([head[2], head[3]], delta);
        }
        _ => {
            [head[0], head[1], head[2], head[3]] = [p0, p1, p2, p3];
            let Some(sum) = bytes.get_mut(16..).and_then(<[u8]>::first_chunk_mut::<2>) else {
                return false;
            };
            *sum = adjust(*sum, delta);
        }
    }
    true
}
