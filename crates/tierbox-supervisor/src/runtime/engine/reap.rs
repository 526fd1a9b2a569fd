//! Children that ended: commands, shims, helpers, and orphans of all kinds.

use std::collections::HashMap;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::exec::Command;
use super::sys::{self, Reaped, Rusage, Status};
use super::{Child, Engine};

/// Children that ended and that nobody had heard of: commands whose shims were killed are among them, and may be reaped
/// before these.
type Strays = HashMap<i32, (i32, Rusage)>;

fn is_child(pid: i32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Pid::from_raw(pid).is_some_and(|pid| waitid(WaitId::Pid(pid), options).is_ok())
}

impl Engine {
    /// Children ended. All of them are reaped: orphans come by the thousand, and the signal tells only once.
    pub(super) fn reap_children(&mut self) {
        let mut signals = [0; 1024];
        while rustix::io::read(&self.signals, &mut signals).is_ok_and(|count| count == signals.len()) {}
        let mut strays = Strays::new();
        while let Ok(Some((pid, status, usage))) = sys::reap() {
            if matches!(sys::status(status), Status::Stopped) {
                self.on_stopped(pid);
                continue;
            }
            match self.children.remove(&pid) {
                Some(Child::Command(key)) => self.on_command_child(key, (pid, status, usage), &strays),
                Some(Child::Leftover) => self.on_leftover_gone(pid),
                Some(Child::Worker(desk)) => self.hear_worker(desk),
                Some(Child::Spare) => self.on_spare_gone(pid),
                Some(Child::Dropped(slot)) => {
                    self.board.give_back(slot);
                    self.on_leftover_gone(pid);
                }
                None if !self.domains.by_cgroup() => drop(strays.insert(pid, (status, usage))),
                Some(Child::Helper) | None => {}
            }
        }
    }

    /// A child was stopped. Commands may be; what is the supervisor's own goes on.
    fn on_stopped(&mut self, pid: i32) {
        let command = match self.children.get(&pid) {
            Some(Child::Command(key)) => self.commands.get(*key),
            Some(_) => return drop(sys::kill(pid, libc::SIGCONT)),
            None => return,
        };
        let Some(Command { domain: Some(domain), slot: Some(slot), .. }) = command else { return };
        if domain.shim == Some(pid) {
            let _ = sys::kill(pid, libc::SIGCONT);
        } else {
            super::domain::shim::continue_launch(pid, self.board.slot(*slot));
        }
    }

    fn on_command_child(&mut self, key: u32, (pid, status, usage): Reaped, strays: &Strays) {
        let Some(command) = self.commands.get(key) else { return };
        let shimmed = command.domain.as_mut().is_some_and(|domain| {
            let is_shim = domain.shim == Some(pid);
            if is_shim {
                domain.shim = None;
            }
            is_shim
        });
        if !shimmed {
            return self.on_reaped(key, status, usage);
        }
        match command.slot.and_then(|slot| self.board.slot(slot).settled()) {
            Some((status, usage)) => {
                self.on_reaped(key, status, usage);
                self.settle(key);
            }
            None => self.on_shim_killed(key, status, strays),
        }
    }

    /// A shim ended without a word. What it held together has come to the supervisor, and is killed.
    fn on_shim_killed(&mut self, key: u32, status: i32, strays: &Strays) {
        let pid = self.pid_of(key);
        let Some(command) = self.commands.get(key) else { return };
        command.orphaned = true;
        match pid {
            Some(pid) if strays.contains_key(&pid) => {
                let (status, usage) = strays[&pid];
                self.on_reaped(key, status, usage);
            }
            // The kernel may have collected it for the shim, which died before it could look.
            Some(pid) if !is_child(pid) => self.on_reaped(key, libc::SIGKILL, Rusage::default()),
            Some(pid) => drop(self.children.insert(pid, Child::Command(key))),
            // It could not make the command's process.
            None => self.on_reaped(key, status, Rusage::default()),
        }
        self.start_killing(key);
    }

    fn on_leftover_gone(&mut self, pid: i32) {
        for domain in self.leftovers.iter_mut().chain(&mut self.spent) {
            if domain.shim == Some(pid) {
                domain.shim = None;
            }
        }
        self.recycle();
    }

    /// Shims say that their commands ended.
    pub(super) fn hear_shims(&mut self) {
        let mut words = [0; 1024];
        let count = rustix::io::read(&self.shim_events.0, &mut words).unwrap_or(0);
        for word in words[..count].chunks_exact(4) {
            let (slot, empty) = super::domain::shim::read_word([word[0], word[1], word[2], word[3]]);
            self.on_shim_word(slot, empty);
        }
    }

    fn on_shim_word(&mut self, slot: usize, empty: bool) {
        let Some(key) = self.shimmed.get(&slot).copied() else { return };
        let Some(command) = self.commands.get(key) else { return };
        // The word may be a former command's, whose shim's end was noticed first.
        let Some((status, usage)) = self.board.slot(slot).settled() else { return };
        if let Some(domain) = &mut command.domain {
            domain.shim_idle = empty;
        }
        self.on_reaped(key, status, usage);
    }
}
