//! Label and field selectors: grammar and matching.
//!
//! Labels (as in a query string): `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, `a>1`, `a<1`, separated by
//! commas that mean "and". Fields: `a=b`, `a==b`, `a!=b`, with `\\`, `\,` and `\=` escaped in values. Errors name the byte where the
//! parser stopped.

use serde_json::Value;
use std::collections::BTreeSet;

/// Longest selector in bytes.
pub const SELECTOR_BYTES_MAX: usize = 16 << 10;

/// A selector that is none (400).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at position {position}")]
pub struct SelectorError {
    pub problem: String,
    /// Byte offset in the selector.
    pub position: usize,
}

fn error<T>(position: usize, problem: impl Into<String>) -> Result<T, SelectorError> {
    Err(SelectorError {
        problem: problem.into(),
        position,
    })
}

/// What one requirement asks of a label's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    Exists,
    Absent,
    In(BTreeSet<String>),
    /// Also holds when the label is absent.
    NotIn(BTreeSet<String>),
    Greater(i64),
    Less(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub test: Test,
}

/// All requirements must hold; none means everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(pub Vec<Requirement>);

impl LabelSelector {
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return error(SELECTOR_BYTES_MAX, "selector is too long");
        }
        let mut parser = Parser { text, at: 0 };
        let mut requirements = Vec::new();
        parser.skip_space();
        while !parser.rest().is_empty() {
            requirements.push(parser.requirement()?);
            parser.skip_space();
            if parser.rest().is_empty() {
                break;
            }
            if !parser.take(",") {
                return error(
                    parser.at,
                    format!("found {:?}, expected ','", parser.token()),
                );
            }
            parser.skip_space();
            if parser.rest().is_empty() {
                return error(
                    parser.at,
                    "found end of string, expected an identifier after ','",
                );
            }
        }
        Ok(LabelSelector(requirements))
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Matches labels by a lookup function.
    pub fn matches<'l>(&self, label: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.0
            .iter()
            .all(|requirement| requirement.test.holds(label(&requirement.key)))
    }

    /// Matches an object by its `metadata.labels`.
    pub fn matches_object(&self, object: &Value) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let labels = object
            .get("metadata")
            .and_then(|metadata| metadata.get("labels"));
        self.matches(|key| labels?.get(key)?.as_str())
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value?.parse::<i64>().ok();
        match self {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Test::Greater(bound) => number().is_some_and(|number| number > *bound),
            Test::Less(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, Requirement { key, test }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let list = |values: &BTreeSet<String>| {
                values
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(",")
            };
            match test {
                Test::Exists => write!(f, "{key}")?,
                Test::Absent => write!(f, "!{key}")?,
                Test::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values))?,
                Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", list(values))?,
                Test::In(values) => write!(f, "{key} in ({})", list(values))?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", list(values))?,
                Test::Greater(bound) => write!(f, "{key}>{bound}")?,
                Test::Less(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        self.at = self.text.len()
            - self
                .rest()
                .trim_start_matches([' ', '\t', '\r', '\n'])
                .len();
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// What stands here, for messages.
    fn token(&self) -> &'t str {
        let rest = self.rest();
        let end = rest.find([' ', ',', ')']).filter(|end| *end > 0);
        rest.get(..end.unwrap_or_else(|| rest.chars().next().map_or(0, char::len_utf8)))
            .unwrap_or_default()
    }

    /// Everything up to the next space or special character.
    fn word(&mut self) -> &'t str {
        let rest = self.rest();
        let special = |c: char| {
            matches!(
                c,
                ' ' | '\t' | '\r' | '\n' | ',' | '(' | ')' | '=' | '!' | '<' | '>'
            )
        };
        let end = rest.find(special).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let negated = self.take("!");
        self.skip_space();
        let key = self.key()?;
        if negated {
            return Ok(Requirement {
                key,
                test: Test::Absent,
            });
        }
        self.skip_space();
        let test = self.test()?;
        Ok(Requirement { key, test })
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let start = self.at;
        let key = self.word();
        if key.is_empty() {
            return match self.rest() {
                "" => error(start, "found end of string, expected an identifier"),
                _ => error(
                    start,
                    format!("found {:?}, expected an identifier", self.token()),
                ),
            };
        }
        match is_qualified_name(key) {
            true => Ok(key.to_owned()),
            false => error(start, format!("{key:?} is not a valid label key")),
        }
    }

    fn test(&mut self) -> Result<Test, SelectorError> {
        if self.rest().is_empty() || self.rest().starts_with(',') {
            return Ok(Test::Exists);
        }
        if self.take("!=") {
            return Ok(Test::NotIn([self.single()?].into()));
        }
        if self.take("==") || self.take("=") {
            return Ok(Test::In([self.single()?].into()));
        }
        if self.take(">") {
            return self.number().map(Test::Greater);
        }
        if self.take("<") {
            return self.number().map(Test::Less);
        }
        let start = self.at;
        match self.word() {
            "in" => self.list().map(Test::In),
            "notin" => self.list().map(Test::NotIn),
            _ => {
                self.at = start;
                let token = self.token();
                error(
                    start,
                    format!("found {token:?}, expected: in, notin, =, ==, !=, gt, lt"),
                )
            }
        }
    }

    /// The value of an equality, which may be empty.
    fn single(&mut self) -> Result<String, SelectorError> {
        self.skip_space();
        let start = self.at;
        let value = self.word();
        self.skip_space();
        if !self.rest().is_empty() && !self.rest().starts_with(',') {
            return error(
                self.at,
                format!("found {:?}, expected ',' or end", self.token()),
            );
        }
        checked_value(value, start)
    }

    fn number(&mut self) -> Result<i64, SelectorError> {
        self.skip_space();
        let start = self.at;
        let word = self.word();
        word.parse()
            .or_else(|_| error(start, format!("{word:?} is not an integer")))
    }

    fn list(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        self.skip_space();
        if !self.take("(") {
            return error(self.at, format!("found {:?}, expected '('", self.token()));
        }
        let mut values = BTreeSet::new();
        loop {
            self.skip_space();
            let start = self.at;
            let word = self.word();
            values.insert(checked_value(word, start)?);
            self.skip_space();
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return match self.rest() {
                    "" => error(self.at, "found end of string, expected ',' or ')'"),
                    _ => error(
                        self.at,
                        format!("found {:?}, expected ',' or ')'", self.token()),
                    ),
                };
            }
        }
    }
}

fn checked_value(value: &str, position: usize) -> Result<String, SelectorError> {
    match is_label_value(value) {
        true => Ok(value.to_owned()),
        false => error(position, format!("{value:?} is not a valid label value")),
    }
}

fn is_name_part(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    text.len() <= 63
        && bytes.iter().all(|c| inner(*c))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// A label value: empty, or at most 63 letters, digits, `-`, `_`, `.` beginning and ending with a letter or digit.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name_part(text)
}

/// A label key: a name part, optionally behind a DNS subdomain and a slash.
pub fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        None => is_name_part(text),
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
    }
}

fn is_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// One requirement of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Dotted path, as in `metadata.name`.
    pub field: String,
    pub value: String,
    /// `=` when true, `!=` when false.
    pub equal: bool,
}

/// All requirements must hold; none means everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldRequirement>);

impl FieldSelector {
    pub fn parse(text: &str) -> Result<FieldSelector, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return error(SELECTOR_BYTES_MAX, "selector is too long");
        }
        let mut requirements = Vec::new();
        let mut position = 0;
        for term in split_unescaped(text) {
            if !term.is_empty() {
                requirements.push(field_requirement(term, position)?);
            }
            position += term.len() + 1;
        }
        Ok(FieldSelector(requirements))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Matches by a lookup function; an absent field counts as empty.
    pub fn matches<'f>(&self, field: impl Fn(&str) -> Option<&'f str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = field(&requirement.field).unwrap_or_default();
            (value == requirement.value) == requirement.equal
        })
    }

    /// Matches an object by looking up the dotted paths in it.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.0.iter().all(|requirement| {
            let value = requirement
                .field
                .split('.')
                .try_fold(object, |at, name| at.get(name));
            let text = match value {
                Some(Value::String(text)) => text.clone(),
                None | Some(Value::Null) => String::new(),
                Some(other) => other.to_string(),
            };
            (text == requirement.value) == requirement.equal
        })
    }

    /// The single requirements.
    pub fn terms(&self) -> &[FieldRequirement] {
        &self.0
    }

    /// The value that a field must equal, if the selector says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        let wanted = self.0.iter().find(|r| r.equal && r.field == field);
        wanted.map(|requirement| requirement.value.as_str())
    }
}

/// Splits at commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.extend(text.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.extend(text.get(start..));
    terms
}

fn field_requirement(term: &str, position: usize) -> Result<FieldRequirement, SelectorError> {
    let mut escaped = false;
    for (at, c) in term.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        let rest = term.get(at..).unwrap_or_default();
        let (equal, len) = match c {
            '\\' => {
                escaped = true;
                continue;
            }
            '!' if rest.starts_with("!=") => (false, 2),
            '=' if rest.starts_with("==") => (true, 2),
            '=' => (true, 1),
            _ => continue,
        };
        let field = term.get(..at).unwrap_or_default().trim().to_owned();
        let value = term.get(at + len..).unwrap_or_default();
        let value = unescape(value, position + at + len)?;
        return Ok(FieldRequirement {
            field,
            value,
            equal,
        });
    }
    error(
        position,
        format!("invalid selector: {term:?}; can't understand it"),
    )
}

fn unescape(text: &str, position: usize) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, c @ ('\\' | ',' | '='))) => out.push(c),
                _ => return error(position + at, "invalid escape sequence"),
            },
            '=' => return error(position + at, "unescaped '=' in a value"),
            _ => out.push(c),
        }
    }
    Ok(out)
}
