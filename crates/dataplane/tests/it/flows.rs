//! The flow table against a map, the tunnels that flows share, and the change of addresses that a flow prescribes.

use crate::bed::*;
use crate::build;
use dataplane::{DropReason, Instant, Node, Verdict, fuzzing};
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

const IDLE_S: u64 = 30;
/// Ticks are a second apart. Idle times are multiples of this, so that none ends while ageing may be a few seconds late.
const PAUSE_S: u64 = 9;
const FLOWS_MAX: usize = 16;

#[derive(Clone, Debug)]
enum Step {
    /// A packet of a flow, from the machine or from the fabric.
    Packet(u16, bool),
    Pause,
    /// Every decision becomes stale.
    Change,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u16..24, any::<bool>()).prop_map(|(flow, back)| Step::Packet(flow, back)),
        2 => Just(Step::Pause),
        1 => Just(Step::Change),
    ]
}

#[derive(Default)]
struct Known {
    last: u64,
    /// Whether a decision is cached for packets from the machine and from the fabric.
    decided: [bool; 2],
}

fn frame(bed: &Bed, flow: u16, back: bool) -> Vec<u8> {
    let (near, far) = (("10.100.1.1", 1_000 + flow), ("10.100.2.1", 80));
    if back {
        from_fabric(bed.underlay("vm1"), &build::udp(far, near, b"x"))
    } else {
        from_guest(&build::udp(near, far, b"x"))
    }
}

fn run(bed: &mut Bed, model: &mut HashMap<u16, Known>, step: &Step) -> Result<(), TestCaseError> {
    match *step {
        Step::Packet(flow, back) => {
            let before = bed.worker.counters().clone();
            let frame = frame(bed, flow, back);
            let (verdict, _) = bed.send(if back { PF0 } else { VM1 }, &frame);
            let after = bed.worker.counters();
            let moved = |node| after.node(node) - before.node(node);
            let full = model.len() >= FLOWS_MAX;
            let is_new = !model.contains_key(&flow);
            if verdict == Verdict::Drop(DropReason::FlowTableFull) {
                prop_assert!(is_new && full, "refused below the limit");
                return Ok(());
            }
            prop_assert!(!(is_new && full), "accepted beyond the limit");
            prop_assert_eq!(verdict, Verdict::Transmit(if back { VM1 } else { PF0 }));
            let known = model.entry(flow).or_default();
            let hit = known.decided[usize::from(back)];
            prop_assert_eq!(moved(Node::FlowCache) + moved(Node::Conntrack), 1);
            prop_assert_eq!(
                hit,
                moved(Node::FlowCache) == 1,
                "answered from the cache or not"
            );
            prop_assert_eq!(
                after.flows_created - before.flows_created,
                u64::from(is_new)
            );
            known.decided[usize::from(back)] = true;
            known.last = bed.now.0;
        }
        Step::Pause => {
            for _ in 0..PAUSE_S {
                bed.now = bed.now.plus_secs(1);
                bed.worker.tick(bed.now);
            }
            let oldest = bed.now.0 - Instant::from_secs(IDLE_S).0;
            model.retain(|_, known| known.last >= oldest);
        }
        Step::Change => {
            fuzzing::forget_decisions(&mut bed.engine);
            for known in model.values_mut() {
                known.decided = [false; 2];
            }
        }
    }
    prop_assert_eq!(bed.worker.flow_saturation(), (model.len(), FLOWS_MAX));
    Ok(())
}

/// Among so many flows in a full table, some share bucket and signature with another. The cache answers each.
#[test]
fn flows_with_the_same_signature_are_told_apart() {
    const FLOWS: u16 = 20_000;
    let mut config = config();
    config.limits.flows_max = FLOWS.into();
    let mut bed = Bed::with(config);
    let walked = |bed: &mut Bed| {
        for flow in 0..FLOWS {
            let sent = bed.send(VM1, &frame(bed, flow, false));
            assert_eq!(sent.0, Verdict::Transmit(PF0));
        }
        bed.worker.counters().node(Node::Conntrack)
    };
    assert_eq!(walked(&mut bed), u64::from(FLOWS));
    assert_eq!(walked(&mut bed), u64::from(FLOWS));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_a_map_that_forgets_idle_flows(
        steps in proptest::collection::vec(step(), 1..200),
        seed in any::<u64>(),
    ) {
        for hash_seed in [config().hash_seed, seed] {
            let mut config = config();
            config.limits.flows_max = FLOWS_MAX as u32;
            config.hash_seed = hash_seed;
            let mut bed = Bed::with(config);
            let mut model = HashMap::new();
            for step in &steps {
                run(&mut bed, &mut model, step)?;
            }
        }
    }

    #[test]
    fn rewritten_packets_equal_packets_built_that_way(
        old in any::<[u32; 2]>(),
        new in any::<[u32; 2]>(),
        ports in any::<[u16; 4]>(),
        kind in 0_u8..3,
        payload in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let text = |bits: u32| Ipv4Addr::from_bits(bits).to_string();
        let packet = |ends: [u32; 2], ports: [u16; 2]| {
            let (source, destination) = (text(ends[0]), text(ends[1]));
            let (from, to) = ((source.as_str(), ports[0]), (destination.as_str(), ports[1]));
            match kind {
                0 => build::udp(from, to, &payload),
                1 => build::tcp(from, to, 0x10),
                _ => build::echo(from.0, to.0, true, ports[0]),
            }
        };
        let [a, b, c, d] = ports;
        let expected = packet(new, [c, d]);
        let ends = [(Ipv4Addr::from_bits(new[0]), c), (Ipv4Addr::from_bits(new[1]), d)];
        let got = fuzzing::rewritten(&packet(old, [a, b]), ends);
        prop_assert_eq!(got.as_deref().map(hex), Some(hex(&expected)));
    }
}

#[test]
fn a_packet_without_udp_checksum_gets_none() {
    let mut packet = build::udp(("10.0.0.1", 1), ("10.0.0.2", 2), b"abc");
    packet[26..28].fill(0);
    let ends = [(v4("192.0.2.1"), 7), (v4("10.0.0.2"), 2)];
    let rewritten = fuzzing::rewritten(&packet, ends).unwrap();
    assert_eq!(rewritten[26..28], [0, 0]);
    assert_eq!(rewritten[12..16], [192, 0, 2, 1]);
}

#[test]
fn tunnels_are_shared_and_forgotten_with_their_last_flow() {
    let mut bed = Bed::new();
    let hops = ["fc00:2::64:0:1", "fc00:3::64:0:1"];
    let hop = |index: usize| IpAddr::V6(v6(hops[index]));
    let vni = V100;
    let wide = |bed: &mut Bed, index| {
        let prefix = IpAddr::V4(v4("10.100.9.0"));
        bed.engine
            .create_route(vni, prefix, 24, hop(index), 0)
            .unwrap();
    };
    wide(&mut bed, 0);
    let send = |bed: &mut Bed, flow: u16| {
        let packet = build::udp(("10.100.1.1", flow), ("10.100.9.1", 80), b"");
        assert_eq!(
            bed.send(VM1, &from_guest(&packet)).0,
            Verdict::Transmit(PF0)
        );
    };
    (0..100).for_each(|flow| send(&mut bed, flow));
    assert_eq!(bed.worker.adjacency_saturation().0, 1);
    // The route moves: flows are decided again one by one, and both tunnels are in use meanwhile.
    bed.engine
        .delete_route(vni, IpAddr::V4(v4("10.100.9.0")), 24)
        .unwrap();
    wide(&mut bed, 1);
    (0..50).for_each(|flow| send(&mut bed, flow));
    assert_eq!(bed.worker.adjacency_saturation().0, 2);
    (50..100).for_each(|flow| send(&mut bed, flow));
    assert_eq!(bed.worker.adjacency_saturation().0, 1);
    for _ in 0..IDLE_S + 5 {
        bed.now = bed.now.plus_secs(1);
        bed.worker.tick(bed.now);
    }
    assert_eq!(bed.worker.flow_saturation().0, 0);
    assert_eq!(bed.worker.adjacency_saturation().0, 0);
}
