//! The path of a packet on one page: every stage, in order, for packets that no cached decision answers.
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
//! Stages of later services have their place between conntrack and lookup (load balancing, destination translation) and between
//! lookup and encapsulation (source translation, firewall): they refine the [`Decision`] that [`conntrack::track`] remembers.

use crate::cls::{self, FromMachine, Overlay};
use crate::conntrack::{self, Timeouts};
use crate::counters::{Counters, Node};
use crate::flow::key::Hasher;
use crate::flow::table::FlowTable;
use crate::flow::{Action, Coarse};
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::{PortKind, arp, dhcp, dhcpv6, ipip, ipv6_nd};
use core::net::Ipv6Addr;
use net::ethernet::HEADER_LEN as ETHERNET_LEN;
use net::{Prefix, Vni};

/// Where the packet at hand comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    Machine,
    /// The tunnel that ends at this slot of the underlay table.
    Tunnel {
        slot: u16,
    },
}

/// What the stages know and may touch while one packet takes its walk.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub tables: &'a Tables,
    pub flows: &'a mut FlowTable,
    pub counters: &'a mut Counters,
    pub hasher: &'a Hasher,
    pub timeouts: Timeouts,
    pub now: Coarse,
    pub source: Source,
    /// The machine port this is about: the sender's, or the tunnel endpoint's.
    pub machine: PortId,
    /// Its interface: number of the attachment, network and that network's slot, underlay address.
    pub generation: u32,
    pub vni: Vni,
    pub vni_slot: u16,
    pub underlay: Ipv6Addr,
    /// The prefix the tunnel endpoint stands for, if not the interface itself.
    pub prefix: Option<Prefix>,
}

/// What lends itself to every packet of a worker.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub flows: &'a mut FlowTable,
    pub counters: &'a mut Counters,
    pub hasher: &'a Hasher,
    pub timeouts: Timeouts,
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
            let cx = context(parts, tables, port, now, Source::Machine, None);
            from_machine(&mut cx?, packet)
        }
        PortKind::Uplink(_) => from_uplink(parts, tables, packet, now),
    }
}

fn from_machine(cx: &mut Context<'_>, packet: &mut dyn Packet) -> Result<Verdict, DropReason> {
    match cls::from_machine(packet.frame())? {
        FromMachine::Arp => arp::process(cx, packet),
        FromMachine::Solicitation(..) => ipv6_nd::process(cx, packet),
        FromMachine::Dhcp => dhcp::process(cx, packet),
        FromMachine::Dhcpv6 => dhcpv6::process(cx, packet),
        FromMachine::Overlay(overlay) => forward(cx, packet, &overlay, ETHERNET_LEN),
    }
}

fn from_uplink(
    parts: &mut Parts<'_>,
    tables: &Tables,
    packet: &mut dyn Packet,
    now: Coarse,
) -> Result<Verdict, DropReason> {
    let tunnelled = ipip::decap(tables, packet.frame())?;
    parts.counters.count(Node::IpipDecap);
    let (slot, endpoint) = (tunnelled.slot, tunnelled.endpoint);
    let overlay = cls::from_tunnel(tunnelled.protocol, tunnelled.inner)?;
    let source = Source::Tunnel { slot };
    let mut cx = context(parts, tables, endpoint.port, now, source, endpoint.prefix)?;
    forward(&mut cx, packet, &overlay, ipip::TUNNEL_LEN)
}

fn forward(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
    ip_offset: usize,
) -> Result<Verdict, DropReason> {
    let decision = conntrack::track(cx, overlay)?;
    if decision.action == Action::Encap {
        cx.counters.count(Node::IpipEncap);
    }
    let port = ipip::apply(
        &decision,
        &cx.tables.ports,
        packet,
        ip_offset,
        overlay.length,
    )?;
    Ok(Verdict::Transmit(port))
}

fn context<'a>(
    parts: &'a mut Parts<'_>,
    tables: &'a Tables,
    machine: PortId,
    now: Coarse,
    source: Source,
    prefix: Option<Prefix>,
) -> Result<Context<'a>, DropReason> {
    let port = tables.port(machine).ok_or(DropReason::Bug)?;
    let attached = port.interface.as_ref().ok_or(DropReason::NoInterface)?;
    Ok(Context {
        tables,
        flows: parts.flows,
        counters: parts.counters,
        hasher: parts.hasher,
        timeouts: parts.timeouts,
        now,
        source,
        machine,
        generation: attached.generation,
        vni: attached.interface.spec.vni,
        vni_slot: attached.vni_slot,
        underlay: attached.interface.underlay,
        prefix,
    })
}
