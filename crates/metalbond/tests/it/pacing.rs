//! Pacing towards peers that do not reassemble, against a model of such a peer's kernel and process.

use std::time::Duration;

use metalbond::pace::{
    Budget, ECHO_BYTES_MAX, LinkState, PROBE_MAX, Pace, SEGMENT_MAX, UNREAD_MAX,
};
use metalbond::peer::Role;

/// What such a peer's kernel can hold before the process is reset.
const FATAL: usize = 65_535;

/// Writes through a pace for `time` to a process that reads `rate` bytes per second; returns the highest backlog and what
/// was written.
fn simulate(rate: f64, time: Duration, stalled_until: Duration) -> (usize, usize) {
    let window_full = 65_536;
    let mut pace = Pace::new(Role::Server);
    let (mut unread, mut highest, mut written) = (0.0, 0.0f64, 0);
    let mut now = Duration::ZERO;
    let step = Duration::from_micros(500);
    // The window as of the last acknowledgement, which each arriving segment causes.
    let mut window = window_full;
    while now < time {
        now += step;
        if now > stalled_until {
            unread = (unread - rate * step.as_secs_f64()).max(0.0);
        }
        let link = LinkState {
            unacked: 0,
            unsent: 0,
            window,
        };
        if let Budget::Write(bytes) = pace.budget(now, Some(link)) {
            let bytes = if bytes < SEGMENT_MAX { 40 } else { 1180 };
            unread += bytes as f64;
            window = window_full - unread as u32;
            written += bytes;
            highest = highest.max(unread);
            pace.wrote(bytes, now);
        }
    }
    (highest as usize, written)
}

#[test]
fn a_fast_reader_gets_a_steady_stream() {
    let (highest, written) = simulate(100e6, Duration::from_secs(1), Duration::ZERO);
    assert!(highest < 2000, "{highest}");
    assert!(written > 500_000, "{written}");
}

#[test]
fn a_slow_reader_is_never_overrun() {
    for rate in [0.0, 1e3, 10e3, 40e3, 100e3, 400e3] {
        let (highest, written) = simulate(rate, Duration::from_secs(120), Duration::ZERO);
        assert!(highest < FATAL / 2, "{rate} B/s: {highest} unread");
        // Most of what the reader could take is used.
        assert!(
            written as f64 >= 0.6 * rate * 120.0,
            "{rate} B/s: {written} written"
        );
    }
}

#[test]
fn a_stall_is_survived_and_the_stream_recovers() {
    let stall = Duration::from_secs(30);
    let (highest, written) = simulate(100e6, 2 * stall, stall);
    assert!(highest < FATAL / 2, "{highest}");
    assert!(written > 10_000_000, "{written}");
}

#[test]
fn nothing_is_written_while_the_kernel_holds_unsent_bytes() {
    let mut pace = Pace::new(Role::Server);
    let now = Duration::from_secs(1);
    let held = LinkState {
        unacked: 10,
        unsent: 10,
        window: 65_536,
    };
    assert!(matches!(pace.budget(now, Some(held)), Budget::WaitUntil(at) if at > now));
    let in_flight = LinkState {
        unacked: 5 * SEGMENT_MAX as u32,
        unsent: 0,
        window: 65_536,
    };
    assert!(matches!(
        pace.budget(now, Some(in_flight)),
        Budget::WaitUntil(_)
    ));
    let open = LinkState {
        unacked: SEGMENT_MAX as u32,
        unsent: 0,
        window: 65_536,
    };
    assert_eq!(pace.budget(now, Some(open)), Budget::Write(SEGMENT_MAX));
}

#[test]
fn probes_become_rare() {
    let mut pace = Pace::new(Role::Server);
    let mut now = Duration::ZERO;
    let open = LinkState {
        unacked: 0,
        unsent: 0,
        window: 65_536,
    };
    assert_eq!(pace.budget(now, Some(open)), Budget::Write(SEGMENT_MAX));
    let shut = LinkState {
        window: 65_536 - UNREAD_MAX,
        ..open
    };
    let mut probes = 0;
    while now < Duration::from_secs(60) {
        match pace.budget(now, Some(shut)) {
            Budget::Write(bytes) => {
                assert!(bytes < 100);
                probes += 1;
                pace.wrote(40, now);
            }
            Budget::WaitUntil(at) => now = at,
            other => panic!("{other:?}"),
        }
    }
    assert!(pace.is_behind());
    assert!(probes <= 8 + 60 / PROBE_MAX.as_secs() as usize, "{probes}");
}

#[test]
fn a_server_is_asked_for_its_echo() {
    let mut pace = Pace::new(Role::Client);
    let mut now = Duration::ZERO;
    let mut written = 0;
    while let Budget::Write(bytes) = pace.budget(now, None) {
        pace.wrote(bytes, now);
        written += bytes;
        now += Duration::from_millis(2);
    }
    assert!((ECHO_BYTES_MAX..ECHO_BYTES_MAX + SEGMENT_MAX).contains(&written));
    assert_eq!(pace.budget(now, None), Budget::AskEcho);
    pace.asked(7);
    assert_eq!(pace.budget(now, None), Budget::WaitEcho);
    // The echo of an earlier KEEPALIVE proves nothing.
    pace.echoed(6);
    assert_eq!(pace.budget(now, None), Budget::WaitEcho);
    pace.echoed(7);
    assert_eq!(pace.budget(now, None), Budget::Write(SEGMENT_MAX));
}
