//! Behaviour of metalbond at its boundary.
