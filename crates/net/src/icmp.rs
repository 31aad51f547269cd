//! ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861) headers as checked views.

use crate::{Malformed, checksum, ipv4, ipv6, protocol};
use core::net::IpAddr;

/// Length of the common header with its four type-specific bytes.
pub const HEADER_LEN: usize = 8;
/// ICMP echo reply.
pub const ECHO_REPLY: u8 = 0;
/// ICMP destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// ICMP echo request.
pub const ECHO_REQUEST: u8 = 8;
/// ICMP time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// ICMP parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// ICMPv6 destination unreachable, packet too big, time exceeded and parameter problem are types 1 to 4.
pub const V6_ERROR_LAST: u8 = 4;
/// ICMPv6 echo request.
pub const V6_ECHO_REQUEST: u8 = 128;
/// ICMPv6 echo reply.
pub const V6_ECHO_REPLY: u8 = 129;
/// Router solicitation (RFC 4861 §4.1).
pub const V6_ROUTER_SOLICITATION: u8 = 133;
/// Router advertisement (RFC 4861 §4.2).
pub const V6_ROUTER_ADVERTISEMENT: u8 = 134;
/// Neighbour solicitation (RFC 4861 §4.3).
pub const V6_NEIGHBOUR_SOLICITATION: u8 = 135;
/// Neighbour advertisement (RFC 4861 §4.4).
pub const V6_NEIGHBOUR_ADVERTISEMENT: u8 = 136;

macro_rules! view {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<'a> {
            header: &'a [u8; HEADER_LEN],
            body: &'a [u8],
        }

        impl<'a> $name<'a> {
            /// Splits the common header off. The checksum is not verified.
            pub fn new_checked(bytes: &'a [u8]) -> Result<$name<'a>, Malformed> {
                let (header, body) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
                Ok($name { header, body })
            }

            /// Message type.
            #[must_use]
            pub const fn kind(&self) -> u8 {
                self.header[0]
            }

            /// Code within the type.
            #[must_use]
            pub const fn code(&self) -> u8 {
                self.header[1]
            }

            /// Identifier of an echo message; type-specific bytes otherwise.
            #[must_use]
            pub const fn identifier(&self) -> u16 {
                u16::from_be_bytes([self.header[4], self.header[5]])
            }

            /// The last four bytes of the header as a number: the MTU of ICMPv6 "packet too big" (RFC 4443 §3.2).
            #[must_use]
            pub const fn parameter(&self) -> u32 {
                let [_, _, _, _, a, b, c, d] = *self.header;
                u32::from_be_bytes([a, b, c, d])
            }

            /// Everything behind the first eight bytes: in an error, the packet that caused it.
            #[must_use]
            pub const fn body(&self) -> &'a [u8] {
                self.body
            }
        }
    };
}

view! {
    /// An ICMP message.
    Icmp
}
view! {
    /// An ICMPv6 message.
    Icmpv6
}

impl Icmp<'_> {
    /// Whether the message quotes a packet of the flow it is about (RFC 792: types 3, 11, 12).
    #[must_use]
    pub const fn is_error(&self) -> bool {
        matches!(self.kind(), UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }
}

impl Icmpv6<'_> {
    /// Whether the message quotes a packet of the flow it is about (RFC 4443 §3: types 1 to 4).
    #[must_use]
    pub const fn is_error(&self) -> bool {
        1 <= self.kind() && self.kind() <= V6_ERROR_LAST
    }
}

/// Longest ICMP error, IPv4 header included (RFC 1812 §4.3.2.3).
const ERROR_V4_MAX: usize = 576;
/// Longest ICMPv6 error, IPv6 header included (RFC 4443 §2.4 (c)).
const ERROR_V6_MAX: usize = 1_280;
/// Most bytes of a packet that an error of either family quotes.
pub const QUOTE_MAX: usize = ERROR_V6_MAX - ipv6::HEADER_LEN - HEADER_LEN;

/// The fields of an error about a packet, without the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorMessage {
    /// Who reports it.
    pub source: IpAddr,
    /// Who sent the packet; of the same family.
    pub destination: IpAddr,
    /// Type.
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// The last four bytes of the header: the MTU where the type has one, else zero.
    pub parameter: u32,
    /// Time to live, or hop limit, of the message.
    pub ttl: u8,
}

impl ErrorMessage {
    /// How many bytes of a packet of `length` bytes the error quotes.
    #[must_use]
    pub fn quote_len(&self, length: usize) -> usize {
        length.min(match self.destination {
            IpAddr::V4(_) => ERROR_V4_MAX - ipv4::HEADER_LEN - HEADER_LEN,
            IpAddr::V6(_) => QUOTE_MAX,
        })
    }

    /// Length of the IP packet with a quotation of `quote_len` bytes.
    #[must_use]
    pub fn packet_len(&self, quote_len: usize) -> usize {
        let header_len = match self.destination {
            IpAddr::V4(_) => ipv4::HEADER_LEN,
            IpAddr::V6(_) => ipv6::HEADER_LEN,
        };
        header_len + HEADER_LEN + quote_len
    }

    /// Writes the IP packet, which takes all of `out`, with its checksums. False if `out` is not [`Self::packet_len`] bytes long or the
    /// addresses are of two families.
    #[must_use]
    pub fn emit(&self, out: &mut [u8], quote: &[u8]) -> bool {
        let payload_len = HEADER_LEN + quote.len();
        if out.len() != self.packet_len(quote.len()) {
            return false;
        }
        let Ok(length) = u16::try_from(payload_len) else {
            return false;
        };
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = ipv4::Header {
                    payload_len: length,
                    ttl: self.ttl,
                    protocol: protocol::ICMP,
                    source,
                    destination,
                };
                self.write(out, &header.emit(), quote, 0)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = ipv6::Header {
                    payload_len: length,
                    next_header: protocol::ICMPV6,
                    hop_limit: self.ttl,
                    source,
                    destination,
                };
                let pseudo =
                    checksum::pseudo_v6(source, destination, protocol::ICMPV6, u32::from(length));
                self.write(out, &header.emit(), quote, pseudo)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    fn write(&self, out: &mut [u8], header: &[u8], quote: &[u8], pseudo: u32) -> bool {
        let Some((front, message)) = out.split_at_mut_checked(header.len()) else {
            return false;
        };
        front.copy_from_slice(header);
        let Some((front, body)) = message.split_first_chunk_mut::<HEADER_LEN>() else {
            return false;
        };
        let [a, b, c, d] = self.parameter.to_be_bytes();
        *front = [self.kind, self.code, 0, 0, a, b, c, d];
        let sum = checksum::sum(checksum::sum(pseudo, front), quote);
        [front[2], front[3]] = checksum::finish(sum).to_be_bytes();
        match body.get_mut(..quote.len()) {
            Some(body) => {
                body.copy_from_slice(quote);
                true
            }
            None => false,
        }
    }
}
