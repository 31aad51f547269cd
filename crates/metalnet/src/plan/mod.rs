//! The pure half of metalnet: what is wanted, what is there, and the steps from one to the other.
//!
//! Nothing in here does IO, reads a clock or draws a random number; `agent` feeds it and carries out what it returns.
//! Start with [`desired`] for what should be; [`nic`], [`balancer`], [`neighbor`] and [`route`] are the steps.

pub mod balancer;
pub mod desired;
pub mod neighbor;
pub mod network;
pub mod nic;
pub mod observed;
pub mod ops;
pub mod rib;
pub mod route;
