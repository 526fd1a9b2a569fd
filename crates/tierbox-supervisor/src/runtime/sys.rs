//! Safe wrappers of the system calls that no library offers.
//!
//! Everything here runs in a process with one thread. A wrapper is safe if it keeps Rust's own rules (valid pointers, owned
//! descriptors) whatever its arguments are; what the calls do to the process is the caller's business.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with the new one's id.
    Parent(i32),
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a process as `fork` does, in the new namespaces that `flags` (`CLONE_NEW*`) name. Only for a process with one thread.
///
/// The old call `clone` instead of `clone3`: container engines answer `clone3` with ENOSYS, and nothing here needs it.
///
/// # Errors
/// As `clone(2)`.
pub fn fork_into(flags: libc::c_int) -> io::Result<Fork> {
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack the child gets a copy of everything, as after `fork`; there is one
    // thread, so no lock can be held by somebody who does not exist in the child.
    match check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// Leaves namespaces for new ones.
///
/// # Errors
/// As `unshare(2)`.
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers; callers pass only CLONE_NEW* flags, and there is one thread.
    check(libc::c_long::from(unsafe { libc::unshare(flags) })).map(drop)
}

/// Takes the descriptor `fd`, which the process inherited, as its own.
///
/// # Errors
/// EBADF if it is not open.
pub fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD has no effect on memory and fails for a descriptor that is not open.
    check(libc::c_long::from(unsafe { libc::fcntl(fd, libc::F_GETFD) }))?;
    // SAFETY: it is open, and `container::main` takes each inherited descriptor once, before anything else opens any.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a copy of `fd` at the number `target` (0 to 2), closing what was there.
///
/// # Errors
/// As `dup2(2)`.
pub fn replace_standard(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: nobody in this process owns 0 to 2: `container::main` moves the channel away from them first.
    check(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), target) })).map(drop)
}

/// Closes every descriptor from `first` on. To be called before any is opened.
pub fn close_from(first: u32) {
    // SAFETY: the program has opened nothing yet, so no owned descriptor is closed behind its owner's back.
    if check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).is_ok() {
        return;
    }
    // Before Linux 5.9 one by one. Inherited numbers are low, whatever the limit is.
    for fd in first..OLD_KERNELS_DESCRIPTORS {
        // SAFETY: as above.
        unsafe { libc::close(fd as RawFd) };
    }
}

/// How many descriptors are looked at where the kernel cannot close a range.
const OLD_KERNELS_DESCRIPTORS: u32 = 4096;

/// Gives every signal its default action, but SIGPIPE which is ignored, and unblocks all.
pub fn reset_signals() {
    // SAFETY: zeroed bytes are a valid `sigaction` (default action, empty mask) and a valid `sigset_t`; setting a disposition
    // to default or ignored runs no code of ours. The calls fail only for signals that cannot be changed, which is fine.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            action.sa_sigaction = if signal == libc::SIGPIPE { libc::SIG_IGN } else { libc::SIG_DFL };
            // The C library refuses its two internal signals; the kernel does not.
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Gives up a real-time policy, a raised priority and an execution domain (`setarch -R` switches address randomisation off) that this
/// process got from its caller: what runs in a sandbox weighs no more than any other process of its host, a cgroup with a cpu limit
/// takes it, and its programs are placed at random.
pub fn ordinary_process() {
    let ordinary = libc::sched_param { sched_priority: 0 };
    // SAFETY: `sched_setscheduler` reads `ordinary`, which outlives it; the others take no pointers. Giving up is always permitted.
    unsafe {
        if !matches!(libc::sched_getscheduler(0), libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE) {
            libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const ordinary);
        }
        if libc::getpriority(libc::PRIO_PROCESS, 0) < 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        }
        libc::personality(0);
    }
}

/// Ignores signals.
pub fn ignore_signals(signals: &[libc::c_int]) {
    for &signal in signals {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Sends a signal to a process, or to a group with a negative number.
///
/// # Errors
/// As `kill(2)`.
pub fn kill(pid: i32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(libc::c_long::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// Ends this process at once, with nothing run on the way.
pub fn kill_self() -> ! {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    // Signals from inside do not kill the first process of a pid namespace.
    // SAFETY: ends the process.
    unsafe { libc::_exit(137) }
}

/// Whether a process made by this one ended, and how: its wait status. Waits for it.
///
/// # Errors
/// ECHILD if there is none.
pub fn wait_for(pid: i32) -> io::Result<(i32, libc::c_int)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        match check(libc::c_long::from(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) })) {
            Ok(pid) => return Ok((pid as i32, status)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Collects one process that ended, without waiting. Tells whether there was one.
///
/// # Errors
/// ECHILD if there are no children at all.
pub fn collect_ended() -> io::Result<bool> {
    let flags = libc::WNOHANG | libc::__WALL;
    // SAFETY: a null status is allowed.
    check(libc::c_long::from(unsafe { libc::waitpid(-1, std::ptr::null_mut(), flags) })).map(|pid| pid > 0)
}

/// `struct mount_attr`: what `mount_setattr` changes.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE` and its like, or 0.
    pub propagation: u64,
    /// The user namespace of an id-mapped mount.
    pub userns_fd: u64,
}

/// Cannot be written.
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// Set-user-id bits have no effect.
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// Device nodes have no effect.
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// Owners are translated by a user namespace.
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Changes the mount that `dir` is the root of, or all mounts below it too.
///
/// # Errors
/// As `mount_setattr(2)`; ENOSYS before Linux 5.12.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, `attr` lives through the call and has the size that is told.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &attr, size_of::<MountAttr>())
    })
    .map(drop)
}

/// Two numbers that nobody can guess.
///
/// # Errors
/// As `getrandom(2)`.
pub fn random_numbers() -> io::Result<[u64; 2]> {
    let mut numbers = [0_u64; 2];
    // SAFETY: the buffer lives through the call and has the size that is told; every value of its bytes is a number.
    let filled = unsafe { libc::getrandom(numbers.as_mut_ptr().cast(), size_of_val(&numbers), 0) };
    // So few bytes come at once.
    if filled == size_of_val(&numbers) as isize { Ok(numbers) } else { Err(io::Error::last_os_error()) }
}

/// One instruction of a socket filter (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BpfInsn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip if it does not.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

#[repr(C)]
struct BpfProgram {
    length: u16,
    instructions: *const BpfInsn,
}

/// Installs a system call filter for this process and everything that it starts.
///
/// # Errors
/// As `seccomp(2)`; EINVAL for a program that the kernel does not accept.
pub fn seccomp_install(program: &[BpfInsn]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = BpfProgram { length, instructions: program.as_ptr() };
    // SAFETY: the program's pointer and length describe a live slice of the kernel's layout, which the kernel copies.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) }).map(drop)
}

/// The newest version of Landlock's interface that this kernel has, or why it has none.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP where Landlock is not built in or not enabled.
pub fn landlock_version() -> io::Result<u32> {
    // SAFETY: with a null attribute and the version flag the kernel reads no memory.
    check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, 1u32) }).map(|version| version as u32)
}

/// `struct landlock_ruleset_attr`: what a set of rules governs.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct LandlockRuleset {
    /// File accesses.
    pub fs: u64,
    /// Network accesses.
    pub net: u64,
    /// Scopes.
    pub scoped: u64,
}

#[repr(C, packed)]
struct LandlockBeneath {
    allowed: u64,
    parent: RawFd,
}

/// An empty set of rules. `size` is how much of `attr` this kernel's version knows.
///
/// # Errors
/// As `landlock_create_ruleset(2)`.
pub fn landlock_create(attr: LandlockRuleset, size: usize) -> io::Result<OwnedFd> {
    let size = size.min(size_of::<LandlockRuleset>());
    // SAFETY: `attr` lives through the call and is at least `size` bytes long.
    let fd = check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &attr, size, 0u32) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Allows accesses beneath a file or directory.
///
/// # Errors
/// As `landlock_add_rule(2)`.
pub fn landlock_allow(ruleset: BorrowedFd<'_>, parent: BorrowedFd<'_>, allowed: u64) -> io::Result<()> {
    let rule = LandlockBeneath { allowed, parent: parent.as_raw_fd() };
    // SAFETY: `rule` has the kernel's packed layout and lives through the call; 1 is LANDLOCK_RULE_PATH_BENEATH.
    check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), 1u32, &rule, 0u32) }).map(drop)
}

/// Puts this process and everything that it starts under the rules.
///
/// # Errors
/// As `landlock_restrict_self(2)`.
pub fn landlock_enforce(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) }).map(drop)
}

/// Forbids a capability to everything that this process executes.
///
/// # Errors
/// EINVAL beyond the last capability of this kernel, EPERM without CAP_SETPCAP.
pub fn drop_from_bounding_set(capability: u32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) })).map(drop)
}

/// The name that the kernel shows for this process (at most 15 bytes).
pub fn set_name(name: &CStr) {
    // SAFETY: `name` is a C string; the kernel copies at most 16 bytes of it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Makes orphaned descendants this process's children.
///
/// # Errors
/// None on any kernel that has namespaces.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })).map(drop)
}
