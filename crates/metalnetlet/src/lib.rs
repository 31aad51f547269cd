//! metalnetlet: realizes OpenKCM-net in one partition, that is, in one compute cluster with metalnet on its hypervisors. It
//! publishes the cluster's nodes, mirrors networks, interfaces and load balancer Instances as metalnet objects and reports back
//! what metalnet made.
//!
//! Every OpenKCM-net object that has a counterpart here carries a finalizer of this partition, so that it (and with it its
//! VNI and addresses) stays until the data plane has let go. [`node`], [`network`], [`network_interface`] and [`instance`] are pure plans, [`policy`] and [`services`] are what
//! the second looks up; [`run`] is the shell. [`remove`] takes a partition out that is gone for good.

mod departed;
mod hold;
mod instance;
mod network;
mod network_interface;
mod node;
mod partition;
mod policy;
mod removal;
mod run;
mod services;

pub use instance::{InstanceController, PORTS_MAX};
pub use network::NetworkController;
pub use network_interface::NetworkInterfaceController;
pub use node::NodeController;
pub use partition::{Partition, PartitionError};
pub use removal::{RETURN_WAIT, RemovalArgs, remove};
pub use run::{Args, run};
