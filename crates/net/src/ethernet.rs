//! Ethernet II frames (RFC 894). VLAN tags are not interpreted: the overlay's ports are untagged.

use crate::{Mac, Malformed};

/// Bytes before the payload.
pub const HEADER_LEN: usize = 14;
/// EtherType of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const TYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const TYPE_IPV6: u16 = 0x86dd;

/// A frame whose header is complete.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Splits a frame. Fails only on runts.
    pub fn new_checked(frame: &'a [u8]) -> Result<Ethernet<'a>, Malformed> {
        let (header, payload) = frame.split_first_chunk().ok_or(Malformed::Truncated)?;
        Ok(Ethernet { header, payload })
    }

    /// Destination address.
    #[must_use]
    pub const fn destination(&self) -> Mac {
        let [a, b, c, d, e, f, ..] = *self.header;
        Mac([a, b, c, d, e, f])
    }

    /// Source address.
    #[must_use]
    pub const fn source(&self) -> Mac {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *self.header;
        Mac([a, b, c, d, e, f])
    }

    /// The EtherType (an IEEE 802.3 length if below 0x0600).
    #[must_use]
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.header[12], self.header[13]])
    }

    /// Everything behind the header, padding included.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The bytes of a header.
#[must_use]
pub const fn header(destination: Mac, source: Mac, ethertype: u16) -> [u8; HEADER_LEN] {
    let [a, b, c, d, e, f] = destination.0;
    let [g, h, i, j, k, l] = source.0;
    let [m, n] = ethertype.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n]
}

/// Writes a header to the front of `frame`; false (and nothing written) if there is no room.
pub fn emit(frame: &mut [u8], destination: Mac, source: Mac, ethertype: u16) -> bool {
    match frame.first_chunk_mut() {
        Some(front) => {
            *front = header(destination, source, ethertype);
            true
        }
        None => false,
    }
}
