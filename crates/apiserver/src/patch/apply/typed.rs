//! Walks values along their schema: which paths a value has, what changed, how two values merge, how paths are taken out.

use super::path::{Element, FieldSet};
use api::schema::{ListType, MapType, Schema, Type};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// How a value is divided among owners.
enum Shape<'v, 's> {
    /// A scalar, or something that has one owner as a whole.
    Leaf,
    /// Every field has its own owners.
    Fields(&'v Map<String, Value>),
    /// Every element has its own owners.
    Elements(&'v [Value], ElementRule<'s>),
}

/// How an element of a list is identified.
#[derive(Clone, Copy)]
enum ElementRule<'s> {
    Set,
    Keys(&'s [String], Option<&'s Schema>),
}

impl<'s> ElementRule<'s> {
    fn item_schema(self) -> Option<&'s Schema> {
        match self {
            ElementRule::Set => None,
            ElementRule::Keys(_, items) => items,
        }
    }

    fn element(self, item: &Value) -> Element {
        match self {
            ElementRule::Set => Element::value(item),
            ElementRule::Keys(names, items) => {
                let mut keys = Map::new();
                for name in names {
                    let default = || items.and_then(|items| items.field(name)?.default.clone());
                    if let Some(value) = item.get(name).cloned().or_else(default) {
                        keys.insert(name.clone(), value);
                    }
                }
                Element::key(&keys)
            }
        }
    }
}

/// Fields that no schema declares merge by what they look like: objects by field, lists as a whole.
fn shape<'v, 's>(value: &'v Value, schema: Option<&'s Schema>) -> Shape<'v, 's> {
    match value {
        Value::Object(fields) => match schema {
            Some(schema) if schema.map_type == MapType::Atomic || schema.int_or_string => {
                Shape::Leaf
            }
            _ => Shape::Fields(fields),
        },
        Value::Array(items) => match schema.map(|schema| (&schema.list_type, schema)) {
            Some((ListType::Set, _)) => Shape::Elements(items, ElementRule::Set),
            Some((ListType::Map(keys), schema)) => {
                Shape::Elements(items, ElementRule::Keys(keys, schema.items.as_deref()))
            }
            Some((ListType::Atomic, _)) | None => Shape::Leaf,
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Shape::Leaf,
    }
}

fn field_schema<'s>(schema: Option<&'s Schema>, name: &str) -> Option<&'s Schema> {
    schema.and_then(|schema| schema.field(name))
}

/// Whether `name` is a declared field, as opposed to the key of a map.
fn declared(schema: Option<&Schema>, name: &str) -> bool {
    schema.is_some_and(|schema| schema.properties.contains_key(name))
}

/// A list of an applied configuration that names an element twice, or an element without its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadList {
    pub path: Vec<Element>,
    pub duplicate: bool,
}

/// Finds lists that cannot be merged because an element has no identity of its own.
pub fn check_lists(
    value: &Value,
    schema: Option<&Schema>,
    path: &mut Vec<Element>,
) -> Result<(), BadList> {
    match shape(value, schema) {
        Shape::Leaf => {}
        Shape::Fields(fields) => {
            for (name, field) in fields {
                path.push(Element::Field(name.clone()));
                check_lists(field, field_schema(schema, name), path)?;
                path.pop();
            }
        }
        Shape::Elements(items, rule) => {
            let mut seen = BTreeSet::new();
            for item in items {
                let element = rule.element(item);
                let no_key =
                    matches!(rule, ElementRule::Keys(..)) && element == Element::key(&Map::new());
                path.push(element.clone());
                if no_key || !seen.insert(element) {
                    return Err(BadList {
                        path: std::mem::take(path),
                        duplicate: !no_key,
                    });
                }
                check_lists(item, rule.item_schema(), path)?;
                path.pop();
            }
        }
    }
    Ok(())
}

/// All paths that a configuration speaks about.
pub fn paths_of(value: &Value, schema: Option<&Schema>) -> FieldSet {
    let mut set = FieldSet::default();
    match shape(value, schema) {
        Shape::Leaf => {}
        Shape::Fields(fields) => {
            for (name, field) in fields {
                // `null` asks for absence and owns nothing.
                if field.is_null() {
                    continue;
                }
                let element = Element::Field(name.clone());
                let inner = field_schema(schema, name);
                let child = paths_of(field, inner);
                let leaf = matches!(shape(field, inner), Shape::Leaf);
                let empty = match field {
                    Value::Object(fields) => fields.is_empty(),
                    Value::Array(items) => items.is_empty(),
                    _ => false,
                };
                if leaf || empty || !declared(schema, name) {
                    set.members.insert(element.clone());
                }
                set.put_below(element, child);
            }
        }
        Shape::Elements(items, rule) => {
            for item in items {
                let element = rule.element(item);
                let child = paths_of(item, rule.item_schema());
                set.members.insert(element.clone());
                set.put_below(element, child);
            }
        }
    }
    set
}

/// What differs between two values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    fn put(&mut self, element: &Element, child: Comparison) {
        let pairs = [
            (&mut self.added, child.added),
            (&mut self.modified, child.modified),
            (&mut self.removed, child.removed),
        ];
        for (set, child) in pairs {
            set.put_below(element.clone(), child);
        }
    }
}

/// Paths added, changed and removed from `old` to `new`, containers included.
pub fn compare(old: &Value, new: &Value, schema: Option<&Schema>) -> Comparison {
    let mut out = Comparison::default();
    match (shape(old, schema), shape(new, schema)) {
        (Shape::Fields(old), Shape::Fields(new)) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let element = Element::Field(name.clone());
                let schema = field_schema(schema, name);
                compare_member(&mut out, &element, old.get(name), new.get(name), schema);
            }
        }
        (Shape::Elements(old, rule), Shape::Elements(new, _)) => {
            let (old, new) = (by_element(old, rule), by_element(new, rule));
            let elements: BTreeSet<&Element> = old.keys().chain(new.keys()).collect();
            for element in elements {
                let old = old.get(element).map(Vec::as_slice).unwrap_or_default();
                let new = new.get(element).map(Vec::as_slice).unwrap_or_default();
                if old.len() > 1 || new.len() > 1 {
                    compare_duplicates(&mut out, element, old, new);
                    continue;
                }
                let (old, new) = (old.first().copied(), new.first().copied());
                compare_member(&mut out, element, old, new, rule.item_schema());
            }
        }
        // Kinds differ: everything below the old one goes, everything below the new one comes.
        (_, Shape::Leaf) => out.removed = all_paths(old, schema),
        (Shape::Leaf, _) => out.added = all_paths(new, schema),
        _ => {
            out.removed = all_paths(old, schema);
            out.added = all_paths(new, schema);
        }
    }
    out
}

fn by_element<'v>(items: &'v [Value], rule: ElementRule<'_>) -> BTreeMap<Element, Vec<&'v Value>> {
    let mut out: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for item in items {
        out.entry(rule.element(item)).or_default().push(item);
    }
    out
}

/// Elements that share an identity are compared as a whole.
fn compare_duplicates(out: &mut Comparison, element: &Element, old: &[&Value], new: &[&Value]) {
    let set = match (old, new) {
        ([], _) => &mut out.added,
        (_, []) => &mut out.removed,
        _ if old == new => return,
        _ => &mut out.modified,
    };
    set.members.insert(element.clone());
}

fn compare_member(
    out: &mut Comparison,
    element: &Element,
    old: Option<&Value>,
    new: Option<&Value>,
    schema: Option<&Schema>,
) {
    let (old, new) = (old.filter(|v| !v.is_null()), new.filter(|v| !v.is_null()));
    match (old, new) {
        (None, None) => {}
        (None, Some(new)) => {
            out.added.members.insert(element.clone());
            let child = Comparison {
                added: all_paths(new, schema),
                ..Comparison::default()
            };
            out.put(element, child);
        }
        (Some(old), None) => {
            out.removed.members.insert(element.clone());
            let child = Comparison {
                removed: all_paths(old, schema),
                ..Comparison::default()
            };
            out.put(element, child);
        }
        (Some(old), Some(new)) => {
            if old == new {
                return;
            }
            let (a, b) = (shape(old, schema), shape(new, schema));
            if matches!(a, Shape::Leaf) || matches!(b, Shape::Leaf) {
                out.modified.members.insert(element.clone());
            }
            out.put(element, compare(old, new, schema));
        }
    }
}

/// Every path below a value, containers included.
fn all_paths(value: &Value, schema: Option<&Schema>) -> FieldSet {
    let mut set = FieldSet::default();
    let mut put = |element: Element, value: &Value, schema: Option<&Schema>| {
        let child = all_paths(value, schema);
        set.members.insert(element.clone());
        set.put_below(element, child);
    };
    match shape(value, schema) {
        Shape::Leaf => {}
        Shape::Fields(fields) => {
            for (name, field) in fields.iter().filter(|(_, field)| !field.is_null()) {
                put(
                    Element::Field(name.clone()),
                    field,
                    field_schema(schema, name),
                );
            }
        }
        Shape::Elements(items, rule) => {
            for item in items {
                put(rule.element(item), item, rule.item_schema());
            }
        }
    }
    set
}

/// `live` with everything that `config` says. `null` in the configuration removes the field.
pub fn merge(live: &Value, config: &Value, schema: Option<&Schema>) -> Value {
    match (shape(live, schema), shape(config, schema)) {
        (_, Shape::Leaf) => config.clone(),
        (Shape::Fields(live), Shape::Fields(config)) => {
            let mut out = live.clone();
            merge_fields(&mut out, config, schema);
            Value::Object(out)
        }
        (_, Shape::Fields(config)) => {
            let mut out = Map::new();
            merge_fields(&mut out, config, schema);
            Value::Object(out)
        }
        (Shape::Elements(live, _), Shape::Elements(config, rule)) => {
            Value::Array(merge_elements(live, config, rule))
        }
        (_, Shape::Elements(config, rule)) => Value::Array(merge_elements(&[], config, rule)),
    }
}

fn merge_fields(
    out: &mut Map<String, Value>,
    config: &Map<String, Value>,
    schema: Option<&Schema>,
) {
    for (name, field) in config {
        if field.is_null() {
            out.remove(name);
        } else {
            let live = out.get(name).unwrap_or(&Value::Null);
            let merged = merge(live, field, field_schema(schema, name));
            out.insert(name.clone(), merged);
        }
    }
}

/// Elements of the configuration in its order. Elements that only the live object has keep their place before the shared
/// element they preceded, and come first where nothing says otherwise, so that a new manager's elements are appended.
fn merge_elements(live: &[Value], config: &[Value], rule: ElementRule<'_>) -> Vec<Value> {
    let live_ids: Vec<Element> = live.iter().map(|item| rule.element(item)).collect();
    let config_ids: Vec<Element> = config.iter().map(|item| rule.element(item)).collect();
    let mut first_of: BTreeMap<&Element, &Value> = BTreeMap::new();
    for (id, item) in live_ids.iter().zip(live) {
        first_of.entry(id).or_insert(item);
    }
    let wanted: BTreeSet<&Element> = config_ids.iter().collect();
    let mut done: BTreeSet<&Element> = BTreeSet::new();
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let mut rest = live_ids.iter().zip(live).peekable();
    for (id, item) in config_ids.iter().zip(config) {
        while let Some((id, item)) =
            rest.next_if(|(id, _)| !wanted.contains(id) || done.contains(id))
        {
            if !wanted.contains(id) {
                out.push(item.clone());
            }
        }
        let live = first_of.get(id).copied().unwrap_or(&Value::Null);
        out.push(merge(live, item, rule.item_schema()));
        done.insert(id);
    }
    out.extend(
        rest.filter(|(id, _)| !wanted.contains(id))
            .map(|(_, item)| item.clone()),
    );
    out
}

/// What becomes of a container that lost everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emptied {
    Stays,
    Goes,
}

/// `value` without the paths of `gone`; `None` when nothing of a container is left and it may go.
pub fn remove(
    value: &Value,
    gone: &FieldSet,
    schema: Option<&Schema>,
    emptied: Emptied,
) -> Option<Value> {
    if gone.is_empty() {
        return Some(value.clone());
    }
    let may_go = emptied == Emptied::Goes;
    match shape(value, schema) {
        Shape::Leaf => Some(value.clone()),
        Shape::Fields(fields) => {
            let kept = fields.iter().filter_map(|(name, field)| {
                let element = Element::Field(name.clone());
                let schema = field_schema(schema, name);
                let field = remove_member(&element, field, gone, schema, emptied)?;
                Some((name.clone(), field))
            });
            let kept: Map<String, Value> = kept.collect();
            let goes = may_go && kept.is_empty() && !fields.is_empty();
            (!goes).then_some(Value::Object(kept))
        }
        Shape::Elements(items, rule) => {
            let kept = items.iter().filter_map(|item| {
                let element = rule.element(item);
                let kept = remove_member(&element, item, gone, rule.item_schema(), emptied)?;
                Some(with_keys(kept, item, rule))
            });
            let kept: Vec<Value> = kept.collect();
            let goes = may_go && kept.is_empty() && !items.is_empty();
            (!goes).then_some(Value::Array(kept))
        }
    }
}

/// An element that stays keeps what identifies it.
fn with_keys(mut kept: Value, item: &Value, rule: ElementRule<'_>) -> Value {
    if let (ElementRule::Keys(names, _), Value::Object(kept)) = (rule, &mut kept) {
        for name in names {
            if let Some(value) = item.get(name) {
                kept.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    kept
}

fn remove_member(
    element: &Element,
    value: &Value,
    gone: &FieldSet,
    schema: Option<&Schema>,
    emptied: Emptied,
) -> Option<Value> {
    if gone.members.contains(element) {
        return None;
    }
    match gone.children.get(element) {
        Some(child) => remove(value, child, schema, emptied),
        None => Some(value.clone()),
    }
}

/// Adds the declared fields on the way to each path, so that removing all of a struct's fields removes the struct.
pub fn with_parents(set: &FieldSet, schema: Option<&Schema>) -> FieldSet {
    let mut members = set.members.clone();
    let mut children = BTreeMap::new();
    for (element, child) in &set.children {
        let inner = match element {
            Element::Field(name) => {
                if declared(schema, name) {
                    members.insert(element.clone());
                }
                field_schema(schema, name)
            }
            Element::Key(_) | Element::Value(_) | Element::Index(_) => {
                schema.and_then(|schema| schema.items.as_deref())
            }
        };
        children.insert(element.clone(), with_parents(child, inner));
    }
    FieldSet { members, children }
}

/// Whether the value's type allows field ownership at all.
pub fn is_object(value: &Value, schema: &Schema) -> bool {
    value.is_object() && matches!(schema.kind, Type::Object | Type::Any)
}
