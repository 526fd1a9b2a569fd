//! The beginning of a command's life: launch, news of it, signals.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use super::board::Stage;
use super::domain::Domain;
use super::exec::{self, Command, Follower, Retry};
use super::launch::{Birth, Order};
use super::stream::Tap;
use super::sys;
use super::timers::Timer;
use super::{Child, Engine};
use crate::protocol::{Done, End, Exec, Failure, FromSupervisor, NotStarted};
use crate::runtime::identity::Identity;

/// After this long a launch that went well is told to whoever waits for that, and a tree that is being killed is looked at.
pub const FIRST_LOOK: Duration = Duration::from_millis(1);

/// After this long it is told to everybody. A command that ends before has the time to itself: on a slow machine, or over a line of many
/// hands, one more message in its middle takes longer than the command.
const LATER_LOOK: Duration = Duration::from_millis(25);

/// The longest pause between two looks at a tree that is being killed, or at a child that is being launched.
const SLOWEST_LOOK: Duration = Duration::from_millis(50);

/// How often a command is launched again that was killed before it ran.
const RETRIES: u8 = 3;

/// A command's process (or its shim) as it was made.
struct Birthright {
    pid: i32,
    slot: usize,
    domain: Domain,
}

/// The end of a command that never ran.
pub fn never_ran(cause: NotStarted) -> Done {
    Done {
        end: End::NotStarted { cause },
        cannot_execute: None,
        wall_us: 0,
        user_us: None,
        system_us: None,
        peak_memory: None,
        stdout_total: 0,
        stderr_total: 0,
    }
}

impl Engine {
    /// Launches a command for a call.
    pub(super) fn launch(&mut self, connection: u32, call: u32, exec: Exec, passed: Vec<OwnedFd>) {
        let id = exec.id;
        if self.commands.was_launched(&id) {
            let done = never_ran(NotStarted::AlreadyLaunched);
            self.connections.send(connection, call, &FromSupervisor::Done { done });
            return;
        }
        if let Err(detail) = super::environment::check(&exec) {
            self.fail_call(connection, call, Failure::Invalid, 0, detail);
            return;
        }
        let launched = Instant::now();
        match self.start(connection, call, &exec, passed, launched) {
            Ok(key) => self.follow_launch(connection, call, key, &exec),
            Err(cause) => {
                self.commands.burn(id);
                self.connections.send(connection, call, &FromSupervisor::Done { done: never_ran(cause) });
            }
        }
    }

    fn follow_launch(&mut self, connection: u32, call: u32, key: u32, exec: &Exec) {
        self.connections.open_call(connection, call, super::connection::Call::Exec(key));
        self.watch_streams(key);
        self.set_timer(key, if exec.detached { FIRST_LOOK } else { LATER_LOOK }, Timer::Look(key));
        if let Some(limit) = exec.timeout_ms {
            self.set_timer(key, Duration::from_millis(limit), Timer::Timeout(key));
        }
        if let Some(limit) = exec.idle_ms {
            self.set_timer(key, Duration::from_millis(limit), Timer::Idle(key));
        }
    }

    fn start(
        &mut self,
        connection: u32,
        call: u32,
        exec: &Exec,
        passed: Vec<OwnedFd>,
        launched: Instant,
    ) -> Result<u32, NotStarted> {
        if self.commands.is_full() {
            return Err(NotStarted::NoResources);
        }
        let identity = self.identify(exec.user.as_deref())?;
        let (stdio, framed) = self.stdio(exec, passed, &identity).map_err(|_| NotStarted::NoResources)?;
        let order = Order::new(&self.setup, exec, &identity, &stdio);
        let Birthright { pid, slot, domain } = match self.use_spare(&order, &stdio) {
            Some(spare) => Birthright { pid: spare.pid, slot: spare.slot, domain: spare.domain },
            None => self.fork(order.clone(), &stdio).ok_or(NotStarted::NoResources)?,
        };
        let shimmed = domain.wants_shim();
        let kills_before = self.kills_before();
        let key = self.commands.add(Command {
            id: exec.id,
            argv: exec::shown(&exec.argv),
            launched,
            detached: exec.detached,
            kill_leftovers: exec.kill_leftovers,
            idle: exec.idle_ms.map(Duration::from_millis),
            owner: Some(connection),
            retry: Some(Retry { order, stdio, left: RETRIES }),
            slot: Some(slot),
            domain: Some(domain),
            pid: (!shimmed).then_some(pid),
            pending_signals: Vec::new(),
            started: false,
            end: None,
            cannot_execute: None,
            kills_before,
            usage: None,
            reaped: None,
            killing: None,
            orphaned: false,
            framed,
            followers: vec![Follower { connection, call, taps: [Tap::from(0), Tap::from(0)] }],
            waiters: Vec::new(),
            timers: Vec::new(),
            done: None,
        });
        self.children.insert(pid, Child::Command(key));
        if shimmed {
            self.shimmed.insert(slot, key);
        }
        Ok(key)
    }

    fn fork(&mut self, order: Order, stdio: &[Option<OwnedFd>; 3]) -> Option<Birthright> {
        let command = order.prepare()?;
        let fds = stdio.each_ref().map(|fd| fd.as_ref().map_or(self.habitat.null, AsRawFd::as_raw_fd));
        let mut domain = self.domains.take().ok()?;
        let Some(slot) = self.board.take() else {
            self.spent.push(domain);
            return None;
        };
        let birth = Birth {
            habitat: &self.habitat,
            slot: self.board.slot(slot),
            number: slot,
            cgroups: &domain.doors(),
            shim: domain.wants_shim(),
        };
        match birth.fork(|birth| birth.run(&command, fds)) {
            Ok(pid) => {
                domain.shim = domain.wants_shim().then_some(pid);
                Some(Birthright { pid, slot, domain })
            }
            Err(_) => {
                self.board.give_back(slot);
                self.spent.push(domain);
                None
            }
        }
    }

    /// Launches a command again whose child was killed before it could execute anything. Whether there is a child again.
    pub(super) fn relaunch(&mut self, key: u32, retry: Retry) -> bool {
        let Some(left) = retry.left.checked_sub(1) else { return false };
        let Some(Birthright { pid, slot, domain }) = self.fork(retry.order.clone(), &retry.stdio) else { return false };
        self.release(key);
        self.children.insert(pid, Child::Command(key));
        let shimmed = domain.wants_shim();
        if shimmed {
            self.shimmed.insert(slot, key);
        }
        let Some(command) = self.commands.get(key) else { return false };
        (command.slot, command.domain, command.pid) = (Some(slot), Some(domain), (!shimmed).then_some(pid));
        (command.killing, command.orphaned) = (None, false);
        command.retry = Some(Retry { left, ..retry });
        true
    }

    fn identify(&self, user: Option<&str>) -> Result<Identity, NotStarted> {
        let Some(user) = user.filter(|user| *user != self.agent.name) else { return Ok(self.agent.clone()) };
        let identity = Identity::lookup(user)?;
        if identity.uid == self.agent.uid {
            return Ok(self.agent.clone());
        }
        let allowed = self.other_users && (identity.uid == rustix::process::getuid().as_raw() || can_change_user());
        if allowed { Ok(identity) } else { Err(NotStarted::UserNotMapped) }
    }

    /// Sets a deadline that goes with the command.
    pub(super) fn set_timer(&mut self, key: u32, wait: Duration, timer: Timer) {
        let Some(command) = self.commands.get(key) else { return };
        command.timers.push((self.timers.after(wait, timer), timer));
    }

    /// The process of a command, once there is one.
    pub(super) fn pid_of(&mut self, key: u32) -> Option<i32> {
        let command = self.commands.get(key)?;
        if command.pid.is_none()
            && let Some(slot) = command.slot
        {
            command.pid = Some(self.board.slot(slot).pid.load(Acquire)).filter(|pid| *pid > 0);
        }
        command.pid
    }

    /// Looks whether a launch succeeded, and whether a killed tree is gone.
    pub(super) fn look(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        let age = command.killing.unwrap_or(command.launched).elapsed();
        let again = command.done.is_none() && (command.killing.is_some() || !command.started);
        command.timers.retain(|(_, timer)| *timer != Timer::Look(key));
        self.tell_started(key);
        self.deliver_signals(key);
        if self.commands.get(key).is_some_and(|command| command.killing.is_some() && command.done.is_none()) {
            self.kill_once(key);
            self.settle(key);
        }
        let open = self.commands.get(key).is_some_and(|command| {
            command.done.is_none() && (command.killing.is_some() || !command.started || !command.pending_signals.is_empty())
        });
        if again && open {
            self.set_timer(key, (age / 4 + FIRST_LOOK).min(SLOWEST_LOOK), Timer::Look(key));
        }
    }

    fn tell_started(&mut self, key: u32) {
        let Some(pid) = self.pid_of(key) else { return };
        let Some(command) = self.commands.get(key) else { return };
        let ready = command.slot.is_some_and(|slot| self.board.slot(slot).reached().0 == Stage::Ready);
        if ready {
            command.retry = None;
        }
        if !ready || std::mem::replace(&mut command.started, true) {
            return;
        }
        let message = FromSupervisor::Started { pid: pid as u32 };
        for follower in &command.followers {
            self.connections.send(follower.connection, follower.call, &message);
        }
    }

    /// Sends a signal to a command's process. False if it has ended.
    pub(super) fn signal(&mut self, key: u32, signal: i32) -> bool {
        let Some(command) = self.commands.get(key) else { return false };
        if command.reaped.is_some() {
            return false;
        }
        command.pending_signals.truncate(16);
        command.pending_signals.push(signal);
        self.deliver_signals(key);
        if self.commands.get(key).is_some_and(|command| !command.pending_signals.is_empty()) {
            self.set_timer(key, FIRST_LOOK, Timer::Look(key));
        }
        true
    }

    fn deliver_signals(&mut self, key: u32) {
        let Some(pid) = self.pid_of(key) else { return };
        let Some(command) = self.commands.get(key) else { return };
        let Some(slot) = command.slot.map(|slot| self.board.slot(slot)) else { return };
        // Not before it is the command: a signal would hit the supervisor's own code.
        if slot.reached().0 != Stage::Ready {
            return;
        }
        for signal in std::mem::take(&mut command.pending_signals) {
            if slot.settled().is_none() && command.reaped.is_none() {
                let _ = sys::kill(pid, signal);
            }
        }
    }
}

fn can_change_user() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID))
}
