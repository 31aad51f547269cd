//! The namespace provider: a machine is a network namespace whose interfaces are the TAP devices that
//! metalnet claimed for it, configured by DHCP clients that run inside.
//!
//! What is wanted comes over gRPC and is on disk before it is acknowledged ([`record`]); what is done is decided
//! by [`plan`] from that record, the OpenKCM-net interfaces of this node and the devices seen; [`shell`] carries it
//! out. The provider may die at any time: machines keep running, and a restart finds everything again.
//!
//! It is not a virtual machine manager: there is no guest kernel, no volume and no console.

pub mod classes;
pub mod desk;
pub mod dhcp4;
pub mod dhcp6;
pub mod links;
pub mod netns;
pub mod plan;
pub mod record;
mod run;
pub mod runtime;
pub mod shell;

use std::path::Path;

pub use run::{Args, run};

/// Name of the network namespace of a machine: readable, and unique enough, because ids are random.
pub fn netns_name(prefix: &str, machine_id: &str) -> String {
    let short: String = machine_id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(8)
        .collect();
    format!("{prefix}{short}")
}

/// A machine as it is found on disk, without asking any running part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Machine id of the runtime.
    pub id: String,
    /// Network namespace to enter.
    pub netns: String,
    /// Namespace of the Machine object.
    pub namespace: String,
    /// Name of the Machine object.
    pub name: String,
}

/// All machines of a provider, read from its `--state` directory.
pub fn machines(state: &Path) -> Result<Vec<Found>, record::StoreError> {
    let label =
        |record: &record::Record, key: &str| record.labels.get(key).cloned().unwrap_or_default();
    let records = record::read_all(&state.join(record::MACHINES_DIR))?;
    let found = records.into_values().map(|record| Found {
        namespace: label(&record, api::names::label::POOLLET_MACHINE_NAMESPACE),
        name: label(&record, api::names::label::POOLLET_MACHINE_NAME),
        netns: record.netns,
        id: record.id,
    });
    Ok(found.collect())
}
