//! Any DHCPv4 message of a machine.
#![no_main]

use dataplane::fuzzing::Host;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Host::new().check_dhcp4(bytes));
