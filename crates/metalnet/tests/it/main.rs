//! Tests of metalnet at its boundary: plans and agent against models, then the whole part against a fake dpservice.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, where a failure is the message"
)]

mod agent;
mod claims;
mod device;
mod fake_dpservice;
mod hearing;
mod model;
mod parse;
mod property;
mod region;
mod sim;
