//! apinetlet: brings the user API and OpenKCM-net together. For each user Network and VirtualIP it keeps one object in one
//! OpenKCM-net namespace, named by the user object's uid; it adopts the interfaces that machine providers make; and it
//! reports back what came of them.
//!
//! Provenance is kept as origin labels and an annotation on every object touched, so that each side finds the other and
//! leftovers of vanished sources are recognised. [`network`], [`virtual_ip`] and [`network_interface`] are pure plans;
//! [`run`] is the shell.

mod filter;
mod made;
mod network;
mod network_interface;
mod prefixes;
mod run;
mod virtual_ip;

pub use filter::Filter;
pub use network::NetworkController;
pub use network_interface::NetworkInterfaceController;
pub use run::{Args, run};
pub use virtual_ip::VirtualIpController;
