//! The region on one machine.

pub mod network;
pub mod parts;
pub mod state;
pub mod supervisor;
pub mod topology;
