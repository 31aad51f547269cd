//! Value types that cannot be wrong (`Vni`, `Mac`, `Prefix`, `PortRange`) and wire formats as checked views.
//!
//! Pure: no IO, no clock, no randomness, nothing allocated. Deliberately not here: what a packet *means*
//! (crate `dataplane`), DHCP option coding (crate `dhcproto`) and any socket (crate `ports`).
//! Start with [`types`], then [`ipv4`] as the model of every other header module.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod types;
pub mod udp;

pub use arp::Arp;
pub use ethernet::Ethernet;
pub use icmp::{Icmp, Icmpv6};
pub use ipv4::Ipv4;
pub use ipv6::Ipv6;
pub use tcp::Tcp;
pub use types::{Mac, PortRange, Prefix, Vni};
pub use udp::Udp;

/// Why bytes are not the header they were taken for. The packet is to be dropped and counted; nothing can be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// Fewer bytes than the fixed header, or than a length field promises.
    Truncated,
    /// A version, hardware type or similar constant has another value than this format prescribes.
    Version,
    /// A length field is smaller than what it must cover.
    Length,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Truncated => "truncated header",
            Self::Version => "unexpected version or type",
            Self::Length => "inconsistent length field",
        })
    }
}

impl core::error::Error for Malformed {}

/// IP protocol numbers used by the overlay (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200 §4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003, RFC 2473).
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: u8 = 41;
    /// IPv6 routing header (RFC 8200 §4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 §4.5).
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 "no next header" (RFC 8200 §4.7).
    pub const NO_NEXT: u8 = 59;
    /// IPv6 destination options (RFC 8200 §4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
}
