//! How objects leave the server: whole, as metadata, or as table rows; alone, in lists, and as watch events.

use crate::cache::Entry;
use crate::kinds::Kind;
use crate::negotiate::Form;
use crate::object::{self, Encoded};
use crate::registry::read::ListPage;
use crate::store::Rev;
use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::{Value, json};
use std::sync::Arc;

/// What a table row carries beside its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowObject {
    None,
    Metadata,
    Whole,
}

/// The form of an answer about a kind.
#[derive(Debug, Clone)]
pub struct View {
    pub kind: Arc<Kind>,
    pub form: Form,
    pub rows: RowObject,
    /// The group and version as the client spells them, when that is not the canonical spelling.
    pub alias: Option<String>,
}

/// `{"apiVersion":"` begins every stored object.
const API_VERSION_AT: usize = 15;

impl View {
    /// The object with its revision.
    pub fn write_object(&self, encoded: &Encoded, rev: Rev, out: &mut BytesMut) {
        match self.form {
            Form::Plain if self.kind.view.is_none() && rev > 0 => {
                let start = out.len();
                encoded.write(rev, out);
                self.respell(start, out);
            }
            Form::Plain => put(out, &self.value(encoded, rev)),
            Form::Metadata => put(out, &partial(&self.value(encoded, rev))),
            Form::Table(version) => {
                let value = self.value(encoded, rev);
                put(
                    out,
                    &self.table(
                        version,
                        &[value],
                        json!({ "resourceVersion": rev.to_string() }),
                    ),
                );
            }
        }
    }

    pub fn object(&self, encoded: &Encoded, rev: Rev) -> Bytes {
        let mut out = BytesMut::new();
        self.write_object(encoded, rev, &mut out);
        out.freeze()
    }

    /// The document as this view shows it.
    fn value(&self, encoded: &Encoded, rev: Rev) -> Value {
        let mut value = encoded.to_value(rev);
        if let Some(shape) = self.kind.view {
            shape.restore(&mut value);
        }
        if rev == 0 {
            // A dry run: nothing was stored, so there is no revision.
            object::remove_metadata(&mut value, "resourceVersion");
        }
        if let (Some(alias), Some(map)) = (&self.alias, value.as_object_mut()) {
            map.insert("apiVersion".into(), json!(alias));
        }
        value
    }

    /// Puts the client's spelling over the canonical one, which differs in case only.
    fn respell(&self, start: usize, out: &mut BytesMut) {
        if let Some(alias) = &self.alias
            && let Some(place) =
                out.get_mut(start + API_VERSION_AT..start + API_VERSION_AT + alias.len())
            && place.eq_ignore_ascii_case(alias.as_bytes())
        {
            place.copy_from_slice(alias.as_bytes());
        }
    }

    /// One line of a watch.
    pub fn write_event(&self, event: &str, entry: &Entry, rev: Rev, out: &mut BytesMut) {
        out.put_slice(b"{\"type\":\"");
        out.put_slice(event.as_bytes());
        out.put_slice(b"\",\"object\":");
        self.write_object(&entry.encoded, rev, out);
        out.put_slice(b"}\n");
    }

    /// A line that only tells how far the watch has come.
    pub fn write_bookmark(&self, rev: Rev, annotation: Option<&str>, out: &mut BytesMut) {
        let mut metadata = json!({ "resourceVersion": rev.to_string(), "creationTimestamp": null });
        if let (Some(annotation), Some(map)) = (annotation, metadata.as_object_mut()) {
            map.insert("annotations".into(), json!({ annotation: "true" }));
        }
        let object = match self.form {
            Form::Plain => json!({
                "kind": self.kind.kind,
                "apiVersion": self.api_version(),
                "metadata": metadata,
            }),
            Form::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
            }),
            Form::Table(version) => self.table(version, &[], metadata),
        };
        put(out, &json!({ "type": "BOOKMARK", "object": object }));
        out.put_u8(b'\n');
    }

    fn api_version(&self) -> String {
        self.alias
            .clone()
            .unwrap_or_else(|| self.kind.api_version())
    }

    /// A page of a listing.
    pub fn write_list(&self, page: &ListPage, out: &mut BytesMut) {
        let mut metadata = json!({ "resourceVersion": page.rev.to_string() });
        if let (Some(next), Some(map)) = (&page.next, metadata.as_object_mut()) {
            map.insert("continue".into(), json!(next));
            if let Some(remaining) = page.remaining {
                map.insert("remainingItemCount".into(), json!(remaining));
            }
        }
        let (kind, version) = match self.form {
            Form::Plain => (self.kind.list_kind, self.api_version()),
            Form::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
            Form::Table(version) => {
                let values: Vec<Value> = page
                    .entries
                    .iter()
                    .map(|entry| self.value(&entry.encoded, entry.rev))
                    .collect();
                return put(out, &self.table(version, &values, metadata));
            }
        };
        let size: usize = page
            .entries
            .iter()
            .map(|entry| entry.encoded.len() + 24)
            .sum();
        out.reserve(size);
        out.put_slice(b"{\"kind\":");
        put(out, &json!(kind));
        out.put_slice(b",\"apiVersion\":");
        put(out, &json!(version));
        out.put_slice(b",\"metadata\":");
        put(out, &metadata);
        out.put_slice(b",\"items\":[");
        for (index, entry) in page.entries.iter().enumerate() {
            if index > 0 {
                out.put_u8(b',');
            }
            self.write_object(&entry.encoded, entry.rev, out);
        }
        out.put_slice(b"]}");
    }

    fn table(&self, version: &str, objects: &[Value], metadata: Value) -> Value {
        let now = jiff::Timestamp::now();
        let columns: Vec<Value> = self
            .kind
            .info
            .columns
            .iter()
            .map(|column| {
                json!({
                    "name": column.name,
                    // Ages are sent as text, as upstream does.
                    "type": if column.is_age() { "string" } else { column.kind.as_str() },
                    "format": column.format,
                    "description": column.description,
                    "priority": column.priority,
                })
            })
            .collect();
        let rows: Vec<Value> = objects.iter().map(|object| self.row(object, now)).collect();
        json!({
            "kind": "Table",
            "apiVersion": version,
            "metadata": metadata,
            "columnDefinitions": columns,
            "rows": rows,
        })
    }

    fn row(&self, object: &Value, now: jiff::Timestamp) -> Value {
        let cells: Vec<Value> = self
            .kind
            .info
            .columns
            .iter()
            .map(|column| {
                let content = column.content(object);
                if column.is_age() {
                    json!(age(content.as_str(), now))
                } else {
                    content
                }
            })
            .collect();
        let shown = match self.rows {
            RowObject::None => Value::Null,
            RowObject::Metadata => partial(object),
            RowObject::Whole => object.clone(),
        };
        json!({ "cells": cells, "object": shown })
    }
}

fn put(out: &mut BytesMut, value: &Value) {
    // A document has text keys only and the buffer takes every byte, so this cannot fail.
    drop(serde_json::to_writer(out.writer(), value));
}

fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata"),
    })
}

/// Time since a moment in the words of kubectl.
fn age(since: Option<&str>, now: jiff::Timestamp) -> String {
    let Some(moment) = since.and_then(|since| since.parse::<jiff::Timestamp>().ok()) else {
        return "<unknown>".to_owned();
    };
    human_seconds(now.as_second() - moment.as_second())
}

/// A duration with at most two units, as kubectl shows ages.
fn human_seconds(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3_600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let pair = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        i64::MIN..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        _ if years < 2 => format!("{days}d"),
        _ if years < 8 => pair(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::human_seconds;

    #[test]
    fn ages_read_as_in_kubectl() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (700, "11m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (30_000, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (63_072_000, "2y"),
            (315_360_000, "10y"),
        ] {
            assert_eq!(human_seconds(seconds), text, "{seconds}");
        }
    }
}
