//! What the engine is told at start and by requests, and what it reports back.

use crate::objects::{FirewallMode, VirtualServiceSpec};
use crate::verdict::PortId;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::{Mac, Prefix, Vni};

/// What a port is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A physical function towards the fabric: 0 is preferred, 1 stands by or shares the load.
    Uplink(u8),
    /// A machine's virtual function, TAP or vhost socket.
    Machine,
}

/// A port, for the whole life of the engine.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Device name as interfaces select it, such as `net_tap2`.
    pub name: String,
    /// What it is attached to.
    pub kind: PortKind,
    /// Our address on it.
    pub mac: Mac,
}

/// Capacities. A full table refuses the request with its status code or drops the packet with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tracked connections per worker (both directions are one). Beyond: [`crate::DropReason::FlowTableFull`].
    pub flows_max: u32,
    /// Pairs of underlay addresses with open connections between them, per worker and address family. Beyond:
    /// [`crate::DropReason::AdjacencyTableFull`].
    pub adjacencies_max: u32,
    /// Underlay addresses of this host, at most [`Limits::UNDERLAY_MAX`]. Beyond: status 401.
    pub underlay_max: u16,
    /// VNIs with at least one interface. Beyond: status 361.
    pub vnis_max: u16,
    /// Routes per VNI and address family. Beyond: status 303.
    pub routes_per_vni_max: u32,
    /// Connections with a NAT port, per worker. Beyond: [`crate::DropReason::NatTableFull`].
    pub nat_max: u32,
    /// Load balancers. Beyond: status 208.
    pub load_balancers_max: u32,
    /// Shares of NAT addresses that belong to other hosts. Beyond: status 208.
    pub neighbor_nats_max: u32,
}

impl Limits {
    /// The most that [`Limits::underlay_max`] may be: a slot of the table, half of which stays free, has a number of 15 bits.
    pub const UNDERLAY_MAX: u16 = 1 << 14;
    /// The most that [`Limits::vnis_max`] may be.
    pub const VNIS_MAX: u16 = u16::MAX - 1;
    /// The most that limits of connections may be.
    pub const FLOWS_MAX: u32 = 1 << 24;
    /// The most that the other limits may be.
    pub const ROWS_MAX: u32 = 1 << 24;
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            flows_max: 425_000,
            adjacencies_max: 65_536,
            underlay_max: 1_000,
            vnis_max: 512,
            routes_per_vni_max: 1 << 20,
            nat_max: 450_000,
            load_balancers_max: 4_096,
            neighbor_nats_max: 65_536,
        }
    }
}

/// Where generated underlay addresses begin, so that two lives of a host rarely use the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnderlaySeed {
    /// A counter start (its low byte, plus one) and one byte per address are derived from this number, drawn by the caller.
    Random(u64),
    /// Byte 11 is always 1 and the counter starts at 1: repeatable test set-ups.
    Static,
}

/// What the DHCP responders hand out to every machine.
#[derive(Clone, Debug)]
pub struct Dhcp {
    /// Interface MTU, option 26: 68 to 1500.
    pub mtu: u16,
    /// Name servers, option 6.
    pub dns_ipv4: Vec<Ipv4Addr>,
    /// Name servers, DHCPv6 option 23.
    pub dns_ipv6: Vec<Ipv6Addr>,
}

impl Default for Dhcp {
    fn default() -> Self {
        Dhcp {
            mtu: 1500,
            dns_ipv4: Vec::new(),
            dns_ipv6: Vec::new(),
        }
    }
}

/// What becomes of the largest segment size that TCP peers announce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// It is left alone.
    #[default]
    Off,
    /// Lowered to what fits the uplink's MTU with the tunnel's header, for connections that leave the host.
    Tunnel,
    /// Lowered to this many bytes, for connections that leave the host.
    At(u16),
}

/// Everything that is fixed for the life of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This host's underlay address; its upper 64 bits are the prefix of all generated ones.
    pub host: Ipv6Addr,
    /// All ports. A [`PortId`] is an index here. At most [`EngineConfig::PORTS_MAX`]; further ones are ignored.
    pub ports: Vec<PortConfig>,
    /// DHCP answers.
    pub dhcp: Dhcp,
    /// Answer neighbour and router solicitations and send router advertisements. IPv6 is forwarded either way.
    pub ipv6_overlay: bool,
    /// Share of uplink 0 in percent; 100 uses uplink 1 only when uplink 0 is down.
    pub wcmp_percent: u8,
    /// Idle seconds after which a flow is forgotten, unless it is an established TCP connection.
    pub flow_timeout_s: u32,
    /// Start of the underlay address generator.
    pub underlay_seed: UnderlaySeed,
    /// Write the kind of address into byte 9 of generated underlay addresses.
    pub underlay_type_byte: bool,
    /// Key of the flow hash, drawn by the caller, so that a machine cannot aim at one bucket.
    pub hash_seed: u64,
    /// Whether the packet filter drops or only counts.
    pub firewall: FirewallMode,
    /// Whether TCP handshakes are told what fits.
    pub mss_clamp: MssClamp,
    /// Count as a router: decrement TTL and hop limit, and answer packets that have none left.
    pub decrement_hops: bool,
    /// Infrastructure services behind IPv4 addresses, at most [`EngineConfig::VIRTUAL_SERVICES_MAX`]; further ones are ignored.
    pub virtual_services: Vec<VirtualServiceSpec>,
    /// Capacities.
    pub limits: Limits,
}

impl EngineConfig {
    /// Two uplinks and 1024 machines.
    pub const PORTS_MAX: usize = 1_026;
    /// Virtual services.
    pub const VIRTUAL_SERVICES_MAX: usize = 256;
    /// Default of [`EngineConfig::flow_timeout_s`].
    pub const FLOW_TIMEOUT_S: u32 = 30;
    /// Idle seconds after which an established TCP connection is forgotten.
    pub const TCP_ESTABLISHED_TIMEOUT_S: u32 = 86_400;

    /// Defaults around a host address and its ports.
    #[must_use]
    pub fn new(host: Ipv6Addr, ports: Vec<PortConfig>) -> EngineConfig {
        EngineConfig {
            host,
            ports,
            dhcp: Dhcp::default(),
            ipv6_overlay: false,
            wcmp_percent: 100,
            flow_timeout_s: Self::FLOW_TIMEOUT_S,
            underlay_seed: UnderlaySeed::Static,
            underlay_type_byte: false,
            hash_seed: 0,
            firewall: FirewallMode::default(),
            mss_clamp: MssClamp::default(),
            decrement_hops: false,
            virtual_services: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Network boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pxe {
    /// Boot server.
    pub next_server: IpAddr,
    /// Path on the server; put into the URL as it is.
    pub boot_filename: String,
}

/// Egress limits in Mbit/s; 0 is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metering {
    /// All traffic.
    pub total_rate: u64,
    /// Traffic that leaves by a default route.
    pub public_rate: u64,
}

/// Request to attach an interface to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// The caller's name for it.
    pub id: String,
    /// Device name, one of [`PortConfig::name`].
    pub device: String,
    /// Virtual network.
    pub vni: Vni,
    /// The machine's IPv4 address, if any.
    pub ipv4: Option<Ipv4Addr>,
    /// The machine's IPv6 address, if any.
    pub ipv6: Option<Ipv6Addr>,
    /// Network boot.
    pub pxe: Option<Pxe>,
    /// Rate limits.
    pub metering: Metering,
    /// Underlay address to use instead of a generated one.
    pub preferred_underlay: Option<Ipv6Addr>,
    /// Host name, DHCP option 12.
    pub hostname: Option<String>,
}

/// An attached interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// What was asked for.
    pub spec: InterfaceSpec,
    /// The port behind the device name.
    pub port: PortId,
    /// The interface's underlay address.
    pub underlay: Ipv6Addr,
}

/// A route to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Virtual network it is in.
    pub vni: Vni,
    /// Destinations.
    pub prefix: Prefix,
    /// Underlay address of the next hop.
    pub next_hop: Ipv6Addr,
    /// Reported back as it was given; never on the wire.
    pub next_hop_vni: u32,
}

/// Which tables of a VNI a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VniType {
    /// The IPv4 table.
    Ipv4,
    /// The IPv6 table.
    Ipv6,
    /// Both.
    Both,
}
