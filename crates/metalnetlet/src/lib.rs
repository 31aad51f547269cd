//! metalnetlet: realizes OpenKCM-net in one partition, that is, in one compute cluster with metalnet on its hypervisors. It
//! publishes the cluster's nodes, mirrors networks and interfaces as metalnet objects and reports back what metalnet made.
//!
//! Every OpenKCM-net object that has a counterpart here carries a finalizer of this partition, so that it (and with it its
//! VNI and addresses) stays until the data plane has let go. [`node`], [`network`] and [`network_interface`] are pure plans;
//! [`run`] is the shell.

mod network;
mod network_interface;
mod node;
mod partition;
mod run;

pub use network::NetworkController;
pub use network_interface::NetworkInterfaceController;
pub use node::NodeController;
pub use partition::{Partition, PartitionError};
pub use run::{Args, run};
