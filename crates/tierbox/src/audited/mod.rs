//! The audit layer: any sandbox, with every operation recorded.
//!
//! Each operation is one entry, made when its end is known; a command is two, its start and its end, so that a log that
//! stops in between tells what was running. What failed, timed out, was cancelled or given up is recorded like the rest.

mod handle;
mod sandbox;
mod tap;

use std::sync::Arc;
use std::time::Instant;

use tierbox_core::{Audit, AuditData, AuditEntry, AuditOperation, AuditOutcome, Principal, Result, Sandbox};

use sandbox::Audited;

/// How much of each stream an entry holds by default: 1 MiB. What is longer goes to where the log keeps such ([`Audit::spill`]), and
/// is counted alone if that is nowhere.
pub const DEFAULT_KEEP: usize = 1 << 20;

/// Wraps sandboxes so that every command and file operation is recorded.
///
/// ```
/// # use std::sync::Arc;
/// # use tierbox::{Audit, AuditEntry, AuditLayer, Principal, Sandbox};
/// # fn wrap(sandbox: Arc<dyn Sandbox>, log: Arc<dyn Audit>) {
/// let layer = AuditLayer::new(log, "e-1");
/// let harness = layer.wrap(sandbox.clone(), Principal::Harness);
/// let agent = layer.wrap(sandbox, Principal::Agent);
/// # }
/// ```
#[derive(Clone)]
pub struct AuditLayer {
    audit: Arc<dyn Audit>,
    environment: Arc<str>,
    keep: usize,
}

impl AuditLayer {
    /// A layer that gives its entries to `audit`, for the environment of this id.
    pub fn new(audit: Arc<dyn Audit>, environment: impl Into<Arc<str>>) -> Self {
        Self { audit, environment: environment.into(), keep: DEFAULT_KEEP }
    }

    /// How many bytes of each stream an entry keeps; [`DEFAULT_KEEP`] otherwise. They are held in memory until the command
    /// ends. With 0 nothing is kept anywhere.
    #[must_use]
    pub fn keep(mut self, bytes: usize) -> Self {
        self.keep = bytes;
        self
    }

    /// The same machine, recorded as used by `principal`.
    pub fn wrap(&self, sandbox: Arc<dyn Sandbox>, principal: Principal) -> Arc<dyn Sandbox> {
        Arc::new(Audited::new(sandbox, self.clone(), principal))
    }

    /// Where the entries go.
    pub fn audit(&self) -> &Arc<dyn Audit> {
        &self.audit
    }

    /// An entry about this environment, for [`Audit::record`].
    pub fn entry(&self, principal: Principal, operation: AuditOperation) -> AuditEntry {
        AuditEntry::new(&*self.environment, principal, operation)
    }

    /// Records an entry.
    pub fn record(&self, entry: AuditEntry) {
        self.audit.record(entry);
    }

    /// Begins an operation that must not happen unrecorded.
    fn begin(&self, machine: &str, principal: Principal, operation: AuditOperation) -> Result<Pending> {
        self.audit.check()?;
        let entry = self.entry(principal, operation).machine(machine);
        Ok(Pending { layer: self.clone(), entry: Some(entry), since: Instant::now() })
    }
}

impl std::fmt::Debug for AuditLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditLayer").field("environment", &self.environment).field("keep", &self.keep).finish_non_exhaustive()
    }
}

/// An operation whose end is not known yet. Dropping it records that the caller gave it up.
struct Pending {
    layer: AuditLayer,
    entry: Option<AuditEntry>,
    since: Instant,
}

impl Pending {
    fn change(&mut self, change: impl FnOnce(AuditEntry) -> AuditEntry) {
        self.entry = self.entry.take().map(change);
    }

    /// Records the end, and when it was.
    fn end(mut self, outcome: AuditOutcome, data: Vec<AuditData>) {
        self.finish(outcome, data);
    }

    fn finish(&mut self, outcome: AuditOutcome, data: Vec<AuditData>) {
        let Some(mut entry) = self.entry.take() else { return };
        entry.time = std::time::SystemTime::now();
        entry.duration = Some(self.since.elapsed());
        entry.outcome = outcome;
        entry.data.extend(data);
        self.layer.record(entry);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.finish(AuditOutcome::Abandoned, Vec::new());
    }
}
