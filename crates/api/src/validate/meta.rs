//! Metadata that every object has.

use serde_json::Value;

use super::{At, Errors, immutable, name, syntax};
use crate::field::FieldError;
use crate::table::NameRule;

/// Finalizers of Kubernetes itself, the only ones without a domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// Checks the metadata of a new object, after the server has filled in name and namespace.
pub fn object_meta(object: &Value, rule: NameRule, namespaced: bool) -> Errors {
    let mut errors = Vec::new();
    let meta = At::root(object).field("metadata");
    let name = meta.field("name");
    if name.is_empty() {
        errors.push(FieldError::required(
            name.path,
            "name or generateName is required",
        ));
    } else if let Some(detail) = rule.problem(name.text()) {
        errors.push(FieldError::invalid(name.path.clone(), name.text(), detail));
    }
    let namespace = meta.field("namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required(namespace.path, "")),
        (true, false) => syntax(&namespace, name::dns_label, &mut errors),
        (false, false) => {
            errors.push(FieldError::forbidden(
                namespace.path,
                "not allowed on this type",
            ));
        }
        (false, true) => {}
    }
    labels_and_annotations(&meta, &mut errors);
    finalizers(&meta, &mut errors);
    owner_references(&meta, &mut errors);
    errors
}

/// Checks what may not change in the metadata of an object.
pub fn object_meta_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    let (new, old) = (
        At::root(new).field("metadata"),
        At::root(old).field("metadata"),
    );
    labels_and_annotations(&new, &mut errors);
    finalizers(&new, &mut errors);
    owner_references(&new, &mut errors);
    immutable(
        &new,
        &old,
        &["name", "namespace", "uid", "creationTimestamp"],
        &mut errors,
    );
    if old.field("deletionTimestamp").is_present() {
        let before: Vec<&str> = old
            .field("finalizers")
            .items()
            .map(|item| item.text())
            .collect();
        for item in new.field("finalizers").items() {
            if !before.contains(&item.text()) {
                let detail = format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{:?}}}",
                    item.text()
                );
                errors.push(FieldError::forbidden("metadata.finalizers", detail));
            }
        }
    }
    // The identity of an object is never "forbidden", it is simply another value.
    for error in &mut errors {
        if error.detail == super::IMMUTABLE {
            error.kind = crate::field::ErrorKind::Invalid;
            let field = error.path.rsplit('.').next().unwrap_or_default();
            error.value = new.field(field).value.cloned().unwrap_or_default();
        }
    }
    errors
}

/// Keys and values of labels, or of the labels that a selector names.
pub(super) fn labels(labels: &At<'_>, errors: &mut Errors) {
    for (key, value) in labels.entries() {
        if let Some(detail) = name::qualified_name(key) {
            errors.push(FieldError::invalid(labels.path.clone(), key, detail));
        }
        if let Some(detail) = value.as_str().and_then(name::label_value) {
            errors.push(FieldError::invalid(
                labels.path.clone(),
                value.clone(),
                detail,
            ));
        }
    }
}

pub(super) fn labels_and_annotations(meta: &At<'_>, errors: &mut Errors) {
    labels(&meta.field("labels"), errors);
    let annotations = meta.field("annotations");
    let mut size = 0;
    for (key, value) in annotations.entries() {
        // Keys of annotations compare without regard to case.
        if let Some(detail) = name::qualified_name(&key.to_ascii_lowercase()) {
            errors.push(FieldError::invalid(annotations.path.clone(), key, detail));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > name::ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(
            annotations.path,
            name::ANNOTATIONS_MAX,
        ));
    }
}

fn finalizers(meta: &At<'_>, errors: &mut Errors) {
    let list = meta.field("finalizers");
    for item in list.items() {
        let text = item.text();
        if let Some(detail) = name::qualified_name(text) {
            errors.push(FieldError::invalid(item.path, text, detail));
        } else if !text.contains('/') && !STANDARD_FINALIZERS.contains(&text) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(item.path, text, detail));
        }
    }
    let has = |word: &str| list.items().any(|item| item.text() == word);
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizers foregroundDeletion and orphan cannot be both set";
        errors.push(FieldError::invalid(list.path, Value::Null, detail));
    }
}

fn owner_references(meta: &At<'_>, errors: &mut Errors) {
    let list = meta.field("ownerReferences");
    let mut controllers = 0;
    for item in list.items() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            let field = item.field(field);
            if field.is_empty() {
                errors.push(FieldError::invalid(field.path, "", "must not be empty"));
            }
        }
        if item.field("controller").value.and_then(Value::as_bool) == Some(true) {
            controllers += 1;
        }
    }
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true";
        errors.push(FieldError::invalid(list.path, Value::Null, detail));
    }
}
