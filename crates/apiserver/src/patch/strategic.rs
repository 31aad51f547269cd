//! Strategic merge patch for built-in kinds, driven by the schema's list types.
//!
//! A list whose schema says "map" merges element by element on its first key, a "set" of scalars takes the union, everything
//! else behaves as in a merge patch. The directives of the format are honoured: `$patch` (replace, delete, merge),
//! `$retainKeys`, `$deleteFromPrimitiveList/<field>` and `$setElementOrder/<field>`.

use api::schema::{ListType, Schema};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Why a strategic merge patch was refused (400).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrategicError {
    #[error("unknown patch directive {0:?}")]
    Directive(String),
    #[error("{0}: element of the patch has no merge key {1:?}")]
    MergeKey(String, String),
    #[error("{0} must be a list")]
    NotAList(String),
    #[error("document and patch must be objects")]
    NotAnObject,
}

/// The document after the patch.
pub fn strategic(document: Value, patch: &Value, schema: &Schema) -> Result<Value, StrategicError> {
    let (Value::Object(document), Value::Object(patch)) = (document, patch) else {
        return Err(StrategicError::NotAnObject);
    };
    Ok(object(&document, patch, Some(schema))?.map_or(Value::Null, Value::Object))
}

fn directive(patch: &Map<String, Value>) -> Result<Option<&str>, StrategicError> {
    match patch.get(DIRECTIVE) {
        None => Ok(None),
        Some(Value::String(word)) if matches!(word.as_str(), "replace" | "delete" | "merge") => {
            Ok(Some(word))
        }
        Some(other) => Err(StrategicError::Directive(other.to_string())),
    }
}

fn list<'v>(key: &str, value: &'v Value) -> Result<&'v Vec<Value>, StrategicError> {
    value
        .as_array()
        .ok_or_else(|| StrategicError::NotAList(key.to_owned()))
}

/// Merges objects; `None` when the patch deletes it.
fn object(
    document: &Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<Option<Map<String, Value>>, StrategicError> {
    let mut out = match directive(patch)? {
        Some("delete") => return Ok(None),
        Some("replace") => Map::new(),
        _ => document.clone(),
    };
    if let Some(kept) = patch.get(RETAIN_KEYS) {
        let kept = list(RETAIN_KEYS, kept)?;
        out.retain(|key, _| kept.iter().any(|name| name.as_str() == Some(key)));
    }
    for (key, change) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            let gone = list(key, change)?;
            if let Some(Value::Array(items)) = out.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        } else if !key.starts_with('$') {
            let field = schema.and_then(|schema| schema.field(key));
            match merge(out.get(key), change, field, key)? {
                Some(merged) => out.insert(key.clone(), merged),
                None => out.remove(key),
            };
        }
    }
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(ELEMENT_ORDER) {
            let order = list(key, order)?;
            let merge_key = schema
                .and_then(|schema| schema.field(field))
                .and_then(merge_key);
            if let Some(Value::Array(items)) = out.get_mut(field) {
                sort(items, order, merge_key);
            }
        }
    }
    Ok(Some(out))
}

fn merge(
    current: Option<&Value>,
    change: &Value,
    schema: Option<&Schema>,
    name: &str,
) -> Result<Option<Value>, StrategicError> {
    match (current, change) {
        (_, Value::Null) => Ok(None),
        (Some(Value::Object(current)), Value::Object(change)) => {
            Ok(object(current, change, schema)?.map(Value::Object))
        }
        (_, Value::Object(change)) => Ok(object(&Map::new(), change, schema)?.map(Value::Object)),
        (current, Value::Array(change)) => {
            let empty = Vec::new();
            let current = current.and_then(Value::as_array).unwrap_or(&empty);
            array(current, change, schema, name).map(|items| Some(Value::Array(items)))
        }
        _ => Ok(Some(change.clone())),
    }
}

fn merge_key(schema: &Schema) -> Option<&str> {
    match &schema.list_type {
        ListType::Map(keys) => keys.first().map(String::as_str),
        ListType::Atomic | ListType::Set => None,
    }
}

fn array(
    current: &[Value],
    change: &[Value],
    schema: Option<&Schema>,
    name: &str,
) -> Result<Vec<Value>, StrategicError> {
    match schema.map(|schema| &schema.list_type) {
        Some(ListType::Set) => {
            let mut out = current.to_vec();
            for item in change {
                if !out.contains(item) {
                    out.push(item.clone());
                }
            }
            Ok(out)
        }
        Some(ListType::Map(keys)) if !keys.is_empty() => {
            let items = schema.and_then(|schema| schema.items.as_deref());
            keyed(current, change, &keys[0], items, name)
        }
        _ => Ok(change.to_vec()),
    }
}

fn keyed(
    current: &[Value],
    change: &[Value],
    key: &str,
    items: Option<&Schema>,
    name: &str,
) -> Result<Vec<Value>, StrategicError> {
    let is_replace = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str) == Some("replace");
    // `[{"$patch": "replace"}, …]` replaces the whole list by the other elements.
    let replace_all = change
        .iter()
        .any(|item| is_replace(item) && item.get(key).is_none());
    let mut out = if replace_all {
        Vec::new()
    } else {
        current.to_vec()
    };
    for item in change {
        let Some(patch) = item.as_object() else {
            return Err(StrategicError::MergeKey(name.to_owned(), key.to_owned()));
        };
        let Some(id) = patch.get(key) else {
            if is_replace(item) {
                continue;
            }
            return Err(StrategicError::MergeKey(name.to_owned(), key.to_owned()));
        };
        let place = out.iter().position(|item| item.get(key) == Some(id));
        let empty = Map::new();
        let before = place
            .and_then(|place| out.get(place))
            .and_then(Value::as_object);
        match (object(before.unwrap_or(&empty), patch, items)?, place) {
            (Some(merged), Some(place)) => {
                if let Some(slot) = out.get_mut(place) {
                    *slot = Value::Object(merged);
                }
            }
            (Some(merged), None) => out.push(Value::Object(merged)),
            (None, Some(place)) => drop(out.remove(place)),
            (None, None) => {}
        }
    }
    Ok(out)
}

/// Orders the elements named in `order` that way; the others keep their place relative to what precedes them.
fn sort(items: &mut Vec<Value>, order: &[Value], merge_key: Option<&str>) {
    let rank = |item: &Value| {
        order.iter().position(|wanted| match merge_key {
            Some(key) => wanted.get(key).is_some() && wanted.get(key) == item.get(key),
            None => wanted == item,
        })
    };
    let mut last = 0;
    let mut ranked: Vec<(usize, Value)> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        // An element the order does not name stays behind its predecessor.
        last = rank(&item).unwrap_or(last);
        ranked.push((last, item));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    items.extend(ranked.into_iter().map(|(_, item)| item));
}
