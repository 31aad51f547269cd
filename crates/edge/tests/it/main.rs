//! The edge through its public interface: choice of the hypervisor, rewriting of packets, threads over the memory driver.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: a failure is the message"
)]

mod bed;
mod choice;
mod forward;
mod hostile;
mod refuse;
mod region;
mod threads;
