//! The few things that the standard library does not offer.

use std::io;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(code: i32) -> !;
}

/// A raw system call with up to six arguments. Returns the result, or the errno.
pub fn call(number: i64, args: [usize; 6]) -> Result<i64, i32> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the caller passes pointers only to memory that it holds for the length of the call, or no pointer at all.
    let result = unsafe { syscall(number, a, b, c, d, e, f) };
    if result == -1 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
}

/// Forks. This program has one thread whenever it does.
pub fn split() -> i32 {
    // SAFETY: the process is single-threaded here, so the child may do anything.
    unsafe { fork() }
}

/// Waits for a child and returns its raw status.
pub fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: `status` lives for the call.
    unsafe { waitpid(pid, &mut status, 0) };
    status
}

/// Ends a forked child without running anything of the parent's.
pub fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { _exit(code) }
}

pub const EPERM: i32 = 1;
pub const EIO: i32 = 5;
pub const EACCES: i32 = 13;
pub const EINVAL: i32 = 22;
pub const ENOTTY: i32 = 25;
pub const ENOSPC: i32 = 28;
pub const ENOSYS: i32 = 38;
pub const EPROTONOSUPPORT: i32 = 93;
pub const ESOCKTNOSUPPORT: i32 = 94;
pub const EAFNOSUPPORT: i32 = 97;

/// Numbers that every architecture shares.
pub mod nr {
    pub const PIDFD_GETFD: i64 = 438;
    pub const IO_URING_SETUP: i64 = 425;
    pub const OPEN_TREE: i64 = 428;
    pub const MOVE_MOUNT: i64 = 429;
    pub const FSOPEN: i64 = 430;
    pub const FSCONFIG: i64 = 431;
    pub const FSMOUNT: i64 = 432;
    pub const FSPICK: i64 = 433;
    pub const PIDFD_OPEN: i64 = 434;
    pub const CLONE3: i64 = 435;
    pub const MOUNT_SETATTR: i64 = 442;

    macro_rules! table {
        ($($name:ident $x86:literal $arm:literal)*) => { $(
            #[cfg(target_arch = "x86_64")]
            pub const $name: i64 = $x86;
            #[cfg(target_arch = "aarch64")]
            pub const $name: i64 = $arm;
        )* };
    }

    table! {
        ACCT 163 89
        ADD_KEY 248 217
        BPF 321 280
        CHROOT 161 51
        CLOCK_SETTIME 227 112
        CLONE 56 220
        DELETE_MODULE 176 106
        FANOTIFY_INIT 300 262
        FINIT_MODULE 313 273
        GETPID 39 172
        INIT_MODULE 175 105
        IOCTL 16 29
        KCMP 312 272
        KEXEC_FILE_LOAD 320 294
        KEXEC_LOAD 246 104
        KEYCTL 250 219
        MEMFD_CREATE 319 279
        MKNODAT 259 33
        MOUNT 165 40
        OPEN_BY_HANDLE_AT 304 265
        PERF_EVENT_OPEN 298 241
        PERSONALITY 135 92
        PIVOT_ROOT 155 41
        PRCTL 157 167
        PROCESS_VM_READV 310 270
        PTRACE 101 117
        QUOTACTL 179 60
        REBOOT 169 142
        REQUEST_KEY 249 218
        SECCOMP 317 277
        SETDOMAINNAME 171 162
        SETHOSTNAME 170 161
        SETNS 308 268
        SETTIMEOFDAY 164 170
        SHMGET 29 194
        SOCKET 41 198
        SWAPON 167 224
        SYSLOG 103 116
        UMOUNT2 166 39
        UNSHARE 272 97
        USERFAULTFD 323 282
    }
}

/// One line of the report.
pub fn report(tried: &str, errno: i32, leaked: bool, detail: &str) {
    use std::io::Write;
    let clean: String = detail.chars().map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' || c == ' ' { c } else { '?' }).collect();
    let line = format!("{{\"tried\":\"{tried}\",\"errno\":{errno},\"leaked\":{leaked},\"detail\":\"{clean}\"}}\n");
    let _ = io::stdout().write_all(line.as_bytes());
}
