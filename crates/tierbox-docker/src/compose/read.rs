//! Values of a compose file: each says on which line it is not what it should be.

use std::time::Duration;

use tierbox_core::{Error, Result};

use super::yaml::{Node, Value};
use crate::settings::{cut, invalid};

/// A place in a compose file, for messages: the path of keys to it.
#[derive(Debug, Clone)]
pub struct At<'a> {
    /// The file's name.
    pub file: &'a str,
    /// For example `services.web.image`.
    pub path: String,
}

impl At<'_> {
    /// A key below this one.
    pub fn key(&self, key: &str) -> Self {
        let path = if self.path.is_empty() { cut(key) } else { format!("{}.{}", self.path, cut(key)) };
        Self { file: self.file, path }
    }

    /// A mistake here.
    pub fn wrong(&self, line: usize, why: impl std::fmt::Display) -> Error {
        invalid(format!("{}:{line}: {}: {why}", self.file, self.path))
    }
}

/// A mapping.
pub fn map<'a>(at: &At<'_>, node: &'a Node) -> Result<&'a [(String, Node)]> {
    match &node.value {
        Value::Map(pairs) => Ok(pairs),
        Value::Null => Ok(&[]),
        _ => Err(at.wrong(node.line, "a mapping is expected")),
    }
}

/// A text. Variables of this host are not put in: `$$` stands for a dollar sign, any other is refused.
pub fn text(at: &At<'_>, node: &Node) -> Result<String> {
    match &node.value {
        Value::Text(text, _) => plain(at, node.line, text),
        _ => Err(at.wrong(node.line, "a text is expected")),
    }
}

fn plain(at: &At<'_>, line: usize, text: &str) -> Result<String> {
    if text.contains('\0') {
        return Err(at.wrong(line, "it contains a NUL byte"));
    }
    let rest = text.replace("$$", "\u{0}");
    if rest.contains('$') {
        return Err(at
            .wrong(line, "`$` puts in a variable of this host, which is refused")
            .with_help("write `$$` for a dollar sign, and give variables by the profile's `env`"));
    }
    Ok(rest.replace('\u{0}', "$"))
}

/// A yes or no.
pub fn flag(at: &At<'_>, node: &Node) -> Result<bool> {
    match text(at, node)?.as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(at.wrong(node.line, "true or false is expected")),
    }
}

/// A count.
pub fn count(at: &At<'_>, node: &Node) -> Result<u64> {
    text(at, node)?.parse().map_err(|_| at.wrong(node.line, "a whole number is expected"))
}

/// A whole number above zero: zero of it would lift the limit that it names.
///
/// # Errors
/// `InvalidProfile` at the value.
pub fn positive(at: &At<'_>, node: &Node) -> Result<u64> {
    match count(at, node)? {
        0 => Err(at.wrong(node.line, "zero is no limit here: leave the key out, or name a number")),
        count => Ok(count),
    }
}

/// A list of texts, or one text.
pub fn texts(at: &At<'_>, node: &Node) -> Result<Vec<String>> {
    match &node.value {
        Value::List(items) => items.iter().map(|item| text(at, item)).collect(),
        Value::Null => Ok(Vec::new()),
        _ => Ok(vec![text(at, node)?]),
    }
}

/// A command: a list, or one text that is split as a shell would, without running one. `None` for a key without a value, which means the
/// image's own; an empty list or text means none.
pub fn command(at: &At<'_>, node: &Node) -> Result<Option<Vec<String>>> {
    match &node.value {
        Value::Null => Ok(None),
        Value::Text(..) => split(&text(at, node)?).map(Some).ok_or_else(|| at.wrong(node.line, "a quote is not closed")),
        _ => texts(at, node).map(Some),
    }
}

/// The words of a command line. `None` if a quote is not closed.
fn split(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut inside): (Vec<String>, Option<String>, Option<char>) = (Vec::new(), None, None);
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match (inside, char) {
            (Some(quote), char) if quote == char => inside = None,
            (None, '\'' | '"') => {
                inside = Some(char);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next()?),
            (None, char) if char.is_whitespace() => words.extend(word.take()),
            (_, char) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    inside.is_none().then_some(words)
}

/// Variables: a mapping, or a list of `KEY=value`.
pub fn variables(at: &At<'_>, node: &Node) -> Result<Vec<(String, String)>> {
    let pairs: Vec<(String, String, usize)> = match &node.value {
        Value::List(items) => items.iter().map(|item| variable(at, item)).collect::<Result<_>>()?,
        _ => {
            let value = |(key, value): &(String, Node)| {
                let text =
                    if value.value == Value::Null { host_variable(at, value.line, key) } else { text(&at.key(key), value) };
                Ok((key.clone(), text?, value.line))
            };
            map(at, node)?.iter().map(value).collect::<Result<_>>()?
        }
    };
    for (key, _, line) in &pairs {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(at.wrong(*line, format!("{:?} is not a variable's name", cut(key))));
        }
    }
    Ok(pairs.into_iter().map(|(key, value, _)| (key, value)).collect())
}

fn variable(at: &At<'_>, item: &Node) -> Result<(String, String, usize)> {
    let line = text(at, item)?;
    match line.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned(), item.line)),
        None => host_variable(at, item.line, &line).map(|value| (line, value, item.line)),
    }
}

fn host_variable(at: &At<'_>, line: usize, key: &str) -> Result<String> {
    Err(at
        .wrong(line, format!("{} without a value takes this host's, which is refused", cut(key)))
        .with_help("write a value (`\"\"` for an empty one)"))
}

/// A length of time, such as `1m30s` or `500ms`.
pub fn duration(at: &At<'_>, node: &Node) -> Result<Duration> {
    let text = text(at, node)?;
    parse_duration(&text).ok_or_else(|| at.wrong(node.line, "a time is expected, such as 30s or 1m30s"))
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest) = (Duration::ZERO, text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|char: char| !char.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|char: char| char.is_ascii_digit()).map_or(rest.len(), |at| at + digits);
        let millis = match &rest[digits..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &rest[unit..];
    }
    Some(total)
}

/// A number of bytes, such as `512m`, `1g` or `1gb`.
pub fn size(at: &At<'_>, node: &Node) -> Result<u64> {
    let text = text(at, node)?.to_ascii_lowercase();
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let shift = match &text[digits..] {
        "" | "b" => Some(0),
        "k" | "kb" => Some(10),
        "m" | "mb" => Some(20),
        "g" | "gb" => Some(30),
        _ => None,
    };
    let bytes = shift.and_then(|shift| text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| at.wrong(node.line, "a size is expected, such as 512m or 1g"))
}

/// CPUs in thousandths, from a text such as `1.5`.
pub fn cpus(at: &At<'_>, node: &Node) -> Result<u64> {
    let number: f64 = text(at, node)?.parse().unwrap_or(0.0);
    if number.is_finite() && (0.001..=100_000.0).contains(&number) {
        return Ok((number * 1000.0).round() as u64);
    }
    Err(at.wrong(node.line, "a number of CPUs is expected, such as 1.5"))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn command_lines_are_split_and_never_run() {
        let words = |line: &str| split(line).unwrap();
        assert_eq!(words("sh -c 'a  b' \"c\\\"d\" e\\ f ''"), ["sh", "-c", "a  b", "c\"d", "e f", ""]);
        assert_eq!(words("  "), Vec::<String>::new());
        assert_eq!(split("'open"), None);
    }

    #[test]
    fn times() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        for bad in ["", "5", "s", "1x", "99999999999999999999h", "-1s"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn variables_of_the_host_stay_out() {
        let at = At { file: "c.yaml", path: "x".into() };
        for bad in ["$HOME", "${A}", "a$$$b"] {
            assert!(plain(&at, 1, bad).is_err(), "{bad}");
        }
        assert_eq!(plain(&at, 1, "a$$b").unwrap(), "a$b");
    }
}
