//! The storage trait and its engines.
