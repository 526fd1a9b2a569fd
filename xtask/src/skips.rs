//! What the tests skipped, and whether they were allowed to.
//!
//! A test that cannot run for want of an engine appends one line to the file that `TIERBOX_SKIP_FILE` names: engine, test,
//! reason and install command, separated by tabs. Nothing passes by being absent: the list closes the run, and where `CI`
//! is set, a skip for an engine in `tests/engines-required.txt` fails it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use crate::root;

/// How many tests of an engine are named.
const NAMES: usize = 5;

/// The skip file of one run.
pub struct Record {
    file: PathBuf,
}

#[derive(Default)]
struct Engine {
    tests: BTreeSet<String>,
    reasons: BTreeSet<String>,
    install: String,
}

impl Record {
    /// An empty file for this run.
    pub fn start() -> Result<Self, String> {
        let file = std::env::temp_dir().join(format!("tierbox-skips-{}", std::process::id()));
        std::fs::write(&file, "").map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        Ok(Self { file })
    }

    /// Tells a test runner where to write.
    pub fn pass_to(&self, command: &mut Command) {
        command.env("TIERBOX_SKIP_FILE", &self.file);
    }

    /// Prints the list, and fails if an engine that must be there was missing. In brief, it does not hide what failed before it.
    pub fn finish(self, in_brief: bool) -> Result<(), String> {
        let lines =
            std::fs::read_to_string(&self.file).map_err(|error| format!("cannot read {}: {error}", self.file.display()))?;
        let engines = parse(&lines);
        // The file is a by-product; a leftover in the temporary directory does no harm.
        let _ = std::fs::remove_file(&self.file);
        print_list(&engines, if in_brief { 0 } else { NAMES });
        if std::env::var_os("CI").is_none() {
            return Ok(());
        }
        let required = std::fs::read_to_string(root().join("tests/engines-required.txt")).unwrap_or_default();
        let missing: Vec<&str> = required.lines().map(str::trim).filter(|name| engines.contains_key(*name)).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("tests were skipped for engines that must be here: {}", missing.join(", ")))
        }
    }
}

fn parse(lines: &str) -> BTreeMap<String, Engine> {
    let mut engines: BTreeMap<String, Engine> = BTreeMap::new();
    for line in lines.lines() {
        let mut fields = line.splitn(4, '\t');
        let (Some(name), Some(test)) = (fields.next(), fields.next()) else { continue };
        let engine = engines.entry(name.to_owned()).or_default();
        engine.tests.insert(test.to_owned());
        engine.reasons.extend(fields.next().map(str::to_owned));
        engine.install = fields.next().unwrap_or_default().to_owned();
    }
    engines
}

fn print_list(engines: &BTreeMap<String, Engine>, names: usize) {
    if engines.is_empty() {
        println!("\nNo test was skipped for want of an engine.");
        return;
    }
    println!("\nSkipped for want of an engine:");
    for (name, engine) in engines {
        println!("  {name}: {} tests", engine.tests.len());
        if names == 0 {
            continue;
        }
        engine.reasons.iter().for_each(|reason| println!("    why:     {reason}"));
        println!("    install: {}", engine.install);
        engine.tests.iter().take(names).for_each(|test| println!("    {test}"));
        if engine.tests.len() > names {
            println!("    … and {} more", engine.tests.len() - names);
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn lines_are_grouped_by_engine() {
        let engines =
            parse("docker\tconformance::a\tno socket\tapt-get install docker.io\ndocker\tconformance::b\tno socket\tx\nbroken\n");
        assert_eq!(engines.len(), 1);
        assert_eq!(engines["docker"].tests.len(), 2);
        assert_eq!(engines["docker"].reasons.len(), 1);
    }
}
