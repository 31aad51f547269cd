//! The path of a packet on one page: every stage, in order, for packets that no cached entry answers.
//!
//! ```text
//! machine ─ cls ┬ arp ───────────────────────────────▶ reply
//!               ├ ipv6_nd ───────────────────────────▶ reply
//!               ├ dhcp, dhcpv6 ──────────────────────▶ reply
//!               └ conntrack ─ ipv4/6_lookup ┬────────▶ machine
//!                                           └ ipip_encap ─▶ uplink
//! uplink ─ cls ─ ipip_decap ─ conntrack ─────────────▶ machine
//! ```
//!
//! A stage reads the [`Context`], refines the [`Walk`] and may end it early ([`Step::Answered`], or a drop reason). [`stages`] has their order. What
//! the walk ends with is remembered by [`conntrack`], so that the next packet of either direction needs none of this.

use crate::cls::{self, FromMachine};
use crate::conntrack;
use crate::counters::{Counters, Node};
use crate::flow::adjacency::AdjacencyTable;
use crate::flow::key::{Scope, Tuple};
use crate::flow::table::FlowTable;
use crate::flow::{Coarse, Service};
use crate::packet::Packet;
use crate::pmtu::ErrorBudget;
use crate::tables::{Tables, Uplink};
use crate::underlay::Endpoint;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::{PortKind, arp, dhcp, dhcpv6, ipip, ipv6_nd, route_lookup};
use core::net::Ipv6Addr;
use net::Vni;
use net::ethernet::HEADER_LEN as ETHERNET_LEN;

/// Where the packet at hand comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    Machine,
    /// The tunnel that ends at this slot of the underlay table.
    Tunnel {
        slot: u16,
        endpoint: &'a Endpoint,
    },
}

/// What lends itself to every packet of a worker.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub flows: &'a mut FlowTable,
    pub adjacencies: &'a mut AdjacencyTable,
    pub counters: &'a mut Counters,
    pub errors: &'a mut ErrorBudget,
}

/// What the stages know and may touch while one packet takes its walk.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub tables: &'a Tables,
    pub flows: &'a mut FlowTable,
    pub adjacencies: &'a mut AdjacencyTable,
    pub counters: &'a mut Counters,
    /// For ICMP errors.
    pub errors: &'a mut ErrorBudget,
    pub now: Coarse,
    /// The port it came in on.
    #[expect(dead_code, reason = "relayed packets, which come next, leave by it")]
    pub from: PortId,
    pub source: Source<'a>,
    /// The machine port this is about: the sender's, or the tunnel endpoint's.
    pub machine: PortId,
    /// Its interface: number of the attachment, network and that network's slot, underlay address.
    pub generation: u32,
    pub vni: Vni,
    pub vni_slot: u16,
    pub underlay: Ipv6Addr,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Output {
    /// To the machine on this port.
    Deliver(PortId),
    /// Through a tunnel.
    Encap {
        uplink: Uplink,
        source: Ipv6Addr,
        destination: Ipv6Addr,
    },
}

/// A connection while its first packet (or, after a change of configuration, a later one) is decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// What the packet shows.
    pub tuple: Tuple,
    /// What it shall show when it leaves: destination translation, then source translation change this.
    pub leaves: Tuple,
    /// Set by the route lookup, or before it by a stage that steers the packet itself.
    pub output: Option<Output>,
    /// Who is responsible for the change of the tuple.
    pub service: Service,
    /// What the connection was before, if its configuration may have changed since: choices that are still valid are to be taken again.
    pub previous: Option<Previous>,
}

/// A connection's former translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Previous {
    pub leaves: Tuple,
    pub service: Service,
}

impl Walk {
    pub(crate) fn new(tuple: Tuple) -> Walk {
        Walk {
            tuple,
            leaves: tuple,
            output: None,
            service: Service::None,
            previous: None,
        }
    }
}

impl Context<'_> {
    /// How tuples of packets that come in where this one did are meant.
    pub(crate) fn scope(&self) -> Scope {
        match self.source {
            Source::Machine => Scope::plain(self.vni),
            Source::Tunnel { endpoint, .. } => endpoint.scope,
        }
    }
}

/// Decides one packet that came in on `port`.
pub(crate) fn walk(
    parts: &mut Parts<'_>,
    tables: &Tables,
    port: PortId,
    packet: &mut dyn Packet,
    now: Coarse,
) -> Result<Verdict, DropReason> {
    match tables.port(port).ok_or(DropReason::UnknownPort)?.kind {
        PortKind::Machine => {
            let cx = context(parts, tables, (port, port), now, Source::Machine);
            from_machine(&mut cx?, packet)
        }
        PortKind::Uplink(_) => from_uplink(parts, tables, port, packet, now),
    }
}

fn from_machine(cx: &mut Context<'_>, packet: &mut dyn Packet) -> Result<Verdict, DropReason> {
    match cls::from_machine(packet.frame())? {
        FromMachine::Arp => arp::process(cx, packet),
        FromMachine::Solicitation(..) => ipv6_nd::process(cx, packet),
        FromMachine::Dhcp => dhcp::process(cx, packet),
        FromMachine::Dhcpv6 => dhcpv6::process(cx, packet),
        FromMachine::Overlay(overlay) => conntrack::track(cx, packet, &overlay, ETHERNET_LEN),
    }
}

fn from_uplink(
    parts: &mut Parts<'_>,
    tables: &Tables,
    port: PortId,
    packet: &mut dyn Packet,
    now: Coarse,
) -> Result<Verdict, DropReason> {
    let tunnelled = ipip::decap(tables, packet.frame())?;
    parts.counters.count(Node::IpipDecap);
    let (slot, endpoint) = (tunnelled.slot, tunnelled.endpoint);
    let overlay = cls::from_tunnel(tunnelled.protocol, tunnelled.inner)?;
    let source = Source::Tunnel { slot, endpoint };
    let mut cx = context(parts, tables, (port, endpoint.port), now, source)?;
    conntrack::track(&mut cx, packet, &overlay, ipip::TUNNEL_LEN)
}

/// The stages between connection tracking and encapsulation, for the first packet of a connection.
pub(crate) fn stages(cx: &mut Context<'_>, walk: &mut Walk) -> Result<(), DropReason> {
    route_lookup::process(cx, walk)
}

fn context<'a>(
    parts: &'a mut Parts<'_>,
    tables: &'a Tables,
    (from, machine): (PortId, PortId),
    now: Coarse,
    source: Source<'a>,
) -> Result<Context<'a>, DropReason> {
    let port = tables.port(machine).ok_or(DropReason::Bug)?;
    let attached = port.interface.as_ref().ok_or(DropReason::NoInterface)?;
    Ok(Context {
        tables,
        flows: parts.flows,
        adjacencies: parts.adjacencies,
        counters: parts.counters,
        errors: parts.errors,
        now,
        from,
        source,
        machine,
        generation: attached.generation,
        vni: attached.interface.spec.vni,
        vni_slot: attached.vni_slot,
        underlay: attached.interface.underlay,
    })
}
