//! OpenAPI v3: one document per group and version, made from the schemas of its kinds.
//!
//! kubectl needs three things of it: the schema of a kind found by its `x-kubernetes-group-version-kind`, a PATCH operation with a
//! `fieldValidation` parameter (else it does not trust the server to validate), and descriptions for `explain`.

use crate::kinds::Kind;
use serde_json::{Map, Value, json};
use std::sync::Arc;

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "version": version, "kind": kind })
}

/// The component name of a kind: reversed domain, version, kind.
fn component(group: &str, version: &str, kind: &str) -> String {
    let group = if group.is_empty() {
        "core.api.k8s.io"
    } else {
        group
    };
    let reversed: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The document of a group and version.
pub fn document(group: &str, version: &str, kinds: &[&Arc<Kind>]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    let base = if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    };
    for kind in kinds {
        let name = component(group, version, kind.kind);
        let id = gvk(group, version, kind.kind);
        let mut schema = kind.client_schema().to_json();
        if let Some(map) = schema.as_object_mut() {
            map.insert("x-kubernetes-group-version-kind".into(), json!([id]));
        }
        schemas.insert(name.clone(), schema);
        add_paths(&mut paths, &base, kind, &id, &name);
        if !kind.is_virtual() {
            let list = format!("{}List", kind.kind);
            schemas.insert(component(group, version, &list), json!({
                "type": "object",
                "description": format!("{list} is a list of {}", kind.kind),
                "required": ["items"],
                "properties": {
                    "apiVersion": { "type": "string" },
                    "kind": { "type": "string" },
                    "metadata": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                    "items": { "type": "array", "items": reference(&name) },
                },
                "x-kubernetes-group-version-kind": [gvk(group, version, &list)],
            }));
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "OpenKCM", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn parameter(name: &str, kind: &str, description: &str) -> Value {
    json!({
        "name": name,
        "in": "query",
        "description": description,
        "schema": { "type": kind, "uniqueItems": true },
    })
}

fn path_parameter(name: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "uniqueItems": true } })
}

fn write_parameters() -> Vec<Value> {
    vec![
        parameter("dryRun", "string", "All: validate, but do not store."),
        parameter(
            "fieldManager",
            "string",
            "Name of the program that makes the change.",
        ),
        parameter(
            "fieldValidation",
            "string",
            "Ignore, Warn or Strict: what to do about unknown and duplicate fields.",
        ),
    ]
}

fn list_parameters() -> Vec<Value> {
    [
        ("labelSelector", "string"),
        ("fieldSelector", "string"),
        ("limit", "integer"),
        ("continue", "string"),
        ("resourceVersion", "string"),
        ("resourceVersionMatch", "string"),
        ("watch", "boolean"),
        ("allowWatchBookmarks", "boolean"),
        ("sendInitialEvents", "boolean"),
        ("timeoutSeconds", "integer"),
    ]
    .iter()
    .map(|(name, kind)| parameter(name, kind, ""))
    .collect()
}

fn operation(action: &str, id: &Value, parameters: Vec<Value>, body: &[&str], name: &str) -> Value {
    let mut operation = json!({
        "operationId": format!("{action}-{name}"),
        "parameters": parameters,
        "responses": { "200": { "description": "OK", "content": { "application/json": { "schema": reference(name) } } } },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": id,
    });
    if let (Some(map), false) = (operation.as_object_mut(), body.is_empty()) {
        let schema = |media: &&str| {
            let schema = if media.contains("patch") {
                json!({ "type": "object" })
            } else {
                reference(name)
            };
            ((*media).to_owned(), json!({ "schema": schema }))
        };
        let content: Map<String, Value> = body.iter().map(schema).collect();
        map.insert(
            "requestBody".into(),
            json!({ "content": content, "required": true }),
        );
    }
    operation
}

fn add_paths(paths: &mut Map<String, Value>, base: &str, kind: &Kind, id: &Value, name: &str) {
    let place = if kind.namespaced {
        format!("{base}/namespaces/{{namespace}}")
    } else {
        base.to_owned()
    };
    let own = |mut extra: Vec<Value>| {
        if kind.namespaced {
            extra.push(path_parameter("namespace"));
        }
        extra
    };
    let json_body: &[&str] = &[
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
    ];
    let collection = format!("{place}/{}", kind.plural);
    let mut verbs = Map::new();
    verbs.insert(
        "post".into(),
        operation("post", id, write_parameters(), json_body, name),
    );
    if !kind.is_virtual() {
        verbs.insert(
            "get".into(),
            operation("list", id, list_parameters(), &[], name),
        );
        verbs.insert(
            "delete".into(),
            operation("deletecollection", id, list_parameters(), &[], name),
        );
    }
    verbs.insert("parameters".into(), json!(own(Vec::new())));
    paths.insert(collection.clone(), Value::Object(verbs));
    if kind.is_virtual() {
        return;
    }
    let mut patch_parameters = write_parameters();
    patch_parameters.push(parameter(
        "force",
        "boolean",
        "Take fields over from other managers.",
    ));
    let patch_types = kind.patch_types();
    let object = |path: String, with_delete: bool, paths: &mut Map<String, Value>| {
        let mut verbs = Map::new();
        verbs.insert("get".into(), operation("get", id, Vec::new(), &[], name));
        verbs.insert(
            "put".into(),
            operation("put", id, write_parameters(), json_body, name),
        );
        verbs.insert(
            "patch".into(),
            operation("patch", id, patch_parameters.clone(), patch_types, name),
        );
        if with_delete {
            verbs.insert(
                "delete".into(),
                operation("delete", id, write_parameters(), &[], name),
            );
        }
        verbs.insert(
            "parameters".into(),
            json!(own(vec![path_parameter("name")])),
        );
        paths.insert(path, Value::Object(verbs));
    };
    object(format!("{collection}/{{name}}"), true, paths);
    if kind.has_status {
        object(format!("{collection}/{{name}}/status"), false, paths);
    }
}
