//! Identifiers and ranges parsed once at the edge, so that inner code never re-checks them.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

/// A virtual network identifier: 24 bits, as in VXLAN and Geneve (RFC 7348 §5). It never travels on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier.
    pub const MAX: Vni = Vni(0x00ff_ffff);

    /// `None` if `value` needs more than 24 bits.
    #[must_use]
    pub const fn new(value: u32) -> Option<Vni> {
        if value <= Self::MAX.0 {
            Some(Vni(value))
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address in wire order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All ones: every station.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    /// All zeroes: "not known".
    pub const ZERO: Mac = Mac([0; 6]);
    /// The group address of the IPv6 all-nodes multicast `ff02::1` (RFC 2464 §7).
    pub const IPV6_ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

    /// True for multicast and broadcast (the group bit, IEEE 802-2014 §8.2.2).
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The address in the low 48 bits, first octet highest; fits an atomic word.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The inverse of [`Mac::to_u64`]; the top 16 bits are ignored.
    #[must_use]
    pub const fn from_u64(value: u64) -> Mac {
        let [_, _, a, b, c, d, e, f] = value.to_be_bytes();
        Mac([a, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The text is not a value of the wanted type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError(&'static str);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a valid {}", self.0)
    }
}

impl core::error::Error for ParseError {}

impl FromStr for Mac {
    type Err = ParseError;

    /// Six pairs of hexadecimal digits separated by `:`.
    fn from_str(text: &str) -> Result<Mac, ParseError> {
        const ERROR: ParseError = ParseError("MAC address");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(ERROR)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| ERROR)?;
        }
        if parts.next().is_some() {
            Err(ERROR)
        } else {
            Ok(Mac(octets))
        }
    }
}

/// An IP prefix whose host bits are zero.
///
/// Ordered by family, then address, then length (shorter, that is covering, prefixes first).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Masks `address` to `length` bits; `None` if the family has fewer bits than that.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        let address = match address {
            IpAddr::V4(a) if length <= 32 => IpAddr::V4(mask_v4(a, length)),
            IpAddr::V6(a) if length <= 128 => IpAddr::V6(mask_v6(a, length)),
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Prefix { address, length })
    }

    /// The prefix that covers exactly this address.
    #[must_use]
    pub const fn host(address: IpAddr) -> Prefix {
        let length = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Prefix { address, length }
    }

    /// The first address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of significant bits.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "the length of a mask, not of a collection"
    )]
    pub const fn len(&self) -> u8 {
        self.length
    }

    /// Whether `address` is of the same family and inside.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(base), IpAddr::V4(a)) => mask_v4(a, self.length) == base,
            (IpAddr::V6(base), IpAddr::V6(a)) => mask_v6(a, self.length) == base,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn mask_v4(address: Ipv4Addr, length: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

fn mask_v6(address: Ipv6Addr, length: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = ParseError;

    /// `address/length`; host bits are cleared.
    fn from_str(text: &str) -> Result<Prefix, ParseError> {
        const ERROR: ParseError = ParseError("prefix");
        let (address, length) = text.split_once('/').ok_or(ERROR)?;
        let address = address.parse().map_err(|_| ERROR)?;
        let length = length.parse().map_err(|_| ERROR)?;
        Prefix::new(address, length).ok_or(ERROR)
    }
}

/// Ports `first..end`, never empty; `end` is exclusive, as in the NAT ranges of the control protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    end: u16,
}

impl PortRange {
    /// `None` unless `first < end`.
    #[must_use]
    pub const fn new(first: u16, end: u16) -> Option<PortRange> {
        if first < end {
            Some(PortRange { first, end })
        } else {
            None
        }
    }

    /// The lowest port.
    #[must_use]
    pub const fn first(&self) -> u16 {
        self.first
    }

    /// One past the highest port.
    #[must_use]
    pub const fn end(&self) -> u16 {
        self.end
    }

    /// How many ports.
    #[must_use]
    pub const fn count(&self) -> u16 {
        self.end - self.first
    }

    /// Whether `port` is inside.
    #[must_use]
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port < self.end
    }

    /// Whether both ranges share a port.
    #[must_use]
    pub const fn overlaps(&self, other: &PortRange) -> bool {
        self.first < other.end && other.first < self.end
    }
}
