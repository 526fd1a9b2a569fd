//! What the process was given: its descriptors, its signals, and the frame that says what the machine should be.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Resource, Rlimit};

use super::refusal::{AtStep, Refusal, Step};
use crate::protocol::{FromSupervisor, MAX_FRAME, VERSION, encode};
use crate::runtime::machine::Channel;
use crate::runtime::sys;
use crate::setup::Setup;
use crate::wire::{Reader, Wire};

/// The first number for descriptors that are kept: 0 to 2 are for standard streams alone.
const FIRST_KEPT: i32 = 3;

/// Forgets everything inherited but the channel, and finds out what kind of channel it is.
///
/// # Errors
/// If descriptor 0 is not open, or there is no null device.
pub fn take_channel() -> io::Result<Channel> {
    let first = sys::take_inherited(0)?;
    let socket = FileType::from_raw_mode(rustix::fs::fstat(&first)?.st_mode) == FileType::Socket;
    sys::close_from(FIRST_KEPT as u32);
    sys::reset_signals();
    sys::ordinary_process();
    // No core files of this process or of what it runs, neither as files nor piped to a collector: the kernel takes 1 as
    // "never", while 0 still feeds a collector.
    forbid_cores()?;
    rustix::process::chdir("/")?;
    let read = rustix::io::fcntl_dupfd_cloexec(&first, FIRST_KEPT)?;
    std::mem::forget(first); // Its number is reused for the null device below.
    let channel = if socket {
        keep_sign_of_life();
        Channel::Socket(read)
    } else {
        let write = rustix::io::fcntl_dupfd_cloexec(sys::take_inherited(1)?, FIRST_KEPT)?;
        Channel::Pipes { read, write, joiner: None }
    };
    null_standard_streams(!socket)?;
    Ok(channel)
}

/// Switches core files off.
///
/// # Errors
/// If the limit can neither be set nor is lower already.
fn forbid_cores() -> io::Result<()> {
    match rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) }) {
        // Engines may have put the hard limit to 0, which only the host's root can raise.
        Err(rustix::io::Errno::PERM) if rustix::process::getrlimit(Resource::Core).maximum == Some(0) => Ok(()),
        result => Ok(result?),
    }
}

/// Forgets what a process must not keep that outlives whoever started it: signals, core files, directory, standard streams.
///
/// # Errors
/// If there is no null device.
pub fn settle_in_background() -> io::Result<()> {
    sys::reset_signals();
    sys::ordinary_process();
    forbid_cores()?;
    rustix::process::chdir("/")?;
    null_standard_streams(false)
}

/// A pipe as descriptor 1 beside a socket is a sign of life: whoever holds its other end (a network helper) sees its end when
/// the machine has ended. Nothing is written to it, and no command inherits it.
fn keep_sign_of_life() {
    let Ok(pipe) = sys::take_inherited(1) else { return };
    if rustix::fs::fstat(&pipe).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        && let Ok(kept) = rustix::io::fcntl_dupfd_cloexec(&pipe, FIRST_KEPT)
    {
        std::mem::forget(kept);
    }
    std::mem::forget(pipe); // Its number is reused for the null device.
}

/// Opens the null device as 0, 1 and 2. `keep_stderr` leaves 2 for the diagnostics of whoever started this program.
///
/// # Errors
/// If there is no null device.
pub fn null_standard_streams(keep_stderr: bool) -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::NOFOLLOW, Mode::empty())?;
    for target in 0..if keep_stderr { 2 } else { 3 } {
        sys::replace_standard(null.as_fd(), target)?;
    }
    if rustix::fd::AsRawFd::as_raw_fd(&null) < FIRST_KEPT {
        std::mem::forget(null);
    }
    Ok(())
}

impl Channel {
    /// Where frames come from.
    pub fn reader(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(fd) | Self::Pipes { read: fd, .. } => fd.as_fd(),
        }
    }

    /// Where frames go.
    pub fn writer(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(fd) | Self::Pipes { write: fd, .. } => fd.as_fd(),
        }
    }

    /// Sends a frame of call 0, all of it.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn send(&self, message: &FromSupervisor) -> io::Result<()> {
        let frame = encode(0, message);
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(self.writer(), rest))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => rest = &rest[written..],
            }
        }
        Ok(())
    }

    /// Reads one frame of call 0 and not a byte more: what follows is the engine's.
    ///
    /// # Errors
    /// If the channel ends, or the frame is too long or malformed.
    pub fn receive<M: Wire>(&self) -> io::Result<M> {
        let mut length = [0; 4];
        fill(self.reader(), &mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other("the frame is too long"));
        }
        let mut body = vec![0; length];
        fill(self.reader(), &mut body)?;
        parse(&body).map_err(|error| io::Error::other(error.to_string()))
    }
}

fn parse<M: Wire>(body: &[u8]) -> Result<M, crate::wire::DecodeError> {
    let mut reader = Reader::new(body);
    match u32::get(&mut reader)? {
        0 => {}
        call => return Err(crate::wire::DecodeError::BadTag(call as u8)),
    }
    let message = M::get(&mut reader)?;
    if reader.remaining() == 0 { Ok(message) } else { Err(crate::wire::DecodeError::Trailing) }
}

fn fill(from: BorrowedFd<'_>, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *buffer))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => buffer = &mut buffer[read..],
        }
    }
    Ok(())
}

/// Reads what the machine should be.
///
/// # Errors
/// The refusal of step `setup frame`.
pub fn read_setup(channel: &Channel) -> Step<Setup> {
    let setup: Setup = channel.receive().at("setup frame")?;
    if setup.version != VERSION {
        let detail = format!("the host speaks version {}, this supervisor version {VERSION}", setup.version);
        return Err(Refusal::because("setup frame", detail));
    }
    if setup.id.is_empty() || !setup.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(Refusal::because("setup frame", "the id is not a host name"));
    }
    Ok(setup)
}

/// A pair of connected sockets between the keeper and the supervisor. Not a pipe: either side can end the conversation for all
/// processes that hold its end.
///
/// # Errors
/// If no descriptors are left.
pub fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (unix, stream) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
    Ok(rustix::net::socketpair(unix, stream, rustix::net::SocketFlags::CLOEXEC, None)?)
}
