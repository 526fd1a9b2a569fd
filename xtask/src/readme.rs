//! Runs what is written for readers, so that no command in it goes stale: the README, and the book.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{cargo, check, root};

/// Runs the README, then every page of the book.
pub fn run() -> Result<(), String> {
    run_readme()?;
    run_book()
}

/// Runs every `sh` block of README.md, in order, in one shell that stops at the first failure. Blocks of another kind
/// (`text`, `console`, `toml`, `rust`) are for reading. The test command is left out when this runs inside CI, which runs it
/// by itself.
fn run_readme() -> Result<(), String> {
    let readme = std::fs::read_to_string(root().join("README.md")).map_err(|error| format!("cannot read README.md: {error}"))?;
    let blocks = blocks(&readme);
    if blocks.is_empty() {
        return Err("README.md has no `sh` block: nothing was checked".to_owned());
    }
    let mut script = String::from("set -eu\n");
    for block in &blocks {
        for line in block.lines().filter(|line| !is_test_command(line)) {
            let _ = writeln!(script, "{line}");
        }
    }
    println!("xtask: running {} blocks of README.md", blocks.len());
    check(Command::new("bash").arg("-xc").arg(script).current_dir(root()))
}

/// Engines that a block of the book may need (`sh,ENGINE`), and the variables by which their scripts say that they are there.
const ENGINES: [(&str, &str); 3] =
    [("docker", "TIERBOX_ENGINE_DOCKER"), ("python", "TIERBOX_TEST_PYTHON"), ("vagrant", "TIERBOX_TEST_VAGRANT")];

/// Runs the `sh` blocks of each page of the book in a directory of the page's own, with the program just built on the path and
/// a state directory of its own. A page that the table of contents does not name is an error, and so is the reverse; so are
/// commands that nobody would run, and errors under a text that tierbox does not print.
fn run_book() -> Result<(), String> {
    let src = root().join("docs/book/src");
    let summary = read(&src.join("SUMMARY.md"))?;
    for page in pages(&src)? {
        check_shown(&page, &read(&page)?)?;
    }
    check_errors(&read(&src.join("troubleshooting.md"))?)?;
    // The same build as the tests', so that nothing is compiled twice.
    check(cargo().args(["build", "--quiet", "--locked", "--workspace", "--all-features", "--bin", "tierbox"]))?;
    for page in pages(&src)? {
        let name = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !summary.contains(&format!("]({name})")) {
            return Err(format!("docs/book/src/SUMMARY.md does not name {name}"));
        }
        let there = |engine: &str| ENGINES.iter().any(|(name, set)| *name == engine && std::env::var_os(set).is_some());
        run_page(&name, &runnable(&name, &read(&page)?, there)?)?;
    }
    let missing = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).find(|name| !src.join(name).is_file());
    missing.map_or(Ok(()), |name| Err(format!("docs/book/src/SUMMARY.md names {name}, which does not exist")))
}

/// The blocks of a page that can run here. On CI every engine must be there.
fn runnable(name: &str, text: &str, there: impl Fn(&str) -> bool) -> Result<Vec<String>, String> {
    let mut runnable = Vec::new();
    for (kind, block) in fenced(text) {
        match kind.split_once(',') {
            None if kind == "sh" => runnable.push(block),
            Some(("sh", engine)) if !ENGINES.iter().any(|(known, _)| *known == engine) => {
                return Err(format!("{name}: no engine is called {engine}"));
            }
            Some(("sh", engine)) if there(engine) => runnable.push(block),
            Some(("sh", engine)) if std::env::var_os("CI").is_some() => {
                return Err(format!("{name}: a command needs {engine}, which was not started"));
            }
            Some(("sh", engine)) => println!("xtask: {name}: a block was left out, since {engine} was not started"),
            _ => {}
        }
    }
    Ok(runnable)
}

/// A command that is only shown would go stale.
fn check_shown(page: &Path, text: &str) -> Result<(), String> {
    let programs = ["tierbox ", "cargo ", "inspect ", "curl ", "$ "];
    let stale = |(kind, block): (&str, String)| {
        let shown = ["", "text", "console", "bash"].contains(&kind);
        block.lines().find(|line| shown && programs.iter().any(|program| line.starts_with(program))).map(str::to_owned)
    };
    let found = fenced(text).into_iter().find_map(stale);
    found.map_or(Ok(()), |line| Err(format!("{}: nothing runs `{line}`: put it into an `sh` block", page.display())))
}

/// Each entry of the troubleshooting page begins with what tierbox prints; `…` stands for what differs.
fn check_errors(text: &str) -> Result<(), String> {
    let sources = sources(&root().join("crates"))? + &sources(&root().join("python/src"))?;
    let printed = |part: &&str| sources.contains(*part);
    for entry in text.split("**`").skip(1).filter_map(|rest| rest.split("`**").next()) {
        let parts = entry.split('…').map(|part| part.trim_matches(|letter: char| letter == ' ' || letter == ':'));
        if let Some(part) = parts.filter(|part| part.len() > 2).find(|part| !printed(part)) {
            return Err(format!("troubleshooting.md: nothing prints {part:?} of the entry {entry:?}"));
        }
    }
    Ok(())
}

/// All Rust and Python sources below a directory, with the line breaks in long texts taken out.
fn sources(directory: &Path) -> Result<String, String> {
    let mut text = String::new();
    let entries = std::fs::read_dir(directory).map_err(|error| format!("cannot read {}: {error}", directory.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            text += &sources(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "py") {
            text += &read(&path)?.replace('\\', "").split_whitespace().collect::<Vec<_>>().join(" ");
        }
    }
    Ok(text)
}

/// A directory of a page's own. A daemon that the page started ends with it, and so does every sandbox.
const SCENE: &str = r#"set -eu
dir=$(mktemp -d)
clear_up() {
    set +eu
    pid=$(curl --silent --unix-socket "$dir/state/serve/serve.sock" http://tierbox/v1 | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
    [ -z "$pid" ] || kill "$pid"
    tierbox cleanup --all --yes >/dev/null 2>&1
    cd / && rm -rf "$dir"
}
trap clear_up EXIT
cd "$dir"
export TIERBOX_STATE_DIR="$dir/state"
"#;

fn run_page(name: &str, blocks: &[String]) -> Result<(), String> {
    if blocks.is_empty() {
        return Ok(());
    }
    println!("xtask: running {} blocks of {name}", blocks.len());
    let script = format!("{SCENE}export CHECKOUT='{}'\n{}", root().display(), blocks.concat());
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(programs()).chain(std::env::split_paths(&paths));
    let path: OsString = std::env::join_paths(paths).map_err(|error| error.to_string())?;
    let mut shell = Command::new("bash");
    shell.arg("-xc").arg(script).env("PATH", path);
    // Readers have one engine, the usual one; the tests' is elsewhere.
    if let Some(host) = std::env::var_os("TIERBOX_ENGINE_DOCKER") {
        shell.env("DOCKER_HOST", host);
    }
    check(&mut shell)
}

fn programs() -> PathBuf {
    crate::target().join("debug")
}

fn pages(src: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(src).map_err(|error| format!("cannot read {}: {error}", src.display()))?;
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md") && !path.ends_with("SUMMARY.md");
    let mut pages: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_page).collect();
    pages.sort();
    Ok(pages)
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn is_test_command(line: &str) -> bool {
    line.trim_start().starts_with("cargo xtask") && std::env::var_os("CI").is_some()
}

fn blocks(text: &str) -> Vec<String> {
    fenced(text).into_iter().filter(|(kind, _)| *kind == "sh").map(|(_, block)| block).collect()
}

/// Every fenced block with its kind.
fn fenced(text: &str) -> Vec<(&str, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind.trim(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_sh_blocks_are_commands() {
        assert_eq!(blocks("a\n```sh\nls\n```\n```toml\nx = 1\n```\n```sh\npwd\n```\n"), ["ls\n", "pwd\n"]);
    }

    #[test]
    fn blocks_that_need_an_engine_run_where_it_is() {
        let page = "```sh\na\n```\n```sh,docker\nb\n```\n";
        assert_eq!(runnable("p", page, |engine| engine == "docker").unwrap(), ["a\n", "b\n"]);
        assert!(runnable("p", "```sh,dokcer\nb\n```\n", |_| true).is_err());
    }

    #[test]
    fn a_command_that_nothing_runs_is_an_error() {
        assert!(check_shown(Path::new("p"), "```text\ntierbox ls\n```\n").is_err());
        check_shown(Path::new("p"), "```text\nerror: x\n```\n```sh\ntierbox ls\n```\n").unwrap();
        assert!(check_errors("**`no such words are ever printed`**: x\n").is_err());
    }
}
