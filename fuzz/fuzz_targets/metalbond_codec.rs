//! Fuzz target: see `codec` in the shared bodies.
#![no_main]

#[path = "../../crates/metalbond/tests/it/fuzz_bodies.rs"]
#[expect(dead_code, reason = "shared with the other targets")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::codec(data));
