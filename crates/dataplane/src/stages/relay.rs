//! Answers in the name of addresses that no machine has alone (node `packet_relay`): echo requests to NAT and load-balancer addresses.

use crate::cls::{L4, Overlay};
use crate::counters::Node;
use crate::edit::{Change, set_word};
use crate::flow::adjacency::Tunnel;
use crate::flow::key::Transport;
use crate::graph::{Context, Output, Source};
use crate::ipip::{self, TUNNEL_LEN};
use crate::packet::Packet;
use crate::route_lookup::check_forwardable;
use crate::underlay::UnderlayKind;
use crate::verdict::{DropReason, PortId, Verdict};
use core::net::{IpAddr, Ipv6Addr};
use net::{icmp, ipv4, ipv6};

/// Hops of answers. Those of the request tell nothing of the way back (RFC 1122 §3.2.1.7).
const HOP_LIMIT: u8 = 64;

/// Answers the packet if it asks for an echo of such an address; `None` leaves it to the other stages, untouched.
pub(crate) fn process(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
    overlay: &Overlay,
) -> Result<Option<Verdict>, DropReason> {
    if !asks_us(cx, overlay) {
        return Ok(None);
    }
    cx.counters.count(Node::PacketRelay);
    check_forwardable(overlay.source, overlay.destination)?;
    let (port, header) = way_back(cx, packet.frame(), overlay)?;
    if !packet.reframe(TUNNEL_LEN, TUNNEL_LEN, usize::from(overlay.length)) {
        return Err(DropReason::Bug);
    }
    let (front, inner) = packet
        .frame_mut()
        .split_first_chunk_mut::<TUNNEL_LEN>()
        .ok_or(DropReason::Bug)?;
    *front = header;
    [front[18], front[19]] = overlay.length.to_be_bytes();
    answer(inner, overlay);
    Ok(Some(Verdict::Reply(port)))
}

/// The uplink and the tunnel by which an answer to a tunnelled packet goes to who sent it; the length is to be filled in.
pub(crate) fn way_back(
    cx: &Context<'_>,
    frame: &[u8],
    overlay: &Overlay,
) -> Result<(PortId, [u8; TUNNEL_LEN]), DropReason> {
    let requester = outer_source(frame).ok_or(DropReason::Bug)?;
    let Output::Encap {
        uplink,
        source,
        destination,
    } = cx.hairpin(requester)?
    else {
        return Err(DropReason::Bug);
    };
    let uplink = *cx.tables.uplink(uplink)?;
    let adjacency = ipip::adjacency(&Tunnel {
        uplink,
        is_v6: overlay.source.is_ipv6(),
        source,
        destination,
    });
    Ok((adjacency.port, adjacency.header))
}

fn asks_us(cx: &Context<'_>, overlay: &Overlay) -> bool {
    let Source::Tunnel { endpoint, .. } = cx.source else {
        return false;
    };
    let Ok(L4::Flow { tuple, .. }) = overlay.l4 else {
        return false;
    };
    if overlay.piece.is_some() {
        // An answer to the first piece would be one that never gets whole.
        return false;
    }
    let services = &cx.tables.services;
    tuple.transport == Transport::Echo { request: true }
        && match (endpoint.kind, overlay.destination) {
            (UnderlayKind::LoadBalancer, address) => services.balancer(cx.vni, address).is_some(),
            (UnderlayKind::Nat, IpAddr::V4(address)) => services
                .translated(cx.vni, address)
                .is_some_and(|translated| translated.vip.is_none()),
            _ => false,
        }
}

fn outer_source(frame: &[u8]) -> Option<Ipv6Addr> {
    let octets = frame.get(22..)?.first_chunk::<16>()?;
    Some(Ipv6Addr::from_octets(*octets))
}

/// Swaps the addresses, which no checksum notices, renews the hops, and turns the request into a reply.
fn answer(inner: &mut [u8], overlay: &Overlay) {
    let (start, width, kind) = match overlay.destination {
        IpAddr::V4(_) => (12, 4, icmp::ECHO_REPLY),
        IpAddr::V6(_) => (8, 16, icmp::V6_ECHO_REPLY),
    };
    if let Some(addresses) = inner.get_mut(start..start + 2 * width) {
        addresses.rotate_left(width);
    }
    renew_hops(inner, overlay.destination);
    let transport = match overlay.destination {
        IpAddr::V4(_) => overlay.layout.transport,
        IpAddr::V6(_) => echo_offset_v6(inner).unwrap_or(ipv6::HEADER_LEN),
    }
    .max(ipv4::HEADER_LEN);
    if let Some(message) = inner.get_mut(transport..) {
        let mut change = Change::default();
        set_word(message, 0, u16::from(kind) << 8, &mut change);
        change.write(message, 2);
    }
}

fn renew_hops(inner: &mut [u8], destination: IpAddr) {
    if destination.is_ipv6() {
        if let Some(hops) = inner.get_mut(7) {
            *hops = HOP_LIMIT;
        }
    } else if let Some(&[_, protocol]) = inner.get(8..10).and_then(<[u8]>::first_chunk) {
        let mut change = Change::default();
        let word = u16::from_be_bytes([HOP_LIMIT, protocol]);
        set_word(inner, 8, word, &mut change);
        change.write(inner, 10);
    }
}

fn echo_offset_v6(inner: &[u8]) -> Option<usize> {
    match net::Ipv6::new_checked(inner).ok()?.upper().ok()? {
        ipv6::Upper::Transport { offset, .. } => Some(ipv6::HEADER_LEN + offset),
        ipv6::Upper::Fragment { .. } | ipv6::Upper::SourceRoute | ipv6::Upper::TooMany => None,
    }
}
