//! Runs the README, so that no command in it goes stale.

use std::fmt::Write as _;
use std::process::Command;

use crate::{check, root};

/// Runs every `sh` block of README.md, in order, in one shell that stops at the first failure. Blocks of another kind
/// (`text`, `console`, `toml`, `rust`) are for reading. The test command is left out when this runs inside CI, which runs it
/// by itself.
pub fn run() -> Result<(), String> {
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
