//! Packet builders. They share no code with the engine's own emitters beyond checksums, which have their own tests.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::{Mac, checksum};

pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
}

pub fn arp(opcode: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4];
    let (from, from_ip) = sender;
    let (to, to_ip) = target;
    [
        &fixed[..],
        &opcode.to_be_bytes(),
        &from.0,
        &from_ip.octets(),
        &to.0,
        &to_ip.octets(),
    ]
    .concat()
}

pub fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    ipv4_with(protocol, from, to, 0, &[], payload)
}

/// `fragment` is the whole flags and offset word; `options` must be a multiple of four bytes.
pub fn ipv4_with(
    protocol: u8,
    from: Ipv4Addr,
    to: Ipv4Addr,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len();
    let total = (header_len + payload.len()) as u16;
    let mut header = vec![0x40 | (header_len / 4) as u8, 0];
    header.extend(total.to_be_bytes());
    header.extend([0x12, 0x34]);
    header.extend(fragment.to_be_bytes());
    header.extend([61, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(options);
    let sum = checksum::checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header.extend(payload);
    header
}

pub fn ipv6(next_header: u8, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 63]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// An IP packet with a transport whose checksum (at `checksum_at`) is filled in.
fn ip(protocol: u8, from: IpAddr, to: IpAddr, mut l4: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let sum = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => 0,
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            checksum::pseudo_v4(from, to, protocol, l4.len() as u16)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            checksum::pseudo_v6(from, to, protocol, l4.len() as u32)
        }
        _ => panic!("address families differ"),
    };
    let sum = checksum::finish(checksum::sum(sum, &l4)).to_be_bytes();
    l4[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(protocol, from, to, &l4),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(protocol, from, to, &l4),
        _ => panic!("address families differ"),
    }
}

pub fn udp_datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.to_be_bytes());
    l4.extend(to.to_be_bytes());
    l4.extend((8 + payload.len() as u16).to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(payload);
    l4
}

/// An IP packet; addresses as text.
pub fn udp(from: (&str, u16), to: (&str, u16), payload: &[u8]) -> Vec<u8> {
    ip(
        17,
        address(from.0),
        address(to.0),
        udp_datagram(from.1, to.1, payload),
        6,
    )
}

pub fn tcp(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    tcp_with(from, to, flags, &[])
}

pub fn tcp_with(from: (&str, u16), to: (&str, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.1.to_be_bytes());
    l4.extend(to.1.to_be_bytes());
    l4.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    l4.extend(payload);
    ip(6, address(from.0), address(to.0), l4, 16)
}

/// An ICMP or ICMPv6 message, by the family of the addresses.
pub fn icmp(from: &str, to: &str, kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut l4 = vec![kind, code, 0, 0];
    l4.extend(rest);
    l4.extend(body);
    let (from, to) = (address(from), address(to));
    ip(if from.is_ipv4() { 1 } else { 58 }, from, to, l4, 2)
}

/// An echo request or reply of the right kind for the family.
pub fn echo(from: &str, to: &str, request: bool, identifier: u16) -> Vec<u8> {
    let kind = match (address(from).is_ipv4(), request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    let [a, b] = identifier.to_be_bytes();
    icmp(from, to, kind, 0, [a, b, 0, 1], b"abcdefgh")
}

/// The same IP packet with another TTL or hop limit.
pub fn with_hops(mut ip: Vec<u8>, hops: u8) -> Vec<u8> {
    if ip[0] >> 4 == 4 {
        ip[8] = hops;
        ip[10..12].fill(0);
        let sum = checksum::checksum(&ip[..20]).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
    } else {
        ip[7] = hops;
    }
    ip
}

/// A tunnel packet without Ethernet header.
pub fn tunnel(from: Ipv6Addr, to: Ipv6Addr, inner: &[u8]) -> Vec<u8> {
    let next_header = if inner[0] >> 4 == 4 { 4 } else { 41 };
    let mut packet = ipv6(next_header, from, to, inner);
    packet[7] = 64;
    packet
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
