//! IPv4 (RFC 791) as a checked view.

use crate::{Malformed, checksum};
use core::net::Ipv4Addr;

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// Option type "loose source and record route".
const OPTION_LSRR: u8 = 131;
/// Option type "strict source and record route".
const OPTION_SSRR: u8 = 137;

/// A packet whose version, header length and total length agree with the bytes at hand.
///
/// The header checksum is not verified: the overlay forwards what it gets, and the receiver's stack checks it.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Checks the header and cuts the payload to the total length (Ethernet may have padded it).
    pub fn new_checked(bytes: &'a [u8]) -> Result<Ipv4<'a>, Malformed> {
        let view = Self::new_embedded(bytes)?;
        let total = usize::from(view.total_len());
        let packet = bytes.get(..total).ok_or(Malformed::Truncated)?;
        let header_len = HEADER_LEN + view.options.len();
        let payload = packet.get(header_len..).ok_or(Malformed::Length)?;
        Ok(Ipv4 { payload, ..view })
    }

    /// Like [`Ipv4::new_checked`], but the packet may be cut short: the quotation inside an ICMP error (RFC 792).
    pub fn new_embedded(bytes: &'a [u8]) -> Result<Ipv4<'a>, Malformed> {
        let (header, rest) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        let header: &[u8; HEADER_LEN] = header;
        if header[0] >> 4 != 4 {
            return Err(Malformed::Version);
        }
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let options_len = header_len
            .checked_sub(HEADER_LEN)
            .ok_or(Malformed::Length)?;
        let (options, payload) = rest
            .split_at_checked(options_len)
            .ok_or(Malformed::Truncated)?;
        Ok(Ipv4 {
            header,
            options,
            payload,
        })
    }

    /// Total length field: header and payload.
    #[must_use]
    pub const fn total_len(&self) -> u16 {
        u16::from_be_bytes([self.header[2], self.header[3]])
    }

    /// Header length with options, in bytes.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// Type of service / DSCP and ECN.
    #[must_use]
    pub const fn traffic_class(&self) -> u8 {
        self.header[1]
    }

    /// Identification.
    #[must_use]
    pub const fn identification(&self) -> u16 {
        u16::from_be_bytes([self.header[4], self.header[5]])
    }

    /// True for every piece of a fragmented packet, the first included.
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be_bytes([self.header[6], self.header[7]]) & 0x3fff != 0
    }

    /// Where in the original payload this piece belongs, in units of eight bytes: 0 for the first one.
    #[must_use]
    pub const fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes([self.header[6], self.header[7]]) & 0x1fff
    }

    /// Whether further pieces follow this one.
    #[must_use]
    pub const fn has_more_fragments(&self) -> bool {
        self.header[6] & 0x20 != 0
    }

    /// Time to live.
    #[must_use]
    pub const fn ttl(&self) -> u8 {
        self.header[8]
    }

    /// Protocol of the payload.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.header[9]
    }

    /// Header checksum field.
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.header[10], self.header[11]])
    }

    /// Source address.
    #[must_use]
    pub const fn source(&self) -> Ipv4Addr {
        Ipv4Addr::new(
            self.header[12],
            self.header[13],
            self.header[14],
            self.header[15],
        )
    }

    /// Destination address.
    #[must_use]
    pub const fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::new(
            self.header[16],
            self.header[17],
            self.header[18],
            self.header[19],
        )
    }

    /// The bytes behind the header.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Whether the options ask for source routing (RFC 791 §3.1), which would bypass every address check.
    ///
    /// An option area that cannot be walked counts as such, so that it is never forwarded misread.
    #[must_use]
    pub fn has_source_route(&self) -> bool {
        let mut rest = self.options;
        loop {
            match rest {
                [] | [0, ..] => return false,
                [1, tail @ ..] => rest = tail,
                [OPTION_LSRR | OPTION_SSRR, ..] | [_] => return true,
                [_, length, ..] => match rest.get(usize::from(*length)..) {
                    Some(tail) if *length >= 2 => rest = tail,
                    Some(_) | None => return true,
                },
            }
        }
    }
}

/// Fields of a header without options; identification 0 with "don't fragment" clear, as an atomic datagram (RFC 6864).
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Bytes behind the header.
    pub payload_len: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

impl Header {
    /// The wire form with its checksum; a payload that does not fit is saturated.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let Header {
            payload_len,
            ttl,
            protocol,
            source,
            destination,
        } = *self;
        let [l0, l1] = payload_len.saturating_add(20).to_be_bytes();
        let [a, b, c, d] = source.octets();
        let [e, f, g, h] = destination.octets();
        let mut bytes = [
            0x45, 0, l0, l1, 0, 0, 0, 0, ttl, protocol, 0, 0, a, b, c, d, e, f, g, h,
        ];
        let [c0, c1] = checksum::checksum(&bytes).to_be_bytes();
        bytes[10] = c0;
        bytes[11] = c1;
        bytes
    }
}
