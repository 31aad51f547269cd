//! What operators may look at: rows of tables and how full they are.

use crate::flow::Service;
use crate::flow::key::{Transport, Tuple};
use crate::underlay::UnderlayKind;
use crate::verdict::PortId;
use core::net::{IpAddr, Ipv6Addr};
use net::{Prefix, Vni, protocol};

/// An underlay address and what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointRow {
    /// The address.
    pub underlay: Ipv6Addr,
    /// What it stands for.
    pub kind: UnderlayKind,
    /// Virtual network.
    pub vni: Vni,
    /// Port behind it.
    pub port: PortId,
    /// The prefix, if it stands for one.
    pub prefix: Option<Prefix>,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// Its name in telemetry.
    pub name: &'static str,
    /// Most entries there can be.
    pub capacity: u64,
    /// Entries.
    pub entries: u64,
}

/// Addresses and ports that a packet shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Source port; the identifier of an echo message.
    pub source_port: u16,
    /// Destination port; the identifier of an echo message.
    pub destination_port: u16,
}

impl From<Tuple> for FlowTuple {
    fn from(tuple: Tuple) -> FlowTuple {
        let Tuple {
            source,
            destination,
            source_port,
            destination_port,
            transport,
        } = tuple;
        let (protocol, ports) = match (transport, source) {
            (Transport::Tcp, _) => (protocol::TCP, (source_port, destination_port)),
            (Transport::Udp, _) => (protocol::UDP, (source_port, destination_port)),
            (Transport::Echo { .. }, IpAddr::V4(_)) => {
                (protocol::ICMP, (source_port, destination_port))
            }
            (Transport::Echo { .. }, IpAddr::V6(_)) => {
                (protocol::ICMPV6, (source_port, destination_port))
            }
        };
        FlowTuple {
            source,
            destination,
            protocol,
            source_port: ports.0,
            destination_port: ports.1,
        }
    }
}

/// Which service changed or steered a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowService {
    /// None: plain forwarding.
    None,
    /// An address that stands for one interface alone.
    Vip,
    /// A port of a shared address.
    Nat,
    /// The same with a change from IPv6 to IPv4.
    Nat64,
    /// Another host's port of a shared address.
    NeighborNat,
    /// A load balancer.
    LoadBalancer,
}

impl FlowService {
    /// Name in telemetry.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FlowService::None => "none",
            FlowService::Vip => "vip",
            FlowService::Nat => "nat",
            FlowService::Nat64 => "nat64",
            FlowService::NeighborNat => "neighbor_nat",
            FlowService::LoadBalancer => "load_balancer",
        }
    }
}

impl From<Service> for FlowService {
    fn from(service: Service) -> FlowService {
        match service {
            Service::None => FlowService::None,
            Service::Vip => FlowService::Vip,
            Service::Nat => FlowService::Nat,
            Service::Nat64 => FlowService::Nat64,
            Service::NeighbourNat => FlowService::NeighborNat,
            Service::LoadBalancer => FlowService::LoadBalancer,
        }
    }
}

/// Where the packets of one direction go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowOutput {
    /// No packet has come in this direction since the connection began.
    Undecided,
    /// To the machine on this port.
    Deliver(PortId),
    /// Through a tunnel.
    Encap {
        /// Uplink.
        port: PortId,
        /// Underlay address where it begins.
        source: Ipv6Addr,
        /// Underlay address where it ends.
        destination: Ipv6Addr,
    },
}

/// One direction of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRow {
    /// Virtual network.
    pub vni: Vni,
    /// What its packets show when they come in.
    pub shows: FlowTuple,
    /// What they show when they leave.
    pub leaves: FlowTuple,
    /// Whether this is the direction of the answers.
    pub is_reply: bool,
    /// Who is responsible for the difference, or for the way.
    pub service: FlowService,
    /// Where they go.
    pub output: FlowOutput,
    /// State of TCP: none, syn, synack, est, finwait or rstfin.
    pub state: &'static str,
    /// Machine port of the interface that the connection belongs to; `None` for a load balancer's.
    pub owner: Option<PortId>,
    /// Seconds since a packet of either direction.
    pub idle_s: u32,
    /// Idle seconds after which it is forgotten.
    pub timeout_s: u32,
    /// The direction was decided with the tables in force; otherwise its next packet is decided again.
    pub is_current: bool,
}
