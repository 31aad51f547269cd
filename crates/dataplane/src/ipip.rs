//! The tunnel: IP in IPv6 (RFC 2473) with next header 4 or 41 (nodes `ipip_encap` and `ipip_decap`).
//!
//! The inner packet is not touched: no hop limit is decremented, no DSCP copied. The VNI is not on the wire; the receiver knows
//! it from the outer destination.

use crate::flow::adjacency::{Adjacency, AdjacencyTable, Tunnel};
use crate::flow::rewrite::{self, Layout};
use crate::flow::{Action, Entry};
use crate::packet::Packet;
use crate::tables::{Port, Tables};
use crate::underlay::{Endpoint, HostPart};
use crate::verdict::{DropReason, PortId};
use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::{Ethernet, Ipv6, ipv6, protocol};

/// Outer hop limit.
const HOP_LIMIT: u8 = 64;
/// Ethernet and IPv6 header.
pub(crate) const TUNNEL_LEN: usize = ETHERNET_LEN + ipv6::HEADER_LEN;

/// The headers of a tunnel.
pub(crate) fn adjacency(tunnel: &Tunnel) -> Adjacency {
    let Tunnel {
        uplink,
        is_v6,
        source,
        destination,
    } = *tunnel;
    let next_header = if is_v6 {
        protocol::IPV6
    } else {
        protocol::IPV4
    };
    let next_hop = uplink.next_hop.unwrap_or_default();
    let outer = ipv6::Header {
        payload_len: 0,
        next_header,
        hop_limit: HOP_LIMIT,
        source,
        destination,
    };
    let mut header = [0; TUNNEL_LEN];
    let (front, back) = header.split_at_mut(ETHERNET_LEN);
    front.copy_from_slice(&ethernet::header(next_hop, uplink.mac, ethernet::TYPE_IPV6));
    back.copy_from_slice(&outer.emit());
    Adjacency {
        header,
        port: uplink.port,
        inner_max: uplink.mtu.saturating_sub(ipv6::HEADER_LEN as u16),
    }
}

/// What a tunnelled frame is for.
#[derive(Debug)]
pub(crate) struct Tunnelled<'a, 't> {
    pub slot: u16,
    pub endpoint: &'t Endpoint,
    /// Next header: 4 or 41 (others are refused later by the parser of the inner packet).
    pub protocol: u8,
    pub inner: &'a [u8],
}

/// Finds the endpoint of a frame from an uplink.
pub(crate) fn decap<'a, 't>(
    tables: &'t Tables,
    frame: &'a [u8],
) -> Result<Tunnelled<'a, 't>, DropReason> {
    let ethernet = Ethernet::new_checked(frame).map_err(|_| DropReason::Runt)?;
    if ethernet.ethertype() != ethernet::TYPE_IPV6 {
        return Err(DropReason::UplinkNotTunnel);
    }
    let outer = Ipv6::new_checked(ethernet.payload()).map_err(|_| DropReason::Ipv6Malformed)?;
    let protocol = outer.next_header();
    if !matches!(protocol, protocol::IPV4 | protocol::IPV6) {
        return Err(DropReason::UplinkNotTunnel);
    }
    let destination = outer.destination();
    let found = tables.underlay.lookup(HostPart::of(destination));
    let found = found.filter(|_| tables.is_host_prefix(destination));
    let (slot, endpoint) = found.ok_or(DropReason::UnderlayUnknown)?;
    Ok(Tunnelled {
        slot,
        endpoint,
        protocol,
        inner: outer.payload(),
    })
}

/// Edits a packet whose IP header starts `ip_offset` bytes into the frame and takes `length` bytes with its payload.
///
/// Whatever is around the IP packet goes: the old Ethernet header, an old tunnel, padding. A refused packet is left as it was.
#[inline(always)]
pub(crate) fn apply<P: Packet + ?Sized>(
    entry: &Entry,
    adjacencies: &AdjacencyTable,
    ports: &[Port],
    packet: &mut P,
    (ip_offset, length, layout): (usize, u16, Layout),
) -> Result<PortId, DropReason> {
    let keep = usize::from(length);
    let (to, inner) = match entry.action {
        Action::Encap => {
            let adjacency = adjacencies.get(entry.target).ok_or(DropReason::Bug)?;
            if length > adjacency.inner_max && !packet.is_cut_to(ip_offset, adjacency.inner_max) {
                return Err(DropReason::PacketTooBig);
            }
            let frame = packet
                .reframed(ip_offset, TUNNEL_LEN, keep)
                .ok_or(DropReason::NoHeadroom)?;
            let (front, inner) = frame
                .split_first_chunk_mut::<TUNNEL_LEN>()
                .ok_or(DropReason::Bug)?;
            *front = adjacency.header;
            [front[18], front[19]] = length.to_be_bytes();
            (adjacency.port, inner)
        }
        Action::Deliver => {
            let port = ports.get(entry.target as usize).ok_or(DropReason::Bug)?;
            let frame = packet
                .reframed(ip_offset, ETHERNET_LEN, keep)
                .ok_or(DropReason::Bug)?;
            let (front, inner) = frame
                .split_first_chunk_mut::<ETHERNET_LEN>()
                .ok_or(DropReason::Bug)?;
            *front = port.delivery_header(entry.key.is_v6());
            (PortId(entry.target as u16), inner)
        }
        Action::Undecided => return Err(DropReason::Bug),
    };
    if entry.has(Entry::TRANSLATED) && !rewrite::apply(entry, inner, layout) {
        return Err(DropReason::Bug);
    }
    Ok(to)
}
