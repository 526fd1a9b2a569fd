//! Canaries in this machine's network: `tierbox-supervisor canaries NONCE NAME SECONDS`, for verification.
//!
//! It prints where they listen and ends; a second process of this program serves them for so many seconds, or until the machine
//! ends. `NAME` is that of a socket without a path.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::container::{EXIT_ENDED, EXIT_FAILED};
use crate::canary::Listeners;

/// What the second process is told.
const STAY: &str = "stay";
/// Its last line.
const END: &str = "end\n";
/// The longest that canaries stand.
const LONGEST: Duration = Duration::from_secs(120);
/// The most that they tell of themselves.
const MOST: u64 = 16 << 10;

/// Opens them, and returns the exit status.
pub fn run(arguments: &[OsString]) -> u8 {
    let served = match arguments {
        [nonce, name, seconds, stay] if stay == STAY => stay_here(nonce, name, seconds),
        arguments => leave(arguments),
    };
    match served {
        Ok(()) => EXIT_ENDED,
        Err(error) => super::container::say(2, &format!("canaries: {error}"), EXIT_FAILED),
    }
}

/// Has another process open them, and tells what it says. That one lives on, with no stream of this one's: nobody waits for it.
fn leave(arguments: &[OsString]) -> std::io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    // By pipes, as `/dev/null` cannot be opened everywhere.
    command.arg("canaries").args(arguments).arg(STAY).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut told = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout.take(MOST));
        while !told.ends_with(END) && lines.read_line(&mut told)? > 0 {}
    }
    match told.strip_suffix(END) {
        Some(told) => std::io::stdout().write_all(told.as_bytes()),
        None => Err(std::io::Error::other(format!("they were not opened: {}", child.wait()?))),
    }
}

fn stay_here(nonce: &OsString, name: &OsString, seconds: &OsString) -> std::io::Result<()> {
    let seconds = seconds.to_str().and_then(|seconds| seconds.parse().ok()).map_or(LONGEST, Duration::from_secs).min(LONGEST);
    let until = Instant::now() + seconds;
    // Where somebody has that name already, this network is his, and he answers.
    let nameless = SocketAddr::from_abstract_name(name.as_encoded_bytes()).and_then(|address| UnixListener::bind_addr(&address));
    let listeners = Listeners::open(&nonce.to_string_lossy(), nameless.into_iter().collect())?;
    let mut stdout = std::io::stdout();
    stdout.write_all(format!("{}{END}", listeners.told()?).as_bytes())?;
    stdout.flush()?;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let mut fds: Vec<PollFd<'_>> =
            listeners.descriptors().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let wait = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(1), tv_nsec: left.subsec_nanos().into() };
        let _ = poll(&mut fds, Some(&wait));
        listeners.answer();
    }
    Ok(())
}
