//! Patches over JSON documents: JSON Patch, merge patch, strategic merge, server-side apply.
//!
//! Everything here is pure: documents and a schema in, documents out. Time comes in as text.

pub mod apply;
mod json;
mod merge;
mod strategic;

pub use json::{COPY_BYTES_MAX, DEPTH_MAX, JsonPatchError, OPERATIONS_MAX, json_patch};
pub use merge::merge_patch;
pub use strategic::{StrategicError, strategic};
