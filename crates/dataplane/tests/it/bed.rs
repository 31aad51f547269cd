//! A host with two uplinks and four machines, as in the conformance scenarios, and the check that every packet test uses.

use crate::build;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use dataplane::{
    Counters, DropReason, Engine, EngineConfig, Explanation, Instant, InterfaceSpec, Metering,
    Node, Packet, PacketBuf, PortConfig, PortId, PortKind, Verdict, Worker,
};
use net::{Mac, Vni};
use std::collections::BTreeMap;

pub const PF0: PortId = PortId(0);
pub const PF1: PortId = PortId(1);
pub const VM1: PortId = PortId(2);
pub const VM2: PortId = PortId(3);
pub const VM3: PortId = PortId(4);
pub const VM4: PortId = PortId(5);
pub const ROUTER_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0xfe]);
/// What the machines' operating systems use; differs from the ports' own addresses.
pub const GUEST_MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 0x01]);
pub const V100: Vni = Vni::new(100).unwrap();
pub const V200: Vni = Vni::new(200).unwrap();

pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

pub fn neighbour() -> Ipv6Addr {
    v6("fc00:2::64:0:1")
}

pub struct Bed {
    pub engine: Engine,
    pub worker: Worker,
    pub now: Instant,
}

pub fn config() -> EngineConfig {
    let port = |index: u8| {
        let (kind, mac) = if index < 2 {
            (
                PortKind::Uplink(index),
                [0x22, 0x22, 0x22, 0x22, 0x22, index],
            )
        } else {
            (PortKind::Machine, [0x66, 0x66, 0x66, 0x66, 0x66, index - 2])
        };
        PortConfig {
            name: format!("net_tap{index}"),
            kind,
            mac: Mac(mac),
        }
    };
    let mut config = EngineConfig::new(v6("fc00:1::1"), (0..6).map(port).collect());
    config.ipv6_overlay = true;
    config.limits.flows_max = 1_000;
    config.limits.nat_max = 1_000;
    config
}

pub fn spec(id: &str, port: PortId, vni: Vni, ipv4: &str, ipv6: &str) -> InterfaceSpec {
    InterfaceSpec {
        id: id.to_owned(),
        device: format!("net_tap{}", port.0),
        vni,
        ipv4: (!ipv4.is_empty()).then(|| v4(ipv4)),
        ipv6: (!ipv6.is_empty()).then(|| v6(ipv6)),
        pxe: None,
        metering: Metering::default(),
        preferred_underlay: None,
        hostname: None,
    }
}

impl Bed {
    /// Ports only.
    pub fn empty(config: EngineConfig) -> Bed {
        let mut engine = Engine::new(config);
        engine.set_next_hop(PF0, Some(ROUTER_MAC));
        engine.set_next_hop(PF1, Some(ROUTER_MAC));
        engine.initialize();
        let worker = engine.worker();
        Bed {
            engine,
            worker,
            now: Instant::from_secs(1_000),
        }
    }

    /// VM1 and VM2 in VNI 100 and VM3 in VNI 200 (where VM3 has the addresses of VM1), with routes to a neighbour in both.
    pub fn new() -> Bed {
        Bed::with(config())
    }

    pub fn with(config: EngineConfig) -> Bed {
        let mut bed = Bed::empty(config);
        bed.attach(spec("vm1", VM1, V100, "10.100.1.1", "2000:100:1::1"));
        bed.attach(spec("vm2", VM2, V100, "10.100.1.2", "2000:100:1::2"));
        bed.attach(spec("vm3", VM3, V200, "10.100.1.1", "2000:100:1::1"));
        for vni in [V100, V200] {
            bed.route(vni, "10.100.2.0", 24);
            bed.route(vni, "2000:100:2::", 104);
        }
        bed
    }

    pub fn attach(&mut self, spec: InterfaceSpec) -> Ipv6Addr {
        self.engine.create_interface(spec).unwrap().underlay
    }

    pub fn route(&mut self, vni: Vni, prefix: &str, length: u8) {
        let next_hop = IpAddr::V6(neighbour());
        self.engine
            .create_route(vni, build::address(prefix), length, next_hop, vni.get())
            .unwrap();
    }

    pub fn underlay(&self, id: &str) -> Ipv6Addr {
        self.engine.interface(id).unwrap().underlay
    }

    pub fn port_mac(&self, port: PortId) -> Mac {
        config().ports[port.index()].mac
    }

    /// Hands a frame to the engine and returns verdict and bytes.
    pub fn send(&mut self, port: PortId, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut packet = PacketBuf::with_frame_max(9_100);
        assert!(packet.fill(frame));
        let foretold = self.foretell(port, frame);
        let verdict = self.process(port, &mut packet);
        let bytes = packet.frame().to_vec();
        check_foretold(&foretold, verdict, &bytes);
        (verdict, bytes)
    }

    pub fn process(&mut self, port: PortId, packet: &mut impl Packet) -> Verdict {
        let Bed {
            engine,
            worker,
            now,
        } = self;
        engine.process(worker, port, packet, *now)
    }

    /// What the engine says would become of a frame. Saying so changes nothing.
    fn foretell(&self, port: PortId, frame: &[u8]) -> Explanation {
        let tables = self.engine.tables();
        let known = self.worker.known_connection(tables, port, frame);
        let (counted, sizes) = (
            self.worker.counters().clone(),
            self.worker.flow_saturation(),
        );
        let mac = self.engine.machine_mac(port);
        let foretold = self.engine.explain(port, frame, known.as_ref(), self.now);
        assert_eq!(*self.worker.counters(), counted);
        assert_eq!(self.worker.flow_saturation(), sizes);
        assert_eq!(self.engine.machine_mac(port), mac);
        foretold
    }

    /// Hands a frame to the engine and checks the verdict, the bytes (unless dropped) and exactly which counters moved.
    ///
    /// The counters that follow from the verdict (received, transmitted, dropped) are checked without being listed.
    #[track_caller]
    pub fn check(
        &mut self,
        port: PortId,
        frame: &[u8],
        verdict: Verdict,
        bytes: &[u8],
        moved: &[(&str, u64)],
    ) {
        let before = listing(self.worker.counters());
        let (got, got_bytes) = self.send(port, frame);
        assert_eq!(got, verdict);
        let mut expected = BTreeMap::new();
        let mut add = |name: String, count: u64| *expected.entry(name).or_insert(0) += count;
        add("cls".to_owned(), 1);
        if usize::from(port.0) < config().ports.len() {
            add(format!("port {} rx packets", port.0), 1);
            add(format!("port {} rx bytes", port.0), frame.len() as u64);
        }
        match verdict {
            Verdict::Transmit(to) | Verdict::Reply(to) => {
                assert_eq!(hex(&got_bytes), hex(bytes));
                add(format!("port {} tx packets", to.0), 1);
                add(format!("port {} tx bytes", to.0), bytes.len() as u64);
            }
            Verdict::Drop(reason) => {
                add("drop".to_owned(), 1);
                add(format!("drop {}", reason.name()), 1);
                if usize::from(port.0) < config().ports.len() {
                    add(format!("port {} drops", port.0), 1);
                }
            }
        }
        // Whatever finds a way from a machine passes the filter next.
        let is_routed = moved.iter().any(|(name, _)| name.ends_with("_lookup"));
        if is_routed && !matches!(verdict, Verdict::Drop(_)) {
            add("firewall".to_owned(), 1);
        }
        for (name, count) in moved {
            add((*name).to_owned(), *count);
        }
        let after = listing(self.worker.counters());
        let delta: BTreeMap<String, u64> = after
            .into_iter()
            .map(|(name, count)| (name.clone(), count - before[&name]))
            .filter(|(_, count)| *count != 0)
            .collect();
        assert_eq!(delta, expected, "counters that moved");
    }

    #[track_caller]
    pub fn check_drop(
        &mut self,
        port: PortId,
        frame: &[u8],
        reason: DropReason,
        moved: &[(&str, u64)],
    ) {
        self.check(port, frame, Verdict::Drop(reason), &[], moved);
    }
}

/// A rehearsal says what then happens, unless it depends on what only the live worker knows: full tables, spent budgets and rates, the
/// choice of a port.
#[track_caller]
fn check_foretold(foretold: &Explanation, verdict: Verdict, bytes: &[u8]) {
    match verdict {
        Verdict::Drop(
            DropReason::FlowTableFull
            | DropReason::AdjacencyTableFull
            | DropReason::NatExhausted
            | DropReason::NatTableFull
            | DropReason::TotalRate
            | DropReason::PublicRate
            | DropReason::PacketTooBig
            | DropReason::VirtualServiceFull
            | DropReason::VirtualServiceUnknown,
        ) => return,
        Verdict::Drop(_) | Verdict::Transmit(_) | Verdict::Reply(_) => {}
    }
    let chooses_port = foretold
        .stages
        .iter()
        .any(|node| matches!(node, Node::Snat | Node::Virtsvc));
    if foretold.stages.contains(&Node::Virtsvc) {
        return;
    }
    assert_eq!(foretold.verdict, verdict, "foretold: {foretold:?}");
    if !matches!(verdict, Verdict::Drop(_)) && !chooses_port {
        assert_eq!(hex(&foretold.frame), hex(bytes));
    }
}

/// Every counter by name.
pub fn listing(counters: &Counters) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for node in Node::ALL {
        all.insert(node.name().to_owned(), counters.node(*node));
    }
    for reason in DropReason::ALL {
        all.insert(format!("drop {}", reason.name()), counters.drops(*reason));
    }
    for index in 0..config().ports.len() as u16 {
        let port = counters.port(PortId(index));
        all.insert(format!("port {index} rx packets"), port.rx_packets);
        all.insert(format!("port {index} rx bytes"), port.rx_bytes);
        all.insert(format!("port {index} tx packets"), port.tx_packets);
        all.insert(format!("port {index} tx bytes"), port.tx_bytes);
        all.insert(format!("port {index} drops"), port.drops);
    }
    all.insert("flows created".to_owned(), counters.flows_created);
    all.insert("flows expired".to_owned(), counters.flows_expired);
    all.insert("flows redecided".to_owned(), counters.flows_redecided);
    let displaced = counters.fragments_displaced;
    all.insert("fragments displaced".to_owned(), displaced);
    all.insert("flows kept".to_owned(), counters.flows_kept);
    all.insert("firewall observed".to_owned(), counters.firewall_observed);
    all
}

pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A frame as a machine sends it to its gateway.
pub fn from_guest(ip: &[u8]) -> Vec<u8> {
    let ethertype = if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    build::ethernet(Mac([0x66; 6]), GUEST_MAC, ethertype, ip)
}

/// A frame as the fabric delivers it.
pub fn from_fabric(to: Ipv6Addr, inner: &[u8]) -> Vec<u8> {
    build::ethernet(
        Mac([0x22; 6]),
        ROUTER_MAC,
        0x86dd,
        &build::tunnel(neighbour(), to, inner),
    )
}
