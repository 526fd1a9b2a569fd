//! A start, step by step. Whatever ends it early undoes it.

use std::sync::Arc;
use std::time::SystemTime;

use tierbox_core::{
    Audit, Backend, Capabilities, Environment, EnvironmentSpec, Error, ErrorKind, Hold, HostIsolation, KillDomain, LeaseHandle,
    Network, Progress, Report, Result, Silent,
};
use tierbox_lease::{Journal, Lease, NewLease};
use tierbox_verify::Verified;

use crate::StartOptions;
use crate::decided::Decided;
use crate::memo::Memo;
use crate::probed::Probed;
use crate::running::Running;
use crate::undertaker::{Burial, bury};
use crate::{AuditLayer, life, runs};

/// Checks a specification without side effects.
pub(crate) fn preflight(backend: &dyn Backend, spec: &EnvironmentSpec) -> Result<Capabilities> {
    let capabilities = backend.capabilities(spec)?;
    capabilities.admit(spec)?;
    Ok(capabilities)
}

/// Starts an environment that was checked.
pub(crate) async fn start(
    backend: Arc<dyn Backend>,
    journal: &Journal,
    spec: EnvironmentSpec,
    options: StartOptions,
) -> Result<Running> {
    let hold = options.hold.unwrap_or(Hold::Process);
    let progress: &dyn Progress = options.progress.as_deref().unwrap_or(&Silent);
    // Where the agent is bound, each decision about it is on record.
    let logged = options.log || spec.binds_agent();
    let lease = Arc::new(journal.create(NewLease {
        name: options.name.clone(),
        lifetime: spec.limits.lifetime,
        max_environments: spec.limits.max_environments,
        memo: Memo { labels: options.labels, log: logged, ..Memo::of(&spec) }.to_value(),
        ..NewLease::new(&spec.backend, &spec.profile, spec.tier.to_string())
    })?);
    // No machine counts its own time from an earlier moment.
    let expires = spec.limits.lifetime.and_then(|lifetime| SystemTime::now().checked_add(lifetime));
    let log = match logged.then(|| runs::begin(journal, lease.id(), &spec)).transpose() {
        Ok(log) => log,
        Err(error) => {
            lease.remove()?;
            return Err(error);
        }
    };
    let kept: Option<Arc<dyn Audit>> = log.clone().map(|log| log as Arc<dyn Audit>);
    let audit = match (kept, options.audit) {
        (Some(log), Some(own)) => Some(Arc::new(runs::Both(log, own)) as Arc<dyn Audit>),
        (log, own) => log.or(own),
    };
    let audit = audit.map(|audit| AuditLayer::new(audit, lease.id()));
    tracing::info!(target: "tierbox::op", id = lease.id(), profile = spec.profile, tier = %spec.tier, backend = spec.backend, "start");
    life::start(audit.as_ref(), &spec, options.name.as_deref());
    let probed = Arc::<Probed>::default();
    let decided = match (&log, &audit) {
        (Some(log), Some(layer)) if spec.tier.network() == Network::N1 => {
            let directory = journal.state().environments().join(lease.id());
            Some(Decided::new(layer.clone(), log.clone(), directory, probed.clone()))
        }
        _ => None,
    };
    let mut attempt = Attempt {
        backend: Some(backend.clone()),
        lease: lease.clone(),
        environment: None,
        audit: audit.clone(),
        probed: probed.clone(),
        decided,
    };
    match run(&backend, journal, &spec, &mut attempt, progress).await {
        Ok(Up { report, verified }) => {
            let environment = attempt.finish();
            let memo = Memo::of(&spec);
            let mut running = Running::new(environment, backend, journal.clone(), Some(lease), report, memo, expires)
                .audited(audit)
                .verified(verified, probed)
                .timed(spec.limits.lifetime)
                .started_from(spec, log);
            running.attest()?;
            life::ready(running.audit(), running.report());
            if hold != Hold::Process {
                running.let_go(hold).await?;
            }
            tracing::info!(target: "tierbox::op", id = running.id(), "ready");
            Ok(running)
        }
        Err(error) => {
            tracing::info!(target: "tierbox::op", id = lease.id(), kind = %error.kind(), "start failed");
            life::failed(audit.as_ref(), &error);
            attempt.undo().await;
            Err(error)
        }
    }
}

/// What came up.
struct Up {
    report: Report,
    verified: Option<Verified>,
}

async fn run(
    backend: &Arc<dyn Backend>,
    journal: &Journal,
    spec: &EnvironmentSpec,
    attempt: &mut Attempt,
    progress: &dyn Progress,
) -> Result<Up> {
    let limit = spec.limits.startup;
    let started = tokio::time::timeout(limit, async {
        let environment = backend.start(spec, attempt.lease.clone(), progress).await?;
        let environment = attempt.environment.insert(environment);
        let mut report = environment.report().clone();
        confirm(spec, &report)?;
        attempt.probed.asks(&spec.network.allow, environment.machines().len());
        let lasting = attempt.probed.begin();
        let verified = verify(backend, journal, spec, environment.as_ref(), &report).await?;
        drop(lasting);
        life::verified(attempt.audit.as_ref(), verified.as_ref());
        if let Some(error) = verified.as_ref().and_then(|verified| refusal(verified, spec)) {
            return Err(error);
        }
        copy_in(spec, environment.as_ref(), &mut report, progress).await?;
        Ok(Up { report, verified })
    });
    started.await.unwrap_or_else(|_| {
        let message = format!("it was not ready after {limit:?}, which is limits.startup");
        Err(Error::new(ErrorKind::Timeout, "start environment", message).with_backend(spec.backend.clone()).retryable())
    })
}

#[cfg(target_os = "linux")]
async fn verify(
    backend: &Arc<dyn Backend>,
    journal: &Journal,
    spec: &EnvironmentSpec,
    environment: &dyn Environment,
    report: &Report,
) -> Result<Option<Verified>> {
    crate::verification::at_start(backend, journal, spec, environment, report).await
}

#[cfg(not(target_os = "linux"))]
async fn verify(
    _: &Arc<dyn Backend>,
    _: &Journal,
    _: &EnvironmentSpec,
    _: &dyn Environment,
    _: &Report,
) -> Result<Option<Verified>> {
    Ok(None)
}

#[cfg(target_os = "linux")]
fn refusal(verified: &Verified, spec: &EnvironmentSpec) -> Option<Error> {
    crate::verification::refusal(&verified.verification, spec)
}

#[cfg(not(target_os = "linux"))]
fn refusal(_: &Verified, _: &EnvironmentSpec) -> Option<Error> {
    None
}

/// Compares what was really enforced with what was asked for.
fn confirm(spec: &EnvironmentSpec, report: &Report) -> Result<()> {
    let contained = spec.tier.host() == HostIsolation::H0 || report.kill_domain != KillDomain::Session;
    if report.tier == spec.tier && contained {
        return Ok(());
    }
    let message = format!("{} was asked for, and what started is {} ({:?})", spec.tier, report.tier, report.kill_domain);
    Err(Error::new(ErrorKind::TierRefused, "confirm tier", message).with_backend(spec.backend.clone()))
}

async fn copy_in(
    spec: &EnvironmentSpec,
    environment: &dyn Environment,
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<()> {
    report.copied_in.clear();
    if spec.files.is_empty() {
        return Ok(());
    }
    let machine = environment.primary();
    for file in &spec.files {
        progress.step(&format!("copying {}", file.host.display().to_string().escape_debug()));
        let moved = crate::transfer::upload(machine.as_ref(), &file.host, &file.guest).await?;
        if let Some(note) = crate::transfer::left_out_note(&file.host, moved) {
            report.notes.push(note);
        }
        report.copied_in.push(format!("{} -> {}", file.host.display(), file.guest));
    }
    Ok(())
}

/// A start that may still fail or be cancelled.
struct Attempt {
    backend: Option<Arc<dyn Backend>>,
    lease: Arc<Lease>,
    environment: Option<Box<dyn Environment>>,
    audit: Option<AuditLayer>,
    probed: Arc<Probed>,
    /// What brings its gateway's decisions into its log.
    decided: Option<Arc<Decided>>,
}

impl Attempt {
    fn finish(mut self) -> Box<dyn Environment> {
        self.backend = None;
        self.environment.take().expect("a start that succeeded made an environment")
    }

    /// Undoes it and waits for that. A backend leaves nothing behind by itself; this is for what it could not know of,
    /// such as a time limit.
    async fn undo(mut self) {
        if let Some(burial) = self.burial() {
            burial.carry_out().await;
        }
    }

    fn burial(&mut self) -> Option<Burial> {
        let backend = self.backend.take()?;
        let environment = self.environment.take().map(Into::into);
        Some(Burial { backend, lease: self.lease.clone(), environment, decided: self.decided.take() })
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(burial) = self.burial() {
            bury(burial);
        }
    }
}
