//! A line to a machine that is served: this process hands its own standard input and output to the supervisor, and waits.
//!
//! No byte of the conversation passes through here, so a line costs nothing but the line.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::{EXIT_ENDED, EXIT_NO_MACHINE, intake};
use crate::protocol::{ToSupervisor, encode};
use crate::runtime::sys;

/// The socket's name in the machine's directory.
pub const SOCKET: &str = "socket";

/// Joins the machine that is served in `dir`, until the supervisor lets the line go. `is_first`: its supervisor is the first process
/// here, which nobody else inside can be.
pub fn run(dir: &Path, is_first: bool) -> u8 {
    sys::close_from(3);
    match connect(dir).and_then(|socket| trusted(socket, is_first)).and_then(hand_over) {
        Ok(()) => EXIT_ENDED,
        Err(error) => {
            say(2, &format!("tierbox-supervisor: cannot join the machine in {}: {error}", dir.display()), EXIT_NO_MACHINE)
        }
    }
}

/// Writes a line to a standard descriptor.
pub fn say(descriptor: i32, text: &str, status: u8) -> u8 {
    if let Ok(out) = sys::take_inherited(descriptor) {
        let _ = rustix::io::write(&out, format!("{text}\n").as_bytes());
        std::mem::forget(out);
    }
    status
}

fn connect(dir: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The address has room for 107 bytes only, and paths are longer.
    rustix::process::chdir(dir)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(SOCKET)?)?;
    rustix::process::chdir("/")?;
    Ok(socket)
}

/// Refuses a listener that is somebody else's: who has the line answers for the machine.
fn trusted(socket: OwnedFd, is_first: bool) -> io::Result<OwnedFd> {
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    let own = peer.uid == rustix::process::geteuid() && (!is_first || peer.pid == rustix::process::Pid::INIT);
    let told = || format!("process {} of user {} listens in its place", peer.pid.as_raw_nonzero(), peer.uid.as_raw());
    if own { Ok(socket) } else { Err(io::Error::new(io::ErrorKind::PermissionDenied, told())) }
}

/// Gives the supervisor descriptors 0 and 1, and waits until it closes them.
fn hand_over(socket: OwnedFd) -> io::Result<()> {
    let (input, output) = (sys::take_inherited(0)?, sys::take_inherited(1)?);
    send(&socket, [input.as_fd(), output.as_fd()])?;
    // Their numbers are reused for the null device: who is at the other end must see them closed when the supervisor does.
    std::mem::forget((input, output));
    intake::null_standard_streams(true)?;
    let mut word = [0; 16];
    while rustix::io::retry_on_intr(|| rustix::io::read(&socket, &mut word))? > 0 {}
    Ok(())
}

fn send(socket: &OwnedFd, two: [BorrowedFd<'_>; 2]) -> io::Result<()> {
    let frame = encode(0, &ToSupervisor::Join);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&two));
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
