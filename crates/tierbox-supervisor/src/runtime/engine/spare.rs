//! Children made in advance: a fork and the way into a kill domain take longer than anything else at a launch.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType,
};

use super::board::Stage;
use super::domain::Domain;
use super::launch::{Birth, Order};
use super::sys;
use super::timers::Timer;
use super::{Child, Engine};
use crate::wire::Wire;

/// The longest order that goes to a spare child. Longer ones are worth a fork of their own.
const MAX_ORDER: usize = 48 << 10;

/// Spare children kept when commands come many at a time.
const MAX_SPARES: usize = 4;

/// This long after the newest command's end it is a good time to make one more.
pub const QUIET: Duration = Duration::from_millis(2);

/// Or this long after its launch, if it still runs: making one takes time from it, and on a slow machine more than it takes itself.
const PATIENCE: Duration = Duration::from_millis(50);

/// A child that waits to become a command.
#[derive(Debug)]
pub struct Spare {
    /// The direct child: the shim, if there is one.
    pub pid: i32,
    /// Where it reports.
    pub slot: usize,
    /// Its kill domain, which it has entered or enters before it looks for orders.
    pub domain: Domain,
    socket: OwnedFd,
}

/// The spare children, and how many there should be.
#[derive(Debug)]
pub struct Spares {
    ready: Vec<Spare>,
    wanted: usize,
    /// Whether commands came at all: a machine may be there for a single one, which spares would only hold up.
    launches: usize,
    /// Whether one was used or missed since the last was made. One that dies is not replaced before: somebody inside may be
    /// killing them as fast as they come.
    due: bool,
    /// How long to wait for a quieter moment, and when it comes once that is counted.
    pause: Duration,
    quiet: Option<Instant>,
}

impl Default for Spares {
    fn default() -> Self {
        Self { ready: Vec::new(), wanted: 2, launches: 0, due: false, pause: QUIET, quiet: None }
    }
}

impl Engine {
    /// Gives an order to a spare child. `None` if there is none that takes it; the order was then not carried out.
    pub(super) fn use_spare(&mut self, order: &Order, stdio: &[Option<OwnedFd>; 3]) -> Option<Spare> {
        self.spares.due = true;
        self.spares.launches = self.spares.launches.saturating_add(1);
        self.wait_for_quiet(PATIENCE);
        let order = order.to_bytes();
        if order.len() > MAX_ORDER {
            return None;
        }
        let fds: Vec<BorrowedFd<'_>> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        while let Some(spare) = self.spares.ready.pop() {
            if send_order(&spare.socket, &order, &fds).is_ok() {
                return Some(spare);
            }
            self.drop_spare(spare);
        }
        self.spares.wanted = (self.spares.wanted + 1).min(MAX_SPARES);
        None
    }

    /// Makes a spare child if there is none, and sees that more are made in a quieter moment: making one takes something
    /// from commands that run.
    pub(super) fn make_spare(&mut self) {
        if !self.spares.due {
            return;
        }
        if self.spares.ready.is_empty() && self.spares.launches > 1 {
            self.add_spare();
        }
        // Nor is the first command held up, which may be the only one: its end brings the next look.
        let settled = self.spares.launches > 1 || !self.commands.any_live();
        if self.spares.due && settled && self.spares.quiet.is_none() {
            self.spares.quiet = Some(self.timers.after(self.spares.pause, Timer::Spare));
        }
    }

    /// The newest command began or ended: the time to a quieter moment is counted anew.
    pub(super) fn wait_for_quiet(&mut self, pause: Duration) {
        self.spares.pause = pause;
        if let Some(at) = self.spares.quiet.take() {
            self.timers.cancel(at, Timer::Spare);
        }
    }

    /// A quieter moment.
    pub(super) fn add_spare_later(&mut self) {
        self.spares.quiet = None;
        if self.spares.due {
            self.add_spare();
        }
    }

    fn add_spare(&mut self) {
        // Without it the next launch takes longer, and says what is wrong if something is.
        let made = self.birth_spare();
        self.spares.due = made.is_ok() && self.spares.ready.len() < self.spares.wanted;
    }

    fn birth_spare(&mut self) -> io::Result<()> {
        let mut domain = self.domains.take()?;
        let Some(slot) = self.board.take() else {
            self.spent.push(domain);
            return Err(io::ErrorKind::QuotaExceeded.into());
        };
        let born = socket_pair().and_then(|(socket, theirs)| {
            let birth = Birth {
                habitat: &self.habitat,
                slot: self.board.slot(slot),
                number: slot,
                cgroups: &domain.doors(),
                shim: domain.wants_shim(),
            };
            Ok((birth.fork(|birth| birth.wait_for_order(&theirs))?, socket))
        });
        match born {
            Ok((pid, socket)) => {
                domain.shim = domain.wants_shim().then_some(pid);
                self.children.insert(pid, Child::Spare);
                self.spares.ready.push(Spare { pid, slot, domain, socket });
                Ok(())
            }
            Err(error) => {
                self.board.give_back(slot);
                self.spent.push(domain);
                Err(error)
            }
        }
    }

    /// A spare child died.
    pub(super) fn on_spare_gone(&mut self, pid: i32) {
        if let Some(position) = self.spares.ready.iter().position(|spare| spare.pid == pid) {
            let mut spare = self.spares.ready.swap_remove(position);
            spare.domain.shim = None;
            self.drop_spare(spare);
        }
    }

    /// Gives up a spare child that takes no orders.
    fn drop_spare(&mut self, spare: Spare) {
        let Spare { pid, slot, domain, socket } = spare;
        drop(socket);
        if let Some(child) = self.children.get_mut(&pid) {
            // It may use its slot until it is reaped.
            *child = Child::Dropped(slot);
            self.domains.kill(&domain);
            let _ = sys::kill(pid, libc::SIGKILL);
        } else {
            self.board.give_back(slot);
        }
        self.spent.push(domain);
    }

    /// Lets go of all spare children, which end by that.
    pub(super) fn dismiss_spares(&mut self) {
        self.spares.due = false;
        for spare in std::mem::take(&mut self.spares.ready) {
            self.drop_spare(spare);
        }
    }
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn send_order(socket: &OwnedFd, order: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(order)], &mut ancillary, flags)?;
    Ok(())
}

/// Waits for an order; `None` if none will come.
fn receive_order(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let receive = || rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let message = rustix::io::retry_on_intr(receive).ok()?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    (message.bytes > 0).then_some((message.bytes, fds))
}

impl Birth<'_> {
    /// In a spare child: waits, then becomes the command that it is told.
    fn wait_for_order(&self, socket: &OwnedFd) {
        for standard in 0..3 {
            self.must(Stage::Resources, sys::place(self.habitat.null, standard));
        }
        // It must keep nobody's pipe open.
        sys::close_all_but(3, &mut [socket.as_raw_fd()]);
        let mut buffer = vec![0; MAX_ORDER];
        let Some((length, fds)) = receive_order(socket, &mut buffer) else { sys::exit(0) };
        let Ok(order) = Order::from_bytes(&buffer[..length]) else { sys::exit(1) };
        let mut fds = fds.iter().map(AsRawFd::as_raw_fd);
        let mut stdio = [0, 1, 2];
        for (number, comes) in stdio.iter_mut().zip(order.stdio) {
            if comes == 1 {
                *number = fds.next().unwrap_or(*number);
            }
        }
        match order.prepare() {
            Some(command) => self.run(&command, stdio),
            None => self.must(Stage::Resources, Err(io::ErrorKind::InvalidInput.into())),
        }
    }
}
