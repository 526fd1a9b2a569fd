//! Lines that drop, machines that lie about them, and what becomes of commands meanwhile.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tierbox_core::{Capabilities, Error, ErrorKind, ExecRequest, Limits, Outcome, Result, SandboxExt, UserSupport};
use tierbox_core::{HostIsolation, KillDomain, LimitCapabilities, Locality, MountSupport, Network};
use tierbox_guest::{Channel, GuestConfig, GuestSandbox, Line, Reconnect, driver, install};
use tierbox_supervisor::protocol::{FromSupervisor, VERSION, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Nothing here takes that long unless it is broken.
const LIMIT: Duration = Duration::from_secs(60);

fn capabilities() -> Capabilities {
    Capabilities {
        host: HostIsolation::H0,
        networks: vec![Network::N0],
        locality: Locality::Local,
        kill_domain: KillDomain::Subreaper,
        streaming_output: true,
        streaming_stdin: true,
        pty: true,
        signals: true,
        idle_timeout: true,
        detached_exec: true,
        users: UserSupport::DefaultOnly,
        memory_outcome: false,
        usage: true,
        confined_exec: false,
        files: true,
        archives: true,
        dial: true,
        mounts: MountSupport::None,
        multi_machine: false,
        machines_apart: false,
        detached: false,
        snapshots: false,
        limits: LimitCapabilities::default(),
    }
}

fn sandbox(channel: Channel) -> GuestSandbox {
    let limits = Limits::default();
    let config =
        GuestConfig { name: "main".into(), backend: "test", capabilities: capabilities(), limits, agent: "nobody-else".into() };
    GuestSandbox::new(channel, config)
}

/// A supervisor on this host, and its present line.
#[derive(Clone)]
struct Machine {
    installed: install::Installed,
    child: Arc<Mutex<Option<tokio::process::Child>>>,
    opened: Arc<AtomicU32>,
    refuses: Arc<AtomicBool>,
}

fn shell(script: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", &install::quoted(script)]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// A line by a process that is then kept there.
fn line(kept: &Arc<Mutex<Option<tokio::process::Child>>>, script: &str) -> Line {
    let _inside = driver::handle().unwrap().enter();
    let mut child = shell(script).spawn().unwrap();
    let (reader, writer) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    *kept.lock().unwrap() = Some(child);
    Line::new(Cuttable { inner: Some(reader), child: kept.clone() }, writer)
}

impl Machine {
    async fn start(dir: &Path, grace: Duration) -> (Self, Channel) {
        let options = install::Options { user: None, directories: vec![dir.to_str().unwrap().to_owned()] };
        let child = Arc::default();
        let landed = install::land(line(&child, &install::script(&options).unwrap())).await.unwrap();
        let machine = Self { installed: landed.installed, child, opened: Arc::default(), refuses: Arc::default() };
        let mut setup = machine.installed.setup("lines");
        setup.workdir = tierbox_supervisor::wire::Blob::from(dir.to_str().unwrap().as_bytes());
        let (channel, _) = Channel::begin(landed.line, Arc::new(machine.clone()), &setup, grace, LIMIT).await.unwrap();
        (machine, channel)
    }

    /// Kills the process that holds the line.
    fn cut(&self) {
        drop(self.child.lock().unwrap().take());
    }
}

/// Ends when the line's process was killed: the supervisor holds the other end of the pipe itself.
struct Cuttable {
    inner: Option<tokio::process::ChildStdout>,
    child: Arc<Mutex<Option<tokio::process::Child>>>,
}

impl tokio::io::AsyncRead for Cuttable {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.child.lock().unwrap().is_none() {
            self.inner = None;
            return std::task::Poll::Ready(Ok(()));
        }
        let waker = cx.waker().clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            waker.wake();
        });
        match &mut self.inner {
            Some(inner) => std::pin::Pin::new(inner).poll_read(cx, buf),
            None => std::task::Poll::Ready(Ok(())),
        }
    }
}

#[async_trait]
impl Reconnect for Machine {
    async fn open(&self) -> Result<Line> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Lost, "open line", "the cable is cut"));
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(line(&self.child, &self.installed.join()))
    }
}

/// Installing: what is told of a machine where it cannot be, and that nothing is left there.
mod landing {
    use crate::*;

    /// Takes so many bytes, and ends.
    struct Short(Option<tokio::process::ChildStdin>, usize);

    impl tokio::io::AsyncWrite for Short {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            bytes: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            let most = bytes.len().min(self.1);
            self.0.take_if(|_| most == 0);
            let Some(inner) = &mut self.0 else { return std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into())) };
            let count = std::task::ready!(std::pin::Pin::new(inner).poll_write(cx, &bytes[..most]))?;
            self.1 -= count;
            std::task::Poll::Ready(Ok(count))
        }

        fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    /// Lands with a script's line that carries so many bytes in.
    async fn land(script: &str, carries: usize) -> Error {
        let _inside = driver::handle().unwrap().enter();
        let mut child = shell(script).spawn().unwrap();
        let (reader, writer) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
        let landing = install::land(Line::new(reader, Short(Some(writer), carries)).keeping(child));
        tokio::time::timeout(LIMIT, landing).await.unwrap().unwrap_err()
    }

    async fn install(options: install::Options, carries: usize) -> Error {
        land(&install::script(&options).unwrap(), carries).await
    }

    fn at(dir: &Path) -> install::Options {
        install::Options { user: None, directories: vec![dir.to_str().unwrap().to_owned()] }
    }

    #[tokio::test]
    async fn a_machine_without_a_place_says_so_and_does_not_wait_for_the_program() {
        let error = install(at(Path::new("/proc/self")), usize::MAX).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }

    #[tokio::test]
    async fn a_line_that_is_cut_in_the_middle_of_the_program_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for carries in [0, 1000, install::program().unwrap().len() - 1] {
            let error = install(at(dir.path()), carries).await;
            assert_eq!(error.kind(), ErrorKind::Io, "{carries}: {error}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{carries}");
        }
    }

    #[tokio::test]
    async fn a_line_that_ends_is_lost() {
        for script in ["exit 1", "echo login=me; echo arch=x86_64; read -r line; exit 1"] {
            let error = land(script, usize::MAX).await;
            assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Lost, true), "{script}: {error}");
        }
    }

    #[tokio::test]
    async fn a_user_who_is_not_there_is_named_and_the_supervisor_leaves_again() {
        let dir = tempfile::tempdir().unwrap();
        let options = install::Options { user: Some("nobody-of-that-name".into()), ..at(dir.path()) };
        assert_eq!(install(options, usize::MAX).await.kind(), ErrorKind::InvalidInput);
        for left in std::fs::read_dir(dir.path()).unwrap() {
            gone(left.unwrap().path().to_str().unwrap()).await;
        }
    }
}

async fn gone(dir: &str) {
    let start = Instant::now();
    while Path::new(dir).exists() {
        assert!(start.elapsed() < LIMIT, "{dir} is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

mod conformance {
    mod channel {
        mod lines {
            use crate::*;

            #[tokio::test]
            async fn a_command_runs_once_and_loses_nothing_when_its_line_is_cut() {
                let dir = tempfile::tempdir().unwrap();
                let (machine, channel) = Machine::start(dir.path(), install::GRACE).await;
                let sandbox = sandbox(channel);
                let script = "echo run >> ran; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; [ $((i % 500)) != 0 ] || sleep 0.3; done";
                let running = sandbox.run(ExecRequest::shell(script));
                let cutting = async {
                    for _ in 0..3 {
                        tokio::time::sleep(Duration::from_millis(250)).await;
                        machine.cut();
                    }
                };
                let (result, ()) = tokio::join!(running, cutting);
                let result = result.unwrap();
                assert_eq!(result.outcome(), Outcome::Exited(0));
                let expected: String = (1..=2000).map(|number| format!("line {number}\n")).collect();
                assert_eq!(String::from_utf8(result.stdout.bytes()).unwrap(), expected);
                assert_eq!(sandbox.read_bytes("ran", 100).await.unwrap(), b"run\n");
                assert!(machine.opened.load(Ordering::Relaxed) >= 1, "no line was cut");
                sandbox.channel().shutdown();
                gone(&machine.installed.dir).await;
            }

            #[tokio::test]
            async fn without_a_line_everything_ends_with_the_grace() {
                let dir = tempfile::tempdir().unwrap();
                let (machine, channel) = Machine::start(dir.path(), Duration::from_secs(1)).await;
                let sandbox = sandbox(channel);
                let running = sandbox.run(ExecRequest::shell("echo $$ > pid; sleep 1000"));
                let cutting = async {
                    while !dir.path().join("pid").exists() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    machine.refuses.store(true, Ordering::Relaxed);
                    machine.cut();
                };
                let (result, ()) = tokio::time::timeout(LIMIT, async { tokio::join!(running, cutting) }).await.unwrap();
                assert_eq!(result.unwrap().outcome(), Outcome::Lost);
                gone(&machine.installed.dir).await;
                let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
                assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "the command outlived the grace");
                assert_eq!(sandbox.run(ExecRequest::new(["true"])).await.unwrap_err().kind(), ErrorKind::Lost);
            }

            #[tokio::test]
            async fn a_machine_that_nobody_wants_ends_at_once() {
                let dir = tempfile::tempdir().unwrap();
                let (machine, channel) = Machine::start(dir.path(), Duration::from_secs(600)).await;
                drop(channel);
                gone(&machine.installed.dir).await;
            }
        }
    }
}

mod unit {
    use super::*;

    /// Answers each line as it was told to, whatever it is asked.
    struct Liar(Vec<u8>);

    #[async_trait]
    impl Reconnect for Liar {
        async fn open(&self) -> Result<Line> {
            Ok(saying(self.0.clone()))
        }
    }

    /// A machine that says this and then nothing.
    fn saying(words: Vec<u8>) -> Line {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(theirs);
            let _ = writer.write_all(&words).await;
            let mut sink = [0; 1024];
            while matches!(reader.read(&mut sink).await, Ok(count) if count > 0) {}
        });
        let (reader, writer) = tokio::io::split(ours);
        Line::new(reader, writer)
    }

    /// A first line that is welcomed, and drops.
    fn dropping() -> Line {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(theirs);
            let mut buffer = [0; 1024];
            let _ = reader.read(&mut buffer).await;
            let _ = writer.write_all(&encode(0, &FromSupervisor::Welcome { version: VERSION })).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        });
        let (reader, writer) = tokio::io::split(ours);
        Line::new(reader, writer)
    }

    async fn closed_by(words: Vec<u8>) -> Error {
        let driver = driver::handle().unwrap();
        let _inside = driver.enter();
        let channel = Channel::resumable(dropping(), Arc::new(Liar(words))).unwrap();
        channel.hello(Duration::from_secs(2)).unwrap();
        tokio::time::timeout(LIMIT, channel.closed()).await.unwrap()
    }

    #[tokio::test]
    async fn a_machine_that_lies_about_a_session_loses_its_channel() {
        let protocol = [
            encode(0, &FromSupervisor::Resumed { received: u64::MAX }),
            encode(0, &FromSupervisor::Resumed { received: 1 }),
            encode(0, &FromSupervisor::Pong),
            [encode(0, &FromSupervisor::Resumed { received: 0 }), encode(0, &FromSupervisor::Ack { received: 77 })].concat(),
            [encode(0, &FromSupervisor::Resumed { received: 0 }), encode(0, &FromSupervisor::Resumed { received: 0 })].concat(),
            [encode(0, &FromSupervisor::Resumed { received: 0 }), vec![0xff; 64]].concat(),
        ];
        for words in protocol {
            let error = closed_by(words.clone()).await;
            assert_eq!(error.kind(), ErrorKind::Protocol, "{}: {error}", words.escape_ascii());
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_a_line_that_does_not_work() {
        for words in [vec![0xff; 64], b"Last login: today\n".to_vec(), vec![9, 0, 0, 0, 1]] {
            let error = closed_by(words.clone()).await;
            assert_eq!(error.kind(), ErrorKind::Lost, "{}: {error}", words.escape_ascii());
        }
    }
}
