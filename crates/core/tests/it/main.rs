//! Plans of the user API's controllers against the simulated API.

#![expect(
    clippy::expect_used,
    reason = "helpers of tests: a failure is the message"
)]

mod blocks;
mod claims;
mod ephemeral;
mod guide;
mod ipam;
mod pools;
mod region;
mod scheduler;
mod services;
mod two_managers;

use controller::{Object, sim::Sim};

pub const NS: &str = "default";

pub fn object<K: Object>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}

pub fn uid<K: Object>(sim: &Sim, name: &str) -> String {
    controller::object::uid(&sim.get::<K>(NS, name).expect("the object exists")).to_owned()
}
