//! Objects as documents: the stored encoding, metadata access, times and generated names.
//!
//! An object is stored without its resourceVersion, because the revision is known only at commit. The encoding remembers where it
//! belongs, so that the same stored bytes serve every reader: they are spliced with the revision, never parsed and re-encoded.

use crate::nature::Nature;
use crate::store::Rev;
use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Bytes before the JSON: the little-endian offset of the place of the revision.
const HEADER: usize = 4;

/// Room taken for an encoding at first; most objects fit.
const ENCODED_BYTES: usize = 2_048;

/// A stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded(Bytes);

/// The stored bytes are not what [`Encoded::from_value`] writes: a bug or a damaged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("damaged stored object")]
pub struct Damaged;

impl Encoded {
    /// Encodes a document; its resourceVersion is left out.
    pub fn from_value(object: &Value) -> Encoded {
        let empty = Map::new();
        let map = object.as_object().unwrap_or(&empty);
        let mut json = Vec::with_capacity(ENCODED_BYTES);
        json.resize(HEADER, 0);
        json.push(b'{');
        for key in ["apiVersion", "kind"] {
            if let Some(value) = map.get(key) {
                member(&mut json, key, value);
            }
        }
        if json.len() > HEADER + 1 {
            json.push(b',');
        }
        json.extend_from_slice(b"\"metadata\":{\"resourceVersion\":\"");
        let place = json.len() - HEADER;
        json.push(b'"');
        let metadata = map
            .get("metadata")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
            member(&mut json, key, value);
        }
        json.push(b'}');
        for (key, value) in map {
            if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                member(&mut json, key, value);
            }
        }
        json.push(b'}');
        let place = u32::try_from(place).unwrap_or(0).to_le_bytes();
        for (target, byte) in json.iter_mut().zip(place) {
            *target = byte;
        }
        // What is kept for long keeps no spare room.
        json.shrink_to_fit();
        Encoded(json.into())
    }

    /// Takes stored bytes back.
    pub fn restore(stored: Bytes) -> Result<Encoded, Damaged> {
        let encoded = Encoded(stored);
        encoded.parts().map(|_| ()).ok_or(Damaged)?;
        Ok(encoded)
    }

    /// What goes into the store.
    pub fn stored(&self) -> Bytes {
        self.0.clone()
    }

    fn parts(&self) -> Option<(&[u8], &[u8])> {
        let (header, json) = self.0.split_first_chunk::<HEADER>()?;
        json.split_at_checked(u32::from_le_bytes(*header) as usize)
    }

    /// Length of the JSON in bytes, without the revision.
    pub fn len(&self) -> usize {
        self.0.len().saturating_sub(HEADER)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the JSON text with its revision.
    pub fn write(&self, rev: Rev, out: &mut BytesMut) {
        if let Some((before, after)) = self.parts() {
            let mut digits = [0u8; 20];
            out.reserve(self.0.len() + digits.len());
            out.put_slice(before);
            out.put_slice(decimal(rev, &mut digits));
            out.put_slice(after);
        }
    }

    /// The JSON text with its revision.
    pub fn to_json(&self, rev: Rev) -> Bytes {
        let mut out = BytesMut::new();
        self.write(rev, &mut out);
        out.freeze()
    }

    /// The document with its revision.
    pub fn to_value(&self, rev: Rev) -> Value {
        let mut value: Value =
            serde_json::from_slice(self.0.get(HEADER..).unwrap_or_default()).unwrap_or_default();
        set_metadata(&mut value, "resourceVersion", Value::from(rev.to_string()));
        value
    }

    /// The parts of the metadata that selectors and collectors need.
    pub fn head(&self) -> Result<Head, Damaged> {
        #[derive(Deserialize)]
        struct Document {
            metadata: Head,
        }
        let json = self.0.get(HEADER..).unwrap_or_default();
        serde_json::from_slice::<Document>(json)
            .map(|document| document.metadata)
            .map_err(|_| Damaged)
    }
}

fn member(json: &mut Vec<u8>, key: &str, value: &Value) {
    if json.last() != Some(&b'{') {
        json.push(b',');
    }
    // A document has text keys only and a vector takes every byte, so this cannot fail.
    drop(serde_json::to_writer(&mut *json, key));
    json.push(b':');
    drop(serde_json::to_writer(json, value));
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut start = digits.len();
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        start = index;
        if number == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

/// Metadata as far as selectors and collectors need it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Head {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deletion_timestamp: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub block_owner_deletion: bool,
}

/// A member of `metadata`.
pub fn metadata<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get("metadata")?.get(key)
}

/// A text member of `metadata`, empty when absent.
pub fn metadata_text<'a>(object: &'a Value, key: &str) -> &'a str {
    metadata(object, key)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `metadata` as a map; made when the document has none.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let map = object.as_object_mut()?;
    let metadata = map
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut()
}

pub fn set_metadata(object: &mut Value, key: &str, value: Value) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert(key.to_owned(), value);
    }
}

pub fn remove_metadata(object: &mut Value, key: &str) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove(key)
}

/// The strings of `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = metadata(object, "finalizers").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

pub fn set_finalizers(object: &mut Value, finalizers: Vec<Value>) {
    if finalizers.is_empty() {
        remove_metadata(object, "finalizers");
    } else {
        set_metadata(object, "finalizers", Value::Array(finalizers));
    }
}

pub fn is_deleting(object: &Value) -> bool {
    !metadata_text(object, "deletionTimestamp").is_empty()
}

/// Letters of generated names: no vowels, no digits that look like letters, so that no words come out.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Random letters appended by `generateName`.
const NAME_SUFFIX: usize = 5;
/// Longest name that `generateName` makes.
const GENERATED_NAME_MAX: usize = 63;

/// A name from `generateName`: the prefix, cut so that the result fits a label, and five random letters.
pub fn generate_name(prefix: &str, nature: &Nature) -> String {
    let kept: String = prefix
        .chars()
        .take(GENERATED_NAME_MAX - NAME_SUFFIX)
        .collect();
    let suffix = (0..NAME_SUFFIX)
        .filter_map(|_| NAME_LETTERS.get(nature.below(NAME_LETTERS.len() as u128) as usize))
        .map(|letter| char::from(*letter));
    kept.chars().chain(suffix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn encoding_round_trips_and_splices() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "resourceVersion": "7", "labels": {"x": "y"}},
            "data": {"resourceVersion": ""},
        });
        let encoded = Encoded::restore(Encoded::from_value(&object).stored()).expect("own bytes");
        let mut expected = object.clone();
        set_metadata(
            &mut expected,
            "resourceVersion",
            json!("18446744073709551615"),
        );
        assert_eq!(encoded.to_value(u64::MAX), expected);
        assert_eq!(
            serde_json::from_slice::<Value>(&encoded.to_json(u64::MAX)).expect("json"),
            expected
        );
        assert_eq!(
            encoded
                .head()
                .expect("head")
                .labels
                .get("x")
                .map(String::as_str),
            Some("y")
        );
        assert_eq!(
            Encoded::restore(Bytes::from_static(&[9, 0, 0, 0, 1])),
            Err(Damaged)
        );
        assert_eq!(decimal(0, &mut [0; 20]), b"0");
    }
}
