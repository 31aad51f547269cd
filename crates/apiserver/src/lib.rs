//! The Kubernetes-compatible API server: HTTP, registry, patch and apply, storage.
//!
//! A request travels `server` (TLS, limits) → `auth` → `registry` (decode, default, validate, allocate) → `store::Store::txn`;
//! reads and watches are answered by `cache`, which follows the store. Start reading at `server`.

pub mod patch;
pub mod protobuf;
pub mod selector;
pub mod store;
