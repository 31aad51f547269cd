//! What is done to a value along its schema: prune, default, and structural validation.
//!
//! All walks follow the depth of the schema, never the depth of the value, so a deeply nested value
//! cannot exhaust the stack (what lies below an opaque node is not looked at).

use std::collections::HashSet;

use serde_json::Value;

use super::{ListType, Schema, Type};
use crate::field::{ErrorKind, FieldError, Place, sorted};
use crate::meta::{Ip, IpPrefix};

impl Schema {
    /// Removes every field that the schema does not know.
    pub fn prune(&self, value: &mut Value) {
        if self.is_opaque() {
            return;
        }
        match value {
            Value::Object(map) => {
                map.retain(|name, _| self.field(name).is_some());
                for (name, inner) in map {
                    if let Some(schema) = self.field(name) {
                        schema.prune(inner);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    list.iter_mut().for_each(|inner| items.prune(inner));
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Paths of all fields that the schema does not know, in document order: `spec.typo`,
    /// `spec.ips[0].typo`.
    pub fn unknown_fields(&self, value: &Value) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_unknown(value, Place::Root, &mut paths);
        paths
    }

    fn collect_unknown(&self, value: &Value, place: Place<'_>, paths: &mut Vec<String>) {
        if self.is_opaque() {
            return;
        }
        match value {
            Value::Object(map) if self.kind == Type::Object => {
                for (name, inner) in map {
                    let place = Place::Field(&place, name);
                    match self.field(name) {
                        Some(schema) => schema.collect_unknown(inner, place, paths),
                        None => paths.push(place.to_string()),
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (i, inner) in list.iter().enumerate() {
                        items.collect_unknown(inner, Place::Item(&place, i), paths);
                    }
                }
            }
            Value::Object(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_) => {}
        }
    }

    /// Removes fields whose value is `null`: null and absent mean the same, unless the schema says
    /// nullable. Clients send null for "unset" addresses, times and maps.
    pub fn drop_nulls(&self, value: &mut Value) {
        if self.is_opaque() {
            return;
        }
        match value {
            Value::Object(map) => {
                map.retain(|name, inner| {
                    !inner.is_null() || self.field(name).is_some_and(|schema| schema.nullable)
                });
                for (name, inner) in map {
                    if let Some(schema) = self.field(name) {
                        schema.drop_nulls(inner);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    list.iter_mut().for_each(|inner| items.drop_nulls(inner));
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Fills in the defaults that the schema holds. Defaults that look at other fields are in
    /// [`crate::table::KindInfo::default`].
    pub fn apply_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, schema) in &self.properties {
                    if let (Some(default), false) = (&schema.default, map.contains_key(name)) {
                        map.insert(name.clone(), default.clone());
                    }
                }
                for (name, inner) in map {
                    if let Some(schema) = self.field(name) {
                        schema.apply_defaults(inner);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    list.iter_mut()
                        .for_each(|inner| items.apply_defaults(inner));
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Checks types, required fields, words, formats, bounds and the uniqueness of list keys. Unknown
    /// fields are not looked at.
    pub fn validate(&self, value: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.check(value, Place::Root, &mut errors);
        sorted(errors)
    }

    fn check(&self, value: &Value, place: Place<'_>, errors: &mut Vec<FieldError>) {
        if value.is_null() && self.nullable {
            return;
        }
        if let Some(expected) = self.type_mismatch(value) {
            let path = place.to_string();
            let detail = format!(
                "{path} in body must be of type {expected}: {:?}",
                type_name(value)
            );
            let kind = ErrorKind::TypeInvalid;
            let value = Value::String(type_name(value).into());
            errors.push(FieldError {
                path,
                kind,
                value,
                detail,
            });
            return;
        }
        match value {
            Value::Object(map) => {
                for name in &self.required {
                    if !map.contains_key(name) {
                        errors.push(FieldError::required(
                            Place::Field(&place, name).to_string(),
                            "",
                        ));
                    }
                }
                for (name, inner) in map {
                    if let Some(schema) = self.field(name) {
                        schema.check(inner, Place::Field(&place, name), errors);
                    }
                }
            }
            Value::Array(list) => self.check_list(list, place, errors),
            Value::String(text) => self.check_text(text, place, errors),
            Value::Number(number) => {
                if let Some(detail) = self.number_problem(number, place) {
                    let path = place.to_string();
                    errors.push(FieldError::invalid(path, value.clone(), detail));
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn type_mismatch(&self, value: &Value) -> Option<&'static str> {
        if self.int_or_string {
            let fits = value.is_string() || value.is_number();
            return (!fits).then_some("integer,string");
        }
        let fits = match self.kind {
            Type::Any => true,
            Type::Object => value.is_object(),
            Type::Array => value.is_array(),
            Type::String => value.is_string(),
            Type::Integer => {
                value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
            }
            Type::Number => value.is_number(),
            Type::Boolean => value.is_boolean(),
        };
        if fits { None } else { self.kind.as_str() }
    }

    fn check_list(&self, list: &[Value], place: Place<'_>, errors: &mut Vec<FieldError>) {
        if let Some(min) = self.min_items.filter(|min| list.len() < *min) {
            let detail = format!("{place} in body should have at least {min} items");
            errors.push(FieldError::invalid(place.to_string(), list.len(), detail));
        }
        if let Some(max) = self.max_items.filter(|max| list.len() > *max) {
            errors.push(FieldError::too_many(place.to_string(), list.len(), max));
        }
        if let Some(items) = &self.items {
            for (i, inner) in list.iter().enumerate() {
                items.check(inner, Place::Item(&place, i), errors);
            }
        }
        let mut seen = HashSet::new();
        for (i, inner) in list.iter().enumerate() {
            let Some(identity) = self.identity(inner) else {
                continue;
            };
            if !seen.insert(identity.to_string()) {
                // With one key the key itself is named, as Kubernetes does for its own kinds.
                let (path, value) = match (&self.list_type, &identity) {
                    (ListType::Map(keys), Value::Object(map)) if keys.len() == 1 => {
                        let key = keys.first().map_or("", String::as_str);
                        (
                            format!("{place}[{i}].{key}"),
                            map.get(key).cloned().unwrap_or_default(),
                        )
                    }
                    _ => (format!("{place}[{i}]"), identity),
                };
                errors.push(FieldError::duplicate(path, value));
            }
        }
    }

    /// What must be unique about an element of this list.
    fn identity(&self, element: &Value) -> Option<Value> {
        match &self.list_type {
            ListType::Atomic => None,
            ListType::Set => Some(element.clone()),
            ListType::Map(keys) => {
                let map = element.as_object()?;
                let pairs = keys
                    .iter()
                    .filter_map(|key| Some((key.clone(), map.get(key)?.clone())));
                Some(Value::Object(pairs.collect()))
            }
        }
    }

    fn check_text(&self, text: &str, place: Place<'_>, errors: &mut Vec<FieldError>) {
        if !self.words.is_empty() && !self.words.iter().any(|word| word == text) {
            if text.is_empty() {
                errors.push(FieldError::required(place.to_string(), ""));
            } else {
                let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
                errors.push(FieldError::not_supported(place.to_string(), text, &words));
            }
        }
        let problem = match self.format.as_deref() {
            Some("ip") => text
                .parse::<Ip>()
                .err()
                .map(|_| "must be a valid IP address".to_owned()),
            Some("ip-prefix") => text
                .parse::<IpPrefix>()
                .err()
                .map(|_| "must be a valid IP prefix, address/length".to_owned()),
            Some("date-time") => text
                .parse::<k8s_openapi::jiff::Timestamp>()
                .err()
                .map(|_| format!("{place} in body must be of type date-time: {text:?}")),
            _ => None,
        };
        if let Some(detail) = problem {
            errors.push(FieldError::invalid(place.to_string(), text, detail));
        }
    }

    fn number_problem(&self, number: &serde_json::Number, place: Place<'_>) -> Option<String> {
        let (low, high) = match self.format.as_deref() {
            Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
            Some("uint64") => (0, i64::MAX),
            _ => (i64::MIN, i64::MAX),
        };
        let low = self.minimum.unwrap_or(low).max(low);
        let high = self.maximum.unwrap_or(high).min(high);
        if self.kind != Type::Integer {
            return None;
        }
        // `1.0` is a whole number too; one beyond 64 bits is above every bound.
        let n = match (number.as_i64(), number.as_f64()) {
            (Some(n), _) => i128::from(n),
            (None, Some(n)) => n as i128,
            (None, None) => i128::MAX,
        };
        if n < i128::from(low) {
            Some(format!(
                "{place} in body should be greater than or equal to {low}"
            ))
        } else if n > i128::from(high) {
            Some(format!(
                "{place} in body should be less than or equal to {high}"
            ))
        } else {
            None
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
