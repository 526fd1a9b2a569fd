//! A machine and its client, as a test uses them.

#![allow(dead_code)]

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tierbox_supervisor::protocol::{
    Decoder, Done, End, Exec, Frame, FromSupervisor, OutputMode, STDERR, STDOUT, ToSupervisor, VERSION, encode,
};
use tierbox_supervisor::setup::{Agent, Mode, Setup};
use tierbox_supervisor::wire::Blob;

/// Nothing in these tests takes that long unless it is broken.
pub const LIMIT: Duration = Duration::from_secs(10);

static MADE: AtomicU64 = AtomicU64::new(1);

/// A number that no other test of this run has.
pub fn unique() -> u64 {
    u64::from(std::process::id()) << 24 | MADE.fetch_add(1, Ordering::Relaxed)
}

pub fn blob(text: impl AsRef<[u8]>) -> Blob {
    Blob(text.as_ref().to_vec())
}

/// A machine without isolation.
pub fn setup(mode: Mode, workdir: &Path) -> Setup {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let agent = Agent { name: "agent".into(), uid, gid, home: blob("/tmp") };
    let workdir = blob(workdir.as_os_str().as_encoded_bytes());
    Setup {
        env: vec![(blob("PATH"), blob("/usr/bin:/bin")), (blob("BASE"), blob("base"))],
        ..Setup::new(mode, format!("engine-test-{}", unique()), agent, workdir)
    }
}

/// A client's stream.
pub enum Line {
    Socket(UnixStream),
    Pipes(File, File),
}

/// A client.
pub struct Client {
    line: Line,
    decoder: Decoder,
    next_call: u32,
    /// Frames that came while another call's were waited for.
    pub kept: Vec<Frame<FromSupervisor>>,
}

impl Client {
    pub fn new(line: Line) -> Self {
        Self { line, decoder: Decoder::default(), next_call: 1, kept: Vec::new() }
    }

    /// A client of a listening machine, welcomed.
    pub fn connect(path: &Path, grace_ms: u64) -> Self {
        let mut client = Self::new(Line::Socket(UnixStream::connect(path).unwrap()));
        client.greet(grace_ms);
        client
    }

    pub fn greet(&mut self, grace_ms: u64) {
        self.send(0, &ToSupervisor::Hello { version: VERSION, grace_ms });
        assert_eq!(self.next().message, FromSupervisor::Welcome { version: VERSION });
    }

    pub fn call(&mut self) -> u32 {
        self.next_call += 1;
        self.next_call
    }

    pub fn send(&mut self, call: u32, message: &ToSupervisor) {
        self.send_bytes(&encode(call, message));
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        match &mut self.line {
            Line::Socket(socket) => socket.write_all(bytes).unwrap(),
            Line::Pipes(_, write) => write.write_all(bytes).unwrap(),
        }
    }

    /// Sends a frame with descriptors.
    pub fn send_with(&mut self, call: u32, message: &ToSupervisor, fds: &[BorrowedFd<'_>]) {
        let Line::Socket(socket) = &self.line else { panic!("pipes carry no descriptors") };
        let bytes = encode(call, message);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// The next frame of any call; `None` at the end of the stream.
    pub fn try_next(&mut self) -> Option<Frame<FromSupervisor>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut buffer = [0; 64 << 10];
            self.wait_readable(deadline);
            let count = match &mut self.line {
                Line::Socket(socket) => socket.read(&mut buffer).unwrap_or(0),
                Line::Pipes(read, _) => read.read(&mut buffer).unwrap(),
            };
            if count == 0 {
                return None;
            }
            self.decoder.push(&buffer[..count]);
        }
    }

    fn wait_readable(&self, deadline: Instant) {
        let fd = match &self.line {
            Line::Socket(socket) => socket.as_fd(),
            Line::Pipes(read, _) => read.as_fd(),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        assert!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0, "the machine says nothing");
    }

    pub fn next(&mut self) -> Frame<FromSupervisor> {
        self.try_next().expect("the machine ended")
    }

    /// The next frame of a call.
    pub fn next_of(&mut self, call: u32) -> FromSupervisor {
        if let Some(position) = self.kept.iter().position(|frame| frame.call == call) {
            return self.kept.remove(position).message;
        }
        loop {
            let frame = self.next();
            if frame.call == call {
                return frame.message;
            }
            self.kept.push(frame);
        }
    }

    /// Launches a command with framed output.
    pub fn launch(&mut self, exec: &Exec) -> u32 {
        let call = self.call();
        self.send(call, &ToSupervisor::Exec { exec: exec.clone() });
        call
    }

    /// Follows a call to its end, granting credit for all that comes: stdout, stderr, the end.
    pub fn collect(&mut self, call: u32) -> Collected {
        let mut collected = Collected::default();
        loop {
            match self.next_of(call) {
                FromSupervisor::Output { stream, offset, data } => {
                    self.send(call, &ToSupervisor::Credit { stream, bytes: data.0.len() as u32 });
                    let buffer = if stream == STDOUT { &mut collected.stdout } else { &mut collected.stderr };
                    if buffer.is_empty() {
                        collected.first_offset[usize::from(stream == STDERR)] = offset;
                    }
                    buffer.extend(data.0);
                }
                FromSupervisor::OutputEnd { .. } => collected.ends += 1,
                FromSupervisor::Started { .. } => collected.started += 1,
                FromSupervisor::InputClosed => {}
                FromSupervisor::Attached { stdout, stderr } => collected.retained = Some([stdout, stderr]),
                FromSupervisor::Done { done } => {
                    collected.done = Some(done);
                    return collected;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs a command with framed output to its end.
    pub fn run(&mut self, exec: &Exec) -> Collected {
        let call = self.launch(exec);
        self.collect(call)
    }

    /// Waits until a command's output holds a text.
    pub fn read_until(&mut self, call: u32, text: &str) -> String {
        let mut output = Vec::new();
        while !String::from_utf8_lossy(&output).contains(text) {
            match self.next_of(call) {
                FromSupervisor::Output { stream, data, .. } => {
                    self.send(call, &ToSupervisor::Credit { stream, bytes: data.0.len() as u32 });
                    output.extend(data.0);
                }
                FromSupervisor::Started { .. }
                | FromSupervisor::Attached { .. }
                | FromSupervisor::InputCredit { .. }
                | FromSupervisor::OutputEnd { .. } => {}
                other => panic!("{other:?} before {text:?}"),
            }
        }
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Sends a frame if the machine still takes any.
    pub fn try_send(&mut self, call: u32, message: &ToSupervisor) -> std::io::Result<()> {
        let bytes = encode(call, message);
        match &mut self.line {
            Line::Socket(socket) => socket.write_all(&bytes),
            Line::Pipes(_, write) => write.write_all(&bytes),
        }
    }

    /// Ends the stream, as a host that dies.
    pub fn close(&mut self) {
        self.line.shutdown().unwrap();
    }
}

/// What a command with framed output did.
#[derive(Debug, Default)]
pub struct Collected {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub first_offset: [u64; 2],
    pub retained: Option<[u64; 2]>,
    pub ends: usize,
    pub started: usize,
    pub done: Option<Done>,
}

impl Collected {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn end(&self) -> End {
        self.done.clone().unwrap().end
    }
}

/// A command with framed output and no stdin.
pub fn exec(argv: &[&str]) -> Exec {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&unique().to_le_bytes());
    Exec::new(id, argv.iter().map(blob).collect())
}

pub fn sh(script: &str) -> Exec {
    exec(&["/bin/sh", "-c", script])
}

/// A machine, killed with the test.
pub struct Machine {
    process: Child,
    pub client: Client,
    pub ready: FromSupervisor,
    pub dir: tempfile::TempDir,
    cgroups: Vec<std::path::PathBuf>,
}

impl Machine {
    /// A machine over a socket.
    pub fn start(mode: Mode) -> Self {
        Self::start_with(mode, |_| {})
    }

    pub fn start_with(mode: Mode, change: impl FnOnce(&mut Setup)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = setup(mode, dir.path());
        change(&mut setup);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = spawn(OwnedFd::from(theirs).into(), Stdio::null());
        Self::greeted(process, Line::Socket(ours), &setup, dir)
    }

    /// A machine that somebody else isolates, over two pipes.
    pub fn start_guest(change: impl FnOnce(&mut Setup), grace_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = setup(Mode::Guest, dir.path());
        change(&mut setup);
        let mut process = spawn(Stdio::piped(), Stdio::piped());
        let write = File::from(OwnedFd::from(process.stdin.take().unwrap()));
        let read = File::from(OwnedFd::from(process.stdout.take().unwrap()));
        let mut machine = Self::set_up(process, Line::Pipes(read, write), &setup, dir);
        machine.client.greet(grace_ms);
        machine
    }

    fn greeted(process: Child, line: Line, setup: &Setup, dir: tempfile::TempDir) -> Self {
        let mut machine = Self::set_up(process, line, setup, dir);
        machine.client.greet(0);
        machine
    }

    fn set_up(process: Child, line: Line, setup: &Setup, dir: tempfile::TempDir) -> Self {
        let mut client = Client::new(line);
        let mut frame = tierbox_supervisor::wire::Wire::to_bytes(&0_u32);
        tierbox_supervisor::wire::Wire::put(setup, &mut frame);
        client.send_bytes(&(frame.len() as u32).to_le_bytes());
        client.send_bytes(&frame);
        let ready = client.next().message;
        assert!(matches!(ready, FromSupervisor::Ready { .. }), "{ready:?}");
        let cgroups = setup.cgroups.iter().map(|cgroup| String::from_utf8_lossy(&cgroup.path.0).into_owned().into()).collect();
        Self { process, client, ready, dir, cgroups }
    }

    /// Waits until the machine's process has ended; its exit status.
    pub fn wait_end(&mut self) -> i32 {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the machine does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The machine's keeper or supervisor.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn shutdown(mut self) {
        self.client.send(0, &ToSupervisor::Shutdown);
        assert_eq!(self.wait_end(), 0);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.client.line.shutdown();
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.process.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.cgroups.iter().for_each(|path| drop(std::fs::remove_dir(path)));
    }
}

impl Line {
    fn shutdown(&mut self) -> std::io::Result<()> {
        match self {
            Self::Socket(socket) => socket.shutdown(std::net::Shutdown::Both),
            Self::Pipes(_, write) => {
                *write = File::open("/dev/null")?;
                Ok(())
            }
        }
    }
}

fn spawn(stdin: Stdio, stdout: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tierbox-supervisor"));
    command.env_clear().stdin(stdin).stdout(stdout).spawn().unwrap()
}

/// Two pipes for stdout and stderr, and how a command with them is launched.
pub fn passed(client: &mut Client, exec: &Exec) -> (u32, File, File) {
    let (stdout, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (stderr, err) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let exec = Exec { output: OutputMode::Passed, ..exec.clone() };
    let call = client.call();
    client.send_with(call, &ToSupervisor::Exec { exec }, &[out.as_fd(), err.as_fd()]);
    (call, stdout.into(), stderr.into())
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process is there and not a zombie.
pub fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
