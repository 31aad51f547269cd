//! Rules: what packets must show, and what is done with those that do. Plain data with the meaning of DPDK's rte_flow items and actions of
//! the same names, restricted to what NICs have.

use crate::verdict::PortId;
use core::net::{Ipv4Addr, Ipv6Addr};
use net::Mac;

/// One rule. Of the rules of a port that match a packet, the one with the lowest priority value counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where the packet comes in.
    pub port: PortId,
    /// Switched by the NIC between ports; otherwise a rule about packets that come to us.
    pub transfer: bool,
    /// Lower values first.
    pub priority: u32,
    /// Headers from the outermost on, without gaps; what follows the last one is not looked at.
    pub pattern: Vec<Item>,
    /// In order.
    pub actions: Vec<Action>,
}

/// A header and what it must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Ethernet, untagged.
    Ethernet {
        /// Protocol of what follows.
        ethertype: u16,
    },
    /// IPv4.
    Ipv4(Ipv4Match),
    /// IPv6.
    Ipv6(Ipv6Match),
    /// TCP without FIN, SYN and RST.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP echo with code 0.
    Echo {
        /// Type: 8 or 0.
        kind: u8,
        /// Identifier.
        identifier: u16,
    },
}

/// What an IPv4 header must show beside having no options and being of no fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Match {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol of what follows.
    pub protocol: u8,
    /// Exactly this time to live.
    pub ttl: Option<u8>,
}

/// What an IPv6 header must show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipv6Match {
    /// Source address.
    pub source: Option<Ipv6Addr>,
    /// Destination address and how many of its leading bits count.
    pub destination: Option<(Ipv6Addr, u8)>,
    /// The first next header.
    pub next_header: Option<u8>,
    /// Exactly this hop limit.
    pub hop_limit: Option<u8>,
    /// Traffic class and flow label are zero.
    pub unmarked: bool,
}

/// What is done with a packet. Checksums that cover what changes are kept right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Takes so many bytes off the front.
    RawDecap(usize),
    /// Puts bytes in front. The length field of an IPv6 header in them is filled in.
    RawEncap(Vec<u8>),
    /// Ethernet source.
    SetSourceMac(Mac),
    /// Ethernet destination.
    SetDestinationMac(Mac),
    /// Address of the outermost IP header.
    SetIpv4Source(Ipv4Addr),
    /// The same.
    SetIpv4Destination(Ipv4Addr),
    /// The same.
    SetIpv6Source(Ipv6Addr),
    /// The same.
    SetIpv6Destination(Ipv6Addr),
    /// Port of the transport header that follows the outermost IP header.
    SetSourcePort(u16),
    /// The same.
    SetDestinationPort(u16),
    /// Hop limit of the outermost IP header.
    SetTtl(u8),
    /// One off it.
    DecrementTtl,
    /// Counts packets and bytes, to be asked for.
    Count,
    /// Remembers when the last packet came; "aged" after so many seconds.
    Age {
        /// Seconds.
        timeout_s: u32,
    },
    /// Out of a port. The last action.
    Port(PortId),
    /// To us as it came in. The last action.
    Software,
}

/// The rule that brings tunnelled packets for `host` to us and leaves all others to the kernel, on an uplink in isolated mode: those for
/// the part of its prefix from which underlay addresses are given.
#[must_use]
pub fn isolation(uplink: PortId, host: Ipv6Addr) -> Rule {
    /// Leading bits: the host's prefix and the first four bits of what marks its underlay addresses.
    const LENGTH: u8 = 68;
    let prefix = host.to_bits() >> 64 << 64 | 0xd000_u128 << 48;
    Rule {
        port: uplink,
        transfer: false,
        priority: 2,
        pattern: vec![
            Item::Ethernet {
                ethertype: net::ethernet::TYPE_IPV6,
            },
            Item::Ipv6(Ipv6Match {
                destination: Some((Ipv6Addr::from_bits(prefix), LENGTH)),
                ..Ipv6Match::default()
            }),
        ],
        actions: vec![Action::Software],
    }
}
