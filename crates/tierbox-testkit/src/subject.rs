//! What a case works on: a sandbox, a fresh directory in it, and a way to start more.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tierbox_core::{
    Capabilities, Environment, EnvironmentSpec, ExecHandle, ExecRequest, ExecResult, GuestPath, HostIsolation, Outcome,
    ReadOptions, Sandbox, SandboxExt,
};

use crate::case::{Fail, Need, Verdict};

/// How long a case waits for what should be there at once, on a machine of the usual speed that may be busy.
pub const USUAL_PATIENCE: Duration = Duration::from_secs(20);

/// How long a case may take there, the starts of environments of its own included.
pub const USUAL_LIMIT: Duration = Duration::from_secs(120);

/// Changes a specification before an environment is started from it.
pub type Adjust<'a> = &'a (dyn Fn(&mut EnvironmentSpec) + Send + Sync);

/// Why an engine cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    /// What is missing.
    pub reason: String,
    /// The command that installs it; empty where there is none.
    pub install: String,
}

/// Starts environments of the backend under test.
#[async_trait]
pub trait Factory: Send + Sync {
    /// The engine's name, as in the list of engines that must be present.
    fn engine(&self) -> &str;

    /// Why nothing can be started here, if so. Must be quick, and start nothing.
    fn absent(&self) -> Option<Absence>;

    /// How long a start may take.
    fn start_limit(&self) -> Duration {
        USUAL_LIMIT
    }

    /// How long a case may take, the starts of environments of its own included.
    fn case_limit(&self) -> Duration {
        USUAL_LIMIT
    }

    /// How long a case waits for what should be there at once.
    fn patience(&self) -> Duration {
        USUAL_PATIENCE
    }

    /// Everything that the resolver outside was asked for, in lower case, where the environments' gateway knows the names of a
    /// [`world`](crate::world) with servers. `None` without one.
    #[cfg(target_os = "linux")]
    fn heard(&self) -> Option<String> {
        crate::world::heard().ok()
    }

    /// Starts an environment from the factory's own specification after `adjust`.
    ///
    /// # Errors
    /// The backend's own.
    async fn start(&self, adjust: Adjust<'_>) -> tierbox_core::Result<Arc<dyn Environment>>;
}

/// What one case works on. Cheap to clone.
#[derive(Clone)]
pub struct Subject {
    /// The sandbox.
    pub sandbox: Arc<dyn Sandbox>,
    /// The environment it belongs to. Cases do not stop it: they start one of their own for that.
    pub environment: Arc<dyn Environment>,
    /// Starts more environments.
    pub factory: Arc<dyn Factory>,
    /// An absolute path inside: an empty directory that belongs to the default user, and to this case alone.
    pub dir: String,
    /// How long a case waits for what should be there at once.
    pub patience: Duration,
    /// Where the attack program is, once it was put in.
    pub(crate) program: Arc<tokio::sync::OnceCell<String>>,
}

impl Subject {
    /// Prepares a fresh directory in the environment's primary machine.
    ///
    /// # Errors
    /// If the sandbox cannot even run `mkdir` and `pwd`.
    pub async fn new(environment: Arc<dyn Environment>, factory: Arc<dyn Factory>) -> Verdict<Self> {
        let sandbox = environment.primary();
        let made =
            sandbox.run(ExecRequest::shell(format!("d=\"$PWD/case-{}\" && mkdir \"$d\" && printf %s \"$d\"", number()))).await?;
        if !made.success() {
            return Err(Fail::Broken(format!("no directory for the case could be made: {made:?}")));
        }
        let dir = String::from_utf8(made.stdout.bytes()).map_err(|error| Fail::Broken(format!("odd directory: {error}")))?;
        let patience = factory.patience();
        Ok(Self { sandbox, environment, factory, dir, patience, program: Arc::default() })
    }

    /// The capabilities of the sandbox under test.
    pub fn capabilities(&self) -> &Capabilities {
        self.sandbox.capabilities()
    }

    /// Whether it is a virtual machine, or more.
    pub fn has_own_kernel(&self) -> bool {
        self.capabilities().host >= HostIsolation::H3
    }

    /// Whether the sandbox can do this.
    pub fn can(&self, need: Need) -> bool {
        need.is_met(self.capabilities())
    }

    /// A time that is right for machines of the usual speed, longer where the factory asks for more patience.
    pub fn scaled(&self, time: Duration) -> Duration {
        time.mul_f64(self.patience.div_duration_f64(USUAL_PATIENCE).max(1.0))
    }

    /// A path in the case's directory.
    pub fn path(&self, name: &str) -> GuestPath {
        GuestPath::from(format!("{}/{name}", self.dir))
    }

    /// The same, from bytes.
    pub fn path_bytes(&self, name: &[u8]) -> GuestPath {
        GuestPath::from([self.dir.as_bytes(), b"/", name].concat())
    }

    /// A shell script that starts in the case's directory.
    pub fn shell(&self, script: impl AsRef<[u8]>) -> ExecRequest {
        ExecRequest::shell(script).cwd(self.dir.as_str())
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// [`Fail`] on any error, or when it takes longer than the case's patience.
    pub async fn run(&self, request: ExecRequest) -> Verdict<ExecResult> {
        Ok(self.soon("the end of a command", self.sandbox.run(request)).await??)
    }

    /// Runs a script that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// [`Fail`] if it does not succeed.
    pub async fn sh(&self, script: impl AsRef<[u8]>) -> Verdict<Vec<u8>> {
        let result = self.run(self.shell(script.as_ref())).await?;
        if !result.success() {
            let script = script.as_ref().escape_ascii();
            return Err(Fail::Broken(format!("the script \"{script}\" failed: {result:?}")));
        }
        Ok(result.stdout.bytes())
    }

    /// The same, as trimmed text.
    ///
    /// # Errors
    /// As [`sh`](Self::sh).
    pub async fn text(&self, script: impl AsRef<[u8]>) -> Verdict<String> {
        Ok(String::from_utf8_lossy(&self.sh(script).await?).trim().to_owned())
    }

    /// Launches a command.
    ///
    /// # Errors
    /// As [`Sandbox::spawn`].
    pub async fn spawn(&self, request: ExecRequest) -> Verdict<Box<dyn ExecHandle>> {
        Ok(self.soon("a launch", self.sandbox.spawn(request)).await??)
    }

    /// Waits for a command.
    ///
    /// # Errors
    /// If it does not end within the case's patience.
    pub async fn outcome(&self, handle: &mut Box<dyn ExecHandle>) -> Verdict<Outcome> {
        Ok(self.soon("the end of a command", handle.wait()).await??.outcome)
    }

    /// Awaits something for at most the case's patience.
    ///
    /// # Errors
    /// [`Fail`] when it takes longer.
    pub async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> Verdict<T> {
        within(self.patience, what, future).await
    }

    /// Asks again and again until the answer is yes.
    ///
    /// # Errors
    /// [`Fail`] when it is still no after `limit`.
    pub async fn until<F, R>(&self, limit: Duration, what: &str, mut ask: F) -> Verdict
    where
        F: FnMut() -> R,
        R: Future<Output = Verdict<bool>>,
    {
        let start = Instant::now();
        loop {
            if ask().await? {
                return Ok(());
            }
            if start.elapsed() > limit {
                return Err(Fail::Broken(format!("after {limit:?}, still not: {what}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether a path exists inside, asked through the command line.
    ///
    /// # Errors
    /// If the shell cannot be asked.
    pub async fn exists(&self, name: &str) -> Verdict<bool> {
        let result = self
            .run(ExecRequest::new(["/bin/sh", "-c", "test -e \"$1\" || test -L \"$1\"", "sh", name]).cwd(self.dir.as_str()))
            .await?;
        Ok(result.success())
    }

    /// A whole file.
    ///
    /// # Errors
    /// As [`Sandbox::read`].
    pub async fn read(&self, name: &str) -> Verdict<Vec<u8>> {
        Ok(self.soon("a file", self.sandbox.read_bytes(self.path(name), 256 << 20)).await??)
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// As [`Sandbox::write`].
    pub async fn write(&self, name: &str, contents: impl Into<bytes::Bytes> + Send) -> Verdict {
        Ok(self.soon("a write", self.sandbox.write_bytes(self.path(name), contents)).await??)
    }

    /// The permission bits of a file.
    ///
    /// # Errors
    /// As [`Sandbox::stat`].
    pub async fn mode(&self, name: &str) -> Verdict<u32> {
        Ok(self.sandbox.stat(&self.path(name), false).await?.mode)
    }

    /// A read with options.
    ///
    /// # Errors
    /// As [`Sandbox::read`].
    pub async fn read_part(&self, name: &str, options: ReadOptions) -> tierbox_core::Result<Vec<u8>> {
        use tokio::io::AsyncReadExt;
        let (_, mut reader) = self.sandbox.read(&self.path(name), options).await?;
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents).await.map_err(|error| tierbox_core::Error::io("read", error))?;
        Ok(contents)
    }

    /// Whether a process of this mark is alive inside.
    ///
    /// # Errors
    /// If the process list cannot be read.
    pub async fn alive(&self, mark: Mark) -> Verdict<bool> {
        let list = self.run(ExecRequest::shell("cat /proc/[0-9]*/cmdline 2>/dev/null; :")).await?;
        Ok(mark.is_in(&list.stdout.bytes()))
    }

    /// Waits until no process of this mark is alive inside, for the two seconds that a kill may take: longer where the factory asks
    /// for patience, as with an emulated machine that ten thousand orphans keep busy.
    ///
    /// # Errors
    /// [`Fail`] if one survives, with its state; also if it dies too late.
    pub async fn gone(&self, mark: Mark) -> Verdict {
        let (start, limit) = (Instant::now(), self.scaled(Duration::from_secs(2)));
        loop {
            // To look takes time of its own: what is seen lived when the look began, and perhaps no longer.
            let waited = start.elapsed();
            if !self.alive(mark).await? {
                return Ok(());
            }
            if waited > limit {
                return Err(Fail::Broken(format!(
                    "a process of the command is alive after {waited:?}: {}",
                    self.describe(mark).await?
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What is known of the processes of a mark.
    async fn describe(&self, mark: Mark) -> Verdict<String> {
        let script = "for p in /proc/[0-9]*; do grep -q \"$1\" $p/cmdline 2>/dev/null && [ $p != /proc/$$ ] && \
                      grep -E '^(Pid|PPid|State|SigBlk|SigIgn|ShdPnd|SigPnd):' $p/status | tr '\\n\\t' '  ' && tr '\\n' ' ' < $p/cgroup; done; :";
        let number = mark.sleep().split_off("sleep ".len());
        let found = self.run(ExecRequest::new(["/bin/sh", "-c", script, "sh", &number])).await?;
        Ok(found.stdout.text())
    }

    /// Starts an environment of the case's own, as `adjust` wants it, and gives a subject on it.
    ///
    /// # Errors
    /// [`Fail`] if it cannot be started.
    pub async fn another(&self, adjust: Adjust<'_>) -> Verdict<Self> {
        let limit = self.factory.start_limit();
        let environment = within(limit, "the start of an environment", self.factory.start(adjust)).await??;
        let mut subject = Self::new(environment, self.factory.clone()).await?;
        subject.patience = self.patience;
        Ok(subject)
    }

    /// Stops the environment of a subject that came from [`another`](Self::another).
    ///
    /// # Errors
    /// [`Fail`] if it cannot be stopped.
    pub async fn stop(&self) -> Verdict {
        Ok(within(self.factory.start_limit(), "the stop of an environment", self.environment.stop()).await??)
    }
}

/// Awaits something for at most `limit`.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> Verdict<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => Ok(value),
        Err(_) => Err(Fail::Broken(format!("waited {limit:?} in vain for {what}"))),
    }
}

/// A number that no other case on this host uses at this time.
pub(crate) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos() as u64;
    let mixed = (u64::from(std::process::id()) << 20) ^ now ^ (NEXT.fetch_add(1, Ordering::Relaxed) << 40);
    // A round of mixing, so that neighbours differ in every digit.
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

/// Marks processes: each is a `sleep` for a number of seconds that nobody else uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

impl Mark {
    /// A new mark.
    pub fn new() -> Self {
        Self(1_000_000_000 + number() % 1_000_000_000)
    }

    /// The command that sleeps under this mark, for a script.
    pub fn sleep(self) -> String {
        format!("sleep {}", self.0)
    }

    /// Whether a concatenation of `/proc/*/cmdline` shows a process of this mark.
    pub fn is_in(self, command_lines: &[u8]) -> bool {
        let wanted = format!("sleep\0{}\0", self.0);
        command_lines.windows(wanted.len()).any(|window| window == wanted.as_bytes())
    }

    /// Whether a process of this mark is alive on this host, whoever's it is.
    pub fn is_on_host(self) -> bool {
        let Ok(entries) = std::fs::read_dir("/proc") else { return false };
        entries
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
            .any(|command_line| self.is_in(&command_line))
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self::new()
    }
}
