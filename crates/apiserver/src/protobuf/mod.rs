//! Decoding of protobuf request bodies of built-in kinds.
//!
//! `kubectl create namespace`, `kubectl auth can-i` and Go controllers send the built-in kinds only as protobuf, and take a refusal as
//! final. A body is the magic `k8s\0` and an envelope (kind, raw message). [`decode_object`] turns it into the JSON form of the object,
//! driven by the tables in `kinds`; `wire` reads the encoding. Answers are JSON, which every such client accepts.

mod kinds;
mod wire;

use base64::Engine;
use kinds::{Field, Message, Type};
use serde_json::{Map, Value};
use wire::{Reader, Wire};

/// Start of every protobuf body.
pub const MAGIC: [u8; 4] = *b"k8s\0";

/// Elements of one repeated field or map, so that a body of empty elements cannot grow without bound.
pub const ELEMENTS_MAX: usize = 100_000;

/// Why a protobuf body cannot be decoded (400; 415 for an unknown kind).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the body does not begin with the protobuf magic")]
    Magic,
    #[error("no protobuf form of {api_version}, Kind={kind} is known")]
    Kind { api_version: String, kind: String },
    #[error("the message ends in the middle of {0}")]
    Truncated(&'static str),
    #[error("field {0} has a wrong wire type")]
    WireType(&'static str),
    #[error("field {0} is not UTF-8")]
    Utf8(&'static str),
    #[error("field {0} has more than {ELEMENTS_MAX} elements")]
    Elements(&'static str),
    #[error("field {0} holds an impossible time")]
    Time(&'static str),
    #[error("field {0} holds no JSON")]
    Json(&'static str),
    /// Groups and reserved wire types, which these messages never use.
    #[error("unsupported wire type {0}")]
    Unsupported(u8),
}

/// Decodes a request body to the object it holds, with `apiVersion` and `kind`.
pub fn decode_object(body: &[u8]) -> Result<Value, DecodeError> {
    let envelope = body.strip_prefix(&MAGIC).ok_or(DecodeError::Magic)?;
    let envelope = message(envelope, &kinds::UNKNOWN)?;
    let text = |pointer: &str| {
        let text = Value::Object(envelope.clone())
            .pointer(pointer)?
            .as_str()?
            .to_owned();
        Some(text)
    };
    let api_version = text("/typeMeta/apiVersion").unwrap_or_default();
    let kind = text("/typeMeta/kind").unwrap_or_default();
    // The envelope's table decodes `raw` like any bytes field; read it again unencoded.
    let raw = raw_of(body)?;
    let mut object = if text("/contentType").as_deref() == Some("application/json") {
        match serde_json::from_slice(raw) {
            Ok(Value::Object(object)) => object,
            _ => return Err(DecodeError::Json("raw")),
        }
    } else {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let table = kinds::lookup(group, &kind).ok_or_else(|| DecodeError::Kind {
            api_version: api_version.clone(),
            kind: kind.clone(),
        })?;
        message(raw, table)?
    };
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

/// The message inside the envelope.
fn raw_of(body: &[u8]) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new(body.strip_prefix(&MAGIC).ok_or(DecodeError::Magic)?);
    let mut raw: &[u8] = &[];
    while let Some((number, wire)) = reader.field("envelope")? {
        if let (kinds::UNKNOWN_RAW, Wire::Bytes(bytes)) = (number, wire) {
            raw = bytes;
        }
    }
    Ok(raw)
}

/// Decodes one message along its table. The tables are a tree, so the depth is bounded by them.
fn message(bytes: &[u8], table: &Message) -> Result<Map<String, Value>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut out = Map::new();
    while let Some((number, wire)) = reader.field(table.name)? {
        // Unknown fields are of newer clients; they are skipped as the JSON decoder would prune them.
        let Some(field) = table.fields.iter().find(|field| field.number == number) else {
            continue;
        };
        put(&mut out, field, wire)?;
    }
    Ok(out)
}

fn put(out: &mut Map<String, Value>, field: &Field, wire: Wire<'_>) -> Result<(), DecodeError> {
    match field.kind {
        Type::List(element) => {
            // An empty element counts: position and length of a list are data.
            let value = scalar(field.name, element, wire)?.unwrap_or_else(|| element.zero());
            let list = out
                .entry(field.name)
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                if list.len() >= ELEMENTS_MAX {
                    return Err(DecodeError::Elements(field.name));
                }
                list.push(value);
            }
        }
        Type::Map(element) => {
            let (key, value) = map_entry(field.name, element, wire)?;
            let map = out
                .entry(field.name)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                if map.len() >= ELEMENTS_MAX {
                    return Err(DecodeError::Elements(field.name));
                }
                map.insert(key, value);
            }
        }
        kind => {
            match scalar(field.name, &kind, wire)? {
                // A message given in pieces is merged, as the format wants.
                Some(Value::Object(piece)) => match out.get_mut(field.name) {
                    Some(Value::Object(whole)) => whole.extend(piece),
                    _ => drop(out.insert(field.name.into(), Value::Object(piece))),
                },
                Some(value) => drop(out.insert(field.name.into(), value)),
                // Go writes the zero value of every plain field; JSON leaves it out.
                None => drop(out.remove(field.name)),
            }
        }
    }
    Ok(())
}

/// One value; `None` when it is the zero value of a field that has no way to be absent.
fn scalar(name: &'static str, kind: &Type, wire: Wire<'_>) -> Result<Option<Value>, DecodeError> {
    let bytes = match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        Wire::Varint(_) | Wire::Fixed => Err(DecodeError::WireType(name)),
    };
    let varint = match wire {
        Wire::Varint(value) => Ok(value),
        Wire::Bytes(_) | Wire::Fixed => Err(DecodeError::WireType(name)),
    };
    let text = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Utf8(name))?;
        Ok(text.to_owned())
    };
    Ok(match kind {
        Type::Text => Some(text(bytes?)?)
            .filter(|text| !text.is_empty())
            .map(Value::from),
        Type::TextPointer => Some(text(bytes?)?.into()),
        Type::Bytes => Some(
            base64::engine::general_purpose::STANDARD
                .encode(bytes?)
                .into(),
        ),
        // Negative numbers are sign-extended to 64 bits on the wire.
        Type::Int => Some(varint?.cast_signed())
            .filter(|number| *number != 0)
            .map(Value::from),
        Type::IntPointer => Some(varint?.cast_signed().into()),
        Type::Bool => (varint? != 0).then_some(Value::Bool(true)),
        Type::BoolPointer => Some(Value::Bool(varint? != 0)),
        Type::Time => time(name, bytes?, 0)?,
        Type::MicroTime => time(name, bytes?, 6)?,
        Type::Fields => {
            let inner = message(bytes?, &kinds::RAW)?;
            let encoded = inner.get("raw").and_then(Value::as_str).unwrap_or_default();
            let json = base64::engine::general_purpose::STANDARD.decode(encoded);
            let json = json
                .ok()
                .and_then(|json| serde_json::from_slice(&json).ok());
            Some(json.ok_or(DecodeError::Json(name))?)
        }
        Type::Items => {
            let inner = message(bytes?, &kinds::ITEMS)?;
            Some(
                inner
                    .get("items")
                    .cloned()
                    .unwrap_or_else(|| Value::Array(Vec::new())),
            )
        }
        Type::Message(table) => Some(message(bytes?, table)?)
            .filter(|fields| !fields.is_empty())
            .map(Value::Object),
        Type::List(_) | Type::Map(_) => return Err(DecodeError::WireType(name)),
    })
}

fn map_entry(
    name: &'static str,
    element: &Type,
    wire: Wire<'_>,
) -> Result<(String, Value), DecodeError> {
    let Wire::Bytes(bytes) = wire else {
        return Err(DecodeError::WireType(name));
    };
    let mut reader = Reader::new(bytes);
    let (mut key, mut value) = (String::new(), element.zero());
    while let Some((number, wire)) = reader.field(name)? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => {
                key = std::str::from_utf8(bytes)
                    .map_err(|_| DecodeError::Utf8(name))?
                    .to_owned();
            }
            (2, wire) => value = scalar(name, element, wire)?.unwrap_or_else(|| element.zero()),
            _ => {}
        }
    }
    Ok((key, value))
}

/// RFC 3339 in UTC with `precision` digits of a second; an absent or zero message is no time.
fn time(name: &'static str, bytes: &[u8], precision: u8) -> Result<Option<Value>, DecodeError> {
    let fields = message(bytes, &kinds::TIMESTAMP)?;
    let number = |name: &str| fields.get(name).and_then(Value::as_i64).unwrap_or_default();
    let (seconds, nanos) = (number("seconds"), number("nanos"));
    if (seconds, nanos) == (0, 0) {
        return Ok(None);
    }
    let nanos = i32::try_from(nanos).map_err(|_| DecodeError::Time(name))?;
    let stamp = jiff::Timestamp::new(seconds, nanos).map_err(|_| DecodeError::Time(name))?;
    let printer = jiff::fmt::temporal::DateTimePrinter::new().precision(Some(precision));
    Ok(Some(printer.timestamp_to_string(&stamp).into()))
}
