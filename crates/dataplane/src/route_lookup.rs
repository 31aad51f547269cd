//! The forwarding decision: who may send what where (nodes `ipv4_lookup` and `ipv6_lookup`).

use crate::counters::Node;
use crate::flow::key::{Transport, Tuple};
use crate::graph::{Context, Output, Source, Walk};
use crate::jhash::{address_bytes, jhash};
use crate::nat64;
use crate::tables::{Tables, Target, Uplink, VniRoutes};
use crate::underlay::{Endpoint, UnderlayKind};
use crate::verdict::DropReason;
use crate::verdict::PortId;
use core::net::IpAddr;
use net::{Prefix, icmp, protocol};

/// Shares into which the load of both uplinks is divided.
pub(crate) const WCMP_SLOTS: u8 = 10;

/// Checks addresses and finds the way of a packet, unless an earlier stage has steered it.
pub(crate) fn process(cx: &mut Context<'_>, walk: &mut Walk) -> Result<(), DropReason> {
    if walk.output.is_none() && matches!(cx.source, Source::Machine) {
        cx.counters.count(match walk.leaves.destination {
            IpAddr::V4(_) => Node::Ipv4Lookup,
            IpAddr::V6(_) => Node::Ipv6Lookup,
        });
    }
    check_forwardable(walk.tuple.source, walk.leaves.destination)?;
    if walk.output.is_none() {
        let way = find(cx, &walk.tuple, walk.leaves.destination)?;
        (walk.output, walk.public) = (Some(way.output), way.public);
    }
    Ok(())
}

/// What the route lookup finds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub output: Output,
    /// It is a default route.
    pub public: bool,
}

/// The way to `destination` of a packet that shows `tuple`.
pub(crate) fn find(
    cx: &Context<'_>,
    tuple: &Tuple,
    destination: IpAddr,
) -> Result<Way, DropReason> {
    match cx.source {
        Source::Machine => from_machine(cx, tuple, destination),
        Source::Tunnel { endpoint, .. } => {
            let output = from_tunnel(cx, endpoint, tuple.source, destination)?;
            let public = false;
            Ok(Way { output, public })
        }
    }
}

fn from_machine(cx: &Context<'_>, tuple: &Tuple, destination: IpAddr) -> Result<Way, DropReason> {
    let (tables, source) = (cx.tables, tuple.source);
    let routes = tables.routes(cx.vni_slot).ok_or(DropReason::Bug)?;
    let may_use = cx.attached(cx.machine).is_some_and(|attached| {
        // The interface's own address, mostly: nobody else can have it.
        let spec = &attached.interface.spec;
        let is_first = match source {
            IpAddr::V4(source) => spec.ipv4 == Some(source),
            IpAddr::V6(source) => spec.ipv6 == Some(source),
        };
        is_first || is_own(routes, source, cx.machine) || attached.services.serves(source)
    });
    if !may_use {
        return Err(DropReason::SourceSpoofed);
    }
    let (length, target) = routes.lookup(destination).ok_or(DropReason::NoRoute)?;
    let output = match target {
        Target::Own(port) | Target::Alias(port) => Output::Deliver(port),
        Target::Remote { underlay, .. } => Output::Encap {
            uplink: choose_uplink(tables, || {
                path_hash(cx.vni.get(), tuple, function(cx, tuple))
            })?,
            source: cx.underlay,
            destination: underlay,
        },
    };
    let public = length == 0;
    Ok(Way { output, public })
}

fn from_tunnel(
    cx: &Context<'_>,
    endpoint: &Endpoint,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Output, DropReason> {
    let routes = cx.tables.routes(cx.vni_slot).ok_or(DropReason::Bug)?;
    // What a machine of this host sends to a neighbour does not go by the fabric, unless it is for a balanced address. Answers to such a forged
    // packet would reach the neighbour past his packet filter.
    let is_next_door = || matches!(routes.lookup(source), Some((_, Target::Own(_))));
    if endpoint.kind != UnderlayKind::LbPrefix && is_next_door() {
        return Err(DropReason::SourceSpoofed);
    }
    if endpoint.kind == UnderlayKind::Nat {
        // Several machines may share the address: whose packet this is was found out by its tuple, and the way to him is a lookup.
        return match routes.lookup(destination) {
            Some((_, Target::Own(port) | Target::Alias(port))) => Ok(Output::Deliver(port)),
            Some((_, Target::Remote { .. })) | None => Err(DropReason::DestinationForeign),
        };
    }
    let is_ours = match endpoint.prefix {
        Some(prefix) => prefix.contains(destination),
        None => is_own(routes, destination, cx.machine),
    };
    if is_ours {
        Ok(Output::Deliver(cx.machine))
    } else {
        Err(DropReason::DestinationForeign)
    }
}

/// What the sender's address stands for, as a number inside [`path_hash`]: 3 with network NAT, 5 if it is served for a load balancer.
fn function(cx: &Context<'_>, tuple: &Tuple) -> u8 {
    let Some(attached) = cx.attached(cx.machine) else {
        return 0;
    };
    let services = &attached.services;
    match (tuple.source, tuple.destination) {
        (IpAddr::V4(source), _)
            if services.nat.is_some() && attached.interface.spec.ipv4 == Some(source) =>
        {
            UnderlayKind::Nat as u8
        }
        (IpAddr::V4(_), _) => {
            let own = Prefix::host(tuple.source);
            let mut served = services.lb_prefixes.iter();
            let is_served = served.any(|(prefix, _)| *prefix == own);
            if is_served {
                UnderlayKind::LbPrefix as u8
            } else {
                0
            }
        }
        (_, IpAddr::V6(destination)) if nat64::embedded(destination).is_some() => {
            UnderlayKind::Nat as u8
        }
        _ => 0,
    }
}

/// Whether an address is one of the interface's own, or in one of its prefixes and no other machine's: what routing would
/// deliver to this port.
fn is_own(routes: &VniRoutes, address: IpAddr, port: PortId) -> bool {
    match routes.lookup(address) {
        Some((_, Target::Own(owner) | Target::Alias(owner))) => owner == port,
        Some((_, Target::Remote { .. })) | None => false,
    }
}

/// Refuses what no router may forward (RFC 1812 §5.3.7, RFC 4291 §2.7).
pub(crate) fn check_forwardable(source: IpAddr, destination: IpAddr) -> Result<(), DropReason> {
    match (reach(source), reach(destination)) {
        (_, Reach::Group) => Err(DropReason::Multicast),
        // A group is nobody's source (RFC 1122 §3.2.1.3, RFC 4291 §2.7).
        (Reach::Group | Reach::Local, _) | (_, Reach::Local) => Err(DropReason::NotForwardable),
        (Reach::Wide, Reach::Wide) => Ok(()),
    }
}

/// How far packets with an address may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Everywhere.
    Wide,
    /// Not past the link or the host.
    Local,
    /// Multicast or broadcast.
    Group,
}

fn reach(address: IpAddr) -> Reach {
    let (is_group, is_local) = match address {
        IpAddr::V4(a) => match a.octets().first() {
            // "This network" (RFC 1122 §3.2.1.3), loopback, link-local.
            Some(0 | 127) => (false, true),
            Some(169) => (false, a.is_link_local()),
            Some(224..) => (a.is_multicast() || a.is_broadcast(), false),
            _ => (false, false),
        },
        IpAddr::V6(a) => match a.octets().first() {
            Some(0) => (false, a.is_unspecified() || a.is_loopback()),
            Some(0xfe) => (false, a.is_unicast_link_local()),
            first => (first == Some(&0xff), false),
        },
    };
    match (is_group, is_local) {
        (true, _) => Reach::Group,
        (false, true) => Reach::Local,
        (false, false) => Reach::Wide,
    }
}

/// Number of the uplink: 0 unless it cannot be used; with load sharing, by hash slot.
pub(crate) fn choose_uplink(tables: &Tables, hash: impl Fn() -> u32) -> Result<u8, DropReason> {
    let usable = |uplink: &Option<Uplink>| uplink.as_ref().is_some_and(Uplink::is_usable);
    let [first, second] = &tables.uplinks;
    let slots = tables.settings.wcmp_slots;
    let prefers_first = slots >= WCMP_SLOTS || hash() % u32::from(WCMP_SLOTS) < u32::from(slots);
    match (usable(first), usable(second)) {
        (true, true) => Ok(u8::from(!prefers_first)),
        (true, false) => Ok(0),
        (false, true) => Ok(1),
        (false, false) => Err(DropReason::NoUplink),
    }
}

/// The hash that all implementations agree on for the choice of uplink: over destination, protocol, destination port, source,
/// what the source stands for, source port and VNI, little endian, IPv4 addresses in host order.
pub(crate) fn path_hash(vni: u32, tuple: &Tuple, function: u8) -> u32 {
    let (protocol, destination_port, source_port) = match tuple.transport {
        Transport::Tcp => (protocol::TCP, tuple.destination_port, tuple.source_port),
        Transport::Udp => (protocol::UDP, tuple.destination_port, tuple.source_port),
        // An echo message has its identifier in place of the destination port and its type in place of the source port.
        Transport::Echo { request } => match (tuple.source, request) {
            (IpAddr::V4(_), true) => (
                protocol::ICMP,
                tuple.source_port,
                u16::from(icmp::ECHO_REQUEST),
            ),
            (IpAddr::V4(_), false) => (
                protocol::ICMP,
                tuple.source_port,
                u16::from(icmp::ECHO_REPLY),
            ),
            (IpAddr::V6(_), true) => (
                protocol::ICMPV6,
                tuple.source_port,
                u16::from(icmp::V6_ECHO_REQUEST),
            ),
            (IpAddr::V6(_), false) => (
                protocol::ICMPV6,
                tuple.source_port,
                u16::from(icmp::V6_ECHO_REPLY),
            ),
        },
    };
    let mut key = [0; 44];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        for (to, from) in key.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
        at += bytes.len();
    };
    put(&address_bytes(tuple.destination));
    put(&[protocol]);
    put(&destination_port.to_le_bytes());
    put(&address_bytes(tuple.source));
    put(&[function]);
    put(&source_port.to_le_bytes());
    put(&vni.to_le_bytes());
    jhash(&key)
}
