//! The served kinds: rows of the kind table with their place in storage and cache.

use crate::events::Shape;
use api::field::FieldError;
use api::schema::Schema;
use api::table::{self, Generation, KindInfo};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Index of a stored kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(pub usize);

/// A served kind.
#[derive(Debug)]
pub struct Kind {
    /// Where objects are kept. Both kinds of events share one place.
    pub id: ResourceId,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub list_kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub has_status: bool,
    pub builtin: bool,
    /// How objects look to clients of this kind when they are stored in the shape of another one.
    pub view: Option<Shape>,
    /// JSON pointers, in the stored shape, of all fields that selectors may name. Kinds with one place share them.
    pub pointers: Arc<[String]>,
    /// The row of the kind as clients see it.
    pub info: &'static KindInfo,
    /// The row of the kind as it is stored.
    stored: &'static KindInfo,
}

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];
const FINALIZE_VERBS: &[&str] = &["update"];
const TOKEN_VERBS: &[&str] = &["create"];

impl Kind {
    fn new(
        id: ResourceId,
        info: &'static KindInfo,
        stored: &'static KindInfo,
        view: Option<Shape>,
    ) -> Kind {
        Kind {
            id,
            group: info.group,
            version: info.version,
            kind: info.kind,
            list_kind: info.list_kind,
            plural: info.plural,
            singular: info.singular,
            short_names: info.short_names,
            categories: info.categories,
            namespaced: info.is_namespaced(),
            has_status: info.has_status(),
            builtin: info.builtin,
            view,
            pointers: Arc::default(),
            info,
            stored,
        }
    }

    pub fn api_version(&self) -> String {
        self.info.api_version()
    }

    pub fn stored_api_version(&self) -> String {
        self.stored.api_version()
    }

    /// The schema of the stored shape.
    pub fn schema(&self) -> &'static Schema {
        (self.stored.schema)()
    }

    /// The schema of the shape that clients see.
    pub fn client_schema(&self) -> &'static Schema {
        (self.info.schema)()
    }

    /// The start of all store keys of the kind.
    pub fn prefix(&self) -> Vec<u8> {
        let group = if self.stored.group.is_empty() {
            "core"
        } else {
            self.stored.group
        };
        format!("/{group}/{}/", self.stored.plural).into_bytes()
    }

    /// The store key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> Vec<u8> {
        let mut key = self.prefix();
        if self.namespaced {
            key.extend_from_slice(namespace.as_bytes());
            key.push(b'/');
        }
        key.extend_from_slice(name.as_bytes());
        key
    }

    pub fn counts_generation(&self) -> bool {
        self.stored.generation == Generation::SpecChange
    }

    /// Whether an update must name a resourceVersion.
    pub fn locked_update(&self) -> bool {
        self.stored.locked_update
    }

    /// Kinds that are answered and not stored: reviews.
    pub fn is_virtual(&self) -> bool {
        !self.info.verbs.contains(&"get")
    }

    pub fn verbs(&self) -> &'static [&'static str] {
        self.info.verbs
    }

    /// Served subresources with their verbs.
    pub fn subresources(&self) -> Vec<(&'static str, &'static [&'static str])> {
        let served = |name: &&'static str| match *name {
            "status" => Some(("status", STATUS_VERBS)),
            "finalize" => Some(("finalize", FINALIZE_VERBS)),
            "token" => Some(("token", TOKEN_VERBS)),
            "approval" => Some(("approval", STATUS_VERBS)),
            _ => None,
        };
        self.info.subresources.iter().filter_map(served).collect()
    }

    pub fn patch_types(&self) -> &'static [&'static str] {
        const OURS: &[&str] = &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ];
        const BUILTIN: &[&str] = &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ];
        if self.builtin { BUILTIN } else { OURS }
    }

    /// The index in [`Kind::pointers`] of a field that selectors may name.
    pub fn selectable(&self, field: &str) -> Option<usize> {
        let pointer = self.pointer(self.info.selectable.iter().find(|known| **known == field)?);
        self.pointers.iter().position(|known| *known == pointer)
    }

    fn pointer(&self, field: &str) -> String {
        let field = match (self.view, field) {
            (_, "source") => "source.component".to_owned(),
            (Some(shape), field) => shape.stored_path(field),
            (None, field) => field.to_owned(),
        };
        format!("/{}", field.replace('.', "/"))
    }

    /// Fills in defaults.
    pub fn defaults(&self, object: &mut Value) {
        self.schema().apply_defaults(object);
        (self.stored.default)(object);
    }

    pub fn check_create(&self, object: &Value) -> Vec<FieldError> {
        self.stored.check_create(object)
    }

    pub fn check_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        self.stored.check_update(new, old)
    }

    pub fn check_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        self.stored.check_status(new, old)
    }

    fn is_namespace(&self) -> bool {
        self.group.is_empty() && self.plural == "namespaces"
    }

    /// What only another endpoint may change stays as it was.
    pub fn keep_main(&self, old: &Value, new: &mut Value) {
        if self.is_namespace()
            && let Some(map) = new.as_object_mut()
        {
            map.insert("spec".into(), old.get("spec").cloned().unwrap_or_default());
        }
    }

    /// Whether nothing holds the object back any more.
    pub fn is_released(&self, object: &Value) -> bool {
        let held = self.is_namespace()
            && object
                .pointer("/spec/finalizers")
                .and_then(Value::as_array)
                .is_some_and(|list| !list.is_empty());
        !held && crate::object::finalizers(object).is_empty()
    }

    /// What else changes when deletion begins.
    pub fn mark_deleting(&self, object: &mut Value) {
        if self.is_namespace()
            && let Some(map) = object.as_object_mut()
        {
            let status = map.entry("status").or_insert_with(|| serde_json::json!({}));
            if let Some(status) = status.as_object_mut() {
                status.insert("phase".into(), Value::from("Terminating"));
            }
        }
    }
}

/// All served kinds.
#[derive(Debug)]
pub struct Kinds {
    list: Vec<Arc<Kind>>,
}

impl Default for Kinds {
    fn default() -> Kinds {
        Kinds::new()
    }
}

impl Kinds {
    pub fn new() -> Kinds {
        let rows = table::kinds();
        let core_events = rows
            .iter()
            .position(|row| row.group.is_empty() && row.plural == "events");
        let mut list: Vec<Kind> = rows
            .iter()
            .enumerate()
            .map(|(index, info)| {
                let shared = core_events
                    .filter(|_| info.group == "events.k8s.io")
                    .and_then(|at| Some((at, rows.get(at)?)));
                match shared {
                    Some((at, stored)) => {
                        Kind::new(ResourceId(at), info, stored, Some(Shape::Events))
                    }
                    None => Kind::new(ResourceId(index), info, info, None),
                }
            })
            .collect();
        let mut pointers: BTreeMap<ResourceId, BTreeSet<String>> = BTreeMap::new();
        for kind in &list {
            let own = kind.info.selectable.iter();
            let of_place = pointers.entry(kind.id).or_default();
            of_place.extend(own.map(|field| kind.pointer(field)));
        }
        for kind in &mut list {
            kind.pointers = pointers
                .get(&kind.id)
                .into_iter()
                .flatten()
                .cloned()
                .collect();
        }
        let list = list.into_iter().map(Arc::new).collect();
        Kinds { list }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.list.iter()
    }

    /// Kinds whose objects are kept, each place once.
    pub fn stored(&self) -> impl Iterator<Item = &Arc<Kind>> {
        let own = |(index, kind): &(usize, &Arc<Kind>)| kind.id.0 == *index && !kind.is_virtual();
        self.list
            .iter()
            .enumerate()
            .filter(own)
            .map(|(_, kind)| kind)
    }

    /// The kind of a URL; the group may be in any case.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.list.iter().find(|kind| {
            kind.plural == plural
                && kind.version == version
                && kind.group.eq_ignore_ascii_case(group)
        })
    }

    /// The kind of an owner reference.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.list.iter().find(|known| {
            known.kind == kind && known.api_version().eq_ignore_ascii_case(api_version)
        })
    }

    pub fn by_id(&self, id: ResourceId) -> Option<&Arc<Kind>> {
        self.list.get(id.0)
    }
}
