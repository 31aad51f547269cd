//! IPv6 (RFC 8200) as a checked view, and the walk over extension headers.

use crate::{Malformed, protocol};
use core::net::Ipv6Addr;

/// Length of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Extension headers a packet may carry before it is given up on.
pub const EXTENSION_HEADERS_MAX: usize = 8;
/// The all-nodes link-local multicast address `ff02::1`.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A packet whose version and payload length agree with the bytes at hand.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

/// What the chain of extension headers leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper<'a> {
    /// A transport header of this protocol at the front of the bytes, which start `offset` bytes behind the fixed header.
    Transport {
        protocol: u8,
        offset: usize,
        bytes: &'a [u8],
    },
    /// A piece of a fragmented packet of this protocol, which starts `offset` bytes behind the fixed header and belongs `position` times
    /// eight bytes into the original payload. Only the first one begins with a transport header.
    Fragment {
        protocol: u8,
        offset: usize,
        position: u16,
        has_more: bool,
        identification: u32,
        bytes: &'a [u8],
    },
    /// A routing header with segments left: source routing, which would bypass every address check (RFC 5095).
    SourceRoute,
    /// More than [`EXTENSION_HEADERS_MAX`] headers.
    TooMany,
}

impl<'a> Ipv6<'a> {
    /// Checks the header and cuts the payload to its length field. Jumbograms (RFC 2675) are not supported.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Ipv6<'a>, Malformed> {
        let view = Self::new_embedded(bytes)?;
        let payload = view
            .payload
            .get(..usize::from(view.payload_len()))
            .ok_or(Malformed::Truncated)?;
        Ok(Ipv6 { payload, ..view })
    }

    /// Like [`Ipv6::new_checked`], but the packet may be cut short: the quotation inside an ICMPv6 error (RFC 4443 §2.4).
    pub fn new_embedded(bytes: &'a [u8]) -> Result<Ipv6<'a>, Malformed> {
        let (header, payload) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        let header: &[u8; HEADER_LEN] = header;
        if header[0] >> 4 != 6 {
            return Err(Malformed::Version);
        }
        Ok(Ipv6 { header, payload })
    }

    /// DSCP and ECN.
    #[must_use]
    pub const fn traffic_class(&self) -> u8 {
        self.header[0] << 4 | self.header[1] >> 4
    }

    /// Payload length field.
    #[must_use]
    pub const fn payload_len(&self) -> u16 {
        u16::from_be_bytes([self.header[4], self.header[5]])
    }

    /// First next-header value.
    #[must_use]
    pub const fn next_header(&self) -> u8 {
        self.header[6]
    }

    /// Hop limit.
    #[must_use]
    pub const fn hop_limit(&self) -> u8 {
        self.header[7]
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> Ipv6Addr {
        address(self.header.get(8..24))
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> Ipv6Addr {
        address(self.header.get(24..40))
    }

    /// The bytes behind the fixed header.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Walks the extension headers (RFC 8200 §4) to the upper layer.
    pub fn upper(&self) -> Result<Upper<'a>, Malformed> {
        let mut protocol = self.next_header();
        let mut bytes = self.payload;
        for _ in 0..=EXTENSION_HEADERS_MAX {
            match protocol {
                protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS | protocol::ROUTING => {
                    let [next, units, _, segments_left] =
                        *bytes.first_chunk().ok_or(Malformed::Truncated)?;
                    if protocol == protocol::ROUTING && segments_left != 0 {
                        return Ok(Upper::SourceRoute);
                    }
                    let length = (usize::from(units) + 1) * 8;
                    bytes = bytes.get(length..).ok_or(Malformed::Truncated)?;
                    protocol = next;
                }
                protocol::FRAGMENT => {
                    let (header, bytes) =
                        bytes.split_first_chunk::<8>().ok_or(Malformed::Truncated)?;
                    let [protocol, _, high, low, identification @ ..] = *header;
                    let position = u16::from_be_bytes([high, low]);
                    return Ok(Upper::Fragment {
                        protocol,
                        offset: self.payload.len() - bytes.len(),
                        position: position >> 3,
                        has_more: position & 1 != 0,
                        identification: u32::from_be_bytes(identification),
                        bytes,
                    });
                }
                _ => {
                    let offset = self.payload.len() - bytes.len();
                    return Ok(Upper::Transport {
                        protocol,
                        offset,
                        bytes,
                    });
                }
            }
        }
        Ok(Upper::TooMany)
    }
}

/// `bytes` always has 16 bytes where this is called; the unspecified address is the harmless fallback.
fn address(bytes: Option<&[u8]>) -> Ipv6Addr {
    let octets: [u8; 16] = bytes
        .and_then(|b| b.first_chunk().copied())
        .unwrap_or_default();
    Ipv6Addr::from_octets(octets)
}

/// Fields of a fixed header; traffic class and flow label are zero.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Bytes behind the header.
    pub payload_len: u16,
    /// Protocol of the payload.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Header {
    /// The wire form.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let Header {
            payload_len,
            next_header,
            hop_limit,
            source,
            destination,
        } = *self;
        let [l0, l1] = payload_len.to_be_bytes();
        let mut bytes = [0; HEADER_LEN];
        let (fixed, addresses) = bytes.split_at_mut(8);
        fixed.copy_from_slice(&[0x60, 0, 0, 0, l0, l1, next_header, hop_limit]);
        let (from, to) = addresses.split_at_mut(16);
        from.copy_from_slice(&source.octets());
        to.copy_from_slice(&destination.octets());
        bytes
    }
}
