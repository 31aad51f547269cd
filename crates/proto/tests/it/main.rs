//! Holds the wire format in place: bytes written by hand from the field numbers of the protocols, never by our own encoder.

#![allow(clippy::expect_used, reason = "a failed expectation is a failed test")]

mod code;
mod golden;
mod whole;
