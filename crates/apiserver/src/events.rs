//! Events: one store, two shapes. Objects are kept as core/v1 and shown as events.k8s.io/v1 to those who ask there.

use crate::auth::User;
use crate::query::Query;
use crate::region::Region;
use crate::registry::delete::DeleteOptions;
use crate::registry::{Part, Write};
use crate::store::StoreError;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;

/// How long an event is kept after it was last written.
pub const EVENT_LIFE: Duration = Duration::from_secs(3_600);
/// Time between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

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

fn rename(
    object: &mut Value,
    api_version: &str,
    names: impl Iterator<Item = (&'static str, &'static str)>,
) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
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
        rename(
            object,
            "v1",
            RENAMED.iter().map(|(core, events)| (*events, *core)),
        );
    }

    /// From the stored shape to the client's.
    pub fn restore(self, object: &mut Value) {
        rename(object, "events.k8s.io/v1", RENAMED.iter().copied());
    }

    /// The stored path of a field that the client names.
    pub fn stored_path(self, field: &str) -> String {
        let (first, rest) = field
            .split_once('.')
            .map_or((field, None), |(first, rest)| (first, Some(rest)));
        let stored = RENAMED
            .iter()
            .find(|(_, events)| *events == first)
            .map_or(first, |(core, _)| core);
        rest.map_or_else(|| stored.to_owned(), |rest| format!("{stored}.{rest}"))
    }
}

/// When an event last happened, as far as it says.
fn last_seen(event: &Value) -> Option<jiff::Timestamp> {
    let text = |path: &str| {
        event
            .pointer(path)
            .and_then(Value::as_str)
            .and_then(|text| text.parse().ok())
    };
    let paths = [
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/eventTime",
        "/metadata/creationTimestamp",
    ];
    paths.into_iter().filter_map(text).max()
}

/// Deletes old events, for as long as the server runs.
pub async fn sweep(region: Arc<Region>) -> StoreError {
    let user = User::server();
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(kind) = region.kinds.find("", "v1", "events") else {
            return region.store.stopped().await;
        };
        let oldest = jiff::Timestamp::now().as_second() - EVENT_LIFE.as_secs() as i64;
        for entry in region.cache.list(kind.id, None).entries {
            if last_seen(&entry.value()).is_some_and(|seen| seen.as_second() >= oldest) {
                continue;
            }
            let place = (entry.namespace(), entry.name(), Part::Main);
            let swept =
                match Write::new(&region, kind, place, &user, &Query::default(), "apiserver") {
                    Ok(write) => write.delete(&DeleteOptions::default()).await.map(|_| ()),
                    Err(failure) => Err(failure),
                };
            if let Err(failure) = swept {
                tracing::debug!(event = %entry.key, failure = %failure.message, "event not swept");
            }
        }
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
        Shape::Events.restore(&mut object);
        assert_eq!(object, events);
        assert_eq!(
            Shape::Events.stored_path("regarding.name"),
            "involvedObject.name"
        );
    }
}
