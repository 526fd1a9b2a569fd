//! A supervisor that outlives the line by which it was started: one process for each machine that somebody else isolates.
//!
//! `serve DIR` makes the socket `DIR/socket`, leaves a supervisor behind it in the background, and joins it. The first client
//! sends the set-up, as on any new machine; later ones `join DIR` and say which session they go on with. When the machine has ended
//! the directory is removed.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags};

use super::{EXIT_NO_CHANNEL, EXIT_REFUSED, guest, intake, join, listen, refuse};
use crate::protocol::{ToSupervisor, encode};
use crate::runtime::machine::Channel;
use crate::runtime::sys::{self, Fork};
use crate::setup::Mode as MachineMode;

/// How long the first client may take.
const FIRST_CLIENT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Starts a machine in `dir` and joins it.
pub fn run(dir: &Path) -> u8 {
    sys::close_from(3);
    match start(dir) {
        Ok(Fork::Child) => EXIT_NO_CHANNEL,
        Ok(Fork::Parent(_)) => join::run(dir, false),
        Err(error) => {
            join::say(2, &format!("tierbox-supervisor: cannot serve a machine in {}: {error}", dir.display()), EXIT_REFUSED)
        }
    }
}

/// Makes the socket and the supervisor behind it. Does not return in the supervisor.
fn start(dir: &Path) -> io::Result<Fork> {
    let place =
        rustix::fs::openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&place)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Err(io::Error::other("the directory is not for its owner alone"));
    }
    let listener = listen::bind(&place, join::SOCKET.as_bytes())?;
    drop(place);
    let forked = sys::fork_into(0)?;
    if matches!(forked, Fork::Child) {
        let status = serve(listener);
        let _ = std::fs::remove_dir_all(dir);
        std::process::exit(status.into());
    }
    Ok(forked)
}

fn serve(listener: OwnedFd) -> u8 {
    let _ = rustix::process::setsid();
    let Ok(channel) = first_line(&listener) else { return EXIT_NO_CHANNEL };
    let setup = match intake::read_setup(&channel) {
        Ok(setup) => setup,
        Err(refusal) => return refuse(&channel, &refusal),
    };
    if setup.mode != MachineMode::Guest {
        return refuse(&channel, &super::Refusal::because("setup frame", "only machines that are isolated already are served"));
    }
    guest::run_with(setup, channel, Some(listener))
}

/// Forgets everything inherited, and waits for the first client.
fn first_line(listener: &OwnedFd) -> io::Result<Channel> {
    intake::settle_in_background()?;
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    if rustix::io::retry_on_intr(|| poll(&mut ready, Some(&FIRST_CLIENT)))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let joiner = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    let [read, write] = received(&joiner)?;
    for end in [&read, &write] {
        // The set-up is read before anything can be waited for.
        rustix::fs::fcntl_setfl(end, rustix::fs::fcntl_getfl(end)? - OFlags::NONBLOCK)?;
    }
    Ok(Channel::Pipes { read, write, joiner: Some(joiner) })
}

/// The descriptors of a joiner.
fn received(joiner: &OwnedFd) -> io::Result<[OwnedFd; 2]> {
    let expected = encode(0, &ToSupervisor::Join);
    let mut frame = vec![0; expected.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let message = rustix::net::recvmsg(joiner.as_fd(), &mut [IoSliceMut::new(&mut frame)], &mut ancillary, flags)?;
    let bytes = message.bytes;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let whole = bytes == expected.len() && frame == expected;
    let two = descriptors.try_into().ok().filter(|_| whole);
    two.ok_or_else(|| io::Error::other("the first client is no joiner"))
}
