//! The machine classes that this provider offers, from a JSON file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use proto::machine::{MachineClass, MachineClassCapabilities, MachineClassStatus};
use serde::Deserialize;

/// Machines of one class that a node may run when the file does not say.
pub const QUANTITY_DEFAULT: i64 = 100;

/// One entry of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Name of the class.
    pub name: String,
    /// Resources of one machine: `cpu` in thousandths of a processor, `memory` in bytes.
    pub capabilities: BTreeMap<String, i64>,
    /// Machines of this class that the node may run.
    #[serde(default = "quantity_default")]
    pub quantity: i64,
}

fn quantity_default() -> i64 {
    QUANTITY_DEFAULT
}

/// Reads the file: a list of classes.
pub fn read(path: &Path) -> anyhow::Result<Vec<Class>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("machine classes in {}", path.display()))
}

/// The class as the gRPC interface shows it.
pub fn status(class: &Class) -> MachineClassStatus {
    let Class {
        name,
        capabilities,
        quantity,
    } = class;
    let resources = capabilities
        .iter()
        .map(|(name, amount)| (name.clone(), *amount))
        .collect();
    MachineClassStatus {
        machine_class: Some(MachineClass {
            name: name.clone(),
            capabilities: Some(MachineClassCapabilities { resources }),
        }),
        quantity: *quantity,
    }
}
