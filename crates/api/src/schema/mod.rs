//! The structural schema of a kind: a tree that says which fields exist, of which type they are, and how
//! lists and maps are merged.
//!
//! It is built from the Rust types (by schemars), so type and schema cannot drift apart. Server-side
//! apply, strategic merge, pruning, structural validation, OpenAPI and `kubectl explain` all walk this
//! one tree. It holds no rule that looks at two fields at once; those are in [`crate::validate`].

mod convert;
mod walk;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

pub use convert::{kind_schema, type_schema};

/// JSON type of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    /// Anything; see [`Schema::int_or_string`] and [`Schema::preserve_unknown`].
    #[default]
    Any,
    /// A JSON object: a struct with [`Schema::properties`], or a map with [`Schema::additional`].
    Object,
    /// A JSON array of [`Schema::items`].
    Array,
    /// A string.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
}

impl Type {
    /// The word of JSON Schema; `None` for [`Type::Any`].
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Any => None,
            Self::Object => Some("object"),
            Self::Array => Some("array"),
            Self::String => Some("string"),
            Self::Integer => Some("integer"),
            Self::Number => Some("number"),
            Self::Boolean => Some("boolean"),
        }
    }
}

/// How server-side apply merges a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// The list has one owner and is replaced as a whole.
    #[default]
    Atomic,
    /// Scalars that occur once each; every element has its own owners.
    Set,
    /// Objects identified by these keys; every field of an element has its own owners.
    Map(Vec<String>),
}

/// How server-side apply merges an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MapType {
    /// Every field has its own owners.
    #[default]
    Granular,
    /// The object has one owner and is replaced as a whole.
    Atomic,
}

/// One node of the tree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    /// What `kubectl explain` shows.
    pub description: String,
    /// JSON type.
    pub kind: Type,
    /// Known fields of an object.
    pub properties: BTreeMap<String, Schema>,
    /// Schema of the values of a map.
    pub additional: Option<Box<Schema>>,
    /// Schema of the elements of an array.
    pub items: Option<Box<Schema>>,
    /// Fields that must be there.
    pub required: Vec<String>,
    /// `null` is a value of its own and is kept.
    pub nullable: bool,
    /// Allowed words; empty allows all.
    pub words: Vec<String>,
    /// `ip`, `ip-prefix`, `date-time`, `int32`, `int64`, `byte` …
    pub format: Option<String>,
    /// A whole number or a string (`Quantity`, `IntOrString`).
    pub int_or_string: bool,
    /// Unknown fields below are kept.
    pub preserve_unknown: bool,
    /// Merge rule of an array.
    pub list_type: ListType,
    /// Merge rule of an object.
    pub map_type: MapType,
    /// Smallest number.
    pub minimum: Option<i64>,
    /// Largest number.
    pub maximum: Option<i64>,
    /// Smallest count of array elements.
    pub min_items: Option<usize>,
    /// Largest count of array elements.
    pub max_items: Option<usize>,
    /// Value of an absent field.
    pub default: Option<Value>,
}

impl Schema {
    /// Schema of the field `name` of an object: a known field or the value of a map. `None` when the
    /// field is unknown or when the node is no object.
    pub fn field(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or(self.additional.as_deref())
    }

    /// Schema of the node behind a dotted path such as `spec.peerings.name`; arrays are stepped through.
    pub fn at(&self, path: &str) -> Option<&Schema> {
        let mut node = self;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            while let Some(items) = &node.items {
                node = items;
            }
            node = node.field(part)?;
        }
        Some(node)
    }

    /// Like [`Schema::at`], for patching a schema while it is built.
    pub fn at_mut(&mut self, path: &str) -> Option<&mut Schema> {
        let mut node = self;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            while node.items.is_some() {
                node = node.items.as_deref_mut()?;
            }
            node = if node.properties.contains_key(part) {
                node.properties.get_mut(part)?
            } else {
                node.additional.as_deref_mut()?
            };
        }
        Some(node)
    }

    /// A node below which everything is allowed and nothing is known.
    pub fn is_opaque(&self) -> bool {
        self.preserve_unknown || (self.kind == Type::Any && !self.int_or_string)
    }

    /// A struct or map of which no field is known and none is kept.
    pub fn is_leaf_object(&self) -> bool {
        self.kind == Type::Object && self.properties.is_empty() && self.additional.is_none()
    }

    /// The schema as JSON, in the form that OpenAPI v3 documents and CRDs share (structural schema with
    /// the `x-kubernetes-*` extensions).
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| {
            out.insert(key.to_owned(), value);
        };
        if !self.description.is_empty() {
            put("description", self.description.clone().into());
        }
        if let Some(kind) = self.kind.as_str() {
            put("type", kind.into());
        }
        if let Some(format) = &self.format {
            put("format", format.clone().into());
        }
        if !self.words.is_empty() {
            put("enum", self.words.clone().into());
        }
        if self.nullable {
            put("nullable", true.into());
        }
        if let Some(default) = &self.default {
            put("default", default.clone());
        }
        let bounds = [("minimum", self.minimum), ("maximum", self.maximum)];
        for (key, bound) in bounds {
            if let Some(bound) = bound {
                put(key, bound.into());
            }
        }
        for (key, bound) in [("minItems", self.min_items), ("maxItems", self.max_items)] {
            if let Some(bound) = bound {
                put(key, bound.into());
            }
        }
        if !self.properties.is_empty() {
            let fields: Map<String, Value> = self
                .properties
                .iter()
                .map(|(name, field)| (name.clone(), field.to_json()))
                .collect();
            put("properties", fields.into());
        }
        if let Some(additional) = &self.additional {
            put("additionalProperties", additional.to_json());
        }
        if let Some(items) = &self.items {
            put("items", items.to_json());
        }
        if !self.required.is_empty() {
            put("required", self.required.clone().into());
        }
        if self.int_or_string {
            put("x-kubernetes-int-or-string", true.into());
        }
        if self.preserve_unknown {
            put("x-kubernetes-preserve-unknown-fields", true.into());
        }
        match (&self.list_type, self.kind) {
            (ListType::Atomic, Type::Array) => put("x-kubernetes-list-type", "atomic".into()),
            (ListType::Set, Type::Array) => put("x-kubernetes-list-type", "set".into()),
            (ListType::Map(keys), Type::Array) => {
                put("x-kubernetes-list-type", "map".into());
                put("x-kubernetes-list-map-keys", json!(keys));
            }
            (ListType::Atomic | ListType::Set | ListType::Map(_), _) => {}
        }
        if self.map_type == MapType::Atomic {
            put("x-kubernetes-map-type", "atomic".into());
        }
        out.into()
    }
}
