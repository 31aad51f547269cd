//! The schema tree: what the Rust types turn into, and what is done along it.

use api::names::{COMPUTE, METALNET, NETWORKING};
use api::schema::{ListType, MapType, Schema, Type};
use api::table::kinds;
use expect_test::expect;
use serde_json::json;

use crate::row;

#[test]
fn the_schema_of_virtual_ip() {
    let schema = (row(NETWORKING, "VirtualIP").schema)();
    let spec = serde_json::to_string_pretty(&schema.at("spec").unwrap().to_json()).unwrap();
    expect![[r#"
        {
          "description": "What the user wants.",
          "properties": {
            "ipFamily": {
              "description": "Address family. Immutable.",
              "enum": [
                "IPv4",
                "IPv6"
              ],
              "type": "string"
            },
            "targetRef": {
              "description": "The network interface that uses the address. Written by the system.",
              "properties": {
                "name": {
                  "description": "Name of the object.",
                  "type": "string"
                },
                "uid": {
                  "description": "UID of the object.",
                  "type": "string"
                }
              },
              "required": [
                "name",
                "uid"
              ],
              "type": "object",
              "x-kubernetes-map-type": "atomic"
            },
            "type": {
              "description": "Kind of address. Immutable.",
              "enum": [
                "Public"
              ],
              "type": "string"
            }
          },
          "required": [
            "type",
            "ipFamily"
          ],
          "type": "object"
        }"#]]
    .assert_eq(&spec);
    assert_eq!(
        schema.at("status.ip").unwrap().format.as_deref(),
        Some("ip")
    );
}

#[test]
fn merge_rules_are_in_place() {
    let list = |group: &str, kind: &str, path: &str| {
        let schema = (row(group, kind).schema)();
        schema
            .at(path)
            .unwrap_or_else(|| panic!("{kind} {path}"))
            .list_type
            .clone()
    };
    let by = |key: &str| ListType::Map(vec![key.to_owned()]);
    assert_eq!(
        list(NETWORKING, "Network", "metadata.ownerReferences"),
        by("uid")
    );
    assert_eq!(
        list(NETWORKING, "Network", "metadata.finalizers"),
        ListType::Set
    );
    assert_eq!(
        list(NETWORKING, "Network", "metadata.managedFields"),
        ListType::Atomic
    );
    assert_eq!(list(NETWORKING, "Network", "spec.peerings"), by("name"));
    assert_eq!(
        list(COMPUTE, "Machine", "spec.networkInterfaces"),
        by("name")
    );
    assert_eq!(list(COMPUTE, "Machine", "status.conditions"), by("type"));
    assert_eq!(
        list(api::names::APINET, "NetworkInterface", "spec.publicIPs"),
        by("name")
    );
    assert_eq!(
        list(api::names::APINET, "NetworkInterface", "spec.ips"),
        ListType::Atomic
    );
    assert_eq!(list(METALNET, "Network", "spec.peeredPrefixes"), by("id"));
    assert_eq!(list("", "Namespace", "status.conditions"), by("type"));
    assert_eq!(list("", "ServiceAccount", "secrets"), by("name"));
    let nic = (row(NETWORKING, "NetworkInterface").schema)();
    assert_eq!(nic.at("spec.machineRef").unwrap().map_type, MapType::Atomic);
    let selector = (row(api::names::IPAM, "Prefix").schema)()
        .at("spec.parentSelector")
        .unwrap();
    assert_eq!(selector.map_type, MapType::Atomic);
}

fn walk(schema: &Schema, path: &str, visit: &mut dyn FnMut(&str, &Schema)) {
    visit(path, schema);
    for (name, field) in &schema.properties {
        walk(field, &format!("{path}.{name}"), visit);
    }
    for inner in [&schema.items, &schema.additional].into_iter().flatten() {
        walk(inner, &format!("{path}[]"), visit);
    }
}

#[test]
fn every_field_is_described_and_typed() {
    for info in kinds() {
        let mut bad = Vec::new();
        walk((info.schema)(), info.kind, &mut |path, schema| {
            if schema.description.is_empty() && !path.ends_with("[]") {
                bad.push(format!("{path} has no description"));
            }
            if schema.kind == Type::Any && !schema.int_or_string && !schema.preserve_unknown {
                bad.push(format!("{path} has no type"));
            }
            if schema.kind == Type::Array && schema.items.is_none() {
                bad.push(format!("{path} has no items"));
            }
        });
        assert!(bad.is_empty(), "{bad:#?}");
    }
}

#[test]
fn unknown_fields_are_named_and_pruned() {
    let schema = (row(NETWORKING, "NetworkInterface").schema)();
    let mut value = json!({
        "apiVersion": "v", "kind": "k", "metadata": {"name": "x", "labels": {"any/thing": "y"}, "typo": 1,
            "managedFields": [{"fieldsV1": {"f:spec": {}}}]},
        "spec": {"netRef": {}, "ips": [{"value": "10.0.0.1", "val": 2}], "attributes": {"free": "form"}}
    });
    assert_eq!(
        schema.unknown_fields(&value),
        ["metadata.typo", "spec.ips[0].val", "spec.netRef"],
    );
    schema.prune(&mut value);
    assert_eq!(
        value,
        json!({
            "apiVersion": "v", "kind": "k", "metadata": {"name": "x", "labels": {"any/thing": "y"},
                "managedFields": [{"fieldsV1": {"f:spec": {}}}]},
            "spec": {"ips": [{"value": "10.0.0.1"}], "attributes": {"free": "form"}}
        })
    );
}

#[test]
fn quantities_may_be_numbers() {
    let class = row(COMPUTE, "MachineClass");
    let object = |cpu: serde_json::Value| json!({"metadata": {"name": "c"}, "capabilities": {"cpu": cpu, "memory": "1Gi"}});
    assert_eq!(class.check_create(&object(json!(2))), vec![]);
    assert_eq!(class.check_create(&object(json!("500m"))), vec![]);
    assert_eq!(class.check_create(&object(json!(true))).len(), 2);
}
