//! What a profile says of code tasks. The tasks themselves are `tierbox-code`'s.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// A language that code tasks can be written in, and what runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// The name that callers use: letters, digits, `.`, `_`, `+` and `-`.
    pub name: String,
    /// Programs that run it, the preferred one first: names that are looked up in the machine, or absolute paths.
    pub programs: Vec<String>,
    /// Arguments before the file with the code.
    pub args: Vec<String>,
    /// The extension of the file with the code, without the dot; empty for none.
    pub extension: String,
}

impl Runtime {
    /// A runtime by its name: the known ones with their programs, any other as a program of that name.
    ///
    /// `python` is `python3` where only that exists.
    pub fn named(name: &str) -> Self {
        let (programs, extension): (&[&str], &str) = match name {
            "python" => (&["python", "python3"], "py"),
            "python3" => (&["python3"], "py"),
            "node" => (&["node", "nodejs"], "js"),
            "bash" | "sh" => (&[], "sh"),
            _ => (&[], ""),
        };
        let programs = if programs.is_empty() { &[name] } else { programs };
        Self {
            name: name.to_owned(),
            programs: programs.iter().map(|program| (*program).to_owned()).collect(),
            args: Vec::new(),
            extension: extension.to_owned(),
        }
    }

    /// Checks that it can be used.
    ///
    /// # Errors
    /// `InvalidInput` for a name, program or extension that is none.
    pub fn validate(&self) -> Result<()> {
        let word = |text: &str, more: &str| {
            let plain = |letter: char| letter.is_ascii_alphanumeric() || more.contains(letter);
            !text.is_empty() && text.len() <= 255 && !text.starts_with('-') && text.chars().all(plain)
        };
        let bad = |what: &str, text: &str| {
            let message = format!("{:?} is not {what} of a runtime", text.chars().take(60).collect::<String>());
            Err(Error::new(ErrorKind::InvalidInput, "read runtime", message))
        };
        if !word(&self.name, "._+-") || self.name.len() > 64 {
            return bad("the name", &self.name);
        }
        if self.programs.is_empty() {
            return bad("a program", "");
        }
        if let Some(program) = self.programs.iter().find(|program| !word(program, "._+-/@")) {
            return bad("a program", program);
        }
        if !self.extension.is_empty() && !word(&self.extension, "_") {
            return bad("the extension", &self.extension);
        }
        match self.args.iter().find(|arg| arg.contains('\0')) {
            Some(arg) => bad("an argument", arg),
            None => Ok(()),
        }
    }
}

/// The `[code]` table of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CodeSettings {
    /// The runtimes that tasks may use.
    pub runtimes: Vec<Runtime>,
    /// The directory of the tasks' directories, absolute or relative to the working directory. `.tierbox-code` by default.
    pub base_dir: String,
    /// The age, counted from its last run, at which a task's directory goes. 24 h by default.
    pub expiry: Duration,
    /// The time of a task that sets none; the profile's `limits.exec` where `None`. At most a minute less than `expiry`, as for any task.
    pub time: Option<Duration>,
    /// The most time that a task may ask for.
    pub max_time: Option<Duration>,
    /// Memory (address space) of each process of a task that sets none, in bytes.
    pub memory: Option<u64>,
    /// The largest file that a process of a task may write, in bytes, where the task sets none.
    pub file_size: Option<u64>,
    /// Open files of each process of a task that sets none.
    pub open_files: Option<u64>,
}

impl Default for CodeSettings {
    fn default() -> Self {
        Self {
            runtimes: ["python3", "python", "node", "bash", "sh"].map(Runtime::named).to_vec(),
            base_dir: ".tierbox-code".to_owned(),
            expiry: Duration::from_secs(24 * 3600),
            time: None,
            max_time: None,
            memory: None,
            file_size: None,
            open_files: None,
        }
    }
}

impl CodeSettings {
    /// The runtime of a name.
    pub fn runtime(&self, name: &str) -> Option<&Runtime> {
        self.runtimes.iter().find(|runtime| runtime.name == name)
    }

    /// Checks that tasks can be run so.
    ///
    /// # Errors
    /// `InvalidInput`: a runtime that is none, or a base directory that is not the tasks' own.
    pub fn validate(&self) -> Result<()> {
        self.runtimes.iter().try_for_each(Runtime::validate)?;
        let bad = |message: String| Err(Error::new(ErrorKind::InvalidInput, "read code settings", message));
        let base = self.base_dir.as_str();
        let parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if base.contains('\0') || base.len() > 2048 || parts.is_empty() || parts.contains(&"..") {
            return bad(format!("{:?} cannot be the directory of tasks", base.chars().take(60).collect::<String>()));
        }
        if self.expiry < Duration::from_secs(60) {
            return bad("tasks cannot expire within a minute".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn python_is_whichever_there_is() {
        assert_eq!(Runtime::named("python").programs, ["python", "python3"]);
        assert_eq!(Runtime::named("ruby").programs, ["ruby"]);
        assert!(CodeSettings::default().validate().is_ok());
    }

    #[test]
    fn what_is_no_runtime_is_refused() {
        for bad in ["", "-c", "a b", "$(x)", "x;y", "é"] {
            assert!(Runtime::named(bad).validate().is_err(), "{bad:?}");
        }
        for bad in ["", "/", "//", "./", "a/../b", "/tmp/..", "."] {
            let settings = CodeSettings { base_dir: bad.to_owned(), ..CodeSettings::default() };
            assert!(settings.validate().is_err(), "{bad:?}");
        }
    }
}
