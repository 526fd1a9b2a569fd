//! Whether a machine lives, and its end.
//!
//! A machine ends by itself with the last end of its channel, so this is for what a harness left that died in the same moment.
//! bubblewrap writes down the first process and its pid namespace. A number alone could by then belong to another process;
//! with the namespace it cannot.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Pid 1 of the machine, seen from here. `None` if there is no machine.
///
/// # Errors
/// What the file system says, other than that a file is gone.
pub fn first_process(info: &Path) -> std::io::Result<Option<Pid>> {
    let text = match std::fs::read(info) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    // Not yet written in full: bubblewrap was killed before it made anything.
    let Ok(told) = serde_json::from_slice::<serde_json::Value>(&text) else { return Ok(None) };
    let number = |key: &str| told.get(key).and_then(serde_json::Value::as_u64);
    let (Some(pid), Some(namespace)) = (number("child-pid"), number("pid-namespace")) else { return Ok(None) };
    let lives = std::fs::metadata(format!("/proc/{pid}/ns/pid")).is_ok_and(|its| its.ino() == namespace);
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| lives))
}

/// Kills the machine and waits until it is gone, for at most `limit`. Returns whether it is.
///
/// # Errors
/// As [`first_process`].
pub fn end(info: &Path, limit: Duration) -> std::io::Result<bool> {
    let start = Instant::now();
    while let Some(pid) = first_process(info)? {
        if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
            // It may have died, and its number gone to another, before it was opened: ask once more.
            if first_process(info)? == Some(pid) {
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        }
        if start.elapsed() > limit {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}
