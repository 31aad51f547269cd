//! Objects of the services beyond interfaces and routes: what requests create and lists show.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::{PortRange, Prefix, Vni};

// ---- firewall --------------------------------------------------------------------------------------------------------------

/// Which packets a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleDirection {
    /// Towards the machine.
    Ingress,
    /// From the machine.
    Egress,
}

/// What a rule does with the packets it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirewallAction {
    /// Discards them.
    Drop,
    /// Lets them pass.
    Accept,
}

/// A prefix that is matched masked and shown as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulePrefix {
    given: IpAddr,
    prefix: Prefix,
}

impl RulePrefix {
    /// `None` if the family has fewer bits than `length`.
    #[must_use]
    pub fn new(given: IpAddr, length: u8) -> Option<RulePrefix> {
        let prefix = Prefix::new(given, length)?;
        Some(RulePrefix { given, prefix })
    }

    /// The address as it was given.
    #[must_use]
    pub fn given(&self) -> IpAddr {
        self.given
    }

    /// What is matched.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        self.prefix
    }
}

/// A range of ports, both ends included. Without lower end: any port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMatch {
    /// First port.
    pub lower: Option<u16>,
    /// Last port; `None` is no limit.
    pub upper: Option<u16>,
}

impl PortMatch {
    /// Every port.
    pub const ANY: PortMatch = PortMatch {
        lower: None,
        upper: None,
    };

    /// Whether every port matches because no limit is set.
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.lower.is_none()
    }

    /// Whether a port matches.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.lower
            .is_none_or(|lower| lower <= port && self.upper.is_none_or(|upper| port <= upper))
    }
}

/// The transport that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleFilter {
    /// Every transport.
    Any,
    /// TCP ports.
    Tcp {
        /// Source port.
        source: PortMatch,
        /// Destination port.
        destination: PortMatch,
    },
    /// UDP ports.
    Udp {
        /// Source port.
        source: PortMatch,
        /// Destination port.
        destination: PortMatch,
    },
    /// ICMP and ICMPv6; `None` is any.
    Icmp {
        /// Message type.
        kind: Option<u8>,
        /// Message code.
        code: Option<u8>,
    },
}

/// A rule of an interface's packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallRule {
    /// The caller's name, unique per interface.
    pub id: String,
    /// Which packets.
    pub direction: RuleDirection,
    /// What becomes of them.
    pub action: FirewallAction,
    /// Lower numbers are tried first.
    pub priority: u32,
    /// Source addresses.
    pub source: RulePrefix,
    /// Destination addresses.
    pub destination: RulePrefix,
    /// Transport.
    pub filter: RuleFilter,
}

/// Whether the packet filter's verdict is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirewallMode {
    /// Packets are dropped.
    #[default]
    Enforce,
    /// Packets that would be dropped are counted and pass.
    Observe,
}

// ---- address translation ---------------------------------------------------------------------------------------------------

/// An address that stands for one interface alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The address.
    pub address: Ipv4Addr,
    /// Where packets to it arrive.
    pub underlay: Ipv6Addr,
}

/// An interface's share of an address that several interfaces and hosts use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat {
    /// The address.
    pub address: Ipv4Addr,
    /// The interface's ports.
    pub ports: PortRange,
    /// Where packets to it arrive.
    pub underlay: Ipv6Addr,
}

/// A NAT of an interface of this host, as lists show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNat {
    /// Virtual network.
    pub vni: Vni,
    /// The interface's own address.
    pub machine: Ipv4Addr,
    /// Its share.
    pub nat: Nat,
}

/// A share that belongs to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborNat {
    /// The address.
    pub address: Ipv4Addr,
    /// Virtual network.
    pub vni: Vni,
    /// The other host's ports.
    pub ports: PortRange,
    /// Where the other host expects packets to them.
    pub underlay: Ipv6Addr,
}

// ---- load balancing --------------------------------------------------------------------------------------------------------

/// A port that a load balancer serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LbPort {
    /// IP protocol: 6 or 17.
    pub protocol: u8,
    /// Port; 0 for none in the protocol's encoding.
    pub port: u16,
}

/// A load balancer as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancerSpec {
    /// The caller's name.
    pub id: String,
    /// Virtual network.
    pub vni: Vni,
    /// The address it serves.
    pub address: IpAddr,
    /// The ports it serves, at most [`LoadBalancerSpec::PORTS_MAX`].
    pub ports: Vec<LbPort>,
    /// Underlay address to use instead of a generated one.
    pub preferred_underlay: Option<Ipv6Addr>,
}

impl LoadBalancerSpec {
    /// Ports of one load balancer.
    pub const PORTS_MAX: usize = 15;
}

// ---- capture ---------------------------------------------------------------------------------------------------------------

/// A port whose packets are mirrored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CapturePort {
    /// An uplink by number.
    Uplink(u8),
    /// The port of an interface, by the interface's id.
    Interface(String),
}

/// Where mirrored packets go, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureSpec {
    /// Underlay address of the receiver.
    pub sink: Ipv6Addr,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
    /// What to mirror, at most [`CaptureSpec::PORTS_MAX`].
    pub ports: Vec<CapturePort>,
}

impl CaptureSpec {
    /// Captured ports.
    pub const PORTS_MAX: usize = 16;
}

// ---- virtual services ------------------------------------------------------------------------------------------------------

/// An IPv6 service of the infrastructure that machines reach through an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualServiceSpec {
    /// IP protocol: 6 or 17.
    pub protocol: u8,
    /// What machines connect to.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// The real service.
    pub service: Ipv6Addr,
    /// Its port.
    pub service_port: u16,
}

impl VirtualServiceSpec {
    /// Whether this is what machines reach at an address and port by an IP protocol.
    #[must_use]
    pub fn is_at(&self, protocol: u8, address: Ipv4Addr, port: u16) -> bool {
        (self.protocol, self.address, self.port) == (protocol, address, port)
    }
}
