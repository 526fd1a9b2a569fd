//! Machines for tests: the real supervisor, without isolation, over a socket and over pipes.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tierbox_core::{Capabilities, HostIsolation, Limits, Locality, Network, UserSupport};
use tierbox_guest::{Channel, GuestConfig, GuestSandbox, SetupReply, driver, supervisor};
use tierbox_supervisor::setup::{Agent, Cgroup, Mode, Setup};
use tierbox_supervisor::wire::Blob;

/// No wait in these tests is longer.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How a machine is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// A socket: descriptors are passed.
    Socket,
    /// Two pipes: everything is framed.
    Pipes,
}

/// A machine, which ends with this.
pub struct Machine {
    pub sandbox: GuestSandbox,
    pub dir: tempfile::TempDir,
    child: std::process::Child,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.sandbox.channel().close();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    // A memory file: a file in a directory would outlive this process, since nothing is dropped at its end.
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    let file = PROGRAM.get_or_init(|| supervisor::memory_file().unwrap());
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn setup(mode: Mode, dir: &std::path::Path) -> Setup {
    use std::os::unix::ffi::OsStrExt;
    let dir = Blob::from(dir.as_os_str().as_bytes());
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let variable = |key: &str, value: &str| (Blob::from(key.as_bytes()), Blob::from(value.as_bytes()));
    let agent = Agent { name: "agent".to_owned(), uid, gid, home: dir.clone() };
    Setup {
        env: vec![variable("PATH", "/usr/local/bin:/usr/bin:/bin"), variable("LANG", "C.UTF-8")],
        ..Setup::new(mode, "test", agent, dir)
    }
}

fn connect(line: Line) -> (Channel, std::process::Child, Mode) {
    match line {
        Line::Socket => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let child = Command::new(program()).stdin(OwnedFd::from(theirs)).spawn().unwrap();
            (Channel::socket(ours).unwrap(), child, Mode::Process)
        }
        Line::Pipes => {
            let mut child = Command::new(program()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let _inside = driver::handle().unwrap().enter();
            let reader = tokio::process::ChildStdout::from_std(child.stdout.take().unwrap()).unwrap();
            let writer = tokio::process::ChildStdin::from_std(child.stdin.take().unwrap()).unwrap();
            (Channel::stream(Box::new(reader), Box::new(writer)).unwrap(), child, Mode::Guest)
        }
    }
}

/// Starts a machine.
pub async fn machine(line: Line) -> Machine {
    machine_in(line, Vec::new()).await
}

/// Starts a machine whose commands go into these cgroups.
pub async fn machine_in(line: Line, cgroups: Vec<Cgroup>) -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let (channel, child, mode) = connect(line);
    let setup = Setup { cgroups, ..setup(mode, dir.path()) };
    let reply = channel.setup(&setup, LIMIT).await.unwrap();
    let SetupReply::Ready(ready) = reply else { panic!("{reply:?}") };
    channel.hello(Duration::ZERO).unwrap();
    let capabilities = Capabilities {
        networks: vec![Network::N0],
        kill_domain: ready.kill_domain,
        users: if ready.users { UserSupport::Any } else { UserSupport::DefaultOnly },
        memory_outcome: ready.memory_outcome,
        confined_exec: true,
        ..tierbox_guest::capabilities(HostIsolation::H0, Locality::Local)
    };
    let config = GuestConfig {
        name: "main".to_owned(),
        backend: "test",
        capabilities,
        limits: Limits::default(),
        agent: "agent".to_owned(),
    };
    Machine { sandbox: GuestSandbox::new(channel, config), dir, child }
}

/// Bounds a wait.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("it ends in time")
}
