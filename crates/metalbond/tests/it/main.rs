//! Behaviour of metalbond at its boundary.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod codec;
mod fuzz_bodies;
mod fuzz_corpus;
mod handshake;
mod hub_model;
mod install;
mod pacing;
mod simulation;
mod support;
mod tcp;
mod vectors;
