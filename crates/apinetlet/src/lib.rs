//! apinetlet: brings the user API and OpenKCM-net together. For each user Network, VirtualIP, LoadBalancer, NATGateway and
//! NetworkPolicy it keeps one object in one OpenKCM-net namespace, named by the user object's uid; it adopts the interfaces
//! that machine providers make; and it reports back what came of them, as state and as condition Ready.
//!
//! Provenance is kept as origin labels and an annotation on every object touched, so that each side finds the other and
//! leftovers of vanished sources are recognised ([`made`]). One module per kind holds a pure plan, [`run`] is the shell.

mod filter;
mod interface_status;
mod load_balancer;
mod made;
mod nat_gateway;
mod network;
mod network_interface;
mod network_policy;
mod prefixes;
mod run;
mod virtual_ip;

pub use filter::Filter;
pub use load_balancer::LoadBalancerController;
pub use nat_gateway::{NatBounds, NatGatewayController};
pub use network::NetworkController;
pub use network_interface::NetworkInterfaceController;
pub use network_policy::NetworkPolicyController;
pub use run::{Args, run};
pub use virtual_ip::VirtualIpController;
