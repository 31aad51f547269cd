//! Controllers of the user API: where machines run, the objects made on behalf of machines and interfaces, and claims that
//! outlived their claimer. All plans are pure; [`manager`] is the shell, which also runs the collectors of `apinet`.
//!
//! Nothing here knows OpenKCM-net or a hypervisor: these controllers only keep the user API consistent in itself.

mod ephemeral_nic;
mod ephemeral_virtual_ip;
mod index;
pub mod manager;
mod network_protection;
mod nic_release;
mod pool_lifecycle;
mod scheduler;
mod virtual_ip_release;

pub use ephemeral_nic::EphemeralNicController;
pub use ephemeral_virtual_ip::EphemeralVirtualIpController;
pub use network_protection::NetworkProtectionController;
pub use nic_release::NicReleaseController;
pub use pool_lifecycle::PoolLifecycleController;
pub use scheduler::SchedulerController;
pub use virtual_ip_release::VirtualIpReleaseController;
