//! Any frame from a machine.
#![no_main]

use dataplane::fuzzing::Host;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Host::new().check_machine(bytes));
