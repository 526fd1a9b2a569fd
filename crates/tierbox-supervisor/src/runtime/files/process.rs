//! The worker as a process: forked from pid 1, stripped of all that pid 1 has, and never returning.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::serve;
use crate::runtime::identity::Identity;

/// Where the worker keeps its socket; 0 to 2 hold the place of the standard streams.
const SOCKET: RawFd = 3;

/// Forks a worker; returns the engine's end of its socket, and its process id.
pub fn fork(identity: &Identity, workdir: &[u8], doors: &[RawFd]) -> io::Result<(OwnedFd, i32)> {
    let (engine, worker) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let parent = std::process::id();
    // SAFETY: the child runs `become_worker`, which never returns. The caller is single-threaded in the program; in a
    // threaded test glibc's own fork handlers keep its allocator usable in the child.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => become_worker(worker, parent, identity, workdir, doors),
        pid => Ok((engine, pid)),
    }
}

/// The child's whole life.
fn become_worker(socket: OwnedFd, parent: u32, identity: &Identity, workdir: &[u8], doors: &[RawFd]) -> ! {
    // Unwinding into the caller's frames would make a second supervisor of it.
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        reset_signals();
        enter(doors)?;
        let socket = keep_only(socket)?;
        let assumed = drop_privileges(identity);
        die_with_parent(parent)?;
        serve::serve(socket, workdir, assumed);
        io::Result::Ok(())
    }));
    let code = if matches!(ended, Ok(Ok(()))) { 0 } else { 1 };
    // SAFETY: `_exit` ends the process without running the handlers and destructors that belong to the parent.
    unsafe { libc::_exit(code) }
}

/// Enters cgroups. One that cannot be entered ends the worker: it would write past the machine's limits.
fn enter(doors: &[RawFd]) -> io::Result<()> {
    for door in doors {
        // SAFETY: a plain system call on a constant; the engine keeps the descriptors open across the fork.
        if unsafe { libc::write(*door, b"0".as_ptr().cast(), 1) } != 1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn reset_signals() {
    // SAFETY: plain system calls on locals; no handler is installed.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // A reader that went away and a file size limit are answered as errors, not by dying.
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // Out of the reach of a terminal's signals.
        libc::setsid();
    }
}

/// Closes every descriptor but the socket, which becomes number 3, before any identity is dropped: the engine's channel
/// and cgroups must not be in reach of the agent's user even for an instant.
fn keep_only(socket: OwnedFd) -> io::Result<OwnedFd> {
    let old = socket.into_raw_fd();
    // SAFETY: numbers only; everything that other owners in this copied address space hold is never used or dropped,
    // since the process only ends by `_exit`.
    let socket = unsafe {
        if old != SOCKET && libc::dup3(old, SOCKET, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(SOCKET)
    };
    close_from(SOCKET + 1);
    occupy_standard_streams(&socket);
    Ok(socket)
}

fn close_from(first: RawFd) {
    // SAFETY: closes numbers; see `keep_only`.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) == 0 {
            return;
        }
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        for number in first..RawFd::try_from(limit.rlim_cur).unwrap_or(1 << 20).min(1 << 20) {
            libc::close(number);
        }
    }
}

/// Puts something harmless on 0 to 2, so that no file opened later gets such a number and a stray message its contents.
fn occupy_standard_streams(socket: &OwnedFd) {
    // SAFETY: plain system calls with a constant path.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        // Without /dev the socket's own number stands in, shut for nobody's use: a directory opened by path only.
        let filler = if null >= 0 { null } else { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
        for number in 0..3 {
            if filler != number {
                libc::dup3(filler, number, libc::O_CLOEXEC);
            }
        }
        if filler > socket.as_raw_fd() {
            libc::close(filler);
        }
    }
}

fn drop_privileges(identity: &Identity) -> io::Result<()> {
    if !is_already(identity)? {
        identity.assume()?;
    }
    Ok(())
}

/// Whether there is nothing to drop: a plain user who serves itself.
fn is_already(identity: &Identity) -> io::Result<bool> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    let ids = [getuid().as_raw(), geteuid().as_raw()] == [identity.uid; 2]
        && [getgid().as_raw(), getegid().as_raw()] == [identity.gid; 2];
    Ok(ids && identity.uid != 0 && rustix::thread::capabilities(None)?.permitted.is_empty())
}

/// After the identity changed, which would undo both.
fn die_with_parent(parent: u32) -> io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if u32::try_from(now) == Ok(parent) { Ok(()) } else { Err(io::Error::other("the supervisor is gone")) }
}
