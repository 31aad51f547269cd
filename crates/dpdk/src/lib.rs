//! DPDK for packet drivers: the environment ([`Eal`]), ports ([`Device`]), receive and transmit queues ([`Queue`]) packet buffers
//! ([`Mbuf`]), rules of NICs ([`InstalledRule`]), and DPDK's own log ([`log_to`]) and telemetry socket ([`register_command`]).
//!
//! Everything `unsafe` about DPDK is in this crate, behind a safe interface. Deliberately not here: what a port means to the engine
//! (crate `ports`) and which ports a service uses (crate `dpservice`). Drivers are chosen by EAL arguments only; none is known by name.
//!
//! Without the feature `link` the crate is empty: DPDK is not needed to build the rest of the workspace.
//! Start with [`Eal::init`].

#[cfg(feature = "link")]
mod device;
#[cfg(feature = "link")]
mod eal;
#[cfg(feature = "link")]
mod log;
#[cfg(feature = "link")]
mod mbuf;
#[cfg(feature = "link")]
mod rules;
#[cfg(feature = "link")]
mod sys;
#[cfg(feature = "link")]
mod telemetry;

#[cfg(feature = "link")]
pub use device::{BURST_MAX, Config, Device, Guest, Info, Queue, RulePort, Stats};
#[cfg(feature = "link")]
pub use eal::{Eal, Error, Heap, InitError};
#[cfg(feature = "link")]
pub use log::{Level, log_to};
#[cfg(feature = "link")]
pub use mbuf::{Headers, Left, Mbuf, Pool, Unfinished};
#[cfg(feature = "link")]
pub use rules::{InstalledRule, RuleError};
#[cfg(feature = "link")]
pub use telemetry::{Answer, register_command};
