//! Test packets: UDP in IPv4 and IPv6 with true checksums, and what a packet is seen to be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use net::checksum;

const ETHERNET: usize = 14;
const UDP: u8 = 17;

/// An Ethernet frame with a datagram as a machine sends it. Both addresses are of one family.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.1.to_be_bytes());
    l4.extend(to.1.to_be_bytes());
    l4.extend((8 + payload.len() as u16).to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(payload);
    let (sum, header) = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (
            checksum::pseudo_v4(from, to, UDP, l4.len() as u16),
            header_v4(from, to, l4.len()),
        ),
        (from, to) => {
            let (from, to) = (v6(from), v6(to));
            (
                checksum::pseudo_v6(from, to, UDP, l4.len() as u32),
                header_v6(from, to, l4.len()),
            )
        }
    };
    let sum = checksum::finish(checksum::sum(sum, &l4)).to_be_bytes();
    put(&mut l4, 6, &sum);
    let macs = [0x02, 0, 0, 0, 0, 0, 0x52, 0x54, 0, 0, 0, 1];
    let ethertype: [u8; 2] = match from.0 {
        IpAddr::V4(_) => [0x08, 0x00],
        IpAddr::V6(_) => [0x86, 0xdd],
    };
    [&macs[..], &ethertype, &header, &l4].concat()
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn header_v4(from: Ipv4Addr, to: Ipv4Addr, payload: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload as u16).to_be_bytes());
    header.extend([0, 1, 0, 0, 64, UDP, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum::checksum(&header).to_be_bytes();
    put(&mut header, 10, &sum);
    header
}

fn header_v6(from: Ipv6Addr, to: Ipv6Addr, payload: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((payload as u16).to_be_bytes());
    header.extend([UDP, 64]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

fn put(bytes: &mut [u8], at: usize, sum: &[u8; 2]) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(sum);
    }
}

/// Where a tunnel packet goes.
pub fn outer_destination(frame: &[u8]) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = frame.get(ETHERNET + 24..ETHERNET + 40)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets))
}

/// Addresses and ports of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub from: (IpAddr, u16),
    pub to: (IpAddr, u16),
}

/// Reads the frame that a machine receives.
pub fn seen(frame: &[u8]) -> Option<Seen> {
    seen_ip(frame.get(ETHERNET..)?)
}

/// Reads an IP packet.
pub fn seen_ip(packet: &[u8]) -> Option<Seen> {
    let v4 = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::from(octets))
    };
    let v6 = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::from(octets))
    };
    let port = |at: usize| -> Option<u16> {
        let octets: [u8; 2] = packet.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_be_bytes(octets))
    };
    match packet.first()? >> 4 {
        4 => Some(Seen {
            from: (v4(12)?, port(20)?),
            to: (v4(16)?, port(22)?),
        }),
        _ => Some(Seen {
            from: (v6(8)?, port(40)?),
            to: (v6(24)?, port(42)?),
        }),
    }
}
