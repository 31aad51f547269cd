//! Tests of the machine crate.
