//! When the absence of a route starts to mean something.

use std::time::{Duration, Instant};

use metalnet::agent::Input;
use metalnet::bond::{ALL_AFTER, DUMP_MIN, DUMP_QUIET, Hearing, Link};
use metalnet::plan::ops::BondOp;
use metalnet::plan::rib::Heard;

use crate::sim::vni;

struct Ear {
    hearing: Hearing,
    start: Instant,
}

impl Ear {
    fn new() -> Self {
        let (mut hearing, start) = (Hearing::default(), Instant::now());
        hearing.note(&BondOp::Subscribe(vni(200)), start);
        Self { hearing, start }
    }

    fn look(&mut self, link: Link, after: Duration) -> Option<Heard> {
        let changed = self.hearing.look(link, self.start + after);
        changed
            .into_iter()
            .map(|input| match input {
                Input::Heard { heard, .. } => heard,
                other => panic!("{other:?}"),
            })
            .next()
    }
}

#[test]
fn a_quiet_dump_then_everybody() {
    let mut ear = Ear::new();
    assert_eq!(ear.look(Link::Down, Duration::ZERO), None);
    assert_eq!(
        ear.look(Link::Catching, Duration::from_millis(1)),
        Some(Heard::Listening)
    );
    assert_eq!(ear.look(Link::Up, Duration::from_millis(2)), None);
    ear.hearing.event(vni(200), ear.start + DUMP_MIN);
    assert_eq!(
        ear.look(Link::Up, DUMP_MIN + Duration::from_millis(100)),
        None,
        "still talking"
    );
    assert_eq!(
        ear.look(Link::Up, DUMP_MIN + DUMP_QUIET),
        Some(Heard::Dumped)
    );
    assert_eq!(
        ear.look(Link::Catching, DUMP_MIN * 2),
        None,
        "a new wish does not undo it"
    );
    assert_eq!(
        ear.look(Link::Up, ALL_AFTER + Duration::from_millis(1)),
        Some(Heard::All)
    );
    assert_eq!(ear.look(Link::Down, ALL_AFTER * 2), Some(Heard::Silent));
    assert_eq!(
        ear.look(Link::Up, ALL_AFTER * 2 + DUMP_MIN),
        Some(Heard::Listening),
        "a new session starts anew"
    );
}

#[test]
fn a_flood_that_never_ends_is_over_after_a_while() {
    let mut ear = Ear::new();
    ear.look(Link::Up, Duration::ZERO);
    ear.hearing.event(vni(200), ear.start + ALL_AFTER);
    assert_eq!(ear.look(Link::Up, ALL_AFTER), Some(Heard::All));
}

#[test]
fn without_servers_there_is_nothing_to_wait_for() {
    assert_eq!(
        Ear::new().look(Link::Unused, Duration::ZERO),
        Some(Heard::All)
    );
}
