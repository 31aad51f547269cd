//! Counters of the runner, per controller and per watch, rendered as Prometheus text. No registry: the set is closed.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{error::Class, health::Pulse};

#[derive(Default)]
pub struct ControllerMetrics {
    pub plans: AtomicU64,
    pub writes: AtomicU64,
    pub acts: AtomicU64,
    pub events: AtomicU64,
    pub events_dropped: AtomicU64,
    pub stale_waits: AtomicU64,
    pub plan_micros: AtomicU64,
    errors: [AtomicU64; 4],
}

#[derive(Default)]
pub struct WatchMetrics {
    pub restarts: AtomicU64,
    pub relists: AtomicU64,
    pub events: AtomicU64,
    pub undecodable: AtomicU64,
    pub pulse: Pulse,
}

pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl ControllerMetrics {
    pub(crate) fn error(&self, class: Class) {
        bump(&self.errors[slot(class)]);
    }

    pub fn errors(&self, class: Class) -> u64 {
        self.errors[slot(class)].load(Ordering::Relaxed)
    }

    pub(crate) fn render(&self, out: &mut String, part: &str, controller: &str) {
        let labels = format!("part=\"{part}\",controller=\"{controller}\"");
        for (name, counter) in [
            ("plans", &self.plans),
            ("writes", &self.writes),
            ("acts", &self.acts),
            ("events", &self.events),
            ("events_dropped", &self.events_dropped),
            ("stale_cache_waits", &self.stale_waits),
            ("plan_micros", &self.plan_micros),
        ] {
            line(
                out,
                &format!("openkcm_controller_{name}_total"),
                &labels,
                counter,
            );
        }
        for class in [Class::Retry, Class::Conflict, Class::Permanent, Class::Bug] {
            let labels = format!("{labels},class=\"{}\"", class.as_str());
            line(
                out,
                "openkcm_controller_errors_total",
                &labels,
                &self.errors[slot(class)],
            );
        }
    }
}

impl WatchMetrics {
    pub(crate) fn render(&self, out: &mut String, part: &str, kind: &str, objects: usize) {
        let labels = format!("part=\"{part}\",kind=\"{kind}\"");
        for (name, counter) in [
            ("restarts", &self.restarts),
            ("relists", &self.relists),
            ("events", &self.events),
            ("undecodable", &self.undecodable),
        ] {
            line(
                out,
                &format!("openkcm_watch_{name}_total"),
                &labels,
                counter,
            );
        }
        // Writing to a String cannot fail.
        let _infallible = writeln!(out, "openkcm_watch_objects{{{labels}}} {objects}");
    }
}

fn slot(class: Class) -> usize {
    match class {
        Class::Retry => 0,
        Class::Conflict => 1,
        Class::Permanent => 2,
        Class::Bug => 3,
    }
}

fn line(out: &mut String, name: &str, labels: &str, counter: &AtomicU64) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(
        out,
        "{name}{{{labels}}} {}",
        counter.load(Ordering::Relaxed)
    );
}
