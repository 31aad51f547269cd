//! Validation: names and metadata here, the rules of each group in the submodules.

pub mod name;

pub use name::{dns_label, dns_subdomain};
