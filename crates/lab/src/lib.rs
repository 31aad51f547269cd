//! The region on one machine: topology, supervision, scenarios.
