//! The kill domain of last resort: a process between the supervisor and the command, to which everything that the command
//! leaves behind comes back.

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};

use crate::runtime::engine::board::Stage;
use crate::runtime::engine::sys::{self, Slot, Status};

/// Rounds of looking for processes that were made while others were stopped.
const ROUNDS: usize = 64;

/// Waits in a shim until the command and everything it left behind is gone.
pub fn serve(command: i32, slot: &Slot, number: usize, events: RawFd) -> ! {
    sys::close_all_but(0, &mut [events]);
    while let Ok(Some((pid, status, usage))) = sys::wait_any() {
        if matches!(sys::status(status), Status::Stopped) {
            continue_launch(pid, slot);
        } else if pid == command {
            slot.settle(status, usage);
            // The exit tells it too, but ending takes a process longer than writing.
            let _ = sys::write_raw(events, &word(number, sys::reap().is_err()));
        }
    }
    sys::exit(0)
}

/// Lets a process go on that was stopped before it was the command: nobody else can.
pub fn continue_launch(pid: i32, slot: &Slot) {
    if slot.reached().0 == Stage::Preparing {
        let _ = sys::kill(pid, libc::SIGCONT);
    }
}

/// What a shim says: its slot, and whether nothing is left.
fn word(slot: usize, empty: bool) -> [u8; 4] {
    (slot as u32 | u32::from(empty) << 31).to_ne_bytes()
}

/// What a shim said.
pub fn read_word(word: [u8; 4]) -> (usize, bool) {
    let word = u32::from_ne_bytes(word);
    ((word & !(1 << 31)) as usize, word >> 31 == 1)
}

/// The process tree as `/proc` shows it.
#[derive(Debug)]
pub struct Tree {
    proc: OwnedFd,
    has_children_files: bool,
}

impl Tree {
    /// Opens `/proc`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open() -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        let own = format!("self/task/{}/children", std::process::id());
        let has_children_files =
            rustix::fs::accessat(&proc, own, rustix::fs::Access::READ_OK, rustix::fs::AtFlags::empty()).is_ok();
        Ok(Self { proc, has_children_files })
    }

    fn read(&self, path: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.proc, path, flags, Mode::empty()).ok()?;
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn parent(&self, pid: i32) -> Option<i32> {
        let stat = self.read(&format!("{pid}/stat"))?;
        // The name in parentheses may hold anything, so count from its end.
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    fn numbers(&self, path: &str) -> Vec<i32> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(&self.proc, path, flags, Mode::empty()) else { return Vec::new() };
        let Ok(directory) = rustix::fs::Dir::read_from(&fd) else { return Vec::new() };
        directory.flatten().filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect()
    }

    /// The children of a process.
    pub fn children(&self, pid: i32) -> Vec<i32> {
        if !self.has_children_files {
            return self.numbers(".").into_iter().filter(|other| self.parent(*other) == Some(pid)).collect();
        }
        let of_thread = |thread: i32| self.read(&format!("{pid}/task/{thread}/children")).unwrap_or_default();
        let threads = self.numbers(&format!("{pid}/task"));
        threads.into_iter().flat_map(|thread| parse_numbers(&of_thread(thread))).collect()
    }

    /// Stops, then kills everything below `roots` (not these themselves), except `spared` and what is below it. Whether
    /// nothing was there.
    pub fn kill_below(&self, roots: &[i32], spared: &dyn Fn(i32) -> bool) -> bool {
        let mut found: Vec<Stopped> = Vec::new();
        let mut seen: HashSet<i32> = HashSet::new();
        for _ in 0..ROUNDS {
            let known = seen.len();
            let mut next: Vec<i32> = roots.to_vec();
            let mut visited: HashSet<i32> = HashSet::new();
            while let Some(parent) = next.pop() {
                for child in self.children(parent) {
                    if spared(child) || !visited.insert(child) {
                        continue;
                    }
                    next.push(child);
                    if seen.insert(child) {
                        found.extend(self.stop(child, parent));
                    }
                }
            }
            if seen.len() == known {
                break;
            }
        }
        found.iter().for_each(|process| process.signal(libc::SIGKILL));
        seen.is_empty()
    }

    /// Stops a process if it is still this parent's child: its id may be somebody else's by now.
    fn stop(&self, pid: i32, parent: i32) -> Option<Stopped> {
        let process = match sys::pidfd(pid) {
            Ok(handle) => Stopped::Handle(handle),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Stopped::Number(pid),
            Err(_) => return None,
        };
        if self.parent(pid) != Some(parent) {
            return None;
        }
        process.signal(libc::SIGSTOP);
        Some(process)
    }
}

/// A process on its way out.
#[derive(Debug)]
enum Stopped {
    Handle(OwnedFd),
    /// Kernels before 5.3 have no handles.
    Number(i32),
}

impl Stopped {
    fn signal(&self, signal: i32) {
        // It may be gone already, which is what is wanted.
        let _ = match self {
            Self::Handle(handle) => sys::pidfd_kill(handle.as_fd(), signal),
            Self::Number(pid) => sys::kill(*pid, signal),
        };
    }
}

fn parse_numbers(text: &str) -> Vec<i32> {
    text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
}
