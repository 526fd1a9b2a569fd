//! `tierbox config` and `tierbox profiles`.

use serde_json::json;
use tierbox::profile::{Diagnostic, Listed, Severity};
use tierbox::{Error, ErrorKind, StartOptions};

use crate::interrupt::Failure;
use crate::{Context, exit, neutral, output, table};

pub(crate) fn show(context: &Context, profile: &str, set: Vec<(String, String)>, allow_weaker: bool) -> Result<u8, Failure> {
    let mut options = StartOptions::new();
    options.set = set;
    options.allow_weaker = allow_weaker;
    let profile = context.client.load(profile, &options)?;
    let values = profile.values();
    if context.global.json {
        let values: Vec<_> = values
            .iter()
            .map(|value| {
                let layer = value.provenance.layer.as_str();
                json!({ "key": value.key, "value": value.value, "layer": layer, "place": value.provenance.to_string() })
            })
            .collect();
        let weakened: Vec<_> = profile.weakened().iter().map(ToString::to_string).collect();
        output::json(
            &json!({ "profile": profile.name(), "path": profile.path().map(shown), "values": values, "weakened": weakened }),
        );
        return Ok(0);
    }
    let rows: Vec<Vec<String>> =
        values.into_iter().map(|value| vec![value.key, value.value, value.provenance.to_string()]).collect();
    output::line(table::render(&["KEY", "VALUE", "FROM"], &rows));
    for weakening in profile.weakened() {
        output::line(neutral::text(&format!("weakened: {weakening}")));
    }
    Ok(0)
}

pub(crate) fn validate(context: &Context, profiles: &[String]) -> Result<u8, Failure> {
    let loader = context.client.loader()?;
    let mut status = 0;
    let mut results = Vec::new();
    for name in profiles {
        // What the backend says of its own settings counts as well.
        let (found, error) = match loader.validate(name) {
            Ok(found) if found.iter().any(|diagnostic| diagnostic.severity == Severity::Error) => (found, None),
            Ok(found) => (found, backend_error(context, name)),
            Err(error) => (Vec::new(), Some(error)),
        };
        let worst = found.iter().find(|diagnostic| diagnostic.severity == Severity::Error).map(|diagnostic| diagnostic.kind);
        if let Some(kind) = worst.or(error.as_ref().map(Error::kind)) {
            status = exit::of_error(kind);
        }
        if context.global.json {
            let found: Vec<_> = found.iter().map(describe).collect();
            results.push(json!({ "profile": name, "diagnostics": found, "error": error.as_ref().map(output::describe) }));
        } else {
            print(name, &found, error.as_ref());
        }
    }
    if context.global.json {
        output::json(&results);
    }
    Ok(status)
}

fn backend_error(context: &Context, name: &str) -> Option<Error> {
    // Whether secrets are there is a question for the start, not for the profile.
    let error = context.client.resolve(name, &StartOptions::new()).err()?;
    (error.kind() != ErrorKind::Credentials).then_some(error)
}

fn print(name: &str, found: &[Diagnostic], error: Option<&Error>) {
    if found.is_empty() && error.is_none() {
        return output::line(neutral::text(&format!("{name}: ok")));
    }
    for diagnostic in found {
        output::line(neutral::text(&diagnostic.to_string()));
    }
    if let Some(error) = error {
        output::line(neutral::text(&format!("{name}: error: {error}")));
    }
}

fn describe(diagnostic: &Diagnostic) -> serde_json::Value {
    json!({
        "severity": match diagnostic.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "kind": diagnostic.kind.as_str(),
        "file": diagnostic.place.file(),
        "line": diagnostic.place.line(),
        "column": diagnostic.place.column(),
        "place": diagnostic.place.to_string(),
        "key": diagnostic.key,
        "message": diagnostic.message,
        "help": diagnostic.help,
    })
}

pub(crate) fn schema(context: &Context) -> Result<u8, Failure> {
    let schema = tierbox::profile::schema(context.client.registry());
    output::line(serde_json::to_string_pretty(&schema).unwrap_or_default());
    Ok(0)
}

pub(crate) fn profiles(context: &Context) -> Result<u8, Failure> {
    let listed = context.client.loader()?.list();
    if context.global.json {
        output::json(&listed.iter().map(as_json).collect::<Vec<_>>());
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = listed.iter().map(row).collect();
    output::line(table::render(&["PROFILE", "TIER", "BACKEND", "DESCRIPTION"], &rows));
    Ok(0)
}

fn row(listed: &Listed) -> Vec<String> {
    let name = listed.name.clone();
    match &listed.summary {
        Ok(summary) => vec![name, summary.tier.to_string(), summary.backend.clone(), summary.description.clone()],
        Err(problem) => vec![name, "invalid".into(), String::new(), problem.lines().next().unwrap_or_default().into()],
    }
}

fn as_json(listed: &Listed) -> serde_json::Value {
    let (summary, problem) = match &listed.summary {
        Ok(summary) => (Some(summary), None),
        Err(problem) => (None, Some(problem)),
    };
    json!({
        "profile": listed.name,
        "path": listed.path.as_deref().map(shown),
        "tier": summary.map(|summary| summary.tier),
        "backend": summary.map(|summary| &summary.backend),
        "description": summary.map(|summary| &summary.description),
        "problem": problem,
    })
}

/// A path as data: JSON has no bytes.
fn shown(path: &std::path::Path) -> String {
    path.display().to_string()
}
