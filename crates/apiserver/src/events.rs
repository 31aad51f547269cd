//! Events: one store, two shapes. Objects are kept as core/v1 and shown as events.k8s.io/v1 to those who ask there.

use serde_json::{Map, Value};

/// Members of core/v1 and what they are called in events.k8s.io/v1.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// A shape of a kind that is stored in another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// events.k8s.io/v1.
    Events,
}

fn rename(object: &mut Value, api_version: &str, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(map) = object.as_object_mut() else { return };
    map.insert("apiVersion".into(), Value::from(api_version));
    let mut moved = Map::new();
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            moved.insert(to.to_owned(), value);
        }
    }
    map.append(&mut moved);
}

impl Shape {
    /// From the client's shape to the stored one.
    pub fn to_stored(self, object: &mut Value) {
        rename(object, "v1", RENAMED.iter().map(|(core, events)| (*events, *core)));
    }

    /// From the stored shape to the client's.
    pub fn from_stored(self, object: &mut Value) {
        rename(object, "events.k8s.io/v1", RENAMED.iter().copied());
    }

    /// The stored path of a field that the client names.
    pub fn stored_path(self, field: &str) -> String {
        let (first, rest) = field.split_once('.').map_or((field, None), |(first, rest)| (first, Some(rest)));
        let stored = RENAMED.iter().find(|(_, events)| *events == first).map_or(first, |(core, _)| core);
        rest.map_or_else(|| stored.to_owned(), |rest| format!("{stored}.{rest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shapes_round_trip() {
        let events = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"name": "x"}, "note": "n", "reportingController": "c", "action": "a",
        });
        let mut object = events.clone();
        Shape::Events.to_stored(&mut object);
        assert_eq!(object.get("message"), Some(&json!("n")));
        assert_eq!(object.get("apiVersion"), Some(&json!("v1")));
        Shape::Events.from_stored(&mut object);
        assert_eq!(object, events);
        assert_eq!(Shape::Events.stored_path("regarding.name"), "involvedObject.name");
    }
}
