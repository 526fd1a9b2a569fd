//! The system calls that the engine needs and that have no safe wrapper elsewhere.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

/// Which side of a fork this is.
pub enum Fork {
    /// The parent, with the child's process id.
    Parent(i32),
    /// The child.
    Child,
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks.
///
/// # Errors
/// If no process can be made.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the supervisor has one thread, so the child's copy of every lock and of the allocator is consistent and all
    // of Rust stays usable in it.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends this process at once: no destructors, no exit handlers.
pub fn exit(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Resource use of a reaped process and of the children that it waited for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rusage {
    /// CPU time in user mode, in microseconds.
    pub user_us: u64,
    /// CPU time in the kernel, in microseconds.
    pub system_us: u64,
    /// The largest resident set of one process, in bytes.
    pub max_rss: u64,
}

fn micros(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(time.tv_usec).unwrap_or(0))
}

/// A process that was reaped: id, wait status, resource use.
pub type Reaped = (i32, i32, Rusage);

fn wait(options: c_int) -> io::Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live, writable values.
    let pid = check(unsafe { libc::wait4(-1, &mut status, options, &mut usage) })?;
    let usage = Rusage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024),
    };
    Ok((pid > 0).then_some((pid, status, usage)))
}

/// Reaps any child that has ended, or tells of one that was stopped, without waiting.
///
/// # Errors
/// ECHILD if there are no children.
pub fn reap() -> io::Result<Option<Reaped>> {
    wait(libc::WNOHANG | libc::WUNTRACED)
}

/// Waits for any child to end or to be stopped.
///
/// # Errors
/// ECHILD if there are no children.
pub fn wait_any() -> io::Result<Option<Reaped>> {
    wait(libc::WUNTRACED)
}

/// How a wait status reads.
pub enum Status {
    /// It exited.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// It did not end, but was stopped.
    Stopped,
}

/// Reads a wait status.
pub fn status(raw: i32) -> Status {
    if libc::WIFSTOPPED(raw) {
        return Status::Stopped;
    }
    if libc::WIFSIGNALED(raw) { Status::Signaled(libc::WTERMSIG(raw)) } else { Status::Exited(libc::WEXITSTATUS(raw)) }
}

/// Blocks SIGCHLD and gives the descriptor that tells of it.
///
/// # Errors
/// If the kernel offers none.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero `sigset_t` is valid storage for `sigemptyset`.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live, writable signal set throughout.
    let fd = unsafe {
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?
    };
    // SAFETY: `signalfd` just returned this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives every signal its default disposition, but ignores SIGPIPE: a write to a closed pipe is an error here, not an end.
pub fn supervisor_signals() {
    // Handler, flags, restorer and mask of the kernel's own structure; all zero is the default disposition.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // The C library refuses the two signals that it uses itself; whoever started this program may have ignored them.
        // SAFETY: `default` is live, large enough, and names no handler. Signals that cannot be changed are left alone.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8) };
    }
    // SAFETY: this disposition runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Undoes what [`supervisor_signals`] and [`child_signals`] changed. Async-signal-safe.
pub fn command_signals() {
    // SAFETY: an all-zero `sigset_t` is valid storage for `sigemptyset`; both calls are async-signal-safe.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Makes this process the parent of its descendants' orphans.
///
/// # Errors
/// If the kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: this option takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Keeps other processes of the same user from reading or tracing this one.
pub fn hide_from_debuggers() {
    // SAFETY: this option takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Sets this process's umask. Async-signal-safe.
pub fn umask(mask: u32) {
    // SAFETY: `umask` cannot fail.
    unsafe { libc::umask(mask as libc::mode_t) };
}

/// Sets soft and hard value of a resource limit of this process. Async-signal-safe.
///
/// # Errors
/// If the kernel refuses.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft as libc::rlim_t, rlim_max: hard as libc::rlim_t };
    // SAFETY: `limit` is a live value that is only read.
    check(unsafe { libc::setrlimit(resource as _, &limit) }).map(drop)
}

/// The number of the limit of open descriptors, which C libraries type differently.
pub const DESCRIPTORS: u32 = 7;
const _: () = assert!(libc::RLIMIT_NOFILE as u64 == DESCRIPTORS as u64);

/// Soft and hard limit of open descriptors.
pub fn descriptor_limit() -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live, writable value.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }).ok()?;
    Some((limit.rlim_cur, limit.rlim_max))
}

/// Closes every descriptor from `first` on, at the next exec or now. Async-signal-safe.
pub fn close_from(first: RawFd, at_exec: bool) {
    let flags = if at_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: only called in a child that uses no descriptor from `first` on, or (at exec) closes nothing now.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, flags) };
    if closed != 0 && !at_exec {
        // Kernels before 5.9 have no such call. Descriptors that stay open at exec are marked CLOEXEC one by one anyway.
        for fd in first..descriptor_limit().map_or(1024, |(soft, _)| soft.min(1 << 16)) as RawFd {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// Closes a child's descriptors from `first` on, except `kept` (which are few).
pub fn close_all_but(first: RawFd, kept: &mut [RawFd]) {
    kept.sort_unstable();
    let mut from = first;
    for &fd in kept.iter() {
        if fd > from {
            // SAFETY: only called in a child; the caller names every descriptor it goes on using.
            unsafe { libc::syscall(libc::SYS_close_range, from as libc::c_uint, (fd - 1) as libc::c_uint, 0) };
        }
        from = from.max(fd + 1);
    }
    close_from(from, false);
}

/// Makes `to` name what `from` names, open across exec. Async-signal-safe.
///
/// # Errors
/// If `from` is not open.
pub fn place(from: RawFd, to: RawFd) -> io::Result<()> {
    if from == to {
        // SAFETY: plain flag change on a number; an error is reported.
        return check(unsafe { libc::fcntl(from, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: only called in a child, whose descriptors 0 to 2 nobody owns.
    check(unsafe { libc::dup2(from, to) }).map(drop)
}

/// Starts a session of its own. Async-signal-safe.
pub fn new_session() {
    // SAFETY: no preconditions; fails only for a process group leader, which a fresh child is not.
    unsafe { libc::setsid() };
}

/// Takes a terminal as this session's own. Async-signal-safe.
///
/// # Errors
/// If the kernel refuses.
pub fn control_terminal(fd: RawFd) -> io::Result<()> {
    // SAFETY: this request takes an integer, no pointer.
    check(unsafe { libc::ioctl(fd, libc::TIOCSCTTY as _, 0) }).map(drop)
}

/// Enters a directory. Async-signal-safe.
///
/// # Errors
/// As `chdir`.
pub fn enter(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is a live C string.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Whether something exists under this name, for the calling user. Async-signal-safe.
pub fn exists(path: &CStr) -> bool {
    // SAFETY: `path` is a live C string.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

/// C strings with the array of pointers to them that `execve` wants.
#[derive(Debug)]
pub struct StringArray {
    pointers: Vec<*const c_char>,
    _strings: Vec<std::ffi::CString>,
}

impl StringArray {
    /// Prepares the array.
    pub fn new(strings: Vec<std::ffi::CString>) -> Self {
        let pointers = strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

/// Becomes another program. Returns only if that failed, with the errno. Async-signal-safe.
///
/// `password` goes into the two argument registers behind the call's own, which only a filter looks at.
pub fn execute(path: &CStr, argv: &StringArray, env: &StringArray, password: [u64; 2]) -> i32 {
    let (argv, env) = (argv.pointers.as_ptr(), env.pointers.as_ptr());
    // SAFETY: the arrays end with a null pointer, and the strings they point to live as long as they do.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv, env, password[0], password[1]) };
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Writes to a descriptor by number, ignoring errors. Async-signal-safe.
pub fn write_raw(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the slice is live; the descriptor is only a number, and an error is reported.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal to a process id (or group, if negative).
///
/// # Errors
/// As `kill`.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers. Process ids that mean "everybody" are never passed.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// A handle on a process, which stays on it when its id is used again.
///
/// # Errors
/// ESRCH if there is none.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(fd as c_int)?;
    // SAFETY: the kernel just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal through a handle.
///
/// # Errors
/// ESRCH if it ended.
pub fn pidfd_kill(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null `info` is allowed and means what `kill` would send.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) } as c_int).map(drop)
}

/// Sets a terminal's size.
pub fn set_window(terminal: BorrowedFd<'_>, rows: u16, cols: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is a live value that is only read.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &size) };
}

/// The other end of a fresh pseudo-terminal, unlocked.
///
/// # Errors
/// If the kernel has none.
pub fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: c_int = 0;
    // SAFETY: `unlock` is a live value that is only read.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: this request takes an integer, no pointer.
    let fd = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) })?;
    // SAFETY: the kernel just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Process and user at the other end of a socket, as seen from here. A process outside this numbering is 0.
pub fn peer(socket: impl AsFd) -> Option<(i32, u32)> {
    let mut peer = libc::ucred { pid: -1, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let (fd, option) = (socket.as_fd().as_raw_fd(), libc::SO_PEERCRED);
    // SAFETY: `peer` and `length` are live, writable, and of the size that the option wants.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut peer).cast(), &mut length) };
    check(result).ok().map(|_| (peer.pid, peer.uid))
}

/// Ends this process by a signal after so many seconds.
pub fn alarm(seconds: u32) {
    // SAFETY: no preconditions.
    unsafe { libc::alarm(seconds) };
}

/// What a child of the supervisor tells it through shared memory, which costs no system call.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Slot {
    /// How far it came; see `board`.
    pub stage: AtomicU32,
    /// The errno that stopped it.
    pub errno: AtomicI32,
    /// The command's process id.
    pub pid: AtomicI32,
    /// The command's wait status, written by a shim.
    pub status: AtomicI32,
    /// 1 once `status` and what follows are valid.
    pub settled: AtomicU32,
    /// CPU time in user mode, in microseconds.
    pub user_us: AtomicU64,
    /// CPU time in the kernel, in microseconds.
    pub system_us: AtomicU64,
    /// The largest resident set, in bytes.
    pub max_rss: AtomicU64,
}

/// Slots in memory that is shared with children until they exec.
#[derive(Debug)]
pub struct SharedSlots {
    base: NonNull<Slot>,
    count: usize,
}

impl SharedSlots {
    /// Maps so many slots, all zero.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn map(count: usize) -> io::Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), count * size_of::<Slot>(), prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, count })
    }

    /// A slot.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn get(&self, index: usize) -> &Slot {
        assert!(index < self.count);
        // SAFETY: the mapping is never unmapped and holds `count` slots, page-aligned; every field is an atomic, for which
        // any bytes are valid, so that other processes may change them at any time.
        unsafe { self.base.add(index).as_ref() }
    }
}

/// Makes sure that descriptors 0, 1 and 2 are open, so that no other descriptor ever gets these numbers.
///
/// # Errors
/// If `/dev/null` cannot be opened.
pub fn occupy_standard(null: impl AsFd) -> io::Result<()> {
    for fd in 0..3 {
        // SAFETY: asking for flags of a number is harmless.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            // SAFETY: `fd` is not open, so nobody owns it.
            check(unsafe { libc::dup2(null.as_fd().as_raw_fd(), fd) })?;
        }
    }
    Ok(())
}
