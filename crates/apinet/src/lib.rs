//! Collectors of OpenKCM-net. Addresses and VNIs are reserved inside the write of their holder and released with it, so these
//! controllers only find what that cannot cover: objects made by hand, leftovers of a foreign server, claims by the dead.
//!
//! The one rule: nothing is freed that a live owner holds or may be about to hold. Each step checks name *and* uid by an
//! uncached read right before it, and young lock objects are left alone for longer than a request can take.

mod collect;
mod ip_address;
mod ip_claim;
mod network_id;

pub use collect::GRACE;
pub use ip_address::IpAddressController;
pub use ip_claim::IpClaimController;
pub use network_id::NetworkIdController;
