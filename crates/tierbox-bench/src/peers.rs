//! What tierbox is held against: the floor of the kernel, and bubblewrap.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::Failure;

/// The program that both sides run.
pub(crate) const TRUE: &str = "/bin/true";

/// Starts a program and waits for it. The standard library uses `posix_spawn` for a command as plain as this.
pub(crate) fn spawn_and_wait() -> Result<Duration, Failure> {
    timed(&mut Command::new(TRUE))
}

/// Runs a command to its end, which must be a good one.
pub(crate) fn timed(command: &mut Command) -> Result<Duration, Failure> {
    let start = Instant::now();
    let status = command.status().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    let time = start.elapsed();
    if status.success() { Ok(time) } else { Err(format!("{command:?}: {status}").into()) }
}

/// Bubblewrap with everything unshared and the usual binds.
pub(crate) fn bwrap() -> Command {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr"]);
    for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
        let path = PathBuf::from("/").join(name);
        match std::fs::read_link(&path) {
            Ok(target) => drop(command.arg("--symlink").arg(target).arg(&path)),
            Err(_) if path.is_dir() => drop(command.arg("--ro-bind").arg(&path).arg(&path)),
            Err(_) => {}
        }
    }
    command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/workspace", "--chdir", "/workspace", TRUE]);
    command.stdin(Stdio::null());
    command
}

/// Reads `bytes` bytes of zeros from `head` through a pipe.
pub(crate) fn pipe(bytes: u64) -> Result<Duration, Failure> {
    let start = Instant::now();
    let mut child = Command::new("head")
        .args(["-c", &bytes.to_string(), "/dev/zero"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("head: {error}"))?;
    let mut stdout = child.stdout.take().ok_or("head has no output")?;
    let read = drain(&mut stdout)?;
    child.wait()?;
    if read == bytes { Ok(start.elapsed()) } else { Err(format!("{read} bytes came of {bytes}").into()) }
}

fn drain(reader: &mut impl std::io::Read) -> Result<u64, Failure> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}

/// Copies a file with `cp`.
pub(crate) fn cp(from: &Path, to: &Path) -> Result<Duration, Failure> {
    timed(Command::new("cp").arg(from).arg(to))
}
