//! From the JSON Schema that schemars derives to our tree.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{ListType, MapType, Schema, Type};

const API_VERSION_TEXT: &str = "APIVersion names the group and version that this object is written in. The server rejects versions it does not serve.";
const KIND_TEXT: &str =
    "Kind names the type of this object. It cannot be changed. In CamelCase, singular.";

/// Extension for a server-side default. The plain `default` keyword is not used, because schemars also
/// writes it for every `#[serde(default)]`.
const DEFAULT_KEY: &str = "x-openkcm-default";

/// Schema of any type.
pub fn type_schema<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let root = settings.into_generator().into_root_schema_for::<T>();
    convert(root.as_value())
}

/// Schema of a kind: the type plus `apiVersion`, `kind` and the merge rules of the metadata.
pub fn kind_schema<T: JsonSchema>() -> Schema {
    let mut schema = type_schema::<T>();
    for (name, text) in [("apiVersion", API_VERSION_TEXT), ("kind", KIND_TEXT)] {
        let field = Schema {
            description: text.into(),
            kind: Type::String,
            ..Schema::default()
        };
        schema.properties.insert(name.into(), field);
    }
    // The server fills these in when a client leaves them out.
    schema
        .required
        .retain(|name| !matches!(name.as_str(), "metadata" | "apiVersion" | "kind"));
    metadata_rules(&mut schema);
    schema
}

/// Puts the merge rules of Kubernetes' metadata types on every place where they occur in `schema`.
fn metadata_rules(schema: &mut Schema) {
    if schema.properties.contains_key("managedFields") {
        for name in ["creationTimestamp", "deletionTimestamp"] {
            if let Some(field) = schema.properties.get_mut(name) {
                field.format = Some("date-time".into());
            }
        }
        if let Some(field) = schema.properties.get_mut("ownerReferences") {
            field.list_type = ListType::Map(vec!["uid".into()]);
            if let Some(items) = &mut field.items {
                items.map_type = MapType::Atomic;
            }
        }
        if let Some(field) = schema.properties.get_mut("finalizers") {
            field.list_type = ListType::Set;
        }
        if let Some(fields) = schema.at_mut("managedFields.fieldsV1") {
            *fields = Schema {
                description: fields.description.clone(),
                kind: Type::Object,
                preserve_unknown: true,
                ..Schema::default()
            };
        }
        return;
    }
    // A label selector is read as one value (upstream marks it so everywhere).
    if schema.properties.len() == 2
        && schema.properties.contains_key("matchLabels")
        && schema.properties.contains_key("matchExpressions")
    {
        schema.map_type = MapType::Atomic;
    }
    for field in schema.properties.values_mut() {
        metadata_rules(field);
    }
    for inner in [&mut schema.additional, &mut schema.items]
        .into_iter()
        .flatten()
    {
        metadata_rules(inner);
    }
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn size(value: &Value, key: &str) -> Option<usize> {
    value
        .get(key)
        .and_then(Value::as_u64)
        .and_then(|n| usize::try_from(n).ok())
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// `Option<T>` is written as `T` or `null`; absence is our only null, so take `T`.
fn without_null(value: &Value) -> Option<&Value> {
    let any = value
        .get("anyOf")
        .or_else(|| value.get("oneOf"))?
        .as_array()?;
    let mut rest = any
        .iter()
        .filter(|choice| choice.get("type").and_then(Value::as_str) != Some("null"));
    let first = rest.next()?;
    rest.next().is_none().then_some(first)
}

fn kind_of(value: &Value) -> Type {
    let word = match value.get("type") {
        Some(Value::String(word)) => Some(word.as_str()),
        Some(Value::Array(words)) => words
            .iter()
            .filter_map(Value::as_str)
            .find(|w| *w != "null"),
        _ => None,
    };
    match word {
        Some("object") => Type::Object,
        Some("array") => Type::Array,
        Some("string") => Type::String,
        Some("integer") => Type::Integer,
        Some("number") => Type::Number,
        Some("boolean") => Type::Boolean,
        _ => Type::Any,
    }
}

fn words_of(value: &Value) -> Vec<String> {
    let plain = value
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let described = value
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    plain
        .chain(described.filter_map(|choice| choice.get("const")))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Builds a node; keywords outside an `anyOf` (description, extensions) win over those inside.
fn convert(value: &Value) -> Schema {
    let mut schema = match without_null(value) {
        Some(inner) => convert(inner),
        None => Schema::default(),
    };
    if let Some(description) = text(value, "description") {
        schema.description = description;
    }
    let words = words_of(value);
    if !words.is_empty() {
        schema.words = words;
        schema.kind = Type::String;
    }
    if value.get("type").is_some() {
        schema.kind = kind_of(value);
    }
    if let Some(fields) = value.get("properties").and_then(Value::as_object) {
        schema.properties = fields
            .iter()
            .map(|(name, field)| (name.clone(), convert(field)))
            .collect();
        schema.kind = Type::Object;
    }
    if let Some(additional) = value.get("additionalProperties").filter(|v| v.is_object()) {
        schema.additional = Some(Box::new(convert(additional)));
    }
    if let Some(items) = value.get("items").filter(|v| v.is_object()) {
        schema.items = Some(Box::new(convert(items)));
    }
    if let Some(required) = value.get("required").and_then(Value::as_array) {
        schema.required = required
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
    }
    schema.format = text(value, "format").or(schema.format);
    schema.int_or_string |= flag(value, "x-kubernetes-int-or-string");
    schema.preserve_unknown |= flag(value, "x-kubernetes-preserve-unknown-fields");
    merge_rules(value, &mut schema);
    schema.minimum = value
        .get("minimum")
        .and_then(Value::as_i64)
        .or(schema.minimum);
    schema.maximum = value
        .get("maximum")
        .and_then(Value::as_i64)
        .or(schema.maximum);
    schema.min_items = size(value, "minItems").or(schema.min_items);
    schema.max_items = size(value, "maxItems").or(schema.max_items);
    schema.default = value.get(DEFAULT_KEY).cloned().or(schema.default);
    schema
}

fn merge_rules(value: &Value, schema: &mut Schema) {
    match value.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => schema.list_type = ListType::Set,
        Some("map") => {
            let keys = value
                .get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array);
            let keys = keys
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned);
            schema.list_type = ListType::Map(keys.collect());
        }
        Some(_) => schema.list_type = ListType::Atomic,
        None => {}
    }
    match value.get("x-kubernetes-map-type").and_then(Value::as_str) {
        Some("atomic") => schema.map_type = MapType::Atomic,
        Some(_) => schema.map_type = MapType::Granular,
        None => {}
    }
}
