//! The numbers of system calls, per architecture. Calls whose arguments matter stand in the parent module instead.

use crate::calls::{NEWER, NUMBERED, common_calls, own_calls};

/// This architecture, as the kernel names it to filters.
#[cfg(target_arch = "x86_64")]
pub const AUDIT_ARCH: u32 = 0xc000_003e;
/// This architecture, as the kernel names it to filters.
#[cfg(target_arch = "aarch64")]
pub const AUDIT_ARCH: u32 = 0xc000_00b7;

/// The newest call that this list knows of, allowed or not. `removexattrat`, Linux 6.13.
pub const LAST_KNOWN: u32 = 466;

macro_rules! numbers {
    ($($call:ident),* $(,)?) => {
        &[$(libc::$call),*]
    };
}

const COMMON: &[libc::c_long] = common_calls!(numbers);
const OWN: &[libc::c_long] = own_calls!(numbers);

/// Every call that is allowed whatever its arguments are.
pub fn allowed() -> impl Iterator<Item = u32> {
    let listed = COMMON.iter().chain(OWN).map(|&number| number as u32);
    listed.chain(NEWER.iter().chain(NUMBERED).map(|(number, _)| *number))
}
