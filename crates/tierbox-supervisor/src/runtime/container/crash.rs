//! Crash points: places where a test lets the set-up die, to prove that nothing is left behind.

use crate::runtime::sys;
use crate::setup::Setup;

/// Dies here if the set-up names this point: `clone`, `cgroup`, `map` in the keeper, `mount`, `pivot`, `seccomp`, `ready` in
/// pid 1.
pub fn point(setup: &Setup, name: &str) {
    if setup.crash_at.as_deref() == Some(name) {
        sys::kill_self();
    }
}
