//! metalnet: the hypervisor agent between the API, dpservice and metalbond.
//!
//! [`agent`] is the state machine and [`plan`] the pure decisions it rests on; neither does IO.

pub mod agent;
pub mod model;
pub mod plan;
pub mod queue;
