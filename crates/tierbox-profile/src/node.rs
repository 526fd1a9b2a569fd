//! Values with the place where they were written: one parse gives both.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::value::{Num, Tag, Value};
use toml::de::{DeInteger, DeTable, DeValue};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Built into tierbox.
    Default,
    /// In a file.
    File {
        /// The file, as it was named to tierbox; `<built-in>/NAME.toml` for a ready profile.
        path: Arc<PathBuf>,
        /// The line, from 1.
        line: u32,
        /// The column in characters, from 1.
        column: u32,
    },
    /// In an environment variable.
    Variable(String),
    /// In a `--set` flag; its key.
    Flag(String),
    /// In code.
    Code,
}

impl Place {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path.as_path()),
            _ => None,
        }
    }

    /// The line in the file, from 1.
    pub fn line(&self) -> Option<u32> {
        match self {
            Self::File { line, .. } => Some(*line),
            _ => None,
        }
    }

    /// The column in the line, in characters from 1.
    pub fn column(&self) -> Option<u32> {
        match self {
            Self::File { column, .. } => Some(*column),
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("built-in default"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(key) => write!(f, "--set {key}"),
            Self::Code => f.write_str("code"),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub place: Place,
    pub value: Content,
}

/// What stands there.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Date(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Entry>),
}

/// A key of a table: where it stands, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key_place: Place,
    pub node: Node,
}

impl Node {
    pub fn new(place: Place, value: Content) -> Self {
        Self { place, value }
    }

    pub fn empty_table(place: Place) -> Self {
        Self::new(place, Content::Table(BTreeMap::new()))
    }

    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn table(&self) -> Option<&BTreeMap<String, Entry>> {
        match &self.value {
            Content::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn table_mut(&mut self) -> Option<&mut BTreeMap<String, Entry>> {
        match &mut self.value {
            Content::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The value under a key, where this is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.table()?.get(key).map(|entry| &entry.node)
    }

    /// The node at a path; steps into a list are its indices.
    pub fn find(&self, path: &[String]) -> Option<&Node> {
        let Some((step, rest)) = path.split_first() else { return Some(self) };
        match &self.value {
            Content::Table(table) => table.get(step)?.node.find(rest),
            Content::List(items) => items.get(step.parse::<usize>().ok()?)?.find(rest),
            _ => None,
        }
    }

    /// As [`find`](Self::find), to change it.
    pub fn find_mut(&mut self, path: &[String]) -> Option<&mut Node> {
        let Some((step, rest)) = path.split_first() else { return Some(self) };
        match &mut self.value {
            Content::Table(table) => table.get_mut(step)?.node.find_mut(rest),
            Content::List(items) => items.get_mut(step.parse::<usize>().ok()?)?.find_mut(rest),
            _ => None,
        }
    }

    /// The place of the deepest part of a path that exists.
    pub fn nearest_place(&self, path: &[String]) -> Place {
        (0..=path.len()).rev().find_map(|length| self.find(&path[..length])).map_or(self.place.clone(), |node| node.place.clone())
    }

    /// Takes the value at a path away, or the list that holds it.
    pub fn remove(&mut self, path: &[String]) {
        let Some((step, rest)) = path.split_first() else { return };
        let Some(table) = self.table_mut() else { return };
        match table.get_mut(step) {
            Some(entry) if !rest.is_empty() && entry.node.table().is_some() => entry.node.remove(rest),
            _ => drop(table.remove(step)),
        }
    }

    /// Puts a value at a path of table keys. False where something that is no table stands in the way.
    pub fn insert(&mut self, path: &[String], node: Node) -> bool {
        let Some((step, rest)) = path.split_first() else {
            *self = node;
            return true;
        };
        let place = node.place.clone();
        let Some(table) = self.table_mut() else { return false };
        let entry =
            table.entry(step.clone()).or_insert_with(|| Entry { key_place: place.clone(), node: Node::empty_table(place) });
        entry.node.insert(rest, node)
    }

    /// A JSON value, all of it from one place.
    pub fn from_json(value: &serde_json::Value, place: &Place) -> Option<Self> {
        use serde_json::Value as Json;
        let content = match value {
            Json::Null => return None,
            Json::Bool(flag) => Content::Bool(*flag),
            Json::String(text) => Content::Text(text.clone()),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => Content::Integer(integer),
                None => Content::Float(number.as_f64()?),
            },
            Json::Array(items) => Content::List(items.iter().filter_map(|item| Self::from_json(item, place)).collect()),
            Json::Object(map) => Content::Table(
                map.iter()
                    .filter_map(|(key, item)| {
                        Some((key.clone(), Entry { key_place: place.clone(), node: Self::from_json(item, place)? }))
                    })
                    .collect(),
            ),
        };
        Some(Self::new(place.clone(), content))
    }

    /// The same value for figment.
    pub fn to_figment(&self) -> Value {
        let tag = Tag::Default;
        match &self.value {
            Content::Text(text) | Content::Date(text) => Value::String(tag, text.clone()),
            Content::Integer(integer) => Value::Num(tag, Num::I64(*integer)),
            Content::Float(float) => Value::Num(tag, Num::F64(*float)),
            Content::Bool(flag) => Value::Bool(tag, *flag),
            Content::List(items) => Value::Array(tag, items.iter().map(Node::to_figment).collect()),
            Content::Table(table) => {
                Value::Dict(tag, table.iter().map(|(key, entry)| (key.clone(), entry.node.to_figment())).collect())
            }
        }
    }
}

/// What is wrong with a text that is not TOML, and where.
pub(crate) struct Malformed {
    pub place: Place,
    pub message: String,
}

/// Reads a TOML document.
pub(crate) fn parse_document(text: &str, path: &Arc<PathBuf>) -> Result<Node, Malformed> {
    let lines = Lines::new(text, path);
    match DeTable::parse(text) {
        Ok(table) => lines.table(table.get_ref()).map(|table| Node::new(lines.place(&table_start()), Content::Table(table))),
        Err(error) => Err(Malformed {
            place: lines.place(&error.span().unwrap_or_default()),
            message: error.message().split_whitespace().collect::<Vec<_>>().join(" "),
        }),
    }
}

/// Reads one TOML value, all of which has this place. `None` if the text is not one.
pub(crate) fn parse_value(text: &str, place: &Place) -> Option<Node> {
    let value = DeValue::parse(text).ok()?;
    let path = Arc::new(PathBuf::new());
    let mut node = Lines::new(text, &path).node(value.get_ref(), value.span()).ok()?;
    node.set_place(place);
    Some(node)
}

impl Node {
    fn set_place(&mut self, place: &Place) {
        self.place = place.clone();
        match &mut self.value {
            Content::List(items) => items.iter_mut().for_each(|item| item.set_place(place)),
            Content::Table(table) => table.values_mut().for_each(|entry| {
                entry.key_place = place.clone();
                entry.node.set_place(place);
            }),
            _ => {}
        }
    }
}

fn table_start() -> Range<usize> {
    0..0
}

/// Turns byte ranges of a text into places, each in the same time, however long the text is.
struct Lines<'a> {
    text: &'a str,
    path: &'a Arc<PathBuf>,
    /// Where each line begins.
    starts: Vec<usize>,
    /// How many characters stand before each block of bytes, and behind the last.
    characters: Vec<usize>,
}

/// So many bytes are counted anew for a place.
const BLOCK: usize = 256;

impl<'a> Lines<'a> {
    fn new(text: &'a str, path: &'a Arc<PathBuf>) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let mut characters = vec![0];
        for block in text.as_bytes().chunks(BLOCK) {
            characters.push(characters[characters.len() - 1] + begun(block));
        }
        Self { text, path, starts, characters }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let at = span.start.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= at);
        let column = self.characters_before(at) - self.characters_before(self.starts[line - 1]) + 1;
        Place::File { path: self.path.clone(), line: line as u32, column: column as u32 }
    }

    fn characters_before(&self, at: usize) -> usize {
        let block = at / BLOCK;
        self.characters[block] + begun(&self.text.as_bytes()[block * BLOCK..at])
    }

    fn table(&self, table: &DeTable<'_>) -> Result<BTreeMap<String, Entry>, Malformed> {
        table
            .iter()
            .map(|(key, value)| {
                let node = self.node(value.get_ref(), value.span())?;
                Ok((key.get_ref().to_string(), Entry { key_place: self.place(&key.span()), node }))
            })
            .collect()
    }

    fn node(&self, value: &DeValue<'_>, span: Range<usize>) -> Result<Node, Malformed> {
        let place = self.place(&span);
        let content = match value {
            DeValue::String(text) => Content::Text(text.to_string()),
            DeValue::Integer(integer) => Content::Integer(read_integer(integer, &place)?),
            DeValue::Float(float) => Content::Float(float.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Content::Bool(*flag),
            DeValue::Datetime(date) => Content::Date(date.to_string()),
            DeValue::Array(items) => Content::List(
                items.iter().map(|item| self.node(item.get_ref(), item.span())).collect::<Result<Vec<_>, Malformed>>()?,
            ),
            DeValue::Table(table) => Content::Table(self.table(table)?),
        };
        Ok(Node::new(place, content))
    }
}

/// How many characters begin in these bytes.
fn begun(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| (**byte as i8) >= -0x40).count()
}

fn read_integer(integer: &DeInteger<'_>, place: &Place) -> Result<i64, Malformed> {
    i64::from_str_radix(integer.as_str(), integer.radix())
        .map_err(|_| Malformed { place: place.clone(), message: "the number is too great".to_owned() })
}

#[cfg(test)]
mod unit {
    use super::*;

    fn naively(text: &str, at: usize) -> (u32, u32) {
        let before = &text[..at];
        let line = before.matches('\n').count() + 1;
        (line as u32, before.rsplit('\n').next().unwrap_or_default().chars().count() as u32 + 1)
    }

    #[test]
    fn places_count_lines_and_characters() {
        let text = format!("# {}\nä = \"ö\"\n\n{}€ = 1\n", "ü".repeat(700), "x".repeat(BLOCK));
        let path = Arc::new(PathBuf::new());
        let lines = Lines::new(&text, &path);
        for (at, _) in text.char_indices().chain([(text.len(), ' ')]) {
            let Place::File { line, column, .. } = lines.place(&(at..at)) else { panic!("a file's place") };
            assert_eq!((line, column), naively(&text, at), "byte {at}");
        }
    }

    #[test]
    fn a_long_text_is_read() {
        let mut text = String::from("[env]\n");
        (0..50_000).for_each(|number| text.push_str(&format!("A{number} = \"\"\n")));
        text.push_str(&format!("B = [{}]\n", "1,".repeat(100_000)));
        let root = parse_document(&text, &Arc::new(PathBuf::new())).map_err(|bad| bad.message).unwrap();
        let place = |key: &str| root.find(&["env".to_owned(), key.to_owned()]).map(|node| node.place.clone());
        assert!(matches!(place("A49999"), Some(Place::File { line: 50_001, column: 10, .. })), "{:?}", place("A49999"));
    }
}
