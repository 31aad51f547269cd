//! Tests of metalnet at its boundary: plans and agent against models of dpservice, API and metalbond.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, where a failure is the message"
)]

mod agent;
mod balancers;
mod changes;
mod claims;
mod device;
mod hearing;
mod model;
mod oracle;
mod parse;
mod parse_services;
mod peering;
mod property;
mod routers;
mod services;
mod silent;
mod sim;
mod wire;
