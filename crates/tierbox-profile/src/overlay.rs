//! The layers without a file: environment variables and `--set` flags.

use serde_json::Value;
use tierbox_core::{Error, ErrorKind, Result};

use crate::diagnostic::Diagnostic;
use crate::inspect::{accepts, annotated, nearest, schema_at};
use crate::layer::{Layer, Values};
use crate::node::{Content, Node, Place, parse_value};
use crate::surroundings::Surroundings;

/// Variables of tierbox that are not keys of a profile, and what each is for.
pub const PLAIN_VARIABLES: &[(&str, &str)] = &[
    ("TIERBOX_LOG", "what is logged, such as `debug` or `tierbox_local=trace`"),
    ("TIERBOX_PROFILE", "the profile that is used where none is named"),
    ("TIERBOX_PROFILES", "directories with profiles, separated by colons"),
    ("TIERBOX_PROGRAM", "the program that the Inspect provider runs"),
    ("TIERBOX_STATE_DIR", "the directory of leases"),
    ("TIERBOX_SUPERVISOR", "a supervisor that was built before, for builds"),
];

/// Prefixes of variables that only tests and builds of tierbox itself set.
const OWN_PREFIXES: &[&str] = &[
    "TIERBOX_TEST",
    "TIERBOX_BENCH_",
    "TIERBOX_CRASH_",
    "TIERBOX_BUILD_",
    "TIERBOX_SKIP_",
    "TIERBOX_ATTACK",
    "TIERBOX_ENGINE_",
    "TIERBOX_CUT_",
];

/// The environment layer: `TIERBOX__SECTION__KEY_NAME`, and the plain variables that backends name in their schema.
pub(crate) fn environment(schema: &Value, surroundings: &Surroundings, problems: &mut Vec<Diagnostic>) -> Values {
    let mut root = Node::empty_table(Place::Default);
    for (name, value) in surroundings.variables() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("TIERBOX_")) else { continue };
        let place = Place::Variable(name.to_owned());
        let path = match key_of(name, schema) {
            Ok(Some(path)) => path,
            Ok(None) => continue,
            Err(problem) => {
                problems.push(*problem);
                continue;
            }
        };
        let Some(text) = value.to_str() else {
            problems.push(Diagnostic::error(place, &path, "the value is not UTF-8"));
            continue;
        };
        add(&mut root, schema, &path, text, place, problems);
    }
    Values::new(Layer::Environment, root)
}

/// The key that a variable stands for; `None` if it is none of a profile's.
fn key_of(name: &str, schema: &Value) -> Result<Option<Vec<String>>, Box<Diagnostic>> {
    if let Some(rest) = name.strip_prefix("TIERBOX__") {
        let path = dashed(rest);
        let bad = || Diagnostic::error(Place::Variable(name.to_owned()), &[], "the variable names no key");
        let help = "write TIERBOX__SECTION__KEY_NAME, such as TIERBOX__LIMITS__FILE_SIZE".to_owned();
        return if path.len() > MAX_PARTS || path.iter().any(String::is_empty) {
            Err(Box::new(bad().with_help(help)))
        } else {
            Ok(Some(path))
        };
    }
    if PLAIN_VARIABLES.iter().any(|(plain, _)| *plain == name) || OWN_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Ok(None);
    }
    let named = named_variables(schema);
    if let Some((_, path)) = named.iter().find(|(variable, _)| *variable == name) {
        return Ok(Some(path.clone()));
    }
    let known = PLAIN_VARIABLES.iter().map(|(plain, _)| *plain).chain(named.iter().map(|(variable, _)| *variable));
    let help = match nearest(name, known) {
        Some(near) => format!("did you mean {near}?"),
        None => "keys of a profile are written TIERBOX__SECTION__KEY_NAME, with two underscores".to_owned(),
    };
    let problem = Diagnostic::error(Place::Variable(name.to_owned()), &[], "tierbox knows no such variable");
    Err(Box::new(problem.with_help(help)))
}

/// `LIMITS__FILE_SIZE` is `limits.file-size`; the names of variables below `ENV` stay as they are.
fn dashed(rest: &str) -> Vec<String> {
    if let Some(variable) = rest.strip_prefix("ENV__") {
        return vec!["env".to_owned(), variable.to_owned()];
    }
    rest.split("__").map(|part| part.to_lowercase().replace('_', "-")).collect()
}

/// The plain variables that backends name with `x-variable`.
fn named_variables(schema: &Value) -> Vec<(&str, Vec<String>)> {
    let mut found = Vec::new();
    for (table, inner) in schema["properties"].as_object().into_iter().flatten() {
        for (key, setting) in inner["properties"].as_object().into_iter().flatten() {
            if let Some(variable) = setting["x-variable"].as_str() {
                found.push((variable, vec![table.clone(), key.clone()]));
            }
        }
    }
    found
}

/// How deep a key may lie. No key of ours is half as deep, and whatever walks a profile does so by recursion.
const MAX_PARTS: usize = 16;

/// One `--set` flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    path: Vec<String>,
    text: String,
}

impl Assignment {
    /// Reads `section.key=value`.
    pub fn parse(flag: &str) -> Result<Self> {
        // The value may be a secret by mistake, so that only the key is ever shown.
        let bad = |why: &str| {
            Error::new(ErrorKind::InvalidInput, "read --set", why.to_owned()).with_help("write --set section.key=value")
        };
        let (key, text) = flag.split_once('=').ok_or_else(|| bad("there is no `=`"))?;
        let path: Vec<String> = match key.split_once('.') {
            Some(("env", variable)) => vec!["env".to_owned(), variable.to_owned()],
            _ => key.split('.').map(str::to_owned).collect(),
        };
        if path.len() > MAX_PARTS {
            return Err(bad("the key has too many parts"));
        }
        if path.iter().any(|part| part.is_empty() || part.len() > 256 || part.contains(char::is_control)) {
            return Err(bad("the key is empty or malformed"));
        }
        Ok(Self { path, text: text.to_owned() })
    }
}

/// The layer of `--set` flags; a later one wins over an earlier one of the same key.
pub(crate) fn assignments(schema: &Value, flags: &[Assignment], problems: &mut Vec<Diagnostic>) -> Values {
    let mut root = Node::empty_table(Place::Default);
    for flag in flags {
        let place = Place::Flag(flag.path.join("."));
        add(&mut root, schema, &flag.path, &flag.text, place, problems);
    }
    Values::new(Layer::Set, root)
}

fn add(root: &mut Node, schema: &Value, path: &[String], text: &str, place: Place, problems: &mut Vec<Diagnostic>) {
    let node = coerce(schema, path, text, &place);
    if !root.insert(path, node) {
        problems.push(Diagnostic::error(place, path, format!("`{}` lies below a value that is no table", path.join("."))));
    }
}

/// Reads a text as the schema wants it: as it stands where a string is expected, else as a TOML value.
fn coerce(schema: &Value, path: &[String], text: &str, place: &Place) -> Node {
    let as_text = || Node::new(place.clone(), Content::Text(text.to_owned()));
    let Some(target) = schema_at(schema, path) else { return as_text() };
    let in_env = path.split_last().and_then(|(_, table)| schema_at(schema, table));
    if in_env.is_some_and(|table| annotated(schema, table, "x-env")) {
        return as_text();
    }
    let Some(node) = parse_value(text, place) else { return as_text() };
    let kind = match &node.value {
        Content::Text(_) => "string",
        Content::Integer(_) => "integer",
        Content::Float(_) => "number",
        Content::Bool(_) => "boolean",
        Content::List(_) => "array",
        Content::Table(_) => "object",
        Content::Date(_) => return as_text(),
    };
    if accepts(schema, target, kind) { node } else { as_text() }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn variables_name_keys() {
        assert_eq!(dashed("LIMITS__FILE_SIZE"), ["limits", "file-size"]);
        assert_eq!(dashed("TIER"), ["tier"]);
        assert_eq!(dashed("ENV__MY__Var"), ["env", "MY__Var"]);
    }

    #[test]
    fn keys_have_an_end() {
        let deep = |separator: &str| vec!["a"; 8000].join(separator);
        assert!(Assignment::parse(&format!("{}=1", deep("."))).is_err());
        let name = format!("TIERBOX__{}", deep("__"));
        assert!(key_of(&name, &Value::Null).is_err());
    }

    #[test]
    fn flags_are_split_at_the_first_equals_sign() {
        let flag = Assignment::parse("env.A.B=c=d").unwrap();
        assert_eq!((flag.path, flag.text), (vec!["env".to_owned(), "A.B".to_owned()], "c=d".to_owned()));
        for bad in ["", "tier", "=x", "limits.=1", ".tier=x", "a\nb=1"] {
            assert_eq!(Assignment::parse(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
    }

    #[test]
    fn an_error_never_shows_the_value() {
        assert!(!Assignment::parse(".=hunter2").unwrap_err().to_string().contains("hunter2"));
    }
}
