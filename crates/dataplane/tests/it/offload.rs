//! Rules and software do the same: flows of every kind are begun, what the interpreter of rules makes of their packets is held to what the
//! engine makes of them, byte for byte.

use crate::bed::*;
use crate::build::{self, address};
use crate::scene::*;
use core::net::Ipv6Addr;
use dataplane::offload::interpret::{self, Outcome};
use dataplane::offload::{Action, FlowId, Item, Nic, Order, Report, Rule, Stays, isolation};
use dataplane::{EngineConfig, LbPort, LoadBalancerSpec, PortId, Verdict};
use net::Mac;
use net::tcp::{ACK, FIN, RST, SYN};
use std::collections::{BTreeMap, BTreeSet};

const LB_LOCAL: &str = "172.22.2.1";
const LB6_LOCAL: &str = "2001:db8:22::1";
const LB_REMOTE: &str = "172.22.2.2";
const PSH: u8 = 8;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;

/// xorshift64*: a seed gives the same story everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    fn port(&mut self) -> u16 {
        1024 + self.below(60_000) as u16
    }
}

/// The bed, a NIC's rules beside it, and the underlay addresses of its services.
struct Scene {
    bed: Bed,
    nic: Nic,
    rules: BTreeMap<FlowId, Vec<Rule>>,
    nat: Ipv6Addr,
    vip: Ipv6Addr,
    lb: Ipv6Addr,
    lb6: Ipv6Addr,
    lb_remote: Ipv6Addr,
    target: Ipv6Addr,
}

fn big() -> EngineConfig {
    let mut config = config();
    config.limits.flows_max = 100_000;
    config.limits.nat_max = 100_000;
    config
}

fn balancer(bed: &mut Bed, id: &str, text: &str) -> Ipv6Addr {
    let spec = LoadBalancerSpec {
        id: id.to_owned(),
        vni: V100,
        address: address(text),
        ports: [6, 17]
            .map(|protocol| LbPort { protocol, port: 80 })
            .to_vec(),
        preferred_underlay: None,
    };
    bed.engine.create_load_balancer(spec).unwrap()
}

impl Scene {
    fn new(config: EngineConfig) -> Scene {
        let mut bed = Bed::with(config);
        bed.default_routes(V100);
        bed.default_routes(V200);
        bed.engine.set_uplink_mtu(PF0, 9_100);
        bed.engine.set_uplink_mtu(PF1, 9_100);
        bed.attach(spec("vm4", VM4, V100, "10.100.1.4", "2000:100:1::4"));
        let nat = bed
            .engine
            .create_nat("vm1", address(NAT), range(100, 30_000), None)
            .unwrap();
        let vip = bed.engine.create_vip("vm2", address(VIP), None).unwrap();
        bed.engine
            .create_neighbor_nat(address(NAT), V100, range(30_000, 40_000), neighbour())
            .unwrap();
        let lb = balancer(&mut bed, "lb", LB_LOCAL);
        let lb6 = balancer(&mut bed, "lb6", LB6_LOCAL);
        let lb_remote = balancer(&mut bed, "far", LB_REMOTE);
        let mut target = neighbour();
        for (id, text, length) in [("lb", LB_LOCAL, 32), ("lb6", LB6_LOCAL, 128)] {
            target = bed
                .engine
                .create_lb_prefix("vm4", address(text), length, None)
                .unwrap();
            bed.engine
                .create_load_balancer_target(id, target.into())
                .unwrap();
        }
        let far = v6("fc00:2::d000:0:1");
        bed.engine
            .create_load_balancer_target("far", far.into())
            .unwrap();
        let mtus = [9_100, 9_100, 1500, 1500, 1500, 1500];
        Scene {
            bed,
            nic: Nic {
                mtus: mtus.map(Some).to_vec(),
            },
            rules: BTreeMap::new(),
            nat,
            vip,
            lb,
            lb6,
            lb_remote,
            target,
        }
    }

    /// Lets the worker go round all its flows; the NIC takes every order.
    fn settle(&mut self) {
        for _ in 0..64 {
            let Scene {
                bed, nic, rules, ..
            } = self;
            let mut installed = Vec::new();
            let tables = bed.engine.tables().clone();
            bed.worker.offload(&tables, nic, bed.now, &mut |order| {
                match order {
                    Order::Install(flow, wanted) => {
                        assert!(rules.insert(flow, wanted).is_none(), "{flow:?} twice");
                        installed.push(flow);
                    }
                    Order::Remove(flow) => assert!(rules.remove(&flow).is_some()),
                }
                true
            });
            for flow in installed {
                bed.worker.offload_report(Report::Installed(flow), bed.now);
            }
        }
    }

    fn stays(&self, reason: Stays) -> u64 {
        self.bed.worker.offload_counters().stays(reason)
    }

    /// What the rules make of a frame.
    fn hardware(&self, port: PortId, frame: &[u8]) -> Outcome {
        let rules: Vec<&Rule> = self.rules.values().flatten().collect();
        match interpret::matching(rules.iter().copied(), port, frame) {
            Some(place) => interpret::carry_out(rules[place], frame),
            None => Outcome::Software,
        }
    }

    /// Hands a frame to both and compares; true if the rules had an answer.
    #[track_caller]
    fn compare(&mut self, port: PortId, frame: &[u8], what: &str) -> bool {
        let hardware = self.hardware(port, frame);
        let (verdict, bytes) = self.bed.send(port, frame);
        match hardware {
            Outcome::Software => false,
            Outcome::Port(to, out) => {
                assert_eq!(verdict, Verdict::Transmit(to), "{what}");
                assert_eq!(hex(&out), hex(&bytes), "{what}");
                true
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Encap,
    Encap6,
    Decap,
    Decap6,
    Local,
    Local6,
    Nat,
    VipOut,
    VipIn,
    BalancedLocal,
    BalancedLocal6,
    BalancedFar,
    FromBalancer,
    NeighbourNat,
    Nat64,
}

const KINDS: [Kind; 15] = [
    Kind::Encap,
    Kind::Encap6,
    Kind::Decap,
    Kind::Decap6,
    Kind::Local,
    Kind::Local6,
    Kind::Nat,
    Kind::VipOut,
    Kind::VipIn,
    Kind::BalancedLocal,
    Kind::BalancedLocal6,
    Kind::BalancedFar,
    Kind::FromBalancer,
    Kind::NeighbourNat,
    Kind::Nat64,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum L4 {
    Udp,
    Tcp,
    Echo,
}

/// Where packets of a side come in: a machine, or an underlay address.
#[derive(Clone, Copy, Debug)]
enum Way {
    Machine(PortId),
    Fabric(Ipv6Addr),
}

/// A flow: who sends what, and where answers come in (`None`: they do not pass here).
#[derive(Debug)]
struct Flow {
    l4: L4,
    from: (String, u16),
    to: (String, u16),
    way: Way,
    back: Option<Way>,
}

fn flow(scene: &Scene, random: &mut Random, kind: Kind, l4: L4) -> Flow {
    let own = |id: &str| Way::Fabric(scene.bed.underlay(id));
    let far = format!("10.100.2.{}", 1 + random.below(250));
    let far6 = format!("2000:100:2::{:x}", 1 + random.below(250));
    let outside = format!("45.86.6.{}", 1 + random.below(250));
    let outside6 = format!("2001:db8:99::{:x}", 1 + random.below(250));
    let outside64 = format!("64:ff9b::2d56:6{:02x}", 1 + random.below(250));
    let vm = |port| Way::Machine(port);
    let (from, to, way, back): (&str, &str, Way, Option<Way>) = match kind {
        Kind::Encap => ("10.100.1.1", &far, vm(VM1), Some(own("vm1"))),
        Kind::Encap6 => ("2000:100:1::1", &far6, vm(VM1), Some(own("vm1"))),
        Kind::Decap => (&far, "10.100.1.2", own("vm2"), Some(vm(VM2))),
        Kind::Decap6 => (&far6, "2000:100:1::2", own("vm2"), Some(vm(VM2))),
        Kind::Local => ("10.100.1.1", "10.100.1.2", vm(VM1), Some(vm(VM2))),
        Kind::Local6 => ("2000:100:1::2", "2000:100:1::1", vm(VM2), Some(vm(VM1))),
        Kind::Nat => (
            "10.100.1.1",
            &outside,
            vm(VM1),
            Some(Way::Fabric(scene.nat)),
        ),
        Kind::VipOut => (
            "10.100.1.2",
            &outside,
            vm(VM2),
            Some(Way::Fabric(scene.vip)),
        ),
        Kind::VipIn => (&outside, VIP, Way::Fabric(scene.vip), Some(vm(VM2))),
        Kind::BalancedLocal => (&outside, LB_LOCAL, Way::Fabric(scene.lb), Some(vm(VM4))),
        Kind::BalancedLocal6 => (&outside6, LB6_LOCAL, Way::Fabric(scene.lb6), Some(vm(VM4))),
        Kind::BalancedFar => (&outside, LB_REMOTE, Way::Fabric(scene.lb_remote), None),
        Kind::FromBalancer => (
            &outside6,
            LB6_LOCAL,
            Way::Fabric(scene.target),
            Some(vm(VM4)),
        ),
        Kind::NeighbourNat => (&outside, NAT, Way::Fabric(scene.nat), None),
        Kind::Nat64 => (
            "2000:100:1::1",
            &outside64,
            vm(VM1),
            Some(Way::Fabric(scene.nat)),
        ),
    };
    let to_port = match kind {
        Kind::NeighbourNat => 30_000 + random.below(10_000) as u16,
        Kind::BalancedLocal | Kind::BalancedLocal6 | Kind::BalancedFar | Kind::FromBalancer => 80,
        _ => random.port(),
    };
    let from_port = random.port();
    let to_port = if l4 == L4::Echo { from_port } else { to_port };
    Flow {
        l4,
        from: (from.to_owned(), from_port),
        to: (to.to_owned(), to_port),
        way,
        back,
    }
}

fn packet(
    l4: L4,
    from: (&str, u16),
    to: (&str, u16),
    is_request: bool,
    flags: u8,
    size: usize,
) -> Vec<u8> {
    let payload: Vec<u8> = (0..size).map(|byte| byte as u8).collect();
    match l4 {
        L4::Udp => build::udp(from, to, &payload),
        L4::Tcp => build::tcp_with(from, to, flags, &payload),
        L4::Echo => build::echo(from.0, to.0, is_request, from.1),
    }
}

fn frame(way: Way, uplink: PortId, ip: &[u8]) -> (PortId, Vec<u8>) {
    match way {
        Way::Machine(port) => (port, from_guest(ip)),
        Way::Fabric(to) => {
            let tunnel = build::tunnel(router(), to, ip);
            let frame = build::ethernet(Mac([0x22; 6]), ROUTER_MAC, 0x86dd, &tunnel);
            (uplink, frame)
        }
    }
}

/// The IP packet in a frame that came out, and what answers to it show.
fn answer_to(frame: &[u8]) -> ((String, u16), (String, u16)) {
    let is_tunnel = frame[12..14] == [0x86, 0xdd] && matches!(frame[20], 4 | 41);
    let ip = &frame[if is_tunnel { 54 } else { 14 }..];
    let (source_port, destination_port) = ports(ip);
    let text = |v4: std::ops::Range<usize>, v6: std::ops::Range<usize>| {
        if ip[0] >> 4 == 4 {
            let octets: [u8; 4] = ip[v4].try_into().unwrap();
            std::net::Ipv4Addr::from(octets).to_string()
        } else {
            let octets: [u8; 16] = ip[v6].try_into().unwrap();
            Ipv6Addr::from(octets).to_string()
        }
    };
    (
        (text(16..20, 24..40), destination_port),
        (text(12..16, 8..24), source_port),
    )
}

/// Begins a flow in software (TCP with its handshake) and returns what both directions show from then on.
type Ends = ((String, u16), (String, u16));

fn begin(scene: &mut Scene, flow: &Flow) -> (Ends, Option<Ends>) {
    let forward = (flow.from.clone(), flow.to.clone());
    let show = |ends: &Ends, is_request, flags| {
        let (from, to) = ends;
        packet(
            flow.l4,
            (&from.0, from.1),
            (&to.0, to.1),
            is_request,
            flags,
            0,
        )
    };
    let (port, first) = frame(flow.way, PF0, &show(&forward, true, SYN));
    let (verdict, out) = scene.bed.send(port, &first);
    assert!(
        matches!(verdict, Verdict::Transmit(_)),
        "{flow:?}: {verdict:?}"
    );
    let Some(way) = flow.back else {
        return (forward, None);
    };
    let back = answer_to(&out);
    let (port, second) = frame(way, PF0, &show(&back, false, SYN | ACK));
    let (verdict, _) = scene.bed.send(port, &second);
    assert!(
        matches!(verdict, Verdict::Transmit(_)),
        "{flow:?}: {verdict:?}"
    );
    let (port, third) = frame(flow.way, PF0, &show(&forward, true, ACK));
    let _ = scene.bed.send(port, &third);
    (forward, Some(back))
}

/// Why a flow is expected to stay in software.
fn expected_stay(kind: Kind, l4: L4) -> Option<Stays> {
    match (kind, l4) {
        (Kind::Nat64, _) => Some(Stays::FamilyChange),
        (Kind::Nat, L4::Echo) => Some(Stays::EchoIdentifier),
        (Kind::Encap6 | Kind::Decap6 | Kind::Local6, L4::Echo) => Some(Stays::EchoIpv6),
        // Only one direction passes here, so that no handshake is ever seen complete.
        (Kind::BalancedFar | Kind::NeighbourNat, L4::Tcp) => Some(Stays::Handshake),
        _ => None,
    }
}

/// Sends further packets of a flow to both; returns how many the rules answered.
fn converse(
    scene: &mut Scene,
    random: &mut Random,
    (kind, l4): (Kind, L4),
    sides: &[(Way, Ends, bool)],
) -> u64 {
    let mut answered = 0;
    for _ in 0..6 {
        for (way, (from, to), is_request) in sides {
            let flags = [ACK, ACK | PSH, ACK | URG, ACK | ECE][random.below(4)];
            let size = [0, 1, 17, 700, 1_300][random.below(5)];
            let (from, to) = ((from.0.as_str(), from.1), (to.0.as_str(), to.1));
            let mut ip = packet(l4, from, to, *is_request, flags, size);
            if l4 == L4::Udp && ip[0] == 0x45 && random.below(3) == 0 {
                // UDP without checksum stays so.
                ip[26..28].copy_from_slice(&[0, 0]);
            }
            let uplink = [PF0, PF1][random.below(2)];
            let (port, bytes) = frame(*way, uplink, &ip);
            let hit = scene.compare(port, &bytes, &format!("{kind:?} {l4:?}"));
            let stays = expected_stay(kind, l4);
            assert_eq!(hit, stays.is_none(), "{kind:?} {l4:?} {way:?}");
            answered += u64::from(hit);
            mutate(scene, random, port, &bytes, ip.len());
        }
    }
    answered
}

/// Changes one thing about a packet. The rules must leave it alone or do what software does.
fn mutate(scene: &mut Scene, random: &mut Random, port: PortId, frame: &[u8], ip_len: usize) {
    let start = frame.len() - ip_len;
    let mut changed = frame.to_vec();
    let is_v4 = changed[start] == 0x45;
    match random.below(4) {
        // A first fragment.
        0 if is_v4 => changed[start + 6] |= 0x20,
        // An extension header, or another protocol.
        1 => changed[start + if is_v4 { 9 } else { 6 }] = 132,
        // Another sender.
        2 => changed[start + if is_v4 { 15 } else { 23 }] ^= 0x55,
        // Another port.
        _ => changed[start + if is_v4 { 20 } else { 40 }] ^= 0x80,
    }
    if is_v4 {
        changed[start + 10..start + 12].copy_from_slice(&[0, 0]);
        let sum = net::checksum::checksum(&changed[start..start + 20]);
        changed[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let hardware = scene.hardware(port, &changed);
    assert_eq!(hardware, Outcome::Software, "{}", hex(&changed));
}

fn tell(seed: u64, config: EngineConfig) -> (Scene, BTreeMap<(Kind, L4), u64>) {
    let mut random = Random(seed);
    let mut scene = Scene::new(config);
    let mut answered = BTreeMap::new();
    for round in 0..90 {
        let kind = KINDS[round % KINDS.len()];
        let l4 = [L4::Udp, L4::Tcp, L4::Echo][round / KINDS.len() % 3];
        let to_balancer = matches!(
            kind,
            Kind::BalancedLocal | Kind::BalancedLocal6 | Kind::BalancedFar | Kind::FromBalancer
        );
        if l4 == L4::Echo && (to_balancer || matches!(kind, Kind::NeighbourNat | Kind::Nat64)) {
            continue;
        }
        let flow = flow(&scene, &mut random, kind, l4);
        let (forward, back) = begin(&mut scene, &flow);
        scene.settle();
        let mut sides = vec![(flow.way, forward, true)];
        if let (Some(way), Some(back)) = (flow.back, back) {
            sides.push((way, back, false));
        }
        let hits = converse(&mut scene, &mut random, (kind, l4), &sides);
        *answered.entry((kind, l4)).or_insert(0) += hits;
        if let Some(reason) = expected_stay(kind, l4) {
            assert!(scene.stays(reason) > 0, "{reason:?}");
        }
        close(&mut scene, &mut random, (kind, l4), &sides);
    }
    (scene, answered)
}

/// The end of a TCP connection: the segment that says so reaches software, and the rules go.
fn close(
    scene: &mut Scene,
    random: &mut Random,
    (kind, l4): (Kind, L4),
    sides: &[(Way, Ends, bool)],
) {
    if l4 != L4::Tcp || expected_stay(kind, l4).is_some() {
        return;
    }
    let (way, (from, to), _) = &sides[random.below(sides.len())];
    let bits = [FIN | ACK, RST, SYN][random.below(3)];
    let ip = packet(l4, (&from.0, from.1), (&to.0, to.1), true, bits, 0);
    let (port, bytes) = frame(*way, PF0, &ip);
    assert!(!scene.compare(port, &bytes, "a control segment"));
    let rules = scene.rules.len();
    scene.settle();
    let expected = if bits == SYN { rules } else { rules - 2 };
    assert_eq!(scene.rules.len(), expected);
}

#[test]
fn rules_do_what_software_does() {
    for seed in 1..=4 {
        let (_, answered) = tell(seed, big());
        let covered: BTreeSet<(Kind, L4)> = answered
            .iter()
            .filter(|(_, hits)| **hits > 0)
            .map(|(kind, _)| *kind)
            .collect();
        for kind in KINDS.into_iter().filter(|kind| *kind != Kind::Nat64) {
            assert!(covered.contains(&(kind, L4::Udp)), "{kind:?}");
        }
        let echoes = covered.iter().filter(|(_, l4)| *l4 == L4::Echo).count();
        assert_eq!(echoes, 5, "Encap, Decap, Local, VIP out and in");
        let streams = covered.iter().filter(|(_, l4)| *l4 == L4::Tcp).count();
        assert_eq!(streams, 12, "all but NAT64 and those seen in one direction");
    }
}

#[test]
fn hops_are_counted_by_rules_and_the_last_one_by_software() {
    let mut config = big();
    config.decrement_hops = true;
    let mut scene = Scene::new(config);
    let mut random = Random(7);
    for (kind, is_offloaded) in [
        (Kind::Encap, true),
        (Kind::Encap6, true),
        (Kind::Decap, true),
        (Kind::Local, true),
        (Kind::Nat, true),
        (Kind::BalancedFar, false),
    ] {
        let flow = flow(&scene, &mut random, kind, L4::Udp);
        let (forward, _) = begin(&mut scene, &flow);
        scene.settle();
        let (from, to) = &forward;
        for ttl in [0, 1, 2, 64] {
            let mut ip = packet(L4::Udp, (&from.0, from.1), (&to.0, to.1), true, 0, 9);
            if ip[0] == 0x45 {
                ip[8] = ttl;
                ip[10..12].copy_from_slice(&[0, 0]);
                let sum = net::checksum::checksum(&ip[..20]).to_be_bytes();
                ip[10..12].copy_from_slice(&sum);
            } else {
                ip[7] = ttl;
            }
            let (port, bytes) = frame(flow.way, PF0, &ip);
            let hit = scene.compare(port, &bytes, "hops");
            assert_eq!(hit, is_offloaded && ttl > 1, "{kind:?} {ttl}");
        }
    }
    assert!(scene.stays(Stays::InsideTunnel) > 0);
}

#[test]
fn what_stays_in_software_says_why() {
    let begin_one = |scene: &mut Scene| {
        let flow = flow(scene, &mut Random(3), Kind::Encap, L4::Udp);
        begin(scene, &flow);
        scene.settle();
    };
    let mut scene = Scene::new(big());
    scene.nic.mtus[VM1.index()] = Some(9_061);
    begin_one(&mut scene);
    assert_eq!(scene.stays(Stays::MayNotFit), 1);
    assert_eq!(scene.rules.len(), 1, "the other direction leaves no tunnel");
    scene.nic.mtus[PF0.index()] = None;
    scene.nic.mtus[PF1.index()] = None;
    scene.settle();
    assert_eq!(scene.rules.len(), 0);
    assert_eq!(scene.stays(Stays::OtherPort), 1);

    let mut config = big();
    config.flow_timeout_s = 2;
    let mut scene = Scene::new(config);
    begin_one(&mut scene);
    assert_eq!(scene.stays(Stays::ShortTimeout), 2);

    let mut scene = Scene::new(big());
    let mut limited = spec("vm1", VM1, V100, "10.100.1.1", "2000:100:1::1");
    limited.metering.total_rate = 100;
    scene.bed.engine.delete_interface("vm1").unwrap();
    scene.bed.attach(limited);
    begin_one(&mut scene);
    assert_eq!(scene.stays(Stays::RateLimit), 1);
}

/// The order queue may be full, the NIC may refuse; neither loses track.
#[test]
fn a_full_queue_and_a_refusal() {
    let mut scene = Scene::new(big());
    let flow = flow(&scene, &mut Random(3), Kind::Encap, L4::Udp);
    begin(&mut scene, &flow);
    let tables = scene.bed.engine.tables().clone();
    let worker = &mut scene.bed.worker;
    worker.offload(&tables, &scene.nic, scene.bed.now, &mut |_| false);
    assert_eq!(worker.offload_counters().queue_full, 1);
    let mut orders = Vec::new();
    for _ in 0..3 {
        worker.offload(&tables, &scene.nic, scene.bed.now, &mut |order| {
            orders.push(order);
            true
        });
    }
    assert_eq!(orders.len(), 2, "one per direction, once");
    let Order::Install(refused, _) = orders[0] else {
        panic!("{orders:?}");
    };
    worker.offload_report(Report::Refused(refused), scene.bed.now);
    assert_eq!(worker.offload_counters().stays(Stays::Refused), 1);
    assert_eq!(worker.offload_counters().flows, 1);
    let before = orders.len();
    worker.offload(&tables, &scene.nic, scene.bed.now, &mut |order| {
        orders.push(order);
        true
    });
    assert_eq!(orders.len(), before, "not asked again");
}

/// A flow in the NIC shows no packets here: its counters keep it alive, changes that concern it end its rules, others do not.
#[test]
fn life_of_an_offloaded_flow() {
    let mut scene = Scene::new(big());
    let flow = flow(&scene, &mut Random(3), Kind::Encap, L4::Udp);
    begin(&mut scene, &flow);
    scene.settle();
    let flows: Vec<FlowId> = scene.rules.keys().copied().collect();
    assert_eq!(flows.len(), 2);
    for _ in 0..10 {
        scene.bed.now.0 += 20_000_000_000;
        let hits = Report::Hits {
            flow: flows[0],
            packets: 5,
            bytes: 500,
        };
        scene.bed.worker.offload_report(hits, scene.bed.now);
        scene.bed.worker.tick(scene.bed.now);
        scene.settle();
    }
    assert_eq!(scene.bed.worker.offload_counters().packets, 50);
    assert_eq!(scene.rules.len(), 2, "200 s without a packet in software");
    scene.bed.route(V200, "10.9.0.0", 16);
    scene.settle();
    assert_eq!(
        scene.rules.keys().copied().collect::<Vec<_>>(),
        flows,
        "another network's routes do not concern it"
    );
    let Flow { from, to, .. } = &flow;
    scene
        .bed
        .engine
        .set_next_hop(PF0, Some(Mac([2, 2, 2, 2, 2, 2])));
    scene.settle();
    assert!(
        !scene.rules.contains_key(&flows[0]),
        "its tunnel has changed"
    );
    let ip = packet(L4::Udp, (&from.0, from.1), (&to.0, to.1), true, 0, 9);
    let (port, bytes) = frame(flow.way, PF0, &ip);
    assert!(scene.compare(
        port,
        &bytes,
        "by the new tunnel, without a packet in software"
    ));
    scene.bed.now.0 += 60_000_000_000;
    scene.bed.worker.tick(scene.bed.now);
    scene.settle();
    assert_eq!(scene.rules.len(), 0, "idle for too long");
    let counters = scene.bed.worker.offload_counters();
    assert_eq!(counters.flows, 0);
    assert_eq!(counters.installed, counters.removed);
}

#[test]
fn isolation_takes_what_is_ours() {
    let rule = isolation(PF0, v6("fc00:1::1"));
    assert!(!rule.transfer);
    assert_eq!(rule.actions, [Action::Software]);
    assert!(matches!(
        rule.pattern[..],
        [Item::Ethernet { .. }, Item::Ipv6(_)]
    ));
    let inner = build::udp(("10.0.0.1", 1), ("10.0.0.2", 2), b"x");
    for (to, ours) in [
        ("fc00:1::d000:0:0:1", true),
        ("fc00:1::dfff:0:0:1", true),
        ("fc00:1::e000:0:0:1", false),
        ("fc00:1::1", false),
        ("fc00:2::d000:0:0:1", false),
    ] {
        let (_, frame) = frame(Way::Fabric(v6(to)), PF0, &inner);
        let matched = interpret::matching([&rule], PF0, &frame).is_some();
        assert_eq!(matched, ours, "{to}");
    }
    let scene = Scene::new(big());
    let (_, frame) = frame(Way::Fabric(scene.nat), PF0, &inner);
    assert!(interpret::matching([&rule], PF0, &frame).is_some());
}
