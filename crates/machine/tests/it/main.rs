//! Tests of the machine crate: pure plans, the gRPC interface, and devices in real network namespaces.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests: a failure is the message"
)]

mod device;
mod dhcp;
mod plane;
mod poollet_plan;
mod provider_plan;
mod runtime;
