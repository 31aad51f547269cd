//! Kinds as CustomResourceDefinitions (`apiextensions.k8s.io/v1`), for clusters whose API server is not ours.
//!
//! Made from the same row of the table as everything else. What a definition cannot say stays behind: rules over several fields,
//! name rules, computed columns.

use crate::table::{Cell, Column, KindInfo};
use serde_json::{Map, Value, json};

/// The definition of one kind.
pub fn definition(kind: &KindInfo) -> Value {
    let mut schema = (kind.schema)().to_json();
    // The host's own rules hold for metadata; a definition may not restate them.
    if let Some(metadata) = schema.pointer_mut("/properties/metadata") {
        *metadata = json!({ "type": "object" });
    }
    require_keys(&mut schema);
    let mut version = json!({
        "name": kind.version,
        "served": true,
        "storage": true,
        "schema": { "openAPIV3Schema": schema },
    });
    if let Some(version) = version.as_object_mut() {
        let mut put = |name: &str, value: Vec<Value>| {
            if !value.is_empty() {
                version.insert(name.to_owned(), value.into());
            }
        };
        put(
            "additionalPrinterColumns",
            kind.columns.iter().filter_map(column).collect(),
        );
        let fields = kind.selectable.iter();
        put(
            "selectableFields",
            fields
                .map(|field| json!({ "jsonPath": format!(".{field}") }))
                .collect(),
        );
        if kind.has_status() {
            version.insert("subresources".into(), json!({ "status": {} }));
        }
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{}", kind.plural, kind.group) },
        "spec": {
            "group": kind.group,
            "names": {
                "kind": kind.kind,
                "listKind": kind.list_kind,
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": kind.short_names,
                "categories": kind.categories,
            },
            "scope": if kind.is_namespaced() { "Namespaced" } else { "Cluster" },
            "versions": [version],
        },
    })
}

/// A column whose content is one place in the object. The name comes first on every cluster anyway.
fn column(column: &Column) -> Option<Value> {
    let path = match column.cell {
        Cell::Path { path, .. } | Cell::Since(path) => path,
        Cell::Text(_) | Cell::Int(_) | Cell::SinceText(_) => return None,
    };
    if path == "metadata.name" {
        return None;
    }
    let mut out = json!({
        "name": column.name,
        "type": column.kind.as_str(),
        "description": column.description,
        "jsonPath": format!(".{path}"),
    });
    if let (Some(out), true) = (out.as_object_mut(), column.priority > 0) {
        out.insert("priority".into(), column.priority.into());
    }
    Some(out)
}

/// Keys of list-maps must be required in a definition, unless they have a default.
fn require_keys(schema: &mut Value) {
    let Some(node) = schema.as_object_mut() else {
        return;
    };
    let keys = node.get("x-kubernetes-list-map-keys").cloned();
    if let (Some(Value::Array(keys)), Some(Value::Object(items))) = (keys, node.get_mut("items")) {
        let open: Vec<Value> = keys.into_iter().filter(|key| is_open(items, key)).collect();
        if !open.is_empty()
            && let Value::Array(required) = items.entry("required").or_insert_with(|| json!([]))
        {
            required.extend(open);
        }
    }
    for name in ["items", "additionalProperties"] {
        node.get_mut(name).into_iter().for_each(require_keys);
    }
    if let Some(Value::Object(fields)) = node.get_mut("properties") {
        fields.values_mut().for_each(require_keys);
    }
}

/// Whether an element may lack the key so far.
fn is_open(items: &Map<String, Value>, key: &Value) -> bool {
    let required = items.get("required").and_then(Value::as_array);
    let field = key
        .as_str()
        .and_then(|key| items.get("properties")?.get(key));
    !required.is_some_and(|required| required.contains(key))
        && field.is_none_or(|field| field.get("default").is_none())
}
