//! A backend whose machines are reached by a plain transport: a shell in a pid namespace of its own, with this host's tools or in a
//! root that holds busybox and nothing else. What ssh, an engine's exec and a run-command service look like from here.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, Connection, DestroyReport, Environment, EnvironmentSpec, Error, ErrorKind, LeaseHandle,
    LeaseRecord, Progress, Report, Result, Sandbox,
};
use tierbox_guest::Line;
use tierbox_guest::plain::kept::{self, Shells, Streams};
use tierbox_guest::plain::{PlainConfig, PlainLimits, PlainOutput, PlainRun, PlainSandbox, PlainTransport};
use tierbox_testkit::{Absence, minimum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::framed;

const NAME: &str = "plain";

/// What is in the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tools {
    /// This host's files: dash and coreutils on Debian.
    Host,
    /// Busybox alone.
    Busybox,
}

/// The backend.
pub struct Plain {
    pub tools: Tools,
    /// What its transport carries.
    pub limits: PlainLimits,
    /// Answers are lost now and then, after the script ran or before.
    pub loses: bool,
    /// Small commands run in shells that are kept.
    pub keeps: bool,
}

/// As much as a local shell takes.
pub const WIDE: PlainLimits = PlainLimits { script: 120 << 10, stdin: 8 << 20, output: 8 << 20 };
/// About what a run-command service takes.
pub const NARROW: PlainLimits = PlainLimits { script: 48 << 10, stdin: 32 << 10, output: 20 << 10 };

/// The busybox that runs without any library, if there is one.
pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| {
        let output = Command::new("ldd").arg(path).output();
        path.exists() && output.is_ok_and(|output| !String::from_utf8_lossy(&output.stdout).contains("libc"))
    })
}

/// Why these machines cannot be made here.
pub fn absent(tools: Tools) -> Option<Absence> {
    if !rustix::process::geteuid().is_root() {
        return Some(Absence { reason: "pid namespaces for plain transports are made as root".into(), install: String::new() });
    }
    if tools == Tools::Busybox && busybox().is_none() {
        return Some(Absence { reason: "there is no static busybox".into(), install: "apt-get install busybox-static".into() });
    }
    None
}

/// A pid namespace, ended with all that is in it when it is dropped.
struct Namespace {
    keeper: Mutex<Child>,
    /// Its first process, in this host's numbering.
    first: u32,
    stopped: AtomicBool,
}

impl Namespace {
    fn start(tools: Tools, dir: &Path) -> std::io::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--mount", "--fork", "--kill-child=KILL"]);
        match tools {
            Tools::Host => command.args(["--mount-proc", "sleep", "1000000000"]),
            Tools::Busybox => {
                let root = dir.join("root");
                make_root(&root)?;
                let script = "mount -t proc proc /proc && exec sleep 1000000000";
                command.arg("chroot").arg(&root).args(["/bin/sh", "-c", script])
            }
        };
        let mut keeper = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
        let children = format!("/proc/{0}/task/{0}/children", keeper.id());
        let start = Instant::now();
        // Its first process is what it should be when it sleeps.
        let first = loop {
            let listed = std::fs::read_to_string(&children).unwrap_or_default();
            let first = listed.split_whitespace().next().and_then(|pid| pid.parse::<u32>().ok());
            let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if let Some(first) = first.filter(|pid| name(*pid).trim() == "sleep") {
                break first;
            }
            if start.elapsed() > Duration::from_secs(20) || keeper.try_wait()?.is_some() {
                return Err(std::io::Error::other("the pid namespace was not made"));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Ok(Self { keeper: Mutex::new(keeper), first, stopped: AtomicBool::new(false) })
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = keeper.kill();
        let _ = keeper.wait();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A root with busybox, a user, and the directories that everything expects.
fn make_root(root: &Path) -> std::io::Result<()> {
    let busybox = busybox().ok_or_else(|| std::io::Error::other("no busybox"))?;
    for dir in ["bin", "proc", "dev", "etc", "tmp", "root", "var/lib", "var/tmp"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    super::copy_program(busybox.as_ref(), &root.join("bin/busybox"))?;
    std::fs::create_dir_all(root.join("usr"))?;
    std::os::unix::fs::symlink("/bin", root.join("usr/bin"))?;
    let list = Command::new(root.join("bin/busybox")).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    for (name, number) in [("null", 3), ("zero", 5), ("urandom", 9), ("full", 7)] {
        Command::new("mknod")
            .args(["-m", "666"])
            .arg(root.join("dev").join(name))
            .args(["c", "1", &number.to_string()])
            .status()?;
    }
    std::os::unix::fs::symlink("/proc/self/fd", root.join("dev/fd"))?;
    for (number, name) in ["stdin", "stdout", "stderr"].iter().enumerate() {
        std::os::unix::fs::symlink(format!("/proc/self/fd/{number}"), root.join("dev").join(name))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")
}

/// A shell in the namespace, in a session of its own as sshd makes one.
pub struct Shell {
    inside: Arc<Inside>,
    kept: Option<Shells>,
    limits: PlainLimits,
    loses: bool,
    runs: AtomicU64,
}

/// The namespace, and what is in it.
struct Inside {
    namespace: Namespace,
    tools: Tools,
}

/// Opens shells that are kept. Lines that lose answers end soon, in the middle of anything.
struct Opened {
    inside: Arc<Inside>,
    loses: bool,
    opened: AtomicU64,
}

#[async_trait]
impl kept::Open for Opened {
    async fn open(&self) -> Result<Streams> {
        let mut command = self.inside.command(&format!("exec {}", kept::COMMAND));
        let mut child = command.spawn().map_err(|error| Error::io("start shell", error))?;
        let (reader, writer) = (child.stdout.take().expect("piped"), child.stdin.take().expect("piped"));
        let stderr = child.stderr.take().expect("piped");
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let left = if self.loses { 60 + number * 97 % 400 } else { u64::MAX };
        Ok(Streams::new(Line::new(reader.take(left), writer).keeping(child), stderr))
    }
}

impl Inside {
    fn command(&self, script: &str) -> tokio::process::Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.namespace.first.to_string(), "--pid", "--mount"]);
        if self.tools == Tools::Busybox {
            command.arg("--root").arg("--wd");
        }
        let setsid = if self.tools == Tools::Busybox { "/bin/setsid" } else { "/usr/bin/setsid" };
        command.args([setsid, "/bin/sh", "-c", script]);
        command.env_clear().env("TIERBOX_OF_THE_TRANSPORT", "1").env("HOME", "/root");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        command
    }
}

impl Shell {
    async fn once(&self, run: &PlainRun) -> Result<PlainOutput> {
        let failed = |error| Error::io("run script", error);
        let mut child = self.inside.command(&run.script).spawn().map_err(failed)?;
        let (mut stdin, input) = (child.stdin.take().expect("piped"), run.stdin.clone());
        let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let feed = async move {
            // A script need not read to the end.
            let _ = stdin.write_all(&input).await;
            drop(stdin);
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let ((), read, complained) = tokio::join!(feed, out.read_to_end(&mut stdout), err.read_to_end(&mut stderr));
        read.map_err(failed)?;
        complained.map_err(failed)?;
        let status = child.wait().await.map_err(failed)?.code().unwrap_or(255);
        Ok(PlainOutput { status, stdout, stderr })
    }
}

#[async_trait]
impl PlainTransport for Shell {
    fn limits(&self) -> PlainLimits {
        self.limits
    }

    fn shells(&self) -> Option<&Shells> {
        self.kept.as_ref()
    }

    async fn run(&self, run: PlainRun) -> Result<PlainOutput> {
        let gone = || Error::new(ErrorKind::Lost, "run script", "the machine was stopped");
        if self.inside.namespace.stopped.load(Ordering::Relaxed) {
            return Err(gone());
        }
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let is_command = run.script.contains("tierbox-plain 1 end=");
        if self.loses && number % 3 == 1 {
            return Err(Error::new(ErrorKind::Lost, "run script", "not sent this time").retryable());
        }
        let output = self.once(&run).await?;
        if self.inside.namespace.stopped.load(Ordering::Relaxed) {
            return Err(gone());
        }
        // Only commands say what became of them when they are asked again.
        if self.loses && is_command && number % 5 == 2 {
            return Err(Error::new(ErrorKind::Lost, "run script", "the answer was lost"));
        }
        Ok(output)
    }
}

/// A machine.
pub struct Machine {
    id: String,
    pub sandbox: Arc<PlainSandbox>,
    shell: Arc<Shell>,
    report: Report,
    dir: Mutex<Option<tempfile::TempDir>>,
}

impl Plain {
    /// Starts a machine.
    pub async fn machine(&self, id: &str, spec: &EnvironmentSpec) -> Result<Machine> {
        let dir = tempfile::tempdir().map_err(|error| Error::io("make directory", error))?;
        let namespace = Namespace::start(self.tools, dir.path()).map_err(|error| Error::io("start machine", error))?;
        let inside = Arc::new(Inside { namespace, tools: self.tools });
        let kept =
            self.keeps.then(|| Shells::new(Opened { inside: inside.clone(), loses: self.loses, opened: AtomicU64::new(0) }));
        let shell = Arc::new(Shell { inside, kept, limits: self.limits, loses: self.loses, runs: AtomicU64::new(0) });
        let work = match self.tools {
            Tools::Host => dir.path().join("work").to_str().expect("a temporary directory's name is text").to_owned(),
            Tools::Busybox => "/work".to_owned(),
        };
        let config = PlainConfig {
            limits: spec.limits.clone(),
            workdir: Some(spec.workdir.clone().unwrap_or(work)),
            env: spec.env.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect(),
            ..PlainConfig::new("main", NAME, minimum::plain())
        };
        let sandbox = Arc::new(PlainSandbox::open(shell.clone(), config).await?);
        let report = framed::report(spec, sandbox.capabilities());
        Ok(Machine {
            id: id.to_owned(),
            sandbox,
            shell,
            report: Report { backend: NAME.to_owned(), ..report },
            dir: Mutex::new(Some(dir)),
        })
    }
}

#[async_trait]
impl Backend for Plain {
    fn name(&self) -> &'static str {
        NAME
    }

    fn settings_schema(&self) -> serde_json::Value {
        framed::Framed.settings_schema()
    }

    fn validate(&self, spec: &EnvironmentSpec) -> Result<()> {
        framed::Framed.validate(spec)
    }

    fn capabilities(&self, _: &EnvironmentSpec) -> Result<Capabilities> {
        Ok(minimum::plain())
    }

    async fn start(&self, spec: &EnvironmentSpec, lease: Arc<dyn LeaseHandle>, _: &dyn Progress) -> Result<Box<dyn Environment>> {
        Ok(Box::new(self.machine(lease.id(), spec).await?))
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
        Ok(Connection { argv: Vec::new(), needs: Vec::new(), note: "there is no way in but the transport".to_owned() })
    }

    async fn stop(&self) -> Result<()> {
        if !self.shell.inside.namespace.stopped.load(Ordering::Relaxed) {
            let _ = self.sandbox.remove().await;
        }
        self.sandbox.close();
        self.shell.inside.namespace.stop();
        drop(self.dir.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(())
    }

    async fn ended(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while !self.shell.inside.namespace.stopped.load(Ordering::Relaxed) {
            if start.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}
