//! Request bodies to documents, with duplicate keys noticed.

use crate::negotiate::Encoding;
use crate::status::{Failure, Outcome};
use api::field::Place;
use serde::de::{Deserialize as _, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Most duplicate keys that are named.
const DUPLICATES_MAX: usize = 32;

/// A decoded body.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// Paths of keys that were given twice; the last one counts.
    pub duplicates: Vec<String>,
}

/// Decodes an object body.
pub fn object(body: &[u8], encoding: Encoding) -> Outcome<Decoded> {
    let decoded = match encoding {
        // The apply media type is YAML, and JSON is YAML; kubectl sends JSON, which decodes faster.
        Encoding::Json | Encoding::Yaml if body.trim_ascii_start().first() == Some(&b'{') => {
            json(body)?
        }
        Encoding::Json => json(body)?,
        Encoding::Yaml => yaml(body)?,
        Encoding::Protobuf => {
            let value = crate::protobuf::decode_object(body).map_err(|error| {
                Failure::bad_request(format!("cannot decode the protobuf body: {error}"))
            })?;
            Decoded {
                value,
                duplicates: Vec::new(),
            }
        }
    };
    if decoded.value.is_object() {
        Ok(decoded)
    } else {
        Err(Failure::bad_request(
            "the object provided is unrecognized: not a JSON object",
        ))
    }
}

/// Decodes JSON.
pub fn json(body: &[u8]) -> Outcome<Decoded> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let node = Node {
        duplicates: &mut duplicates,
        place: Place::Root,
    };
    let value = node
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| {
            Failure::bad_request(format!("the object provided is unrecognized: {error}"))
        })?;
    Ok(Decoded { value, duplicates })
}

fn yaml(body: &[u8]) -> Outcome<Decoded> {
    let bad = |error: String| Failure::bad_request(format!("cannot decode the YAML body: {error}"));
    let text = std::str::from_utf8(body).map_err(|error| bad(error.to_string()))?;
    let value = serde_saphyr::from_str::<Value>(text).map_err(|error| bad(error.to_string()))?;
    Ok(Decoded {
        value,
        duplicates: Vec::new(),
    })
}

struct Node<'a> {
    duplicates: &'a mut Vec<String>,
    place: Place<'a>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let Node { duplicates, place } = self;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Node {
            duplicates: &mut *duplicates,
            place: Place::Item(&place, items.len()),
        })? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let Node { duplicates, place } = self;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let place = Place::Field(&place, &key);
            if map.contains_key(&key) && duplicates.len() < DUPLICATES_MAX {
                duplicates.push(place.to_string());
            }
            let value = access.next_value_seed(Node {
                duplicates: &mut *duplicates,
                place,
            })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_named() {
        let decoded = json(br#"{"a":{"b":1,"b":2},"c":[{"d":1,"d":null}]}"#).expect("valid JSON");
        assert_eq!(decoded.value, json!({"a": {"b": 2}, "c": [{"d": null}]}));
        assert_eq!(decoded.duplicates, ["a.b", "c[0].d"]);
        assert!(json(b"{}x").is_err());
        assert!(json("[".repeat(10_000).as_bytes()).is_err());
    }
}
