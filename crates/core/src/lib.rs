//! Controllers of the user API: where machines run, the address plan, the objects made on behalf of others, peering, targets of
//! load balancers, and claims that outlived their claimer. All plans are pure; [`manager`] is the shell, which also runs the collectors of `apinet`.
//!
//! Nothing here knows OpenKCM-net or a hypervisor: these controllers only keep the user API consistent in itself.

mod ephemeral_nic;
mod ephemeral_prefix;
mod ephemeral_virtual_ip;
mod index;
pub mod ipam;
mod load_balancer;
mod machine_release;
pub mod manager;
mod network_peering;
mod network_protection;
mod network_release;
mod nic_release;
mod pool_lifecycle;
mod scheduler;
mod virtual_ip_release;

pub use ephemeral_nic::EphemeralNicController;
pub use ephemeral_prefix::{LoadBalancerEphemeralPrefixController, NicEphemeralPrefixController};
pub use ephemeral_virtual_ip::EphemeralVirtualIpController;
pub use ipam::{PrefixAllocationSchedulerController, PrefixController};
pub use load_balancer::LoadBalancerController;
pub use machine_release::MachineReleaseController;
pub use network_peering::NetworkPeeringController;
pub use network_protection::NetworkProtectionController;
pub use network_release::NetworkReleaseController;
pub use nic_release::NicReleaseController;
pub use pool_lifecycle::PoolLifecycleController;
pub use scheduler::SchedulerController;
pub use virtual_ip_release::VirtualIpReleaseController;
