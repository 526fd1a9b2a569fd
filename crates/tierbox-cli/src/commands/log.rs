//! `tierbox log` and `tierbox report`.

use std::path::PathBuf;

use serde_json::{Value, json};
use tierbox::verify::log::{self, Record, Standing};
use tierbox::{Error, Result};

use crate::{Context, output, table};

/// The exit status for a log that was changed, a line that cannot be read among its changes.
const CHANGED: u8 = 1;

/// Checks a log.
pub(crate) fn verify(context: &Context, run: &str, noted: Option<&str>) -> Result<u8> {
    let run = context.client.run(run)?;
    let standing = run.check(noted)?;
    let intact = standing.is_intact();
    if context.global.json {
        let problems: Vec<_> = standing.problems.iter().map(|it| json!({ "line": it.line, "problem": it.what })).collect();
        output::json(&json!({
            "intact": intact, "lines": standing.head.lines, "hash": standing.head.hash, "torn_bytes": standing.torn,
            "ended": standing.ended, "unfinished": standing.unfinished, "files": standing.references,
            "attestation_matches": run.attestation_matches, "problems": problems,
        }));
    } else {
        show(&standing);
    }
    Ok(if intact { 0 } else { CHANGED })
}

fn show(standing: &Standing) {
    for problem in &standing.problems {
        let place = if problem.line == 0 { "the log".to_owned() } else { format!("line {}", problem.line) };
        output::line(crate::neutral::text(&format!("{place}: {}", problem.what)));
    }
    if standing.torn > 0 {
        output::line(format!("a last line of {} bytes was cut off when its writer died: no sign of tampering", standing.torn));
    }
    for exec in &standing.unfinished {
        output::line(format!("the end of command {exec} is not recorded"));
    }
    let is = if standing.is_intact() { "is as it was written" } else { "WAS CHANGED" };
    let ended = if standing.ended { "ended in order" } else { "not ended in order, or still running" };
    output::line(format!(
        "the log {is}: {} lines, {} files, last hash {}; {ended}",
        standing.head.lines, standing.references, standing.head.hash
    ));
}

/// Prints a log for people.
pub(crate) fn print(context: &Context, run: &str) -> Result<u8> {
    let run = context.client.run(run)?;
    let records = log::read_readable(&run.directory)?;
    if context.global.json {
        output::json(&Value::Array(records.into_iter().map(|record| record.value).collect()));
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = records.iter().map(row).collect();
    output::line(table::render(&["#", "TIME", "WHO", "OPERATION", "OUTCOME", "WHAT"], &rows));
    Ok(0)
}

fn row(record: &Record) -> Vec<String> {
    let value = &record.value;
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let outcome = &value["outcome"];
    let ended = match outcome["status"].as_str().unwrap_or_default() {
        "ended" => outcome["completed"]["outcome"].to_string().replace(['{', '}', '"'], ""),
        "failed" => format!("failed: {}", outcome["kind"].as_str().unwrap_or_default()),
        other => other.to_owned(),
    };
    let arguments = &value["arguments"];
    let what = match arguments["argv"].as_array() {
        Some(argv) => {
            argv.iter().map(|word| word.as_str().map_or_else(|| word.to_string(), str::to_owned)).collect::<Vec<_>>().join(" ")
        }
        None if arguments.is_null() => text("exec"),
        None => arguments.to_string(),
    };
    vec![record.seq.to_string(), text("time"), text("principal"), text("operation"), ended, what.chars().take(120).collect()]
}

/// Renders a run as one page.
pub(crate) fn report(context: &Context, run: &str, to: Option<PathBuf>) -> Result<u8> {
    let run = context.client.run(run)?;
    let standing = run.check(None)?;
    let records = log::read_readable(&run.directory)?;
    let page = tierbox::verify::page(run.attestation.as_ref(), &records, &standing, &run.decisions);
    match to {
        None => output::raw(page.as_bytes()),
        Some(path) => {
            std::fs::write(&path, page).map_err(|error| Error::io("write report", error).with_context("path", path.display()))?
        }
    }
    Ok(0)
}
