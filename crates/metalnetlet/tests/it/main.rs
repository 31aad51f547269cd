//! Plans of metalnetlet against the simulated API. metalnet is played by a small controller that holds and realizes
//! interfaces.

#![expect(
    clippy::expect_used,
    reason = "helpers of tests: a failure is the message"
)]

mod network;
mod network_interface;
mod node;
mod region;
