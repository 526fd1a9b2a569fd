//! Clients come and go.

use std::time::Duration;

use rustix::net::{SendFlags, SocketFlags};

use super::Engine;
use super::connection::Call;
use super::timers::Timer;
use crate::protocol::{Failure, FromSupervisor, Killed, TOO_MANY, encode};
use crate::runtime::machine::Channel;
use crate::setup::Mode;

/// Clients at once.
const MAX_CLIENTS: usize = 256;

/// Tells a client why it is not let in. A new socket has room for that.
fn turn_away(socket: &std::os::fd::OwnedFd) {
    let detail = format!("{MAX_CLIENTS} are connected, which is the most");
    let refused = FromSupervisor::Refused { step: TOO_MANY.to_owned(), errno: 0, detail };
    let _ = rustix::net::send(socket, &encode(0, &refused), SendFlags::NOSIGNAL);
}

impl Engine {
    /// Somebody connects to the machine's socket.
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(listener, flags) else { return };
        if !self.is_harness(&socket) {
            return;
        }
        if self.connections.count() >= MAX_CLIENTS {
            return turn_away(&socket);
        }
        // A socket that cannot be watched is closed again; the client sees the end.
        let _ = self.connections.add(&self.poller, Channel::Socket(socket), false);
    }

    /// Whether a client is the machine's owner. The socket lies in a directory that nobody else can enter; this is the
    /// second bar.
    fn is_harness(&self, socket: &std::os::fd::OwnedFd) -> bool {
        let Some((pid, uid)) = super::sys::peer(socket) else { return false };
        // Who has a process id in a container's own numbering is inside it.
        if self.setup.mode == Mode::Container { pid == 0 } else { uid == 0 || uid == rustix::process::geteuid().as_raw() }
    }

    /// Lets clients go whose stream broke while it was written to, and feeds those that have room again.
    pub(super) fn drop_broken(&mut self) {
        for id in std::mem::take(&mut self.connections.broken) {
            self.lose_line(id);
        }
        for id in std::mem::take(&mut self.connections.relieved) {
            self.feed_client(id);
        }
    }

    pub(super) fn feed_client(&mut self, id: u32) {
        let Some(connection) = self.connections.get(id) else { return };
        let calls: Vec<Call> = connection.calls.values().copied().collect();
        for call in calls {
            match call {
                Call::Exec(key) => self.feed_followers(key),
                Call::File(id) => self.resume_file(id),
                Call::Dial(id) => self.feed_line(id),
                Call::Wait(_) => {}
            }
        }
    }

    /// A client is gone.
    pub(super) fn disconnect(&mut self, id: u32) {
        let Some(connection) = self.connections.remove(&self.poller, id) else { return };
        // A session's grace is over when it comes here.
        let grace = Duration::from_millis(if connection.session.is_some() { 0 } else { connection.grace_ms });
        for call in connection.calls.values() {
            match call {
                Call::File(id) => self.abort_file(*id),
                Call::Dial(id) => self.abort_dial(*id),
                Call::Exec(_) | Call::Wait(_) => {}
            }
        }
        for key in self.commands.keys() {
            self.orphan_command(key, id, grace);
        }
        if connection.own && !self.persist {
            self.lose_own_channel(grace);
        } else if self.abandoned && self.connections.count() == 0 {
            self.ending = true;
        }
    }

    fn orphan_command(&mut self, key: u32, client: u32, grace: Duration) {
        let Some(command) = self.commands.get(key) else { return };
        command.followers.retain(|follower| follower.connection != client);
        command.waiters.retain(|(connection, _)| *connection != client);
        if command.owner == Some(client) {
            command.owner = None;
            if !command.detached && command.done.is_none() {
                self.set_timer(key, grace, Timer::Grace(key));
            }
        }
        self.feed_followers(key);
    }

    /// A command's client did not come back in time.
    pub(super) fn end_grace(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        if command.owner.is_none() && !command.detached {
            self.begin_kill(key, Killed::Cancelled);
        }
    }

    /// The machine's own channel is at its end.
    fn lose_own_channel(&mut self, grace: Duration) {
        self.lonely = self.listener.is_none();
        if self.setup.mode != Mode::Guest || grace.is_zero() || (self.lonely && !self.commands.any_live()) {
            self.ending = true;
        } else {
            self.timers.after(grace, Timer::Abandoned);
        }
    }

    /// The grace of the machine's own channel is over.
    pub(super) fn end_if_abandoned(&mut self) {
        self.abandoned = true;
        if !self.persist && self.connections.count() == 0 {
            self.ending = true;
        }
    }

    /// Ends a call that failed.
    pub(super) fn fail_call(&mut self, connection: u32, call: u32, failure: Failure, errno: i32, detail: &str) {
        let message = FromSupervisor::Failed { failure, errno, detail: detail.to_owned() };
        self.connections.finish(connection, call, &message);
    }
}
