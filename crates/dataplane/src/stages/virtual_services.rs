//! Virtual services on the packet path (node `virtsvc`): IPv4 from machines becomes IPv6 to the service and back, without tunnel.
//!
//! These packets pass neither connection tracking nor packet filter nor rate limits.

use crate::cls::{self, L4, Overlay};
use crate::counters::Node;
use crate::edit::{Side, set_port};
use crate::flow::Coarse;
use crate::flow::key::Tuple;
use crate::fragments::{Fragments, PieceKey};
use crate::graph::{Context, Parts};
use crate::nat64::{Ends, GROWTH_MAX, to_v4, to_v6};
use crate::packet::Packet;
use crate::pmtu::{self, too_long_as_v6};
use crate::route_lookup::choose_uplink;
use crate::tables::Tables;
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::virtual_service::{Connection, VirtualService};
use core::net::{IpAddr, Ipv4Addr};
use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::{Ethernet, protocol};

/// Sends a packet of a machine to the service it addresses; `None` if it addresses none.
pub(crate) fn outgoing(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
) -> Result<Option<Verdict>, DropReason> {
    let piece_place = cx.scope().place(cx.ingress());
    let known = shown(cx.fragments, overlay, piece_place, cx.now);
    let Some(Shown { tuple, tcp_flags }) = known else {
        return Ok(None);
    };
    let (IpAddr::V4(machine), IpAddr::V4(_)) = (tuple.source, tuple.destination) else {
        return Ok(None);
    };
    let Some(service) = find(cx.virtual_services, &tuple) else {
        return Ok(None);
    };
    cx.counters.count(Node::Virtsvc);
    let own = cx
        .tables
        .port(cx.machine)
        .and_then(|port| port.interface.as_ref());
    if own.and_then(|own| own.interface.spec.ipv4) != Some(machine) {
        return Err(DropReason::SourceSpoofed);
    }
    let connection = Connection {
        port: cx.machine,
        attachment: cx.generation,
        machine,
        machine_port: tuple.source_port,
    };
    let uplink = choose_uplink(cx.tables, || connection.path_hash())?;
    let uplink = *cx.tables.uplink(uplink)?;
    if let Some(told) = too_long_as_v6(uplink.mtu, packet, (overlay, ETHERNET_LEN)) {
        return pmtu::answer(cx, packet, overlay, told).map(Some);
    }
    let now = Instant::from_coarse(cx.now);
    let known = service.outgoing_or_new(connection, tcp_flags, now);
    let (source_port, new) = known.ok_or(DropReason::VirtualServiceFull)?;
    let (spec, source) = (*service.spec(), service.underlay());
    if let Some(new) = new {
        cx.journal.note(|| new);
    }
    if !packet.prepend(GROWTH_MAX) {
        return Err(DropReason::NoHeadroom);
    }
    let start = ETHERNET_LEN + GROWTH_MAX;
    let place = start..start + usize::from(overlay.length);
    let ends = Ends {
        source,
        destination: spec.service,
    };
    let place = to_v6(packet.frame_mut(), place, ends, ends);
    let place = place.map_err(|_| DropReason::NotTranslatable)?;
    clear_class(packet.frame_mut().get_mut(place.start..));
    let header = ethernet::header(
        uplink.next_hop.unwrap_or_default(),
        uplink.mac,
        ethernet::TYPE_IPV6,
    );
    finish(packet, place, (source_port, spec.service_port), header)?;
    let displaced = remember(cx.fragments, overlay, piece_place, tuple, cx.now);
    cx.counters.fragments_displaced += u64::from(displaced);
    Ok(Some(Verdict::Transmit(uplink.port)))
}

/// What a packet shows, or the first piece of it did.
#[derive(Clone, Copy, Debug)]
struct Shown {
    tuple: Tuple,
    tcp_flags: Option<u8>,
}

fn shown(
    fragments: &Fragments<Tuple>,
    overlay: &Overlay,
    place: u64,
    now: Coarse,
) -> Option<Shown> {
    match overlay.l4.ok()? {
        L4::Flow { tuple, tcp_flags } => Some(Shown { tuple, tcp_flags }),
        L4::Later => {
            let tuple = fragments.find(&overlay.piece_key(place)?, now)?;
            let tcp_flags = None;
            Some(Shown { tuple, tcp_flags })
        }
        L4::Error { .. } => None,
    }
}

/// Remembers the first piece of a fragmented packet that was sent on; true if another one had to be forgotten early.
fn remember(
    fragments: &mut Fragments<Tuple>,
    overlay: &Overlay,
    place: u64,
    tuple: Tuple,
    now: Coarse,
) -> bool {
    let is_followed = overlay
        .piece
        .is_some_and(|piece| piece.is_first && piece.has_more);
    match overlay.piece_key(place) {
        Some(key) if is_followed => fragments.remember(key, tuple, now),
        Some(_) | None => false,
    }
}

fn find<'s>(services: &'s mut [VirtualService], tuple: &Tuple) -> Option<&'s mut VirtualService> {
    let protocol = super::port_protocol(tuple.transport)?;
    let IpAddr::V4(address) = tuple.destination else {
        return None;
    };
    let mut services = services.iter_mut();
    services.find(|service| {
        let spec = service.spec();
        spec.is_at(protocol, address, tuple.destination_port)
    })
}

/// Where pieces of services' answers come in, which is in no network.
const OUTSIDE: u64 = u64::MAX;

/// Delivers a packet from an uplink to the machine whose request it answers; `None` if it is from no service.
pub(crate) fn incoming(
    parts: &mut Parts<'_>,
    tables: &Tables,
    packet: &mut dyn Packet,
    now: Coarse,
) -> Result<Option<Verdict>, DropReason> {
    if parts.virtual_services.is_empty() {
        return Ok(None);
    }
    let Some((service, overlay)) = answering(parts.virtual_services, packet.frame()) else {
        return Ok(None);
    };
    let known = shown(parts.fragments, &overlay, OUTSIDE, now);
    let Shown { tuple, tcp_flags } = known.ok_or(DropReason::FragmentUnknown)?;
    if tuple.source_port != service.spec().service_port {
        return Ok(None);
    }
    parts.counters.count(Node::Virtsvc);
    let spec = *service.spec();
    let connection = service
        .incoming(tuple.destination_port, tcp_flags, Instant::from_coarse(now))
        .ok_or(DropReason::VirtualServiceUnknown)?;
    let port = tables.port(connection.port).ok_or(DropReason::Bug)?;
    let attached = port.interface.as_ref();
    if attached.map(|attached| attached.generation) != Some(connection.attachment) {
        return Err(DropReason::VirtualServiceUnknown);
    }
    let ends: Ends<Ipv4Addr> = Ends {
        source: spec.address,
        destination: connection.machine,
    };
    let packet_end = ETHERNET_LEN + usize::from(overlay.length);
    clear_class(packet.frame_mut().get_mut(ETHERNET_LEN..packet_end));
    let bytes = packet.frame_mut().get_mut(ETHERNET_LEN..packet_end);
    let place = to_v4(bytes.ok_or(DropReason::Bug)?, ends, ends);
    let place = place.map_err(|_| DropReason::NotTranslatable)?;
    let place = ETHERNET_LEN + place.start..ETHERNET_LEN + place.end;
    let ports = (spec.port, connection.machine_port);
    finish(packet, place, ports, port.delivery_header(false))?;
    let displaced = remember(parts.fragments, &overlay, OUTSIDE, tuple, now);
    parts.counters.fragments_displaced += u64::from(displaced);
    Ok(Some(Verdict::Transmit(connection.port)))
}

/// What all pieces show of a packet of which a frame from outside is one.
pub(crate) fn answer_piece(frame: &[u8]) -> Option<PieceKey> {
    parse(frame)?.piece_key(OUTSIDE)
}

fn parse(frame: &[u8]) -> Option<Overlay> {
    let ethernet = Ethernet::new_checked(frame).ok()?;
    if ethernet.ethertype() != ethernet::TYPE_IPV6 {
        return None;
    }
    cls::from_tunnel(protocol::IPV6, ethernet.payload()).ok()
}

/// The service from which a frame comes, by its addresses, and the packet.
fn answering<'s>(
    services: &'s mut [VirtualService],
    frame: &[u8],
) -> Option<(&'s mut VirtualService, Overlay)> {
    let overlay = parse(frame)?;
    let protocol = match overlay.l4.ok()? {
        L4::Flow { tuple, .. } => super::port_protocol(tuple.transport),
        L4::Later => overlay.piece.map(|piece| piece.protocol),
        L4::Error { .. } => None,
    };
    let service = services.iter_mut().find(|service| {
        let spec = service.spec();
        Some(spec.protocol) == protocol
            && IpAddr::V6(spec.service) == overlay.source
            && IpAddr::V6(service.underlay()) == overlay.destination
    })?;
    Some((service, overlay))
}

/// Clears the traffic class of an IPv6 packet, which no checksum covers: machines do not choose how the fabric treats their packets, here as
/// little as in the tunnel, and the fabric's marks are not for them.
fn clear_class(packet: Option<&mut [u8]>) {
    if let Some([first, second, ..]) = packet {
        *first &= 0xf0;
        *second &= 0x0f;
    }
}

/// Writes ports and Ethernet header; what is around the IP packet goes.
fn finish(
    packet: &mut dyn Packet,
    place: core::ops::Range<usize>,
    (source_port, destination_port): (u16, u16),
    header: [u8; ETHERNET_LEN],
) -> Result<(), DropReason> {
    if !packet.reframe(place.start, ETHERNET_LEN, place.len()) {
        return Err(DropReason::Bug);
    }
    let (front, ip) = packet
        .frame_mut()
        .split_first_chunk_mut::<ETHERNET_LEN>()
        .ok_or(DropReason::Bug)?;
    *front = header;
    set_port(ip, Side::Source, source_port);
    set_port(ip, Side::Destination, destination_port);
    Ok(())
}
