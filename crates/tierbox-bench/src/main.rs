//! Measures tierbox against the floor, or a peer, of each thing it does, in the same run.
//!
//! `cargo run --release -p tierbox-bench -- --help` tells more. Both sides of a row are measured in turns, so that
//! whatever else the machine does burdens both.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this program talks to a terminal")]

mod bench;
mod cases;
mod chart;
mod machine;
mod peers;
mod program;
mod report;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;

use bench::{Bench, Failure};
use report::{Row, Run, Verdict};

const HELP: &str = "\
Measures tierbox against the floor, or a peer, of each thing it does, in the same run.

Usage: cargo run --release -p tierbox-bench -- [OPTIONS]

  --quick       20 samples of each instead of 100, and fewer of what is slow
  --only NAME   only the rows whose name contains NAME; may be repeated
  --build       also the time of a release build from nothing, which takes minutes
  --json FILE   write all numbers to FILE
  --svg FILE    write a chart to FILE
  --check       exit with status 1 if a ratio is over twice its bar, or a row could not be measured; such a row is
                measured again first, twice at most, since a neighbour on the same hardware can slow a minute down
  --help        this text

Needs bwrap (package bubblewrap) as the peer, for the gateway squid as well, and a host where the profile `local` starts (`tierbox doctor`).";

/// What the command line asks for.
#[derive(Debug, Default)]
struct Options {
    quick: bool,
    build: bool,
    check: bool,
    only: Vec<String>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

fn options() -> Result<Option<Options>, Failure> {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--build" => options.build = true,
            "--check" => options.check = true,
            "--only" => options.only.push(value()?),
            "--json" => options.json = Some(value()?.into()),
            "--svg" => options.svg = Some(value()?.into()),
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("{other:?} is not an option\n\n{HELP}").into()),
        }
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    if let Some(code) = cases::egress::inside().or_else(cases::idle::inside) {
        return code;
    }
    let outcome = options().and_then(|options| match options {
        None => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        Some(options) => measure(&options),
    });
    outcome.unwrap_or_else(|failure| {
        eprintln!("tierbox-bench: {failure}");
        ExitCode::FAILURE
    })
}

fn measure(options: &Options) -> Result<ExitCode, Failure> {
    let machine = machine::Machine::read();
    println!("{machine}\n");
    let bench = Bench::new(options.quick)?;
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()));
    let mut rows = Vec::new();
    for case in cases::ALL.iter().filter(|case| wanted(case.name) && (options.build || !case.needs_build)) {
        eprintln!("measuring: {} …", case.name);
        rows.extend(measure_case(&bench, case, if options.check { 3 } else { 1 }));
    }
    let run = Run { machine, quick: options.quick, rows };
    println!("{run}");
    if let Some(path) = &options.json {
        std::fs::write(path, run.to_json()?).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if let Some(path) = &options.svg {
        std::fs::write(path, chart::svg(&run)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(if options.check && !acceptable(&run.rows) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn acceptable(rows: &[Row]) -> bool {
    !rows.iter().any(|row| matches!(row.verdict, Verdict::Over | Verdict::Failed))
}

/// The rows of one case, measured until they are acceptable: a slower program stays slow, a disturbed minute does not.
fn measure_case(bench: &Bench, case: &cases::Case, tries: u32) -> Vec<Row> {
    let once = || (case.measure)(bench).unwrap_or_else(|failure| vec![Row::failed(case.name, case.bar, &failure.to_string())]);
    let mut rows = once();
    for again in 1..tries {
        if acceptable(&rows) {
            break;
        }
        for row in &rows {
            eprintln!(
                "  {}: {} at a ratio of {:.2}; measured again ({again} of {})",
                row.name,
                row.verdict,
                row.ratio,
                tries - 1
            );
        }
        rows = once();
    }
    rows
}
