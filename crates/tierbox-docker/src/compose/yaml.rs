//! YAML as a tree that knows its lines. Bounded: a file of aliases that name aliases does not grow without end.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// The most nodes that a file may come to, aliases followed.
const MOST_NODES: usize = 20_000;

/// How deep it may be.
const DEEPEST: usize = 32;

/// A mistake: the line, and what is wrong.
pub type Mistake = (usize, String);

/// A node and the line on which it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Counted from 1.
    pub line: usize,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A text, and whether it was in quotes.
    Text(String, bool),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in order, without duplicate keys.
    Map(Vec<(String, Node)>),
}

struct Loader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: Vec<(usize, Node)>,
    nodes: usize,
}

/// Reads the one document of a file.
///
/// # Errors
/// What is not YAML, more than one document, duplicate keys, tags, and what is too large or too deep.
pub fn load(text: &str) -> Result<Node, Mistake> {
    let mut loader = Loader { parser: Parser::new_from_str(text), anchors: Vec::new(), nodes: 0 };
    let mut document = None;
    loop {
        let (event, span) = loader.next()?;
        let line = span.start.line();
        match event {
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            Event::StreamEnd => break,
            _ if document.is_some() => return Err((line, "there is more than one document".to_owned())),
            event => document = Some(loader.node(event, line, 0)?),
        }
    }
    document.ok_or_else(|| (1, "the file is empty".to_owned()))
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Mistake> {
        match self.parser.next() {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err((error.marker().line(), error.info().to_owned())),
            None => Err((1, "the file ends too early".to_owned())),
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, Mistake> {
        self.nodes += 1;
        self.bounded(line, depth)?;
        let (value, anchor) = match event {
            Event::Alias(anchor) => return self.alias(anchor, line),
            Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                return Err((line, "tags (`!…`) are not taken".to_owned()));
            }
            Event::Scalar(text, style, anchor, None) => (scalar(&text, style), anchor),
            Event::SequenceStart(anchor, None) => (self.list(depth)?, anchor),
            Event::MappingStart(anchor, None) => (self.map(depth)?, anchor),
            _ => return Err((line, "a value is missing".to_owned())),
        };
        let node = Node { line, value };
        if anchor > 0 {
            self.anchors.push((anchor, node.clone()));
        }
        Ok(node)
    }

    fn bounded(&self, line: usize, depth: usize) -> Result<(), Mistake> {
        if self.nodes > MOST_NODES || depth > DEEPEST {
            return Err((line, "the file is too large or too deep".to_owned()));
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, line: usize) -> Result<Node, Mistake> {
        let found = self.anchors.iter().rev().find(|(known, _)| *known == anchor);
        let (_, node) = found.ok_or_else(|| (line, "the alias names nothing".to_owned()))?;
        self.nodes += size(node);
        self.bounded(line, 0)?;
        Ok(node.clone())
    }

    fn list(&mut self, depth: usize) -> Result<Value, Mistake> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, span.start.line(), depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Mistake> {
        let (mut pairs, mut merged): (Vec<(String, Node)>, Vec<Node>) = (Vec::new(), Vec::new());
        loop {
            let (event, span) = self.next()?;
            let line = span.start.line();
            let key = match event {
                Event::MappingEnd => break,
                event => self.node(event, line, depth + 1)?,
            };
            let Value::Text(key, quoted) = key.value else { return Err((line, "a key is not a text".to_owned())) };
            let (event, span) = self.next()?;
            let value = self.node(event, span.start.line(), depth + 1)?;
            if key == "<<" && !quoted {
                merged.push(value);
            } else if pairs.iter().any(|(known, _)| *known == key) {
                return Err((line, format!("the key {:?} is there twice", crate::settings::cut(&key))));
            } else {
                pairs.push((key, value));
            }
        }
        for node in merged {
            merge(&mut pairs, node)?;
        }
        Ok(Value::Map(pairs))
    }
}

/// Takes in what another mapping has and this one lacks.
fn merge(pairs: &mut Vec<(String, Node)>, node: Node) -> Result<(), Mistake> {
    match node.value {
        Value::Map(others) => {
            for (key, value) in others {
                if !pairs.iter().any(|(known, _)| *known == key) {
                    pairs.push((key, value));
                }
            }
            Ok(())
        }
        Value::List(nodes) => nodes.into_iter().try_for_each(|node| merge(pairs, node)),
        _ => Err((node.line, "`<<` takes a mapping".to_owned())),
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    let plain = style == ScalarStyle::Plain;
    if plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    Value::Text(text.to_owned(), !plain)
}

/// A long text counts as many nodes: what is repeated by aliases costs its bytes.
fn weight(text: &str) -> usize {
    1 + text.len() / 64
}

fn size(node: &Node) -> usize {
    match &node.value {
        Value::Null => 1,
        Value::Text(text, _) => weight(text),
        Value::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Map(pairs) => 1 + pairs.iter().map(|(key, node)| weight(key) + size(node)).sum::<usize>(),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn text(node: &Node, key: &str) -> String {
        let Value::Map(pairs) = &node.value else { panic!("{node:?}") };
        match &pairs.iter().find(|(known, _)| known == key).unwrap().1.value {
            Value::Text(text, _) => text.clone(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn anchors_and_merges_are_followed_and_own_keys_win() {
        let node = load("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n").unwrap();
        let Value::Map(pairs) = &node.value else { panic!() };
        assert_eq!((text(&pairs[1].1, "x"), text(&pairs[1].1, "y")), ("1".into(), "3".into()));
        assert_eq!(pairs[1].1.line, 3);
    }

    #[test]
    fn what_grows_without_end_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let alias = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
        }
        assert!(load(&bomb).unwrap_err().1.contains("too large"));
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(10_000));
        assert!(load(&long).unwrap_err().1.contains("too large"));
        let deep = format!("{}x{}", "[".repeat(100), "]".repeat(100));
        assert!(load(&deep).is_err());
    }

    #[test]
    fn duplicates_tags_and_second_documents_are_refused() {
        for bad in ["a: 1\na: 2\n", "a: !!python/object x\n", "a: 1\n---\nb: 2\n", "", "a: *nobody\n", "? [a]\n: b\n", "a: [1"] {
            assert!(load(bad).is_err(), "{bad:?}");
        }
    }
}
