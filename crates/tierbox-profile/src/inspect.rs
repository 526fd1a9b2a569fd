//! Checks a node against the part of JSON Schema that profiles use, with the place of everything that is wrong.

use serde_json::Value;

use crate::diagnostic::Diagnostic;
use crate::node::{Content, Entry, Node};

/// What a schema says of a value beyond its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// `x-secret`: a reference to a secret.
    Secret,
    /// `x-env`: a table of environment variables.
    Env,
    /// `x-path`: a path on the host, relative to the file that states it.
    HostPath,
}

/// What an inspection found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub problems: Vec<Diagnostic>,
    pub marks: Vec<(Vec<String>, Mark)>,
}

/// Checks `node` against `schema`, whose references start from `root`.
pub(crate) fn inspect(root: &Value, schema: &Value, node: &Node) -> Findings {
    let mut walk = Walk { root, path: Vec::new(), findings: Findings::default() };
    walk.node(schema, node);
    walk.findings
}

/// The schema of the value at a path, if the schema knows it.
pub(crate) fn schema_at<'a>(root: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(root, |schema, step| child_schema(root, schema, step))
}

fn child_schema<'a>(root: &'a Value, schema: &'a Value, step: &str) -> Option<&'a Value> {
    let target = follow(root, schema);
    if let Some(found) = target.get("properties").and_then(|properties| properties.get(step)) {
        return Some(found);
    }
    if let Some(rest) = target.get("additionalProperties").filter(|rest| rest.is_object()) {
        return Some(rest);
    }
    branches(target).into_iter().flatten().find_map(|branch| child_schema(root, branch, step))
}

/// Whether a schema takes values of this JSON type.
pub(crate) fn accepts(root: &Value, schema: &Value, kind: &str) -> bool {
    let target = follow(root, schema);
    if let Some(branches) = branches(target) {
        return branches.iter().any(|branch| accepts(root, branch, kind));
    }
    if let Some(value) = target.get("const") {
        return json_kind(value) == kind;
    }
    if let Some(values) = target.get("enum").and_then(Value::as_array) {
        return values.iter().any(|value| json_kind(value) == kind);
    }
    match target.get("type") {
        Some(Value::String(name)) => name == kind || (name == "number" && kind == "integer"),
        Some(Value::Array(names)) => names.iter().any(|name| name == kind || (name == "number" && kind == "integer")),
        _ => target.as_bool() != Some(false),
    }
}

/// The texts of a value that its schema marks `x-path`: paths on the host.
pub(crate) fn host_paths<'v>(root: &Value, schema: &Value, value: &'v Value, found: &mut Vec<&'v str>) {
    let target = follow(root, schema);
    if let (true, Some(path)) = (annotated(root, schema, "x-path"), value.as_str()) {
        found.push(path);
    }
    for branch in branches(target).into_iter().chain(target.get("allOf").and_then(Value::as_array)).flatten() {
        host_paths(root, branch, value, found);
    }
    for item in value.as_array().into_iter().flatten() {
        target.get("items").into_iter().for_each(|items| host_paths(root, items, item, found));
    }
    for (key, inner) in value.as_object().into_iter().flatten() {
        let known = target.get("properties").and_then(|properties| properties.get(key));
        let schema = known.or_else(|| target.get("additionalProperties").filter(|rest| rest.is_object()));
        schema.into_iter().for_each(|schema| host_paths(root, schema, inner, found));
    }
}

/// Whether an annotation stands at a schema or at what it refers to.
pub(crate) fn annotated(root: &Value, schema: &Value, name: &str) -> bool {
    let holds = |schema: &Value| schema.get(name) == Some(&Value::Bool(true));
    holds(schema) || holds(follow(root, schema))
}

/// Whether a schema that ranks its values (`x-weakest-first`) says that `after` is at least as strict as `before`; a value that is
/// not written is the default.
pub(crate) fn is_at_least_as_strict(root: &Value, schema: &Value, before: Option<&Value>, after: &Value) -> bool {
    let find = |name: &str| schema.get(name).or_else(|| follow(root, schema).get(name));
    let Some(ranks) = find("x-weakest-first").and_then(Value::as_array) else { return false };
    let rank = |value: &Value| ranks.iter().position(|ranked| ranked == value);
    let before = before.filter(|value| !value.is_null()).or_else(|| find("default")).and_then(rank);
    matches!((before, rank(after)), (Some(before), Some(after)) if after >= before)
}

/// What a layer displaces in the layers below it: of each backend's alternatives (`x-alternatives`: lists of keys, the first of which
/// makes the choice) those that it does not choose, if it chooses one.
pub(crate) fn displaced(schema: &Value, layer: &Node) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (table, settings) in schema["properties"].as_object().into_iter().flatten() {
        let Some(stated) = layer.get(table) else { continue };
        let keys = |alternative: &Value| -> Vec<String> {
            alternative.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let alternatives: Vec<Vec<String>> = settings["x-alternatives"].as_array().into_iter().flatten().map(keys).collect();
        let is_chosen = |keys: &[String]| keys.first().is_some_and(|first| stated.get(first).is_some());
        if alternatives.iter().any(|keys| is_chosen(keys)) {
            let others = alternatives.iter().filter(|keys| !is_chosen(keys)).flatten();
            found.extend(others.map(|key| vec![table.clone(), key.clone()]));
        }
    }
    found
}

fn follow<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    // A chain of references is finite unless it is a circle, which has no meaning: give up on it.
    for _ in 0..16 {
        let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { break };
        let Some(target) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) else { break };
        schema = target;
    }
    schema
}

fn branches(schema: &Value) -> Option<&Vec<Value>> {
    ["anyOf", "oneOf"].iter().find_map(|name| schema.get(name)).and_then(Value::as_array)
}

fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn node_kind(node: &Node) -> &'static str {
    match &node.value {
        Content::Text(_) => "string",
        Content::Integer(_) => "integer",
        Content::Float(_) => "number",
        Content::Bool(_) => "boolean",
        Content::Date(_) => "date",
        Content::List(_) => "array",
        Content::Table(_) => "object",
    }
}

/// A type in the words of TOML.
fn kind_words(kind: &str) -> &'static str {
    match kind {
        "string" => "a string",
        "integer" => "an integer",
        "number" => "a number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a table",
        "date" => "a date",
        _ => "nothing",
    }
}

struct Walk<'a> {
    root: &'a Value,
    path: Vec<String>,
    findings: Findings,
}

impl<'a> Walk<'a> {
    fn node(&mut self, schema: &'a Value, node: &Node) {
        let target = follow(self.root, schema);
        self.mark(schema);
        let kind = node_kind(node);
        if !accepts(self.root, target, kind) {
            return self.wrong_type(schema, kind, node);
        }
        if let Some(branches) = branches(target) {
            return self.branches(schema, branches, node);
        }
        for part in target.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.node(part, node);
        }
        self.allowed_values(target, node);
        match &node.value {
            Content::Table(table) => self.table(target, table, node),
            Content::List(items) => self.list(target, items),
            Content::Integer(integer) => self.range(target, *integer as f64, node),
            Content::Float(float) => self.range(target, *float, node),
            _ => {}
        }
    }

    fn mark(&mut self, schema: &Value) {
        for (name, mark) in [("x-secret", Mark::Secret), ("x-env", Mark::Env), ("x-path", Mark::HostPath)] {
            let already = self.findings.marks.last().is_some_and(|(path, last)| *last == mark && *path == self.path);
            if annotated(self.root, schema, name) && !already {
                self.findings.marks.push((self.path.clone(), mark));
            }
        }
    }

    fn complain(&mut self, node: &Node, message: String, help: Option<String>) {
        self.findings.problems.push(Diagnostic::error(node.place.clone(), &self.path, message).with_help(help));
    }

    /// What was found is named by its type only: the value may be a secret.
    fn wrong_type(&mut self, schema: &Value, kind: &str, node: &Node) {
        let expected = self.expected(schema);
        let name = match self.path.as_slice() {
            [] => "the file".to_owned(),
            [.., list, index] if index.parse::<usize>().is_ok() => format!("an item of `{list}`"),
            [.., key] => format!("`{key}`"),
        };
        self.complain(node, format!("{name} should be {expected}, not {}", kind_words(kind)), None);
    }

    fn expected(&self, schema: &Value) -> String {
        let target = follow(self.root, schema);
        if let Some(text) = [schema, target].iter().find_map(|schema| schema.get("x-expects")?.as_str()) {
            return text.to_owned();
        }
        if let Some(branches) = branches(target) {
            let mut words: Vec<String> = branches.iter().map(|branch| self.expected(branch)).collect();
            words.retain(|word| word != "nothing");
            words.dedup();
            return words.join(" or ");
        }
        match target.get("type") {
            Some(Value::String(name)) => kind_words(name).to_owned(),
            Some(Value::Array(names)) => {
                let words = names.iter().filter_map(Value::as_str).filter(|name| *name != "null").map(kind_words);
                words.collect::<Vec<_>>().join(" or ")
            }
            _ if target.get("enum").is_some() || target.get("const").is_some() => "a string".to_owned(),
            _ => "something else".to_owned(),
        }
    }

    /// Takes the branch that fits; where none does, reports the one that fits best.
    fn branches(&mut self, schema: &Value, branches: &'a [Value], node: &Node) {
        let words: Option<Vec<&Value>> = branches.iter().map(|branch| branch.get("const")).collect();
        if let Some(words) = words {
            return self.one_of(&words, node);
        }
        let kind = node_kind(node);
        let fitting: Vec<&'a Value> = branches.iter().filter(|branch| accepts(self.root, branch, kind)).collect();
        let tried = fitting.iter().map(|branch| {
            let mut walk = Walk { root: self.root, path: self.path.clone(), findings: Findings::default() };
            walk.node(branch, node);
            walk.findings
        });
        let Some(best) = tried.min_by_key(|findings| findings.problems.len()) else { return };
        // A text where only one word may stand beside another type is more likely of the wrong type than the wrong word.
        if !best.problems.is_empty()
            && fitting.len() < branches.len()
            && fitting.iter().all(|branch| branch.get("const").is_some())
        {
            return self.wrong_type(schema, kind, node);
        }
        self.findings.problems.extend(best.problems);
        self.findings.marks.extend(best.marks);
    }

    fn allowed_values(&mut self, schema: &Value, node: &Node) {
        let allowed: Vec<&Value> = match (schema.get("enum").and_then(Value::as_array), schema.get("const")) {
            (Some(values), _) => values.iter().collect(),
            (None, Some(value)) => vec![value],
            (None, None) => return,
        };
        self.one_of(&allowed, node);
    }

    fn one_of(&mut self, allowed: &[&Value], node: &Node) {
        let Content::Text(text) = &node.value else { return };
        let names: Vec<&str> = allowed.iter().filter_map(|value| value.as_str()).collect();
        if !names.contains(&text.as_str()) {
            let help = nearest(text, names.iter().copied()).map(|name| format!("did you mean \"{name}\"?"));
            self.complain(node, format!("{} is not one of {}", shown(text), names.join(", ")), help);
        }
    }

    fn table(&mut self, schema: &'a Value, table: &std::collections::BTreeMap<String, Entry>, node: &Node) {
        let properties = schema.get("properties").and_then(Value::as_object);
        for (key, entry) in table {
            let known = properties.and_then(|properties| properties.get(key));
            let other = schema.get("additionalProperties");
            self.path.push(key.clone());
            match (known, other) {
                (Some(schema), _) => self.node(schema, &entry.node),
                (None, Some(Value::Bool(false))) => self.unknown_key(key, entry, properties),
                (None, Some(schema)) if schema.is_object() => self.node(schema, &entry.node),
                (None, _) => {}
            }
            self.path.pop();
        }
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !table.contains_key(name) {
                let whole = self.path.last().map_or(String::new(), |key| format!(" in `{}`", item_name(&self.path, key)));
                self.complain(node, format!("`{name}` is missing{whole}"), None);
            }
        }
    }

    fn unknown_key(&mut self, key: &str, entry: &Entry, properties: Option<&serde_json::Map<String, Value>>) {
        let known: Vec<&str> = properties.map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default();
        let help = match nearest(key, known.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        let problem = Diagnostic::error(entry.key_place.clone(), &self.path, format!("unknown key {}", ticked(key)));
        self.findings.problems.push(problem.with_help(help));
    }

    fn list(&mut self, schema: &'a Value, items: &[Node]) {
        let Some(schema) = schema.get("items") else { return };
        for (index, item) in items.iter().enumerate() {
            self.path.push(index.to_string());
            self.node(schema, item);
            self.path.pop();
        }
    }

    fn range(&mut self, schema: &Value, number: f64, node: &Node) {
        let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
        if bound("minimum").is_some_and(|least| number < least) || !number.is_finite() {
            let least = bound("minimum").unwrap_or_default();
            self.complain(node, format!("{number} is too small: at least {least}"), None);
        } else if bound("maximum").is_some_and(|most| number > most) {
            self.complain(node, format!("{number} is too great: at most {}", bound("maximum").unwrap_or_default()), None);
        }
    }
}

/// The name of a table for people: an item of a list goes by its list's name.
fn item_name<'a>(path: &'a [String], key: &'a str) -> &'a str {
    if key.parse::<usize>().is_ok() && path.len() > 1 { &path[path.len() - 2] } else { key }
}

/// At most 60 characters of a text, quoted and escaped.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut:?}…") } else { format!("{cut:?}") }
}

fn ticked(key: &str) -> String {
    let cut: String = key.chars().take(60).collect();
    format!("`{}`", cut.escape_debug())
}

/// The candidate that a person most likely meant, if one is near enough.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(far, _)| *far <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// The number of insertions, deletions, replacements and swaps of neighbours that make one word of the other. Case and
/// the difference of `_` and `-` cost nothing.
fn distance(left: &str, right: &str) -> usize {
    let fold = |text: &str| text.to_lowercase().replace('_', "-").chars().collect::<Vec<_>>();
    let (left, right) = (fold(left), fold(right));
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut least = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_found() {
        let keys = ["memory", "cpu", "pids", "file-size", "open-files"];
        for (slip, meant) in
            [("memroy", "memory"), ("Memory", "memory"), ("file_size", "file-size"), ("pid", "pids"), ("openfiles", "open-files")]
        {
            assert_eq!(nearest(slip, keys.into_iter()), Some(meant), "{slip}");
        }
        for far in ["network", "x", ""] {
            assert_eq!(nearest(far, keys.into_iter()), None, "{far}");
        }
    }
}
