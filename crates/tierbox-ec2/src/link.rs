//! The way into one machine: scripts by Run Command, what is large or secret by the bucket.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_sdk_ssm::types::CommandInvocationStatus;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tierbox_core::{Error, ErrorKind, Result};
use tierbox_guest::plain::{PlainLimits, PlainOutput, PlainRun, PlainTransport};
use tokio::sync::{Semaphore, watch};

use crate::BACKEND;
use crate::aws::{Aws, driven};
use crate::call::{self, Fate, Pauses, fate, told};
use crate::control::{Control, Find};
use crate::envelope::{Envelope, INLINE, Payload, Told, encoded};
use crate::objects::{Object, Objects, random};
use crate::poll::{Ended, Sent};

const LIMITS: PlainLimits = PlainLimits { script: 1 << 20, stdin: 8 << 20, output: 8 << 20 };
/// The same without a bucket: what fits into a command, and into what SSM keeps of its output.
const SMALL: PlainLimits = PlainLimits { script: 20 << 10, stdin: 8 << 10, output: 13 << 10 };
/// The longest script and input, as Base64, that travel in the command: SSM takes 64 KB of parameters.
const IN_COMMAND: usize = 40_000;
/// Envelopes that wait in the machine at once: its agent runs five scripts, and one place is kept for what ends others.
const PLACES: usize = 4;
/// How many of them may wait long, and how long; the others soon make room.
const PATIENT: usize = 2;
const LONG: Duration = Duration::from_secs(25);
const BRIEF: Duration = Duration::from_millis(900);
/// How long one waits while others want its place, and how long it then stays away, at first and at most.
const HARDLY: Duration = Duration::from_millis(40);
const AWAY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// How long one gives way that only brings output meanwhile.
const YIELDING: Duration = Duration::from_secs(5);
/// How long SSM tries to deliver a command, at least 30 by its rules, and how much longer than the envelope's stay its end is waited for.
const DELIVERY: i32 = 60;
const LATE: Duration = Duration::from_secs(90);
/// How late a command's end is before somebody looks whether the instance lives, and between two such looks.
const SLICE: Duration = Duration::from_secs(6);
/// How often a command that was not delivered is sent again.
const SENDINGS: usize = 5;
/// How long a machine that is asked may say nothing at all: then its agent is gone, whatever EC2 says of the instance.
const SILENCE: Duration = Duration::from_secs(150);
/// Runs that are over are removed when there are so many.
const SPENT: usize = 24;

/// The way into one machine.
pub(crate) struct Link {
    aws: Arc<Aws>,
    instance: String,
    /// None where no bucket is named: everything then travels in commands, and what may be a secret does not.
    objects: Option<Objects>,
    places: Semaphore,
    waiting: AtomicUsize,
    /// How many want a place.
    queued: AtomicUsize,
    closed: watch::Sender<bool>,
    /// How many commands were sent, or may have been.
    sent: AtomicUsize,
    spent: Mutex<VecDeque<String>>,
    /// How long the machine lives after each command, in seconds.
    life: AtomicU64,
    /// Since when it was asked and has not answered.
    asked: Mutex<Option<Instant>>,
    /// It ended, or was silent for so long that it seems to have.
    gone: AtomicBool,
}

fn lost(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Lost, "run script", message).with_backend(BACKEND)
}

impl Link {
    pub(crate) fn new(aws: Arc<Aws>, instance: &str, objects: Option<Objects>) -> Self {
        Self {
            aws,
            instance: instance.to_owned(),
            objects,
            places: Semaphore::new(PLACES),
            waiting: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            closed: watch::Sender::new(false),
            sent: AtomicUsize::new(0),
            spent: Mutex::default(),
            life: AtomicU64::new(0),
            asked: Mutex::default(),
            gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    pub(crate) fn objects(&self) -> Option<&Objects> {
        self.objects.as_ref()
    }

    /// A key for what comes out of the machine.
    fn fresh(&self) -> Result<Object> {
        let none = || Error::new(ErrorKind::TooLarge, "run script", "without a bucket so much does not come out of the machine");
        self.objects.as_ref().ok_or_else(|| none().with_backend(BACKEND))?.fresh()
    }

    /// Nothing comes back any more: what waits is lost.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Whether something may have come to the machine this way.
    pub(crate) fn was_used(&self) -> bool {
        self.sent.load(Ordering::SeqCst) > 0
    }

    /// From now on each command lets the machine live so long.
    pub(crate) fn set_life(&self, life: Duration) {
        self.life.store(life.as_secs(), Ordering::Relaxed);
    }

    /// Runs a script of our own, as root.
    pub(crate) async fn script(self: &Arc<Self>, script: String, limit: Duration) -> Result<PlainOutput> {
        let link = self.clone();
        driven(async move { link.run(PlainRun::new(script, Bytes::new(), limit)).await }).await
    }

    async fn see_through(&self, run: PlainRun) -> Result<PlainOutput> {
        let id = random(10)?;
        let load = Load::of(self, &run).await?;
        let put = if run.expects > INLINE { Some(self.fresh()?) } else { None };
        let mut running =
            Running { link: self, id: &id, run: &run, load, put, sendings: 0, claimed: false, doubtful: false, away: AWAY.0 };
        let output = running.follow().await;
        if output.is_ok() && !running.doubtful {
            self.is_over(id);
        }
        output
    }

    /// Whether the instance has ended or is about to. Who cannot tell says no.
    async fn has_ended(&self) -> bool {
        let found = self.aws.find(&Find::Ids(vec![self.instance.clone()])).await;
        found.is_ok_and(|found| found.iter().any(|instance| instance.is_ending() || instance.state.starts_with("stop")))
    }

    /// How long it has been asked without an answer.
    fn silent(&self) -> Duration {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get_or_insert_with(Instant::now).elapsed()
    }

    /// It has answered.
    fn heard(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.gone.store(false, Ordering::Relaxed);
    }

    /// Nobody need ask any more what became of a command.
    fn gone(&self, why: String) -> Error {
        self.gone.store(true, Ordering::Relaxed);
        lost(why)
    }

    fn is_over(&self, id: String) {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
    }

    /// Some of the runs that are over, to be removed by the next command.
    fn sweeping(&self) -> Vec<String> {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.len() < SPENT { Vec::new() } else { spent.drain(..SPENT).collect() }
    }
}

/// Script and input on their way.
enum Load {
    Inline,
    Object { object: Object, sha256: String },
}

impl Load {
    async fn of(link: &Link, run: &PlainRun) -> Result<Self> {
        if !run.private && encoded(run.script.len() + run.stdin.len()) <= IN_COMMAND {
            return Ok(Self::Inline);
        }
        let Some(objects) = &link.objects else {
            let message =
                "without a bucket, variables and input of a command would stay readable in the account's history of commands";
            return Err(Error::new(ErrorKind::HostUnable, "run script", message)
                .with_backend(BACKEND)
                .with_help("name a bucket (ec2.bucket or INSPECT_EC2_SANDBOX_S3_BUCKET), or write what is needed to a file"));
        };
        let all = Bytes::from([run.script.as_bytes(), &run.stdin].concat());
        let sha256 = hash(&all);
        Ok(Self::Object { object: objects.put(all).await?, sha256 })
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One script, from its sending to its end.
struct Running<'a> {
    link: &'a Link,
    id: &'a str,
    run: &'a PlainRun,
    load: Load,
    put: Option<Object>,
    sendings: usize,
    /// It is known to have come to the machine.
    claimed: bool,
    /// It may come to the machine once more: its claim must stay.
    doubtful: bool,
    /// How long it stays away next time.
    away: Duration,
}

/// Counts who waits in the machine, or for a place there.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    /// Counts one more; returns how many there were.
    fn begin(counter: &'a AtomicUsize) -> (Self, usize) {
        let before = counter.fetch_add(1, Ordering::Relaxed);
        (Self(counter), before)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Running<'_> {
    async fn follow(&mut self) -> Result<PlainOutput> {
        let begun = Instant::now();
        loop {
            match self.ask().await? {
                Told::Done { status, stdout, stderr } => return Ok(PlainOutput { status, stdout, stderr }),
                Told::Put { status, stdout, stderr, sha256 } => return self.fetch(status, stdout, stderr, &sha256).await,
                Told::Big => {
                    self.claimed = true;
                    self.put = Some(self.link.fresh()?);
                }
                Told::NotPut(why) => self.strike(&format!("its output did not get out of the machine: {why}"))?,
                Told::Runs => {
                    self.claimed = true;
                    self.stay_away().await;
                }
                Told::Nothing => {}
                Told::Gone => return Err(lost("what ran the script in the machine is gone")),
                Told::Absent if self.claimed => return Err(lost("the machine has forgotten the script")),
                Told::Absent => self.strike("the script did not come to the machine")?,
                Told::NoPayload(why) => self.renew(&why).await?,
            }
            if begun.elapsed() > self.run.limit.saturating_add(LATE) {
                return Err(lost(format!("no end within {:?}", self.run.limit)));
            }
        }
    }

    /// Leaves the place to others, if there are any who want it.
    async fn stay_away(&mut self) {
        if self.link.queued.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(call::jittered(self.away)).await;
            self.away = (self.away * 2).min(AWAY.1);
        }
    }

    /// Lets those go first who want a place, for a while.
    async fn give_way(&self) {
        let begun = Instant::now();
        while self.run.yielding && self.link.queued.load(Ordering::Relaxed) > 0 && begun.elapsed() < YIELDING {
            tokio::time::sleep(call::jittered(AWAY.0)).await;
        }
    }

    /// Counts what went wrong.
    fn strike(&mut self, why: &str) -> Result<()> {
        self.sendings += 1;
        if self.sendings < SENDINGS { Ok(()) } else { Err(lost(why.to_owned())) }
    }

    /// The object did not get into the machine, so the script did not run: a new object, with a new address.
    async fn renew(&mut self, why: &str) -> Result<()> {
        // It has not run, and that is certain: nobody need ask what became of it.
        let unable = |error: Error| {
            Error::new(ErrorKind::HostUnable, "run script", error.message().to_owned())
                .with_backend(BACKEND)
                .with_help("the machine must reach the bucket: by an endpoint of S3, and by egress rules that let it")
        };
        self.strike(&format!("script and input did not get into the machine: {why}")).map_err(unable)?;
        self.load = Load::of(self.link, self.run).await?;
        Ok(())
    }

    /// Sends an envelope and waits for its answer.
    async fn ask(&mut self) -> Result<Told> {
        let link = self.link;
        self.give_way().await;
        let _place = match self.run.urgent {
            true => None,
            false => {
                let (_queued, _) = Waits::begin(&link.queued);
                Some(link.places.acquire().await.map_err(|_| lost("the way in is closed"))?)
            }
        };
        let (_waits, before) = Waits::begin(&link.waiting);
        let hold = match (link.queued.load(Ordering::Relaxed), before) {
            (0, ..PATIENT) => LONG,
            (0, _) => BRIEF,
            _ => HARDLY,
        };
        let script = self.envelope(hold).await?;
        link.silent();
        let sent = self.send(&script).await?;
        let mut patience = hold + SLICE;
        loop {
            if let Some(ended) = link.aws.poller.wait(&sent, patience).await? {
                return self.answer(&ended);
            }
            if link.has_ended().await {
                return Err(link.gone(format!("the instance {} has ended", link.instance)));
            }
            if link.silent() > SILENCE {
                return Err(link.gone(format!("{} has not answered for {SILENCE:?}: its agent is gone", link.instance)));
            }
            if patience > hold + LATE {
                self.doubtful = true;
                self.strike("SSM never told the end of the command")?;
                return Ok(Told::Nothing);
            }
            patience += SLICE;
        }
    }

    fn answer(&mut self, ended: &Ended) -> Result<Told> {
        if ended.stdout.starts_with("tierbox-ssm 1 ") {
            self.link.heard();
            return Told::read(self.id, &ended.stdout);
        }
        let said = call::shown(&format!("{} {}", ended.stdout.trim(), ended.stderr.trim()));
        let why = format!("SSM says {} ({}): {said:?}", ended.status.as_str(), ended.details);
        match ended.status {
            // It was not delivered, or its envelope was killed: the claim tells whether the script runs.
            CommandInvocationStatus::TimedOut | CommandInvocationStatus::Cancelled | CommandInvocationStatus::Failed => {
                self.doubtful = true;
                self.strike(&why)?;
                if self.link.silent() > SILENCE {
                    return Err(self.link.gone(why));
                }
                Ok(Told::Nothing)
            }
            _ => Err(Error::new(ErrorKind::Protocol, "run script", why).with_backend(BACKEND)),
        }
    }

    async fn envelope(&self, hold: Duration) -> Result<String> {
        let spent = self.link.sweeping();
        let url = match &self.load {
            Load::Object { object, .. } if !self.claimed => object.readable().await?,
            _ => String::new(),
        };
        let payload = match &self.load {
            _ if self.claimed => Payload::None,
            Load::Inline => Payload::Inline { script: &self.run.script, stdin: &self.run.stdin },
            Load::Object { sha256, .. } => Payload::Address { url: &url, sha256, script: self.run.script.len() },
        };
        let put = match &self.put {
            Some(object) => Some(object.writable().await?),
            None => None,
        };
        let life = self.link.life.load(Ordering::Relaxed);
        let hold_ms = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        Ok(Envelope { id: self.id, payload, hold_ms, put: put.as_deref(), spent: &spent, life }.script())
    }

    /// Sends it. A call that may have taken effect is made again: the envelope runs its script once, however often it comes.
    async fn send(&mut self, script: &str) -> Result<Sent> {
        const CALL: &str = "ssm:SendCommand";
        let link = self.link;
        let (mut pauses, mut unknown) = (Pauses::new(), 0);
        loop {
            let at = Instant::now();
            link.sent.fetch_add(1, Ordering::SeqCst);
            // Whoever closes it looks whether something was sent, and this must be seen then.
            if *link.closed.borrow() {
                return Err(lost("the machine was stopped"));
            }
            let sent = link
                .aws
                .ssm
                .send_command()
                .document_name("AWS-RunShellScript")
                .instance_ids(&link.instance)
                .timeout_seconds(DELIVERY)
                .parameters("commands", vec![script.to_owned()])
                .parameters("executionTimeout", vec!["600".to_owned()])
                .send()
                .await;
            call::note(CALL, &sent);
            let error = match sent {
                Ok(answer) => {
                    let by_aws = answer.command.as_ref().and_then(|command| command.requested_date_time).map(|at| at.secs());
                    let command = answer.command.and_then(|command| command.command_id).unwrap_or_default();
                    return Ok(Sent { command, instance: link.instance.clone(), at, by_aws });
                }
                Err(error) => error,
            };
            match fate(&error) {
                Fate::Unknown => self.doubtful = true,
                Fate::Throttled | Fate::Refused => drop(link.sent.fetch_sub(1, Ordering::SeqCst)),
            }
            // What has just come online is not known everywhere.
            let is_unknown = call::code(&error) == "InvalidInstanceId";
            unknown += u32::from(is_unknown);
            match pauses.next() {
                Some(pause) if fate(&error) != Fate::Refused || (is_unknown && unknown < 4) => tokio::time::sleep(pause).await,
                _ if is_unknown => {
                    let why = format!("SSM does not know {}: it has ended, or its agent is gone", link.instance);
                    return Err(if link.has_ended().await { link.gone(why) } else { lost(why) });
                }
                _ => return Err(told("run script", CALL, &error).with_context("tries", pauses.tries())),
            }
        }
    }

    async fn fetch(&self, status: i32, stdout: usize, stderr: usize, sha256: &str) -> Result<PlainOutput> {
        let broken = |message: &str| Error::new(ErrorKind::Protocol, "run script", message).with_backend(BACKEND);
        let object = self.put.as_ref().ok_or_else(|| broken("the machine put what nobody asked for"))?;
        if stdout > LIMITS.output || stderr > 4096 {
            return Err(Error::new(ErrorKind::TooLarge, "run script", "the script printed more than is carried at once"));
        }
        let bytes = object.get(stdout + stderr).await?;
        if bytes.len() != stdout + stderr || hash(&bytes) != sha256 {
            return Err(broken("the output is not what the machine sent"));
        }
        let (stdout, stderr) = bytes.split_at(stdout);
        Ok(PlainOutput { status, stdout: stdout.to_vec(), stderr: stderr.to_vec() })
    }
}

#[async_trait]
impl PlainTransport for Link {
    fn limits(&self) -> PlainLimits {
        if self.objects.is_some() { LIMITS } else { SMALL }
    }

    fn usual(&self) -> Duration {
        self.aws.poller.usual()
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    async fn run(&self, run: PlainRun) -> Result<PlainOutput> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(lost("the machine was stopped")),
            output = self.see_through(run) => output,
        }
    }
}
