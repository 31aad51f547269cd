//! Field errors: which field of an object is wrong, and how, in the words of Kubernetes.
//!
//! A validation returns all errors of an object at once, sorted by path, so that a user repairs a
//! manifest in one go.

use std::fmt;

use serde_json::Value;

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// The field must be given.
    Required,
    /// The value has a wrong form.
    Invalid,
    /// The value has a wrong type.
    TypeInvalid,
    /// The value is not one of the allowed words.
    NotSupported,
    /// The value may occur once only.
    Duplicate,
    /// The field may not be given or changed.
    Forbidden,
    /// The value is too long.
    TooLong,
    /// The list is too long.
    TooMany,
}

impl ErrorKind {
    /// `reason` of a cause in a Kubernetes `Status`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }
}

/// A place in a document, as a chain to its root: walking costs nothing, the text is made only when somebody must be told.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// The document itself.
    Root,
    /// A field of an object, or an entry of a map.
    Field(&'a Place<'a>, &'a str),
    /// An element of a list.
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Place::Root => Ok(()),
            Place::Item(list, index) => write!(f, "{list}[{index}]"),
            // Map keys such as label names hold dots, so Kubernetes writes them in brackets.
            Place::Field(object, name) if !is_plain(name) => write!(f, "{object}[{name}]"),
            Place::Field(Place::Root, name) => f.write_str(name),
            Place::Field(object, name) => write!(f, "{object}.{name}"),
        }
    }
}

fn is_plain(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'$')
}

/// One wrong field. The caller repairs the object; retrying the same object is useless.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path of the field, `spec.ips[0].value`.
    pub path: String,
    /// What is wrong.
    pub kind: ErrorKind,
    /// The wrong value; `Null` where it says nothing.
    pub value: Value,
    /// Text for a human; may be empty.
    pub detail: String,
}

impl FieldError {
    /// The field must be given.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            kind: ErrorKind::Required,
            value: Value::Null,
            detail: detail.into(),
        }
    }
    /// The value has a wrong form.
    pub fn invalid(
        path: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            path: path.into(),
            kind: ErrorKind::Invalid,
            value: value.into(),
            detail: detail.into(),
        }
    }
    /// The field may not be given or changed.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            kind: ErrorKind::Forbidden,
            value: Value::Null,
            detail: detail.into(),
        }
    }
    /// The value may occur once only.
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            path: path.into(),
            kind: ErrorKind::Duplicate,
            value: value.into(),
            detail: String::new(),
        }
    }
    /// The value is not one of `allowed`.
    pub fn not_supported(
        path: impl Into<String>,
        value: impl Into<Value>,
        allowed: &[&str],
    ) -> Self {
        let mut words: Vec<String> = allowed.iter().map(|word| format!("{word:?}")).collect();
        words.sort();
        Self {
            path: path.into(),
            kind: ErrorKind::NotSupported,
            value: value.into(),
            detail: format!("supported values: {}", words.join(", ")),
        }
    }
    /// The value is longer than `max` bytes.
    pub fn too_long(path: impl Into<String>, max: usize) -> Self {
        let detail = format!("may not be more than {max} bytes");
        Self {
            path: path.into(),
            kind: ErrorKind::TooLong,
            value: Value::Null,
            detail,
        }
    }
    /// The list has `len` items, which is more than `max`.
    pub fn too_many(path: impl Into<String>, len: usize, max: usize) -> Self {
        let detail = format!("must have at most {max} items");
        Self {
            path: path.into(),
            kind: ErrorKind::TooMany,
            value: len.into(),
            detail,
        }
    }

    /// The message without the path, as it stands in a cause of a `Status`.
    pub fn message(&self) -> String {
        let Self {
            path: _,
            kind,
            value,
            detail,
        } = self;
        let head = match kind {
            ErrorKind::Required | ErrorKind::Forbidden | ErrorKind::TooLong => {
                kind.text().to_owned()
            }
            ErrorKind::Invalid
            | ErrorKind::TypeInvalid
            | ErrorKind::NotSupported
            | ErrorKind::Duplicate
            | ErrorKind::TooMany => {
                // serde_json prints strings quoted and escaped, which is how Go's %q shows them.
                format!("{}: {value}", kind.text())
            }
        };
        if detail.is_empty() {
            head
        } else {
            format!("{head}: {detail}")
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message())
    }
}

/// Sorts errors by path (indexes as numbers). Schema and rules may report the same mistake; the report
/// with the longest text stays.
pub fn sorted(mut errors: Vec<FieldError>) -> Vec<FieldError> {
    errors.sort_by(|a, b| {
        key(&a.path)
            .cmp(&key(&b.path))
            .then(a.kind.cmp(&b.kind))
            .then_with(|| a.value.to_string().cmp(&b.value.to_string()))
            .then(b.detail.len().cmp(&a.detail.len()))
            .then_with(|| a.detail.cmp(&b.detail))
    });
    let same =
        |a: &FieldError, b: &FieldError| a.path == b.path && a.kind == b.kind && a.value == b.value;
    errors.dedup_by(|later, earlier| same(later, earlier));
    errors
}

/// Splits a path so that `ips[10]` sorts behind `ips[9]`.
fn key(path: &str) -> Vec<(String, usize)> {
    path.split(['.', '['])
        .map(
            |part| match part.strip_suffix(']').and_then(|index| index.parse().ok()) {
                Some(index) => (String::new(), index),
                None => (part.to_owned(), 0),
            },
        )
        .collect()
}

/// The text of several errors as Kubernetes puts it into the message of a 422 answer.
pub fn summary(errors: &[FieldError]) -> String {
    match errors {
        [one] => one.to_string(),
        many => {
            let all: Vec<String> = many.iter().map(FieldError::to_string).collect();
            format!("[{}]", all.join(", "))
        }
    }
}
