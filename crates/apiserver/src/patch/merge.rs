//! JSON merge patch (RFC 7386).

use serde_json::{Map, Value};

/// The document after the patch: objects merge, `null` removes, everything else replaces.
pub fn merge_patch(document: Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else {
        return patch.clone();
    };
    // RFC 7386 section 2: a target that is no object counts as an empty one.
    let mut out = match document {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    for (key, change) in changes {
        let current = out.remove(key);
        if !change.is_null() {
            out.insert(
                key.clone(),
                merge_patch(current.unwrap_or(Value::Null), change),
            );
        }
    }
    Value::Object(out)
}
