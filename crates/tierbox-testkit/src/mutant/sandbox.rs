//! A sandbox that breaks one promise, and keeps all others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{
    ByteReader, ByteStream, Capabilities, Completed, Confinement, DialTarget, DirEntry, Error, ErrorKind, ExecHandle, ExecId,
    ExecInfo, ExecRequest, FileKind, FileMeta, GuestPath, KillDomain, KillReason, Leftovers, LimitCapabilities, Limits, PtySize,
    ReadOptions, Result, Sandbox, SandboxExt, Signal, Stdin, UserSupport, WriteOptions,
};
use tokio::sync::Semaphore;

use super::catalogue::Fault;
use super::handle::{BrokenHandle, Facts};
use super::streams;

type Vars = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a broken sandbox and its handles share.
pub(super) struct World {
    pub(super) inner: Arc<dyn Sandbox>,
    pub(super) fault: Fault,
    execs: AtomicU64,
    dead: Arc<AtomicBool>,
    remembered: Mutex<Vars>,
    previous: Mutex<Vec<u8>>,
    gate: Arc<Semaphore>,
    ended: Mutex<Vec<ExecId>>,
}

impl World {
    pub(super) fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<()> {
        if self.dead.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Lost, "use sandbox", "the machine is gone"));
        }
        Ok(())
    }
}

pub(super) struct BrokenSandbox {
    world: Arc<World>,
    capabilities: Capabilities,
    limits: Limits,
}

impl BrokenSandbox {
    pub(super) fn new(inner: Arc<dyn Sandbox>, fault: Fault) -> Self {
        let mut capabilities = inner.capabilities().clone();
        if fault == Fault::DeclaresNothing {
            capabilities = nothing(capabilities);
        }
        let limits = inner.limits().clone();
        let world = World {
            inner,
            fault,
            execs: AtomicU64::new(0),
            dead: Arc::default(),
            remembered: Mutex::default(),
            previous: Mutex::default(),
            gate: Arc::new(Semaphore::new(1)),
            ended: Mutex::default(),
        };
        Self { world: Arc::new(world), capabilities, limits }
    }

    fn fault(&self) -> Fault {
        self.world.fault
    }

    fn inner(&self) -> &Arc<dyn Sandbox> {
        &self.world.inner
    }

    /// Runs a helper script on the real sandbox.
    async fn helper(&self, script: &str, path: &GuestPath) -> Result<tierbox_core::ExecResult> {
        let argv = [b"/bin/sh".as_slice(), b"-c", script.as_bytes(), b"sh", path.as_bytes()];
        self.inner().run(ExecRequest::new(argv)).await
    }

    /// What becomes of a request.
    async fn asked(&self, mut request: ExecRequest) -> Result<ExecRequest> {
        change_argv(self.fault(), &mut request);
        change_stdin(self.fault(), &mut request);
        self.change_env(&mut request);
        change_rest(self.fault(), &mut request);
        if self.fault() == Fault::ConfinesForEver {
            let mut remembered = self.world.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if request.confine.is_some() {
                remembered.insert(b"confined".to_vec(), Vec::new());
            } else if !remembered.is_empty() {
                request.confine = Some(Confinement::default());
            }
        }
        if let (Fault::ForgetsFiles, Some(cwd)) = (self.fault(), &request.cwd) {
            self.inner().run(ExecRequest::shell("rm -rf ./*").cwd(cwd.clone())).await?;
        }
        Ok(request)
    }

    fn change_env(&self, request: &mut ExecRequest) {
        let set = |request: &mut ExecRequest, name: &str, value: &str| drop(request.env.insert(name.into(), value.into()));
        match self.fault() {
            Fault::LeaksTheEnvironment => {
                use std::os::unix::ffi::OsStringExt;
                request.env.extend(std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())));
            }
            Fault::HasNoHome => set(request, "HOME", ""),
            Fault::TrimsValues => request.env.values_mut().for_each(|value| *value = value.trim_ascii().to_vec()),
            Fault::LetsTheBaseWin => request.env.retain(|name, _| name != b"HOME" && name != b"LANG"),
            Fault::IgnoresClear => request.env_clear = false,
            Fault::IgnoresPath => drop(request.env.remove(b"PATH".as_slice())),
            Fault::DropsOddKeys => {
                let plain =
                    |name: &[u8]| name.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'_' || byte.is_ascii_digit());
                request.env.retain(|name, _| plain(name) && !name.first().is_some_and(u8::is_ascii_digit));
            }
            Fault::CutsAtNul => {
                let bad = |bytes: &[u8]| bytes.contains(&0);
                request.env.retain(|name, value| !name.is_empty() && !name.contains(&b'=') && !bad(name) && !bad(value));
            }
            Fault::RemembersVariables => {
                let mut remembered = self.world.remembered.lock().unwrap_or_else(PoisonError::into_inner);
                remembered.extend(request.env.clone());
                request.env = remembered.clone();
            }
            _ => (),
        }
    }

    /// Kills in another way than the contract says, when time is up.
    fn watch(&self, id: ExecId, after: Duration) {
        let (sandbox, fault) = (self.inner().clone(), self.fault());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            match fault {
                Fault::AsksWithTerm => sandbox.signal(id, Signal::TERM).await,
                Fault::TimesOutTheChildOnly => sandbox.signal(id, Signal::KILL).await,
                _ => {
                    // Not this very command, which the sandbox kills itself.
                    let script =
                        "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -9 $p; done 2>/dev/null";
                    sandbox.run(ExecRequest::shell(script)).await.map(drop)
                }
            }
        });
    }

    fn failed<T>(&self, path: &GuestPath, result: Result<T>) -> Result<T> {
        let fault = self.fault();
        result.map_err(|error| match fault {
            Fault::ConfusesErrors => Error::new(ErrorKind::Io, error.operation().to_owned(), format!("{path}: failed")),
            Fault::HidesPaths => Error::new(error.kind(), error.operation().to_owned(), "it failed"),
            Fault::DeniesLoss if error.kind() == ErrorKind::Lost => {
                Error::new(ErrorKind::Io, error.operation().to_owned(), "broken pipe")
            }
            _ => error,
        })
    }

    fn path(&self, path: &GuestPath) -> GuestPath {
        let bytes = path.as_bytes();
        match self.fault() {
            Fault::DecodesNames => GuestPath::from(String::from_utf8_lossy(bytes).into_owned()),
            Fault::ResolvesFromRoot if !bytes.starts_with(b"/") => GuestPath::from([b"/tmp/", bytes].concat()),
            Fault::CutsAtNul => {
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()).clamp(1, 4000);
                GuestPath::from(if bytes.is_empty() { b".".to_vec() } else { bytes[..end.min(bytes.len())].to_vec() })
            }
            _ => path.clone(),
        }
    }

    async fn needs_parent(&self, path: &GuestPath, is_dir: bool) -> Result<()> {
        let bytes = path.as_bytes();
        let parent = if is_dir { bytes } else { &bytes[..bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0)] };
        self.inner().stat(&GuestPath::from(parent), true).await.map(drop)
    }

    async fn write_differently(&self, path: &GuestPath, mut contents: ByteReader, mut options: WriteOptions) -> Result<()> {
        let mut path = path.clone();
        match self.fault() {
            Fault::LosesTheLastFileByte => contents = streams::shortened(contents),
            Fault::WritesElsewhere => path = GuestPath::from([path.as_bytes(), b".new"].concat()),
            Fault::NeedsParents => self.needs_parent(&path, false).await?,
            Fault::ClosesFiles => options.mode = Some(options.mode.unwrap_or(0o600)),
            Fault::IgnoresMode => options.mode = None,
            Fault::CutsFiles => contents = streams::cut(contents, 16 << 20),
            Fault::ReplacesTheNew => options.create_new = false,
            Fault::CommitsParts => contents = streams::forgiving(contents),
            Fault::RefusesLongNames if path.as_bytes().split(|byte| *byte == b'/').any(|name| name.len() > 100) => {
                return Err(Error::new(ErrorKind::InvalidInput, "write", "the name is too long"));
            }
            Fault::WritesInPlace => {
                let bytes = streams::drained(contents).await;
                let argv = [b"/bin/sh".as_slice(), b"-c", b"cat > \"$1\"", b"sh", path.as_bytes()];
                self.inner().run(ExecRequest::new(argv).stdin_bytes(bytes)).await?;
                return Ok(());
            }
            Fault::MixesWrites => {
                let bytes = streams::drained(contents).await;
                let mut previous = self.world.previous.lock().unwrap_or_else(PoisonError::into_inner);
                let old = std::mem::replace(&mut *previous, bytes.clone());
                let mixed = if old.is_empty() { bytes } else { old };
                contents = Box::new(std::io::Cursor::new(mixed));
            }
            _ => (),
        }
        let written = self.inner().write(&path, contents, options).await;
        match (self.fault(), written) {
            (Fault::ActsOnFilesAsRoot, Err(_)) => Ok(()),
            (_, written) => self.failed(&path, written),
        }
    }
}

fn nothing(mut all: Capabilities) -> Capabilities {
    all.streaming_output = false;
    all.streaming_stdin = false;
    all.pty = false;
    all.signals = false;
    all.idle_timeout = false;
    all.detached_exec = false;
    all.users = UserSupport::DefaultOnly;
    all.memory_outcome = false;
    all.usage = false;
    all.confined_exec = false;
    all.files = false;
    all.archives = false;
    all.dial = false;
    all.kill_domain = KillDomain::Session;
    all.limits = LimitCapabilities::default();
    all
}

fn change_argv(fault: Fault, request: &mut ExecRequest) {
    let argv = &mut request.argv;
    let is_shell = argv.first().is_some_and(|program| program == b"/bin/sh");
    match fault {
        Fault::DropsEmptyArguments => argv.retain(|arg| !arg.is_empty()),
        Fault::CutsArguments => argv.iter_mut().for_each(|arg| arg.truncate(64 << 10)),
        Fault::CutsArgv => argv.truncate(5000),
        Fault::GoesThroughAShell if !is_shell => {
            let joined = argv.join(&b' ');
            *argv = vec![b"/bin/sh".to_vec(), b"-c".to_vec(), joined];
        }
        Fault::CutsAtNul => {
            argv.iter_mut().for_each(|arg| arg.truncate(arg.iter().position(|byte| *byte == 0).unwrap_or(arg.len())))
        }
        Fault::RunsTheEmpty if argv.first().is_none_or(Vec::is_empty) => *argv = vec![b"/bin/true".to_vec()],
        Fault::KeepsCapabilities if argv.as_slice() == [b"cat".to_vec(), b"/proc/self/status".to_vec()] => {
            let edit = "s/^Cap\\(...\\):.*/Cap\\1:\\t000001ffffffffff/";
            *argv = [b"sed".as_slice(), edit.as_bytes(), b"/proc/self/status"].map(<[u8]>::to_vec).to_vec();
        }
        _ => (),
    }
}

fn change_stdin(fault: Fault, request: &mut ExecRequest) {
    match (fault, &mut request.stdin) {
        (Fault::NoneIsEmpty, Stdin::Null) => request.stdin = Stdin::Bytes(bytes::Bytes::new()),
        (Fault::EmptyIsNone, Stdin::Bytes(bytes)) if bytes.is_empty() => request.stdin = Stdin::Null,
        (Fault::LosesTheLastInputByte, Stdin::Bytes(bytes)) => bytes.truncate(bytes.len().saturating_sub(1)),
        (Fault::CutsInput, Stdin::Bytes(bytes)) => bytes.truncate(64 << 10),
        _ => (),
    }
}

fn change_rest(fault: Fault, request: &mut ExecRequest) {
    match fault {
        Fault::IgnoresCwd => request.cwd = None,
        Fault::StartsAtRoot => request.cwd = Some(request.cwd.take().unwrap_or_else(|| "/".into())),
        Fault::RunsAsRoot => request.user = Some("root".into()),
        Fault::IgnoresConfine => request.confine = None,
        Fault::ConfinesToNothing => request.confine = request.confine.take().map(|_| Confinement::default()),
        Fault::LetsConfinedCommandsExecute => request.confine.iter_mut().for_each(|kept| kept.children = true),
        Fault::IgnoresUser => request.user = None,
        Fault::KnowsNobody => request.user = request.user.take().map(|_| "no-such-user".into()),
        Fault::AcceptsOddUsers
            if request.user.as_ref().is_some_and(|user| user.is_empty() || user.contains([':', '\n', '\0'])) =>
        {
            request.user = None;
        }
        Fault::TimesOutEarly => request.timeout = request.timeout.map(|_| Duration::from_millis(30)),
        Fault::ZeroIsForever => {
            request.timeout = request.timeout.filter(|timeout| !timeout.is_zero());
            request.pty = request.pty.filter(|size| size.rows > 0 && size.cols > 0);
        }
        Fault::NeverResetsIdle => request.timeout = request.idle_timeout.take().or(request.timeout),
        Fault::AsksWithTerm | Fault::TimesOutTheChildOnly => request.timeout = None,
        Fault::KillsLeftovers => request.leftovers = Leftovers::Kill,
        Fault::KeepsLeftovers => request.leftovers = Leftovers::Keep,
        Fault::HasNoTerminal => request.pty = None,
        Fault::FixesSize => request.pty = request.pty.map(|_| PtySize { rows: 24, cols: 80 }),
        Fault::DumpsCores if request.argv.len() == 3 => {
            let script = request.argv[2].clone();
            request.argv[2] = [b"ulimit() { echo unlimited; }; ".as_slice(), &script].concat();
        }
        _ => (),
    }
}

#[async_trait]
impl Sandbox for BrokenSandbox {
    fn name(&self) -> &str {
        self.inner().name()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        self.world.check()?;
        let fault = self.fault();
        if fault == Fault::NeedsItsRuntime {
            let flavor = tokio::runtime::Handle::current().runtime_flavor();
            if flavor == tokio::runtime::RuntimeFlavor::CurrentThread {
                return Err(Error::new(ErrorKind::Internal, "exec", "this is another runtime"));
            }
        }
        let facts = Facts::of(&request, self.world.execs.fetch_add(1, Ordering::Relaxed));
        let timeout = request.timeout;
        let permit = match fault {
            Fault::RunsOneAtATime => self.world.gate.clone().acquire_owned().await.ok(),
            _ => None,
        };
        let request = self.asked(request).await?;
        let spawned = self.inner().spawn(request).await;
        let handle = self.failed(&".".into(), spawned)?;
        if let (Fault::AsksWithTerm | Fault::TimesOutTheChildOnly | Fault::TimesOutEverybody, Some(timeout)) = (fault, timeout) {
            self.watch(handle.id(), timeout);
        }
        Ok(Box::new(BrokenHandle::new(handle, self.world.clone(), facts, permit)))
    }

    async fn spawn_detached(&self, request: ExecRequest) -> Result<ExecId> {
        match self.inner().spawn_detached(request).await {
            Err(_) if self.fault() == Fault::HidesFailedLaunches => Ok(ExecId([9; 16])),
            other => other,
        }
    }

    async fn execs(&self) -> Result<Vec<ExecInfo>> {
        let list = self.inner().execs().await?;
        Ok(if self.fault() == Fault::ListsNoCommands { Vec::new() } else { list })
    }

    async fn attach(&self, id: ExecId, stdout_from: u64, stderr_from: u64) -> Result<Box<dyn ExecHandle>> {
        let (stdout_from, stderr_from) = if self.fault() == Fault::IgnoresCursors { (0, 0) } else { (stdout_from, stderr_from) };
        let handle = match self.inner().attach(id, stdout_from, stderr_from).await {
            Err(error) if self.fault() == Fault::KnowsEveryId => {
                // Something to follow, so that the unknown id seems to be one.
                let _ = error;
                self.inner().spawn(ExecRequest::new(["/bin/true"])).await?
            }
            other => other?,
        };
        let facts = Facts { attached: true, ..Facts::default() };
        Ok(Box::new(BrokenHandle::new(handle, self.world.clone(), facts, None)))
    }

    async fn signal(&self, id: ExecId, signal: Signal) -> Result<()> {
        let signal = if self.fault() == Fault::OnlyKills { Signal::KILL } else { signal };
        match self.inner().signal(id, signal).await {
            Err(_) if matches!(self.fault(), Fault::SignalsTheDead | Fault::KnowsEveryId) => Ok(()),
            other => other,
        }
    }

    async fn kill(&self, id: ExecId, reason: KillReason) -> Result<()> {
        match self.fault() {
            Fault::KillsTheChildOnly => self.inner().signal(id, Signal::KILL).await,
            fault => match self.inner().kill(id, reason).await {
                Err(_) if matches!(fault, Fault::SignalsTheDead | Fault::KnowsEveryId) => Ok(()),
                other => other,
            },
        }
    }

    async fn wait(&self, id: ExecId) -> Result<Completed> {
        let mut done = self.inner().wait(id).await?;
        let mut ended = self.world.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if self.fault() == Fault::ForgetsEnds && ended.contains(&id) {
            return Err(Error::new(ErrorKind::NotFound, "wait", "no such command"));
        }
        ended.push(id);
        if self.fault() == Fault::TimeoutsAsCodes && done.outcome == tierbox_core::Outcome::Killed(KillReason::Timeout) {
            done.outcome = tierbox_core::Outcome::Exited(124);
        }
        Ok(done)
    }

    async fn read(&self, path: &GuestPath, mut options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
        self.world.check()?;
        let path = self.path(path);
        match self.fault() {
            Fault::IgnoresOffset => options.offset = 0,
            Fault::IgnoresMax => options.max = None,
            Fault::RefusesLinks if self.inner().stat(&path, false).await?.kind == FileKind::Symlink => {
                return Err(Error::new(ErrorKind::NotAFile, "read", format!("{path} is a link")));
            }
            _ => (),
        }
        let read = self.inner().read(&path, options).await;
        if self.fault() == Fault::ActsOnFilesAsRoot && read.is_err() {
            let cat = ExecRequest::new([b"cat".as_slice(), path.as_bytes()]).user("root");
            let bytes = self.inner().run(cat).await?.stdout.bytes();
            return Ok((self.inner().stat(&path, true).await?, Box::new(std::io::Cursor::new(bytes))));
        }
        let (meta, reader) = self.failed(&path, read)?;
        match self.fault() {
            Fault::EmptyIsMissing if meta.size == 0 => {
                Err(Error::new(ErrorKind::NotFound, "read", format!("{path} does not exist")))
            }
            Fault::DiesOfDroppedReaders => Ok((meta, Box::new(streams::Attached(reader, Deadly(self.world.dead.clone()))))),
            Fault::ReadsOneAtATime => {
                let permit = self.world.gate.clone().acquire_owned().await.ok();
                Ok((meta, Box::new(streams::Attached(reader, permit))))
            }
            _ => Ok((meta, reader)),
        }
    }

    async fn write(&self, path: &GuestPath, contents: ByteReader, options: WriteOptions) -> Result<()> {
        self.world.check()?;
        let path = self.path(path);
        self.write_differently(&path, contents, options).await
    }

    async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        let path = self.path(path);
        let follow = follow || self.fault() == Fault::StatFollows;
        let stat = self.inner().stat(&path, follow).await;
        let mut meta = self.failed(&path, stat)?;
        if self.fault() == Fault::OwnsFilesAsRoot {
            (meta.uid, meta.gid) = (0, 0);
        }
        Ok(meta)
    }

    async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        let path = self.path(path);
        let list = self.inner().list(&path).await;
        let mut entries = self.failed(&path, list)?;
        match self.fault() {
            Fault::ListsUnsorted => entries.reverse(),
            Fault::CutsLists => entries.truncate(1000),
            Fault::DecodesNames => {
                entries.iter_mut().for_each(|entry| entry.name = String::from_utf8_lossy(&entry.name).into_owned().into_bytes())
            }
            _ => (),
        }
        Ok(entries)
    }

    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        let path = self.path(path);
        if self.fault() == Fault::RemovesThroughLinks {
            self.helper("find \"$1\" -type l | while read -r l; do rm -rf \"$(readlink -f \"$l\")\"; done", &path).await?;
        }
        let removed = self.inner().remove(&path, recursive || self.fault() == Fault::RemovesTrees).await;
        match (self.fault(), removed) {
            (Fault::ActsOnFilesAsRoot, Err(_)) => Ok(()),
            (_, removed) => self.failed(&path, removed),
        }
    }

    async fn make_dir(&self, path: &GuestPath) -> Result<()> {
        let path = self.path(path);
        if self.fault() == Fault::MakesDirectoriesOnce && self.inner().stat(&path, true).await.is_ok() {
            return Err(Error::new(ErrorKind::AlreadyExists, "make directory", format!("{path} exists")));
        }
        let made = self.inner().make_dir(&path).await;
        self.failed(&path, made)
    }

    async fn unpack(&self, path: &GuestPath, tar: ByteReader) -> Result<()> {
        if self.fault() == Fault::NeedsParents {
            self.needs_parent(path, true).await?;
        }
        if self.fault() == Fault::TrustsArchives {
            let script = b"mkdir -p \"$1\"; tar -xpPf - -C \"$1\" 2>/dev/null; true";
            let argv = [b"/bin/sh".as_slice(), b"-c", script, b"sh", path.as_bytes()];
            return self.inner().run(ExecRequest::new(argv).stdin_bytes(streams::drained(tar).await)).await.map(drop);
        }
        self.inner().unpack(path, tar).await?;
        if self.fault() == Fault::ForgetsModes {
            self.helper("chmod -R 777 \"$1\"", path).await?;
        }
        Ok(())
    }

    async fn pack(&self, path: &GuestPath) -> Result<ByteReader> {
        match self.fault() {
            Fault::PacksTheParent => self.inner().pack(&GuestPath::from([path.as_bytes(), b"/.."].concat())).await,
            Fault::PacksNothing => Ok(Box::new(std::io::Cursor::new(vec![0; 1024]))),
            _ => {
                let packed = self.inner().pack(path).await;
                self.failed(path, packed)
            }
        }
    }

    async fn dial(&self, target: DialTarget) -> Result<Box<dyn ByteStream>> {
        let dialled = self.inner().dial(target).await;
        match self.fault() {
            Fault::DialsNothing => Ok(Box::new(tokio::io::join(tokio::io::empty(), tokio::io::sink()))),
            Fault::DialsAnything if dialled.is_err() => Ok(Box::new(tokio::io::join(tokio::io::empty(), tokio::io::sink()))),
            Fault::ClosesBothHalves => Ok(Box::new(streams::OddStream::closing_both(dialled?))),
            Fault::CutsStreams => Ok(Box::new(streams::OddStream::cut(dialled?, 1 << 20))),
            Fault::KeepsStreamsOpen => Ok(Box::new(streams::OddStream::kept_open(dialled?))),
            _ => dialled,
        }
    }
}

/// Ends the machine when it is dropped.
struct Deadly(Arc<AtomicBool>);

impl Drop for Deadly {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
