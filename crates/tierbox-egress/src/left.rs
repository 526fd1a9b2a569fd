//! Where the logs of an environment's gateways lie on this host, and what is left there when it has ended.

use std::path::{Path, PathBuf};

use tierbox_core::{Decision, Error, Result};

use crate::log::read;

/// How the names of logs begin and end; between the two is `-MACHINE` where each machine has a gateway of its own.
const NAME: (&str, &str) = ("egress", ".jsonl");

/// The log of a gateway in the directory of an environment's lease: of one that serves all machines, or one machine's.
pub fn log_path(directory: &Path, machine: Option<&str>) -> PathBuf {
    let machine = machine.map_or_else(String::new, |machine| format!("-{machine}"));
    directory.join(format!("{}{machine}{}", NAME.0, NAME.1))
}

/// What all gateways decided whose logs are in the directory of an environment's lease, oldest first, each with its machine. They
/// stay there until the lease is removed. `None` if there are no logs.
///
/// # Errors
/// As [`read_log`](crate::read_log).
pub fn read_left(directory: &Path) -> Result<Option<Vec<Decision>>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read egress log", error).with_context("path", directory.display())),
    };
    let mut found: Option<Vec<Decision>> = None;
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(machine) = machine_of(&path) else { continue };
        let all = found.get_or_insert_default();
        all.extend(read(&path)?.into_iter().map(|decision| Decision { machine: machine.clone(), ..decision }));
    }
    Ok(found.map(|mut all| {
        all.sort_by_key(|decision| decision.time);
        all
    }))
}

/// Whose log it is: one machine's, or the whole environment's. `None` for another file.
fn machine_of(path: &Path) -> Option<Option<String>> {
    let rest = path.file_name()?.to_str()?.strip_prefix(NAME.0)?.strip_suffix(NAME.1)?;
    match rest.strip_prefix('-') {
        Some(machine) => Some(Some(machine.to_owned())),
        None => rest.is_empty().then_some(None),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    const LINE: &str = r#"{"time":TIME,"sandbox":"e","id":1,"protocol":"dns","name":"a.test","address":null,"port":53,"verdict":"refused","rule":"x","sent":0,"received":0}"#;

    fn write(path: &Path, time: u64) {
        std::fs::write(path, format!("{}\n", LINE.replace("TIME", &time.to_string()))).unwrap();
    }

    #[test]
    fn each_machine_has_its_log_and_they_are_read_in_order() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_left(&directory.path().join("none")).unwrap(), None);
        assert_eq!(read_left(directory.path()).unwrap(), None);
        write(&log_path(directory.path(), Some("web")), 2);
        write(&log_path(directory.path(), Some("db-1")), 1);
        write(&log_path(directory.path(), None), 3);
        std::fs::write(directory.path().join("egress.txt"), "no log").unwrap();
        let machines: Vec<_> = read_left(directory.path()).unwrap().unwrap().into_iter().map(|one| one.machine).collect();
        assert_eq!(machines, [Some("db-1".to_owned()), Some("web".to_owned()), None]);
    }
}
