//! dpservice from outside: the protocol, the configuration, the command line, and two hosts in network namespaces.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed expectation is a failed test; figures are printed for the record"
)]

mod capture;
mod cli;
mod config;
mod conformance;
#[cfg(feature = "dpdk")]
mod dpdk;
mod errors;
mod errors_rest;
mod fabric;
mod harness;
mod health;
mod hosts;
mod inspect;
mod inspection;
mod lifecycle;
mod logging;
mod offload;
mod options;
mod packets;
mod scenarios;
mod services;
mod sync;
mod sync_hosts;
mod telemetry;
