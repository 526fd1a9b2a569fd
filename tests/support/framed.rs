//! A backend whose machine is a supervisor behind two pipes: what every remote machine looks like from here.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, Connection, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, LeaseHandle,
    LeaseRecord, Limit, LimitReport, Progress, Report, Result, Sandbox, UserSupport,
};
use tierbox_guest::{Channel, GuestConfig, GuestSandbox, SetupReply, driver, supervisor};
use tierbox_supervisor::setup::{Agent, Mode, Rlimit, Setup};
use tierbox_supervisor::wire::Blob;
use tierbox_testkit::minimum;

const NAME: &str = "framed";

/// The backend.
pub struct Framed;

/// The capabilities that a supervisor behind pipes has at least.
pub fn capabilities() -> Capabilities {
    Capabilities { detached: false, ..minimum::local_process() }
}

fn blob(text: &str) -> Blob {
    Blob::from(text.as_bytes())
}

fn rlimit(resource: u32, limit: Option<Limit<u64>>) -> Option<Rlimit> {
    limit.map(|limit| Rlimit { resource, value: limit.max })
}

const RLIMIT_FSIZE: u32 = 1;
const RLIMIT_CORE: u32 = 4;
const RLIMIT_NOFILE: u32 = 7;

fn setup(spec: &EnvironmentSpec, dir: &std::path::Path) -> Setup {
    let dir = dir.to_str().expect("a temporary directory's name is text");
    let base = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("HOME", dir)];
    let profile = spec.env.iter().map(|(name, value)| (blob(name), blob(value)));
    let rlimits = [rlimit(RLIMIT_FSIZE, spec.limits.file_size), rlimit(RLIMIT_NOFILE, spec.limits.open_files)];
    let agent = Agent {
        name: "agent".to_owned(),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        home: blob(dir),
    };
    Setup {
        env: base.iter().map(|(name, value)| (blob(name), blob(value))).chain(profile).collect(),
        rlimits: rlimits.into_iter().flatten().chain([Rlimit { resource: RLIMIT_CORE, value: spec.limits.core_size }]).collect(),
        ..Setup::new(Mode::Guest, "framed", agent, spec.workdir.as_deref().map_or_else(|| blob(dir), blob))
    }
}

/// A set-up with what a specification adds to it.
pub fn adjusted(made: Setup, spec: &EnvironmentSpec, dir: &std::path::Path) -> Setup {
    let wanted = setup(spec, dir);
    let mut made = made;
    wanted.env.into_iter().for_each(|(name, value)| made.set_variable(name, value));
    Setup { workdir: wanted.workdir, rlimits: wanted.rlimits, agent: Agent { home: wanted.agent.home, ..made.agent }, ..made }
}

/// The supervisor, to be executed by a child.
fn program() -> Result<PathBuf> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    if PROGRAM.get().is_none() {
        let made = supervisor::memory_file().map_err(|error| Error::io("make a memory file for the supervisor", error))?;
        let _ = PROGRAM.set(made);
    }
    Ok(PathBuf::from(format!("/proc/self/fd/{}", PROGRAM.get().expect("it was just made").as_raw_fd())))
}

pub fn report(spec: &EnvironmentSpec, capabilities: &Capabilities) -> Report {
    let limits = &spec.limits;
    let asked =
        [("memory", limits.memory), ("pids", limits.pids), ("file-size", limits.file_size), ("open-files", limits.open_files)];
    let line = |(name, limit): (&str, Option<Limit<u64>>)| {
        limit.map(|limit| LimitReport {
            name: name.to_owned(),
            value: limit.max.to_string(),
            by: if name.contains('-') { "rlimit" } else { "nothing" }.to_owned(),
            applied: tierbox_core::Applied::Absent,
        })
    };
    Report {
        profile: spec.profile.clone(),
        limits: asked.into_iter().filter_map(line).collect(),
        reason: spec.reason.clone(),
        ..Report::bare(NAME, spec.tier, capabilities.locality, capabilities.kill_domain)
    }
}

#[async_trait]
impl Backend for Framed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn settings_schema(&self) -> serde_json::Value {
        serde_json::json!({ "type": "object", "additionalProperties": false })
    }

    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        match spec.settings.as_object().and_then(|table| table.keys().next()) {
            Some(key) => Err(Error::new(ErrorKind::InvalidProfile, "check settings", format!("unknown setting {key}"))),
            None => Ok(()),
        }
    }

    fn capabilities(&self, _: &EnvironmentSpec) -> Result<Capabilities> {
        Ok(capabilities())
    }

    async fn start(&self, spec: &EnvironmentSpec, lease: Arc<dyn LeaseHandle>, _: &dyn Progress) -> Result<Box<dyn Environment>> {
        let dir = tempfile::tempdir().map_err(|error| Error::io("make directory", error))?;
        let (program, work) = (program()?, dir.path().join("work"));
        std::fs::create_dir(&work).map_err(|error| Error::io("make directory", error))?;
        let spawned = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| Error::io("start supervisor", error))?;
        let channel = {
            let _inside = driver::handle()?.enter();
            let failed = |error| Error::io("open channel", error);
            let reader = tokio::process::ChildStdout::from_std(child.stdout.take().expect("stdout is piped")).map_err(failed)?;
            let writer = tokio::process::ChildStdin::from_std(child.stdin.take().expect("stdin is piped")).map_err(failed)?;
            Channel::stream(Box::new(reader), Box::new(writer))?
        };
        let ready = match channel.setup(&setup(spec, &work), Duration::from_secs(20)).await? {
            SetupReply::Ready(ready) => ready,
            other => return Err(Error::new(ErrorKind::HostUnable, "start machine", format!("{other:?}"))),
        };
        channel.hello(Duration::ZERO)?;
        let users = if ready.users { UserSupport::Any } else { UserSupport::DefaultOnly };
        let capabilities =
            Capabilities { users, kill_domain: ready.kill_domain, memory_outcome: ready.memory_outcome, ..capabilities() };
        let report = report(spec, &capabilities);
        let config = GuestConfig {
            name: "main".to_owned(),
            backend: NAME,
            capabilities,
            limits: spec.limits.clone(),
            agent: "agent".to_owned(),
        };
        let sandbox = Arc::new(GuestSandbox::new(channel, config));
        Ok(Box::new(Machine { id: lease.id().to_owned(), sandbox, report, child: Mutex::new(child), _dir: dir }))
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

struct Machine {
    id: String,
    sandbox: Arc<GuestSandbox>,
    report: Report,
    child: Mutex<Child>,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn has_ended(&self) -> bool {
        !matches!(self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait(), Ok(None))
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
        if !self.ended(Duration::from_secs(5)).await {
            return Err(Error::new(ErrorKind::Timeout, "stop machine", "the supervisor did not end within 5 s"));
        }
        self.sandbox.channel().close();
        Ok(())
    }

    async fn ended(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while !self.has_ended() {
            if start.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}
