//! What a worker counts. Plain integers: one worker, one writer; a reader takes a copy between bursts.

use crate::verdict::{DropReason, PortId};

macro_rules! nodes {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Stages of the pipeline, under the names that telemetry has always used.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Node {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Node {
            /// Every stage, in the order of the counters.
            pub const ALL: &'static [Node] = &[$(Node::$name,)+];

            /// Name in telemetry.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Node::$name => $label,)+ }
            }
        }
    };
}

nodes! {
    /// Packets handed to the engine.
    Cls = "cls",
    /// ARP seen from machines.
    Arp = "arp",
    /// Neighbour and router solicitations from machines.
    Ipv6Nd = "ipv6_nd",
    /// Decapsulations.
    IpipDecap = "ipip_decap",
    /// Packets that a cached flow answered: the whole fast path.
    FlowCache = "flow_cache",
    /// Packets that took the slow walk of connection tracking.
    Conntrack = "conntrack",
    /// DHCPv4 messages.
    Dhcp = "dhcp",
    /// DHCPv6 messages.
    Dhcpv6 = "dhcpv6",
    /// IPv4 route lookups.
    Ipv4Lookup = "ipv4_lookup",
    /// IPv6 route lookups.
    Ipv6Lookup = "ipv6_lookup",
    /// Load-balanced connections.
    Lb = "lb",
    /// Connections to translated destinations.
    Dnat = "dnat",
    /// Connections with translated sources.
    Snat = "snat",
    /// Connections that the packet filter looked at.
    Firewall = "firewall",
    /// Packets answered in the name of a shared address.
    PacketRelay = "packet_relay",
    /// Packets of virtual services.
    Virtsvc = "virtsvc",
    /// Encapsulations.
    IpipEncap = "ipip_encap",
    /// Discarded packets, all reasons.
    Drop = "drop",
}

impl Node {
    /// Every stage in the order in which a packet passes them.
    pub const IN_ORDER: [Node; NODES] = [
        Node::Cls,
        Node::Arp,
        Node::Ipv6Nd,
        Node::Dhcp,
        Node::Dhcpv6,
        Node::Virtsvc,
        Node::IpipDecap,
        Node::FlowCache,
        Node::PacketRelay,
        Node::Conntrack,
        Node::Lb,
        Node::Dnat,
        Node::Ipv4Lookup,
        Node::Ipv6Lookup,
        Node::Firewall,
        Node::Snat,
        Node::IpipEncap,
        Node::Drop,
    ];
}

const NODES: usize = Node::ALL.len();
const REASONS: usize = DropReason::ALL.len();

/// Traffic of one port as the engine saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets with a verdict to transmit or reply here.
    pub tx_packets: u64,
    /// Bytes of those, as they leave.
    pub tx_bytes: u64,
    /// Received packets that were discarded.
    pub drops: u64,
}

/// Everything one worker has counted since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    nodes: [u64; NODES],
    drops: [u64; REASONS],
    ports: Box<[PortCounters]>,
    /// Flows created.
    pub flows_created: u64,
    /// Flows removed because they were idle for longer than their timeout.
    pub flows_expired: u64,
    /// Flows whose decision was taken again after a configuration change.
    pub flows_redecided: u64,
    /// Flows whose decision was kept because no configuration change concerned it, or what it concerned came out the same.
    pub flows_kept: u64,
    /// Fragmented packets that were forgotten before their time because there were too many.
    pub fragments_displaced: u64,
    /// Connections that the packet filter would have dropped, had it been told to.
    pub firewall_observed: u64,
}

impl Counters {
    pub(crate) fn new(ports: usize) -> Counters {
        Counters {
            nodes: [0; NODES],
            drops: [0; REASONS],
            ports: vec![PortCounters::default(); ports].into_boxed_slice(),
            flows_created: 0,
            flows_expired: 0,
            flows_redecided: 0,
            flows_kept: 0,
            fragments_displaced: 0,
            firewall_observed: 0,
        }
    }

    /// Packets that passed a stage.
    #[must_use]
    pub fn node(&self, node: Node) -> u64 {
        self.nodes.get(node as usize).copied().unwrap_or(0)
    }

    /// Packets discarded for one reason.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// Counters of one port; zero for a port that does not exist.
    #[must_use]
    pub fn port(&self, port: PortId) -> PortCounters {
        self.ports.get(port.index()).copied().unwrap_or_default()
    }

    #[inline]
    pub(crate) fn count(&mut self, node: Node) {
        self.count_many(node, 1);
    }

    #[inline]
    pub(crate) fn count_many(&mut self, node: Node, packets: u64) {
        if let Some(counter) = self.nodes.get_mut(node as usize) {
            *counter += packets;
        }
    }

    pub(crate) fn count_sent(&mut self, to: PortId, bytes: usize) {
        if let Some(port) = self.port_mut(to) {
            port.tx_packets += 1;
            port.tx_bytes += bytes as u64;
        }
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.count(Node::Drop);
        if let Some(counter) = self.drops.get_mut(reason as usize) {
            *counter += 1;
        }
    }

    #[inline]
    pub(crate) fn port_mut(&mut self, port: PortId) -> Option<&mut PortCounters> {
        self.ports.get_mut(port.index())
    }
}
