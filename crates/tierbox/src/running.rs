//! An environment that runs.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tierbox_code::CodeRunner;
use tierbox_core::{
    AgentPolicy, Approver, Backend, CodeSettings, Connection, Decision, Environment, EnvironmentSpec, Error, ErrorKind, Hold,
    LeaseHandle, LeaseRecord, Principal, Report, Result, Sandbox, Tooling, Verify,
};
use tierbox_lease::{Journal, Lease};
use tierbox_verify::{Attestation, OperationLog, Verification, Verified};

use crate::decided::{Decided, Following};
use crate::gate::Gate;
use crate::memo::Memo;
use crate::noted::Noted;
use crate::probed::Probed;
use crate::termination::Termination;
use crate::timed::Timed;
use crate::traced::Traced;
use crate::undertaker::{Burial, bury};
use crate::{AgentOptions, AgentSandbox, AuditLayer, life, runs};

/// An environment that runs, and what can be done with it.
///
/// It derefs to its primary machine, so that `running.run(…)` works. An attached one (the default) ends when this is
/// dropped, in the background; [`stop`](Self::stop) ends it and waits until nothing of it is left. A detached one lives on.
pub struct Running {
    parts: Option<Parts>,
    id: String,
    /// As the harness uses it.
    primary: Arc<dyn Sandbox>,
    report: Report,
    tooling: Tooling,
    memo: Memo,
    /// When its lifetime is over.
    expires: Option<SystemTime>,
    termination: Termination,
    audit: Option<AuditLayer>,
    verified: Option<Verified>,
    /// When verification asked the gateway for something.
    probed: Arc<Probed>,
    following: Option<Following>,
    /// What it was started from, where that is known.
    spec: Option<Box<EnvironmentSpec>>,
    log: Option<Arc<OperationLog>>,
    /// Whether it was ended. Whoever ends it holds this.
    over: tokio::sync::Mutex<bool>,
    /// Ends it when its lifetime is over, while it is attached.
    timed: Option<Timed>,
}

struct Parts {
    environment: Arc<dyn Environment>,
    backend: Arc<dyn Backend>,
    journal: Journal,
    /// `Some` while this process is who keeps it.
    lease: Option<Arc<Lease>>,
}

impl Running {
    pub(crate) fn new(
        environment: Box<dyn Environment>,
        backend: Arc<dyn Backend>,
        journal: Journal,
        lease: Option<Arc<Lease>>,
        report: Report,
        memo: Memo,
        expires: Option<SystemTime>,
    ) -> Self {
        Self {
            id: environment.id().to_owned(),
            primary: Arc::new(Traced::new(environment.primary(), &report.backend, environment.id(), expires)),
            tooling: report.tier.tooling(),
            report,
            memo,
            expires,
            termination: Termination::of(journal.state().path(), environment.id()),
            audit: None,
            verified: None,
            probed: Arc::default(),
            following: None,
            spec: None,
            log: None,
            over: tokio::sync::Mutex::new(false),
            timed: None,
            parts: Some(Parts { environment: environment.into(), backend, journal, lease }),
        }
    }

    /// The same, with every operation recorded from now on.
    pub(crate) fn audited(mut self, audit: Option<AuditLayer>) -> Self {
        self.audit = audit;
        self.primary = self.recorded(self.parts().environment.primary(), Principal::Harness);
        self
    }

    fn recorded(&self, sandbox: Arc<dyn Sandbox>, principal: Principal) -> Arc<dyn Sandbox> {
        let sandbox: Arc<dyn Sandbox> = Arc::new(Traced::new(sandbox, &self.report.backend, &self.id, self.expires));
        match &self.audit {
            Some(layer) => layer.wrap(sandbox, principal),
            None => sandbox,
        }
    }

    pub(crate) fn started_from(mut self, spec: EnvironmentSpec, log: Option<Arc<OperationLog>>) -> Self {
        self.probed.asks(&spec.network.allow, self.parts().environment.machines().len());
        self.spec = Some(Box::new(spec));
        self.log = log;
        self.following()
    }

    /// The same, with the log that was begun where it was started.
    pub(crate) fn logged(mut self, log: Option<Arc<OperationLog>>) -> Self {
        let audit = log.clone().map(|log| AuditLayer::new(log, self.id.as_str()));
        self.log = log;
        self.audited(audit)
    }

    /// What is known of it: what was declared, enforced and shown, and what was granted. Where there is a log, as it was
    /// written beside it at the start, or after a restore. `None` where another process started it without a log, from a profile with secrets elsewhere
    /// than in variables.
    pub fn attestation(&self) -> Option<Attestation> {
        let written = self.log.as_ref().and_then(|log| runs::attestation(log.directory()));
        written.or_else(|| self.attestation_of_now())
    }

    fn attestation_of_now(&self) -> Option<Attestation> {
        let spec = self.spec.as_deref()?;
        let head = self.log.as_ref().and_then(|log| log.flush(false).ok());
        let made_of = self.parts().environment.identity().unwrap_or_default();
        Some(Attestation::new(&self.id, spec, runs::profile_hash(spec), &self.report, made_of, self.verified.as_ref(), head))
    }

    /// What was logged of it so far. `None` if it is not logged.
    ///
    /// # Errors
    /// What the file system says.
    pub fn logged_run(&self) -> Result<Option<crate::Run>> {
        let Some(log) = &self.log else { return Ok(None) };
        log.flush(false)?;
        crate::Run::read(log.directory().to_owned()).map(Some)
    }

    /// Writes what is known now as the attestation beside the log, and its hash into the log.
    pub(crate) fn attest(&self) -> Result<()> {
        let (Some(log), Some(attestation)) = (&self.log, self.attestation_of_now()) else { return Ok(()) };
        let text = serde_json::to_vec_pretty(&attestation).unwrap_or_default();
        let hash = runs::write(log.directory(), runs::ATTESTATION, &text)?;
        life::named(self.audit.as_ref(), "attestation", &hash);
        Ok(())
    }

    /// What brings the gateway's decisions into the log; `None` without a gateway or a log.
    pub(crate) fn decided(&self) -> Option<Arc<Decided>> {
        let (Some(log), Some(layer)) = (&self.log, &self.audit) else { return None };
        let lease = self.parts().journal.state().environments().join(&self.id);
        let decided = || Decided::new(layer.clone(), log.clone(), lease, self.probed.clone());
        Decided::is_of(&self.report).then(decided)
    }

    /// The same, whose gateway's decisions are brought into the log from now on.
    pub(crate) fn following(mut self) -> Self {
        self.following = self.decided().and_then(|decided| decided.follow(&self.parts().environment));
        self
    }

    /// The same, which this process ends when its lifetime, counted from now on, is over.
    pub(crate) fn timed(mut self, lifetime: Option<Duration>) -> Self {
        let parts = self.parts();
        self.timed = lifetime.and_then(|lifetime| Timed::after(lifetime, &parts.environment));
        self
    }

    pub(crate) fn environment(&self) -> Arc<dyn Environment> {
        self.parts().environment.clone()
    }

    /// What was found at its start, and when.
    pub(crate) fn verified(mut self, verified: Option<Verified>, probed: Arc<Probed>) -> Self {
        self.verified = verified;
        self.probed = probed;
        self
    }

    /// One that was found again: what its starter noted, and a remark that says whether it was looked at again.
    pub(crate) fn found_again(mut self, noted: Option<Noted>, spec: Option<Box<EnvironmentSpec>>) -> Self {
        if let Some(spec) = &spec {
            self.probed.asks(&spec.network.allow, self.parts().environment.machines().len());
        }
        self.spec = spec;
        self.remark(noted.as_ref().map(|noted| noted.verified.verification.time.as_str()));
        match noted {
            Some(noted) => {
                self.verified = Some(Verified { reused: true, ..noted.verified });
                self.probed.add(noted.probed.into_iter().map(|(from, to)| from..=to));
                self
            }
            None => self,
        }
    }

    fn remark(&mut self, probed: Option<&str>) {
        self.report.notes.retain(|note| !note.starts_with(FOUND_AGAIN));
        self.report.notes.push(match probed {
            Some(time) => format!("{FOUND_AGAIN}: its probes are of {time}, and were not repeated"),
            None => format!("{FOUND_AGAIN}: nothing is known of a verification"),
        });
    }

    /// Carries the probes out again in one that was found again, where its profile asks for that at every start.
    #[cfg(target_os = "linux")]
    pub(crate) async fn verify_found_again(&mut self) -> Result<()> {
        let Some(spec) = self.spec.clone() else { return Ok(()) };
        if crate::verification::mode(&spec, &self.report) != Verify::Always {
            return Ok(());
        }
        let asked_for = spec.verify == Some(Verify::Always);
        let verification = match self.verify().await {
            Ok(verification) => verification,
            Err(error) if asked_for => return Err(error),
            Err(error) => {
                // Code that ran inside may have filled the machine, and must not lock its owner out by it.
                let why = error.message();
                self.report.notes.push(format!("{FOUND_AGAIN}: its probes could not be carried out again: {why}"));
                return Ok(());
            }
        };
        let refused = crate::verification::refusal(&verification, &spec);
        self.report.notes.retain(|note| !note.starts_with(FOUND_AGAIN));
        let time = &verification.time;
        self.report
            .notes
            .push(format!("{FOUND_AGAIN}: its probes were carried out again at {time}, after commands had run in it"));
        let verified = Verified { verification, reused: false };
        life::verified(self.audit.as_ref(), Some(&verified));
        self.verified = Some(verified);
        // Whatever made a probe fail, the tier is not what is there now.
        let error = refused.map(|error| error.with_help(format!("{} still runs; `tierbox down {}` ends it", self.id, self.id)));
        error.map_or(Ok(()), Err)
    }

    /// What verification found at its start, or at an earlier one of the same configuration; for one that was found again, what is
    /// known of that. `None` for one that was not verified.
    pub fn verification(&self) -> Option<&Verified> {
        self.verified.as_ref()
    }

    /// Carries all probes out in it now.
    ///
    /// # Errors
    /// `Unsupported` where another process started it from a profile with secrets elsewhere than in variables; if they could not be carried out. What they
    /// found is in the result, failures too.
    #[cfg(target_os = "linux")]
    pub async fn verify(&self) -> Result<Verification> {
        let spec = self.spec.as_deref().ok_or_else(|| profile_unknown("verify"))?;
        let parts = self.parts();
        let _lasting = self.probed.begin();
        crate::verification::verify(&parts.backend, &parts.journal, spec, parts.environment.as_ref(), &self.report).await
    }

    /// Where its operations are recorded, for entries of the harness's own; `None` if they are not.
    pub fn audit(&self) -> Option<&AuditLayer> {
        self.audit.as_ref()
    }

    /// Its id, as in `tierbox ls`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What its tier rests on.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The primary machine, as the harness uses it: the tooling axis does not bind it.
    pub fn sandbox(&self) -> Arc<dyn Sandbox> {
        self.primary.clone()
    }

    /// The machines, primary first.
    pub fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        let machines = self.parts().environment.machines();
        machines.into_iter().map(|machine| self.recorded(machine, Principal::Harness)).collect()
    }

    /// A machine by its name.
    ///
    /// # Errors
    /// `NotFound`, listing the names there are.
    pub fn machine(&self, name: &str) -> Result<Arc<dyn Sandbox>> {
        Ok(self.recorded(self.parts().environment.machine(name)?, Principal::Harness))
    }

    /// The primary machine, as the agent may use it. Nobody is asked for approval: what needs it is refused.
    pub fn agent(&self) -> AgentSandbox {
        self.agent_with(self.parts().environment.primary(), self.policy(), None)
    }

    /// A machine by its name, as the agent may use it.
    ///
    /// # Errors
    /// As [`machine`](Self::machine).
    pub fn agent_on(&self, name: &str) -> Result<AgentSandbox> {
        Ok(self.agent_with(self.parts().environment.machine(name)?, self.policy(), None))
    }

    /// The handle for the agent's tools, ready for use: what T1 rests on was tried out in the machine.
    ///
    /// # Errors
    /// `TierRefused` where T1 cannot be kept; `WeakerRefused` for a policy that is not stricter than the profile's;
    /// `InvalidProfile` for one whose rules make no sense; as [`machine`](Self::machine).
    pub async fn for_agent(&self, options: AgentOptions) -> Result<AgentSandbox> {
        let environment = &self.parts().environment;
        let machine = match &options.machine {
            Some(name) => environment.machine(name)?,
            None => environment.primary(),
        };
        let policy = match options.policy {
            Some(stricter) => self.stricter(stricter)?,
            None => self.policy(),
        };
        let agent = self.agent_with(machine, policy, options.approver);
        agent.ready().await?;
        Ok(agent)
    }

    fn policy(&self) -> AgentPolicy {
        self.memo.agent.policy(self.tooling, self.memo.programs.clone())
    }

    fn stricter(&self, policy: AgentPolicy) -> Result<AgentPolicy> {
        policy.validate()?;
        if policy.tooling() > self.tooling || policy == self.policy() {
            return Ok(policy);
        }
        let message = format!("{} for the agent is not stricter than the profile's {}", policy.tooling(), self.tooling);
        Err(Error::new(ErrorKind::WeakerRefused, "bind agent", message).with_help("start the environment with the tier it needs"))
    }

    fn agent_with(&self, machine: Arc<dyn Sandbox>, policy: AgentPolicy, approver: Option<Arc<dyn Approver>>) -> AgentSandbox {
        let ender = self.recorded(machine.clone(), Principal::Tierbox);
        let machine = self.recorded(machine, Principal::Agent);
        let gate = Gate {
            settings: self.memo.agent.clone(),
            approver,
            audit: self.audit.clone(),
            environment: self.id.clone(),
            termination: self.termination.clone(),
        };
        // Settings that make no sense allow no code.
        let code = CodeRunner::new(machine.clone(), self.memo.code.clone()).ok();
        AgentSandbox::new(machine, ender, policy, gate, code)
    }

    /// Whether a decision ended what the agent may do here. Whoever drives the run should end it.
    pub fn is_terminated(&self) -> bool {
        self.termination.is_set()
    }

    /// Runs code tasks in the primary machine, as the harness. Does nothing by itself; [`CodeRunner::attach`] also removes
    /// tasks that expired.
    ///
    /// # Errors
    /// `InvalidInput` if the environment was started by a version of tierbox whose settings make no sense to this one.
    pub fn code(&self) -> Result<CodeRunner> {
        CodeRunner::new(self.primary.clone(), self.memo.code.clone())
    }

    /// What the profile says of code tasks.
    pub fn code_settings(&self) -> &CodeSettings {
        &self.memo.code
    }

    /// How a person gets a shell in a machine.
    ///
    /// # Errors
    /// `NotFound` for a name that is no machine's.
    pub fn connection(&self, machine: &str) -> Result<Connection> {
        self.parts().environment.connection(machine)
    }

    /// What the N1 gateway decided so far, oldest first; empty without one. What verification asked for is marked.
    ///
    /// # Errors
    /// What the file system says of the log.
    pub async fn decisions(&self) -> Result<Vec<Decision>> {
        let mut decisions = self.parts().environment.decisions().await?;
        self.probed.mark(&mut decisions);
        Ok(decisions)
    }

    /// Whether it ends with this handle.
    pub fn is_attached(&self) -> bool {
        self.parts().lease.is_some()
    }

    /// Saves the state of all machines under a name.
    ///
    /// # Errors
    /// As [`Environment::snapshot`].
    pub async fn snapshot(&self, name: &str) -> Result<()> {
        self.parts().environment.snapshot(name).await
    }

    /// Puts all machines back to what was saved. Commands that run meanwhile are lost. The machines are then verified and attested
    /// again, unless the profile says `once` or `off`. Where another process started it and its profile is not known here, they
    /// cannot be, and the report says so.
    ///
    /// # Errors
    /// As [`Environment::restore`]; `Unsupported` where the profile says `always` and is not known here, and nothing was then done;
    /// `TierRefused` if a probe failed, or why the probes could not be carried out, and the environment is then ended.
    pub async fn restore(&mut self, name: &str) -> Result<()> {
        if self.spec.is_none() && self.memo.verify == Some(Verify::Always) {
            return Err(profile_unknown("restore").with_help("its profile verifies always: restore it where it was started"));
        }
        self.parts().environment.restore(name).await?;
        #[cfg(target_os = "linux")]
        if let Err(error) = self.verify_restored(name).await {
            // What cannot be ended from inside is ended when this handle is dropped.
            let _ = self.parts().environment.stop().await;
            return Err(error.with_help(format!("{} was ended: it is not known to be what its tier says", self.id)));
        }
        Ok(())
    }

    #[cfg(target_os = "linux")]
    async fn verify_restored(&mut self, name: &str) -> Result<()> {
        let asked_for = self.spec.as_ref().map_or(self.memo.verify, |spec| spec.verify);
        if asked_for.is_some_and(|verify| verify != Verify::Always) || self.report.tier.host() == tierbox_core::HostIsolation::H0
        {
            return Ok(());
        }
        let Some(spec) = self.spec.clone() else {
            // What was found before is not of what is there now.
            self.verified = None;
            self.report
                .notes
                .push(format!("restored to {name}: its probes could not be carried out again, as its profile is not known"));
            return Ok(());
        };
        let verification = self.verify().await?;
        let refused = crate::verification::refusal(&verification, &spec);
        self.report.notes.push(format!("restored to {name}: its probes were carried out again at {}", verification.time));
        let verified = self.verified.insert(Verified { verification, reused: false });
        life::verified(self.audit.as_ref(), Some(verified));
        self.note()?;
        self.attest()?;
        refused.map_or(Ok(()), Err)
    }

    /// Notes anew for others what was found in one that lives on by itself.
    #[cfg(target_os = "linux")]
    fn note(&self) -> Result<()> {
        let parts = self.parts();
        match &self.verified {
            Some(verified) if parts.lease.is_none() => {
                let directory = parts.journal.state().environments().join(&self.id);
                Noted { verified: verified.clone(), probed: self.probed.times() }.keep(&directory)
            }
            _ => Ok(()),
        }
    }

    /// Waits until it has ended by itself, for at most `limit`. Returns whether it ended.
    pub async fn ended(&self, limit: Duration) -> bool {
        self.parts().environment.ended(limit).await
    }

    /// When its lifetime is over; `None` if it has none.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// Ends it. When this returns `Ok`, every process and resource of it is gone, and so is its lease.
    ///
    /// # Errors
    /// What could not be removed; its lease then stands, and `tierbox cleanup` tries again.
    pub async fn stop(self) -> Result<()> {
        // Until the end, dropping this future leaves `self` to its `Drop`, which goes on in the background.
        self.end().await
    }

    /// The same for one that others still use: what they have under way in it is lost. One that was ended is not ended again.
    ///
    /// # Errors
    /// As [`stop`](Self::stop); it can then be tried again.
    pub async fn end(&self) -> Result<()> {
        let mut over = self.over.lock().await;
        if *over {
            return Ok(());
        }
        let parts = self.parts();
        let lease = match &parts.lease {
            Some(lease) => lease.clone(),
            None => Arc::new(parts.journal.adopt(&self.id)?),
        };
        if parts.environment.stop().await.is_err() {
            // What it could not end from inside may be ended from outside; if not, this says what is in the way.
            destroy(parts.backend.as_ref(), &lease.snapshot()).await?;
        }
        if let Some(decided) = self.decided() {
            // After its end, when all is written, and before its files go with the lease.
            decided.finish(Some(parts.environment.as_ref())).await;
        }
        lease.remove()?;
        Termination::forget(parts.journal.state().path(), &self.id);
        tracing::info!(target: "tierbox::op", id = self.id, "stopped");
        life::step(self.audit.as_ref(), "stopped");
        if let Some(log) = &self.log {
            // What cannot be written now is told by the log's own check.
            let _ = log.flush(true);
        }
        *over = true;
        Ok(())
    }

    /// Lets it live on after this process, until somebody ends it by `tierbox down`, `tierbox cleanup --kept` or its
    /// lifetime. Returns its id.
    ///
    /// # Errors
    /// `Unsupported` unless it was started [`keepable`](crate::StartOptions::keepable) on a backend that can detach. It
    /// then stays attached.
    pub async fn keep(&mut self) -> Result<String> {
        self.let_go(Hold::Kept).await
    }

    /// Lets it live on after this process until `until`, when `tierbox cleanup` may remove it. Returns its id.
    ///
    /// # Errors
    /// As [`keep`](Self::keep).
    pub async fn detach(&mut self, until: SystemTime) -> Result<String> {
        self.let_go(Hold::Until(until)).await
    }

    pub(crate) async fn let_go(&mut self, hold: Hold) -> Result<String> {
        let id = self.id.clone();
        let parts = self.parts.as_mut().expect("parts are there until `stop`");
        if let Some(lease) = &parts.lease {
            if let Some(verified) = &self.verified {
                Noted { verified: verified.clone(), probed: self.probed.times() }.keep(&lease.directory()?)?;
            }
            // In this order: between the two steps a crash leaves a lease that the next clean-up removes.
            parts.environment.detach().await?;
            lease.set_hold(hold)?;
            lease.release()?;
            tracing::info!(target: "tierbox::op", id, "detached");
            life::step(self.audit.as_ref(), "detached");
        }
        parts.lease = None;
        self.timed = None;
        Ok(id)
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("parts are there until `stop`")
    }
}

fn profile_unknown(operation: &'static str) -> Error {
    let what =
        "verification of an environment that another process started from a profile with secrets in the backend's settings";
    Error::unsupported(operation, what)
}

/// How a remark begins that says what is known of an environment that was found again.
const FOUND_AGAIN: &str = "found again";

/// Has a backend remove what a lease names.
pub(crate) async fn destroy(backend: &dyn Backend, record: &LeaseRecord) -> Result<tierbox_core::DestroyReport> {
    let report = backend.destroy(record).await?;
    if report.failed.is_empty() {
        return Ok(report);
    }
    let error = Error::new(ErrorKind::Internal, "end environment", format!("could not remove {}", report.failed.join(", ")))
        .with_backend(backend.name())
        .with_context("id", &record.id);
    Err(match report.manual.as_slice() {
        [] => error.with_help("`tierbox cleanup` tries again"),
        commands => error.with_help(commands.join("\n      ")),
    })
}

impl Deref for Running {
    type Target = dyn Sandbox;

    fn deref(&self) -> &Self::Target {
        self.primary.as_ref()
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("id", &self.id).field("report", &self.report.summary()).finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if *self.over.get_mut() {
            return;
        }
        let decided = self.parts.is_some().then(|| self.decided()).flatten();
        if let Some(Parts { environment, backend, lease: Some(lease), .. }) = self.parts.take() {
            life::step(self.audit.as_ref(), "dropped");
            bury(Burial { backend, lease, environment: Some(environment), decided });
        }
    }
}
