//! From a machine's name to its namespace, by what the providers keep on disk: it works while the API server is down.

use anyhow::{Result, bail};

use crate::state::Record;
use crate::up;

/// The namespace of machine `name` (`NAME` or `NAMESPACE/NAME`), or else of the part of the lab with that name: `internet`, `r1`, `hv1`.
///
/// # Errors
/// No hypervisor of this lab runs such a machine and no part is called so; the message says which ones there are.
pub fn netns(record: &Record, name: &str) -> Result<String> {
    let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
    let layout = up::layout(record)?;
    let topology = record.topology()?;
    let mut known = Vec::new();
    for hypervisor in topology.hypervisor_names() {
        for machine in machine::provider::machines(&layout.provider_state(&hypervisor))? {
            if machine.namespace == namespace && machine.name == short {
                return Ok(machine.netns);
            }
            known.push(format!("{}/{}", machine.namespace, machine.name));
        }
    }
    if let Some(role) = topology.roles().find(|role| role == name) {
        return Ok(topology.netns(&role));
    }
    known.sort();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    bail!(
        "lab {} runs no machine {namespace}/{short}; it runs: {known}; other places: {}",
        record.name,
        topology.roles().collect::<Vec<_>>().join(", ")
    )
}
