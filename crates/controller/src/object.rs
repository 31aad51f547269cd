//! Small questions every controller asks about objects: deletion, finalizers, owners, labels.

use std::collections::BTreeMap;

use api::ids::Origin;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::Resource;
use serde_json::{Value, json};

use crate::key::{Key, Kind, Object};

pub fn uid<K: Resource>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

pub fn name<K: Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

pub fn namespace<K: Resource>(object: &K) -> &str {
    object.meta().namespace.as_deref().unwrap_or_default()
}

pub fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

pub fn has_finalizer<K: Resource>(object: &K, finalizer: &str) -> bool {
    object
        .meta()
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == finalizer)
}

pub fn label<'a, K: Resource>(object: &'a K, key: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(key).map(String::as_str)
}

pub fn annotation<'a, K: Resource>(object: &'a K, key: &str) -> Option<&'a str> {
    object
        .meta()
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// The owner with `controller: true`, of which there is at most one.
pub fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

pub fn is_controlled_by<K: Resource>(object: &K, owner_uid: &str) -> bool {
    controller_of(object).is_some_and(|owner| owner.uid == owner_uid)
}

/// A controller reference to `owner`, as JSON for a body.
pub fn controller_reference<K: Object>(owner: &K) -> Value {
    json!({
        "apiVersion": Kind::of::<K>().api_version(),
        "kind": Kind::of::<K>().kind,
        "name": name(owner),
        "uid": uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Whether a label selector matches. An absent selector matches nothing, an empty one everything; an expression with an
/// operator nobody knows matches nothing.
pub fn selects(
    selector: Option<&LabelSelector>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let none = BTreeMap::new();
    selector.is_some_and(|selector| api::meta::selects(selector, labels.unwrap_or(&none)))
}

/// Whether all these labels and annotations are on the object.
pub fn carries<K: Resource>(
    object: &K,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> bool {
    labels
        .iter()
        .all(|(key, value)| label(object, key) == Some(value))
        && annotations
            .iter()
            .all(|(key, value)| annotation(object, key) == Some(value))
}

/// Index values for finding what was made for a source: `namespace/name` of the origin under `base`.
pub fn origin_key<K: Resource>(object: &K, base: &str) -> Option<Key> {
    let Origin {
        namespace,
        name,
        uid: _,
    } = Origin::of(object.meta(), base)?;
    Some(Key { namespace, name })
}

/// The origin that objects made for `object` carry.
pub fn as_origin<K: Resource>(object: &K) -> Origin {
    Origin {
        namespace: namespace(object).to_owned(),
        name: name(object).to_owned(),
        uid: uid(object).to_owned(),
    }
}
