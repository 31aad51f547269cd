//! One edge with a few routes, packets to put into it, and the check that every packet test uses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dataplane::{Instant, PacketBuf};
use edge::{Counters, DropReason, Edge, Path, Routes, Scope, Settings, Table, Verdict};
use metalbond::{Destination, HopType, NextHop, RouteEvent};
use net::{Mac, Prefix, checksum, ethernet, ipv4, ipv6, protocol};

pub const VNI: u32 = 100;
pub const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x10]);
pub const MTU: u16 = 1500;

pub fn a(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

pub fn own() -> Ipv6Addr {
    v6("fd00:ff::e")
}

pub fn hv(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, n, 0, 0, 0xd000, 0, 0, 1)
}

pub fn scope() -> Scope {
    Scope {
        vni: VNI,
        own: own(),
        public: prefixes(&["198.51.100.0/24", "2001:db8:100::/64"]),
    }
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub fn settings() -> Settings {
    Settings {
        address: own(),
        icmp_v4: Ipv4Addr::new(192, 0, 0, 8),
        mac: MAC,
        mtu: MTU,
        public: scope().public,
        underlay: prefixes(&["fd00::/16"]),
        denied: prefixes(&["10.0.0.0/8", "fc00::/7"]),
    }
}

pub fn standard(prefix: &str, hop: Ipv6Addr) -> (Destination, NextHop) {
    (prefix.parse().unwrap(), NextHop::standard(hop))
}

pub fn nat(prefix: &str, hop: Ipv6Addr, from: u16, to: u16) -> (Destination, NextHop) {
    (prefix.parse().unwrap(), NextHop::nat(hop, from, to))
}

pub fn typed(prefix: &str, hop: IpAddr, hop_type: HopType) -> (Destination, NextHop) {
    let next_hop = NextHop {
        addr: hop,
        target_vni: 0,
        hop_type,
    };
    (prefix.parse().unwrap(), next_hop)
}

pub fn added((destination, next_hop): (Destination, NextHop)) -> RouteEvent {
    RouteEvent::Added {
        vni: VNI,
        destination,
        next_hop,
    }
}

pub fn removed((destination, next_hop): (Destination, NextHop)) -> RouteEvent {
    RouteEvent::Removed {
        vni: VNI,
        destination,
        next_hop,
    }
}

/// A VIP on hv1, one on hv2, a NAT address shared by both, a load balancer on both, an IPv6 machine on hv1.
pub fn routes() -> Routes {
    let mut routes = Routes::new(scope());
    for route in [
        standard("198.51.100.1/32", hv(1)),
        standard("198.51.100.2/32", hv(2)),
        standard("198.51.100.9/32", hv(1)),
        standard("198.51.100.9/32", hv(2)),
        nat("198.51.100.9/32", hv(1), 1024, 2048),
        nat("198.51.100.9/32", hv(2), 2048, 3072),
        standard("198.51.100.80/32", hv(1)),
        standard("198.51.100.80/32", hv(2)),
        standard("2001:db8:100::1/128", hv(1)),
    ] {
        assert!(routes.follow(&added(route)), "{route:?}");
    }
    routes
}

/// What a verdict must be and what must be in the frame afterwards.
#[derive(Debug, PartialEq, Eq)]
pub enum Out {
    /// A tunnel packet to that hypervisor, and its inner packet.
    Tunnel(Ipv6Addr, Vec<u8>),
    /// A plain packet.
    Plain(Vec<u8>),
}

pub struct Bed {
    pub edge: Edge,
    pub table: Table,
    pub counters: Arc<Counters>,
    pub now: Instant,
    pub packet: PacketBuf,
}

impl Bed {
    pub fn new() -> Bed {
        let counters = Arc::<Counters>::default();
        Bed {
            edge: Edge::new(Arc::new(settings()), Arc::clone(&counters)),
            table: routes().table().clone(),
            counters,
            now: Instant::from_secs(1),
            packet: PacketBuf::with_frame_max(9100),
        }
    }

    /// Puts a frame in and checks that exactly the verdict's counter moves.
    pub fn put(&mut self, frame: &[u8]) -> Verdict {
        assert!(self.packet.fill(frame));
        let before = self.counters.figures();
        let verdict = self.edge.process(&self.table, &mut self.packet, self.now);
        let after = self.counters.figures();
        let moved = |now: u64, then: u64, wanted: bool| assert_eq!(now - then, u64::from(wanted));
        for path in Path::ALL {
            let wanted = verdict == Verdict::Send(path);
            moved(after.packets(path), before.packets(path), wanted);
            assert_eq!(after.bytes(path) > before.bytes(path), wanted);
        }
        for reason in DropReason::ALL {
            let drop = verdict == Verdict::Drop(reason);
            moved(after.dropped(reason), before.dropped(reason), drop);
            let answer = verdict == Verdict::Answer(reason);
            moved(after.answered(reason), before.answered(reason), answer);
        }
        assert_eq!(after.dropped(DropReason::Bug), 0);
        verdict
    }

    /// Puts a frame in, expects a verdict, and reads what came out.
    #[track_caller]
    pub fn check(&mut self, frame: &[u8], verdict: Verdict) -> Out {
        assert_eq!(self.put(frame), verdict);
        self.out()
    }

    #[track_caller]
    pub fn dropped(&mut self, frame: &[u8], reason: DropReason) {
        assert_eq!(self.put(frame), Verdict::Drop(reason));
    }

    /// What is in the frame; every header is checked.
    #[track_caller]
    pub fn out(&self) -> Out {
        let frame = self.packet.frame();
        let (header, ip) = frame.split_at(14);
        assert_eq!(&header[..6], &MAC.0, "for the kernel");
        assert_eq!(header[6] & 1, 0);
        assert_ne!(&header[6..12], &MAC.0);
        let ethertype = u16::from_be_bytes([header[12], header[13]]);
        let version = ip[0] >> 4;
        assert_eq!(
            ethertype,
            if version == 4 { 0x0800 } else { 0x86dd },
            "ethertype"
        );
        if version == 6 && ip[8..24] == own().octets() && matches!(ip[6], 4 | 41) {
            let view = net::Ipv6::new_checked(ip).unwrap();
            let inner = view.payload().to_vec();
            assert_eq!(ip.len(), 40 + inner.len(), "no padding is left");
            assert_eq!(view.hop_limit(), 64);
            assert_eq!(ip[0], 0x60, "no traffic class");
            assert_eq!(ip[6], if inner[0] >> 4 == 4 { 4 } else { 41 });
            return Out::Tunnel(view.destination(), inner);
        }
        Out::Plain(ip.to_vec())
    }
}

/// An IP packet of either family with a payload and correct lengths.
pub fn ip(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let payload_len = u16::try_from(payload.len()).unwrap();
    let mut bytes = match (a(source), a(destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4::Header {
            payload_len,
            ttl: 57,
            protocol,
            source,
            destination,
        }
        .emit()
        .to_vec(),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6::Header {
            payload_len,
            next_header: protocol,
            hop_limit: 57,
            source,
            destination,
        }
        .emit()
        .to_vec(),
        _ => panic!("two families"),
    };
    bytes.extend(payload);
    bytes
}

pub fn udp(source: &str, from: u16, destination: &str, to: u16) -> Vec<u8> {
    ip(source, destination, protocol::UDP, &udp_bytes(from, to, 4))
}

pub fn udp_bytes(from: u16, to: u16, data: usize) -> Vec<u8> {
    let length = u16::try_from(8 + data).unwrap();
    let words = [from, to, length, 0];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend(vec![0x61; data]);
    bytes
}

/// An ICMP or ICMPv6 message without a correct checksum: edges do not look at it.
pub fn message(kind: u8, code: u8, word: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(word.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Makes a piece of a datagram out of an IPv4 packet.
pub fn fragmented(mut packet: Vec<u8>, flags_and_offset: u16) -> Vec<u8> {
    packet[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
    packet
}

pub fn ethernet_frame(ip: &[u8]) -> Vec<u8> {
    let ethertype = match ip[0] >> 4 {
        4 => ethernet::TYPE_IPV4,
        _ => ethernet::TYPE_IPV6,
    };
    let mut frame = ethernet::header(MAC, Mac([2, 0, 0, 0, 0, 0x77]), ethertype).to_vec();
    frame.extend(ip);
    frame
}

/// As a hypervisor sends it.
pub fn tunnelled(from: Ipv6Addr, inner: &[u8]) -> Vec<u8> {
    let next = if inner[0] >> 4 == 4 { 4 } else { 41 };
    ethernet_frame(&ip(&from.to_string(), &own().to_string(), next, inner))
}

pub fn checksum_is_right(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => {
            let header_is_right = checksum::checksum(&packet[..20]) == 0;
            header_is_right && (packet[9] != 1 || checksum::checksum(&packet[20..]) == 0)
        }
        _ => {
            let view = net::Ipv6::new_checked(packet).unwrap();
            let pseudo = checksum::pseudo_v6(
                view.source(),
                view.destination(),
                protocol::ICMPV6,
                u32::from(view.payload_len()),
            );
            checksum::finish(checksum::sum(pseudo, view.payload())) == 0
        }
    }
}
