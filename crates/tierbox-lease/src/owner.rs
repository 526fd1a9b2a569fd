//! Who this process is, as far as `/proc` tells.

use std::fmt;
use std::os::unix::fs::MetadataExt;

use tierbox_core::{Hold, LeaseRecord, Owner};

/// Describes the calling process.
pub(crate) fn current() -> Owner {
    Owner {
        pid: std::process::id(),
        start_ticks: start_ticks("self").unwrap_or(0),
        boot_id: boot_id().unwrap_or_default(),
        pid_namespace: std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino()),
        uid: rustix::process::geteuid().as_raw(),
    }
}

/// Who has a lease locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The process that made it.
    Owner(u32),
    /// A process that ends it, renews it or looks after it.
    Another,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(pid) => write!(f, "in use by process {pid}"),
            Self::Another => f.write_str("another tierbox process is at work on it, such as a clean-up"),
        }
    }
}

/// Who holds the lock of this lease, which is held. A lease that was let go of, or whose owner died, is not held by its owner.
pub(crate) fn holder(record: &LeaseRecord) -> Holder {
    let is_owners = record.hold == Hold::Process && may_live(&record.owner);
    if is_owners { Holder::Owner(record.owner.pid) } else { Holder::Another }
}

/// Whether a process may be alive: for sure only where it can be seen.
fn may_live(owner: &Owner) -> bool {
    let own = current();
    if owner.boot_id != own.boot_id || owner.pid_namespace != own.pid_namespace || owner.start_ticks == 0 {
        return true;
    }
    start_ticks(&owner.pid.to_string()) == Some(owner.start_ticks)
}

fn start_ticks(process: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The command's name may hold spaces and parentheses; the fields after its last parenthesis do not.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod unit {
    #[test]
    fn proc_describes_this_process() {
        let owner = super::current();
        assert_eq!(owner.pid, std::process::id());
        assert!(owner.start_ticks > 0 && owner.pid_namespace > 0);
        assert_eq!(owner.boot_id.len(), 36);
    }
}
