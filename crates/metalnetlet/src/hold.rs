//! What a data plane may have of public addresses, written on the OpenKCM-net object before metalnet is told and taken away after
//! metalnet has let go. See [`api::held`] for why.

use std::collections::BTreeSet;

use api::held::{self, Held};
use api::names::annotation::IN_DATA_PLANE;
use controller::{Object, Op, object};
use serde_json::json;

/// Brings finalizer and list of an object to what must be there before anything else happens. Nothing if they are.
pub(crate) fn mark<K: Object>(object: &K, finalizer: &str, next: &BTreeSet<Held>) -> Option<Op> {
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    // The server refuses new finalizers on what is being deleted.
    let adds = !object::is_deleting(object) && !finalizers.iter().any(|known| known == finalizer);
    let differs = held::of(object.meta()) != *next;
    if !adds && !differs {
        return None;
    }
    let mut body = json!({ "metadata": {} });
    if adds {
        finalizers.push(finalizer.to_owned());
        body["metadata"]["finalizers"] = json!(finalizers);
    }
    if differs {
        body["metadata"]["annotations"] = json!({ IN_DATA_PLANE: held::text(next) });
    }
    Some(Op::locked(object, body))
}

/// Takes the list away and keeps nothing. Nothing if there is none.
pub(crate) fn release<K: Object>(object: &K, finalizer: &str) -> Option<Op> {
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    let before = finalizers.len();
    finalizers.retain(|known| known != finalizer);
    if finalizers.len() == before && held::of(object.meta()).is_empty() {
        return None;
    }
    let body = json!({ "metadata": {
        "finalizers": finalizers,
        "annotations": { IN_DATA_PLANE: null },
    } });
    Some(Op::locked(object, body))
}
