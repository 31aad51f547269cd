//! Server-side apply and field ownership.
//!
//! [`apply`] merges a configuration into the live object, takes away what its manager owned before and no longer says, and
//! refuses to change what others own. [`track_update`] notes what an ordinary write changed. Both keep
//! `metadata.managedFields`. The rules are those of the reference API server; the data structures are in `path`, walks over
//! values in `typed`, the entries in `managed`.

mod managed;
mod path;
mod typed;

pub use managed::{Manager, Managers, Operation, Owned, UPDATE_MANAGERS_MAX};
pub use path::{Element, FieldSet, describe};

use api::schema::Schema;
use serde_json::Value;
use std::sync::LazyLock;
use typed::{Comparison, Emptied, compare};

/// The annotation in which client-side apply keeps its last configuration.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager of `kubectl apply --server-side`.
const KUBECTL: &str = "kubectl";
/// Owner of everything that was there before the first apply to an object without ownership.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Metadata that the server owns; nobody else does.
const UNOWNED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Who writes, through which door, and when.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    /// RFC 3339, seconds, UTC.
    pub now: &'a str,
    /// Dotted paths that this door does not write (`status` on the main resource, `spec` on `/status`). Nobody comes to own
    /// them through it.
    pub ignored: &'a [&'a str],
}

impl Write<'_> {
    fn owner(&self, operation: Operation) -> Manager {
        Manager {
            name: self.manager.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
        }
    }

    /// Takes out what cannot be owned through this door.
    fn ownable(&self, set: &FieldSet) -> FieldSet {
        static FIXED: LazyLock<FieldSet> = LazyLock::new(|| {
            let mut fixed = FieldSet::default();
            for path in UNOWNED {
                fixed.insert(&fields(path.iter().copied()));
            }
            fixed
        });
        if set.is_empty() {
            return FieldSet::default();
        }
        let mut below = FieldSet::default();
        for path in self.ignored {
            below.insert(&fields(path.split('.')));
        }
        set.difference(&FIXED).difference_below(&below)
    }
}

fn fields<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Element> {
    names.map(|name| Element::Field(name.to_owned())).collect()
}

/// A path that somebody else owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub manager: Manager,
    /// As in `.spec.ips[name="a"].ip`.
    pub path: String,
}

impl Conflict {
    /// The owner in words.
    pub fn owner(&self) -> String {
        let Manager {
            name,
            operation,
            api_version,
            subresource,
        } = &self.manager;
        let mut text = format!("{name:?}");
        if !subresource.is_empty() {
            text += &format!(" with subresource {subresource:?}");
        }
        match operation {
            Operation::Apply => text,
            Operation::Update => format!("{text} using {api_version}"),
        }
    }

    /// Message of the `FieldManagerConflict` cause whose field is `path`.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.owner())
    }
}

/// Why an apply was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409, one cause per conflict. The client may force, or drop the fields.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// 400.
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    /// 400.
    #[error("failed to create typed patch object: {path}: {problem}")]
    List { path: String, problem: &'static str },
    /// 400.
    #[error("the configuration must be an object")]
    NotAnObject,
}

/// The text of a conflict answer as `kubectl` users know it.
fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: {}: {}",
            only.message(),
            only.path
        );
    }
    let mut lines = vec![];
    let mut owner = None;
    for conflict in conflicts {
        if owner != Some(&conflict.manager) {
            lines.push(format!("conflicts with {}:", conflict.owner()));
            owner = Some(&conflict.manager);
        }
        lines.push(format!("- {}", conflict.path));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

/// Applies `config` to `live` (none: the object is created). The result equals `live` when nothing changed at all, so that the
/// caller can leave out the write.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    schema: &Schema,
    write: &Write<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if !typed::is_object(config, schema) {
        return Err(ApplyError::NotAnObject);
    }
    if !managed::entries_of(config).is_empty() {
        return Err(ApplyError::ManagedFields);
    }
    typed::check_lists(config, Some(schema), &mut Vec::new()).map_err(|bad| ApplyError::List {
        path: describe(&bad.path),
        problem: if bad.duplicate {
            "duplicate entries for key"
        } else {
            "element without its keys"
        },
    })?;
    let step = Apply {
        live,
        config,
        schema,
        write,
    };
    let result = match step.run(force) {
        Err(conflicts) if write.manager == KUBECTL => step
            .after_client_side(live, conflicts)
            .map_err(ApplyError::Conflicts)?,
        other => other.map_err(ApplyError::Conflicts)?,
    };
    Ok(result)
}

struct Apply<'a> {
    live: Option<&'a Value>,
    config: &'a Value,
    schema: &'a Schema,
    write: &'a Write<'a>,
}

impl Apply<'_> {
    fn run(&self, force: bool) -> Result<Value, Vec<Conflict>> {
        let schema = Some(self.schema);
        let mut live = self.live.cloned().unwrap_or_else(|| serde_json::json!({}));
        let before = self.managers(&live);
        managed::strip(&mut live);
        let mut config = self.config.clone();
        managed::strip(&mut config);
        let mut managers = before.clone();
        let owner = self.write.owner(Operation::Apply);
        let last = managers
            .0
            .get(&owner)
            .map(|owned| owned.fields.clone())
            .unwrap_or_default();
        let fields = self.write.ownable(&typed::paths_of(&config, schema));
        managers.0.entry(owner.clone()).or_default().fields = fields;
        let merged = typed::merge(&live, &config, schema);
        let pruned = prune(&merged, &last, &managers, schema);
        // Pruning drops containers that became empty; those the configuration names come back.
        let wanted = typed::merge(&pruned, &config, schema);
        let change = self.visible(compare(&live, &wanted, schema));
        let conflicts = settle(&mut managers, Some(&owner), &change);
        if !conflicts.is_empty() && !force {
            return Err(conflicts);
        }
        let changed = !change.is_same();
        let mut result = if changed || self.live.is_none() {
            wanted
        } else {
            live
        };
        if let Some(owned) = managers.0.get_mut(&owner) {
            let same = before
                .0
                .get(&owner)
                .is_some_and(|old| old.fields == owned.fields);
            if changed || !same || owned.time.is_none() {
                owned.time = Some(self.write.now.to_owned());
            }
        }
        self.keep_last_applied(&mut result);
        managed::store(&mut result, &managers);
        Ok(result)
    }

    /// The live object's owners; everything of an object without any belongs to a placeholder.
    fn managers(&self, live: &Value) -> Managers {
        let managers = Managers::decode(managed::entries_of(live)).unwrap_or_default();
        if !managers.0.is_empty() || self.live.is_none() {
            return managers;
        }
        let mut bare = live.clone();
        managed::strip(&mut bare);
        let write = Write {
            manager: BEFORE_FIRST_APPLY,
            subresource: "",
            ignored: &[],
            ..*self.write
        };
        let all = compare(&serde_json::json!({}), &bare, Some(self.schema)).added;
        let fields = write.ownable(&all);
        let owned = Owned {
            fields,
            time: Some(write.now.to_owned()),
        };
        Managers([(write.owner(Operation::Update), owned)].into())
    }

    /// Changes that this door can make.
    fn visible(&self, change: Comparison) -> Comparison {
        Comparison {
            added: self.write.ownable(&change.added),
            modified: self.write.ownable(&change.modified),
            removed: self.write.ownable(&change.removed),
        }
    }

    /// `kubectl apply --server-side` on an object once applied client-side keeps that annotation current, so that
    /// going back to client-side apply works. Whoever owns the annotation keeps it.
    fn keep_last_applied(&self, object: &mut Value) {
        if self.write.manager != KUBECTL {
            return;
        }
        let annotations = object.pointer_mut("/metadata/annotations");
        let Some(annotation) = annotations.and_then(|all| all.get_mut(LAST_APPLIED)) else {
            return;
        };
        let mut config = self.config.clone();
        let own = config
            .pointer_mut("/metadata/annotations")
            .and_then(Value::as_object_mut);
        if let Some(own) = own {
            own.remove(LAST_APPLIED);
        }
        *annotation = Value::String(format!("{config}\n"));
    }

    /// The first server-side apply after client-side ones: conflicts on what the last client-side configuration set, and
    /// nobody changed since, are no conflicts.
    fn after_client_side(
        &self,
        live: Option<&Value>,
        conflicts: Vec<Conflict>,
    ) -> Result<Value, Vec<Conflict>> {
        let Some(live) = live else {
            return Err(conflicts);
        };
        let annotations = live.pointer("/metadata/annotations");
        let last = annotations.and_then(|all| all.get(LAST_APPLIED)?.as_str());
        let last: Option<Value> = last.and_then(|text| serde_json::from_str(text).ok());
        let Some(last) = last else {
            return Err(conflicts);
        };
        let schema = Some(self.schema);
        let merged = typed::merge(live, &last, schema);
        let differs = compare(live, &merged, schema);
        let allowed = typed::paths_of(&last, schema)
            .difference(&differs.added)
            .difference(&differs.modified);
        let allowed: Vec<String> = allowed.paths().iter().map(|path| describe(path)).collect();
        let rest: Vec<Conflict> = conflicts
            .into_iter()
            .filter(|conflict| !allowed.contains(&conflict.path))
            .collect();
        if rest.is_empty() {
            self.run(true)
        } else {
            Err(rest)
        }
    }
}

/// Takes out of `merged` what the manager owned before (`last`) and nobody owns now.
fn prune(merged: &Value, last: &FieldSet, managers: &Managers, schema: Option<&Schema>) -> Value {
    if last.is_empty() {
        return merged.clone();
    }
    let with_parents = |set: &FieldSet| typed::with_parents(set, schema);
    let empty = || serde_json::json!({});
    let mut owned = FieldSet::default();
    for manager in managers.0.values() {
        owned.extend(&manager.fields);
    }
    let last = with_parents(last);
    let all = with_parents(&typed::paths_of(merged, schema));
    let without = |gone: &FieldSet, emptied| {
        typed::remove(merged, gone, schema, emptied).unwrap_or_else(empty)
    };
    // Everything of the former configuration goes, then what somebody owns comes back.
    let bare = with_parents(&typed::paths_of(&without(&last, Emptied::Stays), schema));
    let kept = bare.union(&with_parents(&owned));
    let pruned = without(&all.difference(&kept), Emptied::Stays);
    // What went only because its parent went, and was never in the former configuration, comes back too.
    let pruned = with_parents(&typed::paths_of(&pruned, schema));
    without(&all.difference(&pruned).intersection(&last), Emptied::Goes)
}

/// Takes changed paths from all owners but `owner`, and returns what was taken although it still exists.
fn settle(managers: &mut Managers, owner: Option<&Manager>, change: &Comparison) -> Vec<Conflict> {
    let written = change.modified.union(&change.added);
    let mut conflicts = Vec::new();
    for (manager, owned) in &mut managers.0 {
        if Some(manager) == owner {
            continue;
        }
        let taken = owned.fields.intersection(&written);
        conflicts.extend(taken.paths().iter().map(|path| Conflict {
            manager: manager.clone(),
            path: describe(path),
        }));
        owned.fields = owned.fields.difference(&taken).difference(&change.removed);
    }
    managers.0.retain(|_, owned| !owned.fields.is_empty());
    conflicts
}

/// Notes in `new` who owns what after an ordinary write turned `old` (none: created) into it.
///
/// The managed fields of `new` are taken as the basis when they are well-formed and the write goes to the main resource, so that
/// clients can replace or reset them (`[]` or `[{}]`); a client that knows nothing of them changes nothing.
pub fn track_update(old: Option<&Value>, new: &mut Value, schema: &Schema, write: &Write<'_>) {
    let mut live = old.cloned().unwrap_or_else(|| serde_json::json!({}));
    let mut managers = basis(&live, new, write);
    managed::strip(&mut live);
    managed::strip(new);
    let change = compare(&live, new, Some(schema));
    let change = Comparison {
        added: write.ownable(&change.added),
        modified: write.ownable(&change.modified),
        removed: write.ownable(&change.removed),
    };
    // Without an owner to spare: the writer, too, loses what it removed.
    settle(&mut managers, None, &change);
    let Comparison {
        added: mut written,
        modified,
        removed: _,
    } = change;
    written.absorb(modified);
    if !written.is_empty() {
        let owned = managers
            .0
            .entry(write.owner(Operation::Update))
            .or_default();
        owned.fields.absorb(written);
        owned.time = Some(write.now.to_owned());
    }
    managers.cap();
    managed::store(new, &managers);
}

/// The entries an ordinary write starts from.
fn basis(live: &Value, new: &Value, write: &Write<'_>) -> Managers {
    let of_live = || Managers::decode(managed::entries_of(live)).unwrap_or_default();
    if !write.subresource.is_empty() {
        return of_live();
    }
    let given = new
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    match given.map(Vec::as_slice) {
        None => of_live(),
        Some([]) => Managers::default(),
        Some([Value::Object(only)]) if only.is_empty() => Managers::default(),
        Some(entries) => match Managers::decode(entries) {
            Some(managers) if !managers.0.is_empty() => managers,
            _ => of_live(),
        },
    }
}
