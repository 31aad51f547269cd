//! Behaviour of metalbond at its boundary.

mod codec;
mod handshake;
mod hub_model;
mod pacing;
mod simulation;
mod support;
mod tcp;
mod vectors;
