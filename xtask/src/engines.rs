//! Engines that tests need: each has a script `tests/engines/NAME.sh` with the verbs `install`, `start` and `stop`.
//!
//! `install` may ask the system's package manager and is idempotent. `start` is idempotent too, starts in the background what
//! the tests need, and prints `KEY=value` lines, which the tests get as their environment. `stop` ends what `start` began.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{check, root};

/// Engines that were started for one run, stopped when it is over.
#[derive(Default)]
pub struct Engines {
    scripts: Vec<PathBuf>,
    environment: Vec<(String, String)>,
}

impl Drop for Engines {
    fn drop(&mut self) {
        for script in self.scripts.iter().rev() {
            if let Err(error) = check(Command::new(script).arg("stop")) {
                eprintln!("xtask: {error}");
            }
        }
    }
}

impl Engines {
    /// Installs (after asking, unless `yes` or on CI) and starts engines by name.
    pub fn start(names: &[String], yes: bool) -> Result<Self, String> {
        let mut engines = Self::default();
        for name in names {
            let script = script(name)?;
            if yes || std::env::var_os("CI").is_some() || confirmed(name)? {
                check(Command::new(&script).arg("install"))?;
            }
            engines.scripts.push(script.clone());
            engines.environment.extend(started(&script)?);
        }
        Ok(engines)
    }

    /// Tells a test runner where the engines are.
    pub fn pass_to(&self, command: &mut Command) {
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
    }
}

fn script(name: &str) -> Result<PathBuf, String> {
    let dir = root().join("tests/engines");
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let path = dir.join(format!("{name}.sh"));
    if plain && path.is_file() {
        return Ok(path);
    }
    let known = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    let mut known: Vec<String> =
        known.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".sh")?.to_owned())).collect();
    known.sort();
    Err(format!("{name:?} is no engine; there are {}", known.join(", ")))
}

/// Asks a person whether packages may be installed. Without a terminal nobody can be asked, and nothing is installed.
fn confirmed(name: &str) -> Result<bool, String> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    print!("xtask: tests/engines/{name}.sh installs system packages as root where they are missing. Go on? [y/N] ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| error.to_string())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn started(script: &PathBuf) -> Result<Vec<(String, String)>, String> {
    let output = Command::new(script)
        .arg("start")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{} could not be started: {error}", script.display()))?;
    if !output.status.success() {
        return Err(format!("{} start failed: {}", script.display(), output.status));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(lines: &str) -> Vec<(String, String)> {
    let is_key =
        |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    pairs.filter(|(key, _)| is_key(key)).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_key_value_lines_count() {
        assert_eq!(parse("A_1=x=y\nnoise\nlower=1\n=2\nB=\n"), [("A_1".into(), "x=y".into()), ("B".into(), String::new())]);
    }

    #[test]
    fn names_are_not_paths() {
        assert!(script("../docker").is_err() && script("").is_err() && script("no-such-engine").is_err());
        assert!(script("docker").is_ok());
    }
}
