//! Plans of metalnetlet against the simulated API. metalnet is played by small controllers that hold and realize interfaces
//! and load balancers.

#![expect(
    clippy::expect_used,
    reason = "helpers of tests: a failure is the message"
)]

mod instance;
mod network;
mod network_interface;
mod node;
mod policy;
mod region;
mod removal;
mod services;
