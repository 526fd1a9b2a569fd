//! Cleaning up: what nobody wants any more is destroyed by the backend that made it, and its lease removed.

use std::time::SystemTime;

use serde::Serialize;
use tierbox_core::{ErrorKind, LeaseHandle, Registry, Result};

use crate::{Entry, Journal, Standing, owner};

/// What is cleaned up beside environments that nobody wants. What a living process holds is never touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CleanupOptions {
    /// Also those that a person asked to keep.
    pub kept: bool,
    /// Everything: also those that were detached for a time that is not over.
    pub all: bool,
}

impl CleanupOptions {
    fn covers(self, standing: Standing) -> bool {
        match standing {
            Standing::Held => false,
            Standing::Orphaned | Standing::Expired => true,
            Standing::Until => self.all,
            Standing::Kept => self.all || self.kept,
        }
    }
}

/// What a clean-up did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CleanupReport {
    /// Environments that are gone now, each with what was removed.
    pub removed: Vec<String>,
    /// What could not be removed, and why. Its leases stand.
    pub failed: Vec<String>,
    /// Commands that a person can run for what failed.
    pub manual: Vec<String>,
    /// Environments that were left alone, and why.
    pub kept: Vec<String>,
}

/// Destroys what nobody wants any more.
///
/// # Errors
/// If the journal cannot be read. Whatever else goes wrong is in the report.
pub async fn cleanup(journal: &Journal, registry: &Registry, options: CleanupOptions) -> Result<CleanupReport> {
    cleanup_with(journal, registry, options, &|_| ()).await
}

/// The same, and `destroyed` is called with each environment that is gone, before its lease and the lease's directory are removed.
///
/// # Errors
/// As [`cleanup`].
pub async fn cleanup_with(
    journal: &Journal,
    registry: &Registry,
    options: CleanupOptions,
    destroyed: &(dyn Fn(&Entry) + Sync),
) -> Result<CleanupReport> {
    journal.sweep_unfinished();
    let listing = journal.list()?;
    let mut report = CleanupReport::default();
    for file in listing.foreign {
        report.failed.push(format!("{}: {}", file.path.display(), file.problem));
    }
    for entry in listing.entries {
        clean_one(journal, registry, options, entry, &mut report, Asked { wanted: &|| false, destroyed }).await;
    }
    Ok(report)
}

/// Destroys one environment, if nobody wants it any more. `wanted` is asked last, when its lease is locked: a program that has it in use
/// keeps it by that. An engine that does not answer holds up this one alone.
///
/// # Errors
/// `NotFound` for one that is gone; if its lease cannot be read. Whatever else goes wrong is in the report.
pub async fn cleanup_one(
    journal: &Journal,
    registry: &Registry,
    id: &str,
    wanted: &(dyn Fn() -> bool + Sync),
    destroyed: &(dyn Fn(&Entry) + Sync),
) -> Result<CleanupReport> {
    journal.sweep_unfinished();
    let entry = journal.get(id)?;
    let mut report = CleanupReport::default();
    clean_one(journal, registry, CleanupOptions::default(), entry, &mut report, Asked { wanted, destroyed }).await;
    Ok(report)
}

/// What a caller wants to say and to hear.
struct Asked<'a> {
    wanted: &'a (dyn Fn() -> bool + Sync),
    destroyed: &'a (dyn Fn(&Entry) + Sync),
}

async fn clean_one(
    journal: &Journal,
    registry: &Registry,
    options: CleanupOptions,
    entry: Entry,
    report: &mut CleanupReport,
    asked: Asked<'_>,
) {
    let id = entry.record.id.clone();
    let standing = entry.standing(SystemTime::now());
    if !options.covers(standing) {
        report.kept.push(format!("{id}: {}", why_kept(&entry, standing)));
        return;
    }
    let lease = match journal.adopt(&id) {
        Ok(lease) => lease,
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) if error.kind() == ErrorKind::LimitReached => return report.kept.push(error.message().to_owned()),
        Err(error) => return report.failed.push(format!("{id}: {}", error.message())),
    };
    // What was read before the lock was taken may be old.
    let record = lease.snapshot();
    let standing = Entry { record: record.clone(), locked: false, ..entry.clone() }.standing(SystemTime::now());
    if !options.covers(standing) {
        report.kept.push(format!("{id}: {}", why_kept(&entry, standing)));
        return;
    }
    if (asked.wanted)() {
        report.kept.push(format!("{id}: in use"));
        return;
    }
    tracing::debug!(target: "tierbox::op", id, backend = record.backend, "clean up");
    let destroyed = match registry.get(&record.backend) {
        Ok(backend) => backend.destroy(&record).await,
        Err(error) => Err(error),
    };
    match destroyed {
        Err(error) => report.failed.push(format!("{id}: {}", error.message())),
        Ok(done) if !done.failed.is_empty() => {
            report.failed.extend(done.failed.iter().map(|failed| format!("{id}: {failed}")));
            report.manual.extend(done.manual);
        }
        Ok(done) => {
            (asked.destroyed)(&entry);
            match lease.remove() {
                Ok(()) if done.removed.is_empty() => report.removed.push(id),
                Ok(()) => report.removed.push(format!("{id}: {}", done.removed.join(", "))),
                Err(error) => report.failed.push(format!("{}: {}", lease.id(), error.message())),
            }
        }
    }
}

fn why_kept(entry: &Entry, standing: Standing) -> String {
    match standing {
        Standing::Held => owner::holder(&entry.record).to_string(),
        Standing::Until => "detached, and its time is not over (`--all` removes it)".into(),
        Standing::Kept => "kept on request (`--kept` removes it)".into(),
        Standing::Orphaned | Standing::Expired => "changed meanwhile".into(),
    }
}

#[cfg(test)]
mod unit;
