//! `metadata` that only the server writes, the same for every kind.

use crate::object;
use serde_json::Value;

/// Metadata that only the server writes: an update keeps it as it was.
pub const SERVER_OWNED: [&str; 6] = [
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
    "uid",
];

/// Puts the server's metadata of `old` over that of `new`.
pub fn keep_server_owned(old: &Value, new: &mut Value) {
    for key in SERVER_OWNED {
        match object::metadata(old, key) {
            Some(value) => object::set_metadata(new, key, value.clone()),
            None => {
                object::remove_metadata(new, key);
            }
        }
    }
    object::remove_metadata(new, "selfLink");
}

/// Whether anything but metadata and status differs.
pub fn spec_changed(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        return old != new;
    };
    let counts =
        |key: &&String| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind");
    let keys = old.keys().chain(new.keys()).filter(counts);
    keys.into_iter().any(|key| old.get(key) != new.get(key))
}
