//! Controllers of OpenKCM-net: load balancers down to Instances on Nodes, NAT gateways down to port blocks, policies down to
//! addresses, the life of Nodes, and the collectors.
//!
//! Addresses and VNIs are reserved inside the write of their holder. The collectors free what that cannot cover: addresses whose holder
//! let go while a data plane may still use them, objects made by hand, leftovers of a foreign server, claims by the dead.
//!
//! The one rule: nothing is freed that a live owner or a data plane holds or may be about to hold. Collectors check name *and* uid by
//! an uncached read right before, and young lock objects are left alone for longer than a request can take.

mod certificate_approval;
mod collect;
mod daemon_set;
mod departed;
mod index;
mod instance_scheduler;
mod ip_address;
mod ip_claim;
mod load_balancer;
mod nat_autoscaler;
mod nat_gateway;
mod nat_release;
mod network_id;
mod network_policy;
mod node_lifecycle;
pub mod placement;
pub mod ports;

pub use certificate_approval::{CertificateApprovalController, RECOGNIZERS, recognize};
pub use collect::GRACE;
pub use daemon_set::{DaemonSetController, instance_name};
pub use departed::DepartedController;
pub use instance_scheduler::InstanceSchedulerController;
pub use ip_address::IpAddressController;
pub use ip_claim::{IpClaimController, RELEASE_HOLD};
pub use load_balancer::{LoadBalancerController, daemon_set_name};
pub use nat_autoscaler::{Demand, NatAutoscalerController, scale};
pub use nat_gateway::NatGatewayController;
pub use nat_release::NatReleaseController;
pub use network_id::NetworkIdController;
pub use network_policy::NetworkPolicyController;
pub use node_lifecycle::{GRACE_DEFAULT, NodeLifecycleController};
