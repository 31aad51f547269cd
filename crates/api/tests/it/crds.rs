//! Definitions for other API servers: the rules that they check before they accept one.

use api::crd::definition;
use api::table::kinds;
use serde_json::{Value, json};

/// Problems of a structural schema, as an API server names them.
fn problems(node: &Value, path: &str, out: &mut Vec<String>) {
    let open = [
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
    ];
    if node.get("type").is_none() && !open.iter().any(|mark| node.get(mark).is_some()) {
        out.push(format!("{path}: no type"));
    }
    if node.get("$ref").is_some() {
        out.push(format!("{path}: a reference"));
    }
    if node.get("properties").is_some() && node.get("additionalProperties").is_some() {
        out.push(format!("{path}: fields and map entries exclude each other"));
    }
    if node["type"] == "array" && node.get("items").is_none() {
        out.push(format!("{path}: no items"));
    }
    for key in node["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let items = &node["items"];
        let required = items["required"].as_array();
        let key = key.as_str().unwrap();
        let field = &items["properties"][key];
        if field.is_null() {
            out.push(format!("{path}: no field {key}"));
        }
        if field.get("default").is_none() && !required.is_some_and(|all| all.contains(&json!(key)))
        {
            out.push(format!("{path}: the key {key} may be absent"));
        }
    }
    for (name, field) in node["properties"].as_object().into_iter().flatten() {
        problems(field, &format!("{path}.{name}"), out);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = node.get(name) {
            problems(inner, &format!("{path}.{name}"), out);
        }
    }
}

#[test]
fn definitions_are_structural() {
    let mut out = Vec::new();
    for kind in kinds().iter().filter(|kind| !kind.builtin) {
        let definition = definition(kind);
        let version = &definition["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        assert_eq!(
            schema["properties"]["metadata"],
            json!({ "type": "object" })
        );
        problems(schema, kind.kind, &mut out);
        for field in version["selectableFields"].as_array().into_iter().flatten() {
            let path = field["jsonPath"].as_str().unwrap();
            let pointer = path.replace('.', "/properties/");
            let found = schema.pointer(&pointer).map(|field| &field["type"]);
            assert_eq!(found, Some(&json!("string")), "{} {path}", kind.kind);
        }
    }
    assert_eq!(out, Vec::<String>::new());
}

#[test]
fn the_definition_of_a_metalnet_interface() {
    let kind = crate::row("networking.metalnet.openkcm.dev", "NetworkInterface");
    let definition = definition(kind);
    assert_eq!(
        definition["metadata"]["name"],
        "networkinterfaces.networking.metalnet.openkcm.dev"
    );
    let spec = &definition["spec"];
    assert_eq!(spec["scope"], "Namespaced");
    assert_eq!(spec["names"]["listKind"], "NetworkInterfaceList");
    let version = &spec["versions"][0];
    assert_eq!(version["subresources"], json!({ "status": {} }));
    assert_eq!(
        version["selectableFields"],
        json!([{ "jsonPath": ".spec.nodeName" }, { "jsonPath": ".spec.networkRef.name" }])
    );
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let age = columns
        .iter()
        .find(|column| column["name"] == "Age")
        .unwrap();
    assert_eq!(age["jsonPath"], ".metadata.creationTimestamp");
    assert_eq!(age["type"], "date");
}
