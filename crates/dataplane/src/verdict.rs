//! The one answer every packet gets.

/// Index of a port in [`crate::EngineConfig::ports`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

impl PortId {
    /// As an index.
    #[must_use]
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is to be done with a packet, whose bytes have been edited accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Send it out of this port.
    Transmit(PortId),
    /// It was answered: send the answer out of this port (the one it came in on).
    Reply(PortId),
    /// Discard it. The reason has been counted.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a packet was discarded. Each has a counter ([`crate::Counters::drops`]) under [`DropReason::name`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)+];

            /// Name of the counter.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => $label,)+ }
            }
        }
    };
}

drop_reasons! {
    /// An invariant of the engine does not hold. A bug in this crate: report it.
    Bug = "bug",
    /// The port number is not configured.
    UnknownPort = "unknown_port",
    /// The machine port has no interface.
    NoInterface = "no_interface",
    /// Shorter than an Ethernet header.
    Runt = "runt",
    /// Neither ARP nor IPv4 nor IPv6 (VLAN tags included).
    UnsupportedEthertype = "unsupported_ethertype",
    /// ARP that is not for IPv4 over Ethernet, or truncated.
    ArpMalformed = "arp_malformed",
    /// ARP that neither asks for the gateway nor tells the machine's address.
    ArpNotForGateway = "arp_not_for_gateway",
    /// ARP that told the machine's hardware address and needs no answer: consumed.
    ArpLearned = "arp_learned",
    /// Neighbour or router solicitation while the IPv6 overlay is switched off or the interface has no IPv6 address.
    NdDisabled = "nd_disabled",
    /// Truncated neighbour solicitation.
    NdMalformed = "nd_malformed",
    /// Neighbour solicitation for another address than the gateway (duplicate address detection included).
    NdNotForGateway = "nd_not_for_gateway",
    /// From the uplink: anything but IPv4 or IPv6 inside IPv6. The host's own stack gets these packets, not the overlay.
    UplinkNotTunnel = "uplink_not_tunnel",
    /// From the uplink: the outer destination belongs to no interface or prefix of this host.
    UnderlayUnknown = "underlay_unknown",
    /// IPv4 header wrong, or the packet is shorter than it says.
    Ipv4Malformed = "ipv4_malformed",
    /// IPv6 header or extension header wrong, or the packet is shorter than it says.
    Ipv6Malformed = "ipv6_malformed",
    /// IPv4 source-route option or IPv6 routing header with segments left (RFC 5095).
    SourceRoute = "source_route",
    /// More extension headers than [`net::ipv6::EXTENSION_HEADERS_MAX`].
    ExtensionHeaders = "extension_headers",
    /// Neither TCP, UDP, ICMP nor ICMPv6.
    UnsupportedL4 = "unsupported_l4",
    /// TCP, UDP or ICMP header truncated or inconsistent.
    L4Malformed = "l4_malformed",
    /// ICMP that is neither echo nor an error (redirects, router discovery, multicast listener reports …).
    IcmpUnsupported = "icmp_unsupported",
    /// ICMP error that quotes no tracked flow of this network, or a flow in the wrong direction.
    IcmpUnrelated = "icmp_unrelated",
    /// The machine used a source address that is neither its own nor in one of its prefixes; or from the uplink: it is one of a machine here.
    SourceSpoofed = "source_spoofed",
    /// From the uplink: the inner destination does not belong to the interface or prefix of the outer one.
    DestinationForeign = "destination_foreign",
    /// Multicast or broadcast, which the overlay does not replicate.
    Multicast = "multicast",
    /// Link-local, loopback or unspecified address, or a group as the source, that must not be forwarded (RFC 3927 §2.7, RFC 4291 §2.5, §2.7).
    NotForwardable = "not_forwardable",
    /// No route to the destination in this network.
    NoRoute = "no_route",
    /// No uplink has a link and a next hop.
    NoUplink = "no_uplink",
    /// No room in front of the packet for the outer header.
    NoHeadroom = "no_headroom",
    /// The flow table is full. Stateful handling is not possible, so the packet is not forwarded.
    FlowTableFull = "flow_table_full",
    /// The table of tunnels is full, see [`crate::Limits::adjacencies_max`].
    AdjacencyTableFull = "adjacency_table_full",
    /// With its outer header the packet is larger than the uplink's MTU, or as IPv6 larger than the machine's.
    PacketTooBig = "packet_too_big",
    /// Its TTL or hop limit is used up.
    HopsExceeded = "hops_exceeded",
    /// A rule of the sender's packet filter drops it, or none accepts it.
    FirewallEgress = "firewall_egress",
    /// A rule of the receiver's packet filter drops it, or none accepts it.
    FirewallIngress = "firewall_ingress",
    /// For a load balancer, but not for one of its ports.
    LbUnserved = "lb_unserved",
    /// For a load balancer without targets.
    LbNoTarget = "lb_no_target",
    /// For a NAT address, but no connection and no other host's ports.
    NatUnsolicited = "nat_unsolicited",
    /// No NAT port is free towards this remote end.
    NatExhausted = "nat_exhausted",
    /// The table of NAT ports is full.
    NatTableFull = "nat_table_full",
    /// A piece of a fragmented packet whose first piece has not come, was refused, or came too long ago.
    FragmentUnknown = "fragment_unknown",
    /// There is no such packet in the other address family.
    NotTranslatable = "not_translatable",
    /// Over the limit of all traffic of the machine.
    TotalRate = "total_rate",
    /// Over the limit of the machine's traffic to the internet.
    PublicRate = "public_rate",
    /// Every port of a virtual service is in use.
    VirtualServiceFull = "virtual_service_full",
    /// From a virtual service, but to nobody who asked.
    VirtualServiceUnknown = "virtual_service_unknown",
    /// DHCPv4 or DHCPv6 message that cannot be parsed.
    DhcpMalformed = "dhcp_malformed",
    /// DHCP message of a type that is not answered (releases, declines, relayed messages, replies).
    DhcpIgnored = "dhcp_ignored",
    /// DHCP of a family in which the interface has no address (DHCPv6 SOLICIT and REQUEST are answered with that status instead).
    DhcpNoAddress = "dhcp_no_address",
    /// The DHCP answer does not fit a 1500-byte packet or this buffer.
    DhcpTooLong = "dhcp_too_long",
}
