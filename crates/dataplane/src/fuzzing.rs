//! What must hold for any bytes on any port: the body of the fuzz targets and of the random tests.
//!
//! Each check hands the bytes to a small host and panics if the engine panics, reports a bug, counts a packet twice or not at
//! all, answers the same packet differently from its cache, or if its two parsers disagree.

use crate::cls::{self, Fast, FromMachine, L4};
use crate::flow::key::{FlowKey, Hasher, Scope, Transport, Tuple};
use crate::flow::{Entry, rewrite};
use crate::history::Change;
use crate::{
    Counters, DropReason, Engine, EngineConfig, Instant, InterfaceSpec, Metering, Node, PacketBuf,
    PortConfig, PortId, PortKind, Pxe, UnderlaySeed, Verdict, Worker,
};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use net::{Arp, Mac, Vni, checksum, ethernet, ipv4, ipv6, protocol};

const UPLINK: PortId = PortId(0);
const MACHINE: PortId = PortId(2);
const GUEST_MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const OWN6: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 1);
const HOST: Ipv6Addr = Ipv6Addr::new(0xfc00, 1, 0, 0, 0, 0, 0, 1);
/// The first address of a generator with [`UnderlaySeed::Static`].
const UNDERLAY: Ipv6Addr = Ipv6Addr::new(0xfc00, 1, 0, 0, 0xd000, 1, 0, 1);
const NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfc00, 2, 0, 0, 0xd000, 0, 0, 1);
/// The longest frame that is checked; longer input is cut.
const FRAME_MAX: usize = 2_000;

/// A host with two machines in one network.
#[derive(Debug)]
pub struct Host {
    engine: Engine,
    worker: Worker,
    hasher: Hasher,
    packet: PacketBuf,
    now: Instant,
}

impl Default for Host {
    fn default() -> Self {
        Host::new()
    }
}

impl Host {
    /// The same host every time.
    #[must_use]
    pub fn new() -> Host {
        let ports = (0..4_u8).map(|index| PortConfig {
            name: format!("port{index}"),
            kind: if index < 2 {
                PortKind::Uplink(index)
            } else {
                PortKind::Machine
            },
            mac: Mac([2, 0, 0, 0, 0, index]),
        });
        let mut config = EngineConfig::new(HOST, ports.collect());
        config.ipv6_overlay = true;
        config.underlay_seed = UnderlaySeed::Static;
        config.limits.flows_max = 4_096;
        config.flow_timeout_s = 1;
        let mut engine = Engine::new(config);
        engine.set_next_hop(UPLINK, Some(Mac([2, 0, 0, 0, 1, 0])));
        for (index, host) in [(2, 1), (3, 2)] {
            let spec = InterfaceSpec {
                id: format!("vm{host}"),
                device: format!("port{index}"),
                vni: Vni::MAX,
                ipv4: Some(Ipv4Addr::new(10, 0, 0, host)),
                ipv6: Some(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, u16::from(host))),
                pxe: Some(Pxe {
                    next_server: IpAddr::V6(HOST),
                    boot_filename: "boot".to_owned(),
                }),
                metering: Metering::default(),
                preferred_underlay: None,
                hostname: Some("host".to_owned()),
            };
            assert!(engine.create_interface(spec).is_ok());
        }
        for (address, length) in [(IpAddr::V4(FAR), 16), (IpAddr::V6(FAR6), 32)] {
            let hop = IpAddr::V6(NEIGHBOUR);
            assert!(
                engine
                    .create_route(Vni::MAX, address, length, hop, 0)
                    .is_ok()
            );
        }
        let worker = engine.worker();
        let packet = PacketBuf::with_frame_max(FRAME_MAX + 100);
        Host {
            engine,
            worker,
            hasher: Hasher::new(7, 1_000),
            packet,
            now: Instant::from_secs(1),
        }
    }

    /// Checks a frame from a machine.
    pub fn check_machine(&mut self, frame: &[u8]) {
        let frame = frame.get(..FRAME_MAX).unwrap_or(frame);
        self.check(MACHINE, frame);
        let Some(ip) = frame.get(ethernet::HEADER_LEN..) else {
            return;
        };
        let slow = match cls::from_machine(frame) {
            Ok(FromMachine::Overlay(overlay)) => Some(overlay),
            // Diverted by their port, but parsed the same way.
            Ok(FromMachine::Dhcp) => cls::from_tunnel(protocol::IPV4, ip).ok(),
            Ok(FromMachine::Dhcpv6) => cls::from_tunnel(protocol::IPV6, ip).ok(),
            Ok(FromMachine::Arp | FromMachine::Solicitation(..)) | Err(_) => None,
        };
        match frame.get(12..14) {
            Some([0x08, 0x00]) => self.compare(protocol::IPV4, ip, slow),
            Some([0x86, 0xdd]) => self.compare(protocol::IPV6, ip, slow),
            _ => {}
        }
    }

    /// Checks a frame from the fabric.
    pub fn check_uplink(&mut self, frame: &[u8]) {
        let frame = frame.get(..FRAME_MAX).unwrap_or(frame);
        self.check(UPLINK, frame);
        if let Some(inner) = frame.get(crate::ipip::TUNNEL_LEN..) {
            for protocol in [protocol::IPV4, protocol::IPV6] {
                self.compare(protocol, inner, cls::from_tunnel(protocol, inner).ok());
            }
        }
    }

    /// Checks a DHCPv4 message of a machine.
    pub fn check_dhcp4(&mut self, message: &[u8]) {
        let message = message.get(..1_400).unwrap_or(message);
        self.check_machine(&dhcp4_frame(message));
    }

    /// Checks a DHCPv6 message of a machine.
    pub fn check_dhcp6(&mut self, message: &[u8]) {
        let message = message.get(..1_400).unwrap_or(message);
        self.check_machine(&dhcp6_frame(message));
    }

    /// Sends a frame twice: the second time the answer may come from the cache, and must be the same.
    fn check(&mut self, port: PortId, frame: &[u8]) {
        self.now = Instant(self.now.0 + 5_000_000);
        self.worker.tick(self.now);
        let first = self.send(port, frame);
        let bytes = self.packet.frame().to_vec();
        let second = self.send(port, frame);
        assert_eq!(first, second, "the same packet, two verdicts");
        if !matches!(first, Verdict::Drop(_)) {
            assert_eq!(bytes, self.packet.frame(), "the same packet, two answers");
            assert!(bytes.len() >= ethernet::HEADER_LEN);
        }
    }

    fn send(&mut self, port: PortId, frame: &[u8]) -> Verdict {
        let before = totals(self.worker.counters());
        assert!(self.packet.fill(frame));
        let verdict = self
            .engine
            .process(&mut self.worker, port, &mut self.packet, self.now);
        let after = totals(self.worker.counters());
        assert_ne!(verdict, Verdict::Drop(DropReason::Bug));
        let [received, sent, dropped] = before;
        let is_drop = u64::from(matches!(verdict, Verdict::Drop(_)));
        assert_eq!(after, [received + 1, sent + 1 - is_drop, dropped + is_drop]);
        verdict
    }

    /// What the fast parser accepts, the complete one accepts, and both mean the same.
    fn compare(&self, family: u8, ip: &[u8], slow: Option<cls::Overlay>) {
        let mut fast = Fast::EMPTY;
        let place = match family {
            protocol::IPV4 => cls::fast_v4(&self.hasher, Scope::machine(Vni::MAX), ip, &mut fast),
            _ => cls::fast_v6(&self.hasher, Scope::machine(Vni::MAX), ip, &mut fast),
        };
        let Some(place) = place else { return };
        let Some(overlay) = slow else {
            // Solicitations are no echo, so they are never plain; nothing else may be refused here.
            assert!(slow.is_some(), "only the fast parser accepts this");
            return;
        };
        assert_eq!(fast.length, overlay.length);
        assert_eq!(fast.overlay().layout, overlay.layout);
        let flow = match overlay.l4 {
            Ok(L4::Flow { tuple, tcp_flags }) => self
                .hasher
                .tuple(Scope::machine(Vni::MAX), &tuple)
                .map(|keyed| (keyed, tcp_flags.unwrap_or(0), tuple)),
            Ok(L4::Error { .. } | L4::Later) | Err(_) => None,
        };
        assert_eq!(self.hasher.place(&fast.key), place);
        let same = flow.is_some_and(|(keyed, flags, tuple)| {
            keyed.key.is(&fast.key)
                && (keyed.place, flags, tuple) == (place, fast.tcp_flags, fast.key.tuple())
        });
        assert!(same, "the parsers disagree: {fast:?} and {flow:?}");
    }
}

/// An IPv4 packet after a flow has changed its source and destination, address and port each; `None` if flows do not do that to it.
#[must_use]
pub fn rewritten(ip: &[u8], [source, destination]: [(Ipv4Addr, u16); 2]) -> Option<Vec<u8>> {
    let overlay = cls::from_tunnel(protocol::IPV4, ip).ok()?;
    let Ok(L4::Flow { tuple, .. }) = overlay.l4 else {
        return None;
    };
    let (source_port, destination_port) = match tuple.transport {
        Transport::Echo { .. } => (source.1, source.1),
        Transport::Tcp | Transport::Udp => (source.1, destination.1),
    };
    let to = Tuple {
        source: IpAddr::V4(source.0),
        destination: IpAddr::V4(destination.0),
        source_port,
        destination_port,
        ..tuple
    };
    let mut entry = Entry {
        key: FlowKey::of(Scope::machine(Vni::MAX), &tuple)?,
        ..Entry::FREE
    };
    let mut packet = ip.to_vec();
    let done = rewrite::prescribe(&mut entry, &tuple, &to)
        && (!entry.has(Entry::TRANSLATED) || rewrite::apply(&entry, &mut packet, overlay.layout));
    done.then_some(packet)
}

/// Received, sent, dropped.
fn totals(counters: &Counters) -> [u64; 3] {
    let sent = (0..4)
        .map(|index| counters.port(PortId(index)).tx_packets)
        .sum();
    let dropped: u64 = DropReason::ALL
        .iter()
        .map(|reason| counters.drops(*reason))
        .sum();
    assert_eq!(dropped, counters.node(Node::Drop));
    [counters.node(Node::Cls), sent, dropped]
}

// ---- seeds -------------------------------------------------------------------------------------------------------------------

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [
        &ethernet::header(Mac([2, 0, 0, 0, 0, 2]), GUEST_MAC, ethertype)[..],
        payload,
    ]
    .concat()
}

fn packet4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let payload_len = payload.len() as u16;
    let header = ipv4::Header {
        payload_len,
        ttl: 64,
        protocol,
        source,
        destination,
    };
    [&header.emit()[..], payload].concat()
}

fn packet6(next_header: u8, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let payload_len = payload.len() as u16;
    let header = ipv6::Header {
        payload_len,
        next_header,
        hop_limit: 64,
        source,
        destination,
    };
    [&header.emit()[..], payload].concat()
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let words = [source, destination, length, 0]
        .map(u16::to_be_bytes)
        .concat();
    [&words[..], payload].concat()
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let ports = [source, destination].map(u16::to_be_bytes).concat();
    [
        &ports[..],
        &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0],
    ]
    .concat()
}

fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let sum = checksum::checksum(&[&[kind, code, 0, 0][..], body].concat()).to_be_bytes();
    [&[kind, code][..], &sum, body].concat()
}

fn dhcp4_frame(message: &[u8]) -> Vec<u8> {
    let (source, destination) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    frame(
        ethernet::TYPE_IPV4,
        &packet4(protocol::UDP, source, destination, &udp(68, 67, message)),
    )
}

fn dhcp6_frame(message: &[u8]) -> Vec<u8> {
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    let destination = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    frame(
        ethernet::TYPE_IPV6,
        &packet6(protocol::UDP, source, destination, &udp(546, 547, message)),
    )
}

/// IP packets from one address to another in both families.
fn overlay_seeds(v4: (Ipv4Addr, Ipv4Addr), v6: (Ipv6Addr, Ipv6Addr)) -> Vec<Vec<u8>> {
    let ping = packet4(protocol::ICMP, v4.0, v4.1, &icmp(8, 0, &[0, 7, 0, 1]));
    let back = packet4(protocol::UDP, v4.1, v4.0, &udp(53, 5000, b"answer"));
    let fragment = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp(1, 2, b"x")].concat();
    let options = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &icmp(128, 0, &[0, 7, 0, 1])].concat();
    vec![
        packet4(protocol::UDP, v4.0, v4.1, &udp(5000, 53, b"query")),
        packet4(protocol::TCP, v4.0, v4.1, &tcp(5000, 80, 2)),
        packet4(
            protocol::ICMP,
            v4.0,
            v4.1,
            &icmp(3, 3, &[&[0; 4][..], &back].concat()),
        ),
        ping,
        packet6(protocol::UDP, v6.0, v6.1, &udp(5000, 53, b"query")),
        packet6(protocol::TCP, v6.0, v6.1, &tcp(5000, 80, 0x10)),
        packet6(protocol::ICMPV6, v6.0, v6.1, &icmp(128, 0, &[0, 7, 0, 1])),
        packet6(protocol::FRAGMENT, v6.0, v6.1, &fragment),
        packet6(protocol::HOP_BY_HOP, v6.0, v6.1, &options),
    ]
}

/// Well-formed frames from a machine, to be mutated.
#[must_use]
pub fn machine_seeds() -> Vec<Vec<u8>> {
    let arp = Arp {
        opcode: 1,
        sender_mac: GUEST_MAC,
        sender_ip: OWN,
        target_mac: Mac::ZERO,
        target_ip: crate::GATEWAY_IPV4,
    };
    let gateway = crate::GATEWAY_IPV6;
    let solicitation = icmp(135, 0, &[&[0; 4][..], &gateway.octets()].concat());
    let mut seeds = vec![
        frame(ethernet::TYPE_ARP, &arp.emit()),
        frame(
            ethernet::TYPE_IPV6,
            &packet6(protocol::ICMPV6, OWN6, gateway, &solicitation),
        ),
        frame(
            ethernet::TYPE_IPV6,
            &packet6(protocol::ICMPV6, OWN6, gateway, &icmp(133, 0, &[0; 4])),
        ),
    ];
    let local = Ipv4Addr::new(10, 0, 0, 2);
    seeds.extend(
        overlay_seeds((OWN, FAR), (OWN6, FAR6))
            .iter()
            .map(|ip| machine_frame(ip)),
    );
    seeds.extend(
        overlay_seeds((OWN, local), (OWN6, FAR6))
            .iter()
            .map(|ip| machine_frame(ip)),
    );
    seeds.extend(dhcp4_seeds().iter().map(|message| dhcp4_frame(message)));
    seeds.extend(dhcp6_seeds().iter().map(|message| dhcp6_frame(message)));
    seeds
}

fn machine_frame(ip: &[u8]) -> Vec<u8> {
    let is_v4 = ip.first().is_some_and(|byte| byte >> 4 == 4);
    frame(
        if is_v4 {
            ethernet::TYPE_IPV4
        } else {
            ethernet::TYPE_IPV6
        },
        ip,
    )
}

/// Well-formed frames from the fabric, to be mutated.
#[must_use]
pub fn uplink_seeds() -> Vec<Vec<u8>> {
    let inner = overlay_seeds((FAR, OWN), (FAR6, OWN6));
    let tunnel = |ip: &Vec<u8>| {
        let is_v4 = ip.first().is_some_and(|byte| byte >> 4 == 4);
        let next_header = if is_v4 {
            protocol::IPV4
        } else {
            protocol::IPV6
        };
        frame(
            ethernet::TYPE_IPV6,
            &packet6(next_header, NEIGHBOUR, UNDERLAY, ip),
        )
    };
    inner.iter().map(tunnel).collect()
}

/// Well-formed DHCPv4 messages, to be mutated.
#[must_use]
pub fn dhcp4_seeds() -> Vec<Vec<u8>> {
    let message = |options: &[u8]| {
        let mut bytes = vec![1, 1, 6, 0, 1, 2, 3, 4];
        bytes.resize(236, 0);
        bytes.extend([0x63, 0x82, 0x53, 0x63]);
        bytes.extend(options);
        bytes
    };
    let pxe = [&[53, 1, 1, 60, 20][..], b"PXEClient:Arch:00007", &[255]].concat();
    vec![
        message(&[53, 1, 1, 255]),
        message(&[0, 53, 1, 3, 50, 4, 10, 0, 0, 1, 255]),
        message(&pxe),
        message(&[53, 1, 1, 77, 4, b'i', b'P', b'X', b'E', 255]),
    ]
}

/// Well-formed DHCPv6 messages, to be mutated.
#[must_use]
pub fn dhcp6_seeds() -> Vec<Vec<u8>> {
    let client = [0, 1, 0, 10, 0, 3, 0, 1, 0x52, 0x54, 0, 0, 0, 1];
    let association = [0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let message =
        |kind: u8, extra: &[u8]| [&[kind, 1, 2, 3][..], &client, &association, extra].concat();
    let class = [
        &[0, 16, 0, 26, 0, 0, 1, 0x57, 0, 20][..],
        b"PXEClient:Arch:00007",
    ]
    .concat();
    vec![
        message(1, &[0, 14, 0, 0]),
        message(3, &class),
        message(4, &[]),
        message(5, &[0, 15, 0, 6, 0, 4, b'i', b'P', b'X', b'E']),
    ]
}

/// Makes all decisions be taken anew, as if everything had been changed: the reference for keeping decisions.
pub fn forget_decisions(engine: &mut Engine) {
    engine.edit(Change::Everything);
}
