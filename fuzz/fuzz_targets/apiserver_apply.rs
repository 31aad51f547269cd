//! Fuzz target: the API server's apply code. The body is shared with the test that replays the corpus.
#![no_main]

#[path = "../../crates/apiserver/tests/it/corpus/bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::apply_body(data));
