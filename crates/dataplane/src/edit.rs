//! Changing fields of a packet together with the checksums that cover them.
//!
//! Checksums are updated by the difference (RFC 1624), so a packet that arrives damaged leaves damaged and the receiver notices. A packet
//! that is too short for a field is left alone in that place: callers have parsed it before.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::checksum;

/// One end of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Running difference between what a checksum covers and what it shall cover.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change(u32);

impl Change {
    /// A field's bytes were replaced; both at the same, even offset.
    pub(crate) fn replace(&mut self, old: &[u8], new: &[u8]) {
        // The complement of a sum is its negative in one's complement.
        self.remove_sum(checksum::sum(0, old));
        self.add_sum(checksum::sum(0, new));
    }

    /// A sum of 16-bit words is no longer covered.
    pub(crate) fn remove_sum(&mut self, sum: u32) {
        self.add_sum(u32::from(checksum::finish(sum)));
    }

    /// A sum of 16-bit words is covered in addition.
    pub(crate) fn add_sum(&mut self, sum: u32) {
        let total = u64::from(self.0) + u64::from(sum);
        let total = (total & 0xffff_ffff) + (total >> 32);
        let total = (total as u32 & 0xffff) + (total >> 16) as u32;
        self.0 = (total & 0xffff) + (total >> 16);
    }

    /// Takes over what another change covers.
    pub(crate) fn merge(&mut self, other: Change) {
        self.add_sum(other.0);
    }

    /// A checksum field after the change.
    pub(crate) fn apply(self, field: u16) -> u16 {
        checksum::finish(u32::from(!field) + self.0)
    }

    /// Updates the checksum at `offset`.
    pub(crate) fn write(self, bytes: &mut [u8], offset: usize) {
        if let Some(field) = field(bytes, offset) {
            *field = self.apply(u16::from_be_bytes(*field)).to_be_bytes();
        }
    }

    /// Updates a UDP checksum, where zero means "none" and stays so (RFC 768).
    pub(crate) fn write_udp(self, bytes: &mut [u8], offset: usize) {
        if let Some(field) = field(bytes, offset)
            && *field != [0, 0]
        {
            *field = match self.apply(u16::from_be_bytes(*field)) {
                0 => [0xff, 0xff],
                sum => sum.to_be_bytes(),
            };
        }
    }
}

/// Two bytes at an offset.
pub(crate) fn field(bytes: &mut [u8], offset: usize) -> Option<&mut [u8; 2]> {
    bytes.get_mut(offset..)?.first_chunk_mut::<2>()
}

/// Two bytes at an offset as a number.
pub(crate) fn word(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair = bytes.get(offset..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*pair))
}

/// Writes a 16-bit field and notes the change.
pub(crate) fn set_word(bytes: &mut [u8], offset: usize, value: u16, change: &mut Change) {
    if let Some(field) = field(bytes, offset) {
        change.replace(field, &value.to_be_bytes());
        *field = value.to_be_bytes();
    }
}

/// Writes an IPv4 address of the header at the front of `packet`, updates the header's checksum and notes the change of the address for
/// checksums with a pseudo header.
pub(crate) fn set_address_v4(
    packet: &mut [u8],
    side: Side,
    address: Ipv4Addr,
    pseudo: &mut Change,
) {
    let offset = match side {
        Side::Source => 12,
        Side::Destination => 16,
    };
    let mut header = Change::default();
    if let Some(field) = packet
        .get_mut(offset..)
        .and_then(<[u8]>::first_chunk_mut::<4>)
    {
        let new = address.octets();
        header.replace(field, &new);
        pseudo.replace(field, &new);
        *field = new;
    }
    header.write(packet, 10);
}

/// The same for IPv6, whose header has no checksum.
pub(crate) fn set_address_v6(
    packet: &mut [u8],
    side: Side,
    address: Ipv6Addr,
    pseudo: &mut Change,
) {
    let offset = match side {
        Side::Source => 8,
        Side::Destination => 24,
    };
    if let Some(field) = packet
        .get_mut(offset..)
        .and_then(<[u8]>::first_chunk_mut::<16>)
    {
        let new = address.octets();
        pseudo.replace(field, &new);
        *field = new;
    }
}

/// Writes an address of either family; one that does not fit the packet is ignored.
pub(crate) fn set_address(packet: &mut [u8], side: Side, address: IpAddr, pseudo: &mut Change) {
    match (packet.first().map(|first| first >> 4), address) {
        (Some(4), IpAddr::V4(address)) => set_address_v4(packet, side, address, pseudo),
        (Some(6), IpAddr::V6(address)) => set_address_v6(packet, side, address, pseudo),
        _ => {}
    }
}

/// Writes a port, or an echo identifier, of the transport of an IP packet without extension headers other than a fragment header, with its
/// checksum. A later piece of a fragmented packet has none.
pub(crate) fn set_port(packet: &mut [u8], side: Side, port: u16) {
    if let Some((transport, protocol)) = transport(packet)
        && let Some(bytes) = packet.get_mut(transport..)
    {
        set_transport_port(bytes, protocol, side, port, Change::default());
    }
}

/// Where the transport header of an IP packet is, and its protocol.
fn transport(packet: &[u8]) -> Option<(usize, u8)> {
    let fixed = net::ipv6::HEADER_LEN;
    let (place, protocol, position) = match packet.first()? {
        first if first >> 4 == 4 => {
            let words = usize::from(first & 0x0f);
            (words * 4, *packet.get(9)?, word(packet, 6)? & 0x1fff)
        }
        _ => match *packet.get(6)? {
            net::protocol::FRAGMENT => (
                fixed + 8,
                *packet.get(fixed)?,
                word(packet, fixed + 2)? >> 3,
            ),
            protocol => (fixed, protocol, 0),
        },
    };
    (position == 0).then_some((place, protocol))
}

/// Sets a port or echo identifier in the transport header that starts `bytes` and its checksum, which `change` concerns as well.
pub(crate) fn set_transport_port(
    bytes: &mut [u8],
    protocol: u8,
    side: Side,
    port: u16,
    mut change: Change,
) {
    let offset = match side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    match protocol {
        net::protocol::TCP => {
            set_word(bytes, offset, port, &mut change);
            change.write(bytes, 16);
        }
        net::protocol::UDP => {
            set_word(bytes, offset, port, &mut change);
            change.write_udp(bytes, 6);
        }
        net::protocol::ICMP | net::protocol::ICMPV6 => {
            set_word(bytes, 4, port, &mut change);
            change.write(bytes, 2);
        }
        _ => {}
    }
}
