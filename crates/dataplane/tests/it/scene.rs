//! Sending packets into a bed and looking at what comes out, for the conformance scenarios of services.

use crate::bed::*;
use crate::build::{self, address};
use core::net::{IpAddr, Ipv6Addr};
use dataplane::{DropReason, PortId, Verdict};
use net::{Mac, PortRange, Vni};

pub const VIP: &str = "172.20.0.1";
pub const NAT: &str = "172.21.0.1";
pub const PUBLIC: &str = "45.86.6.6";
pub const PUBLIC_OTHER: &str = "45.86.6.7";
pub const PUBLIC6: &str = "64:ff9b::2d56:606";

pub fn router() -> Ipv6Addr {
    v6("fc00::ffff")
}

pub fn range(first: u16, end: u16) -> PortRange {
    PortRange::new(first, end).unwrap()
}

/// What came out.
#[derive(Debug, PartialEq, Eq)]
pub enum Out {
    /// From an uplink: outer source and destination, inner packet.
    Tunnel(PortId, Ipv6Addr, Ipv6Addr, Vec<u8>),
    /// To a machine.
    Machine(PortId, Vec<u8>),
    Dropped(DropReason),
}

impl Bed {
    /// The usual bed with default routes to the router.
    pub fn public() -> Bed {
        let mut bed = Bed::new();
        bed.default_routes(V100);
        bed.default_routes(V200);
        bed
    }

    pub fn default_routes(&mut self, vni: Vni) {
        for prefix in ["0.0.0.0", "::"] {
            let hop = IpAddr::V6(router());
            self.engine
                .create_route(vni, address(prefix), 0, hop, 0)
                .unwrap();
        }
    }

    /// What becomes of an IP packet of a machine.
    #[track_caller]
    pub fn guest(&mut self, port: PortId, ip: &[u8]) -> Out {
        let out = self.send(port, &from_guest(ip));
        self.open(out)
    }

    /// What becomes of an IP packet that the fabric delivers to an underlay address.
    #[track_caller]
    pub fn fabric(&mut self, to: Ipv6Addr, ip: &[u8]) -> Out {
        self.fabric_on(PF0, to, ip)
    }

    #[track_caller]
    pub fn fabric_on(&mut self, uplink: PortId, to: Ipv6Addr, ip: &[u8]) -> Out {
        let tunnel = build::tunnel(router(), to, ip);
        let frame = build::ethernet(Mac([0x22; 6]), ROUTER_MAC, 0x86dd, &tunnel);
        let out = self.send(uplink, &frame);
        self.open(out)
    }

    /// Takes a frame apart and checks what is the same for all.
    #[track_caller]
    fn open(&self, (verdict, frame): (Verdict, Vec<u8>)) -> Out {
        let port = match verdict {
            Verdict::Drop(reason) => return Out::Dropped(reason),
            Verdict::Transmit(port) | Verdict::Reply(port) => port,
        };
        assert_eq!(frame[6..12], self.port_mac(port).0, "Ethernet source");
        let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
        if port.0 >= 2 {
            let expected = if frame[14] >> 4 == 4 { 0x0800 } else { 0x86dd };
            assert_eq!(ethertype, expected);
            check_checksums(&frame[14..]);
            return Out::Machine(port, frame[14..].to_vec());
        }
        assert_eq!(frame[..6], ROUTER_MAC.0);
        assert_eq!(ethertype, 0x86dd);
        let inner = frame[54..].to_vec();
        let next = if inner[0] >> 4 == 4 { 4 } else { 41 };
        assert_eq!(frame[14..18], [0x60, 0, 0, 0]);
        assert_eq!(frame[18..20], (inner.len() as u16).to_be_bytes());
        assert_eq!(frame[20..22], [next, 64]);
        check_checksums(&inner);
        let address = |from: usize| {
            let octets: [u8; 16] = frame[from..from + 16].try_into().unwrap();
            Ipv6Addr::from(octets)
        };
        Out::Tunnel(port, address(22), address(38), inner)
    }
}

/// Every checksum of a packet without options is right.
#[track_caller]
pub fn check_checksums(ip: &[u8]) {
    use net::checksum::{checksum, finish, pseudo_v4, pseudo_v6, sum};
    let (protocol, l4, pseudo) = if ip[0] >> 4 == 4 {
        assert_eq!(checksum(&ip[..20]), 0, "IPv4 header checksum");
        let view = net::Ipv4::new_checked(ip).unwrap();
        let l4 = view.payload();
        let pseudo = pseudo_v4(
            view.source(),
            view.destination(),
            view.protocol(),
            l4.len() as u16,
        );
        (view.protocol(), l4, pseudo)
    } else {
        let view = net::Ipv6::new_checked(ip).unwrap();
        let l4 = view.payload();
        let pseudo = pseudo_v6(
            view.source(),
            view.destination(),
            view.next_header(),
            l4.len() as u32,
        );
        (view.next_header(), l4, pseudo)
    };
    let start = if protocol == 1 { 0 } else { pseudo };
    assert_eq!(finish(sum(start, l4)), 0, "checksum of protocol {protocol}");
}

/// Source and destination port of a TCP or UDP packet, or its identifier twice.
pub fn ports(ip: &[u8]) -> (u16, u16) {
    let (start, protocol) = if ip[0] >> 4 == 4 {
        (20, ip[9])
    } else {
        (40, ip[6])
    };
    let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    match protocol {
        1 | 58 => (word(start + 4), word(start + 4)),
        _ => (word(start), word(start + 2)),
    }
}
