//! Bodies of the fuzz targets, shared with the test that replays their corpora. Each takes any bytes and must not panic.

use api::schema::{ListType, MapType, Schema, Type};
use apiserver::patch::apply::{Write, apply, track_update};
use apiserver::patch::{json_patch, merge_patch, strategic};
use apiserver::protobuf::decode_object;
use apiserver::selector::{FieldSelector, LabelSelector};
use serde_json::{Value, json};

const NOW: &str = "2026-11-22T10:00:00Z";

fn node(kind: Type) -> Schema {
    Schema {
        kind,
        ..Schema::default()
    }
}

fn structure<const N: usize>(fields: [(&str, Schema); N]) -> Schema {
    let properties = fields
        .map(|(name, schema)| (name.to_owned(), schema))
        .into();
    Schema {
        properties,
        ..node(Type::Object)
    }
}

fn list(list_type: ListType, items: Schema) -> Schema {
    Schema {
        list_type,
        items: Some(Box::new(items)),
        ..node(Type::Array)
    }
}

/// A kind with a list-map `m`, a set `s`, an atomic struct `a`, a map `o`, and itself one level down in `d`.
fn schema(levels: usize) -> Schema {
    let text = || node(Type::String);
    let item = structure([("name", text()), ("v", text())]);
    let atomic = Schema {
        map_type: MapType::Atomic,
        ..structure([("x", text())])
    };
    let map = Schema {
        additional: Some(Box::new(text())),
        ..node(Type::Object)
    };
    let mut out = structure([
        ("m", list(ListType::Map(vec!["name".into()]), item)),
        ("s", list(ListType::Set, text())),
        ("a", atomic),
        ("o", map.clone()),
        ("metadata", structure([("labels", map), ("name", text())])),
    ]);
    if levels > 0 {
        out.properties.insert("d".into(), schema(levels - 1));
    }
    out
}

/// Input: a JSON array of a document and a patch.
pub fn json_patch_body(data: &[u8]) {
    let Ok(Value::Array(parts)) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let [document, patch] = &parts[..] else {
        return;
    };
    if let Ok(patched) = json_patch(document.clone(), patch) {
        // What came out can be stored and read back.
        let text = patched.to_string();
        assert!(serde_json::from_str::<Value>(&text).is_ok());
    }
    let once = merge_patch(document.clone(), patch);
    assert_eq!(merge_patch(once.clone(), patch), once);
    let _ = strategic(document.clone(), patch, &schema(2));
}

/// Input: a JSON array of objects; every third is written by update, the others applied by two managers.
pub fn apply_body(data: &[u8]) {
    let Ok(Value::Array(steps)) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let schema = schema(2);
    let mut live: Option<Value> = None;
    for (index, step) in steps.iter().take(16).enumerate() {
        let manager = ["one", "two", "kubectl"][index % 3];
        let write = Write {
            manager,
            api_version: "g/v1",
            subresource: "",
            now: NOW,
            ignored: &["status"],
        };
        if index % 3 == 2 && step.is_object() {
            let mut new = step.clone();
            track_update(live.as_ref(), &mut new, &schema, &write);
            live = Some(new);
        } else if let Ok(result) = apply(live.as_ref(), step, &schema, &write, true) {
            // Again: nothing may change, and nothing may conflict.
            assert_eq!(
                apply(Some(&result), step, &schema, &write, false),
                Ok(result.clone())
            );
            live = Some(result);
        }
    }
}

/// Input: a label selector, or after a line end a field selector.
pub fn selector_body(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (labels, fields) = text.split_once('\n').unwrap_or((text, text));
    let object = json!({"metadata": {"name": "n", "labels": {"a": "b", "n": "5"}}});
    match LabelSelector::parse(labels) {
        Ok(selector) => {
            selector.matches_object(&object);
            assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
        }
        Err(error) => assert!(error.position <= labels.len()),
    }
    match FieldSelector::parse(fields) {
        Ok(selector) => drop(selector.matches_object(&object)),
        Err(error) => assert!(error.position <= fields.len()),
    }
}

/// Input: a request body.
pub fn protobuf_body(data: &[u8]) {
    if let Ok(object) = decode_object(data) {
        assert!(object.get("kind").is_some());
    }
}
