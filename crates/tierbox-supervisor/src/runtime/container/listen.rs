//! The socket by which a detached machine is found again.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::mount::split;
use super::refusal::{AtStep, Refusal, Step};
use crate::setup::Setup;

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 16;

/// The listening socket and where it lies.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: OwnedFd,
    /// For the keeper, who removes it.
    pub place: Place,
}

/// A name in a directory.
#[derive(Debug)]
pub struct Place {
    parent: OwnedFd,
    name: Vec<u8>,
}

impl Place {
    /// Removes the socket.
    pub fn remove(&self) {
        let _ = rustix::fs::unlinkat(&self.parent, self.name.as_slice(), AtFlags::empty());
    }
}

/// Makes the socket, for its owner alone, if one is asked for.
///
/// # Errors
/// The refusal of step `listen socket`.
pub fn open(setup: &Setup) -> Step<Option<Listener>> {
    let Some(path) = &setup.listen else { return Ok(None) };
    let (parent, name) = split(&path.0).ok_or_else(|| Refusal::because("listen socket", "the path names no file"))?;
    let parent =
        rustix::fs::openat(CWD, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).at("listen socket")?;
    let socket = bind(&parent, name).at("listen socket")?;
    Ok(Some(Listener { socket, place: Place { parent, name: name.to_vec() } }))
}

/// A listening socket of this name, for its owner alone.
///
/// # Errors
/// If something of that name exists, and the system's.
pub fn bind(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The address has room for 107 bytes only, and paths are longer: bind the bare name from within its directory.
    rustix::process::fchdir(parent)?;
    let old = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(name)?);
    rustix::process::umask(old);
    rustix::process::chdir("/")?;
    bound?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
