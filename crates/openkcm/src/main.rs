//! The OpenKCM multi-call executable.

fn main() {}
