//! Sockets: who may connect, how many at once, and how long they may take.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tierbox::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::handler;
use crate::presence::Presence;
use crate::principal::Origin;
use crate::seats::Visitor;
use crate::server::Shared;

/// Header lines of one request.
const HEADERS: usize = 64;
/// Bytes of a request's head.
const HEAD: usize = 64 << 10;

/// What the daemon listens on.
pub(crate) struct Listeners {
    pub path: PathBuf,
    pub address: Option<SocketAddr>,
    unix: UnixListener,
    tcp: Option<TcpListener>,
    /// Locked as long as this daemon lives.
    _lock: std::fs::File,
}

impl Listeners {
    pub async fn bind(path: &Path, tcp: Option<SocketAddr>, has_tokens: bool) -> Result<Self> {
        if let Some(address) = tcp {
            let problem = match () {
                () if !address.ip().is_loopback() => "it is not a loopback address",
                () if !has_tokens => "there are no tokens for those who come over TCP",
                () => "",
            };
            if !problem.is_empty() {
                let error = Error::new(ErrorKind::InvalidInput, "listen", format!("{address} is refused: {problem}"));
                return Err(error.with_help("listen on 127.0.0.1 or [::1] with a token file; use SSH to come from elsewhere"));
            }
        }
        let path = std::path::absolute(path).map_err(|error| failed(path, error))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        private_directory(directory)?;
        let lock = lock(&path)?;
        // Only the owner of the lock comes here, so that what lies there is of a dead daemon.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, error)),
            _ => {}
        }
        let unix = UnixListener::bind(&path).map_err(|error| failed(&path, error))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(|error| failed(&path, error))?;
        let tcp = match tcp {
            Some(address) => Some(TcpListener::bind(address).await.map_err(|error| Error::io("listen", error))?),
            None => None,
        };
        let address = tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
        Ok(Self { path, address, unix, tcp, _lock: lock })
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::io("listen", error).with_context("path", path.display())
}

/// Makes a directory that only its owner can enter, or checks that it is one.
fn private_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failed(path, error))?;
    let meta = std::fs::symlink_metadata(path).map_err(|error| failed(path, error))?;
    if meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    let message = format!("{} is not a directory of your own that nobody else can enter", path.display());
    Err(Error::new(ErrorKind::PermissionDenied, "listen", message).with_help(format!("chmod 700 {}", path.display())))
}

fn lock(path: &Path) -> Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let beside = path.with_extension("lock");
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(&beside);
    let file = file.map_err(|error| failed(&beside, error))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Error::new(ErrorKind::AlreadyExists, "listen", format!("a daemon listens on {} already", path.display()))
            .with_help("use that one, or end it first")
    })?;
    Ok(file)
}

/// Accepts connections, and serves each in a task of its own.
pub(crate) async fn accept(shared: Arc<Shared>, listeners: &Listeners) -> Result<()> {
    // Each has room of its own: who has no token could else keep those out who come over the Unix socket.
    let room = || Arc::new(Semaphore::new(shared.options.connections));
    let (room_of_unix, room_of_tcp) = (room(), room());
    let own = rustix::process::geteuid().as_raw();
    loop {
        let shared = shared.clone();
        tokio::select! {
            (place, accepted) = placed(&room_of_unix, listeners.unix.accept()) => {
                let Ok((stream, _)) = accepted else { pause().await; continue };
                let Some((pid, uid)) = peer(&stream, own) else { continue };
                let Some(presence) = presence(&stream) else { continue };
                tokio::spawn(async move {
                    connection(shared, Origin::Unix { pid, uid }, presence, stream).await;
                    drop(place);
                });
            }
            (place, accepted) = placed(&room_of_tcp, tcp(listeners.tcp.as_ref())) => {
                let Ok((stream, address)) = accepted else { pause().await; continue };
                let port = listeners.address.map_or(0, |address| address.port());
                let Some(presence) = presence(&stream) else { continue };
                if !address.ip().is_loopback() || stream.set_nodelay(true).is_err() {
                    continue;
                }
                tokio::spawn(async move {
                    connection(shared, Origin::Tcp { port }, presence, stream).await;
                    drop(place);
                });
            }
        }
    }
}

/// Ready when the time is up in which a client must have shown who it is, unless it has.
async fn stranger(visitor: &Visitor, greeting: Duration) {
    tokio::time::sleep(greeting).await;
    if visitor.is_known() {
        std::future::pending().await
    }
}

/// Waits for room, and then for a connection.
async fn placed<T>(room: &Arc<Semaphore>, accepted: impl Future<Output = T>) -> (Option<OwnedSemaphorePermit>, T) {
    // It is never closed.
    let place = room.clone().acquire_owned().await.ok();
    (place, accepted.await)
}

async fn tcp(listener: Option<&TcpListener>) -> std::io::Result<(tokio::net::TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Out of descriptors, most likely: trying again at once would only burn time.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The process at the other end and its user, if it is our own one (or root, who could do everything anyway).
fn peer(stream: &UnixStream, own: u32) -> Option<(i32, u32)> {
    let credentials = stream.peer_cred().ok()?;
    ([own, 0].contains(&credentials.uid())).then(|| (credentials.pid().unwrap_or(0), credentials.uid()))
}

fn presence(stream: &impl AsFd) -> Option<Presence> {
    let copy: OwnedFd = stream.as_fd().try_clone_to_owned().ok()?;
    Some(Presence::new(copy))
}

async fn connection<S>(shared: Arc<Shared>, origin: Origin, presence: Presence, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    shared.metrics.connections.fetch_add(1, Ordering::Relaxed);
    let visitor = Arc::new(if matches!(origin, Origin::Unix { .. }) { Visitor::known() } else { Visitor::default() });
    let service = service_fn(|request| {
        let (shared, presence, origin, visitor) = (shared.clone(), presence.clone(), origin.clone(), visitor.clone());
        async move { Ok::<_, Infallible>(handler::handle(shared, &origin, presence, request, &visitor).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.options.patience)
        .max_headers(HEADERS)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::debug!(target: "tierbox::serve", %error, "a connection broke off");
        },
        () = stranger(&visitor, shared.options.greeting) => {
            tracing::debug!(target: "tierbox::serve", "a connection without a valid token was closed");
        }
    }
    shared.metrics.connections.fetch_sub(1, Ordering::Relaxed);
}
