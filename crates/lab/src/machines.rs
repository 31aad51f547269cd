//! From a machine's name to its namespace, by what the providers keep on disk: it works while the API server is down.

use anyhow::{Result, bail};

use crate::state::Record;
use crate::up;

/// The namespace of machine `name` (`NAME` or `NAMESPACE/NAME`).
///
/// # Errors
/// No hypervisor of this lab runs such a machine; the message says which ones run.
pub fn netns(record: &Record, name: &str) -> Result<String> {
    let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
    let layout = up::layout(record)?;
    let mut known = Vec::new();
    for hypervisor in record.topology()?.hypervisor_names() {
        for machine in machine::provider::machines(&layout.provider_state(&hypervisor))? {
            if machine.namespace == namespace && machine.name == short {
                return Ok(machine.netns);
            }
            known.push(format!("{}/{}", machine.namespace, machine.name));
        }
    }
    known.sort();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    bail!(
        "lab {} runs no machine {namespace}/{short}; it runs: {known}",
        record.name
    )
}
