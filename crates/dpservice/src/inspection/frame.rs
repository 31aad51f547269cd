//! Frames made from tuples: the first packet of a connection as a machine or a tunnel would bring it.

use net::ethernet::{self, HEADER_LEN as ETHERNET_LEN};
use net::{Mac, checksum, icmp, ipv4, ipv6, protocol, tcp, udp};
use proto::inspection::FlowTuple;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most bytes of payload of a packet that is made here.
pub(super) const PAYLOAD_MAX: usize = 9_000;
const HOP_LIMIT: u8 = 64;

/// Ethernet header of an outer or inner packet.
pub(super) fn ethernet(to: Mac, from: Mac, ip: &[u8]) -> Vec<u8> {
    let ethertype = if ip.first().is_some_and(|first| first >> 4 == 6) {
        ethernet::TYPE_IPV6
    } else {
        ethernet::TYPE_IPV4
    };
    let mut frame = Vec::with_capacity(ETHERNET_LEN + ip.len());
    frame.extend(ethernet::header(to, from, ethertype));
    frame.extend_from_slice(ip);
    frame
}

/// A packet inside the tunnel to `destination`. Nobody looks at where the tunnel begins.
pub(super) fn tunnelled(destination: Ipv6Addr, inner: &[u8]) -> Option<Vec<u8>> {
    let next_header = match inner.first()? >> 4 {
        4 => protocol::IPV4,
        6 => protocol::IPV6,
        _ => return None,
    };
    let outer = ipv6::Header {
        payload_len: u16::try_from(inner.len()).ok()?,
        next_header,
        hop_limit: HOP_LIMIT,
        source: Ipv6Addr::UNSPECIFIED,
        destination,
    };
    Some([&outer.emit()[..], inner].concat())
}

/// An IP packet that shows `tuple`: TCP SYN, UDP datagram or echo request. The error says what is wrong with the tuple.
pub(super) fn packet(tuple: &FlowTuple, payload_length: u32) -> Result<Vec<u8>, &'static str> {
    let FlowTuple {
        source,
        destination,
        protocol,
        source_port,
        destination_port,
    } = tuple;
    let source = source.parse().map_err(|_| "tuple.source")?;
    let destination = destination.parse().map_err(|_| "tuple.destination")?;
    let ports = (
        u16::try_from(*source_port).map_err(|_| "tuple.source_port")?,
        u16::try_from(*destination_port).map_err(|_| "tuple.destination_port")?,
    );
    let payload = usize::try_from(payload_length).map_err(|_| "payload_length")?;
    if payload > PAYLOAD_MAX {
        return Err("payload_length");
    }
    let is_v6 = matches!(source, IpAddr::V6(_));
    let mut segment = match u8::try_from(*protocol) {
        Ok(protocol::TCP) => tcp_syn(ports),
        Ok(protocol::UDP) => udp_header(ports, payload),
        Ok(protocol::ICMP) if !is_v6 => echo(icmp::ECHO_REQUEST, ports.0),
        Ok(protocol::ICMPV6) if is_v6 => echo(icmp::V6_ECHO_REQUEST, ports.0),
        Ok(_) | Err(_) => return Err("tuple.protocol"),
    };
    segment.resize(segment.len() + payload, 0);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Ok(over_v4(source, destination, *protocol as u8, segment))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Ok(over_v6(source, destination, *protocol as u8, segment))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Err("tuple.destination"),
    }
}

fn tcp_syn((source, destination): (u16, u16)) -> Vec<u8> {
    let mut bytes = vec![0; tcp::HEADER_LEN];
    put(&mut bytes, 0, source);
    put(&mut bytes, 2, destination);
    // Five words, SYN.
    put(&mut bytes, 12, 0x5000 | u16::from(tcp::SYN));
    put(&mut bytes, 14, u16::MAX);
    bytes
}

fn udp_header((source, destination): (u16, u16), payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; udp::HEADER_LEN];
    put(&mut bytes, 0, source);
    put(&mut bytes, 2, destination);
    put(&mut bytes, 4, (udp::HEADER_LEN + payload) as u16);
    bytes
}

fn echo(kind: u8, identifier: u16) -> Vec<u8> {
    let mut bytes = vec![0; icmp::HEADER_LEN];
    put(&mut bytes, 0, u16::from(kind) << 8);
    put(&mut bytes, 4, identifier);
    bytes
}

fn put(bytes: &mut [u8], place: usize, value: u16) {
    if let Some(field) = bytes.get_mut(place..place + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Where the checksum of a transport is.
fn checksum_place(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 2,
    }
}

fn over_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, mut segment: Vec<u8>) -> Vec<u8> {
    let length = segment.len() as u16;
    let pseudo = match protocol {
        protocol::ICMP => 0,
        _ => checksum::pseudo_v4(source, destination, protocol, length),
    };
    let sum = checksum::udp(checksum::sum(pseudo, &segment));
    put(&mut segment, checksum_place(protocol), sum);
    let mut header = [0; ipv4::HEADER_LEN];
    put(&mut header, 0, 0x4500);
    put(&mut header, 2, ipv4::HEADER_LEN as u16 + length);
    put(&mut header, 6, 0x4000);
    put(
        &mut header,
        8,
        u16::from(HOP_LIMIT) << 8 | u16::from(protocol),
    );
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let sum = checksum::checksum(&header);
    put(&mut header, 10, sum);
    [&header[..], &segment].concat()
}

fn over_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, mut segment: Vec<u8>) -> Vec<u8> {
    let length = segment.len() as u16;
    let pseudo = checksum::pseudo_v6(source, destination, protocol, u32::from(length));
    let sum = checksum::udp(checksum::sum(pseudo, &segment));
    put(&mut segment, checksum_place(protocol), sum);
    let header = ipv6::Header {
        payload_len: length,
        next_header: protocol,
        hop_limit: HOP_LIMIT,
        source,
        destination,
    };
    [&header.emit()[..], &segment].concat()
}
