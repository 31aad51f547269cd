//! The simulated region as a test: it holds what it promises, tells the same story twice, and finds bugs that are planted in it.

use testkit::region::bug::Bug;
use testkit::region::{Config, run};

/// Seeds in which a planted bug must show at least once.
const TRIES: u64 = 100;

fn config(seed: u64) -> Config {
    Config {
        seed,
        bug: None,
        verbose: false,
    }
}

#[track_caller]
fn check(seed: u64) {
    let failed = run(config(seed)).err();
    let told =
        failed.map(|violation| format!("{}\n{}", violation.what, violation.history.join("\n")));
    assert_eq!(told, None, "seed {seed}");
}

#[test]
fn a_region_keeps_its_promises_under_random_people_and_faults() {
    (0..3).for_each(check);
}

/// Its interface was deleted while dpservice was still creating it: metalnet gave it up before the answer.
#[test]
fn an_interface_deleted_while_it_is_made() {
    check(269);
}

/// Its block of a NAT address was given on while its data plane was still being told of it.
#[test]
fn a_gateway_whose_blocks_change_while_they_are_handed_out() {
    check(273);
}

/// Its Prefix went while it waited for a part, and it went on saying that the Prefix was merely not ready.
#[test]
fn an_interface_that_waits_for_a_part_of_a_prefix_that_goes() {
    check(1545);
}

/// A machine that is made switched off, and nothing ever happens to it: its state is reported all the same.
#[test]
fn a_machine_that_never_starts() {
    [86, 351].into_iter().for_each(check);
}

/// Their hypervisor is scrapped while they run there.
#[test]
fn machines_that_nobody_runs_any_more() {
    [34, 226].into_iter().for_each(check);
}

/// Hypervisors of all kinds of absence: cut off with and without their data plane, back, and scrapped.
#[test]
fn hypervisors_that_leave_a_network_behind() {
    [199, 282, 321].into_iter().for_each(check);
}

#[test]
fn a_seed_is_one_story() {
    let tell = || {
        let config = Config {
            verbose: true,
            ..config(3)
        };
        run(config).map_err(|violation| violation.what)
    };
    assert_eq!(tell(), tell());
}

/// Some seed of a few finds each. The search starts where one did last, and goes on where a change has made another story of it.
#[test]
fn planted_bugs_are_found() {
    for (bug, first) in [
        (Bug::VniTwice, 11),
        (Bug::NatOverlap, 35),
        (Bug::RouteNotWithdrawn, 0),
        (Bug::RuleNotRemoved, 405),
        (Bug::FinalizerEarly, 2),
        (Bug::AddressEarly, 158),
        (Bug::InterfaceKept, 52),
    ] {
        let finds = |seed: u64| {
            let config = Config {
                bug: Some(bug),
                ..config(seed)
            };
            run(config).is_err()
        };
        assert!((first..first + TRIES).any(finds), "{bug:?} is not found");
    }
}
