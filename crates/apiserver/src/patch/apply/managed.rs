//! The bookkeeping in `metadata.managedFields`: who owns which paths.

use super::path::FieldSet;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Entries with operation Update that an object keeps; older ones are folded into one.
pub const UPDATE_MANAGERS_MAX: usize = 10;
/// The manager of folded entries.
const FOLDED_MANAGER: &str = "ancient-changes";

/// How a manager came to own its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Identity of an entry. The same name with another operation, version or subresource is another owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
}

/// What a manager owns, and since when (RFC 3339).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owned {
    pub fields: FieldSet,
    pub time: Option<String>,
}

/// All entries of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managers(pub BTreeMap<Manager, Owned>);

impl Managers {
    /// Reads the entries of an object; `None` when any entry is malformed.
    pub fn decode(entries: &[Value]) -> Option<Managers> {
        let mut out = BTreeMap::new();
        for entry in entries {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
            let operation = match entry.get("operation")?.as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            if entry
                .get("fieldsType")
                .is_some_and(|kind| kind != "FieldsV1")
            {
                return None;
            }
            let fields = match entry.get("fieldsV1") {
                Some(fields) => FieldSet::decode(fields)?,
                None => FieldSet::default(),
            };
            let manager = Manager {
                name: text("manager").unwrap_or_default(),
                operation,
                api_version: text("apiVersion")?,
                subresource: text("subresource").unwrap_or_default(),
            };
            let owned: &mut Owned = out.entry(manager).or_default();
            owned.fields.extend(&fields);
            owned.time = text("time").or(owned.time.take());
        }
        Some(Managers(out))
    }

    /// The entries in the order of the reference: Apply before Update, then by time and name.
    pub fn encode(&self) -> Vec<Value> {
        let mut entries: Vec<(&Manager, &Owned)> = self
            .0
            .iter()
            .filter(|(_, owned)| !owned.fields.is_empty())
            .collect();
        entries.sort_by(|(a, owned_a), (b, owned_b)| {
            (a.operation, &owned_a.time, a).cmp(&(b.operation, &owned_b.time, b))
        });
        entries
            .into_iter()
            .map(|(manager, owned)| entry(manager, owned))
            .collect()
    }

    /// Folds the oldest Update entries of each version so that at most [`UPDATE_MANAGERS_MAX`] are left.
    pub fn cap(&mut self) {
        let mut updates: Vec<(Option<String>, Manager)> = self
            .0
            .iter()
            .filter(|(manager, _)| manager.operation == Operation::Update)
            .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
            .collect();
        let Some(surplus) = updates
            .len()
            .checked_sub(UPDATE_MANAGERS_MAX)
            .filter(|n| *n > 0)
        else {
            return;
        };
        updates.sort();
        // One more than the surplus, because the folded entry takes a place itself.
        for (time, manager) in updates.into_iter().take(surplus + 1) {
            let Some(owned) = self.0.remove(&manager) else {
                continue;
            };
            let folded = Manager {
                name: FOLDED_MANAGER.to_owned(),
                subresource: String::new(),
                ..manager
            };
            let entry = self.0.entry(folded).or_default();
            entry.fields.extend(&owned.fields);
            entry.time = entry.time.take().max(time);
        }
    }
}

fn entry(manager: &Manager, owned: &Owned) -> Value {
    let mut out = Map::new();
    out.insert("manager".into(), manager.name.clone().into());
    out.insert("operation".into(), manager.operation.as_str().into());
    out.insert("apiVersion".into(), manager.api_version.clone().into());
    if let Some(time) = &owned.time {
        out.insert("time".into(), time.clone().into());
    }
    out.insert("fieldsType".into(), "FieldsV1".into());
    out.insert("fieldsV1".into(), owned.fields.encode());
    if !manager.subresource.is_empty() {
        out.insert("subresource".into(), manager.subresource.clone().into());
    }
    Value::Object(out)
}

/// The raw entries of an object.
pub fn entries_of(object: &Value) -> &[Value] {
    let entries = object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    entries.map(Vec::as_slice).unwrap_or_default()
}

/// Takes the entries out of an object.
pub fn strip(object: &mut Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
}

/// Writes the entries into an object that has metadata.
pub fn store(object: &mut Value, managers: &Managers) {
    let entries = managers.encode();
    let Some(object) = object.as_object_mut() else {
        return;
    };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if let Value::Object(metadata) = metadata {
        if entries.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".into(), entries.into());
        }
    }
}
