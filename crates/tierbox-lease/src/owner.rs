//! Who this process is, as far as `/proc` tells.

use std::os::unix::fs::MetadataExt;

use tierbox_core::Owner;

/// Describes the calling process.
pub(crate) fn current() -> Owner {
    Owner {
        pid: std::process::id(),
        start_ticks: start_ticks().unwrap_or(0),
        boot_id: boot_id().unwrap_or_default(),
        pid_namespace: std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino()),
        uid: rustix::process::geteuid().as_raw(),
    }
}

fn start_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
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
