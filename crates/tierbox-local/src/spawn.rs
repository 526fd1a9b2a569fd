//! Starts keepers: the supervisor from a sealed memory file, or from its installed copy.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tierbox_core::{Error, ErrorKind, Result};
use tierbox_guest::supervisor;

use crate::BACKEND;
use crate::launcher;
use crate::reaper::{Watched, watch_child};
use crate::refusal;
use crate::scope::Scope;

/// The supervisor as something that can be executed.
#[derive(Debug)]
pub enum Program {
    /// A sealed memory file of this process.
    Memory(OwnedFd),
    /// A file that only root can change.
    Installed(PathBuf),
}

/// A keeper that was started, and the other end of its channel.
#[derive(Debug)]
pub struct Spawned {
    /// The process.
    pub keeper: Watched,
    /// The channel.
    pub socket: UnixStream,
    /// Closed when the keeper and what it started have ended, if a network helper has to know.
    pub life: Option<OwnedFd>,
}

/// The program, made once per process.
///
/// # Errors
/// `HostUnable` if memory files are forbidden here and no launcher is installed.
pub fn program() -> Result<&'static Program> {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    static MAKING: Mutex<()> = Mutex::new(());
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    // Only success is remembered: a launcher may be installed while this process runs.
    let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    match PROGRAM.get() {
        Some(program) => Ok(program),
        None => {
            let made = make_program()?;
            Ok(PROGRAM.get_or_init(|| made))
        }
    }
}

fn make_program() -> Result<Program> {
    if refusal::apparmor_restricts()
        && let Ok(path) = launcher::find()
    {
        return Ok(Program::Installed(path));
    }
    supervisor::BYTES.ok_or_else(launcher::no_supervisor)?;
    match supervisor::memory_file() {
        Ok(file) => Ok(Program::Memory(file)),
        Err(error) => launcher::find().map(Program::Installed).map_err(|why| no_memory_file(&error, &why)),
    }
}

fn no_memory_file(error: &std::io::Error, launcher: &str) -> Error {
    Error::new(
        ErrorKind::HostUnable,
        "start supervisor",
        format!("this host forbids memory files (memfd_create: {error}), and there is no launcher ({launcher})"),
    )
    .with_backend(BACKEND)
    .with_help("install the launcher: sudo tierbox doctor --install; or allow memfd_create: sysctl vm.memfd_noexec=0, no seccomp filter against it")
}

impl Program {
    /// A path under which a child of this process can execute it.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Memory(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            Self::Installed(path) => path.clone(),
        }
    }

    /// A path under which a program started by a child can execute it.
    fn path_for_others(&self) -> PathBuf {
        match self {
            Self::Memory(file) => PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())),
            Self::Installed(path) => path.clone(),
        }
    }

    /// How it is executed, for reports.
    pub fn describe(&self) -> String {
        match self {
            Self::Memory(_) => "sealed memory file".to_owned(),
            Self::Installed(path) => path.display().to_string(),
        }
    }
}

/// A keeper that was started ahead of its use. It knows nothing yet, waits for its set-up, and ends with its socket.
static SPARE: Mutex<Option<Spawned>> = Mutex::new(None);

/// Starts a keeper ahead of its use, if none waits already. What fails here fails again when it matters, and is told then.
pub fn prepare() {
    // Held meanwhile: a start that comes now waits for this keeper, which is sooner up than another.
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    if !spare.as_ref().is_some_and(Spawned::waits) {
        *spare = start_keeper(None, false).ok();
    }
}

/// A keeper: the one that waits, or else a new one. With `life`, it keeps the writing end of a pipe open for as long as its machine
/// lives.
///
/// # Errors
/// As [`program`]; `HostUnable` if it cannot be executed.
pub fn keeper(scope: Option<&Scope>, life: bool) -> Result<Spawned> {
    let spare = if scope.is_none() && !life { SPARE.lock().unwrap_or_else(PoisonError::into_inner).take() } else { None };
    match spare.filter(Spawned::waits) {
        Some(spare) => Ok(spare),
        None => start_keeper(scope, life),
    }
}

/// Tells that an environment was started. A process that starts several will start more: from the second on, the keeper of the next
/// is started while the caller uses this one.
pub fn started_one() {
    static BEFORE: AtomicBool = AtomicBool::new(false);
    if BEFORE.swap(true, Ordering::Relaxed) {
        tokio::task::spawn_blocking(prepare);
    }
}

impl Spawned {
    /// Whether it is still there.
    fn waits(&self) -> bool {
        !self.keeper.has_ended()
    }
}

fn start_keeper(scope: Option<&Scope>, life: bool) -> Result<Spawned> {
    let program = program()?;
    let failed = |error: std::io::Error| refusal::cannot_spawn(&error, &program.describe());
    let (socket, theirs) = UnixStream::pair().map_err(failed)?;
    let (reader, writer) = if life {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        (Some(reader), Stdio::from(writer))
    } else {
        (None, Stdio::null())
    };
    let mut command = match scope {
        None => Command::new(program.path()),
        Some(scope) => scope.command(&program.path_for_others()),
    };
    command.stdin(OwnedFd::from(theirs)).stdout(writer).stderr(Stdio::null()).current_dir(Path::new("/"));
    if scope.is_none() {
        command.env_clear();
    }
    // A group of its own: Ctrl-C on the caller's terminal is for the caller to handle.
    let child = command.process_group(0).spawn().map_err(failed)?;
    // The command still holds its ends of the socket and the pipe.
    drop(command);
    Ok(Spawned { keeper: watch_child(child)?, socket, life: reader })
}

#[cfg(test)]
mod unit {
    use std::fs::File;
    use std::io::{Read, Write};

    use rustix::fs::SealFlags;

    use super::*;

    #[test]
    fn the_memory_file_cannot_be_changed() {
        let Program::Memory(file) = program().unwrap() else { return };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut contents = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut contents).unwrap();
        assert_eq!(contents, supervisor::BYTES.unwrap());
        assert!(std::fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"x")).is_err());
        let seals = rustix::fs::fcntl_get_seals(file).unwrap();
        assert!(seals.contains(SealFlags::SEAL | SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK));
    }
}
