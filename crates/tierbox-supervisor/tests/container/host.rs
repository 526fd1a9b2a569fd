//! The host's side, as small as it can be.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tierbox_supervisor::protocol::{self, Exec, FromSupervisor, Mechanism, ToSupervisor};
use tierbox_supervisor::setup::{Agent, Cgroup, MadeFile, Mode, Setup, UserMap};
use tierbox_supervisor::wire::{Blob, Wire};

/// A user that owns nothing here.
pub const PLAIN: u32 = 54321;

/// How long anything may take before a test gives up.
pub const LIMIT: Duration = Duration::from_secs(20);

/// The program.
pub const SUPERVISOR: &str = env!("CARGO_BIN_EXE_tierbox-supervisor");

/// A machine, or an attempt at one.
pub struct Machine {
    pub keeper: Child,
    channel: UnixStream,
    decoder: protocol::Decoder,
    calls: u32,
}

impl Machine {
    /// Starts one as this user, or as another.
    pub fn start(setup: &Setup, user: Option<u32>) -> Self {
        let Some(user) = user else { return Self::start_by(Command::new(SUPERVISOR), setup) };
        // By descriptor: the build directory may be one that only its owner can enter.
        let program = File::open(SUPERVISOR).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.uid(user).gid(user);
        Self::start_by(command, setup)
    }

    /// Starts one by a command that ends in the program.
    pub fn start_by(command: Command, setup: &Setup) -> Self {
        Self::start_with(command, &protocol::encode(0, setup))
    }

    /// Starts one that is told anything at all.
    pub fn start_with(mut command: Command, first: &[u8]) -> Self {
        let (channel, theirs) = UnixStream::pair().unwrap();
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").spawn().unwrap();
        drop(command); // It holds the other end of the channel.
        let mut machine = Self::on(keeper, channel);
        machine.channel.write_all(first).unwrap();
        machine
    }

    /// One that is reached by another stream.
    pub fn on(keeper: Child, channel: UnixStream) -> Self {
        channel.set_read_timeout(Some(LIMIT)).unwrap();
        Self { keeper, channel, decoder: protocol::Decoder::default(), calls: 0 }
    }

    /// The next message, or `None` at the channel's end.
    pub fn next(&mut self) -> Option<FromSupervisor> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame.message);
            }
            match self.channel.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.decoder.push(&chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Sends a message of a call.
    pub fn send(&mut self, call: u32, message: &ToSupervisor) {
        self.channel.write_all(&protocol::encode(call, message)).unwrap();
    }

    /// The mechanisms of a machine that is ready, which is then greeted.
    #[track_caller]
    pub fn ready(&mut self) -> Vec<Mechanism> {
        let mechanisms = match self.next() {
            Some(FromSupervisor::Ready { mechanisms, .. }) => mechanisms,
            other => panic!("{other:?}"),
        };
        self.greet();
        mechanisms
    }

    /// Says hello.
    #[track_caller]
    pub fn greet(&mut self) {
        self.send(0, &ToSupervisor::Hello { version: protocol::VERSION, grace_ms: 0 });
        assert_eq!(self.next(), Some(FromSupervisor::Welcome { version: protocol::VERSION }));
    }

    /// The step, errno and detail of a refusal, after which there must be nothing.
    #[track_caller]
    pub fn refused(mut self) -> (String, i32, String) {
        let refusal = match self.next() {
            Some(FromSupervisor::Refused { step, errno, detail }) => (step, errno, detail),
            other => panic!("{other:?}"),
        };
        assert_eq!(self.next(), None, "after a refusal comes nothing");
        assert_eq!(self.end(), Some(3));
        refusal
    }

    /// What a shell script prints to both streams.
    #[track_caller]
    pub fn shell(&mut self, script: &str) -> String {
        self.shell_as(None, script)
    }

    /// What a shell script prints to both streams, as a user.
    #[track_caller]
    pub fn shell_as(&mut self, user: Option<&str>, script: &str) -> String {
        self.calls += 1;
        let mut id = [0; 16];
        id[..4].copy_from_slice(&self.calls.to_le_bytes());
        let argv = ["/bin/sh", "-c", script].map(blob).to_vec();
        let exec = Exec { user: user.map(str::to_owned), timeout_ms: Some(15_000), ..Exec::new(id, argv) };
        self.send(self.calls, &ToSupervisor::Exec { exec });
        let mut printed = Vec::new();
        loop {
            match self.next() {
                Some(FromSupervisor::Output { data, .. }) => printed.extend(data.0),
                Some(FromSupervisor::Done { done }) => {
                    assert!(matches!(done.end, protocol::End::Exited { .. }), "{done:?}");
                    return String::from_utf8_lossy(&printed).into_owned();
                }
                Some(_) => {}
                None => panic!("the machine is gone"),
            }
        }
    }

    /// Closes the channel.
    pub fn hang_up(&mut self) {
        self.channel.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Goes on over another channel.
    pub fn reconnect(&mut self, channel: UnixStream) {
        channel.set_read_timeout(Some(LIMIT)).unwrap();
        self.channel = channel;
        self.decoder = protocol::Decoder::default();
    }

    /// Ends the machine and tells the keeper's status.
    pub fn stop(mut self) -> Option<i32> {
        self.send(0, &ToSupervisor::Shutdown);
        self.end()
    }

    /// Waits for the keeper's end and tells its status.
    pub fn end(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the keeper ends", || {
            status = self.keeper.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Waits for a condition.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Text as bytes of the protocol.
pub fn blob(text: &str) -> Blob {
    Blob(text.as_bytes().to_vec())
}

/// A name that no other test uses.
pub fn unique(name: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("tierbox-test-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A plain container.
pub fn container(users: UserMap) -> Setup {
    let passwd = "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n";
    let agent = Agent { name: "agent".into(), uid: 1000, gid: 1000, home: blob("/home/agent") };
    Setup {
        users,
        env: vec![(blob("PATH"), blob("/usr/bin:/bin"))],
        files: vec![MadeFile { path: blob("/etc/passwd"), mode: 0o644, contents: blob(passwd) }],
        disk: Some(64 << 20),
        inodes: Some(1000),
        ..Setup::new(Mode::Container, unique("machine"), agent, blob("/workspace"))
    }
}

/// A range of ids, for root.
pub fn direct() -> UserMap {
    UserMap::Direct { first: 700_000, count: 65_536 }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// Every way to start a container here: the map, and as whom.
pub fn ways() -> Vec<(UserMap, Option<u32>)> {
    if is_root() { vec![(direct(), None), (UserMap::Single, Some(PLAIN))] } else { vec![(UserMap::Single, None)] }
}

/// The way for tests where one is enough.
pub fn usual() -> Setup {
    container(if is_root() { direct() } else { UserMap::Single })
}

/// A frame, raw.
pub fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as u32).to_bytes();
    out.extend(body);
    out
}

/// Directories for cgroups that this user can write, with what they are.
pub fn cgroups(name: &str) -> Vec<Cgroup> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut groups = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (path, kind) = (fields[1], fields[2]);
        let has = |option: &str| fields[3].split(',').any(|other| other == option);
        let mut add = |kind: &str, settings: Vec<(String, String)>| {
            groups.push(Cgroup { path: blob(&format!("{path}/{name}")), kind: kind.into(), settings });
        };
        match kind {
            "cgroup" if has("memory") => add("memory", vec![("memory.limit_in_bytes".into(), "100000000".into())]),
            "cgroup" if has("pids") => add("pids", vec![("pids.max".into(), "50".into())]),
            "cgroup2" => add("v2", Vec::new()),
            _ => {}
        }
    }
    groups.retain(|group| {
        let path = PathBuf::from(String::from_utf8(group.path.0.clone()).unwrap());
        let made = std::fs::create_dir(&path).is_ok();
        made && std::fs::remove_dir(&path).is_ok()
    });
    groups
}

/// Whether a cgroup's directory is there.
pub fn exists(group: &Cgroup) -> bool {
    Path::new(std::str::from_utf8(&group.path.0).unwrap()).exists()
}
