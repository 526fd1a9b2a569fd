//! From a request to a running program: what the child does between fork and exec.

use std::ffi::CString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::Ordering::Release;

use super::board::Stage;
use super::confine::{Bounds, confine};
use super::environment::{self, Variables};
use super::sys::{self, Fork, Slot, StringArray};
use crate::protocol::{Confinement, Exec};
use crate::runtime::identity::Identity;
use crate::setup::Setup;
use crate::wire::Blob;
use crate::wire_struct;

wire_struct! {
    /// A command, resolved: what a waiting child is told.
    pub struct Order {
        /// What was called, for messages.
        pub name: Blob,
        /// Files to try.
        pub candidates: Vec<Blob>,
        /// Arguments.
        pub argv: Vec<Blob>,
        /// Variables.
        pub env: Vec<Blob>,
        /// Absolute.
        pub cwd: Blob,
        /// User id.
        pub uid: u32,
        /// Primary group.
        pub gid: u32,
        /// All groups.
        pub groups: Vec<u32>,
        /// Whether stdin becomes the controlling terminal.
        pub terminal: bool,
        /// Which of stdin, stdout and stderr come along as descriptors; the others are `/dev/null`.
        pub stdio: [u8; 3],
        /// What it is kept to.
        pub confine: Option<Confinement>,
    }
}

impl Order {
    /// Resolves a call.
    pub fn new(setup: &Setup, exec: &Exec, identity: &Identity, stdio: &[Option<OwnedFd>; 3]) -> Self {
        let variables = Variables::of(setup, exec, identity);
        let name = exec.argv.first().cloned().unwrap_or_default();
        let blobs = |texts: Vec<Vec<u8>>| texts.into_iter().map(Blob).collect();
        Self {
            candidates: blobs(environment::candidates(&name.0, &variables)),
            name,
            argv: exec.argv.clone(),
            env: blobs(variables.texts()),
            cwd: environment::resolve(&setup.workdir.0, exec.cwd.as_ref().map(|cwd| cwd.0.as_slice())).into(),
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups.clone(),
            terminal: exec.pty.is_some(),
            stdio: stdio.each_ref().map(|fd| u8::from(fd.is_some())),
            confine: exec.confine.clone(),
        }
    }

    /// Puts it into the form that needs no memory between fork and exec; `None` if a text holds a NUL byte.
    pub fn prepare(self) -> Option<Prepared> {
        let texts = |blobs: Vec<Blob>| blobs.into_iter().map(|blob| CString::new(blob.0).ok()).collect::<Option<Vec<_>>>();
        Some(Prepared {
            name: self.name.0,
            candidates: texts(self.candidates)?,
            argv: StringArray::new(texts(self.argv)?),
            env: StringArray::new(texts(self.env)?),
            cwd: CString::new(self.cwd.0).ok()?,
            identity: Identity {
                name: String::new(),
                uid: self.uid,
                gid: self.gid,
                groups: self.groups,
                home: Vec::new(),
                shell: Vec::new(),
            },
            terminal: self.terminal,
            bounds: match self.confine {
                Some(kept) => Some(Bounds { executables: texts(kept.executables)?, children: kept.children }),
                None => None,
            },
        })
    }
}

/// An [`Order`] in the form that needs no memory between fork and exec.
#[derive(Debug)]
pub struct Prepared {
    name: Vec<u8>,
    candidates: Vec<CString>,
    argv: StringArray,
    env: StringArray,
    cwd: CString,
    identity: Identity,
    terminal: bool,
    bounds: Option<Bounds>,
}

/// What is the same for every command of a machine.
#[derive(Debug, Clone)]
pub struct Habitat {
    /// Resource limits: number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `/dev/null` of the machine.
    pub null: RawFd,
    /// `cgroup.procs` files of directories that all commands share.
    pub shared_cgroups: Vec<RawFd>,
    /// Where shims tell that their commands ended.
    pub shim_events: RawFd,
}

/// A child that is to be made.
pub struct Birth<'a> {
    /// What is the same for all.
    pub habitat: &'a Habitat,
    /// Where it reports.
    pub slot: &'a Slot,
    /// The number of its slot.
    pub number: usize,
    /// `cgroup.procs` files of its own kill domain.
    pub cgroups: &'a [RawFd],
    /// Whether a shim stands between it and the supervisor.
    pub shim: bool,
}

impl Birth<'_> {
    /// Forks. The child enters its kill domain and goes on with `then`. Returns the direct child, which is the shim if there
    /// is one.
    ///
    /// # Errors
    /// If no process can be made.
    pub fn fork(&self, then: impl FnOnce(&Self)) -> io::Result<i32> {
        if let Fork::Parent(pid) = sys::fork()? {
            return Ok(pid);
        }
        if self.shim { self.become_shim(then) } else { self.become_child(then) }
    }

    fn become_shim(&self, then: impl FnOnce(&Self)) -> ! {
        sys::new_session();
        if let Err(error) = sys::become_subreaper() {
            self.fail(Stage::Attach, &error);
        }
        match sys::fork() {
            Ok(Fork::Child) => self.become_child(then),
            Ok(Fork::Parent(pid)) => super::domain::shim::serve(pid, self.slot, self.number, self.habitat.shim_events),
            Err(error) => self.fail(Stage::Resources, &error),
        }
    }

    fn become_child(&self, then: impl FnOnce(&Self)) -> ! {
        self.slot.pid.store(std::process::id() as i32, Release);
        for fd in self.cgroups.iter().chain(&self.habitat.shared_cgroups) {
            self.must(Stage::Attach, sys::write_raw(*fd, b"0"));
        }
        sys::new_session();
        for (resource, soft, hard) in &self.habitat.rlimits {
            self.must(Stage::Resources, sys::set_rlimit(*resource, *soft, *hard));
        }
        sys::umask(0o022);
        then(self);
        sys::exit(1)
    }

    /// Reports what stopped this child, and ends it.
    fn fail(&self, stage: Stage, error: &io::Error) -> ! {
        self.slot.reach(stage, error.raw_os_error().unwrap_or(libc::EIO));
        sys::exit(1)
    }

    /// Becomes the command, with these descriptors as stdin, stdout and stderr.
    pub fn run(&self, command: &Prepared, stdio: [RawFd; 3]) -> ! {
        for (from, to) in stdio.into_iter().zip(0..) {
            self.must(Stage::Resources, sys::place(from, to));
        }
        if command.terminal {
            self.must(Stage::Resources, sys::control_terminal(0));
        }
        sys::close_from(3, true);
        self.must(Stage::Identity, command.identity.assume());
        self.must(Stage::Directory, sys::enter(&command.cwd));
        let password = match command.bounds.as_ref().map(confine) {
            Some(Ok(password)) => password,
            Some(Err(error)) => self.fail(Stage::Confine, &error),
            None => [0; 2],
        };
        self.slot.reach(Stage::Ready, 0);
        sys::command_signals();
        let errno = command.execute(password);
        self.slot.reach(Stage::Execute, errno);
        command.complain(errno);
        sys::exit(if errno == libc::ENOENT { 127 } else { 126 })
    }

    /// Ends this child if something failed, and reports that.
    pub fn must(&self, stage: Stage, result: io::Result<()>) {
        if let Err(error) = result {
            self.fail(stage, &error);
        }
    }
}

impl Prepared {
    /// Tries every candidate; the errno that tells most.
    fn execute(&self, password: [u64; 2]) -> i32 {
        let mut told = libc::ENOENT;
        for candidate in &self.candidates {
            match sys::execute(candidate, &self.argv, &self.env, password) {
                libc::ENOENT | libc::ENOTDIR if self.candidates.len() > 1 => {}
                libc::EACCES if self.candidates.len() > 1 => told = libc::EACCES,
                errno => return errno,
            }
        }
        told
    }

    /// One line on the command's stderr. Async-signal-safe.
    fn complain(&self, errno: i32) {
        let interpreter = |path: &CString| errno == libc::ENOENT && sys::exists(path);
        let reason: &[u8] = match errno {
            libc::E2BIG => return,
            _ if self.candidates.iter().any(interpreter) => b"its interpreter is not there",
            libc::ENOENT => b"not found",
            libc::EACCES => b"permission denied",
            libc::ENOEXEC => b"not a program that this machine can execute",
            libc::ENOTDIR => b"part of its path is not a directory",
            libc::EISDIR => b"is a directory",
            libc::ETXTBSY => b"is being written to",
            libc::ELOOP => b"too many links",
            libc::ENAMETOOLONG => b"its name is too long",
            libc::ENOMEM => b"out of memory",
            _ => b"cannot be executed",
        };
        let mut line = [0_u8; 512];
        let mut length = 0;
        for part in [b"tierbox: ", &self.name[..self.name.len().min(256)], b": ", reason, b"\n"] {
            line[length..length + part.len()].copy_from_slice(part);
            length += part.len();
        }
        // The line is for people; the outcome says it as well.
        let _ = sys::write_raw(2, &line[..length]);
    }
}
