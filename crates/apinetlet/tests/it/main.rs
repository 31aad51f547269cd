//! Plans of apinetlet against the simulated API. The API server's reservations are played by a small controller.

#![expect(
    clippy::expect_used,
    reason = "helpers of tests: a failure is the message"
)]

mod certificate;
mod load_balancer;
mod nat_gateway;
mod network;
mod network_interface;
mod network_policy;
mod peering;
mod region;
mod server;
mod together;
mod virtual_ip;
