//! metalbond: distribution of overlay routes between hypervisors and routers, wire-compatible with the protocol's version 1.
//!
//! The protocol is decided in pure modules (no socket, clock or task): [`route`], [`codec`], [`peer`], [`pace`], [`table`],
//! [`hub`], [`rib`], [`session`]. One driver module (`driver`) runs
//! them on Tokio for [`server`] and [`client`]. Nothing here knows of Kubernetes or of a data plane.
//! Start at [`client::Client`] to use it, at [`server`] to run it.

pub mod client;
pub mod codec;
mod driver;
pub mod hub;
mod link;
pub mod pace;
pub mod peer;
pub mod rib;
pub mod route;
pub mod server;
pub mod session;
mod status;
pub mod table;

pub use client::{Client, Config, OwnRoutes, RouteEvent};
pub use route::{Destination, HopType, IpVersion, NextHop, Route};
