//! Shells that are kept: each serves one script after the other, so that a script costs neither a session of the transport's nor a
//! shell of its own.
//!
//! A shell reads from its line what it is to run, and says a mark when a script has ended: as nobody else knows that, all before it is
//! what the script printed, byte by byte. A shell runs one script at a time; several run side by side in several shells.
//! One that breaks, is given up in the middle, or says anything after a mark is thrown away, and what it ran is lost, not repeated.

use std::sync::Mutex;

use async_trait::async_trait;
use tierbox_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PlainOutput, PlainRun};
use crate::errors::lock;
use crate::line::Line;

/// What a line is opened to, after what becomes the user who runs scripts: a shell that reads what it is to run. Nothing of its
/// surroundings gets to a command.
pub const COMMAND: &str = "env -i /bin/sh";

/// How many shells wait for work. What is opened beyond that, for calls at the same time, is closed when it is idle: whoever carries the
/// lines may bound how many there are.
const IDLE: usize = 3;

/// How much is read at once.
const BUFFER: usize = 64 << 10;

/// Opens shells: the transport's part.
#[async_trait]
pub trait Open: Send + Sync {
    /// Opens a line to [`COMMAND`] in the machine, always as the same user. Called on the [driver](crate::driver).
    ///
    /// # Errors
    /// Any: nothing has run.
    async fn open(&self) -> Result<Line>;
}

/// The shells of a machine.
pub struct Shells<O> {
    opener: O,
    most: usize,
    idle: Mutex<Vec<Line>>,
}

impl<O> std::fmt::Debug for Shells<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shells").field("idle", &lock(&self.idle).len()).finish_non_exhaustive()
    }
}

impl<O: Open> Shells<O> {
    /// None is open yet. `most` is the longest output of a script.
    pub fn new(opener: O, most: usize) -> Self {
        Self { opener, most, idle: Mutex::default() }
    }

    /// Runs a script that [shares](PlainRun::shares) a shell. What it complains is not kept.
    ///
    /// # Errors
    /// `Lost` where it may have run; `TooLarge`; what opening a shell came to.
    pub async fn run(&self, run: &PlainRun) -> Result<PlainOutput> {
        let idle = lock(&self.idle).pop();
        let mut shell = match idle {
            Some(shell) => shell,
            None => self.opener.open().await?,
        };
        let mark = mark()?;
        // Whoever gives up in the middle drops the shell.
        let ran = async {
            send(&mut shell, &run.script, &mark).await?;
            receive(&mut shell, &mark, self.most).await
        };
        match ran.await {
            Ok((output, rest)) => {
                let mut idle = lock(&self.idle);
                if rest == 0 && idle.len() < IDLE {
                    idle.push(shell);
                }
                Ok(output)
            }
            Err(error) => {
                // What broke one may have broken all.
                lock(&self.idle).clear();
                Err(error)
            }
        }
    }
}

fn mark() -> Result<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| Error::new(ErrorKind::Io, "run script", error.to_string()))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn lost(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Lost, "run script", format!("the shell went away: {why}"))
}

/// The script runs in a process of its own, which inherits nothing but its output. The shell has read all of it before it begins.
async fn send(shell: &mut Line, script: &str, mark: &str) -> Result<()> {
    let text =
        format!("printf '%s\\n' {mark}\n( TIERBOX_KEPT=1\n{script}\n) </dev/null 2>/dev/null\nprintf '\\n%s %s\\n' {mark} $?\n");
    shell.writer.write_all(text.as_bytes()).await.map_err(lost)?;
    shell.writer.flush().await.map_err(lost)
}

/// Reads what a script prints between the marks. Also tells how much came before and after.
async fn receive(shell: &mut Line, mark: &str, most: usize) -> Result<(PlainOutput, usize)> {
    let (begin, sign) = (format!("{mark}\n").into_bytes(), format!("\n{mark} ").into_bytes());
    let mut bytes = Vec::new();
    let junk = loop {
        more(shell, &mut bytes, most).await?;
        if let Some(at) = position(&bytes, &begin) {
            bytes.drain(..at + begin.len());
            break at;
        }
    };
    let mut looked = 0;
    loop {
        let found = position(&bytes[looked..], &sign).map(|at| looked + at);
        if let Some((at, (status, rest))) = found.and_then(|at| Some((at, status(&bytes[at + sign.len()..])?))) {
            bytes.truncate(at);
            let status = status.ok_or_else(|| lost("it tells no status"))?.into();
            return Ok((PlainOutput { status, stdout: bytes, stderr: Vec::new() }, junk + rest));
        }
        looked = bytes.len().saturating_sub(sign.len() + 8);
        more(shell, &mut bytes, most).await?;
    }
}

async fn more(shell: &mut Line, bytes: &mut Vec<u8>, most: usize) -> Result<()> {
    if bytes.len() > most.saturating_add(BUFFER) {
        return Err(Error::new(ErrorKind::TooLarge, "run script", "it prints more than is carried at once"));
    }
    bytes.reserve(BUFFER);
    match shell.reader.read_buf(bytes).await.map_err(lost)? {
        0 => Err(lost("its output ended")),
        _ => Ok(()),
    }
}

/// The status after a mark, if the line is whole, and how much follows it.
fn status(bytes: &[u8]) -> Option<(Option<u8>, usize)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let status = std::str::from_utf8(&bytes[..end]).ok().and_then(|text| text.parse().ok());
    Some((status, bytes.len() - end - 1))
}

fn position(bytes: &[u8], sign: &[u8]) -> Option<usize> {
    bytes.windows(sign.len()).position(|window| window == sign)
}

#[cfg(test)]
mod unit {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    /// Shells of this host, by `program`; counts them.
    struct Here {
        program: &'static [&'static str],
        opened: AtomicUsize,
    }

    #[async_trait]
    impl Open for Here {
        async fn open(&self) -> Result<Line> {
            self.opened.fetch_add(1, Ordering::Relaxed);
            let mut command = tokio::process::Command::new(self.program[0]);
            command.args(&self.program[1..]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
            let mut child = command.kill_on_drop(true).spawn().map_err(|error| Error::io("start shell", error))?;
            let (reader, writer) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
            Ok(Line::new(reader, writer).keeping(child))
        }
    }

    fn shells(program: &'static [&'static str]) -> Shells<Here> {
        Shells::new(Here { program, opened: AtomicUsize::new(0) }, 1 << 20)
    }

    const EACH: [&[&str]; 3] = [&["sh"], &["busybox", "sh"], &["bash"]];

    fn run(script: &str) -> PlainRun {
        PlainRun::new(script, Bytes::new(), Duration::from_secs(20))
    }

    fn is_there(program: &[&str]) -> bool {
        std::process::Command::new(program[0]).args(&program[1..]).args(["-c", ":"]).status().is_ok_and(|status| status.success())
    }

    #[tokio::test]
    async fn one_shell_serves_all_and_each_gets_its_own_bytes() {
        for program in EACH.into_iter().filter(|program| is_there(program)) {
            let shells = shells(program);
            for (script, status, stdout) in [
                ("printf 'a\\000\\n\\377'; exit 3", 3, b"a\0\n\xff".as_slice()),
                ("printf '\\n\\n'", 0, b"\n\n"),
                (":", 0, b""),
                ("cat; x=1; cd /tmp; exec 2>&1; trap 'echo no' EXIT; trap - EXIT", 0, b""),
                ("echo ${x-none}; echo it\\'s '\n' # the end", 0, b"none\nit's \n\n"),
            ] {
                let output = shells.run(&run(script)).await.unwrap();
                assert_eq!((output.status, output.stdout.as_slice()), (status, stdout), "{program:?}: {script}");
            }
            assert_eq!(shells.opener.opened.load(Ordering::Relaxed), 1, "{program:?}");
        }
    }

    #[tokio::test]
    async fn what_goes_on_neither_holds_the_call_nor_gets_into_the_next() {
        let shells = shells(EACH[0]);
        let first = shells.run(&run("sleep 100 >/dev/null & echo $!")).await.unwrap();
        let pid: u32 = String::from_utf8(first.stdout).unwrap().trim().parse().unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        // One that kept the output: its shell is not used again.
        let dir = tempfile::tempdir().unwrap();
        let (go, gone) = (dir.path().join("go"), dir.path().join("gone"));
        let script =
            format!("( until [ -e {} ]; do sleep 0.01; done; echo late; : >{} ) & kill {pid}", go.display(), gone.display());
        shells.run(&run(&script)).await.unwrap();
        let held = lock(&shells.idle).pop().unwrap();
        std::fs::write(&go, "").unwrap();
        let said = async {
            while !gone.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), said).await.unwrap();
        lock(&shells.idle).push(held);
        assert_eq!(shells.run(&run("echo mine")).await.unwrap().stdout, b"mine\n");
        assert!(lock(&shells.idle).is_empty());
    }

    #[tokio::test]
    async fn a_shell_that_ends_loses_its_call_and_the_next_has_another() {
        let shells = shells(EACH[0]);
        for script in ["kill -KILL $$", "exec >&-; kill -KILL $$"] {
            assert_eq!(shells.run(&run(script)).await.unwrap_err().kind(), ErrorKind::Lost);
            assert_eq!(shells.run(&run("echo there")).await.unwrap().stdout, b"there\n");
        }
        let much = shells.run(&run("head -c 3000000 /dev/zero")).await.unwrap_err();
        assert_eq!(much.kind(), ErrorKind::TooLarge);
        let given_up = tokio::time::timeout(Duration::from_millis(50), shells.run(&run("sleep 2"))).await;
        assert!(given_up.is_err());
        assert_eq!(shells.run(&run("echo there")).await.unwrap().stdout, b"there\n");
    }

    #[tokio::test]
    async fn several_run_side_by_side() {
        let shells = shells(EACH[0]);
        let dir = tempfile::tempdir().unwrap();
        // Each waits for all the others.
        let script = |number: u32| {
            let path = dir.path().display();
            run(&format!(
                ": >{path}/{number}; until [ -e {path}/1 ] && [ -e {path}/2 ] && [ -e {path}/5 ]; do sleep 0.01; done; echo {number}"
            ))
        };
        let scripts = [1, 2, 3, 4, 5].map(script);
        let run = |index: usize| shells.run(&scripts[index]);
        let (a, b, c, d, e) = tokio::join!(run(0), run(1), run(2), run(3), run(4));
        for (number, output) in (1..).zip([a, b, c, d, e]) {
            assert_eq!(output.unwrap().stdout, format!("{number}\n").into_bytes());
        }
        assert_eq!(lock(&shells.idle).len(), IDLE);
    }
}
