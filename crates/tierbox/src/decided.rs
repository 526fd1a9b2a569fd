//! What the gateway decided, as lines of the operation log: while the environment runs, and the rest when it has ended.
//!
//! How many of a gateway's decisions are in the log already is noted in a file beside it, so that whoever finds the environment
//! again goes on there.

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tierbox_core::{
    Audit, AuditEntry, AuditOperation, AuditOutcome, Decision, Environment, Error, ErrorKind, Locality, Network, Principal,
    Protocol, Report, Result, Verdict,
};
use tierbox_verify::OperationLog;

use crate::AuditLayer;
use crate::probed::Probed;

/// The file in which is noted how many are in the log.
const TOLD: &str = "egress.told";
/// How long what was decided may take to be read, when its environment has ended.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long what an ended environment had open may take to be told how it ended.
const LINGER: Duration = Duration::from_secs(2);
/// Between two looks at a gateway on this host, and at one elsewhere.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A look takes no more than this part of the time.
const PART: u32 = 20;

/// Brings what the gateway of one environment decided into its log.
pub(crate) struct Decided {
    layer: AuditLayer,
    log: Arc<OperationLog>,
    /// The directory of its lease.
    lease: PathBuf,
    probed: Arc<Probed>,
}

/// Looks at a gateway until this is dropped.
pub(crate) struct Following {
    task: tokio::task::AbortHandle,
    /// The task itself must not keep the log open.
    _decided: Arc<Decided>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Decided {
    /// For the environment whose lease has this directory.
    pub fn new(layer: AuditLayer, log: Arc<OperationLog>, lease: PathBuf, probed: Arc<Probed>) -> Arc<Self> {
        Arc::new(Self { layer, log, lease, probed })
    }

    /// Whether an environment with this report has a gateway.
    pub fn is_of(report: &Report) -> bool {
        report.tier.network() == Network::N1
    }

    /// Goes on until what it returns is dropped. `None` without a thread: the end of the environment then brings everything.
    pub fn follow(self: &Arc<Self>, environment: &Arc<dyn Environment>) -> Option<Following> {
        let (decided, environment): (_, Weak<dyn Environment>) = (Arc::downgrade(self), Arc::downgrade(environment));
        let pause = |environment: &Arc<dyn Environment>| match environment.report().locality {
            Locality::Local => LOOK.0,
            Locality::Remote => LOOK.1,
        };
        let look = async move {
            let mut wait = environment.upgrade().as_ref().map_or(LOOK.1, pause);
            loop {
                tokio::time::sleep(wait).await;
                let (Some(decided), Some(environment)) = (decided.upgrade(), environment.upgrade()) else { return };
                let since = Instant::now();
                // What cannot be read now is read later, and at the end it is told.
                let _ = decided.catch_up(Some(environment.as_ref())).await;
                wait = pause(&environment).max(since.elapsed() * PART);
            }
        };
        let task = tierbox_guest::driver::handle().ok()?.spawn(look);
        Some(Following { task: task.abort_handle(), _decided: self.clone() })
    }

    /// Brings what was decided so far.
    ///
    /// # Errors
    /// Why that is not known, or cannot be recorded.
    pub async fn catch_up(self: &Arc<Self>, environment: Option<&dyn Environment>) -> Result<()> {
        let decisions = self.read(environment).await?;
        self.tell(decisions).await
    }

    /// Brings the rest when the environment has ended and its lease is still there, and closes with a line that says how many there
    /// are, or why that is not known. A start that failed before there was a gateway has nothing to tell.
    pub async fn finish(self: &Arc<Self>, environment: Option<&dyn Environment>) {
        let all = async {
            let since = Instant::now();
            loop {
                let decisions = self.read(environment).await?;
                if open(&decisions) == 0 || since.elapsed() > LINGER {
                    return Ok(decisions);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let late = || Error::new(ErrorKind::Timeout, "read egress log", format!("it was not there after {LAST_WORDS:?}"));
        let all = tokio::time::timeout(LAST_WORDS, all).await.unwrap_or_else(|_| Err(late()));
        let done = match all {
            Err(error) if environment.is_none() && error.kind() == ErrorKind::NotFound => return,
            Ok(decisions) => {
                let counts = (decisions.len(), open(&decisions));
                self.tell(decisions).await.map(|()| counts)
            }
            Err(error) => Err(error),
        };
        self.close(done);
    }

    /// The same for one of which nothing is left but its lease, without waiting for anything.
    pub fn finish_left(&self) {
        let done = read_left(&self.lease).and_then(|decisions| {
            let counts = (decisions.len(), open(&decisions));
            self.tell_now(decisions).map(|()| counts)
        });
        self.close(done);
    }

    fn close(&self, done: Result<(usize, usize)>) {
        let entry = self.layer.entry(Principal::Tierbox, AuditOperation::Egress);
        self.layer.record(match done {
            Ok((all, 0)) => entry.argument("decisions", all),
            Ok((all, open)) => entry.argument("decisions", all).argument("without-end", open),
            Err(error) => entry.outcome(AuditOutcome::failed(&error)),
        });
        // What cannot be written now is told by the log's own check.
        let _ = self.log.flush(false);
    }

    /// From the files of its lease, where the gateway is on this host.
    async fn read(&self, environment: Option<&dyn Environment>) -> Result<Vec<Decision>> {
        let lease = self.lease.clone();
        let left = blocking(move || read_left(&lease)).await;
        match (left, environment) {
            (Err(error), Some(environment)) if error.kind() == ErrorKind::NotFound => environment.decisions().await,
            (left, _) => left,
        }
    }

    async fn tell(self: &Arc<Self>, decisions: Vec<Decision>) -> Result<()> {
        let decided = self.clone();
        blocking(move || decided.tell_now(decisions)).await
    }

    /// Records what is not in the log yet. What is recorded when a crash comes is recorded once more, rather than never.
    fn tell_now(&self, mut decisions: Vec<Decision>) -> Result<()> {
        // A log that cannot be written would be given the same ones again and again.
        self.log.check()?;
        self.probed.mark(&mut decisions);
        let mut noted = Noted::open(&self.log.directory().join(TOLD))?;
        let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
        let mut is_new = false;
        for decision in &decisions {
            let machine = decision.machine.as_deref().unwrap_or_default();
            let number = seen.entry(machine).or_default();
            *number += 1;
            if *number > noted.counts.get(machine).copied().unwrap_or(0) {
                self.layer.record(self.line(decision));
                is_new = true;
            }
        }
        if !is_new {
            return Ok(());
        }
        self.log.flush(false)?;
        noted.counts.extend(seen.into_iter().map(|(machine, number)| (machine.to_owned(), number)));
        noted.write()
    }

    fn line(&self, decision: &Decision) -> AuditEntry {
        let principal = if decision.verification { Principal::Tierbox } else { Principal::Agent };
        let mut entry = self.layer.entry(principal, AuditOperation::Egress);
        entry.time = decision.time;
        entry.machine.clone_from(&decision.machine);
        if let Ok(Value::Object(fields)) = serde_json::to_value(decision) {
            entry.arguments.extend(fields.into_iter().map(|(name, value)| (name.into(), value)));
        }
        entry
    }
}

/// A decision in a line of a log; `None` for another line.
pub(crate) fn decision_in(line: &Value) -> Option<Decision> {
    let arguments = (line["operation"] == "egress").then(|| &line["arguments"])?;
    serde_json::from_value(arguments.clone()).ok()
}

#[cfg(target_os = "linux")]
fn read_left(lease: &std::path::Path) -> Result<Vec<Decision>> {
    tierbox_egress::read_left(lease)?.ok_or_else(nothing_left)
}

#[cfg(not(target_os = "linux"))]
fn read_left(_: &std::path::Path) -> Result<Vec<Decision>> {
    Err(nothing_left())
}

fn nothing_left() -> Error {
    Error::new(ErrorKind::NotFound, "read egress log", "nothing of what the gateway decided is on this host")
}

/// How much was allowed and has no end yet.
fn open(decisions: &[Decision]) -> usize {
    let mut open = std::collections::BTreeSet::new();
    for decision in decisions.iter().filter(|decision| decision.protocol != Protocol::Dns) {
        match decision.verdict {
            Verdict::Allowed => open.insert((&decision.machine, decision.id)),
            Verdict::Ended => open.remove(&(&decision.machine, decision.id)),
            _ => false,
        };
    }
    open.len()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, "read egress log", error.to_string())))
}

/// The note of how many decisions of which machine are in the log. Nobody else brings any while it is open.
struct Noted {
    file: std::fs::File,
    counts: BTreeMap<String, u64>,
}

impl Noted {
    fn open(path: &std::path::Path) -> Result<Self> {
        let failed = |error| Error::io("note decisions", error).with_context("path", path.display());
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
        // Free again when it is closed.
        flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        // One that cannot be read tells of none: they are recorded again.
        Ok(Self { file, counts: serde_json::from_str(&text).unwrap_or_default() })
    }

    fn write(&mut self) -> Result<()> {
        let text = serde_json::to_vec(&self.counts).unwrap_or_default();
        let write = |file: &mut std::fs::File| {
            file.rewind()?;
            file.set_len(0)?;
            file.write_all(&text)
        };
        write(&mut self.file).map_err(|error| Error::io("note decisions", error))
    }
}
