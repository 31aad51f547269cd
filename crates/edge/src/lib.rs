//! The region's edge: carries packets between the outside world and the hypervisors.
//!
//! Towards the region it tunnels packets for public addresses (virtual IPs, NAT and load-balancer addresses, public IPv6) to the hypervisor
//! that metalbond names; from the region it unpacks what the hypervisors send along their default route. It translates nothing and
//! remembers nothing about connections: any packet may take any edge.
//!
//! Pure (no IO, clock or task): [`flow`] reads packets, [`table`] chooses the hypervisor, [`engine`] decides and edits, [`counters`] names
//! everything that can happen. Thin shells: [`thread`] moves packets through one device, [`kernel`] gives that device its routes,
//! [`run()`] puts all together. Everything behind the device is the kernel's: neighbours, ECMP of the underlay, the outside's routing.
//! Start with [`engine`].

#![deny(clippy::indexing_slicing)]

pub mod counters;
pub mod engine;
pub mod flow;
pub mod kernel;
mod run;
pub mod status;
pub mod table;
pub mod thread;

pub use counters::{Counters, DropReason, Figures, Path};
pub use engine::{Edge, Settings, Verdict};
pub use run::{Args, run};
pub use table::{Routes, Scope, Table};
