//! Behaviour of the runner's parts at the crate boundary. The whole runner is tested against the real API server.

mod object;
mod plan;
mod queue;
mod sim;
