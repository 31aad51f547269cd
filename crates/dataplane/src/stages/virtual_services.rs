//! Virtual services on the packet path (node `virtsvc`): IPv4 from machines becomes IPv6 to the service and back, without tunnel.
//!
//! These packets pass neither connection tracking nor packet filter nor rate limits.

use crate::cls::{L4, Overlay};
use crate::counters::Node;
use crate::edit::{Side, set_port};
use crate::flow::key::{Transport, Tuple};
use crate::graph::{Context, Parts};
use crate::nat64::{Ends, GROWTH, to_v4, to_v6};
use crate::packet::Packet;
use crate::route_lookup::choose_uplink;
use crate::tables::Tables;
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::virtual_service::{Connection, VirtualService};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::{Ethernet, Ipv6, Tcp, Udp, protocol};

/// Sends a packet of a machine to the service it addresses; `None` if it addresses none.
pub(crate) fn outgoing(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
) -> Result<Option<Verdict>, DropReason> {
    let Ok(L4::Flow { tuple, tcp_flags }) = overlay.l4 else {
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
    let now = Instant::from_coarse(cx.now);
    let source_port = service.outgoing(connection, tcp_flags, now);
    let source_port = source_port.ok_or(DropReason::VirtualServiceFull)?;
    let (spec, source) = (*service.spec(), service.underlay());
    let uplink = *choose_uplink(cx.tables, || connection.path_hash())?;
    if !packet.prepend(GROWTH) {
        return Err(DropReason::NoHeadroom);
    }
    let start = ETHERNET_LEN + GROWTH;
    let place = start..start + usize::from(overlay.length);
    let ends = Ends {
        source,
        destination: spec.service,
    };
    let place = to_v6(packet.frame_mut(), place, ends, ends);
    let place = place.map_err(|_| DropReason::NotTranslatable)?;
    let header = ethernet::header(
        uplink.next_hop.unwrap_or_default(),
        uplink.mac,
        ethernet::TYPE_IPV6,
    );
    finish(packet, place, (source_port, spec.service_port), header)?;
    Ok(Some(Verdict::Transmit(uplink.port)))
}

fn find<'s>(services: &'s mut [VirtualService], tuple: &Tuple) -> Option<&'s mut VirtualService> {
    let wanted = match tuple.transport {
        Transport::Tcp => protocol::TCP,
        Transport::Udp => protocol::UDP,
        Transport::Echo { .. } => return None,
    };
    services.iter_mut().find(|service| {
        let spec = service.spec();
        spec.protocol == wanted
            && IpAddr::V4(spec.address) == tuple.destination
            && spec.port == tuple.destination_port
    })
}

/// What an answer of a service shows.
#[derive(Clone, Copy, Debug)]
struct Answer {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: u8,
    ports: (u16, u16),
    tcp_flags: Option<u8>,
    length: usize,
}

/// Delivers a packet from an uplink to the machine whose request it answers; `None` if it is from no service.
pub(crate) fn incoming(
    parts: &mut Parts<'_>,
    tables: &Tables,
    packet: &mut dyn Packet,
    now: Instant,
) -> Result<Option<Verdict>, DropReason> {
    if parts.virtual_services.is_empty() {
        return Ok(None);
    }
    let Some(answer) = parse(packet.frame()) else {
        return Ok(None);
    };
    let is_it = |service: &&mut VirtualService| {
        let spec = service.spec();
        spec.protocol == answer.protocol
            && (spec.service, spec.service_port) == (answer.source, answer.ports.0)
            && service.underlay() == answer.destination
    };
    let Some(service) = parts.virtual_services.iter_mut().find(is_it) else {
        return Ok(None);
    };
    parts.counters.count(Node::Virtsvc);
    let spec = *service.spec();
    let connection = service
        .incoming(answer.ports.1, answer.tcp_flags, now)
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
    let packet_end = ETHERNET_LEN + answer.length;
    let bytes = packet.frame_mut().get_mut(ETHERNET_LEN..packet_end);
    let place = to_v4(bytes.ok_or(DropReason::Bug)?, ends, ends);
    let place = place.map_err(|_| DropReason::NotTranslatable)?;
    let place = ETHERNET_LEN + place.start..ETHERNET_LEN + place.end;
    let ports = (spec.port, connection.machine_port);
    finish(packet, place, ports, port.delivery_header(false))?;
    Ok(Some(Verdict::Transmit(connection.port)))
}

fn parse(frame: &[u8]) -> Option<Answer> {
    let ethernet = Ethernet::new_checked(frame).ok()?;
    if ethernet.ethertype() != ethernet::TYPE_IPV6 {
        return None;
    }
    let ip = Ipv6::new_checked(ethernet.payload()).ok()?;
    let (ports, tcp_flags) = match ip.next_header() {
        protocol::TCP => {
            let tcp = Tcp::new_checked(ip.payload()).ok()?;
            ((tcp.source(), tcp.destination()), Some(tcp.flags()))
        }
        protocol::UDP => {
            let udp = Udp::new_checked(ip.payload()).ok()?;
            ((udp.source(), udp.destination()), None)
        }
        _ => return None,
    };
    Some(Answer {
        source: ip.source(),
        destination: ip.destination(),
        protocol: ip.next_header(),
        ports,
        tcp_flags,
        length: net::ipv6::HEADER_LEN + usize::from(ip.payload_len()),
    })
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
