//! metalbond: distribution of overlay routes between hypervisors and routers, wire-compatible with the protocol's version 1.
//!
//! The protocol is decided in pure modules (no socket, clock or task): [`route`]. One driver module runs them on Tokio
//! for the server and the client. Nothing here knows of Kubernetes or of a data plane.
//! Start at [`client::Client`] to use it.

pub mod client;
pub mod route;

pub use client::{Client, Config, OwnRoutes, RouteEvent};
pub use route::{Destination, HopType, IpVersion, NextHop, Route};
