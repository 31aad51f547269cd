//! dpservice: carries packets between machines and the underlay, configured over gRPC (`dpdkironcore.v1`).
//!
//! A thin shell around the crate `dataplane`: packet threads (one unless told otherwise) move packets ([`worker`]), one asynchronous thread
//! serves everything else — gRPC ([`grpc`]), the kernel's view of the uplinks ([`uplink`]), metrics ([`metrics`]), and questions
//! about all of this ([`inspection`]). What a configuration
//! request changes reaches each packet thread between two bursts, so a packet sees a request either completely or not at all.
//! All state is in memory: a client notices a restart by the new UUID (or by `ABORTED: not initialized`) and configures again.
//!
//! Start with [`service::run`]. The command line client is in [`cli`].

pub mod args;
pub mod cli;
pub mod devices;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod grpc;
pub mod inspection;
pub mod logging;
pub mod metrics;
pub mod program;
pub mod service;
pub mod standby;
pub mod sync;
pub mod telemetry;
pub mod uplink;
pub mod worker;

pub use args::Args;
pub use service::run;

/// Version reported by `--version` and GetVersion.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
