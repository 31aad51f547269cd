//! `openkcm get path A B`: explains hop by hop why a packet would arrive or not (policy, route, translation), from the objects and from
//! the live data planes.
//!
//! [`explain()`] is pure: a [`snapshot::Snapshot`] and a [`query::Query`] in, a [`model::Path`] out. [`gather`] is the thin shell
//! that fills the snapshot: API lists, dpservice's control port, the status pages of metalbond servers and edges. Nothing here changes
//! anything anywhere. [`run()`] is the command.

mod cli;
pub mod explain;
pub mod gather;
pub mod model;
pub mod page;
pub mod query;
mod render;
pub mod snapshot;

pub use cli::{Args, ENDPOINTS_HELP, EXIT_UNKNOWN, run};
pub use explain::{explain, explain_and_ask};
pub use render::{json, table};
