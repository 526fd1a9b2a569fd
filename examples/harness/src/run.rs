//! Running tasks: many samples at once, each in sandboxes of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierbox::verify::Attestation;
use tierbox::{
    AgentOptions, AgentSandbox, Error, ErrorKind, ExecRequest, Outcome, Result, Running, Sandbox, SandboxExt, StartOptions,
    Tierbox,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::progress::Progress;
use crate::record::{Record, Records, Verdict};
use crate::score::{self, Tree};
use crate::task::{Sample, Task};

/// The directory of a sample, below the sandbox's working directory.
pub const WORK: &str = "sample";

/// How a run is carried out.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The profile: the one thing that decides where samples run.
    pub profile: String,
    /// Samples at once.
    pub concurrency: usize,
    /// Further attempts at a sample whose sandbox failed.
    pub retries: u32,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Done {
    /// A record of every sample.
    pub records: Vec<Record>,
    /// The tasks whose clean-up failed, each with why. Their samples were judged before.
    pub unclean: Vec<(&'static str, Error)>,
}

/// Runs every sample of every task, and writes a record for each.
///
/// # Errors
/// If results cannot be written. What fails in a sandbox is a record.
pub async fn run(client: &Tierbox, plan: &Plan, tasks: Vec<Task>, records: Arc<Records>) -> Result<Done> {
    let progress = Arc::new(Progress::new(tasks.iter().map(|task| task.samples.len()).sum()));
    let slots = Arc::new(Semaphore::new(plan.concurrency.max(1)));
    let mut running = JoinSet::new();
    for task in tasks {
        let work = Work { client: client.clone(), plan: plan.clone(), progress: progress.clone(), records: records.clone() };
        running.spawn(work.task(task, slots.clone()));
    }
    let mut done = Done::default();
    while let Some(ended) = running.join_next().await {
        let ended = ended.map_err(|error| Error::new(ErrorKind::Internal, "run task", error.to_string()))??;
        done.records.extend(ended.records);
        done.unclean.extend(ended.unclean);
    }
    progress.finish();
    Ok(done)
}

#[derive(Clone)]
struct Work {
    client: Tierbox,
    plan: Plan,
    progress: Arc<Progress>,
    records: Arc<Records>,
}

/// What a sample ran in, as far as it got: of the last attempt that had a sandbox.
#[derive(Default)]
struct Place {
    tier: Option<String>,
    attestation: Option<Attestation>,
}

/// Attempts at something that a sandbox's failure may spoil.
struct Attempts {
    made: u32,
    retries: u32,
}

impl Attempts {
    /// Whether another attempt makes sense after this error. Waits before it says so.
    async fn again(&mut self, error: &Error) -> bool {
        if !is_transient(error) || self.made > self.retries {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(200) * self.made).await;
        self.made += 1;
        true
    }
}

impl Work {
    async fn task(self, task: Task, slots: Arc<Semaphore>) -> Result<Done> {
        let prepared = self.prepare_again(&task, &slots).await;
        let mut samples = JoinSet::new();
        for sample in task.samples.clone() {
            let (work, slots, name) = (self.clone(), slots.clone(), task.name);
            let given = prepared.as_ref().map(Arc::clone).map_err(|error| format!("{}: {error}", error.kind()));
            samples.spawn(async move {
                // A closed semaphore would only mean that there is no limit any more.
                let _slot = slots.acquire().await;
                work.sample(name, &sample, given).await
            });
        }
        let mut done = Done::default();
        while let Some(ended) = samples.join_next().await {
            done.records.push(ended.map_err(|error| Error::new(ErrorKind::Internal, "run sample", error.to_string()))??);
        }
        if let Ok(tree) = prepared {
            let cleaned = self.clean_up_again(&task, &tree, &slots).await;
            done.unclean.extend(cleaned.err().map(|error| (task.name, error)));
        }
        Ok(done)
    }

    fn attempts(&self) -> Attempts {
        Attempts { made: 1, retries: self.plan.retries }
    }

    /// The same with further attempts where a sandbox failed, as for samples.
    async fn prepare_again(&self, task: &Task, slots: &Semaphore) -> Result<Arc<Tree>> {
        let mut attempts = self.attempts();
        loop {
            match self.prepare(task, slots).await {
                Ok(tree) => return Ok(tree),
                Err(error) if attempts.again(&error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The tree that every sample is given, from a sandbox of the task's own. It ends at once: one that lived on would be one more
    /// than may run at a time.
    async fn prepare(&self, task: &Task, slots: &Semaphore) -> Result<Arc<Tree>> {
        let _slot = slots.acquire().await;
        let running = self.client.start(&self.plan.profile).await?;
        let sandbox = running.sandbox();
        sandbox.make_dir(&WORK.into()).await?;
        script(sandbox.as_ref(), task.setup).await?;
        let tree = score::export(sandbox.as_ref()).await?;
        let tree =
            tree.ok_or_else(|| Error::new(ErrorKind::TooLarge, "set up task", "what it gives its samples is too large"))?;
        running.stop().await?;
        Ok(Arc::new(tree))
    }

    /// The same for its end.
    async fn clean_up_again(&self, task: &Task, tree: &Tree, slots: &Semaphore) -> Result<()> {
        let mut attempts = self.attempts();
        loop {
            match self.clean_up(task, tree, slots).await {
                Err(error) if attempts.again(&error).await => {}
                done => return done,
            }
        }
    }

    /// Runs a task's clean-up over what it gave its samples.
    async fn clean_up(&self, task: &Task, tree: &Tree, slots: &Semaphore) -> Result<()> {
        let _slot = slots.acquire().await;
        let running = self.client.start(&self.plan.profile).await?;
        score::import(running.sandbox().as_ref(), tree).await?;
        script(running.sandbox().as_ref(), task.cleanup).await?;
        running.stop().await
    }

    async fn sample(&self, task: &str, sample: &Sample, given: Result<Arc<Tree>, String>) -> Result<Record> {
        self.progress.began();
        let started = Instant::now();
        let (mut attempts, mut place) = (self.attempts(), Place::default());
        let verdict = loop {
            let attempt = match &given {
                Ok(tree) => self.attempt(sample, tree, &mut place).await,
                Err(error) => Err(Error::new(ErrorKind::Internal, "set up task", error.clone())),
            };
            match attempt {
                Ok(verdict) => break verdict,
                Err(error) if attempts.again(&error).await => {}
                Err(error) => break Verdict::Invalid(format!("{}: {error}", error.kind())),
            }
        };
        // What no sandbox was had for is told by what its profile promises; there is no attestation of it.
        let declared = || self.client.load(self.plan.profile.as_str(), &StartOptions::new()).ok();
        let tier = place.tier.or_else(|| declared().map(|profile| profile.tier().to_string()));
        let record = Record {
            task: task.to_owned(),
            sample: sample.name.to_owned(),
            verdict,
            attempts: attempts.made,
            seconds: started.elapsed().as_secs_f64(),
            profile: self.plan.profile.clone(),
            tier,
            attestation: place.attestation,
        };
        self.records.write(&record).map_err(|error| Error::io("write result", error))?;
        self.progress.ended(&record);
        Ok(record)
    }

    async fn attempt(&self, sample: &Sample, given: &Tree, place: &mut Place) -> Result<Verdict> {
        let running = self.client.start_with(self.plan.profile.as_str(), StartOptions::new()).await?;
        *place = Place { tier: Some(running.report().tier.to_string()), attestation: running.attestation() };
        let left = self.live(&running, sample, given).await;
        running.stop().await?;
        match left? {
            Ok(tree) => score::score(&self.client, &self.plan.profile, sample, &tree).await,
            Err(verdict) => Ok(verdict),
        }
    }

    /// One life of a sample's sandbox: what the agent left, or why it left nothing to score.
    async fn live(&self, running: &Running, sample: &Sample, given: &Tree) -> Result<Result<Tree, Verdict>> {
        let sandbox = running.sandbox();
        score::import(sandbox.as_ref(), given).await?;
        script(sandbox.as_ref(), sample.setup).await?;
        let agent = running.for_agent(AgentOptions::new()).await?;
        match act(&agent, sandbox.as_ref(), sample).await {
            Err(error) if is_the_agents(&error) => Ok(Err(Verdict::Failed(format!("{}: {error}", error.kind())))),
            acted => acted,
        }
    }
}

/// What the agent does, and what is looked at of what it left.
async fn act(agent: &AgentSandbox, sandbox: &dyn Sandbox, sample: &Sample) -> Result<Result<Tree, Verdict>> {
    for step in &sample.steps {
        let ran = agent.run(ExecRequest::shell(step).cwd(WORK).timeout(sample.time)).await?;
        match ran.outcome() {
            // A step that fails is the agent's to deal with; what it left is scored.
            Outcome::Exited(_) | Outcome::Signaled(_) => {}
            Outcome::Lost => return Err(Error::new(ErrorKind::Lost, "run step", "the sandbox went away").retryable()),
            other => return Ok(Err(Verdict::Failed(other.to_string()))),
        }
    }
    let tree = match score::export(sandbox).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Err(Verdict::Failed("it removed the directory that is scored".to_owned())));
        }
        other => other?,
    };
    if let Some(failure) = try_script(sandbox, sample.cleanup).await? {
        return Ok(Err(Verdict::Failed(format!("its clean-up {failure}"))));
    }
    Ok(tree.ok_or_else(|| Verdict::Failed("it left more than can be scored".to_owned())))
}

/// Whether an agent can bring this about by what it does in its sandbox. If that said nothing about it, it could have any answer of
/// its own that is wrong taken out of the count.
pub(crate) fn is_the_agents(error: &Error) -> bool {
    use ErrorKind::{
        AlreadyExists, IsADirectory, LimitReached, NoSpace, NotAFile, NotFound, PermissionDenied, PolicyDenied, TooLarge,
        UnsafeArchive,
    };
    match error.kind() {
        PolicyDenied | PermissionDenied | UnsafeArchive | NoSpace | NotAFile | NotFound | IsADirectory | AlreadyExists
        | TooLarge | LimitReached => true,
        // A machine that went away is said to be lost; this is what one that is there could not do.
        ErrorKind::Io => !error.is_retryable(),
        _ => false,
    }
}

/// Whether another attempt may succeed.
fn is_transient(error: &Error) -> bool {
    error.is_retryable() || matches!(error.kind(), ErrorKind::Lost | ErrorKind::Timeout)
}

/// Runs a script of the harness's own, which must succeed.
async fn script(sandbox: &dyn Sandbox, text: &str) -> Result<()> {
    match try_script(sandbox, text).await? {
        None => Ok(()),
        Some(failure) => Err(Error::new(ErrorKind::Internal, "run set-up or clean-up", format!("it {failure}"))),
    }
}

/// Runs a script of the harness's own, and tells how it failed.
async fn try_script(sandbox: &dyn Sandbox, text: &str) -> Result<Option<String>> {
    let ran = sandbox.run(ExecRequest::shell(text).cwd(WORK).timeout(Duration::from_secs(60))).await?;
    match ran.outcome() {
        Outcome::Exited(0) => Ok(None),
        Outcome::Lost => Err(Error::new(ErrorKind::Lost, "run set-up or clean-up", "the sandbox went away").retryable()),
        outcome => {
            let said: String = ran.stderr.text().chars().take(200).collect();
            Ok(Some(format!("{outcome}: {}", said.escape_debug())))
        }
    }
}
