//! The engine: where it is, how it is spoken to, and what its errors mean.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use bollard::errors::Error as Answer;
use bollard::{API_DEFAULT_VERSION, Docker};
use tierbox_core::{Error, ErrorKind, Result};
use tierbox_guest::driver;

use crate::BACKEND;
use crate::settings::{Settings, socket_of};

/// The longest wait for the engine's answer to one request, in seconds. Builds and pulls answer at once and stream.
const PATIENCE: u64 = 120;

/// An engine on this machine, behind its socket.
#[derive(Clone)]
pub struct Engine {
    /// Its socket.
    pub socket: PathBuf,
    /// The client. Every request is a connection of its own.
    pub docker: Docker,
    /// Whether it is podman's service, which takes less.
    pub is_podman: bool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Where the engine is that settings and environment name.
///
/// # Errors
/// `InvalidProfile` for an address that is no socket on this machine.
pub fn locate(settings: &Settings) -> Result<PathBuf> {
    if let Some(host) = &settings.host {
        return socket_of(host);
    }
    if let Some(host) = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()) {
        return socket_of(&host).map_err(|error| error.with_context("from", "DOCKER_HOST"));
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("podman/podman.sock"));
    let docker = PathBuf::from("/var/run/docker.sock");
    let others = own.into_iter().chain([PathBuf::from("/run/podman/podman.sock")]);
    let found = [docker.clone()].into_iter().chain(others).find(|path| path.exists());
    Ok(found.unwrap_or(docker))
}

/// Engines that were spoken to: agreeing on a version takes a request.
static KNOWN: OnceLock<Mutex<HashMap<PathBuf, Engine>>> = OnceLock::new();

impl Engine {
    /// Connects to the engine behind a socket.
    ///
    /// # Errors
    /// `MissingEngine` if nobody answers, `HostUnable` if the socket is closed to this user.
    pub async fn connect(socket: &Path) -> Result<Self> {
        reach(socket).await?;
        let known = KNOWN.get_or_init(Mutex::default);
        let found = known.lock().unwrap_or_else(PoisonError::into_inner).get(socket).cloned();
        if let Some(engine) = found {
            return Ok(engine);
        }
        let unreached = |error: Answer| failed("connect to the engine", &error);
        let docker = Docker::connect_with_unix(&socket.to_string_lossy(), PATIENCE, API_DEFAULT_VERSION).map_err(unreached)?;
        let docker = docker.negotiate_version().await.map_err(unreached)?;
        let version = docker.version().await.map_err(unreached)?;
        let is_podman = version.components.iter().flatten().any(|component| component.name.contains("Podman"));
        let engine = Self { socket: socket.to_owned(), docker, is_podman };
        known.lock().unwrap_or_else(PoisonError::into_inner).insert(socket.to_owned(), engine.clone());
        Ok(engine)
    }
}

/// Tells the reasons apart for which a socket cannot be used.
async fn reach(socket: &Path) -> Result<()> {
    let Err(error) = tokio::net::UnixStream::connect(socket).await else { return Ok(()) };
    let at = socket.display();
    Err(match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::HostUnable, "connect to the engine", format!("{at} is closed to this user"))
                .with_help("add the user to the socket's group (usually `docker`) and log in again, or use a rootless engine")
        }
        std::io::ErrorKind::NotFound => {
            Error::new(ErrorKind::MissingEngine, "connect to the engine", format!("there is no socket at {at}"))
                .with_help("install Docker Engine or podman and start it, or name its socket in docker.host or DOCKER_HOST")
        }
        std::io::ErrorKind::ConnectionRefused => {
            Error::new(ErrorKind::MissingEngine, "connect to the engine", format!("nobody listens at {at}"))
                .with_help("start the engine's daemon")
        }
        _ => Error::io("connect to the engine", error).with_context("socket", at),
    }
    .with_backend(BACKEND))
}

/// Runs what speaks to the engine on the driver's thread, so that streams outlive the caller's runtime. The work goes on if
/// the caller gives up: what it makes is in the lease.
///
/// # Errors
/// The work's own; `Internal` if it panicked.
pub async fn on_driver<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let task = driver::handle()?.spawn(work);
    task.await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "speak with the engine", error.to_string()).with_backend(BACKEND))
    })
}

/// Whether the engine says that something does not exist.
pub fn is_absent(error: &Answer) -> bool {
    matches!(error, Answer::DockerResponseServerError { status_code: 404, .. })
}

/// Whether the engine says that it is doing this already, or that it is done.
pub fn is_settled(error: &Answer) -> bool {
    matches!(error, Answer::DockerResponseServerError { status_code: 304 | 409, .. })
}

/// An answer as an error of ours.
pub fn failed(operation: &'static str, answer: &Answer) -> Error {
    let (kind, message, help) = match answer {
        Answer::DockerResponseServerError { status_code, message } => said(*status_code, message),
        Answer::DockerStreamError { error } => said(500, error),
        Answer::RequestTimeoutError => {
            (ErrorKind::Timeout, format!("the engine gave no answer within {PATIENCE} s"), "see the daemon's log")
        }
        Answer::SocketNotFoundError(path) => {
            (ErrorKind::MissingEngine, format!("there is no socket at {path}"), "start the engine's daemon")
        }
        other => (ErrorKind::Lost, format!("the engine went away: {}", bounded(&chain(other))), "see the daemon's log"),
    };
    Error::new(kind, operation, message).with_backend(BACKEND).with_help(help)
}

fn said(status: u16, message: &str) -> (ErrorKind, String, &'static str) {
    let text = bounded(message);
    let lower = text.to_lowercase();
    let says = |part: &str| lower.contains(part);
    if says("no space left on device") || says("disk quota exceeded") {
        return (
            ErrorKind::NoSpace,
            text,
            "free space where the engine stores its data (`docker system df` shows what takes it)",
        );
    }
    if says("no such image") || says("image not known") {
        return (ErrorKind::NotFound, text, "pull, build or import the image first");
    }
    if says("unknown or invalid runtime") || says("unknown runtime") {
        return (ErrorKind::HostUnable, text, "register the runtime with the engine (daemon.json, `runtimes`)");
    }
    let kind = match status {
        404 => ErrorKind::NotFound,
        400 => ErrorKind::InvalidProfile,
        _ => ErrorKind::HostUnable,
    };
    (kind, format!("the engine says: {text}"), "see the daemon's log; `tierbox doctor` checks the engine")
}

/// An error with its causes: the last one is what happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Text of the engine's for a message: one line of bounded length.
pub fn bounded(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(600).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod unit {
    use super::*;

    fn kind_of(status_code: u16, message: &str) -> ErrorKind {
        failed("x", &Answer::DockerResponseServerError { status_code, message: message.to_owned() }).kind()
    }

    #[test]
    fn answers_become_kinds() {
        assert_eq!(kind_of(404, "No such image: x:1"), ErrorKind::NotFound);
        assert_eq!(kind_of(500, "write /x: no space left on device"), ErrorKind::NoSpace);
        assert_eq!(kind_of(400, "unknown or invalid runtime name: runsc"), ErrorKind::HostUnable);
    }

    #[test]
    fn what_an_engine_says_is_one_bounded_line() {
        let text = bounded(&format!("\x1b[31mbad\nthing{}", "x".repeat(10_000)));
        assert!(text.len() <= 600 && !text.contains('\n') && !text.contains('\x1b'));
    }

    #[tokio::test]
    async fn a_missing_socket_and_a_silent_one_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Engine::connect(&dir.path().join("none.sock")).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::MissingEngine);
        let path = dir.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let dead = Engine::connect(&path).await.unwrap_err();
        assert!(dead.message().contains("nobody listens"), "{dead}");
    }

    #[test]
    fn a_closed_socket_is_told_from_a_missing_one() {
        use std::os::unix::fs::PermissionsExt;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        // This thread alone becomes somebody to whom the socket is closed.
        let asked = std::thread::spawn(move || {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Engine::connect(&path)).unwrap_err()
        });
        let error = asked.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::HostUnable);
        assert!(error.message().contains("closed to this user") && error.help().unwrap().contains("group"), "{error}");
    }
}
