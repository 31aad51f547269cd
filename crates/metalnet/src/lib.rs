//! metalnet: the hypervisor agent between the API, dpservice and metalbond.
//!
//! [`agent`] is the state machine and [`plan`] the pure decisions it rests on; neither does IO. [`driver`] runs the
//! agent; [`objects`] (API), [`dpservice`], [`bond`] (metalbond) and [`claims`] (disk) are the thin shells around it.
//! [`run()`] wires everything up.

pub mod agent;
pub mod bond;
pub mod claims;
pub mod device;
pub mod dpservice;
pub mod driver;
pub mod metrics;
pub mod model;
pub mod node;
pub mod objects;
pub mod parse;
pub mod parse_services;
pub mod plan;
pub mod queue;
mod run;
pub mod services;

pub use run::{Args, run};
