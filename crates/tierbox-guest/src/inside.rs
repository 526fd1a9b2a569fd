//! What the host does in a sandbox's network: sockets of its own there, and addresses that are unreachable.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The most sockets that come back.
const MOST: usize = 129;

/// How long making them may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens in the network namespace of a process: a datagram socket at the first address, then a listening socket at each.
/// An address that is not loopback's is added to its loopback device. The sockets are this process's alone: nothing in
/// the sandbox holds them, and they close with this process.
///
/// Works for root, and for a plain user whose own user namespace the process is in. `program` is the supervisor's
/// executable, as seen by this process. Blocks for some milliseconds.
///
/// # Errors
/// What the program says, `TimedOut`, `InvalidData` for another number of sockets than asked for.
pub fn listen_inside(program: &Path, pid: u32, addresses: &[SocketAddr]) -> io::Result<Vec<OwnedFd>> {
    let (line, theirs) = UnixStream::pair()?;
    line.set_read_timeout(Some(PATIENCE))?;
    let mut command = Command::new(program);
    command.arg("listen").arg(pid.to_string()).args(addresses.iter().map(SocketAddr::to_string));
    command.env_clear().current_dir("/").stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    drop(command);
    let answer = receive(&line);
    if answer.is_err() {
        let _ = child.kill();
    }
    child.wait()?;
    let sockets = answer?;
    if sockets.len() != addresses.len() + 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "another number of sockets than asked for"));
    }
    Ok(sockets)
}

/// Makes prefixes unreachable in the network namespace of a process, whatever routes lead there. Nobody in a sandbox without
/// CAP_NET_ADMIN can undo it. For whom it works, and what `program` is, is as for [`listen_inside`].
///
/// # Errors
/// What the program says.
pub fn bar_inside(program: &Path, pid: u32, prefixes: &[(Ipv4Addr, u8)]) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg("bar").arg(pid.to_string()).args(prefixes.iter().map(|(address, bits)| format!("{address}/{bits}")));
    let output = command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(io::Error::other(if said.is_empty() { output.status.to_string() } else { said }))
}

fn receive(line: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut text = [0; 512];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = recvmsg(line, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let sockets: Vec<OwnedFd> = sockets.flatten().collect();
    match &text[..length] {
        b"\n" => Ok(sockets),
        b"" => Err(io::Error::other("the supervisor's program ended without an answer")),
        said => Err(io::Error::other(String::from_utf8_lossy(said).into_owned())),
    }
}
