//! Generated gRPC types, clients and servers: dpservice ([`dpdk`], and [`inspection`] for looking into it) and the machine runtime ([`machine`], [`meta`], [`event`]).
//!
//! There is no logic here except the table of status codes ([`code`]) and what all servers share ([`whole`]). The wire format is fixed by other implementations of the same
//! protocols; the golden-byte tests of this crate hold it in place. Start at the `.proto` files, they carry the comments.

pub mod code;
pub mod whole;

#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_imports,
    reason = "generated code"
)]
mod packages {
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use packages::dpdkironcore::v1 as dpdk;
pub use packages::event::v1alpha1 as event;
pub use packages::machine::v1alpha1 as machine;
pub use packages::meta::v1alpha1 as meta;
pub use packages::openkcm::dpservice::v1alpha1 as inspection;
