//! The vocabulary of route distribution: destination, next hop, route.
//!
//! A metalbond route says "in network `vni`, `destination` is reachable through `next_hop`". All five fields of the next
//! hop belong to the route's identity; there is no metric, age or sequence number. Values that the protocol carries
//! but that make no sense (a prefix longer than its address, an unknown hop type) are representable on purpose: a
//! server reflects what it received, or old and new servers would disagree about what was announced.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// The IP version as the sender stated it. Redundant with the address length, yet part of a destination's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpVersion {
    /// Number 0.
    V4,
    /// Number 1, and every number that the protocol does not know.
    V6,
}

/// Where traffic goes to: an address block, kept exactly as announced (host bits included).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    version: IpVersion,
    addr: IpAddr,
    /// [`Destination::LENGTH_INVALID`] if the announced length exceeds the address width.
    length: u8,
}

impl Destination {
    const LENGTH_INVALID: u8 = u8::MAX;

    /// A destination; `None` if `length` exceeds the address width. Host bits are kept.
    pub fn new(addr: IpAddr, length: u8) -> Option<Self> {
        let version = match addr {
            IpAddr::V4(_) => IpVersion::V4,
            IpAddr::V6(_) => IpVersion::V6,
        };
        (length <= width(addr)).then_some(Self {
            version,
            addr,
            length,
        })
    }

    /// The destination as received: a stated version that may disagree with the address, a length that may be invalid.
    pub fn from_wire(version: IpVersion, addr: IpAddr, length: u32) -> Self {
        let length = match u8::try_from(length) {
            Ok(length) if length <= width(addr) => length,
            _ => Self::LENGTH_INVALID,
        };
        Self {
            version,
            addr,
            length,
        }
    }

    /// One address: /32 or /128.
    pub fn host(addr: IpAddr) -> Self {
        let version = match addr {
            IpAddr::V4(_) => IpVersion::V4,
            IpAddr::V6(_) => IpVersion::V6,
        };
        Self {
            version,
            addr,
            length: width(addr),
        }
    }

    /// The address, host bits included.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The stated version, see [`IpVersion`].
    pub fn version(&self) -> IpVersion {
        self.version
    }

    /// The prefix length in bits, `None` if the announced one exceeded the address width.
    pub fn length(&self) -> Option<u8> {
        (self.length != Self::LENGTH_INVALID).then_some(self.length)
    }

    /// The address block, `None` if the length is invalid. Host bits are kept; see [`IpNet::trunc`].
    pub fn net(&self) -> Option<IpNet> {
        IpNet::new(self.addr, self.length()?).ok()
    }

    /// The length as it goes onto the wire; all invalid lengths become the same number.
    pub(crate) fn wire_length(&self) -> u32 {
        self.length().map_or(u32::MAX, u32::from)
    }
}

impl From<IpNet> for Destination {
    fn from(net: IpNet) -> Self {
        let version = match net {
            IpNet::V4(_) => IpVersion::V4,
            IpNet::V6(_) => IpVersion::V6,
        };
        Self {
            version,
            addr: net.addr(),
            length: net.prefix_len(),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length() {
            Some(length) => write!(f, "{}/{length}", self.addr),
            None => f.write_str("invalid Prefix"),
        }
    }
}

impl FromStr for Destination {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpNet>().map(Self::from)
    }
}

fn width(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// What a next hop is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HopType {
    /// An ordinary route (number 0).
    Standard,
    /// A neighbour's share of a NAT address (number 1): the hop owns these ports of the destination address.
    Nat {
        /// First port.
        from: u16,
        /// Last port, or one past it: metalbond does not interpret the range.
        to: u16,
    },
    /// A backend of a load balancer (number 2).
    LoadBalancerTarget,
    /// A number that this version does not know; kept and reflected. Never 0, 1 or 2: see [`HopType::from_wire`].
    Other(i32),
}

impl HopType {
    /// The hop type for a wire number. Ports on anything but NAT are dropped, as they never go onto the wire again.
    pub fn from_wire(number: i32, from: u16, to: u16) -> Self {
        match number {
            0 => Self::Standard,
            1 => Self::Nat { from, to },
            2 => Self::LoadBalancerTarget,
            other => Self::Other(other),
        }
    }

    /// The wire number.
    pub fn number(&self) -> i32 {
        match self {
            Self::Standard => 0,
            Self::Nat { .. } => 1,
            Self::LoadBalancerTarget => 2,
            Self::Other(number) => *number,
        }
    }

    /// The port range, (0, 0) unless NAT.
    pub fn ports(&self) -> (u16, u16) {
        match self {
            Self::Nat { from, to } => (*from, *to),
            Self::Standard | Self::LoadBalancerTarget | Self::Other(_) => (0, 0),
        }
    }

    /// The name shown to people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Standard => "STANDARD",
            Self::Nat { .. } => "NAT",
            Self::LoadBalancerTarget => "LOADBALANCER_TARGET",
            Self::Other(_) => "UNKNOWN",
        }
    }
}

/// Through where traffic goes: an underlay address and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// The underlay address to which packets are tunnelled.
    pub addr: IpAddr,
    /// Carried and compared, without behaviour; every known announcer sends 0.
    pub target_vni: u32,
    /// What the hop is for.
    pub hop_type: HopType,
}

impl NextHop {
    /// An ordinary next hop.
    pub fn standard(addr: Ipv6Addr) -> Self {
        Self {
            addr: addr.into(),
            target_vni: 0,
            hop_type: HopType::Standard,
        }
    }

    /// The owner of a port range of a shared NAT address.
    pub fn nat(addr: Ipv6Addr, from: u16, to: u16) -> Self {
        Self {
            addr: addr.into(),
            target_vni: 0,
            hop_type: HopType::Nat { from, to },
        }
    }

    /// A backend of the load balancer whose address is the destination.
    pub fn load_balancer_target(addr: Ipv6Addr) -> Self {
        Self {
            addr: addr.into(),
            target_vni: 0,
            hop_type: HopType::LoadBalancerTarget,
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.addr)?;
        if self.target_vni != 0 {
            write!(f, " [{}]", self.target_vni)?;
        }
        match self.hop_type {
            HopType::Standard => Ok(()),
            HopType::Nat { from, to } => write!(f, " (NAT {from}-{to})"),
            HopType::LoadBalancerTarget => write!(f, " (LOADBALANCER_TARGET)"),
            HopType::Other(number) => write!(f, " (type {number})"),
        }
    }
}

/// One route: the unit that is announced and withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// The network; all 32 bits are carried, though a VNI on the wire of the overlay has 24.
    pub vni: u32,
    /// Where traffic goes to.
    pub destination: Destination,
    /// Through where.
    pub next_hop: NextHop,
}

/// Why a textual announcement was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseRouteError {
    /// Not 3, 4 or 6 parts.
    #[error("an announcement reads VNI#PREFIX#HOP[#TYPE[#FROM#TO]], with 3, 4 or 6 parts")]
    Parts,
    /// VNI is not a decimal number below 2^24.
    #[error("{0:?} is not a VNI (decimal, below 16777216)")]
    Vni(String),
    /// Prefix is not an address block.
    #[error("{0:?} is not an address block such as 10.0.0.0/24")]
    Prefix(String),
    /// Hop is not an address.
    #[error("{0:?} is not an IP address")]
    Hop(String),
    /// A NAT hop without ports, or a port that is not one.
    #[error("a NAT hop needs two ports between 0 and 65535: #NAT#FROM#TO")]
    Ports,
}

impl FromStr for Route {
    type Err = ParseRouteError;

    /// Parses `VNI#PREFIX#HOP[#TYPE[#FROM#TO]]`. TYPE is matched by content (`std`, `lb`, `nat`, in any case), anything
    /// else is an ordinary hop, as the reference implementation does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('#').collect();
        let (vni, prefix, hop, kind, ports) = match parts.as_slice() {
            [vni, prefix, hop] => (vni, prefix, hop, "std", None),
            [vni, prefix, hop, kind] => (vni, prefix, hop, *kind, None),
            [vni, prefix, hop, kind, from, to] => (vni, prefix, hop, *kind, Some((from, to))),
            _ => return Err(ParseRouteError::Parts),
        };
        let vni = parse_vni(vni)?;
        let destination = prefix
            .parse()
            .map_err(|_| ParseRouteError::Prefix(prefix.to_string()))?;
        let addr = hop
            .parse()
            .map_err(|_| ParseRouteError::Hop(hop.to_string()))?;
        let kind = kind.to_ascii_lowercase();
        let hop_type = if kind.contains("std") {
            HopType::Standard
        } else if kind.contains("lb") {
            HopType::LoadBalancerTarget
        } else if kind.contains("nat") {
            let (from, to) = ports.ok_or(ParseRouteError::Ports)?;
            let port = |text: &str| text.parse().map_err(|_| ParseRouteError::Ports);
            HopType::Nat {
                from: port(from)?,
                to: port(to)?,
            }
        } else {
            HopType::Standard
        };
        let next_hop = NextHop {
            addr,
            target_vni: 0,
            hop_type,
        };
        Ok(Self {
            vni,
            destination,
            next_hop,
        })
    }
}

/// Parses a VNI as the command line takes it: decimal, below 2^24.
pub(crate) fn parse_vni(text: &str) -> Result<u32, ParseRouteError> {
    match text.parse::<u32>() {
        Ok(vni) if vni < 1 << 24 => Ok(vni),
        _ => Err(ParseRouteError::Vni(text.to_owned())),
    }
}

/// An address as 16 bytes and whether it is a version 4 one (then in the first four bytes).
pub(crate) fn addr_bytes(addr: IpAddr) -> ([u8; 16], bool) {
    match addr {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            ([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], true)
        }
        IpAddr::V6(v6) => (v6.octets(), false),
    }
}

/// The inverse of [`addr_bytes`].
pub(crate) fn addr_from(bytes: [u8; 16], is_v4: bool) -> IpAddr {
    if is_v4 {
        let [a, b, c, d, ..] = bytes;
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        Ipv6Addr::from(bytes).into()
    }
}
