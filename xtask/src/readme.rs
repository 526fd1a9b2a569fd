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

/// Runs the `sh` blocks of each page of the book in a directory of the page's own, with the program just built on the path and
/// a state directory of its own. A page that the table of contents does not name is an error, and so is the reverse.
fn run_book() -> Result<(), String> {
    let src = root().join("docs/book/src");
    let summary = read(&src.join("SUMMARY.md"))?;
    check(cargo().args(["build", "--release", "--quiet", "--locked", "--package", "tierbox-cli"]))?;
    for page in pages(&src)? {
        let name = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !summary.contains(&format!("]({name})")) {
            return Err(format!("docs/book/src/SUMMARY.md does not name {name}"));
        }
        run_page(&name, &blocks(&read(&page)?))?;
    }
    let missing = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).find(|name| !src.join(name).is_file());
    missing.map_or(Ok(()), |name| Err(format!("docs/book/src/SUMMARY.md names {name}, which does not exist")))
}

fn run_page(name: &str, blocks: &[String]) -> Result<(), String> {
    if blocks.is_empty() {
        return Ok(());
    }
    println!("xtask: running {} blocks of {name}", blocks.len());
    let script = format!(
        "set -eu\ndir=$(mktemp -d); trap 'rm -rf \"$dir\"' EXIT; cd \"$dir\"\nexport TIERBOX_STATE_DIR=\"$dir/state\"\n{}",
        blocks.concat()
    );
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(programs()).chain(std::env::split_paths(&paths));
    let path: OsString = std::env::join_paths(paths).map_err(|error| error.to_string())?;
    check(Command::new("bash").arg("-xc").arg(script).env("PATH", path))
}

fn programs() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release")
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
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind.trim() == "sh", String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take().filter(|(wanted, _)| *wanted).map(|(_, block)| block)),
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
}
