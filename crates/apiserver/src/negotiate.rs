//! Content negotiation: which form of an object a client wants (`Accept`), and in which one it sends (`Content-Type`).

use crate::status::{Failure, Outcome, Reason};
use http::header::{self, HeaderMap};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// The object itself.
    #[default]
    Plain,
    /// Rows and columns, in `meta.k8s.io/v1` or `v1beta1`.
    Table(&'static str),
    /// Metadata only.
    Metadata,
}

/// One entry of an `Accept` header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MediaRange {
    pub media_type: String,
    pub parameters: Vec<(String, String)>,
}

impl MediaRange {
    pub fn parameter(&self, key: &str) -> &str {
        let found = self.parameters.iter().find(|(k, _)| k == key);
        found.map_or("", |(_, value)| value.as_str())
    }

    /// JSON, or a wildcard that includes it.
    pub fn is_json(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/json" | "*/*" | "application/*"
        )
    }
}

/// All entries of the `Accept` headers in order. Quality values are rare and never change the order in practice.
pub fn accept(headers: &HeaderMap) -> Vec<MediaRange> {
    /// Entries that are looked at.
    const RANGES_MAX: usize = 32;
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|range| !range.is_empty())
        .take(RANGES_MAX)
        .map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let pairs = parts.filter_map(|part| part.split_once('='));
            let parameters = pairs
                .map(|(key, value)| (key.into(), value.into()))
                .collect();
            MediaRange {
                media_type,
                parameters,
            }
        })
        .collect()
}

/// The form of an object answer, or 406.
pub fn form(headers: &HeaderMap) -> Outcome<Form> {
    let ranges = accept(headers);
    if ranges.is_empty() {
        return Ok(Form::Plain);
    }
    ranges.iter().find_map(form_of).ok_or_else(not_acceptable)
}

fn form_of(range: &MediaRange) -> Option<Form> {
    if !range.is_json() {
        return None;
    }
    let meta = range.parameter("g") == "meta.k8s.io";
    match (range.parameter("as"), range.parameter("v")) {
        ("", _) => Some(Form::Plain),
        ("Table", "v1") if meta => Some(Form::Table("meta.k8s.io/v1")),
        ("Table", "v1beta1") if meta => Some(Form::Table("meta.k8s.io/v1beta1")),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "v1") if meta => {
            Some(Form::Metadata)
        }
        _ => None,
    }
}

fn not_acceptable() -> Failure {
    Failure::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json",
    )
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// The media type of a body, lower case, without parameters; empty when the client gave none.
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media_type = value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    media_type.trim().to_ascii_lowercase()
}

/// The encoding of an object body. A missing type means JSON: kubectl's `scale` and the Python client send none.
pub fn encoding(headers: &HeaderMap) -> Outcome<Encoding> {
    match content_type(headers).as_str() {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" | "text/yaml" | "application/x-yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        other => Err(unsupported(
            other,
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// 415 with the types that would have been taken.
pub fn unsupported(got: &str, accepted: &str) -> Failure {
    Failure::new(
        Reason::UnsupportedMediaType,
        format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted} (got {got:?})"
        ),
    )
}
