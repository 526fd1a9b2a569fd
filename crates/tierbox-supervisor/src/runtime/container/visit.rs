//! Another process's network namespace, seen to for the host: sockets are made in it (`listen PID ADDRESS:PORT…`), or addresses
//! made unreachable (`bar PID ADDRESS/BITS…`). A program with several threads cannot enter a user namespace, and a plain user's
//! sandbox lives in one.
//!
//! Nothing of a sandbox has anything to do with this process: the host starts it, it enters, listens, sends the descriptors
//! back over descriptor 0, and ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::net::Netlink;
use super::{EXIT_ENDED, EXIT_FAILED, EXIT_NO_CHANNEL, EXIT_USAGE};
use crate::runtime::sys;

/// The most listening sockets that can be made at once; the kernel passes at most 253 descriptors.
const MOST: usize = 128;

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 256;

/// Makes one datagram socket at the first address and a listening one at each, and sends them: one message with the
/// descriptors and an empty line, or what went wrong.
pub fn run(arguments: &[OsString]) -> u8 {
    let Ok(line) = sys::take_inherited(0) else { return EXIT_NO_CHANNEL };
    let Some((pid, addresses)) = parse(arguments) else { return EXIT_USAGE };
    let sent = match sockets(pid, &addresses) {
        Ok(sockets) => send(&line, &sockets),
        Err(error) => {
            rustix::net::send(&line, error.to_string().as_bytes(), SendFlags::NOSIGNAL).map(drop).and(Err(rustix::io::Errno::IO))
        }
    };
    // The number belongs to the standard streams.
    std::mem::forget(line);
    if sent.is_ok() { EXIT_ENDED } else { EXIT_FAILED }
}

/// Makes prefixes unreachable, whatever other routes there are, and says on stderr what went wrong.
pub fn bar(arguments: &[OsString]) -> u8 {
    let Some((pid, prefixes)) = prefixes(arguments) else { return EXIT_USAGE };
    let barred = enter(pid).and_then(|()| Netlink::open()).map_err(|error| error.to_string()).and_then(|netlink| {
        let bar = |(address, bits): &(Ipv4Addr, u8)| netlink.block(AddressFamily::INET, &address.octets(), *bits);
        prefixes.iter().try_for_each(bar).map_err(|refusal| io::Error::from_raw_os_error(refusal.errno).to_string())
    });
    match barred {
        Ok(()) => EXIT_ENDED,
        Err(why) => super::join::say(2, &why, EXIT_FAILED),
    }
}

fn prefixes(arguments: &[OsString]) -> Option<(u32, Vec<(Ipv4Addr, u8)>)> {
    let (pid, prefixes) = arguments.split_first()?;
    let one = |text: &OsString| {
        let (address, bits) = text.to_str()?.split_once('/')?;
        Some((address.parse().ok()?, bits.parse().ok().filter(|bits| *bits <= 32)?))
    };
    Some((pid.to_str()?.parse().ok()?, prefixes.iter().map(one).collect::<Option<_>>()?))
}

fn parse(arguments: &[OsString]) -> Option<(u32, Vec<SocketAddr>)> {
    let (pid, addresses) = arguments.split_first()?;
    let addresses = addresses.iter().map(|text| text.to_str()?.parse().ok()).collect::<Option<Vec<SocketAddr>>>()?;
    let count = (1..=MOST).contains(&addresses.len());
    pid.to_str()?.parse().ok().filter(|_| count).map(|pid| (pid, addresses))
}

fn sockets(pid: u32, addresses: &[SocketAddr]) -> io::Result<Vec<OwnedFd>> {
    enter(pid)?;
    let mut own: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect();
    own.dedup();
    for address in own {
        if let IpAddr::V4(address) = address {
            Netlink::open()?.add_loopback_address(address)?;
        }
    }
    let datagrams = addresses.first().map(|address| bound(*address, SocketType::DGRAM));
    let listening = addresses.iter().map(|address| {
        let socket = bound(*address, SocketType::STREAM)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    });
    datagrams.into_iter().chain(listening).collect()
}

/// Enters the network of a process, by way of the user namespace that it is in.
fn enter(pid: u32) -> io::Result<()> {
    let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}"));
    let (user, net) = (open("user")?, open("net")?);
    if user.metadata()?.ino() != std::fs::metadata("/proc/self/ns/user")?.ino() {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    }
    Ok(move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn bound(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let named = |error: rustix::io::Errno| io::Error::new(io::Error::from(error).kind(), format!("{address}: {error}"));
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    rustix::net::bind(&socket, &address).map_err(named)?;
    Ok(socket)
}

fn send(line: &OwnedFd, sockets: &[OwnedFd]) -> rustix::io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST + 1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(line, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}
