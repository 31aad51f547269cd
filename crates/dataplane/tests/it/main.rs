//! Behaviour of the engine at its boundary: bytes in; verdict, bytes and counters out.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "helpers of tests, which clippy does not recognise as such outside test functions"
)]

mod arp_nd;
mod bed;
mod build;
mod configuration;
mod conntrack;
mod dhcp;
mod drops;
mod flows;
mod forward;
mod lpm;
mod memory;
mod owner;
mod pmtu;
mod random;
mod uplinks;
