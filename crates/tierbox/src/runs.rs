//! The directories of runs: operation log and attestation.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tierbox_core::{Audit, AuditEntry, AuditSpill, Decision, EnvironmentSpec, Error, ErrorKind, Hold, Network, Result, Secrets};
use tierbox_lease::{Journal, check_id, remove_tree};
use tierbox_verify::log::{Against, Problem, Standing, check_against};
use tierbox_verify::{LogLimits, OperationLog, digest};

use crate::decided::decision_in;
use crate::life;
use crate::memo::Memo;

/// The directory of runs in a state directory.
const RUNS: &str = "runs";
/// The directory, beside that of runs, of the notes of where their logs end.
const HEADS: &str = "heads";
/// Runs that are kept. The oldest of those that have ended go first.
const KEPT: usize = 200;
/// The log's name.
const LOG: &str = "log.jsonl";
/// The attestation's name.
pub(crate) const ATTESTATION: &str = "attestation.json";

/// The directory of a run, by its environment's id.
pub(crate) fn directory(state: &Path, id: &str) -> Result<PathBuf> {
    check_id(id)?;
    Ok(state.join(RUNS).join(id))
}

/// The directory of the last run of an environment that had this name.
pub(crate) fn last_named(state: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(state.join(RUNS)).ok()?;
    let began = |run: &PathBuf| {
        let start = tierbox_verify::log::first(run, |line| line["arguments"]["step"] == life::START)?;
        (start["arguments"][life::NAME] == name).then(|| start["time"].as_str().map(str::to_owned))?
    };
    let named = entries.flatten().map(|entry| entry.path()).filter_map(|run| Some((began(&run)?, run)));
    named.max().map(|(_, run)| run)
}

/// Where the end of a run's log is noted; `None` for a directory that is not among runs.
fn note(run: &Path) -> Option<PathBuf> {
    let runs = run.parent().filter(|runs| runs.file_name().is_some_and(|name| name == RUNS))?;
    Some(runs.parent()?.join(HEADS).join(run.file_name()?))
}

/// Opens the log of an environment.
pub(crate) fn open(journal: &Journal, id: &str, secrets: Secrets, withhold: bool) -> Result<Arc<OperationLog>> {
    let directory = directory(journal.state().path(), id)?;
    let log = match note(&directory) {
        Some(note) => OperationLog::open_kept(&directory, &note, secrets, LogLimits::default())?,
        None => OperationLog::open(&directory, secrets, LogLimits::default())?,
    };
    Ok(Arc::new(if withhold { log.withholding() } else { log }))
}

/// Opens the log of an environment that is about to start, and makes room for it.
pub(crate) fn begin(journal: &Journal, id: &str, spec: &EnvironmentSpec) -> Result<Arc<OperationLog>> {
    // What cannot be removed now can be another time.
    let _ = prune(journal);
    open(journal, id, spec.secrets.clone(), false)
}

fn prune(journal: &Journal) -> Result<()> {
    let failed = |error| Error::io("list runs", error);
    let root = journal.state().path().join(RUNS);
    let Ok(entries) = std::fs::read_dir(&root) else { return Ok(()) };
    let mut runs = Vec::new();
    for entry in entries.flatten() {
        runs.push((entry.metadata().and_then(|meta| meta.modified()).map_err(failed)?, entry.file_name()));
    }
    if runs.len() < KEPT {
        return Ok(());
    }
    runs.sort();
    let living: Vec<String> = journal.list()?.entries.into_iter().map(|entry| entry.record.id).collect();
    let ended = runs.iter().filter(|(_, name)| !living.iter().any(|id| name == id.as_str()));
    for (_, name) in ended.take(runs.len() + 1 - KEPT) {
        let run = root.join(name);
        remove_tree(&run).map_err(failed)?;
        // A note without a run says nothing.
        let _ = note(&run).map(std::fs::remove_file);
    }
    Ok(())
}

/// Writes a file of a run, whole or not at all. Returns its hash.
pub(crate) fn write(directory: &Path, name: &str, contents: &[u8]) -> Result<String> {
    let failed = |error| Error::io("write run", error).with_context("path", directory.join(name).display());
    let unfinished = directory.join(format!(".{name}"));
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished).map_err(failed)?;
    file.write_all(contents).map_err(failed)?;
    std::fs::rename(&unfinished, directory.join(name)).map_err(failed)?;
    Ok(digest(contents))
}

/// The hash of the profile as resolved, without what is another for each start. Values that may be secrets do not count.
pub(crate) fn profile_hash(spec: &EnvironmentSpec) -> String {
    let mut shape = serde_json::to_value(spec).unwrap_or_default();
    if let Some(shape) = shape.as_object_mut() {
        // Who keeps it is another thing each time, but a gateway in a process of its own is another gateway.
        let hold = shape.remove("hold");
        if spec.tier.network() == Network::N1 {
            let is_here = hold == serde_json::to_value(Hold::Process).ok();
            shape.insert("gateway".to_owned(), (if is_here { "of the harness" } else { "a process" }).into());
        }
        shape.remove("files");
        let names: Vec<&String> = spec.env.keys().collect();
        shape.insert("env".to_owned(), serde_json::json!(names));
    }
    let text = spec.secrets.redact_text(&shape.to_string()).into_owned();
    digest(text.as_bytes())
}

/// Two places that both keep everything.
pub(crate) struct Both(pub Arc<dyn Audit>, pub Arc<dyn Audit>);

impl Audit for Both {
    fn record(&self, entry: AuditEntry) {
        self.0.record(entry.clone());
        self.1.record(entry);
    }

    fn spill(&self, stream: &str) -> Option<Box<dyn AuditSpill>> {
        // The first is the log, which the other is told the name of the file in.
        self.0.spill(stream)
    }

    fn check(&self) -> Result<()> {
        self.0.check().and_then(|()| self.1.check())
    }
}

/// The log of an environment that another process started, which it began, or somebody since; `None` if it has none, and none is
/// `wanted`.
pub(crate) fn reopen(journal: &Journal, id: &str, memo: &Memo, wanted: bool) -> Result<Option<Arc<OperationLog>>> {
    let is_there = memo.log || directory(journal.state().path(), id)?.join(LOG).is_file();
    if !is_there && wanted {
        let _ = prune(journal);
    }
    // Its secrets are known to that process alone: what may hold one is then withheld.
    (is_there || wanted).then(|| open(journal, id, Secrets::new(), memo.secrets)).transpose()
}

/// The attestation in the directory of a run.
pub(crate) fn attestation(directory: &Path) -> Option<tierbox_verify::Attestation> {
    serde_json::from_slice(&beside(directory, ATTESTATION)?).ok()
}

/// What a file beside the log holds; `None` if there is no such file, or something else of its name.
fn beside(directory: &Path, name: &str) -> Option<Vec<u8>> {
    let path = directory.join(name);
    path.symlink_metadata().ok()?.is_file().then(|| std::fs::read(path).ok())?
}

/// A run that was logged.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its directory.
    pub directory: PathBuf,
    /// What was attested at its start; `None` if it never got so far.
    pub attestation: Option<tierbox_verify::Attestation>,
    /// What its gateway decided, as far as the log has it: all of it when it has ended, and all but the last seconds while it runs.
    pub decisions: Vec<Decision>,
    /// Whether its attestation is the one that its log names.
    pub attestation_matches: bool,
}

impl Run {
    /// Checks the run: every line of its log against the one before, every file against its line, the attestation among
    /// them, and its end against where its writers noted it. `noted` is the hash of a line that somebody wrote down, which must still be there.
    ///
    /// # Errors
    /// What the file system says. What is wrong with the log is in the result.
    pub fn check(&self, noted: Option<&str>) -> Result<Standing> {
        let directory = self.directory.canonicalize().unwrap_or_else(|_| self.directory.clone());
        let kept = note(&directory);
        let mut standing = check_against(&directory, Against { kept: kept.as_deref(), noted })?;
        if !self.attestation_matches {
            standing.problems.push(Problem { line: 0, what: "the attestation is not what the log names".to_owned() });
        }
        Ok(standing)
    }

    /// Reads what lies beside the log in the directory of a run.
    pub(crate) fn read(directory: PathBuf) -> Result<Self> {
        if !directory.join(LOG).is_file() {
            return Err(Error::new(ErrorKind::NotFound, "find run", format!("{} holds no operation log", directory.display()))
                .with_help("a run is logged if it is asked for: `tierbox run --log`, StartOptions::log"));
        }
        // Which line cannot be read, the check tells.
        let records = tierbox_verify::log::read_readable(&directory)?;
        let named = records.iter().rev().find_map(|record| {
            let value = &record.value["arguments"];
            let is_it = record.value["operation"] == "lifecycle" && value["step"] == "attestation";
            is_it.then(|| value["sha256"].as_str().map(str::to_owned))?
        });
        let text = beside(&directory, ATTESTATION);
        Ok(Self {
            attestation: text.as_deref().and_then(|text| serde_json::from_slice(text).ok()),
            decisions: records.iter().filter_map(|record| decision_in(&record.value)).collect(),
            attestation_matches: text.as_deref().map(digest) == named,
            directory,
        })
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_gateway_in_another_process_is_another_configuration() {
        let of =
            |tier: &str, hold: Hold| profile_hash(&EnvironmentSpec { hold, ..EnvironmentSpec::new("b", tier.parse().unwrap()) });
        assert_ne!(of("T0.H1.N1", Hold::Process), of("T0.H1.N1", Hold::Kept));
        let later = Hold::Until(std::time::SystemTime::UNIX_EPOCH);
        assert_eq!(of("T0.H1.N1", later), of("T0.H1.N1", Hold::Kept));
        assert_eq!(of("T0.H1.N2", Hold::Process), of("T0.H1.N2", Hold::Kept));
    }
}
