//! ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861) headers as checked views.

use crate::Malformed;

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
