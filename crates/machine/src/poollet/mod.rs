//! The machinepoollet: makes the Machines that the scheduler gave to one pool real, through a machine runtime on the same
//! node, and reports back.
//!
//! [`machine`] decides per Machine, [`pool`] keeps the MachinePool and its lease, [`runtime`] speaks gRPC and watches the
//! runtime. The poollet knows nothing of how a machine is made, and the runtime nothing of the API.

pub mod machine;
pub mod nic;
pub mod pool;
mod run;
pub mod runtime;
pub mod status;

pub use run::{Args, run};
