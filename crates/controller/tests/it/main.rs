//! Behaviour of the runner's parts at the crate boundary. The whole runner is tested against the real API server.

#![expect(
    clippy::expect_used,
    reason = "helpers of tests: a failure is the message"
)]

mod health;
mod object;
mod plan;
mod queue;
mod server;
mod sim;
