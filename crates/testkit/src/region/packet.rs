//! Test packets: UDP in IPv4 with true checksums, and what a packet is seen to be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use net::checksum;

const ETHERNET: usize = 14;

/// An Ethernet frame as a machine sends it.
pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    transport(17, from, to, payload)
}

/// A TCP segment that opens a connection.
pub fn syn(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    transport(6, from, to, &[])
}

fn transport(protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.1.to_be_bytes());
    l4.extend(to.1.to_be_bytes());
    let place = match protocol {
        6 => {
            l4.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
            16
        }
        _ => {
            l4.extend((8 + payload.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
            6
        }
    };
    l4.extend(payload);
    let sum = checksum::pseudo_v4(from.0, to.0, protocol, l4.len() as u16);
    let sum = checksum::finish(checksum::sum(sum, &l4)).to_be_bytes();
    put(&mut l4, place, &sum);
    let mut header = vec![0x45, 0];
    header.extend((20 + l4.len() as u16).to_be_bytes());
    header.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    header.extend(from.0.octets());
    header.extend(to.0.octets());
    let sum = checksum::checksum(&header).to_be_bytes();
    put(&mut header, 10, &sum);
    let ethernet = [0x02, 0, 0, 0, 0, 0, 0x52, 0x54, 0, 0, 0, 1, 0x08, 0x00];
    [&ethernet[..], &header, &l4].concat()
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

/// Addresses and ports of an IPv4 frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub from: (IpAddr, u16),
    pub to: (IpAddr, u16),
}

/// Reads the frame that a machine receives.
pub fn seen(frame: &[u8]) -> Option<Seen> {
    seen_ip(frame.get(ETHERNET..)?)
}

/// Reads an IPv4 packet.
pub fn seen_ip(packet: &[u8]) -> Option<Seen> {
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    let port = |at: usize| -> Option<u16> {
        let octets: [u8; 2] = packet.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_be_bytes(octets))
    };
    Some(Seen {
        from: (address(12)?, port(20)?),
        to: (address(16)?, port(22)?),
    })
}
