//! The path of a packet on one page: every stage, in order, for packets that no cached entry answers.
//!
//! ```text
//! machine ─ cls ┬ arp ───────────────────────────────▶ reply
//!               ├ ipv6_nd ───────────────────────────▶ reply
//!               ├ dhcp, dhcpv6 ──────────────────────▶ reply
//!               ├ virtsvc ───────────────────────────▶ uplink
//!               └ conntrack ─ dnat ─ ipv4/6_lookup ─ firewall ─ snat ┬─▶ machine
//!                                                                    └ ipip_encap ─▶ uplink
//! uplink ─ cls ┬ virtsvc ────────────────────────────▶ machine
//!              └ ipip_decap ┬ packet_relay ──────────▶ reply
//!                           └ conntrack ─ lb ─ dnat ─ lookup ─ firewall ┬─▶ machine
//!                                                                       └ ipip_encap ─▶ uplink
//! ```
//!
//! A stage reads the [`Context`], refines the [`Walk`] or refuses it with a reason. [`crate::stages`] has their order. What the walk ends
//! with is remembered by [`conntrack`], so that the next packet of either direction needs none of this.

use crate::cls::{self, Fast, FromMachine, L4};
use crate::conntrack::{self, Lookup};
use crate::counters::{Counters, Node};
use crate::flow::adjacency::AdjacencyTable;
use crate::flow::key::{FlowKey, Keyed, Place, Scope, Transport, Tuple};
use crate::flow::table::FlowTable;
use crate::flow::{Coarse, Ingress, Service};
use crate::fragments::Fragments;
use crate::packet::Packet;
use crate::pmtu::ErrorBudget;
use crate::port_map::PortMap;
use crate::stages::{relay, virtual_services};
use crate::sync::Journal;
use crate::tables::Tables;
use crate::underlay::{Endpoint, UnderlayKind};
use crate::verdict::{DropReason, PortId, Verdict};
use crate::virtual_service::VirtualService;
use crate::{PortKind, arp, dhcp, dhcpv6, ipip, ipv6_nd, keep};
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

impl Source<'_> {
    /// The machine port that a packet which came in on `port` is about.
    fn machine(&self, port: PortId) -> PortId {
        match self {
            Source::Machine => port,
            Source::Tunnel { endpoint, .. } => endpoint.port,
        }
    }
}

/// What lends itself to every packet of a worker.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub flows: &'a mut FlowTable,
    pub adjacencies: &'a mut AdjacencyTable,
    pub nat: &'a mut PortMap,
    pub virtual_services: &'a mut [VirtualService],
    pub counters: &'a mut Counters,
    pub errors: &'a mut ErrorBudget,
    pub fragments: &'a mut Fragments<Tuple>,
    pub journal: &'a mut Journal,
}

/// What the stages know and may touch while one packet takes its walk.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub tables: &'a Tables,
    pub flows: &'a mut FlowTable,
    pub adjacencies: &'a mut AdjacencyTable,
    pub nat: &'a mut PortMap,
    pub virtual_services: &'a mut [VirtualService],
    pub counters: &'a mut Counters,
    /// For ICMP errors.
    pub errors: &'a mut ErrorBudget,
    pub fragments: &'a mut Fragments<Tuple>,
    /// For another instance.
    pub journal: &'a mut Journal,
    pub now: Coarse,
    /// The port it came in on.
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
        /// Its number.
        uplink: u8,
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
    /// Its route is a default route.
    pub public: bool,
    /// A former choice is no longer valid: the connection must begin anew.
    pub begin_anew: bool,
}

/// A connection's former translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Previous {
    pub leaves: Tuple,
    pub service: Service,
    /// Of a load-balanced connection: its target.
    pub target: Option<Ipv6Addr>,
}

impl Walk {
    pub(crate) fn new(tuple: Tuple) -> Walk {
        Walk {
            tuple,
            leaves: tuple,
            output: None,
            service: Service::None,
            previous: None,
            public: false,
            begin_anew: false,
        }
    }
}

impl Context<'_> {
    /// Whether the decision of an entry still holds, see [`keep`].
    pub(crate) fn keeps(&mut self, number: u32) -> bool {
        let doubt = self.doubt(number);
        keep::confirm(self, number, doubt)
    }

    /// What of an entry's decision is in doubt.
    #[inline]
    fn doubt(&self, number: u32) -> keep::Doubt {
        let view = keep::View {
            tables: self.tables,
            flows: self.flows,
            adjacencies: self.adjacencies,
            source: self.source,
        };
        keep::doubt(&view, number)
    }

    /// Where the packet came in.
    pub(crate) fn ingress(&self) -> Ingress {
        match self.source {
            Source::Machine => Ingress::machine(self.machine),
            Source::Tunnel { slot, .. } => Ingress::tunnel(slot),
        }
    }

    /// How tuples of packets that come in where this one did are meant.
    pub(crate) fn scope(&self) -> Scope {
        match self.source {
            Source::Machine => Scope::machine(self.vni),
            Source::Tunnel { endpoint, .. } => endpoint.scope,
        }
    }
}

/// A packet that the fast parser understood.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain<'a> {
    pub fast: &'a Fast,
    pub place: Place,
    pub ingress: Ingress,
    /// The entry of its connection, if there is one.
    pub found: Option<u32>,
}

/// The decided entry for a packet that is parsed already; `None` leaves it to [`walk`]: what is not tracked, and what was not understood.
pub(crate) fn decide_plain(
    parts: &mut Parts<'_>,
    tables: &Tables,
    (port, now): (PortId, Coarse),
    plain: &Plain<'_>,
) -> Option<Result<u32, DropReason>> {
    if plain.ingress == Ingress::NOWHERE || !parts.virtual_services.is_empty() {
        return None;
    }
    let source = source(tables, plain.ingress)?;
    let tuple = plain.fast.key.tuple();
    if is_for_us(&source, &tuple) {
        return None;
    }
    let is_tunnel = u64::from(matches!(source, Source::Tunnel { .. }));
    parts.counters.count_many(Node::IpipDecap, is_tunnel);
    let ports = (port, source.machine(port));
    let decided = context(parts, tables, ports, now, source).and_then(|mut cx| {
        cx.counters.count(Node::Conntrack);
        let key = plain.fast.key.clean();
        let keyed = Keyed {
            key,
            place: plain.place,
        };
        let found = plain.found;
        conntrack::decide(&mut cx, &Lookup { keyed, found }, &tuple)
    });
    Some(decided)
}

/// Sends a packet whose entry is decided but asks for more than the loop over cached answers does, or cannot be carried out.
pub(crate) fn forward_plain(
    parts: &mut Parts<'_>,
    tables: &Tables,
    (port, now): (PortId, Coarse),
    packet: &mut dyn Packet,
    (plain, number): (&Plain<'_>, u32),
) -> Result<Verdict, DropReason> {
    let overlay = plain.fast.overlay();
    let Ok(L4::Flow { tuple, tcp_flags }) = overlay.l4 else {
        return Err(DropReason::Bug);
    };
    if let Some(flags) = tcp_flags {
        conntrack::advance(parts.flows, number, flags);
    }
    let source = source(tables, plain.ingress).ok_or(DropReason::Bug)?;
    let ip_offset = match source {
        Source::Machine => ETHERNET_LEN,
        Source::Tunnel { .. } => ipip::TUNNEL_LEN,
    };
    let ports = (port, source.machine(port));
    let mut cx = context(parts, tables, ports, now, source)?;
    conntrack::forward(&mut cx, packet, &overlay, ip_offset, (number, tuple))
}

/// Whether a plain packet may be one that this host answers itself.
fn is_for_us(source: &Source<'_>, tuple: &Tuple) -> bool {
    match source {
        Source::Machine => {
            tuple.transport == Transport::Udp
                && matches!(
                    tuple.destination_port,
                    cls::DHCP_SERVER | cls::DHCPV6_SERVER
                )
        }
        Source::Tunnel { endpoint, .. } => {
            let is_shared = matches!(
                endpoint.kind,
                UnderlayKind::LoadBalancer | UnderlayKind::Nat
            );
            is_shared && tuple.transport == Transport::Echo { request: true }
        }
    }
}

fn source(tables: &Tables, ingress: Ingress) -> Option<Source<'_>> {
    Some(match ingress.underlay_slot() {
        None => Source::Machine,
        Some(slot) => {
            let endpoint = tables.underlay.at(slot)?;
            Source::Tunnel { slot, endpoint }
        }
    })
}

/// Whether the decision of an entry still holds for packets that come in on `port` at `ingress`, see [`keep`].
pub(crate) fn keep(
    parts: &mut Parts<'_>,
    tables: &Tables,
    (port, now): (PortId, Coarse),
    ingress: Ingress,
    number: u32,
) -> bool {
    let Some(source) = source(tables, ingress) else {
        return false;
    };
    let view = keep::View {
        tables,
        flows: parts.flows,
        adjacencies: parts.adjacencies,
        source,
    };
    let doubt = keep::doubt(&view, number);
    if doubt == keep::Doubt::NONE {
        keep::declare(
            parts.flows,
            &mut parts.counters.flows_kept,
            number,
            tables.epoch,
        );
        return true;
    }
    let cx = context(parts, tables, (port, source.machine(port)), now, source);
    cx.is_ok_and(|mut cx| keep::confirm(&mut cx, number, doubt))
}

/// The same for all entries of packets that came in at one place; an entry that is not its packet's, or is current, is left alone.
pub(crate) fn keep_all<'p>(
    parts: &mut Parts<'_>,
    tables: &Tables,
    (port, now): (PortId, Coarse),
    ingress: Ingress,
    packets: impl Iterator<Item = (&'p FlowKey, u32)>,
) {
    let Some(source) = source(tables, ingress) else {
        return;
    };
    let Ok(mut cx) = context(parts, tables, (port, source.machine(port)), now, source) else {
        return;
    };
    for (key, number) in packets {
        let is_stale = cx.flows.entry(number).is_some_and(|entry| {
            entry.epoch != tables.epoch && entry.ingress == ingress && entry.key.is(key)
        });
        if !is_stale {
            continue;
        }
        match cx.doubt(number) {
            keep::Doubt::NONE => {
                let counter = &mut cx.counters.flows_kept;
                keep::declare(cx.flows, counter, number, tables.epoch);
            }
            doubt => {
                keep::confirm(&mut cx, number, doubt);
            }
        }
    }
}

/// Decides one packet that came in on `port`.
pub(crate) fn walk(
    parts: &mut Parts<'_>,
    tables: &Tables,
    (port, now): (PortId, Coarse),
    packet: &mut dyn Packet,
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
        FromMachine::Overlay(overlay) => match virtual_services::outgoing(cx, packet, &overlay)? {
            Some(verdict) => Ok(verdict),
            None => conntrack::track(cx, packet, &overlay, ETHERNET_LEN),
        },
    }
}

fn from_uplink(
    parts: &mut Parts<'_>,
    tables: &Tables,
    port: PortId,
    packet: &mut dyn Packet,
    now: Coarse,
) -> Result<Verdict, DropReason> {
    if let Some(verdict) = virtual_services::incoming(parts, tables, packet, now)? {
        return Ok(verdict);
    }
    let tunnelled = ipip::decap(tables, packet.frame())?;
    parts.counters.count(Node::IpipDecap);
    let (slot, endpoint) = (tunnelled.slot, tunnelled.endpoint);
    let overlay = cls::from_tunnel(tunnelled.protocol, tunnelled.inner)?;
    let source = Source::Tunnel { slot, endpoint };
    let mut cx = context(parts, tables, (port, endpoint.port), now, source)?;
    match relay::process(&mut cx, packet, &overlay)? {
        Some(verdict) => Ok(verdict),
        None => conntrack::track(&mut cx, packet, &overlay, ipip::TUNNEL_LEN),
    }
}

/// What stages know of a packet that came in on port `from` and concerns the machine on port `machine`.
pub(crate) fn context<'a>(
    parts: &'a mut Parts<'_>,
    tables: &'a Tables,
    (from, machine): (PortId, PortId),
    now: Coarse,
    source: Source<'a>,
) -> Result<Context<'a>, DropReason> {
    let port = tables.port(machine).ok_or(DropReason::Bug)?;
    let (generation, vni, vni_slot, underlay) = match (&port.interface, source) {
        (Some(attached), _) => (
            attached.generation,
            attached.interface.spec.vni,
            attached.vni_slot,
            attached.interface.underlay,
        ),
        // A load balancer belongs to no machine; its connections have no owner, and nothing is routed.
        (None, Source::Tunnel { endpoint, .. }) if endpoint.kind == UnderlayKind::LoadBalancer => {
            (0, endpoint.vni, u16::MAX, tables.settings.host)
        }
        (None, _) => return Err(DropReason::NoInterface),
    };
    Ok(Context {
        tables,
        flows: parts.flows,
        adjacencies: parts.adjacencies,
        nat: parts.nat,
        virtual_services: parts.virtual_services,
        counters: parts.counters,
        errors: parts.errors,
        fragments: parts.fragments,
        journal: parts.journal,
        now,
        from,
        source,
        machine,
        generation,
        vni,
        vni_slot,
        underlay,
    })
}
