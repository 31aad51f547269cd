//! The probe pages: what each of them asks, and how it says so.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use controller::health::{Health, Pulse};
use hyper::StatusCode;

/// A part with one check of its own and one dependency, each switched by a flag.
fn part() -> (Health, Arc<AtomicBool>, Arc<AtomicBool>) {
    let health = Health::default();
    let (own, service) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicBool::new(true)),
    );
    let ask = |flag: &Arc<AtomicBool>| {
        let flag = flag.clone();
        move || match flag.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("does not answer".to_owned()),
        }
    };
    health.add_check("loop", ask(&own));
    health.add_dependency("dpservice", ask(&service));
    (health, own, service)
}

#[test]
fn a_healthy_part_says_ok_and_more_when_asked() {
    let (health, ..) = part();
    assert_eq!(
        health.answer("/healthz", ""),
        (StatusCode::OK, "ok".to_owned())
    );
    assert_eq!(
        health.answer("/healthz", "verbose").1,
        "[+]ping ok\n[+]loop ok\n[+]dpservice ok\nhealthz check passed\n"
    );
    assert_eq!(
        health.answer("/livez", "verbose=true").1,
        "[+]ping ok\n[+]loop ok\nlivez check passed\n"
    );
}

#[test]
fn a_lost_dependency_is_named_and_asks_for_no_restart() {
    let (health, own, service) = part();
    service.store(false, Ordering::Relaxed);
    assert_eq!(
        health.answer("/healthz", ""),
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "[+]ping ok\n[+]loop ok\n[-]dpservice failed: does not answer\nhealthz check failed\n"
                .to_owned()
        )
    );
    assert_eq!(health.answer("/livez", "").0, StatusCode::OK);
    own.store(false, Ordering::Relaxed);
    assert_eq!(
        health.answer("/livez", "").0,
        StatusCode::INTERNAL_SERVER_ERROR
    );
}

#[test]
fn readiness_waits_for_the_caches() {
    let (health, ..) = part();
    let (status, text) = health.answer("/readyz", "");
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.contains("[-]caches failed: not complete\n"), "{text}");
    health.set_ready();
    assert_eq!(
        health.answer("/readyz", ""),
        (StatusCode::OK, "ok".to_owned())
    );
}

#[test]
fn one_check_can_be_asked_alone() {
    let (health, _, service) = part();
    service.store(false, Ordering::Relaxed);
    assert_eq!(health.answer("/healthz/loop", "").0, StatusCode::OK);
    assert_eq!(
        health.answer("/healthz/dpservice", "").0,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(
        health.answer("/healthz/nothing", "").0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(health.answer("/else", "").0, StatusCode::NOT_FOUND);
}

#[test]
fn a_single_failure_that_heals_is_no_news() {
    let pulse = Pulse::default();
    assert_eq!(pulse.check(), Ok(()));
    pulse.failed("refused".to_owned());
    assert_eq!(pulse.check(), Ok(()), "within the grace");
    pulse.well();
    assert_eq!(pulse.check(), Ok(()));
}
