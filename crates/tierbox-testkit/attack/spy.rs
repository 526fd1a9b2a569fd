//! Looks around: descriptors, other processes, shared memory.

use std::fs;
use std::process::ExitCode;

use crate::sys::{self, nr};

/// Lists what is open beyond the three standard streams.
pub fn descriptors() -> ExitCode {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        sys::report("list descriptors", 0, false, "no /proc/self/fd");
        return ExitCode::FAILURE;
    };
    let open: Vec<u32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in open.into_iter().filter(|number| *number > 2) {
        // The descriptor of the listing itself is closed by now.
        if let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}")) {
            sys::report(&format!("descriptor {number}"), 0, true, &target.to_string_lossy());
        }
    }
    sys::report("list descriptors", 0, false, "done");
    ExitCode::SUCCESS
}

fn open(path: &str, leaks: bool) {
    match fs::File::open(path) {
        Ok(_) => sys::report(&format!("open {path}"), 0, leaks, "opened"),
        Err(error) => sys::report(&format!("open {path}"), error.raw_os_error().unwrap_or(0), false, ""),
    }
}

fn spy_on(pid: &str) {
    for name in ["mem", "environ", "maps", "auxv", "stack", "syscall"] {
        open(&format!("/proc/{pid}/{name}"), true);
    }
    for name in ["root", "cwd", "fd", "fdinfo", "map_files", "task"] {
        let path = format!("/proc/{pid}/{name}");
        // `task` is open to all by the kernel's own rules, and tells no more than /proc itself.
        match fs::read_dir(&path).map(|entries| entries.count()) {
            Ok(_) => sys::report(&format!("list {path}"), 0, name != "task", "listed"),
            Err(error) => sys::report(&format!("list {path}"), error.raw_os_error().unwrap_or(0), false, ""),
        }
    }
    let number: usize = pid.parse().unwrap_or(1);
    let result = |what: &str, result: Result<i64, i32>| match result {
        Ok(_) => sys::report(&format!("{what} {pid}"), 0, true, "it succeeded"),
        Err(errno) => sys::report(&format!("{what} {pid}"), errno, false, ""),
    };
    // PTRACE_ATTACH, then PTRACE_SEIZE.
    result("ptrace attach", sys::call(nr::PTRACE, [16, number, 0, 0, 0, 0]));
    result("ptrace seize", sys::call(nr::PTRACE, [0x4206, number, 0, 0, 0, 0]));
    let mut buffer = [0u8; 8];
    let local = [buffer.as_mut_ptr() as usize, buffer.len()];
    let remote = [0x40_0000usize, buffer.len()];
    let read = sys::call(nr::PROCESS_VM_READV, [number, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0]);
    // EFAULT would mean that only the address was wrong.
    match read {
        Err(14) => sys::report(&format!("process_vm_readv {pid}"), 14, true, "only the address was wrong"),
        other => result("process_vm_readv", other),
    }
    if let Ok(pidfd) = sys::call(nr::PIDFD_OPEN, [number, 0, 0, 0, 0, 0]) {
        result("pidfd_getfd", sys::call(nr::PIDFD_GETFD, [pidfd as usize, 0, 0, 0, 0, 0]));
    }
}

/// Tries to look into pid 1, and to reach the host through it.
pub fn pid1() -> ExitCode {
    spy_on("1");
    ExitCode::SUCCESS
}

/// Tries to look into another process.
pub fn other(pid: &str) -> ExitCode {
    spy_on(pid);
    ExitCode::SUCCESS
}

/// Makes a System V segment under a key.
pub fn make_shm(key: &str) -> ExitCode {
    match sys::call(nr::SHMGET, [key.parse().unwrap_or(0), 4096, 0o1666, 0, 0, 0]) {
        Ok(_) => sys::report("make segment", 0, false, "made"),
        Err(errno) => sys::report("make segment", errno, false, "refused"),
    }
    ExitCode::SUCCESS
}

/// Looks for a System V segment of somebody else.
pub fn find_shm(key: &str) -> ExitCode {
    match sys::call(nr::SHMGET, [key.parse().unwrap_or(0), 0, 0, 0, 0, 0]) {
        Ok(_) => sys::report("find segment", 0, true, "found"),
        Err(errno) => sys::report("find segment", errno, false, ""),
    }
    ExitCode::SUCCESS
}

/// Leaves this many orphans, which end at once.
pub fn orphans(count: &str) -> ExitCode {
    /// As many as a status of exit tells.
    const BATCH: u32 = 100;
    let count: u32 = count.parse().unwrap_or(0);
    let mut made = 0;
    while made < count {
        let child = sys::split();
        if child == 0 {
            // What it makes are orphans as soon as it is gone.
            sys::leave(dead_children(BATCH.min(count - made)));
        }
        let more = if child > 0 { (sys::wait(child) >> 8) as u32 } else { 0 };
        if more == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        made += more;
    }
    println!("made {made}");
    ExitCode::SUCCESS
}

/// Makes children that end at once, up to so many, and tells how many it could.
fn dead_children(count: u32) -> i32 {
    for made in 0..count {
        match sys::split() {
            0 => sys::leave(0),
            ..0 => return made as i32,
            _ => {}
        }
    }
    count as i32
}
