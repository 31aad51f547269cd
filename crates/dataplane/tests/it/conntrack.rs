//! Connection tracking: the TCP machine against a model, ageing, and what a deleted interface leaves behind.

use crate::bed::*;
use crate::build;
use dataplane::{DropReason, Instant, Verdict};
use proptest::prelude::*;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

fn segment(bed: &mut Bed, from_vm1: bool, flags: u8) {
    let (vm1, vm2) = (("10.100.1.1", 40_000), ("10.100.1.2", 80));
    let (port, packet) = if from_vm1 {
        (VM1, build::tcp(vm1, vm2, flags))
    } else {
        (VM2, build::tcp(vm2, vm1, flags))
    };
    let to = if from_vm1 { VM2 } else { VM1 };
    assert_eq!(
        bed.send(port, &from_guest(&packet)).0,
        Verdict::Transmit(to)
    );
}

/// Ages until nothing more is due, as a service that ticks all the time would have by then.
fn tick_until(bed: &mut Bed, until: Instant) {
    while bed.now < until {
        bed.now = bed.now.plus_secs(1);
        bed.worker.tick(bed.now);
    }
}

fn is_tracked(bed: &Bed) -> bool {
    bed.worker.flow_saturation().0 != 0
}

/// The transitions as the specification words them, over the set of significant bits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Model {
    None,
    Syn { opener: bool },
    SynAck { opener: bool },
    Established,
    FinWait,
    Closed,
}

fn model(state: Model, from_vm1: bool, flags: u8) -> Model {
    let has = |bit: u8| flags & bit != 0;
    match state {
        _ if has(RST) => Model::Closed,
        Model::Established if has(FIN) => Model::FinWait,
        _ if has(FIN) => Model::Closed,
        Model::None | Model::Closed if has(SYN) && !has(ACK) => Model::Syn { opener: from_vm1 },
        Model::Syn { opener } if has(SYN) && has(ACK) && opener != from_vm1 => {
            Model::SynAck { opener }
        }
        Model::SynAck { opener } if has(ACK) && !has(SYN) && opener == from_vm1 => {
            Model::Established
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn established_connections_and_no_others_outlive_the_idle_timeout(
        segments in proptest::collection::vec(
            (any::<bool>(), prop_oneof![
                Just(SYN), Just(SYN | ACK), Just(ACK), Just(SYN | ECE), Just(ACK | PSH),
                Just(FIN | ACK), Just(RST), Just(RST | ACK), Just(SYN | FIN), Just(0), any::<u8>(),
            ]),
            1..12,
        ),
        handshake in any::<bool>(),
    ) {
        let mut bed = Bed::new();
        let mut state = Model::None;
        let opening = [(true, SYN), (false, SYN | ACK), (true, ACK)];
        let prefix = if handshake { &opening[..] } else { &[] };
        for (from_vm1, flags) in prefix.iter().copied().chain(segments) {
            segment(&mut bed, from_vm1, flags);
            state = model(state, from_vm1, flags);
        }
        let last = bed.now;
        tick_until(&mut bed, last.plus_secs(29));
        prop_assert!(is_tracked(&bed), "forgotten too early");
        tick_until(&mut bed, last.plus_secs(64));
        prop_assert_eq!(is_tracked(&bed), state == Model::Established, "{:?}", state);
    }
}

#[test]
fn established_connections_are_forgotten_after_a_day() {
    let mut bed = Bed::new();
    // ECN negotiation and a pushed first request do not hinder establishment.
    for (from_vm1, flags) in [
        (true, SYN | ECE | 0x80),
        (false, SYN | ACK | ECE),
        (true, ACK | PSH),
    ] {
        segment(&mut bed, from_vm1, flags);
    }
    let last = bed.now;
    tick_until(&mut bed, last.plus_secs(86_390));
    assert!(is_tracked(&bed));
    tick_until(&mut bed, last.plus_secs(86_440));
    assert!(!is_tracked(&bed));
    assert_eq!(bed.worker.counters().flows_expired, 1);
}

#[test]
fn packets_of_either_direction_keep_a_flow_alive() {
    let mut bed = Bed::new();
    let start = bed.now;
    for round in 0..20 {
        segment(&mut bed, round % 2 == 0, ACK);
        let next = bed.now.plus_secs(25);
        tick_until(&mut bed, next);
        assert!(is_tracked(&bed));
    }
    assert_eq!(bed.now, start.plus_secs(500));
    assert_eq!(bed.worker.counters().flows_created, 1);
    let end = bed.now.plus_secs(40);
    tick_until(&mut bed, end);
    assert!(!is_tracked(&bed));
}

#[test]
fn the_idle_timeout_is_configurable() {
    let mut config = config();
    config.flow_timeout_s = 1;
    let mut bed = Bed::with(config);
    segment(&mut bed, true, SYN);
    let end = bed.now.plus_secs(4);
    tick_until(&mut bed, end);
    assert!(!is_tracked(&bed));
}

#[test]
fn a_full_table_recovers_as_flows_age() {
    let mut config = config();
    config.limits.flows_max = 100;
    let mut bed = Bed::with(config);
    let flow = |port: u16| from_guest(&build::udp(("10.100.1.1", port), ("10.100.2.1", 9), b""));
    for port in 0..100 {
        assert_eq!(bed.send(VM1, &flow(port)).0, Verdict::Transmit(PF0));
    }
    assert_eq!(
        bed.send(VM1, &flow(1_000)).0,
        Verdict::Drop(DropReason::FlowTableFull)
    );
    assert_eq!(bed.worker.flow_saturation(), (100, 100));
    // Flows that are in the table keep working.
    assert_eq!(bed.send(VM1, &flow(5)).0, Verdict::Transmit(PF0));
    let end = bed.now.plus_secs(40);
    tick_until(&mut bed, end);
    assert_eq!(bed.worker.flow_saturation(), (0, 100));
    for port in 0..100 {
        assert_eq!(bed.send(VM1, &flow(port)).0, Verdict::Transmit(PF0));
    }
}

#[test]
fn ageing_is_bounded_per_call_and_survives_a_jump_of_the_clock() {
    let mut config = config();
    config.limits.flows_max = 10_000;
    let mut bed = Bed::with(config);
    for port in 0..10_000 {
        let _ = bed.send(
            VM1,
            &from_guest(&build::udp(("10.100.1.1", port), ("10.100.2.1", 9), b"")),
        );
    }
    bed.now = bed.now.plus_secs(100_000);
    let mut calls = 0;
    while bed.worker.flow_saturation().0 != 0 {
        bed.worker.tick(bed.now);
        calls += 1;
        assert!(calls < 10);
    }
    assert!(calls > 2, "one call must not walk the whole table");
    assert_eq!(bed.worker.counters().flows_expired, 10_000);
}

#[test]
fn a_new_interface_does_not_inherit_connections() {
    let mut bed = Bed::new();
    for (from_vm1, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
        segment(&mut bed, from_vm1, flags);
    }
    bed.engine.delete_interface("vm1").unwrap();
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", ""));
    // The flow is the same five-tuple, but begins anew: not established, so it goes after the idle timeout.
    segment(&mut bed, true, ACK);
    let end = bed.now.plus_secs(64);
    tick_until(&mut bed, end);
    assert!(!is_tracked(&bed));
}

#[test]
fn echo_flows_are_told_apart_by_who_asks() {
    let mut bed = Bed::new();
    let one = build::echo("10.100.1.1", "10.100.1.2", true, 7);
    let two = build::echo("10.100.1.2", "10.100.1.1", true, 7);
    assert_eq!(bed.send(VM1, &from_guest(&one)).0, Verdict::Transmit(VM2));
    assert_eq!(bed.send(VM2, &from_guest(&two)).0, Verdict::Transmit(VM1));
    assert_eq!(bed.worker.flow_saturation().0, 2);
    let answer = build::echo("10.100.1.2", "10.100.1.1", false, 7);
    assert_eq!(
        bed.send(VM2, &from_guest(&answer)).0,
        Verdict::Transmit(VM1)
    );
    assert_eq!(bed.worker.flow_saturation().0, 2);
}
