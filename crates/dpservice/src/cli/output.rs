//! Objects and lists as JSON, YAML, table or names.

use super::CliError;
use super::args::Format;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use std::fmt::Write;

/// A tree whose maps keep their order, which is part of the output's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    Text(String),
    Number(u64),
    Signed(i64),
    Null,
    Bool(bool),
    List(Vec<Tree>),
    Map(Vec<(&'static str, Tree)>),
}

impl Tree {
    pub(crate) fn text(value: impl ToString) -> Tree {
        Tree::Text(value.to_string())
    }

    pub(crate) fn number(value: impl Into<u64>) -> Tree {
        Tree::Number(value.into())
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Tree::Text(text) => serializer.serialize_str(text),
            Tree::Number(number) => serializer.serialize_u64(*number),
            Tree::Signed(number) => serializer.serialize_i64(*number),
            Tree::Null => serializer.serialize_unit(),
            Tree::Bool(value) => serializer.serialize_bool(*value),
            Tree::List(items) => {
                let mut sequence = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    sequence.serialize_element(item)?;
                }
                sequence.end()
            }
            Tree::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

/// Something the service knows, in all the forms in which it can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) metadata: Vec<(&'static str, Tree)>,
    pub(crate) spec: Vec<(&'static str, Tree)>,
    /// Columns of a table.
    pub(crate) cells: Vec<(&'static str, String)>,
    /// Further columns of a wide table.
    pub(crate) wide_cells: Vec<(&'static str, String)>,
}

impl Object {
    /// The address and ports of a NAT, or the address of a VIP, in one cell.
    pub(crate) fn brief(&self) -> String {
        let cell = |name| self.cell(name).unwrap_or_default().to_owned();
        match self.kind {
            "Nat" => format!(
                "{} <{}, {}>",
                cell("NatIP"),
                cell("MinPort"),
                cell("MaxPort")
            ),
            _ => cell("VirtualIP"),
        }
    }

    pub(crate) fn tree(&self) -> Tree {
        Tree::Map(vec![
            ("kind", Tree::text(self.kind)),
            ("metadata", Tree::Map(self.metadata.clone())),
            ("spec", Tree::Map(self.spec.clone())),
            ("status", status(0, "Success")),
        ])
    }

    /// The value of a column, whose name may be written in any case.
    fn cell(&self, column: &str) -> Option<&str> {
        let cells = self.cells.iter().chain(&self.wide_cells);
        cells
            .clone()
            .find(|(name, _)| name.eq_ignore_ascii_case(column))
            .map(|(_, text)| text.as_str())
    }
}

/// What a command prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Printed {
    /// One object and what was done to it.
    One {
        object: Object,
        operation: &'static str,
    },
    /// A list.
    Many {
        kind: &'static str,
        metadata: Vec<(&'static str, Tree)>,
        objects: Vec<Object>,
    },
    /// Text that needs no further form.
    Text(String),
    /// One of several objects of a file that failed.
    Failed {
        kind: &'static str,
        name: String,
        error: CliError,
    },
}

fn status(code: u32, message: &str) -> Tree {
    Tree::Map(vec![
        ("code", Tree::number(code)),
        ("message", Tree::text(message)),
    ])
}

/// Sorts by a column (stable): numbers as numbers, everything else as text. An unknown column is the user's mistake.
pub(crate) fn sort(objects: &mut [Object], column: &str) -> Result<(), CliError> {
    if let Some(first) = objects.first()
        && first.cell(column).is_none()
    {
        let known: Vec<_> = first.cells.iter().map(|(name, _)| *name).collect();
        return Err(CliError::client(format!(
            "no column \"{column}\" to sort by; there are {}",
            known.join(", ")
        )));
    }
    objects.sort_by(|a, b| {
        let (a, b) = (
            a.cell(column).unwrap_or_default(),
            b.cell(column).unwrap_or_default(),
        );
        match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            _ => a.cmp(b),
        }
    });
    Ok(())
}

/// The text of one printed item, line ends included.
pub(crate) fn render(item: &Printed, format: Format, pretty: bool, wide: bool) -> String {
    match (item, format) {
        (Printed::Text(text), _) => text.clone(),
        (Printed::One { object, .. }, Format::Json | Format::Yaml) => {
            encode(&object.tree(), format, pretty)
        }
        (Printed::One { object, .. }, Format::Table) => table(std::slice::from_ref(object), wide),
        (Printed::One { object, operation }, Format::Name) => {
            name_line(object.kind, &object.name, operation)
        }
        (
            Printed::Many {
                kind,
                metadata,
                objects,
            },
            Format::Json | Format::Yaml,
        ) => {
            let tree = Tree::Map(vec![
                ("kind", Tree::text(kind)),
                ("metadata", Tree::Map(metadata.clone())),
                ("status", status(0, "Success")),
                (
                    "items",
                    Tree::List(objects.iter().map(Object::tree).collect()),
                ),
            ]);
            encode(&tree, format, pretty)
        }
        (Printed::Many { objects, .. }, Format::Table) => table(objects, wide),
        (Printed::Many { objects, .. }, Format::Name) => objects
            .iter()
            .map(|object| name_line(object.kind, &object.name, ""))
            .collect(),
        (Printed::Failed { kind, name, error }, Format::Name) => {
            name_line(kind, name, &error.to_string())
        }
        (Printed::Failed { error, .. }, _) => render_error(error, format, pretty),
    }
}

fn name_line(kind: &str, name: &str, operation: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    format!("{}\n", format!("{kind}/{name} {operation}").trim_end())
}

/// An error of the whole command.
pub(crate) fn render_error(error: &CliError, format: Format, pretty: bool) -> String {
    match format {
        Format::Table | Format::Name => format!("{error}\n"),
        Format::Json | Format::Yaml => {
            let (source, code, message) = error.parts();
            let tree = Tree::Map(vec![
                ("kind", Tree::text("Error")),
                ("spec", Tree::Map(vec![("source", Tree::text(source))])),
                ("status", status(code, message)),
            ]);
            encode(&tree, format, pretty)
        }
    }
}

fn encode(tree: &Tree, format: Format, pretty: bool) -> String {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(tree).map_err(|error| error.to_string()),
        _ if pretty => serde_json::to_string_pretty(tree).map_err(|error| error.to_string()),
        _ => serde_json::to_string(tree).map_err(|error| error.to_string()),
    };
    // Trees of text and numbers always encode; an impossible failure is shown rather than hidden.
    let mut text = text.unwrap_or_else(|error| error);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Columns padded to their widest cell, separated by two spaces.
fn table(objects: &[Object], wide: bool) -> String {
    let row = |object: &Object| {
        let more = if wide {
            object.wide_cells.clone()
        } else {
            Vec::new()
        };
        object.cells.iter().cloned().chain(more).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<(&str, String)>> = objects.iter().map(row).collect();
    let Some(first) = rows.first() else {
        return String::new();
    };
    let header: Vec<String> = first.iter().map(|(name, _)| (*name).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(header)
        .chain(
            rows.into_iter()
                .map(|row| row.into_iter().map(|(_, text)| text).collect()),
        )
        .collect();
    text_table(&lines)
}

/// Lines of cells, padded to the widest cell of their column and separated by two spaces.
pub(crate) fn text_table(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(String::len)
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let mut padded = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(padded, "{cell:<width$}  ");
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}
