//! A backend whose supervisor outlives its lines: installed by the scripts that every remote machine gets, started as one process
//! in the background, joined over the standard streams of a child. The lines can be made to drop at random points.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, Connection, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, LeaseHandle,
    LeaseRecord, Progress, Report, Result, Sandbox, UserSupport,
};
use tierbox_guest::{Channel, GuestConfig, GuestSandbox, Line, Reconnect, driver, install};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framed;

const NAME: &str = "joined";

/// The backend.
pub struct Joined {
    /// Whether its lines drop.
    pub cut: bool,
}

/// Decides when lines drop. The seed is printed, and `TIERBOX_CUT_SEED` repeats it.
#[derive(Clone)]
pub struct Scissors(Arc<AtomicU64>);

impl Scissors {
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let given = std::env::var("TIERBOX_CUT_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or(now ^ u64::from(std::process::id()) << 32) | 1;
        #[allow(clippy::print_stderr, reason = "who repeats a failure needs the seed")]
        {
            eprintln!("lines are cut by TIERBOX_CUT_SEED={seed}");
        }
        Self(Arc::new(AtomicU64::new(seed)))
    }

    /// How many bytes a stream carries before it drops: few as often as many, and at least what a first answer takes.
    fn length(&self) -> u64 {
        let mut state = self.0.load(Ordering::Relaxed);
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.store(state, Ordering::Relaxed);
        let magnitude = 9 + (state >> 32) % 14;
        (1 << magnitude) + state % (1 << magnitude)
    }
}

/// One direction of a line that carries so many bytes and then is gone.
struct Cut<T> {
    inner: Option<T>,
    left: u64,
}

impl<T: AsyncRead + Unpin> AsyncRead for Cut<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            self.inner = None;
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.remaining());
        let Some(inner) = &mut self.inner else { return Poll::Ready(Ok(())) };
        let mut part = vec![0; most];
        let mut part = ReadBuf::new(&mut part);
        std::task::ready!(Pin::new(inner).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        self.left -= part.filled().len() as u64;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cut<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            self.inner = None;
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let Some(inner) = &mut self.inner else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let count = std::task::ready!(Pin::new(inner).poll_write(cx, &bytes[..most]))?;
        self.left -= count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().map_or(Poll::Ready(Ok(())), |inner| Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().map_or(Poll::Ready(Ok(())), |inner| Pin::new(inner).poll_shutdown(cx))
    }
}

/// Runs a script as a login shell of a remote machine would.
fn shell(script: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", &install::quoted(script)]).env_clear().current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn line(script: &str, scissors: Option<&Scissors>) -> Result<Line> {
    let _inside = driver::handle()?.enter();
    let mut child = shell(script).spawn().map_err(|error| Error::io("open line", error))?;
    let (reader, writer) = (child.stdout.take().expect("stdout is piped"), child.stdin.take().expect("stdin is piped"));
    let line = match scissors {
        None => Line::new(reader, writer),
        Some(scissors) => {
            Line::new(Cut { inner: Some(reader), left: scissors.length() }, Cut { inner: Some(writer), left: scissors.length() })
        }
    };
    Ok(line.keeping(child))
}

struct Joins {
    script: String,
    scissors: Option<Scissors>,
    opened: Arc<AtomicU64>,
}

#[async_trait]
impl Reconnect for Joins {
    async fn open(&self) -> Result<Line> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        line(&self.script, self.scissors.as_ref())
    }
}

/// Installs the supervisor below `dir`, and starts it.
pub async fn landed(dir: &std::path::Path) -> Result<install::Landed> {
    let directories = vec![dir.to_str().expect("a temporary directory's name is text").to_owned()];
    let options = install::Options { user: None, directories };
    install::land(line(&install::script(&options)?, None)?).await
}

/// A machine in a directory of its own.
pub struct Machine {
    id: String,
    pub sandbox: Arc<GuestSandbox>,
    report: Report,
    /// Where its supervisor lies while it lives.
    pub dir: PathBuf,
    /// Lines that were opened after the first.
    pub opened: Arc<AtomicU64>,
    kept: Mutex<Option<tempfile::TempDir>>,
}

/// Starts one.
pub async fn start(id: &str, spec: &EnvironmentSpec, scissors: Option<Scissors>, grace: Duration) -> Result<Machine> {
    framed::Framed.validate(spec)?;
    let dir = tempfile::tempdir().map_err(|error| Error::io("make directory", error))?;
    let work = dir.path().join("work");
    std::fs::create_dir(&work).map_err(|error| Error::io("make directory", error))?;
    let install::Landed { installed, line: first, .. } = landed(dir.path()).await?;
    let setup = framed::adjusted(installed.setup("joined"), spec, &work);
    let opened = Arc::new(AtomicU64::new(0));
    let joins = Joins { script: installed.join(), scissors, opened: opened.clone() };
    let (channel, ready) = Channel::begin(first, Arc::new(joins), &setup, grace, Duration::from_secs(20)).await?;
    let users = if ready.users { UserSupport::Any } else { UserSupport::DefaultOnly };
    let capabilities =
        Capabilities { users, kill_domain: ready.kill_domain, memory_outcome: ready.memory_outcome, ..framed::capabilities() };
    let report = framed::report(spec, &capabilities);
    let config = GuestConfig {
        name: "main".to_owned(),
        backend: NAME,
        capabilities,
        limits: spec.limits.clone(),
        agent: installed.user.name.clone(),
    };
    let sandbox = Arc::new(GuestSandbox::new(channel, config));
    let place = PathBuf::from(&installed.dir);
    Ok(Machine { id: id.to_owned(), sandbox, report, dir: place, opened, kept: Mutex::new(Some(dir)) })
}

#[async_trait]
impl Backend for Joined {
    fn name(&self) -> &'static str {
        NAME
    }

    fn settings_schema(&self) -> serde_json::Value {
        framed::Framed.settings_schema()
    }

    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        framed::Framed.validate(spec)
    }

    fn capabilities(&self, spec: &EnvironmentSpec) -> Result<Capabilities> {
        framed::Framed.capabilities(spec)
    }

    async fn start(&self, spec: &EnvironmentSpec, lease: Arc<dyn LeaseHandle>, _: &dyn Progress) -> Result<Box<dyn Environment>> {
        let scissors = self.cut.then(Scissors::new);
        Ok(Box::new(start(lease.id(), spec, scissors, install::GRACE).await?))
    }

    async fn attach(&self, _: &LeaseRecord) -> Result<Box<dyn Environment>> {
        Err(Error::unsupported("attach", "a detached environment"))
    }

    async fn is_alive(&self, _: &LeaseRecord) -> bool {
        false
    }

    async fn destroy(&self, _: &LeaseRecord) -> Result<DestroyReport> {
        Ok(DestroyReport::default())
    }

    async fn doctor(&self) -> Vec<Check> {
        Vec::new()
    }
}

#[async_trait]
impl Environment for Machine {
    fn id(&self) -> &str {
        &self.id
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        vec![self.sandbox.clone()]
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        self.machine(machine)?;
        Ok(Connection { argv: Vec::new(), needs: Vec::new(), note: "there is no way in but the channel".to_owned() })
    }

    async fn stop(&self) -> Result<()> {
        self.sandbox.channel().shutdown();
        if !self.ended(Duration::from_secs(10)).await {
            return Err(Error::new(ErrorKind::Timeout, "stop machine", "the supervisor did not end within 10 s"));
        }
        self.sandbox.channel().close();
        drop(self.kept.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(())
    }

    async fn ended(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while self.dir.exists() {
            if start.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}
