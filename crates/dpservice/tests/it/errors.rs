//! The table of failures: the page that is made from it, and a run of the conformance tests that has to provoke every row.

use crate::{capture, conformance, errors_rest, services};
use dpservice::grpc::errors::{self, RPCS};
use proto::code;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

#[test]
fn the_page_shows_the_table() {
    expect_test::expect_file!["../../../../docs/dpservice-errors.md"].assert_eq(&errors::page());
}

/// Failed requests as their log lines tell them: call and text.
#[derive(Clone, Default)]
struct Provoked(Arc<Mutex<BTreeSet<(String, String)>>>);

#[derive(Default)]
struct Failed {
    request: String,
    message: String,
}

impl Visit for Failed {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "grpc_request" => self.request = value.to_owned(),
            "grpc_message" => self.message = value.to_owned(),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Subscriber for Provoked {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("dpservice::grpc")
    }

    fn event(&self, event: &Event<'_>) {
        let mut failed = Failed::default();
        event.record(&mut failed);
        let Failed { request, message } = failed;
        self.0.lock().unwrap().insert((request, message));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Rows for which a table of the engine would have to be full.
const FULL: [(&str, &str); 7] = [
    ("CreateInterface", "VNI_INIT4"),
    ("CreateInterface", "ROUTE_INSERT"),
    ("CreateLoadBalancer", "OUT_OF_MEMORY"),
    ("CreateLoadBalancer", "VNI_INIT4"),
    ("CreateNeighborNat", "OUT_OF_MEMORY"),
    ("CreateFirewallRule", "OUT_OF_MEMORY"),
    ("CreateInterface", "OUT_OF_MEMORY"),
];

#[test]
fn every_row_is_provoked() {
    let provoked = Provoked::default();
    // With a single subscriber, whichever thread first meets an event would decide for all threads whether it is wanted.
    let _second = tracing::Dispatch::new(Provoked::default());
    tracing::subscriber::with_default(provoked.clone(), || {
        conformance::nothing_works_before_initialize();
        conformance::interface_input();
        conformance::interface_life();
        conformance::a_device_that_cannot_be_opened_leaves_no_interface();
        conformance::prefixes();
        conformance::routes();
        conformance::networks();
        conformance::versions();
        services::vips();
        services::nats();
        services::neighbor_nats();
        services::load_balancers();
        services::load_balancer_prefixes();
        services::firewall_input();
        services::firewall_rules();
        capture::captures();
        errors_rest::prefixes();
        errors_rest::translation();
        errors_rest::balancers_and_routes();
        errors_rest::firewall();
    });
    let provoked = provoked.0.lock().unwrap();
    let mut missing = Vec::new();
    for row in RPCS {
        let refused = row.refused.iter().map(|value| code::name(*value).unwrap());
        for text in row.invalid.iter().copied().chain(refused) {
            let is_there = provoked.contains(&(row.name.to_owned(), text.to_owned()));
            if is_there == FULL.contains(&(row.name, text)) {
                missing.push((row.name, text, is_there));
            }
        }
    }
    assert_eq!(
        missing,
        [],
        "rows that no test provokes (false), or that FULL is wrong about"
    );
    let names: BTreeSet<&str> = RPCS.iter().map(|row| row.name).collect();
    assert_eq!((names.len(), RPCS.len()), (42, 42));
}
