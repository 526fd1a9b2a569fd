//! Vagrant as a subprocess: in a process group of its own, its output followed in a file, so that nothing waits for a pipe
//! that somebody else holds.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tierbox_core::{Error, ErrorKind, Result};

use crate::cause::explain;
use crate::place::{ASKS, GONE, Place, Source};
use crate::record::{Record, shown};
use crate::{BACKEND, cause, groups};

/// How often the output is looked at.
const BEAT: Duration = Duration::from_millis(40);

/// How long Vagrant may take to end by itself when it is interrupted: it then removes what it was making.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many records are kept of one call.
const MAX_RECORDS: usize = 5000;

/// How much is read of its output at a time, so that the clock is looked at in between.
const MAX_READ: usize = 1 << 20;

/// The most that it may print. Beyond it a provisioner fills this host's disk.
const MAX_OUTPUT: u64 = 256 << 20;

/// How long a machine that another call of Vagrant works on is waited for.
const LOCKED: Duration = Duration::from_secs(120);

/// The command that asks what to start before it starts anything. What `hear` then returns is its answer.
pub const UP: &str = "up";

/// Who hears what Vagrant says, and may answer.
pub type Hear<'a> = dyn FnMut(&Record) -> Option<String> + Send + 'a;

/// Runs Vagrant to its end. `hear` is told each record as it comes, and the first thing that it returns is said to [`UP`].
///
/// # Errors
/// `MissingEngine` if Vagrant is not installed; `Timeout`, after which it is interrupted; and what it says itself, with its
/// last lines.
pub async fn run(place: &Place, source: Source, arguments: &[&str], limit: Duration, hear: &mut Hear<'_>) -> Result<Vec<Record>> {
    let started = Instant::now();
    let mut is_second = false;
    loop {
        let left = limit.saturating_sub(started.elapsed());
        let records = once(place, source, arguments, left, hear).await?;
        let Some(failure) = cause::failure(&records) else { return Ok(records) };
        if failure.is_locked() && started.elapsed() < LOCKED.min(limit) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        let error = explain(arguments[0], &records);
        // All that we have it do may be done twice.
        if cause::is_accident(&records) && !std::mem::replace(&mut is_second, true) {
            tracing::warn!(target: "tierbox::vagrant", token = place.token, "once more: {}", error.message());
            continue;
        }
        return Err(error);
    }
}

/// One process. Its failure is a record: the error that it ended with, or one that says how it ended.
async fn once(place: &Place, source: Source, arguments: &[&str], limit: Duration, hear: &mut Hear<'_>) -> Result<Vec<Record>> {
    let log = place.file("log").join(format!("{}.log", arguments[0]));
    let mut output = Follower::new(&log)?;
    let (input, mut answer) = input(arguments)?;
    let mut running = Running::start(place, source, arguments, input, output.writer()?)?;
    let mut records = VecDeque::new();
    let mut take = |record: Record, records: &mut VecDeque<Record>| {
        if let Some(message) = record.message() {
            tracing::debug!(target: "tierbox::vagrant", token = place.token, machine = record.machine, "{}", shown(message));
        }
        if let Some(said) = hear(&record)
            && let Some(mut answer) = answer.take()
        {
            // One that has ended meanwhile tells why.
            let _ = answer.write_all(said.as_bytes());
        }
        if records.len() == MAX_RECORDS {
            records.pop_front();
        }
        records.push_back(record);
    };
    let started = Instant::now();
    let verb = arguments[0];
    let status = loop {
        let ended = running.ended()?;
        let is_all = output.lines(&mut |line| take(Record::read(&line), &mut records))?;
        match ended {
            Some(status) if is_all => break status,
            None if is_all => tokio::time::sleep(BEAT).await,
            // What it said at last is behind the rest.
            _ => tokio::task::yield_now().await,
        }
        let error = if output.read > MAX_OUTPUT {
            Error::new(ErrorKind::LimitReached, "run vagrant", format!("`vagrant {verb}` printed more than {MAX_OUTPUT} bytes"))
                .with_help("have the provisioners of the Vagrantfile print less")
        } else if started.elapsed() > limit {
            let last = cause::last_lines(&records);
            Error::new(ErrorKind::Timeout, "run vagrant", format!("`vagrant {verb}` did not end within {limit:?}{last}"))
                .with_help("raise limits.startup if the machine is slow to boot, or look at its console")
        } else {
            continue;
        };
        return Err(error.with_backend(BACKEND));
    };
    let mut records = Vec::from(records);
    if !status.success() && cause::failure(&records).is_none() {
        let data = vec![cause::ENDED.to_owned(), format!("vagrant ended with {status}")];
        records.push(Record { machine: String::new(), kind: "error-exit".to_owned(), data });
    }
    Ok(records)
}

/// What Vagrant reads, and the other end of it where it asks something: nothing is left to ask once that is closed.
fn input(arguments: &[&str]) -> Result<(OwnedFd, Option<PipeWriter>)> {
    let failed = |error| Error::io("run vagrant", error).with_backend(BACKEND);
    if arguments[0] != UP {
        return Ok((File::open("/dev/null").map_err(failed)?.into(), None));
    }
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    Ok((reader.into(), Some(writer)))
}

/// A program with arguments and surroundings as Vagrant gets them.
fn prepared(program: &str, place: &Place, source: Source, arguments: &[&str]) -> Result<duct::Expression> {
    let mut expression = duct::cmd(program, arguments.iter().chain(&["--machine-readable"])).dir(place.working_directory(source));
    for (name, value) in place.variables(source)? {
        expression = expression.env(name, value);
    }
    // These are for us alone to set. Of two that speak of one variable, the one that was said first wins.
    let expression = if source == Source::Own { expression.env_remove(GONE) } else { expression };
    Ok(if arguments[0] == UP { expression.env(ASKS, "1") } else { expression.env_remove(ASKS) })
}

/// A process of Vagrant's. Dropped before its end, it is interrupted, and killed if that does not help.
struct Running {
    handle: Option<duct::Handle>,
    group: Option<Pid>,
    place: Place,
}

impl Running {
    fn start(place: &Place, source: Source, arguments: &[&str], input: OwnedFd, output: File) -> Result<Self> {
        let expression = prepared("vagrant", place, source, arguments)?.stdin_file(input);
        let expression = expression.stderr_to_stdout().stdout_file(output).unchecked();
        let expression = expression.before_spawn(|command| {
            command.process_group(0);
            Ok(())
        });
        let handle = expression.start().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound if place.working_directory(source).is_dir() => {
                Error::new(ErrorKind::MissingEngine, "run vagrant", "vagrant is not installed, or not on the PATH")
                    .with_backend(BACKEND)
                    .with_help("install Vagrant and the plugin of your provider; `tierbox doctor` says what is missing")
            }
            _ => Error::io("run vagrant", error).with_backend(BACKEND),
        })?;
        let group = handle.pids().first().and_then(|pid| Pid::from_raw(*pid as i32));
        let running = Self { handle: Some(handle), group, place: place.clone() };
        if let Some(group) = group {
            groups::note(place, group)?;
        }
        Ok(running)
    }

    fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        let Some(handle) = &self.handle else { return Ok(None) };
        let waited = handle.try_wait().map_err(|error| Error::io("wait for vagrant", error).with_backend(BACKEND))?;
        let status = waited.map(|output| output.status);
        if status.is_some() {
            self.handle = None;
            self.group.iter().for_each(|group| groups::forget(&self.place, *group));
        }
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Some(handle), Some(group)) = (self.handle.take(), self.group) else { return };
        // Written down, so that whoever removes the environment next does not do it once more: Ruby would end at once.
        groups::interrupt(&self.place, group);
        std::thread::spawn(move || {
            let started = Instant::now();
            while matches!(handle.try_wait(), Ok(None)) {
                if started.elapsed() > PATIENCE {
                    let _ = kill_process_group(group, Signal::KILL);
                    let _ = handle.wait();
                    return;
                }
                std::thread::sleep(BEAT);
            }
        });
    }
}

/// A file that is read while somebody else writes to it.
struct Follower {
    path: PathBuf,
    file: File,
    rest: Vec<u8>,
    read: u64,
}

impl Follower {
    fn new(path: &std::path::Path) -> Result<Self> {
        crate::place::write_private(path, b"")?;
        let file = File::open(path).map_err(|error| Error::io("open log", error).with_backend(BACKEND))?;
        Ok(Self { path: path.to_owned(), file, rest: Vec::new(), read: 0 })
    }

    fn writer(&self) -> Result<File> {
        let file = std::fs::OpenOptions::new().append(true).open(&self.path);
        file.map_err(|error| Error::io("open log", error).with_backend(BACKEND))
    }

    /// Passes on lines that are whole by now, as many as one look may take. Returns whether these are all.
    fn lines(&mut self, hear: &mut dyn FnMut(String)) -> Result<bool> {
        let mut chunk = vec![0; 64 << 10];
        let mut taken = 0;
        while taken < MAX_READ {
            let count = self.file.read(&mut chunk).map_err(|error| Error::io("read log", error).with_backend(BACKEND))?;
            if count == 0 {
                return Ok(true);
            }
            taken += count;
            self.read += count as u64;
            self.rest.extend_from_slice(&chunk[..count]);
            let mut whole = 0;
            while let Some(length) = self.rest[whole..].iter().position(|byte| *byte == b'\n') {
                hear(String::from_utf8_lossy(&self.rest[whole..whole + length]).trim_end_matches('\r').to_owned());
                whole += length + 1;
            }
            self.rest.drain(..whole);
            if self.rest.len() > MAX_READ {
                self.rest.clear();
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_vagrantfile_is_left_out_where_that_is_asked_for_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            token: "0a1b2c3d".into(),
            directory: dir.path().join("p"),
            vagrantfile: dir.path().join("Vagrantfile"),
            provider: "lxc".into(),
            isolated: None,
        };
        place.write(&std::collections::BTreeMap::new(), false).unwrap();
        let said = |source| {
            let prepared = prepared("sh", &place, source, &["-c", "echo \"${TIERBOX_VAGRANT_GONE-none} $VAGRANT_CWD\""]).unwrap();
            prepared.read().unwrap()
        };
        assert_eq!(said(Source::Own), format!("none {}", dir.path().display()));
        assert_eq!(said(Source::Gone), format!("1 {}", place.directory.display()));
        let inherited = prepared("sh", &place, Source::Own, &["-c", "echo ${TIERBOX_VAGRANT_GONE-none}"]).unwrap();
        // What is said last counts as what was there before.
        assert_eq!(inherited.env(GONE, "1").read().unwrap(), "none");
    }

    #[test]
    fn one_look_at_endless_output_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Follower::new(&dir.path().join("log")).unwrap();
        let mut writer = output.writer().unwrap();
        writer.write_all("line\n".repeat(500_000).as_bytes()).unwrap();
        writer.write_all(b"not whole").unwrap();
        let (mut count, mut looks) = (0, 1);
        while !output.lines(&mut |line| count += usize::from(line == "line")).unwrap() {
            looks += 1;
        }
        assert!(looks >= 3 && count == 500_000, "{count} lines in {looks} looks");
        writer.write_all(b" yet\n").unwrap();
        let mut last = String::new();
        assert!(output.lines(&mut |line| last = line).unwrap());
        assert_eq!(last, "not whole yet");
    }
}
