//! The program as its host starts it: a socket as descriptor 0, one set-up frame, then whatever it answers.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tierbox_supervisor::protocol::{self, FromSupervisor, Mechanism, ToSupervisor};
use tierbox_supervisor::setup::{Agent, Bind, Cgroup, MadeFile, Mode, Net, Root, Setup, UserMap};
use tierbox_supervisor::wire::Blob;

/// A user that owns nothing here.
const PLAIN: u32 = 54321;

/// How long anything may take before a test gives up.
const LIMIT: Duration = Duration::from_secs(20);

struct Machine {
    keeper: Child,
    channel: UnixStream,
    decoder: protocol::Decoder,
}

impl Machine {
    fn start(setup: &Setup, user: Option<u32>) -> Self {
        let (channel, theirs) = UnixStream::pair().unwrap();
        channel.set_read_timeout(Some(LIMIT)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tierbox-supervisor"));
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let keeper = command.spawn().unwrap();
        drop(command); // It holds the other end of the channel.
        let mut machine = Self { keeper, channel, decoder: protocol::Decoder::default() };
        machine.channel.write_all(&protocol::encode(0, setup)).unwrap();
        machine
    }

    fn next(&mut self) -> Option<FromSupervisor> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame.message);
            }
            match self.channel.read(&mut chunk).unwrap() {
                0 => return None,
                read => self.decoder.push(&chunk[..read]),
            }
        }
    }

    #[track_caller]
    fn ready(&mut self) -> Vec<Mechanism> {
        match self.next() {
            Some(FromSupervisor::Ready { mechanisms, .. }) => mechanisms,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(mut self) -> (String, i32, String) {
        let refusal = match self.next() {
            Some(FromSupervisor::Refused { step, errno, detail }) => (step, errno, detail),
            other => panic!("{other:?}"),
        };
        assert_eq!(self.next(), None, "after a refusal comes nothing");
        assert_eq!(self.end(), Some(3));
        refusal
    }

    fn send(&mut self, message: &ToSupervisor) {
        self.channel.write_all(&protocol::encode(0, message)).unwrap();
    }

    fn end(&mut self) -> Option<i32> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.keeper.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "the keeper did not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn blob(text: &str) -> Blob {
    Blob(text.as_bytes().to_vec())
}

fn setup(users: UserMap) -> Setup {
    Setup {
        version: protocol::VERSION,
        mode: Mode::Container,
        id: format!("test-{}", std::process::id()),
        users,
        agent: Agent { name: "agent".into(), uid: 1000, gid: 1000, home: blob("/home/agent") },
        env: vec![(blob("PATH"), blob("/usr/bin:/bin"))],
        workdir: blob("/workspace"),
        root: Root::Host,
        binds: Vec::new(),
        files: vec![MadeFile {
            path: blob("/etc/passwd"),
            mode: 0o644,
            contents: blob("agent:x:1000:1000::/home/agent:/bin/sh\n"),
        }],
        writable: Vec::new(),
        disk: Some(64 << 20),
        inodes: Some(1000),
        rlimits: Vec::new(),
        cgroups: Vec::new(),
        net: Net::Isolated,
        listen: None,
        persist: false,
        lifetime_ms: None,
        crash_at: None,
    }
}

fn direct() -> UserMap {
    UserMap::Direct { first: 700_000, count: 65_536 }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn detail<'a>(mechanisms: &'a [Mechanism], name: &str) -> &'a str {
    let found = mechanisms.iter().find(|mechanism| mechanism.name == name);
    let found = found.unwrap_or_else(|| panic!("{name} is not in {mechanisms:?}"));
    assert_eq!(found.applied, 0, "{name} is not enforced");
    &found.detail
}

mod unit {
    use super::*;

    #[test]
    fn a_container_is_ready_and_names_its_mechanisms() {
        let cases =
            if is_root() { vec![(direct(), None), (UserMap::Single, Some(PLAIN))] } else { vec![(UserMap::Single, None)] };
        for (users, user) in cases {
            let mut machine = Machine::start(&setup(users), user);
            let mechanisms = machine.ready();
            for name in ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"] {
                detail(&mechanisms, &format!("{name} namespace"));
            }
            for name in ["read-only root", "capabilities", "no_new_privs", "seccomp"] {
                detail(&mechanisms, name);
            }
            machine.send(&ToSupervisor::Shutdown);
            assert_eq!(machine.end(), Some(0));
        }
    }
}
