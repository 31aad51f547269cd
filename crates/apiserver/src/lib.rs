//! The Kubernetes-compatible API server: HTTP, registry, patch and apply, storage.
//!
//! A request travels `server` (TLS, connections) → `handler` (who, limits, may he, which verb) → `registry` (decode, default,
//! validate, allocate) → [`store::Store::txn`]; reads and watches are answered by `cache`, which follows the store. Kinds are rows of a
//! table ([`kinds`]); nothing below `handler` knows a particular one, except `allocate`, `admission` and `events`, which exist for that.
//!
//! [`Args`] and [`run`] are the process, [`start`] the server as a library, [`testing`] the server inside a test, [`pki`] the region CA.

mod admission;
mod allocate;
mod args;
pub mod auth;
mod bootstrap;
pub mod cache;
pub mod certificates;
mod decode;
mod discovery;
mod events;
pub mod filter;
mod gc;
mod handler;
pub mod kinds;
pub mod local;
pub mod metrics;
mod namespace;
pub mod nature;
mod negotiate;
mod object;
mod openapi;
pub mod patch;
pub mod pki;
mod print;
pub mod protobuf;
mod query;
pub mod region;
mod registry;
mod route;
pub mod selector;
pub mod server;
pub mod start;
pub mod status;
pub mod store;
pub mod testing;
mod watch;
mod wire;

pub use args::{Args, PKI_FOLDER, run};
