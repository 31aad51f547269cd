//! The behaviour of the kinds as the server and the controllers see it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: a failure is the message"
)]

mod apinet;
mod crds;
mod defaults;
mod identity;
mod kinds;
mod schemas;
mod services;
mod validation;

use api::table::{KindInfo, by_kind};
use serde_json::{Value, json};

/// The row of one of our kinds.
fn row(group: &str, kind: &str) -> &'static KindInfo {
    by_kind(group, kind).unwrap_or_else(|| panic!("no kind {kind} in {group}"))
}

/// An object with a name, as it is after the server has filled in the metadata.
fn object(row: &KindInfo, name: &str, spec: Value) -> Value {
    let mut metadata = json!({"name": name});
    if row.is_namespaced() {
        metadata["namespace"] = "shop".into();
    }
    json!({"apiVersion": row.api_version(), "kind": row.kind, "metadata": metadata, "spec": spec})
}

/// All errors of a new object as one text, after defaulting.
fn create_errors(row: &KindInfo, name: &str, spec: Value) -> String {
    let mut object = object(row, name, spec);
    row.normalize(&mut object);
    show(&row.check_create(&object))
}

/// All errors of an update as one text.
fn update_errors(row: &KindInfo, old: Value, new: Value) -> String {
    let [mut old, mut new] = [old, new].map(|spec| object(row, "x", spec));
    row.normalize(&mut old);
    row.normalize(&mut new);
    show(&row.check_update(&new, &old))
}

fn show(errors: &[api::field::FieldError]) -> String {
    errors.iter().map(|error| format!("{error}\n")).collect()
}
