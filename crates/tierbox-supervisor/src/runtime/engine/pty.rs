//! Pseudo-terminals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Uid;

use super::sys;
use crate::protocol::WinSize;
use crate::runtime::identity::Identity;

/// What a terminal's line discipline takes for the end of input.
pub const END_OF_INPUT: u8 = 4;

/// Opens a terminal of this size for a user: (the engine's end, the command's end).
///
/// # Errors
/// If the machine has none.
pub fn open(size: &WinSize, user: &Identity) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
    let slave = sys::terminal_peer(master.as_fd())?;
    sys::set_window(master.as_fd(), size.rows, size.cols);
    // So that the user can open it by name. Where that is refused, it belongs to the only user there is.
    let _ = rustix::fs::fchown(&slave, Some(Uid::from_raw(user.uid)), None);
    Ok((master, slave))
}
