//! Canaries on this host: listeners that whoever can reach the host's network or files hears from.

use std::net::UdpSocket;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tierbox_supervisor::canary::{Listeners, Ports, addresses};

use super::pages::Pages;

/// How often the end is looked for.
const STEP: Duration = Duration::from_millis(100);

/// What the names of directories and sockets begin with.
const NAME: &str = "tierbox-canary-";

/// How long it may take at most until somebody listens on the socket of a directory that was just made.
const UNFINISHED: Duration = Duration::from_secs(60);

/// How long it usually takes at most.
const BRIEF: Duration = Duration::from_secs(2);

/// Removes the directories of canaries whose process died before it could: this user's, and only those on whose socket nobody listens
/// any more. That socket has a path, so that it is heard in another network namespace too; the one without, which is made first, says
/// in the same one that a directory is about to be filled.
pub fn remove_orphans() {
    let own = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = |nonce: &str| nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
        let Some(name) = name.to_str().filter(|name| name.strip_prefix(NAME).is_some_and(is_ours)) else { continue };
        let Ok(meta) = std::fs::symlink_metadata(entry.path()) else { continue };
        let age = meta.modified().ok().and_then(|made| made.elapsed().ok()).unwrap_or_default();
        let refused = |tried: std::io::Result<UnixStream>| tried.err().map(|error| error.kind());
        let nameless = || SocketAddr::from_abstract_name(name).and_then(|address| UnixStream::connect_addr(&address));
        let is_dead = || match refused(UnixStream::connect(entry.path().join("socket"))) {
            // Between its name and its owner's readiness lies a moment.
            Some(std::io::ErrorKind::ConnectionRefused) => age > BRIEF && refused(nameless()).is_some(),
            Some(std::io::ErrorKind::NotFound) => age > UNFINISHED,
            _ => false,
        };
        if meta.is_dir() && meta.uid() == own && is_dead() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Listeners of every kind, open to every user of this host, and a file. Gone when dropped.
pub(crate) struct Canaries {
    /// What they answer.
    pub nonce: String,
    /// A world-readable directory of their own.
    pub directory: PathBuf,
    /// Where they listen.
    pub ports: Ports,
    /// The name of a socket without a path.
    pub nameless: String,
    /// IPv4 addresses of this host, loopback first.
    pub addresses4: Vec<String>,
    /// IPv6 addresses of this host, loopback first.
    pub addresses6: Vec<String>,
    /// What canary names lead to.
    pages: Pages,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Canaries {
    pub(crate) fn new() -> std::io::Result<Self> {
        remove_orphans();
        let nonce = nonce()?;
        let nameless = format!("{NAME}{nonce}");
        let alive = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&nameless)?)?;
        let directory = std::env::temp_dir().join(&nameless);
        std::fs::create_dir(&directory)?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        let made = Self::listen(nonce, nameless, alive, directory.clone());
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&directory);
        }
        made
    }

    fn listen(nonce: String, nameless: String, alive: UnixListener, directory: PathBuf) -> std::io::Result<Self> {
        std::fs::write(directory.join("marker"), &nonce)?;
        let socket = directory.join("socket");
        let unix = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))?;
        let listeners = Listeners::open(&nonce, vec![unix, alive])?;
        let (addresses4, addresses6) = addresses();
        let mut canaries = Self {
            directory,
            ports: listeners.ports()?,
            nameless,
            addresses4,
            addresses6,
            pages: Pages::new(nonce.clone())?,
            over: Arc::default(),
            thread: None,
            nonce,
        };
        let over = canaries.over.clone();
        let builder = std::thread::Builder::new().name("tierbox-canaries".into());
        canaries.thread = Some(builder.spawn(move || serve(&listeners, &over))?);
        Ok(canaries)
    }

    /// Where canary names lead.
    pub(super) fn pages(&self) -> std::net::SocketAddr {
        self.pages.at
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the thread at once.
        let _ = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"", ("127.0.0.1", self.ports.udp)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn serve(listeners: &Listeners, over: &AtomicBool) {
    let wait = Timespec { tv_sec: 0, tv_nsec: STEP.subsec_nanos().into() };
    while !over.load(Ordering::Relaxed) {
        let descriptors = listeners.descriptors();
        let mut fds: Vec<PollFd<'_>> = descriptors.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let _ = poll(&mut fds, Some(&wait));
        listeners.answer();
    }
}

/// 128 random bits in hex, from the kernel.
pub(crate) fn nonce() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    let mut source = std::fs::File::open("/dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_removed_and_nothing_else() {
        let living = Canaries::new().unwrap();
        let orphan = std::env::temp_dir().join(format!("{NAME}{}", nonce().unwrap()));
        let other = std::env::temp_dir().join(format!("{NAME}of-somebody-{}", nonce().unwrap()));
        for directory in [&orphan, &other] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("marker"), "x").unwrap();
            drop(UnixListener::bind(directory.join("socket")).unwrap());
        }
        let unfinished = std::env::temp_dir().join(format!("{NAME}{}", nonce().unwrap()));
        std::fs::create_dir(&unfinished).unwrap();
        remove_orphans();
        assert!(unfinished.exists() && orphan.exists(), "their owners are about to listen");
        std::fs::File::open(&orphan).unwrap().set_modified(std::time::SystemTime::now() - BRIEF * 2).unwrap();
        std::fs::File::open(&unfinished).unwrap().set_modified(std::time::SystemTime::now() - UNFINISHED * 2).unwrap();
        remove_orphans();
        assert!(!unfinished.exists());
        assert!(!orphan.exists() && other.exists() && living.directory.exists());
        std::fs::remove_dir_all(other).unwrap();
        let directory = living.directory.clone();
        drop(living);
        assert!(!directory.exists());
    }
}
