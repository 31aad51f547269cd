//! Behaviour of the engine at its boundary: bytes in; verdict, bytes and counters out.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "helpers of tests, which clippy does not recognise as such outside test functions"
)]

mod arp_nd;
mod balance;
mod bed;
mod build;
mod configuration;
mod conntrack;
mod dhcp;
mod differences;
mod drops;
mod firewall;
mod flows;
mod forward;
mod fragments;
mod fragments_translated;
mod handshake;
mod isolation;
mod keep;
mod limits;
mod lpm;
mod maglev;
mod memory;
mod meter;
mod nat64;
mod oddities;
mod offload;
mod owner;
mod pmtu;
mod policy;
mod port_map;
mod provoke_services;
mod random;
mod scene;
mod services;
mod sync;
mod threads;
mod translate;
mod uplinks;
mod virtual_packets;
mod virtual_service;
