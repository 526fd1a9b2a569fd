//! What pid 1 may do, and what the programs that it starts may ever do.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::refusal::{AtStep, Step};
use crate::runtime::sys;

/// What `root` inside can have: docker's default, less SYS_PTRACE (never in it), NET_RAW, MKNOD and SYS_CHROOT.
const BOUNDING: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// What pid 1 keeps, in its own user namespace only. The engine itself needs SETUID, SETGID and SETPCAP (to become the user of
/// an exec or a file operation), KILL (to end processes of every user), CHOWN, FOWNER and DAC_OVERRIDE (to hand terminals over
/// and to make what a user's directory needs). The rest is there for two reasons:
/// - with no_new_privs a program gets nothing that its parent did not have, so `root` inside can have what pid 1 keeps, at most;
/// - a process may only be traced by one that has all its capabilities. `root` inside cannot have SYS_PTRACE, so nobody inside
///   can read or change pid 1's memory. Pid 1 does not use it.
const KEPT: CapabilitySet = BOUNDING.union(CapabilitySet::SYS_PTRACE);

/// How many capabilities the interface has room for.
const ROOM: u32 = 64;

/// Gives up everything that only the set-up needed. A twin may be told to leave one of the two out.
///
/// # Errors
/// The refusal of step `capabilities`.
pub fn reduce(capabilities: bool, no_new_privs: bool) -> Step {
    if capabilities {
        drop_all_but_few()?;
    }
    if no_new_privs { rustix::thread::set_no_new_privs(true).at("no_new_privs") } else { Ok(()) }
}

fn drop_all_but_few() -> Step {
    drop_bounding().at("capabilities")?;
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).at("capabilities")
}

fn drop_bounding() -> io::Result<()> {
    for capability in (0..ROOM).filter(|&number| BOUNDING.bits() & (1 << number) == 0) {
        match sys::drop_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last one that this kernel has.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn nobody_inside_can_have_all_that_pid_1_has() {
        assert!(!BOUNDING.contains(KEPT));
        assert!(!BOUNDING.intersects(CapabilitySet::SYS_PTRACE | CapabilitySet::NET_RAW | CapabilitySet::MKNOD));
        assert!(!BOUNDING.intersects(CapabilitySet::SYS_CHROOT | CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN));
    }
}
