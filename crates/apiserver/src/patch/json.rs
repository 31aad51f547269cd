//! JSON Patch (RFC 6902) with the deviations that Kubernetes clients rely on.
//!
//! They come from the Go library behind the reference API server: `test` against `null` passes on a missing member (finalizer
//! helpers of kube-rs send exactly that), a missing `value` means `null`, and negative array indices count from the end
//! (`-1` is the last element; for `add` the place after it).

use serde_json::Value;

/// Most operations in one patch.
pub const OPERATIONS_MAX: usize = 10_000;
/// Most bytes that `copy` may add to a document, so that a small patch cannot build a huge one.
pub const COPY_BYTES_MAX: usize = 3 << 20;

/// Deepest place that a patch may write. Copying a branch to its own tip would otherwise build a document that no recursive code
/// survives, and that could not be parsed again.
pub const DEPTH_MAX: usize = 120;

/// Why a JSON patch was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonPatchError {
    /// The client's mistake (400): this is no JSON patch.
    #[error("invalid JSON patch: {0}")]
    Malformed(String),
    /// Too large (413).
    #[error("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {0}")]
    TooManyOperations(usize),
    /// Too large (413).
    #[error("The allowed maximum of bytes copied by a JSON patch is {COPY_BYTES_MAX}")]
    CopyTooLarge,
    /// Too deep (422).
    #[error("{op} operation does not apply: {path} would be nested deeper than {DEPTH_MAX} levels")]
    TooDeep { op: &'static str, path: String },
    /// The document is not what the patch expects (422).
    #[error("testing value {0} failed: test failed")]
    TestFailed(String),
    /// The document has no such place (422).
    #[error("{op} operation does not apply: doc is missing path: {path}: missing value")]
    Missing { op: &'static str, path: String },
    /// The array has no such place (422).
    #[error("{op} operation does not apply: unable to access invalid index {index} in {path}")]
    Index {
        op: &'static str,
        path: String,
        index: String,
    },
}

impl JsonPatchError {
    /// Whether the patch itself is bad, whatever the document.
    pub fn is_malformed(&self) -> bool {
        matches!(self, JsonPatchError::Malformed(_))
    }

    /// HTTP status code that tells a client the same.
    pub fn code(&self) -> u16 {
        match self {
            JsonPatchError::Malformed(_) => 400,
            JsonPatchError::TooManyOperations(_) | JsonPatchError::CopyTooLarge => 413,
            JsonPatchError::TestFailed(_)
            | JsonPatchError::TooDeep { .. }
            | JsonPatchError::Missing { .. }
            | JsonPatchError::Index { .. } => 422,
        }
    }
}

#[derive(Debug)]
enum Operation {
    Add { path: Pointer, value: Value },
    Remove { path: Pointer },
    Replace { path: Pointer, value: Value },
    Move { from: Pointer, path: Pointer },
    Copy { from: Pointer, path: Pointer },
    Test { path: Pointer, value: Value },
}

#[derive(Debug)]
struct Pointer {
    text: String,
    /// Unescaped reference tokens (RFC 6901 section 4); empty for the whole document.
    tokens: Vec<String>,
}

impl Pointer {
    fn parse(text: &str) -> Option<Pointer> {
        let tokens = match text.strip_prefix('/') {
            Some(rest) => rest.split('/').map(unescape).collect(),
            None if text.is_empty() => Vec::new(),
            None => return None,
        };
        Some(Pointer {
            text: text.to_owned(),
            tokens,
        })
    }

    /// The parent's tokens and the last one.
    fn split(&self) -> Option<(&str, &[String])> {
        self.tokens
            .split_last()
            .map(|(last, parent)| (last.as_str(), parent))
    }

    fn missing(&self, op: &'static str) -> JsonPatchError {
        JsonPatchError::Missing {
            op,
            path: self.text.clone(),
        }
    }

    fn index(&self, op: &'static str, token: &str) -> JsonPatchError {
        JsonPatchError::Index {
            op,
            path: self.text.clone(),
            index: token.to_owned(),
        }
    }
}

fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// Applies `patch`, an array of operations.
pub fn json_patch(mut document: Value, patch: &Value) -> Result<Value, JsonPatchError> {
    let mut copied = 0;
    for operation in parse(patch)? {
        run(&mut document, operation, &mut copied)?;
    }
    Ok(document)
}

fn parse(patch: &Value) -> Result<Vec<Operation>, JsonPatchError> {
    let malformed = |text: &str| JsonPatchError::Malformed(text.to_owned());
    let list = patch
        .as_array()
        .ok_or_else(|| malformed("not an array of operations"))?;
    if list.len() > OPERATIONS_MAX {
        return Err(JsonPatchError::TooManyOperations(list.len()));
    }
    list.iter().map(operation).collect()
}

fn operation(value: &Value) -> Result<Operation, JsonPatchError> {
    let malformed = |text: String| JsonPatchError::Malformed(text);
    let pointer = |name: &str| {
        let text = value.get(name).and_then(Value::as_str);
        let text = text.ok_or_else(|| malformed(format!("operation without {name:?}")))?;
        Pointer::parse(text)
            .ok_or_else(|| malformed(format!("{name} {text:?} does not begin with \"/\"")))
    };
    let argument = || value.get("value").cloned().unwrap_or(Value::Null);
    let op = value.get("op").and_then(Value::as_str);
    Ok(
        match op.ok_or_else(|| malformed("operation without \"op\"".to_owned()))? {
            "add" => Operation::Add {
                path: pointer("path")?,
                value: argument(),
            },
            "remove" => Operation::Remove {
                path: pointer("path")?,
            },
            "replace" => Operation::Replace {
                path: pointer("path")?,
                value: argument(),
            },
            "move" => Operation::Move {
                from: pointer("from")?,
                path: pointer("path")?,
            },
            "copy" => Operation::Copy {
                from: pointer("from")?,
                path: pointer("path")?,
            },
            "test" => Operation::Test {
                path: pointer("path")?,
                value: argument(),
            },
            other => return Err(malformed(format!("Unexpected kind: {other}"))),
        },
    )
}

fn run(
    document: &mut Value,
    operation: Operation,
    copied: &mut usize,
) -> Result<(), JsonPatchError> {
    match operation {
        Operation::Add { path, value } => add(document, &path, value, "add"),
        Operation::Remove { path } => remove(document, &path, "remove").map(drop),
        Operation::Replace { path, value } => {
            let place = find_mut(document, &path.tokens).ok_or_else(|| path.missing("replace"))?;
            if path.tokens.len() + depth(&value) > DEPTH_MAX {
                return Err(JsonPatchError::TooDeep {
                    op: "replace",
                    path: path.text,
                });
            }
            *place = value;
            Ok(())
        }
        Operation::Move { from, path } => {
            let inside =
                path.tokens.len() > from.tokens.len() && path.tokens.starts_with(&from.tokens);
            if inside {
                // RFC 6902 section 4.4: a location cannot be moved into one of its children.
                return Err(path.missing("move"));
            }
            let value = remove(document, &from, "move")?;
            add(document, &path, value, "move")
        }
        Operation::Copy { from, path } => {
            let value = find(document, &from.tokens)
                .ok_or_else(|| from.missing("copy"))?
                .clone();
            *copied = copied.saturating_add(size(&value));
            if *copied > COPY_BYTES_MAX {
                return Err(JsonPatchError::CopyTooLarge);
            }
            add(document, &path, value, "copy")
        }
        Operation::Test { path, value } => match find(document, &path.tokens) {
            Some(found) if equal(found, &value) => Ok(()),
            None if value.is_null() => Ok(()),
            _ => Err(JsonPatchError::TestFailed(path.text)),
        },
    }
}

/// Equality as RFC 6902 section 4.6 wants it: numbers compare by value.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// Levels of nesting. Parsed bodies and patched documents are both bounded, so the recursion is.
fn depth(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
    }
}

/// Rough number of bytes of a value.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(size).sum::<usize>(),
        Value::Object(map) => {
            2 + map
                .iter()
                .map(|(k, v)| k.len() + 4 + size(v))
                .sum::<usize>()
        }
    }
}

/// The place that an existing element's token means in an array of `len`.
fn position(token: &str, len: usize) -> Option<usize> {
    let index: i64 = token.parse().ok()?;
    let index = if index < 0 {
        index.checked_add(i64::try_from(len).ok()?)?
    } else {
        index
    };
    usize::try_from(index).ok().filter(|index| *index < len)
}

fn find<'v>(value: &'v Value, tokens: &[String]) -> Option<&'v Value> {
    tokens.iter().try_fold(value, |value, token| match value {
        Value::Object(map) => map.get(token),
        Value::Array(items) => items.get(position(token, items.len())?),
        _ => None,
    })
}

fn find_mut<'v>(value: &'v mut Value, tokens: &[String]) -> Option<&'v mut Value> {
    tokens.iter().try_fold(value, |value, token| match value {
        Value::Object(map) => map.get_mut(token),
        Value::Array(items) => {
            let index = position(token, items.len())?;
            items.get_mut(index)
        }
        _ => None,
    })
}

fn add(
    document: &mut Value,
    path: &Pointer,
    value: Value,
    op: &'static str,
) -> Result<(), JsonPatchError> {
    if path.tokens.len() + depth(&value) > DEPTH_MAX {
        return Err(JsonPatchError::TooDeep {
            op,
            path: path.text.clone(),
        });
    }
    let Some((last, parent)) = path.split() else {
        *document = value;
        return Ok(());
    };
    match find_mut(document, parent).ok_or_else(|| path.missing(op))? {
        Value::Object(map) => {
            map.insert(last.to_owned(), value);
        }
        Value::Array(items) => {
            // One more place than there are elements: the end is a legal place for `add`.
            let index = match last {
                "-" => Some(items.len()),
                _ => position(last, items.len() + 1),
            };
            items.insert(index.ok_or_else(|| path.index(op, last))?, value);
        }
        _ => return Err(path.missing(op)),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &Pointer, op: &'static str) -> Result<Value, JsonPatchError> {
    let Some((last, parent)) = path.split() else {
        return Ok(document.take());
    };
    match find_mut(document, parent).ok_or_else(|| path.missing(op))? {
        Value::Object(map) => map.remove(last).ok_or_else(|| path.missing(op)),
        Value::Array(items) => {
            let index = position(last, items.len()).ok_or_else(|| path.index(op, last))?;
            Ok(items.remove(index))
        }
        _ => Err(path.missing(op)),
    }
}
