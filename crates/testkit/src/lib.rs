//! What tests of several crates together need: [`region`], a whole region in one thread.

pub mod region;
