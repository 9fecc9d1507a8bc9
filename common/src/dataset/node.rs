//! What a YAML or JSON file holds, as a tree in which every value is still the text that was written: a multiplier keeps all
//! its digits, and a tag that looks like a number stays a tag.

use std::fmt;

use super::text::quoted;

/// A value and the line that it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// From 1; 0 where it is not known.
    pub(super) line: u32,
    pub(super) value: Value,
}

/// The value of a [`Node`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Text in quotes or in a block, which is text and nothing else.
    Text(String),
    /// A word or number as it was written, without quotes.
    Plain(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a [`Value::Map`] with its value. Nothing here refuses a key that comes twice; who reads the map does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) line: u32,
    pub(super) key: String,
    pub(super) value: Node,
}

/// What is wrong with a file, and on which of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// From 1; 0 where it is not known.
    pub(super) line: u32,
    pub(super) text: String,
}

impl Node {
    /// Returns the text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) | Value::Plain(text) => Some(text),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Says whether somebody wrote that there is no value: `null` or `~`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Plain(text) if ["null", "Null", "NULL", "~"].contains(&text.as_str()))
    }

    /// Shows the value in one line, cut short when long.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Value::Text(text) | Value::Plain(text) => quoted(text),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

impl Problem {
    pub(super) fn new(line: u32, text: impl Into<String>) -> Self {
        Self { line, text: text.into() }
    }

    /// Returns the line for the report: `a/local.yaml:3: …`.
    pub(super) fn in_file(&self, path: &str) -> String {
        match self.line {
            0 => format!("{path}: {}", self.text),
            line => format!("{path}:{line}: {}", self.text),
        }
    }
}

/// In one line, in YAML's flow style; the outermost mapping without its braces.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Map(entries) => write_entries(f, entries),
            _ => write_node(f, self),
        }
    }
}

fn write_node(f: &mut fmt::Formatter<'_>, node: &Node) -> fmt::Result {
    match &node.value {
        Value::Plain(text) => f.write_str(text),
        Value::Text(text) => write!(f, "{text:?}"),
        Value::Map(entries) => {
            f.write_str("{")?;
            write_entries(f, entries)?;
            f.write_str("}")
        }
        Value::List(items) => {
            f.write_str("[")?;
            for (index, item) in items.iter().enumerate() {
                f.write_str(if index > 0 { ", " } else { "" })?;
                write_node(f, item)?;
            }
            f.write_str("]")
        }
    }
}

fn write_entries(f: &mut fmt::Formatter<'_>, entries: &[Entry]) -> fmt::Result {
    for (index, entry) in entries.iter().enumerate() {
        write!(f, "{}{}: ", if index > 0 { ", " } else { "" }, entry.key)?;
        write_node(f, &entry.value)?;
    }
    Ok(())
}
