//! Every kind of every API group: type, schema, defaulting, validation, printer columns. Pure.
//!
//! Two views of an object live here. Controllers use the typed structs of [`networking`], [`ipam`],
//! [`compute`], [`apinet`] and [`metalnet`]. The API server works on `serde_json::Value` with the
//! row of [`table::kinds`] that belongs to the kind: schema, defaults, validation and columns all
//! come from that row, so a new kind is one new row. Nothing here knows HTTP, storage or a clock.

pub mod apinet;
mod builtin;
pub mod compute;
pub mod conditions;
pub mod crd;
pub mod csr;
pub mod defaults;
pub mod field;
pub mod held;
pub mod ids;
pub mod ipam;
mod macros;
pub mod meta;
pub mod metalnet;
pub mod names;
pub mod networking;
mod networking_services;
pub mod quantity;
pub mod schema;
pub mod table;
pub mod validate;

/// A list of objects as the server returns it.
pub type List<K> = kube_core::object::ObjectList<K>;

pub use k8s_openapi;
pub use kube_core;
