//! Shells that are kept: each serves one command of its user's after the other, so that a command costs neither a session of the
//! transport's nor programs that only look after it.
//!
//! A shell reads from its line what it is to run. What the command prints comes on the shell's own two streams, and on both the shell says
//! a mark when it has ended: as nobody else knows that, all before it is what the command printed, byte by byte. A shell runs one
//! command at a time; several run side by side in several shells. One whose streams somebody may still write to, or that says anything
//! after a mark, serves no other command. One that breaks, or whose command prints more than is carried at once, is given up: the
//! command goes on and its output is in files, for whoever [asks](super) then.

use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use crate::errors::lock;
use crate::line::Line;

/// What a shell is opened to, after what becomes the user who runs scripts: one that reads what it is to run. Nothing of its
/// surroundings gets to a command.
pub const COMMAND: &str = "env -i /bin/sh";

/// How many shells wait for work. What is opened beyond that, for calls at the same time, is closed when it is idle: whoever carries the
/// lines may bound how many there are.
const IDLE: usize = 3;

/// How much is read at once.
const BUFFER: usize = 16 << 10;

/// How many shells are opened in vain before no more is: some machines have none that can be kept.
const TRIES: usize = 3;

/// How long a shell may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest that a shell says after a mark.
const WORDS: usize = 1024;

/// A stream that a shell prints to.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// What a shell is spoken with through.
#[derive(Debug)]
pub struct Streams {
    line: Line,
    stderr: Stderr,
}

struct Stderr(Reader);

impl std::fmt::Debug for Stderr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stderr")
    }
}

impl Streams {
    /// A line to the shell's standard input and output, and its standard error apart.
    pub fn new(line: Line, stderr: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self { line, stderr: Stderr(Box::new(stderr)) }
    }
}

/// Opens shells: the transport's part.
#[async_trait]
pub trait Open: Send + Sync {
    /// Opens [`COMMAND`] in the machine, always as the same user. Called on the [driver](crate::driver).
    ///
    /// # Errors
    /// Any: nothing has run.
    async fn open(&self) -> Result<Streams>;
}

/// The shells of a machine.
pub struct Shells {
    opener: Box<dyn Open>,
    idle: Mutex<Vec<Shell>>,
    /// Names of shells that serve no more, whose files are not needed any more.
    spent: Mutex<Vec<String>>,
    /// How many in a row could not be opened.
    failed: AtomicUsize,
}

struct Shell {
    streams: Streams,
    /// Its files' names in the machine begin with it.
    name: String,
    user: String,
}

/// A command for a shell.
pub(super) struct Errand<'a> {
    /// What becomes the command's user. A shell serves only one, since others could write to what it reads.
    pub(super) user: &'a str,
    /// What readies a shell of that name.
    pub(super) opening: &'a (dyn Fn(&str) -> String + Sync),
    pub(super) script: &'a str,
    /// The most that is carried of both streams.
    pub(super) room: usize,
    /// The most that the command may print to a stream, and what is done once it has.
    pub(super) most: u64,
    pub(super) beyond: &'a (dyn Fn() + Sync),
    /// When to give up waiting.
    pub(super) limit: Duration,
}

/// How a command ended, in the shell's words, and what it printed to each stream.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) words: String,
    pub(super) streams: [Vec<u8>; 2],
    /// It printed more than it may; what is beyond that is not here.
    pub(super) exceeded: bool,
}

/// An error, and the name of the shell if the command may still be running in it.
pub(super) type Broken = (Error, Option<String>);

impl std::fmt::Debug for Shells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shells").field("idle", &lock(&self.idle).len()).finish_non_exhaustive()
    }
}

impl Shells {
    /// None is open yet.
    pub fn new(opener: impl Open + 'static) -> Self {
        Self { opener: Box::new(opener), idle: Mutex::default(), spent: Mutex::default(), failed: AtomicUsize::new(0) }
    }

    /// Runs a command. Whoever gives up in the middle drops the shell.
    pub(super) async fn serve(&self, errand: &Errand<'_>) -> Result<Served, Broken> {
        let mut shell = match self.take(errand.user) {
            Some(shell) => shell,
            None => self.opened(errand).await.map_err(|error| (error, None))?,
        };
        match within(errand.limit, shell.serve(errand)).await {
            Ok((served, again)) => {
                self.put_back(shell, again);
                Ok(served)
            }
            Err(error) => {
                // What broke one may have broken all.
                let others: Vec<Shell> = lock(&self.idle).drain(..).collect();
                others.into_iter().for_each(|other| self.is_spent(other.name));
                Err((error, Some(shell.name)))
            }
        }
    }

    /// The files of a shell of this name are not needed any more.
    pub(super) fn is_spent(&self, name: String) {
        lock(&self.spent).push(name);
    }

    /// Shells whose files may go.
    pub(super) fn take_spent(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.spent))
    }

    fn take(&self, user: &str) -> Option<Shell> {
        loop {
            let mut shell = {
                let mut idle = lock(&self.idle);
                let at = idle.iter().rposition(|shell| shell.user == user)?;
                idle.remove(at)
            };
            if shell.is_quiet() {
                return Some(shell);
            }
            self.is_spent(shell.name);
        }
    }

    fn put_back(&self, shell: Shell, again: bool) {
        let mut idle = lock(&self.idle);
        let gone = match again {
            true if idle.len() < IDLE => {
                idle.push(shell);
                return;
            }
            // The one that waits longest goes, so that each user comes to have one.
            true => {
                idle.push(shell);
                idle.remove(0)
            }
            false => shell,
        };
        drop(idle);
        self.is_spent(gone.name);
    }

    /// Opens one, unless that was tried in vain too often.
    async fn opened(&self, errand: &Errand<'_>) -> Result<Shell> {
        if self.failed.load(Ordering::Relaxed) >= TRIES {
            return Err(lost("none could be opened"));
        }
        let opened = self.open(errand).await;
        match &opened {
            Ok(_) => self.failed.store(0, Ordering::Relaxed),
            Err(_) => _ = self.failed.fetch_add(1, Ordering::Relaxed),
        }
        opened
    }

    async fn open(&self, errand: &Errand<'_>) -> Result<Shell> {
        let name = format!("k{}", random()?);
        let mark = random()?;
        let mut shell = Shell { streams: self.opener.open().await?, user: errand.user.to_owned(), name };
        let opening = format!("MARK={mark}\n{}", (errand.opening)(&shell.name));
        let opened = within(PATIENCE, shell.ask(&opening, &mark, BUFFER, u64::MAX, &|| {})).await;
        match opened {
            Ok(_) => Ok(shell),
            Err(error) => {
                self.is_spent(shell.name);
                Err(error)
            }
        }
    }
}

fn random() -> Result<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| Error::new(ErrorKind::Io, "run command", error.to_string()))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(lost("it does not answer")))
}

fn lost(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Lost, "run command", format!("the shell went away: {why}"))
}

impl Shell {
    /// Runs a command. Also tells whether the shell may serve another.
    async fn serve(&mut self, errand: &Errand<'_>) -> Result<(Served, bool)> {
        let mark = random()?;
        // The shell has read all of it, to the last brace, before it begins.
        let script = format!("{{\nMARK={mark}\n{}\n}}\n", errand.script);
        let [out, err] = self.ask(&script, &mark, errand.room, errand.most, errand.beyond).await?;
        // Whoever ended it may still be about to kill what is there.
        let by_itself = ["end=exit ", "end=signal "].iter().any(|end| out.words.starts_with(end));
        let again = by_itself && out.words.contains("held=;") && out.rest == 0 && err.rest == 0;
        let exceeded = out.exceeded || err.exceeded;
        Ok((Served { words: out.words, streams: [out.bytes, err.bytes], exceeded }, again))
    }

    async fn ask(&mut self, text: &str, mark: &str, room: usize, most: u64, beyond: &(dyn Fn() + Sync)) -> Result<[Said; 2]> {
        let Streams { line, stderr } = &mut self.streams;
        let sign = format!("\n{mark}").into_bytes();
        let (held, most) = (AtomicUsize::new(0), usize::try_from(most).unwrap_or(usize::MAX).saturating_add(1));
        let bounds = Bounds { sign: &sign, held: &held, room, most, beyond };
        let send = async {
            line.writer.write_all(text.as_bytes()).await.map_err(lost)?;
            line.writer.flush().await.map_err(lost)
        };
        let ((), out, err) = tokio::try_join!(send, receive(&mut line.reader, &bounds), receive(&mut stderr.0, &bounds))?;
        Ok([out, err])
    }

    /// Whether nothing came since its last command, and it is not known to be gone.
    fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut is_pending =
            |reader: &mut Reader| Pin::new(reader).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending();
        is_pending(&mut self.streams.line.reader) && is_pending(&mut self.streams.stderr.0)
    }
}

/// What bounds the reading of a stream.
struct Bounds<'a> {
    sign: &'a [u8],
    /// How much is held of both streams.
    held: &'a AtomicUsize,
    room: usize,
    most: usize,
    beyond: &'a (dyn Fn() + Sync),
}

/// What came on a stream before a mark, what the shell said with it, and how much came after that.
struct Said {
    bytes: Vec<u8>,
    words: String,
    rest: usize,
    exceeded: bool,
}

async fn receive(reader: &mut Reader, bounds: &Bounds<'_>) -> Result<Said> {
    let (mut bytes, mut looked, mut exceeded) = (Vec::new(), 0, false);
    loop {
        let before = bytes.len();
        bytes.reserve(BUFFER);
        if reader.read_buf(&mut bytes).await.map_err(lost)? == 0 {
            return Err(lost("its output ended"));
        }
        let came = bytes.len() - before;
        if let Some(at) = position(&bytes[looked..], bounds.sign).map(|at| looked + at) {
            let said = &bytes[at + bounds.sign.len()..];
            if let Some(end) = said.iter().position(|byte| *byte == b'\n') {
                let words = String::from_utf8_lossy(&said[..end]).trim_start().to_owned();
                let rest = said.len() - end - 1;
                exceeded |= at >= bounds.most;
                bytes.truncate(at.min(bounds.most));
                return Ok(Said { bytes, words, rest, exceeded });
            }
            if said.len() > WORDS {
                return Err(lost("it says too much"));
            }
            looked = at;
        } else {
            looked = bytes.len().saturating_sub(bounds.sign.len());
        }
        if looked >= bounds.most {
            if !std::mem::replace(&mut exceeded, true) {
                (bounds.beyond)();
            }
            // What it printed first is kept.
            bytes.drain(bounds.most..looked);
            looked = bounds.most;
        }
        let held = bounds.held.fetch_add(came, Ordering::Relaxed) + came;
        if !exceeded && held > bounds.room {
            return Err(lost("the command prints more than is carried at once"));
        }
    }
}

fn position(bytes: &[u8], sign: &[u8]) -> Option<usize> {
    bytes.windows(sign.len()).position(|window| window == sign)
}

#[cfg(all(test, target_os = "linux"))]
mod unit {
    use std::process::Stdio;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use tierbox_core::{ExecRequest, ExecResult, HostIsolation, KillReason, Locality, Network, OnExceed, Outcome, SandboxExt};
    use tokio::process::{Child, Command};

    use super::*;
    use crate::plain::{
        PlainConfig, PlainLimits, PlainOutput, PlainRun, PlainSandbox, PlainTransport, capabilities, shells_here,
    };

    /// Shells of this host, by `program`; counts them, and cuts their lines.
    #[derive(Default)]
    struct Told {
        opened: AtomicUsize,
        scripts: AtomicUsize,
        cut: AtomicBool,
    }

    struct Here(&'static [&'static str], Arc<Told>);

    fn started(program: &[&str], more: &[&str]) -> Child {
        let mut command = Command::new("setsid");
        command.args(program).args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Whoever drops it ends the line, and nothing else, as with ssh.
        command.env_clear().env("PATH", "/usr/bin:/bin").spawn().unwrap()
    }

    /// Ends with the line.
    struct Cut(tokio::process::ChildStdout, Arc<Told>);

    impl AsyncRead for Cut {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let filled = buf.filled().len();
            let read = Pin::new(&mut self.0).poll_read(cx, buf);
            if read.is_ready() && self.1.cut.swap(false, Ordering::Relaxed) {
                buf.set_filled(filled);
            }
            read
        }
    }

    #[async_trait]
    impl Open for Here {
        async fn open(&self) -> Result<Streams> {
            self.1.opened.fetch_add(1, Ordering::Relaxed);
            let mut child = started(self.0, &[]);
            let (out, err, into) = (child.stdout.take(), child.stderr.take(), child.stdin.take());
            let line = Line::new(Cut(out.unwrap(), self.1.clone()), into.unwrap()).keeping(child);
            Ok(Streams::new(line, err.unwrap()))
        }
    }

    struct Transport(&'static [&'static str], Arc<Told>, Shells);

    #[async_trait]
    impl PlainTransport for Transport {
        fn limits(&self) -> PlainLimits {
            PlainLimits { script: 120 << 10, stdin: 1 << 20, output: 256 << 10 }
        }

        fn shells(&self) -> Option<&Shells> {
            Some(&self.2)
        }

        async fn run(&self, run: PlainRun) -> Result<PlainOutput> {
            if run.command.is_some() {
                self.1.scripts.fetch_add(1, Ordering::Relaxed);
            }
            let mut child = started(self.0, &["-c", &run.script]);
            let mut into = child.stdin.take().unwrap();
            let feed = async move { drop(into.write_all(&run.stdin).await) };
            let ((), output) = tokio::join!(feed, child.wait_with_output());
            let output = output.unwrap();
            Ok(PlainOutput { status: output.status.code().unwrap_or(255), stdout: output.stdout, stderr: output.stderr })
        }
    }

    async fn sandbox(program: &'static [&'static str]) -> (PlainSandbox, Arc<Told>) {
        let told = Arc::new(Told::default());
        let can = capabilities(HostIsolation::H0, vec![Network::N0], Locality::Local);
        let config = PlainConfig { workdir: Some("/tmp".to_owned()), ..PlainConfig::new("main", "test", can) };
        let transport = Transport(program, told.clone(), Shells::new(Here(program, told.clone())));
        (PlainSandbox::open(Arc::new(transport), config).await.unwrap(), told)
    }

    /// So many shells were opened, and so many commands went by scripts. Only root can look at everybody's processes, and so knows of each
    /// that began meanwhile that it holds nothing; others give a shell up.
    #[track_caller]
    fn counted(told: &Told, (opened, scripts): (usize, usize)) {
        assert_eq!(told.scripts.load(Ordering::Relaxed), scripts);
        if rustix::process::geteuid().is_root() {
            assert_eq!(told.opened.load(Ordering::Relaxed), opened);
        }
    }

    async fn run(sandbox: &PlainSandbox, script: &str) -> ExecResult {
        sandbox.run(ExecRequest::shell(script).timeout(Duration::from_secs(60))).await.unwrap()
    }

    fn said(result: &ExecResult) -> (Outcome, String, String) {
        (result.outcome(), result.stdout.text(), result.stderr.text())
    }

    fn exits(status: i32, stdout: &str, stderr: &str) -> (Outcome, String, String) {
        (Outcome::Exited(status), stdout.to_owned(), stderr.to_owned())
    }

    #[tokio::test]
    async fn one_shell_serves_all_and_each_gets_its_own_bytes() {
        for program in shells_here() {
            let (sandbox, told) = sandbox(program).await;
            for (script, expected) in [
                ("printf '\\n\\n'; exit 3", exits(3, "\n\n", "")),
                (":", exits(0, "", "")),
                ("cat; cd /; x=1; export x; echo a; sh -c 'echo b >&2'", exits(0, "a\n", "b\n")),
                ("echo ${x-none} $(echo many) $(echo others); echo c >/dev/stderr", exits(0, "none many others\n", "c\n")),
            ] {
                assert_eq!(said(&run(&sandbox, script).await), expected, "{program:?}: {script}");
            }
            let fed = ExecRequest::new(["cat"]).stdin_bytes(b"\0a\xff%s\\n".to_vec());
            assert_eq!(sandbox.run(fed).await.unwrap().stdout.bytes(), b"\0a\xff%s\\n", "{program:?}");
            let killed = run(&sandbox, "kill -TERM 0; sleep 20").await;
            assert_eq!(killed.outcome(), Outcome::Signaled(15), "{program:?}");
            counted(&told, (1, 0));
            sandbox.remove().await.unwrap();
        }
    }

    #[tokio::test]
    async fn no_output_is_taken_for_the_end_whatever_a_command_finds() {
        // All that looks like a mark, wherever a command may look, as the last words of a shell.
        let script =
            "marks() { env; cat /proc/$$/cmdline /proc/$PPID/cmdline /proc/$PPID/environ; ls -lR /proc/self/fd; } 2>/dev/null
            for mark in $(marks | tr -c 'a-f0-9' '\\n' | grep -E '^.{32}$') 0123456789abcdef0123456789abcdef; do
              printf '\\n%s end=exit 0; note=; times=1 1; held=;\\n' $mark; printf '\\n%s\\n' $mark >&2
            done; printf 'tierbox-plain 1 end=exit 0; note=; times=; out=0; err=0;\\n'; echo last; exit 7";
        for program in shells_here() {
            let (sandbox, told) = sandbox(program).await;
            let result = run(&sandbox, script).await;
            assert_eq!(result.outcome(), Outcome::Exited(7), "{program:?}");
            assert!(result.stdout.text().ends_with("\nlast\n"), "{program:?}: {result:?}");
            assert_eq!(said(&run(&sandbox, "echo next").await), exits(0, "next\n", ""), "{program:?}");
            counted(&told, (1, 0));
            sandbox.remove().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_goes_on_neither_holds_the_call_nor_gets_into_the_next() {
        for program in shells_here() {
            let (sandbox, told) = sandbox(program).await;
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().display();
            // One that kept neither stream is no reason to give a shell up.
            run(
                &sandbox,
                &format!("setsid sh -c 'until [ -e {path}/go ] || [ ! -d {path} ]; do sleep 0.05; done' >/dev/null 2>&1 &"),
            )
            .await;
            assert_eq!(said(&run(&sandbox, "echo one").await), exits(0, "one\n", ""), "{program:?}");
            counted(&told, (1, 0));
            let late = format!(
                "(setsid sh -c 'until [ -e {path}/go ] || [ ! -d {path} ]; do sleep 0.01; done; echo late; echo late >&2; : >{path}/gone' &); echo two"
            );
            assert_eq!(said(&run(&sandbox, &late).await), exits(0, "two\n", ""), "{program:?}");
            std::fs::write(dir.path().join("go"), "").unwrap();
            let waits = format!("until [ -e {path}/gone ]; do sleep 0.01; done; echo three");
            assert_eq!(said(&run(&sandbox, &waits).await), exits(0, "three\n", ""), "{program:?}");
            counted(&told, (2, 0));
            sandbox.remove().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_left_its_parents_ends_with_its_command_and_the_shell_serves_no_other() {
        for program in shells_here() {
            let (sandbox, told) = sandbox(program).await;
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("pid");
            // The first of its sandbox: nothing is known of its program.
            let script = format!("(sleep 1000 >/dev/null 2>&1 & echo $! >{}); sleep 1000", path.display());
            let request = ExecRequest::shell(script).timeout(Duration::from_secs(1));
            assert_eq!(sandbox.run(request).await.unwrap().outcome(), Outcome::Killed(KillReason::Timeout), "{program:?}");
            let pid: u32 = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            assert!(state.is_empty() || state.contains(") Z "), "{program:?}: {state}");
            assert_eq!(said(&run(&sandbox, "echo next").await), exits(0, "next\n", ""), "{program:?}");
            counted(&told, (2, 0));
            sandbox.remove().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_printed_after_the_end_is_none_of_an_output_that_is_asked_for() {
        for program in shells_here() {
            let (sandbox, told) = sandbox(program).await;
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().display();
            let goes_on = format!("(setsid sh -c 'until [ -e {path}/end ]; do echo late; sleep 0.005; done' &)");
            let much = run(&sandbox, &format!("head -c 3000000 /dev/zero; echo last; {goes_on}")).await;
            std::fs::write(dir.path().join("end"), "").unwrap();
            let text = much.stdout.bytes();
            let after = text.windows(5).position(|window| window == b"last\n").expect("the last line") + 5;
            let rest = String::from_utf8_lossy(&text[after..]).into_owned();
            assert!(rest.lines().all(|line| line == "late"), "{program:?}: {rest:?}");
            assert_eq!(much.outcome(), Outcome::Exited(0), "{program:?}");
            counted(&told, (1, 1));
            sandbox.remove().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_line_that_is_cut_loses_neither_the_command_nor_its_output() {
        for program in shells_here() {
            let (sandbox, told) = sandbox(program).await;
            run(&sandbox, ":").await;
            told.cut.store(true, Ordering::Relaxed);
            let dir = tempfile::tempdir().unwrap();
            let script = format!("echo once >>{}/ran; echo a; sleep 0.3; printf b; echo c >&2; exit 4", dir.path().display());
            assert_eq!(said(&run(&sandbox, &script).await), exits(4, "a\nb", "c\n"), "{program:?}");
            assert_eq!(std::fs::read_to_string(dir.path().join("ran")).unwrap(), "once\n", "{program:?}");
            counted(&told, (1, 1));
            assert_eq!(said(&run(&sandbox, "echo next").await), exits(0, "next\n", ""), "{program:?}");
            sandbox.remove().await.unwrap();
        }
    }

    #[tokio::test]
    async fn much_output_is_whole_and_too_much_is_told() {
        for program in shells_here() {
            let (sandbox, told) = sandbox(program).await;
            let much = run(&sandbox, "head -c 3000000 /dev/zero; printf last; echo err >&2").await;
            assert_eq!((much.outcome(), much.stdout.total), (Outcome::Exited(0), 3_000_004), "{program:?}");
            assert!(much.stdout.bytes().ends_with(b"\0last") && much.stderr.text() == "err\n", "{program:?}");
            counted(&told, (1, 1));
            for most in [1000, 1 << 20] {
                let request = ExecRequest::new(["yes"]).output_limit(most, OnExceed::Kill);
                let result = sandbox.run(request).await.unwrap();
                assert_eq!(result.outcome(), Outcome::Killed(KillReason::OutputLimit), "{program:?}");
                assert_eq!(result.stdout.bytes().len() as u64, most, "{program:?}");
            }
            sandbox.remove().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_shell_that_ends_loses_its_command_and_the_next_has_another() {
        let (sandbox, told) = sandbox(&["sh"]).await;
        // Who reads its script became the command.
        let result = run(&sandbox, "kill -KILL $PPID; sleep 20").await;
        assert_eq!(result.outcome(), Outcome::Lost);
        assert_eq!(said(&run(&sandbox, "echo there").await), exits(0, "there\n", ""));
        counted(&told, (2, 1));
        sandbox.remove().await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_became_a_text_is_none_any_more() {
        let (sandbox, _) = sandbox(&["sh"]).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program").to_str().unwrap().to_owned();
        run(&sandbox, &format!("cp /bin/true {path}")).await;
        for _ in 0..2 {
            assert_eq!(sandbox.run(ExecRequest::new([path.as_str()])).await.unwrap().outcome(), Outcome::Exited(0));
        }
        run(&sandbox, &format!("echo exit 3 >{path}")).await;
        assert_eq!(sandbox.run(ExecRequest::new([path.as_str()])).await.unwrap().outcome(), Outcome::Exited(126));
        sandbox.remove().await.unwrap();
    }

    #[tokio::test]
    async fn several_run_side_by_side() {
        let (sandbox, told) = sandbox(&["sh"]).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        // Each waits for all the others.
        let scripts = [1, 2, 3, 4, 5]
            .map(|number| format!(": >{path}/{number}; until [ $(ls {path} | wc -l) = 5 ]; do sleep 0.01; done; echo {number}"));
        let run = |index: usize| run(&sandbox, &scripts[index]);
        let (a, b, c, d, e) = tokio::join!(run(0), run(1), run(2), run(3), run(4));
        for (number, result) in (1..).zip([a, b, c, d, e]) {
            assert_eq!(said(&result), exits(0, &format!("{number}\n"), ""));
        }
        counted(&told, (5, 0));
        sandbox.remove().await.unwrap();
    }
}
