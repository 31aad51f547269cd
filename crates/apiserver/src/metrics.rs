//! Counters of the server in Prometheus text form, with upstream's names where they exist.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Labels of a request: bounded by the kinds that are served, never by what a client sends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub verb: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
    pub code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    verb: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResourceLabels {
    pub resource: String,
}

fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

/// A gauge of things that are going on.
#[derive(Debug, Clone, Default)]
pub struct Running(Gauge);

/// One of them; counted until dropped.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Running {
    pub fn enter(&self) -> Counted {
        self.0.inc();
        Counted(self.0.clone())
    }

    pub fn count(&self) -> i64 {
        self.0.get()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<VerbLabels, Histogram, fn() -> Histogram>,
    pub watchers: Running,
    pub connections: Running,
    pub watchers_lagged: Counter,
    pub watch_chunks: Counter,
    pub write_retries: Counter,
    pub rejected: Counter,
    pub handshake_failures: Counter,
    pub collected: Counter,
    pub objects: Family<ResourceLabels, Gauge<u64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::default();
        let requests = Family::<RequestLabels, Counter>::default();
        let durations: Family<VerbLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(histogram as fn() -> Histogram);
        let metrics = Metrics {
            requests: requests.clone(),
            durations: durations.clone(),
            watchers: Running::default(),
            connections: Running::default(),
            watchers_lagged: Counter::default(),
            watch_chunks: Counter::default(),
            write_retries: Counter::default(),
            rejected: Counter::default(),
            handshake_failures: Counter::default(),
            collected: Counter::default(),
            objects: Family::default(),
            registry: Registry::default(),
        };
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and code",
            requests,
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Time to answer, watches excluded",
            durations,
        );
        let m = &metrics;
        registry.register(
            "apiserver_longrunning_requests",
            "Open watches",
            m.watchers.0.clone(),
        );
        registry.register(
            "openkcm_apiserver_connections",
            "Open connections",
            m.connections.0.clone(),
        );
        registry.register(
            "openkcm_apiserver_watchers_lagged",
            "Watches ended because they were too slow",
            m.watchers_lagged.clone(),
        );
        registry.register(
            "openkcm_apiserver_watch_chunks",
            "Chunks written to watches",
            m.watch_chunks.clone(),
        );
        registry.register(
            "openkcm_apiserver_write_retries",
            "Writes tried again after a conflict",
            m.write_retries.clone(),
        );
        registry.register(
            "openkcm_apiserver_rejected_requests",
            "Requests refused with 429",
            m.rejected.clone(),
        );
        registry.register(
            "openkcm_apiserver_handshake_failures",
            "Failed TLS handshakes",
            m.handshake_failures.clone(),
        );
        registry.register(
            "openkcm_apiserver_collected_objects",
            "Objects deleted by the garbage collector",
            m.collected.clone(),
        );
        registry.register(
            "apiserver_storage_objects",
            "Objects by resource",
            m.objects.clone(),
        );
        Metrics {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    pub fn observe(&self, labels: RequestLabels, took: Duration) {
        if labels.verb != "watch" {
            self.durations
                .get_or_create(&VerbLabels { verb: labels.verb })
                .observe(took.as_secs_f64());
        }
        self.requests.get_or_create(&labels).inc();
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(std::fmt::Error) => String::new(),
        }
    }
}
