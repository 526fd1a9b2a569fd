//! The plain transport: scripts by the engine's own exec, where the image or the profile takes no supervisor.
//!
//! The container's first process is a shell that waits for the end of its input, which is this process's. Every script is a process
//! of the engine's; that of a command waits until this host has put it into a [kill domain](crate::domain) of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use futures_util::StreamExt;
use tierbox_core::{Error, ErrorKind, ExecId, Result};
use tierbox_guest::plain::{PlainLimits, PlainOutput, PlainRun, PlainTransport};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use crate::BACKEND;
use crate::domain::Domains;
use crate::engine::{Engine, failed, is_absent, is_settled};

/// The container's first process: it reaps what others leave, and ends with the stream by which it was started. It takes no signal
/// (shells take some unasked), so that none from inside ends it; another process reads the stream, since who reads reaps nobody, and is
/// there again if it is killed. It becomes a user that nobody else is, where the image can do that: root inside, who may not trace,
/// then cannot look into it. (The engine cannot begin it as one: root's scripts would have no rights.)
pub const FIRST: &str = "become='setpriv --reuid=2147483646 --regid=2147483646 --clear-groups --inh-caps=-all'; \
     first='trap \"\" HUP INT QUIT TERM; exec 3<&0 </dev/null; until ( while read -r _; do :; done ) <&3 3<&- & wait $!; do :; done'; \
     ! $become true 2>/dev/null || exec $become /bin/sh -c \"$first\"; eval \"$first\"";

/// Where scripts keep what commands print until it was read: root's alone, so that no full disk of the commands' is in the way.
pub const ROOM: &str = "rw,nosuid,nodev,noexec,mode=0700,size=512m";

/// What one script may be.
const LIMITS: PlainLimits = PlainLimits { script: 256 << 10, stdin: 1 << 20, output: 1 << 20 };

/// The most that is kept of what a script complains.
const COMPLAINTS: usize = 4 << 10;

/// How long the engine may take to tell the number, or the exit status, of a process that it started.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the engine may take to learn that a container's processes are dead.
const NEWS: Duration = Duration::from_secs(2);

/// The pause between two questions.
const PAUSE: Duration = Duration::from_millis(5);

/// The whole of what stands in the arguments of a process of the engine's, which its host and its API show: it reads the script, which
/// may hold secrets, from its input. First comes its length, before which nothing happens; whoever reads it may take more than that
/// from a stream, so what follows is sent once it says that it has all.
const READER: &str = "unset n s; IFS= read -r n || exit 125; PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; \
     command -v head >/dev/null || { echo; echo missing= head; exit 0; }; \
     s=$(head -c \"$n\"); [ \"${#s}\" = \"$n\" ] || exit 125; echo; eval \"$s\"";

/// Scripts in one container.
pub struct Scripts {
    engine: Engine,
    container: String,
    domains: Arc<Domains>,
}

impl Scripts {
    /// Those of a container.
    pub fn new(engine: Engine, container: String, domains: Domains) -> Self {
        Self { engine, container, domains: Arc::new(domains) }
    }

    async fn create(&self) -> Result<String> {
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(false),
            privileged: Some(false),
            user: Some("0:0".to_owned()),
            working_dir: Some("/".to_owned()),
            cmd: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), READER.to_owned()]),
            ..CreateExecOptions::default()
        };
        match self.engine.docker.create_exec(&self.container, options).await {
            Ok(made) => Ok(made.id),
            Err(error) if is_absent(&error) || is_settled(&error) => {
                Err(Error::new(ErrorKind::Lost, "run script", "the container is gone").with_backend(BACKEND))
            }
            Err(error) => Err(failed("run script", &error)),
        }
    }

    /// Puts the process of a command where all that comes of it can be killed.
    async fn confine(&self, exec: &str, command: ExecId) -> Result<()> {
        let begun = Instant::now();
        let pid = loop {
            let found = self.engine.docker.inspect_exec(exec).await.map_err(|error| failed("run script", &error))?;
            match found.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0) {
                Some(pid) => break pid,
                None if !self.is_running().await => return Err(lost(&unheld("the container has ended"))),
                None if begun.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
                None => return Err(unheld("the engine does not tell its number")),
            }
        };
        match self.domains.enter(command, pid) {
            Ok(()) => Ok(()),
            Err(_) if self.has_ended().await => Err(lost(&unheld("the container has ended"))),
            Err(error) => Err(unheld(&error.to_string())),
        }
    }

    /// What a script says. One that should have ended its command by now may have been stopped by it: this host ends both.
    async fn within<T>(&self, limit: Duration, command: Option<ExecId>, collect: impl Future<Output = Result<T>>) -> Result<T> {
        let mut collect = std::pin::pin!(collect);
        if let Ok(collected) = tokio::time::timeout(limit, &mut collect).await {
            return collected;
        }
        if let Some(command) = command {
            self.kill_all(command).await?;
        }
        collect.await
    }

    async fn is_running(&self) -> bool {
        let found = self.engine.docker.inspect_container(&self.container, None).await;
        found.ok().and_then(|found| found.state?.running) == Some(true)
    }

    /// Whether the container has ended, or does while one looks: the engine learns of a death after the kernel.
    async fn has_ended(&self) -> bool {
        let begun = Instant::now();
        while self.is_running().await {
            if begun.elapsed() > NEWS {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
        true
    }

    async fn status(&self, exec: &str) -> Result<i32> {
        let begun = Instant::now();
        loop {
            let found = self.engine.docker.inspect_exec(exec).await.map_err(|error| lost(&failed("run script", &error)))?;
            match (found.running, found.exit_code) {
                (Some(false), Some(code)) => return Ok(i32::try_from(code).unwrap_or(255)),
                _ if begun.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
                _ => return Err(lost(&unheld("the engine does not tell its exit status"))),
            }
        }
    }
}

fn unheld(why: &str) -> Error {
    Error::new(ErrorKind::HostUnable, "run script", format!("a command was not begun, since it could not be held: {why}"))
        .with_backend(BACKEND)
}

/// An error after which nobody knows whether the script ran.
fn lost(error: &Error) -> Error {
    Error::new(ErrorKind::Lost, "run script", error.message().to_owned()).with_backend(BACKEND)
}

#[async_trait]
impl PlainTransport for Scripts {
    fn limits(&self) -> PlainLimits {
        LIMITS
    }

    async fn run(&self, run: PlainRun) -> Result<PlainOutput> {
        let exec = self.create().await?;
        let started = self.engine.docker.start_exec(&exec, None).await.map_err(|error| lost(&failed("run script", &error)))?;
        let StartExecResults::Attached { mut output, mut input } = started else {
            return Err(unheld("the engine gives no streams"));
        };
        if let Some(command) = run.command {
            // The streams end with this call, and the script with its input.
            self.confine(&exec, command).await?;
        }
        // A newline at its end would not count as read; a comment leaves the status alone.
        let script = format!("{}\n{}\n#", run.script.len() + 2, run.script);
        let (taken, is_taken) = oneshot::channel();
        let feed = async move {
            // A script need not read to the end.
            let _ = input.write_all(script.as_bytes()).await;
            if is_taken.await.is_ok() {
                let _ = input.write_all(&run.stdin).await;
            }
            let _ = input.shutdown().await;
            input
        };
        let collect = async {
            let (mut stdout, mut stderr, mut taken) = (Vec::new(), Vec::new(), Some(taken));
            while let Some(part) = output.next().await {
                match part.map_err(|error| lost(&failed("run script", &error)))? {
                    LogOutput::StdOut { message } | LogOutput::Console { message } => {
                        // The first is the word that it has all; the rest is the script's own.
                        let first = taken.take_if(|_| !message.is_empty());
                        stdout.extend_from_slice(&message[usize::from(first.is_some())..]);
                        let _ = first.map(|taken| taken.send(()));
                    }
                    LogOutput::StdErr { message } => {
                        let room = COMPLAINTS - stderr.len();
                        stderr.extend_from_slice(&message[..message.len().min(room)]);
                    }
                    LogOutput::StdIn { .. } => {}
                }
                if stdout.len() > LIMITS.output {
                    return Err(Error::new(ErrorKind::TooLarge, "run script", "it prints more than is carried at once"));
                }
            }
            // Whoever ended before that is sent nothing more.
            drop(taken);
            Ok((stdout, stderr))
        };
        let (_input, collected) = tokio::join!(feed, self.within(run.limit, run.command, collect));
        let (stdout, stderr) = collected?;
        Ok(PlainOutput { status: self.status(&exec).await?, stdout, stderr })
    }

    async fn kill_all(&self, command: ExecId) -> Result<()> {
        let domains = self.domains.clone();
        let killed = tokio::task::spawn_blocking(move || domains.kill(command)).await;
        let killed = killed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        killed.map_err(|error| {
            Error::new(ErrorKind::Io, "kill command", format!("not all that came of it could be killed: {error}"))
                .with_backend(BACKEND)
        })
    }
}
