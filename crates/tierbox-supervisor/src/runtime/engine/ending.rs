//! The end of a command's life: killed or by itself, reaped, told.

use std::time::{Duration, Instant};

use super::board::Stage;
use super::lifecycle::FIRST_LOOK;
use super::sys::{self, Rusage, Status};
use super::timers::Timer;
use super::{Child, Engine};
use crate::protocol::{Done, End, FromSupervisor, Killed, NotStarted};

/// After this long the end is told even if something is left of a killed tree.
const LONGEST_KILL: Duration = Duration::from_secs(5);

/// How long a machine whose lifetime is over may take to tell how its commands ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long pipes that background children hold open are waited for.
const DRAIN: Duration = Duration::from_millis(100);

/// How soon what is to be killed is looked at again.
const AGAIN: Duration = Duration::from_millis(5);

impl Engine {
    /// Records why a command's tree is killed, if nothing ended it before, and kills it.
    pub(super) fn begin_kill(&mut self, key: u32, reason: Killed) {
        let Some(command) = self.commands.get(key) else { return };
        if command.done.is_some() {
            return;
        }
        command.end.get_or_insert(End::Killed { reason });
        self.start_killing(key);
    }

    /// The machine's time is up: every command ends for that reason, and then the machine does.
    pub(super) fn expire(&mut self) {
        self.expired = true;
        for key in self.commands.keys() {
            self.begin_kill(key, Killed::Lifetime);
        }
        self.timers.after(LAST_WORDS, Timer::LastWords);
    }

    /// Whether that is done: no command is left whose end was not told.
    pub(super) fn has_expired(&mut self) -> bool {
        self.expired && !self.commands.keys().into_iter().any(|key| self.commands.get(key).is_some_and(|it| it.done.is_none()))
    }

    pub(super) fn start_killing(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        command.killing.get_or_insert_with(Instant::now);
        self.kill_once(key);
        self.settle(key);
        self.set_timer(key, FIRST_LOOK, Timer::Look(key));
    }

    /// One attempt at killing a tree.
    pub(super) fn kill_once(&mut self, key: u32) {
        self.pid_of(key);
        let Some(command) = self.commands.get(key) else { return };
        // The process itself too: it may not have entered its cgroup yet.
        if let (Some(pid), None, true) = (command.pid, command.reaped, self.domains.by_cgroup() || command.orphaned) {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        if let Some(domain) = &command.domain {
            self.domains.kill(domain);
        }
        if command.orphaned {
            let known = |pid: i32| self.children.get(&pid).is_some_and(|child| *child != Child::Command(key));
            if self.domains.kill_strangers(&known) {
                command.orphaned = false;
            }
        }
    }

    /// Whether a command's process or something of its killed tree is still there.
    pub(super) fn is_alive(&mut self, key: u32) -> bool {
        let Some(command) = self.commands.get(key) else { return false };
        if command.done.is_some() {
            return false;
        }
        let empty = command.domain.as_ref().is_none_or(|domain| self.domains.is_empty(domain));
        command.reaped.is_none() || command.orphaned || !empty
    }

    /// A command's process was reaped.
    pub(super) fn on_reaped(&mut self, key: u32, status: i32, usage: Rusage) {
        let Some(command) = self.commands.get(key) else { return };
        if command.reaped.is_some() {
            return;
        }
        let reached = command.slot.map_or((Stage::Ready, 0), |slot| self.board.slot(slot).reached());
        let retry = command.retry.take();
        if let (Stage::Preparing, None, Some(retry)) = (reached.0, &command.end, retry)
            && self.relaunch(key, retry)
        {
            return;
        }
        let Some(command) = self.commands.get(key) else { return };
        command.reaped = Some(Instant::now());
        command.usage = Some(usage);
        let (end, cannot_execute) = end_of(reached, status);
        let killed = matches!(end, End::Signaled { signal: libc::SIGKILL } | End::Exited { code: 137 });
        let before = command.kills_before;
        let lacked = killed && cannot_execute.is_none() && {
            let own = command.domain.as_ref().is_some_and(super::domain::Domain::lacked_memory);
            own || self.lacked_memory(key, before)
        };
        let end = if lacked { End::Killed { reason: Killed::Memory } } else { end };
        let Some(command) = self.commands.get(key) else { return };
        command.cannot_execute = cannot_execute;
        command.end.get_or_insert(end);
        if command.kill_leftovers && self.is_alive(key) {
            self.start_killing(key);
        }
        self.drain_at_end(key);
        self.settle(key);
    }

    /// Takes what is in a command's pipes at its end, and waits a little for those that others hold open.
    fn drain_at_end(&mut self, key: u32) {
        if self.drain_now(key) {
            self.set_timer(key, DRAIN, Timer::Drained(key));
        }
    }

    /// Tells a command's end if there is nothing left to wait for.
    pub(super) fn settle(&mut self, key: u32) {
        let alive = self.is_alive(key);
        let Some(command) = self.commands.get(key) else { return };
        let Some(reaped) = command.reaped else {
            // Somebody killed the shim after it had reaped the command, before it could say so.
            if command.killing.is_some_and(|since| since.elapsed() > LONGEST_KILL) {
                self.on_reaped(key, libc::SIGKILL, Rusage::default());
            }
            return;
        };
        let being_killed = command.killing.is_some_and(|since| alive && since.elapsed() < LONGEST_KILL);
        let streaming = command.framed.as_ref().is_some_and(|framed| framed.outlets.iter().any(|outlet| !outlet.closed));
        if command.done.is_some() || being_killed || streaming {
            return;
        }
        let totals = command.framed.as_ref().map_or([0, 0], |framed| framed.outlets.each_ref().map(super::stream::Outlet::total));
        let usage = command.usage.unwrap_or_default();
        let ran = !matches!(command.end, Some(End::NotStarted { .. }));
        // A small command may fit into what the kernel set aside for the one before: its largest process is the least it used.
        let counted = command.domain.as_ref().and_then(super::domain::Domain::peak_memory);
        let done = Done {
            end: command.end.clone().unwrap_or(End::Signaled { signal: libc::SIGKILL }),
            cannot_execute: command.cannot_execute,
            wall_us: u64::try_from((reaped - command.launched).as_micros()).unwrap_or(u64::MAX),
            user_us: ran.then_some(usage.user_us),
            system_us: ran.then_some(usage.system_us),
            peak_memory: counted.into_iter().chain([usage.max_rss]).max().filter(|peak| ran && *peak > 0),
            stdout_total: totals[0],
            stderr_total: totals[1],
        };
        command.done = Some(done);
        self.tell_done(key, ran);
    }

    fn tell_done(&mut self, key: u32, ran: bool) {
        let pid = self.pid_of(key);
        let Some(command) = self.commands.get(key) else { return };
        let Some(done) = command.done.clone() else { return };
        for (at, timer) in std::mem::take(&mut command.timers) {
            self.timers.cancel(at, timer);
        }
        if let (true, false, Some(pid)) = (ran, std::mem::replace(&mut command.started, true), pid) {
            for follower in &command.followers {
                self.connections.send(follower.connection, follower.call, &FromSupervisor::Started { pid: pid as u32 });
            }
        }
        for (connection, call) in std::mem::take(&mut command.waiters) {
            self.connections.finish(connection, call, &FromSupervisor::Done { done: done.clone() });
        }
        if let Some(framed) = &mut command.framed {
            framed.input = None;
        }
        let keep = command.detached || command.owner.is_none();
        self.release(key);
        self.commands.over(key, keep);
        if self.commands.is_newest(key) {
            self.wait_for_quiet(super::spare::QUIET);
        }
        self.ending |= self.lonely && !self.commands.any_live();
        self.feed_followers(key);
    }

    /// Gives back what a command's process had.
    pub(super) fn release(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        if let Some(slot) = command.slot.take() {
            self.shimmed.remove(&slot);
            self.board.give_back(slot);
        }
        if let Some(mut domain) = command.domain.take() {
            domain.owner = Some(command.id);
            if let Some(shim) = domain.shim {
                self.children.insert(shim, Child::Leftover);
            }
            self.spent.push(domain);
        }
    }

    /// Kills what a command that is done left behind. Whether there was anything.
    pub(super) fn kill_leftovers_of(&mut self, id: &super::exec::Id) -> bool {
        let all = self.spent.iter_mut().chain(&mut self.leftovers);
        let mut found = false;
        for domain in all.filter(|domain| domain.owner.as_ref() == Some(id) && !self.domains.is_empty(domain)) {
            domain.condemned = true;
            found = true;
        }
        if found {
            self.recycle();
        }
        found
    }

    /// Looks whether the domains of commands that are done can be used again.
    pub(super) fn recycle(&mut self) {
        let mut domains = std::mem::take(&mut self.spent);
        domains.append(&mut self.leftovers);
        domains.iter().filter(|domain| domain.condemned).for_each(|domain| self.domains.kill(domain));
        self.leftovers = domains.into_iter().filter_map(|domain| self.domains.give_back(domain)).collect();
        if !self.leftovers.is_empty() && !self.leftovers_timed {
            self.leftovers_timed = true;
            let condemned = self.leftovers.iter().any(|domain| domain.condemned);
            let wait = if condemned { AGAIN } else { Duration::from_secs(1) };
            self.timers.after(wait, Timer::Leftovers);
        }
    }
}

/// The end that a status and a launch report tell together.
fn end_of((stage, errno): (Stage, i32), status: i32) -> (End, Option<i32>) {
    let never = |cause| (End::NotStarted { cause }, None);
    match stage {
        Stage::Ready | Stage::Preparing => match sys::status(status) {
            Status::Exited(code) => (End::Exited { code }, None),
            Status::Stopped => (End::Signaled { signal: libc::SIGSTOP }, None),
            Status::Signaled(signal) => (End::Signaled { signal }, None),
        },
        Stage::Execute => match errno {
            libc::E2BIG => never(NotStarted::TooBig),
            libc::ENOENT => (End::Exited { code: 127 }, Some(errno)),
            _ => (End::Exited { code: 126 }, Some(errno)),
        },
        Stage::Directory => match errno {
            libc::ENOMEM | libc::EIO => never(NotStarted::NoResources),
            _ => never(NotStarted::BadCwd),
        },
        Stage::Confine => never(NotStarted::Unconfined),
        Stage::Identity if matches!(errno, libc::EINVAL | libc::EPERM) => never(NotStarted::UserNotMapped),
        // Anything else than a lack of room: a cgroup with a cpu limit takes no process of a real-time policy, and says EINVAL.
        Stage::Attach if !matches!(errno, libc::EAGAIN | libc::ENOMEM) => never(NotStarted::NotAdmitted),
        Stage::Identity | Stage::Attach | Stage::Resources => never(NotStarted::NoResources),
    }
}
