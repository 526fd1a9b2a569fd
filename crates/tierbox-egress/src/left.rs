//! Where the logs of an environment's gateways lie on this host, and what is left there when it has ended.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
    let mut found: Option<Vec<Vec<Decision>>> = None;
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(machine) = machine_of(&path) else { continue };
        let own = read(&path)?.into_iter().map(|decision| Decision { machine: machine.clone(), ..decision });
        found.get_or_insert_default().push(own.collect());
    }
    Ok(found.map(merge))
}

/// The decisions of several gateways by their time, those of each in the order in which it made them: a clock may have been put back
/// meanwhile, and who reads them again must find the same ones first.
pub fn merge(logs: Vec<Vec<Decision>>) -> Vec<Decision> {
    let timed = |log: Vec<Decision>| {
        let mut latest = SystemTime::UNIX_EPOCH;
        log.into_iter().map(move |decision| {
            latest = latest.max(decision.time);
            (latest, decision)
        })
    };
    let mut all: Vec<_> = logs.into_iter().flat_map(timed).collect();
    all.sort_by_key(|(time, _)| *time);
    all.into_iter().map(|(_, decision)| decision).collect()
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

    #[test]
    fn a_gateways_own_order_counts_more_than_its_clock() {
        let directory = tempfile::tempdir().unwrap();
        let log = |machine: &str, times: &[u64]| {
            let line = |(id, time): (usize, &u64)| {
                LINE.replace("TIME", &time.to_string()).replace("\"id\":1", &format!("\"id\":{id}")) + "\n"
            };
            let lines: String = times.iter().enumerate().map(line).collect();
            std::fs::write(log_path(directory.path(), Some(machine)), lines).unwrap();
        };
        let of = |machine: &str| -> Vec<u64> {
            let all = read_left(directory.path()).unwrap().unwrap();
            all.into_iter().filter(|one| one.machine.as_deref() == Some(machine)).map(|one| one.id).collect()
        };
        log("web", &[5000, 1000, 1500, 6000]);
        log("db", &[1200, 5500]);
        assert_eq!((of("web"), of("db")), (vec![0, 1, 2, 3], vec![0, 1]));
        // What was first stays first, whatever comes after it.
        log("web", &[5000, 1000, 1500, 6000, 10]);
        assert_eq!(of("web"), [0, 1, 2, 3, 4]);
    }
}
