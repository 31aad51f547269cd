//! Validation that the schema cannot express: rules over several fields, names, immutability.
//!
//! All rules work on JSON, not on the typed structs: a value with one wrong field must still be checked
//! everywhere else, so that a user learns of all mistakes at once. The schema walk
//! ([`crate::schema::Schema::validate`]) has reported wrong types, words and addresses; the rules here
//! treat such a value as absent and stay silent about it.

pub mod apinet;
pub mod apinet_services;
pub mod certificates;
pub mod compute;
pub mod ipam;
mod meta;
pub mod metalnet;
pub mod name;
pub mod networking;
pub mod networking_services;

use std::collections::HashSet;

use serde_json::Value;

use crate::field::FieldError;
use crate::meta::{Ip, IpFamily, IpPrefix};

pub use meta::{object_meta, object_meta_update};
pub use name::{dns_label, dns_subdomain};

/// Text of every immutability violation.
pub const IMMUTABLE: &str = "field is immutable";

/// The errors of one run.
pub type Errors = Vec<FieldError>;

/// A place in an object: its path and the value there, if any.
#[derive(Clone, Debug)]
pub struct At<'a> {
    /// Path from the root, `spec.ips[0]`.
    pub path: String,
    /// The value; `None` when absent or null.
    pub value: Option<&'a Value>,
}

impl<'a> At<'a> {
    /// The object itself.
    pub fn root(value: &'a Value) -> Self {
        Self {
            path: String::new(),
            value: Some(value),
        }
    }

    /// A field of this object, present or not.
    pub fn field(&self, name: &str) -> At<'a> {
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        };
        let value = self
            .value
            .and_then(|value| value.get(name))
            .filter(|value| !value.is_null());
        At { path, value }
    }

    /// The elements of this array; none when it is no array.
    pub fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let list = self
            .value
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        list.iter().enumerate().map(move |(i, value)| At {
            path: format!("{path}[{i}]"),
            value: Some(value),
        })
    }

    /// The fields of this object.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.value
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.as_str(), v))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.value.and_then(Value::as_array).map_or(0, Vec::len)
    }

    /// True when there is nothing: absent, or an empty text, list or object.
    pub fn is_empty(&self) -> bool {
        match self.value {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Bool(_) | Value::Number(_)) => false,
        }
    }

    /// True when the field is there, even if it is an empty object.
    pub fn is_present(&self) -> bool {
        self.value.is_some()
    }

    /// The text here; empty when absent.
    pub fn text(&self) -> &'a str {
        self.value.and_then(Value::as_str).unwrap_or_default()
    }

    /// The whole number here.
    pub fn int(&self) -> Option<i64> {
        self.value.and_then(Value::as_i64)
    }

    /// The address here.
    pub fn ip(&self) -> Option<Ip> {
        self.text().parse().ok()
    }

    /// The prefix here.
    pub fn prefix(&self) -> Option<IpPrefix> {
        self.text().parse().ok()
    }

    /// The address family here.
    pub fn family(&self) -> Option<IpFamily> {
        IpFamily::ALL
            .iter()
            .copied()
            .find(|family| family.as_str() == self.text())
    }
}

/// Two values mean the same: absent equals empty, and addresses compare by value.
pub fn same(a: &At<'_>, b: &At<'_>) -> bool {
    same_value(a.value, b.value)
}

fn same_value(a: Option<&Value>, b: Option<&Value>) -> bool {
    let empty = |value: Option<&Value>| {
        At {
            path: String::new(),
            value,
        }
        .is_empty()
    };
    match (a, b) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => x
            .keys()
            .chain(y.keys())
            .all(|key| same_value(x.get(key), y.get(key))),
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same_value(Some(x), Some(y)))
        }
        (Some(Value::String(x)), Some(Value::String(y))) if x != y => {
            let ips = (x.parse::<Ip>(), y.parse::<Ip>());
            let prefixes = (x.parse::<IpPrefix>(), y.parse::<IpPrefix>());
            matches!(ips, (Ok(x), Ok(y)) if x == y) || matches!(prefixes, (Ok(x), Ok(y)) if x == y)
        }
        (a, b) => a == b || (empty(a) && empty(b)),
    }
}

/// The fields may not change.
pub fn immutable(new: &At<'_>, old: &At<'_>, fields: &[&str], errors: &mut Errors) {
    for name in fields {
        let (new, old) = (new.field(name), old.field(name));
        if !same(&new, &old) {
            errors.push(FieldError::forbidden(new.path, IMMUTABLE));
        }
    }
}

/// The fields may be set once and then not change.
pub fn set_once(new: &At<'_>, old: &At<'_>, fields: &[&str], errors: &mut Errors) {
    for name in fields {
        let (new, old) = (new.field(name), old.field(name));
        if !old.is_empty() && !same(&new, &old) {
            errors.push(FieldError::forbidden(
                new.path,
                "field is immutable once set",
            ));
        }
    }
}

/// The text must satisfy `rule`, one of the checks of [`name`].
pub fn syntax(at: &At<'_>, rule: fn(&str) -> Option<String>, errors: &mut Errors) {
    if let Some(detail) = at.value.and_then(Value::as_str).and_then(rule) {
        errors.push(FieldError::invalid(at.path.clone(), at.text(), detail));
    }
}

/// A reference `{name}` must be there and name a possible object.
pub fn reference(at: &At<'_>, rule: fn(&str) -> Option<String>, errors: &mut Errors) {
    let name = at.field("name");
    if !at.is_present() {
        errors.push(FieldError::required(at.path.clone(), ""));
    } else if name.is_empty() {
        errors.push(FieldError::required(name.path, ""));
    } else {
        syntax(&name, rule, errors);
    }
}

/// The field must be there and not be empty.
pub fn required(at: &At<'_>, errors: &mut Errors) {
    if at.is_empty() {
        errors.push(FieldError::required(at.path.clone(), ""));
    }
}

/// Every element of the list occurs once.
pub fn unique(list: &At<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for item in list.items() {
        let Some(value) = item.value else { continue };
        if !seen.insert(value.to_string()) {
            errors.push(FieldError::duplicate(item.path, value.clone()));
        }
    }
}

/// A label selector: keys, operators and values must fit together.
pub fn label_selector(at: &At<'_>, errors: &mut Errors) {
    meta::labels(&at.field("matchLabels"), errors);
    for item in at.field("matchExpressions").items() {
        let (key, values) = (item.field("key"), item.field("values"));
        syntax(&key, name::qualified_name, errors);
        let operator = item.field("operator");
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(values.path, detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(values.path, detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(
                    operator.path,
                    other,
                    "not a valid selector operator",
                ));
            }
        }
    }
}

/// Metadata of a template may hold labels and annotations only.
pub fn template_meta(at: &At<'_>, errors: &mut Errors) {
    for (key, value) in at.entries() {
        let field = At {
            path: format!("{}.{key}", at.path),
            value: Some(value),
        };
        if !matches!(key, "labels" | "annotations") && !field.is_empty() {
            errors.push(FieldError::forbidden(
                field.path,
                "cannot be set in a template",
            ));
        }
    }
    meta::labels_and_annotations(at, errors);
}

/// Name of the object; empty while the server has not made it up yet.
pub(crate) fn object_name(object: &Value) -> &str {
    object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}
