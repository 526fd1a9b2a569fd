//! The test command: the same tests and the same skip rule under either runner.

use std::process::Stdio;

use crate::engines::Engines;
use crate::{cargo, check, skips};

/// Runs all tests, then the documentation's (which nextest does not run), then lists what was skipped and why.
pub fn run(args: Vec<String>) -> Result<(), String> {
    let Options { slow, yes, engines, rest } = Options::parse(args)?;
    let engines = Engines::start(&engines, yes)?;
    let skips = skips::Record::start()?;
    let with_nextest = has_nextest();
    let mut runner = cargo();
    if with_nextest {
        runner.args(["nextest", "run", "--workspace", "--all-features", "--no-fail-fast"]);
        runner.args(profile(slow));
        runner.args(&rest);
    } else {
        println!("xtask: cargo-nextest is not installed, using cargo test (cargo install cargo-nextest runs tests in parallel)");
        runner.args(["test", "--workspace", "--all-features", "--no-fail-fast", "--tests", "--"]);
        runner.args(if slow { [].as_slice() } else { &["--skip", "slow::"] });
        runner.args(&rest);
    }
    skips.pass_to(&mut runner);
    engines.pass_to(&mut runner);
    let tests = check(&mut runner);
    let docs = if rest.is_empty() {
        let mut docs = cargo();
        docs.args(["test", "--workspace", "--all-features", "--doc", "--quiet"]);
        skips.pass_to(&mut docs);
        check(&mut docs)
    } else {
        Ok(())
    };
    let required = skips.finish(tests.is_err());
    tests.and(docs).and(required)
}

/// The runner's profile: what runs, and whether a test is tried again.
fn profile(slow: bool) -> &'static [&'static str] {
    match (slow, std::env::var_os("CI").is_some()) {
        (true, _) => &["--profile", "slow"],
        (false, true) => &["--profile", "ci"],
        (false, false) => &[],
    }
}

/// What the arguments ask for.
#[derive(Default)]
struct Options {
    slow: bool,
    yes: bool,
    engines: Vec<String>,
    rest: Vec<String>,
}

impl Options {
    fn parse(args: Vec<String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--slow" => options.slow = true,
                "--yes" => options.yes = true,
                "--engine" => options.engines.push(args.next().ok_or("--engine needs a name")?),
                _ => options.rest.push(arg),
            }
        }
        Ok(options)
    }
}

fn has_nextest() -> bool {
    let answer = cargo().args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    answer.is_ok_and(|status| status.success())
}
