//! Field paths and sets of them, and their `FieldsV1` form.

use serde_json::{Map, Value};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// One step from a value to a part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field of an object or an entry of a map.
    Field(String),
    /// An element of a list-map, as the canonical JSON object of its keys.
    Key(String),
    /// An element of a set, as canonical JSON.
    Value(String),
    /// A position in a list. Other implementations write it, ours never does.
    Index(i64),
}

impl Element {
    /// The element of a list-map with these keys.
    pub fn key(keys: &Map<String, Value>) -> Element {
        Element::Key(canonical(&Value::Object(keys.clone())))
    }

    pub fn value(value: &Value) -> Element {
        Element::Value(canonical(value))
    }

    /// The member name in `FieldsV1`.
    fn encode(&self) -> String {
        match self {
            Element::Field(name) => format!("f:{name}"),
            Element::Key(keys) => format!("k:{keys}"),
            Element::Value(value) => format!("v:{value}"),
            Element::Index(index) => format!("i:{index}"),
        }
    }

    fn decode(text: &str) -> Option<Element> {
        let (kind, rest) = text.split_once(':')?;
        let json = || serde_json::from_str::<Value>(rest).ok();
        match kind {
            "f" => Some(Element::Field(rest.to_owned())),
            "k" => json()
                .filter(Value::is_object)
                .map(|keys| Element::Key(canonical(&keys))),
            "v" => json().map(|value| Element::Value(canonical(&value))),
            "i" => rest.parse().ok().map(Element::Index),
            _ => None,
        }
    }

    /// Appends the readable form, as error messages show it.
    fn describe(&self, out: &mut String) {
        match self {
            Element::Field(name) => {
                out.push('.');
                out.push_str(name);
            }
            Element::Key(keys) => {
                out.push('[');
                let keys = serde_json::from_str::<Map<String, Value>>(keys).unwrap_or_default();
                for (index, (name, value)) in keys.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    // Writing to a string cannot fail.
                    let _ = write!(out, "{comma}{name}={value}");
                }
                out.push(']');
            }
            Element::Value(value) => {
                let _ = write!(out, "[={value}]");
            }
            Element::Index(index) => {
                let _ = write!(out, "[{index}]");
            }
        }
    }
}

/// JSON text with sorted members and no spaces, whatever map type serde_json was built with.
fn canonical(value: &Value) -> String {
    let mut out = String::new();
    emit(value, &mut out);
    out
}

fn emit(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push('{');
            for (index, (key, value)) in sorted.into_iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                let _ = write!(out, "{comma}{}:", Value::String(key.clone()));
                emit(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                emit(item, out);
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = write!(out, "{value}");
        }
    }
}

/// The readable form of a path: `.spec.ips[name="a"].ip`.
pub fn describe(path: &[Element]) -> String {
    let mut out = String::new();
    for element in path {
        element.describe(&mut out);
    }
    out
}

/// A set of field paths, as a tree: a path is in the set when its last element is a member of the node before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    pub(super) members: BTreeSet<Element>,
    /// Never holds an empty set.
    pub(super) children: BTreeMap<Element, FieldSet>,
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    pub fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => drop(self.members.insert(last.clone())),
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    pub fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self
                .children
                .get(first)
                .is_some_and(|child| child.has(rest)),
        }
    }

    /// Every path, in order.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<Element>, out: &mut Vec<Vec<Element>>) {
        let all: BTreeSet<&Element> = self.members.iter().chain(self.children.keys()).collect();
        for element in all {
            prefix.push(element.clone());
            if self.members.contains(element) {
                out.push(prefix.clone());
            }
            if let Some(child) = self.children.get(element) {
                child.collect(prefix, out);
            }
            prefix.pop();
        }
    }

    #[must_use]
    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut out = self.clone();
        out.extend(other);
        out
    }

    pub fn extend(&mut self, other: &FieldSet) {
        self.members.extend(other.members.iter().cloned());
        for (element, child) in &other.children {
            self.children
                .entry(element.clone())
                .or_default()
                .extend(child);
        }
    }

    /// Takes in all paths of `other`, which is used up: what is not there yet moves without a copy.
    pub fn absorb(&mut self, mut other: FieldSet) {
        if self.members.is_empty() {
            self.members = other.members;
        } else {
            self.members.append(&mut other.members);
        }
        for (element, child) in other.children {
            self.put_below(element, child);
        }
    }

    /// Takes in paths below an element. An empty set leaves no trace.
    pub fn put_below(&mut self, element: Element, child: FieldSet) {
        if child.is_empty() {
            return;
        }
        match self.children.entry(element) {
            Entry::Vacant(place) => drop(place.insert(child)),
            Entry::Occupied(mut place) => place.get_mut().absorb(child),
        }
    }

    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let members = self.members.intersection(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            let both = child.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        FieldSet {
            members,
            children: children.collect(),
        }
    }

    /// Paths of `self` that are not paths of `other`.
    #[must_use]
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        let members = self.members.difference(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            let rest = match other.children.get(element) {
                Some(other) => child.difference(other),
                None => child.clone(),
            };
            (!rest.is_empty()).then(|| (element.clone(), rest))
        });
        FieldSet {
            members,
            children: children.collect(),
        }
    }

    /// Paths of `self` that are neither in `other` nor below a path of it.
    #[must_use]
    pub fn difference_below(&self, other: &FieldSet) -> FieldSet {
        let members = self.members.difference(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            if other.members.contains(element) {
                return None;
            }
            let rest = match other.children.get(element) {
                Some(other) => child.difference_below(other),
                None => child.clone(),
            };
            (!rest.is_empty()).then(|| (element.clone(), rest))
        });
        FieldSet {
            members,
            children: children.collect(),
        }
    }

    /// The `FieldsV1` object. A path with paths below it carries the member `.` when it is itself in the set.
    pub fn encode(&self) -> Value {
        let mut out = Map::new();
        for element in &self.members {
            out.insert(element.encode(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            let mut node = match child.encode() {
                Value::Object(node) => node,
                _ => Map::new(),
            };
            if self.members.contains(element) {
                node.insert(".".to_owned(), Value::Object(Map::new()));
            }
            out.insert(element.encode(), Value::Object(node));
        }
        Value::Object(out)
    }

    /// Reads a `FieldsV1` object; `None` when it is none.
    pub fn decode(value: &Value) -> Option<FieldSet> {
        let mut set = FieldSet::default();
        for (name, node) in value.as_object()? {
            if name == "." {
                continue;
            }
            let element = Element::decode(name)?;
            let node_map = node.as_object()?;
            let child = FieldSet::decode(node)?;
            if child.is_empty() || node_map.contains_key(".") {
                set.members.insert(element.clone());
            }
            if !child.is_empty() {
                set.children.insert(element, child);
            }
        }
        Some(set)
    }
}
