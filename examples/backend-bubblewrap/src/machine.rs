//! One machine: bubblewrap with a supervisor inside, and the channel between.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{
    Applied, Connection, Environment, EnvironmentSpec, Error, ErrorKind, Limit, LimitReport, Mechanism, Report, Result, Sandbox,
};
use tierbox_guest::{Channel, GuestConfig, GuestSandbox, Ready, SetupReply, driver, supervisor};
use tierbox_supervisor::setup::{Agent, Mode, Rlimit, Setup};
use tierbox_supervisor::wire::Blob;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};

use crate::backend::{NAME, capabilities};
use crate::command::{AGENT, AGENT_ID, Files, HOME, WORKDIR, argv};
use crate::{filter, hold};

const RLIMIT_FSIZE: u32 = 1;
const RLIMIT_CORE: u32 = 4;
const RLIMIT_NOFILE: u32 = 7;
/// How much of what bubblewrap says is shown when it fails.
const DIAGNOSIS: u64 = 4096;

/// A running machine.
pub struct Machine {
    id: String,
    sandbox: Arc<GuestSandbox>,
    report: Report,
    files: Files,
}

/// Starts bubblewrap, and describes the machine to the supervisor in it.
///
/// # Errors
/// `HostUnable` with what bubblewrap said; `Timeout`; `Io`.
pub async fn start(spec: &EnvironmentSpec, id: &str, bwrap: &Path, files: Files) -> Result<Machine> {
    let instructions = write(&files)?;
    let (channel, child, stderr) = spawn(bwrap, &files)?;
    let ready = match channel.setup(&setup(spec, id), spec.limits.startup).await {
        Ok(SetupReply::Ready(ready)) => ready,
        Ok(refused) => return Err(Error::new(ErrorKind::HostUnable, "set up machine", format!("{refused:?}")).with_backend(NAME)),
        Err(error) => return Err(diagnosed(error, stderr).await),
    };
    channel.hello(Duration::ZERO)?;
    reap(child, stderr)?;
    let report = report(spec, ready, instructions);
    let config = GuestConfig {
        name: "main".to_owned(),
        backend: NAME,
        capabilities: capabilities(),
        limits: spec.limits.clone(),
        agent: AGENT.to_owned(),
    };
    Ok(Machine {
        id: id.to_owned(),
        sandbox: Arc::new(GuestSandbox::new(channel, config).with_agent_id(AGENT_ID)),
        report,
        files,
    })
}

fn write(files: &Files) -> Result<usize> {
    let missing = || Error::new(ErrorKind::HostUnable, "start machine", "no supervisor was built for this host");
    let program = supervisor::BYTES.ok_or_else(missing)?;
    let failed = |error| Error::io("write files of the machine", error);
    std::fs::write(&files.supervisor, program).map_err(failed)?;
    std::fs::write(&files.passwd, format!("{AGENT}:x:{AGENT_ID}:{AGENT_ID}::{HOME}:/bin/sh\n")).map_err(failed)?;
    filter::write(&files.refuse, &files.absent)
}

fn spawn(bwrap: &Path, files: &Files) -> Result<(Channel, Child, ChildStderr)> {
    // The channel's driver reads the pipes, whatever becomes of the caller's runtime.
    let _inside = driver::handle()?.enter();
    let argv = argv(bwrap, files);
    let spawned = Command::new(&argv[0])
        .args(&argv[1..])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| Error::io("start bubblewrap", error))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(Error::new(ErrorKind::Internal, "start bubblewrap", "its streams are not pipes"));
    };
    Ok((Channel::stream(Box::new(stdout), Box::new(stdin))?, child, stderr))
}

/// An error with what bubblewrap said of it.
async fn diagnosed(error: Error, stderr: ChildStderr) -> Error {
    let mut said = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), stderr.take(DIAGNOSIS).read_to_end(&mut said)).await;
    let said = String::from_utf8_lossy(&said);
    match said.trim() {
        "" => error.with_backend(NAME),
        said => Error::new(ErrorKind::HostUnable, "start bubblewrap", said.to_owned())
            .with_backend(NAME)
            .with_help("see that bubblewrap works here: bwrap --unshare-all --ro-bind / / true"),
    }
}

/// Drains what it says, so that it never waits for a reader, and takes in its end.
fn reap(mut child: Child, mut stderr: ChildStderr) -> Result<()> {
    driver::handle()?.spawn(async move {
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        let _ = child.wait().await;
    });
    Ok(())
}

fn blob(text: &str) -> Blob {
    Blob::from(text.as_bytes())
}

fn setup(spec: &EnvironmentSpec, id: &str) -> Setup {
    let path = "/usr/local/bin:/usr/bin:/bin";
    let base = [("PATH", path), ("LANG", "C.UTF-8"), ("HOME", HOME), ("USER", AGENT), ("LOGNAME", AGENT), ("SHELL", "/bin/sh")];
    let profile = spec.env.iter().map(|(name, value)| (blob(name), blob(value)));
    let rlimit = |resource, limit: Option<Limit<u64>>| limit.map(|limit| Rlimit { resource, value: limit.max });
    let asked = [rlimit(RLIMIT_FSIZE, spec.limits.file_size), rlimit(RLIMIT_NOFILE, spec.limits.open_files)];
    let agent = Agent { name: AGENT.to_owned(), uid: AGENT_ID, gid: AGENT_ID, home: blob(HOME) };
    Setup {
        env: base.iter().map(|(name, value)| (blob(name), blob(value))).chain(profile).collect(),
        rlimits: asked.into_iter().flatten().chain([Rlimit { resource: RLIMIT_CORE, value: spec.limits.core_size }]).collect(),
        lifetime_ms: spec.limits.lifetime.map(|life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX)),
        ..Setup::new(Mode::Guest, id, agent, blob(spec.workdir.as_deref().unwrap_or(WORKDIR)))
    }
}

fn report(spec: &EnvironmentSpec, ready: Ready, instructions: usize) -> Report {
    let enforced =
        |name: &str, detail: &str| Mechanism { name: name.to_owned(), applied: Applied::Enforced, detail: detail.to_owned() };
    let limits = &spec.limits;
    let asked = [
        ("memory", limits.memory, false),
        ("cpu", limits.cpu_millis, false),
        ("pids", limits.pids, false),
        ("disk", limits.disk, false),
        ("inodes", limits.inodes, false),
        ("file-size", limits.file_size, true),
        ("open-files", limits.open_files, true),
    ];
    let line = |(name, limit, held): (&str, Option<Limit<u64>>, bool)| {
        limit.map(|limit| LimitReport {
            name: name.to_owned(),
            value: limit.max.to_string(),
            by: if held { "rlimit" } else { "nothing" }.to_owned(),
            applied: if held { Applied::Enforced } else { Applied::Absent },
        })
    };
    let mut mechanisms = vec![
        enforced("namespaces", "user, mount, pid, net, ipc, uts, cgroup"),
        enforced("root", "the host's /usr, read-only"),
        enforced("seccomp", &format!("{instructions} instructions")),
        enforced("no_new_privs", ""),
    ];
    mechanisms.extend(ready.mechanisms);
    Report {
        profile: spec.profile.clone(),
        tier: spec.tier,
        backend: NAME.to_owned(),
        locality: capabilities().locality,
        kill_domain: ready.kill_domain,
        mechanisms,
        limits: asked.into_iter().filter_map(line).collect(),
        mounts: Vec::new(),
        parts: Vec::new(),
        copied_in: Vec::new(),
        weakened: spec.weakened.clone(),
        reason: spec.reason.clone(),
        notes: Vec::new(),
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
        let argv = ["tierbox", "shell", &self.id].map(str::to_owned).into();
        Ok(Connection {
            argv,
            needs: Vec::new(),
            note: "there is no way in but the channel of the program that started it".to_owned(),
        })
    }

    async fn stop(&self) -> Result<()> {
        self.sandbox.channel().shutdown();
        let ended = self.ended(Duration::from_secs(5)).await;
        self.sandbox.channel().close();
        if ended {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Timeout, "stop machine", "it did not end within 5 s").with_backend(NAME))
        }
    }

    async fn ended(&self, limit: Duration) -> bool {
        let gone = async {
            while !matches!(hold::first_process(&self.files.info), Ok(None)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(limit, gone).await.is_ok()
    }
}
