//! Things on the host that no attack may reach.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;

use crate::case::{Verdict, ensure, ensure_eq};

/// A directory with a secret, and listeners on every kind of address. Open to every user of the host: only isolation keeps a
/// sandbox away. Cheap to clone.
#[derive(Clone)]
pub struct Canary(Arc<Inner>);

struct Inner {
    directory: tempfile::TempDir,
    secret: String,
    tcp: TcpListener,
    udp: UdpSocket,
    path: UnixListener,
    nameless: UnixListener,
    name: String,
}

impl Canary {
    /// Sets the canaries up.
    ///
    /// # Errors
    /// What the host says.
    pub fn new() -> std::io::Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("tierbox-canary-").permissions(fs::Permissions::from_mode(0o777)).tempdir()?;
        let number = crate::subject::number();
        let secret = format!("canary-{number:x}-{:x}", crate::subject::number());
        fs::write(directory.path().join("secret"), &secret)?;
        fs::set_permissions(directory.path().join("secret"), fs::Permissions::from_mode(0o666))?;
        let name = format!("tierbox-canary-{number:x}");
        let path = UnixListener::bind(directory.path().join("socket"))?;
        fs::set_permissions(directory.path().join("socket"), fs::Permissions::from_mode(0o666))?;
        let inner = Inner {
            secret,
            tcp: TcpListener::bind("0.0.0.0:0")?,
            udp: UdpSocket::bind("0.0.0.0:0")?,
            path,
            nameless: UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?,
            name,
            directory,
        };
        inner.tcp.set_nonblocking(true)?;
        inner.udp.set_nonblocking(true)?;
        inner.path.set_nonblocking(true)?;
        inner.nameless.set_nonblocking(true)?;
        Ok(Self(Arc::new(inner)))
    }

    /// The directory on the host.
    pub fn directory(&self) -> String {
        self.0.directory.path().to_string_lossy().into_owned()
    }

    /// The file with the secret, on the host.
    pub fn secret_path(&self) -> String {
        format!("{}/secret", self.directory())
    }

    /// Whether bytes from a sandbox hold the secret.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        bytes.windows(self.0.secret.len()).any(|window| window == self.0.secret.as_bytes())
    }

    /// The TCP port that listens on every address of the host.
    pub fn tcp_port(&self) -> u16 {
        self.0.tcp.local_addr().map_or(0, |address| address.port())
    }

    /// The UDP port that listens on every address of the host.
    pub fn udp_port(&self) -> u16 {
        self.0.udp.local_addr().map_or(0, |address| address.port())
    }

    /// The name of the host's socket that has no path.
    pub fn abstract_name(&self) -> &str {
        &self.0.name
    }

    /// Fails if anything of the host was changed or reached.
    ///
    /// # Errors
    /// What was.
    pub fn check(&self) -> Verdict {
        let inner = &*self.0;
        ensure_eq!(fs::read_to_string(self.secret_path())?, inner.secret, "the host's canary file");
        let mut names: Vec<_> = fs::read_dir(inner.directory.path())?.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        ensure_eq!(names, ["secret", "socket"], "names in the host's canary directory");
        let quiet = |result: std::io::Result<()>| matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock);
        ensure!(quiet(inner.tcp.accept().map(drop)), "something connected to the host's TCP canary");
        ensure!(quiet(inner.udp.recv_from(&mut [0; 16]).map(drop)), "something sent to the host's UDP canary");
        ensure!(quiet(inner.path.accept().map(drop)), "something connected to the host's Unix socket");
        ensure!(quiet(inner.nameless.accept().map(drop)), "something connected to the host's abstract socket");
        Ok(())
    }
}
