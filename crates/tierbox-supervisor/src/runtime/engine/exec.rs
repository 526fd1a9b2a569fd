//! Commands: what is known of each, from its launch to the end of interest in it.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::domain::Domain;
use super::launch::Order;
use super::stream::{Inlet, Outlet, Tap};
use super::sys::Rusage;
use super::timers::Timer;
use crate::protocol::{Done, End, ExecInfo};
use crate::wire::Blob;

/// A command's identity.
pub type Id = [u8; 16];

/// Commands at once.
pub const MAX_LIVE: usize = 4096;

/// Ended commands whose identity is remembered, so that they are not launched again.
const MAX_REMEMBERED: usize = 65_536;

/// Ended commands whose output and end are kept, and how much output of them all.
const MAX_KEPT: usize = 256;
const MAX_KEPT_BYTES: usize = 64 << 20;

/// How much of argv a listing shows.
const SHOWN_ARGV: usize = 4096;

/// A client that follows a command.
#[derive(Debug)]
pub struct Follower {
    /// The client.
    pub connection: u32,
    /// Its call.
    pub call: u32,
    /// Its place in each stream.
    pub taps: [Tap; 2],
}

/// The engine's side of a command's framed streams.
#[derive(Debug, Default)]
pub struct Framed {
    /// What came out: stdout, stderr.
    pub outlets: [Outlet; 2],
    /// Whether clients hear of its output at all; otherwise only its input is framed.
    pub told: bool,
    /// Where it comes from.
    pub sources: [Option<OwnedFd>; 2],
    /// Whether a source waits for room.
    pub paused: [bool; 2],
    /// What goes in.
    pub input: Option<Inlet>,
    /// The terminal.
    pub terminal: Option<OwnedFd>,
    /// When it last said something.
    pub last_output: Option<Instant>,
}

/// What it takes to launch a command.
#[derive(Debug)]
pub struct Retry {
    /// The command, resolved.
    pub order: Order,
    /// Its stdin, stdout and stderr.
    pub stdio: [Option<OwnedFd>; 3],
    /// How often more.
    pub left: u8,
}

/// A command.
#[derive(Debug)]
pub struct Command {
    /// Its identity.
    pub id: Id,
    /// Program and arguments, cut.
    pub argv: Vec<Blob>,
    /// When its launch was asked for.
    pub launched: Instant,
    /// Whether it outlives its client.
    pub detached: bool,
    /// Whether what it leaves behind is killed.
    pub kill_leftovers: bool,
    /// How long it may be silent.
    pub idle: Option<Duration>,
    /// The client whose going kills it.
    pub owner: Option<u32>,
    /// What it takes to launch it again, until it is known to run: somebody inside may kill it on its way.
    pub retry: Option<Retry>,
    /// Its slot, until it is done.
    pub slot: Option<usize>,
    /// Its kill domain, until it is done.
    pub domain: Option<Domain>,
    /// Its process, if known without a look at the slot.
    pub pid: Option<i32>,
    /// Signals for a process that is not there yet.
    pub pending_signals: Vec<i32>,
    /// Whether clients know that it runs.
    pub started: bool,
    /// Its end, as first recorded.
    pub end: Option<End>,
    /// The errno if its program could not be executed.
    pub cannot_execute: Option<i32>,
    /// How many processes the kernel had killed in the whole machine for want of memory, if it began while nothing else ran.
    pub kills_before: Option<u64>,
    /// What it used, once its process is reaped.
    pub usage: Option<Rusage>,
    /// When its process was reaped.
    pub reaped: Option<Instant>,
    /// Since when its tree is being killed.
    pub killing: Option<Instant>,
    /// Whether its shim was killed, so that its orphans are the supervisor's own.
    pub orphaned: bool,
    /// Its framed streams.
    pub framed: Option<Framed>,
    /// Clients that follow it.
    pub followers: Vec<Follower>,
    /// Calls that wait for its end.
    pub waiters: Vec<(u32, u32)>,
    /// Its deadlines.
    pub timers: Vec<(Instant, Timer)>,
    /// Its end as told.
    pub done: Option<Done>,
}

impl Command {
    /// How it shows in a listing.
    pub fn info(&self, pid: Option<i32>) -> ExecInfo {
        ExecInfo {
            id: self.id,
            argv: self.argv.clone(),
            pid: pid.filter(|_| self.reaped.is_none()).and_then(|pid| u32::try_from(pid).ok()),
            detached: self.detached,
            age_ms: u64::try_from(self.launched.elapsed().as_millis()).unwrap_or(u64::MAX),
            done: self.done.clone(),
        }
    }

    fn held(&self) -> usize {
        self.framed.iter().flat_map(|framed| &framed.outlets).map(Outlet::held).sum()
    }
}

/// The part of argv that is shown.
pub fn shown(argv: &[Blob]) -> Vec<Blob> {
    let mut left = SHOWN_ARGV;
    let mut shown = Vec::new();
    for arg in argv {
        // Each counts at least one byte, so that many empty ones end as well.
        let length = arg.0.len().min(left);
        shown.push(Blob(arg.0[..length].to_vec()));
        left = left.saturating_sub(length.max(1));
        if left == 0 {
            break;
        }
    }
    shown
}

/// All commands.
#[derive(Debug, Default)]
pub struct Commands {
    all: HashMap<u32, Command>,
    made: u32,
    /// Identities ever seen, as far as they are remembered; with the command while it is known.
    ids: HashMap<Id, Option<u32>>,
    ended: VecDeque<Id>,
    kept: VecDeque<u32>,
    live: usize,
    most: usize,
}

impl Commands {
    /// Room for so many at once.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Whether this identity was launched before.
    pub fn was_launched(&self, id: &Id) -> bool {
        self.ids.contains_key(id)
    }

    /// Whether one more would be too many.
    pub fn is_full(&self) -> bool {
        self.live >= self.most
    }

    /// Whether none was taken in since.
    pub fn is_newest(&self, key: u32) -> bool {
        self.made == key
    }

    /// Whether any is not over.
    pub fn any_live(&self) -> bool {
        self.live > 0
    }

    /// Takes a command in.
    pub fn add(&mut self, command: Command) -> u32 {
        self.made = self.made.wrapping_add(1);
        self.ids.insert(command.id, Some(self.made));
        self.all.insert(self.made, command);
        self.live += 1;
        self.made
    }

    /// Remembers the identity of a command that is forgotten, or that never came to be.
    pub fn burn(&mut self, id: Id) {
        self.ids.insert(id, None);
        self.ended.push_back(id);
        if self.ended.len() > MAX_REMEMBERED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    /// A command.
    pub fn get(&mut self, key: u32) -> Option<&mut Command> {
        self.all.get_mut(&key)
    }

    /// The command of this identity, if it is still known.
    pub fn find(&self, id: &Id) -> Option<u32> {
        *self.ids.get(id)?
    }

    /// All that are known, newest first.
    pub fn keys(&self) -> Vec<u32> {
        let mut keys: Vec<u32> = self.all.keys().copied().collect();
        keys.sort_unstable_by_key(|key| std::cmp::Reverse(self.all[key].launched));
        keys
    }

    /// A command is over. With `keep` its end and output stay for a while.
    pub fn over(&mut self, key: u32, keep: bool) {
        self.live = self.live.saturating_sub(1);
        if keep {
            self.kept.push_back(key);
            self.trim();
        }
    }

    /// Forgets all but the identity of a command.
    pub fn remove(&mut self, key: u32) {
        if let Some(command) = self.all.remove(&key) {
            self.burn(command.id);
        }
    }

    /// Whether an ended command is kept.
    pub fn is_kept(&self, key: u32) -> bool {
        self.kept.contains(&key)
    }

    fn trim(&mut self) {
        let held =
            |commands: &Self| commands.kept.iter().filter_map(|key| commands.all.get(key)).map(Command::held).sum::<usize>();
        while self.kept.len() > MAX_KEPT || (self.kept.len() > 1 && held(self) > MAX_KEPT_BYTES) {
            let Some(oldest) = self.kept.pop_front() else { break };
            // Somebody who is just reading it lets it go at the end.
            if self.all.get(&oldest).is_some_and(|command| command.followers.is_empty()) {
                self.remove(oldest);
            }
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn command(id: u8) -> Command {
        Command {
            id: [id; 16],
            argv: Vec::new(),
            launched: Instant::now(),
            detached: true,
            kill_leftovers: false,
            idle: None,
            owner: None,
            retry: None,
            slot: None,
            domain: None,
            pid: None,
            pending_signals: Vec::new(),
            started: true,
            end: None,
            cannot_execute: None,
            kills_before: None,
            usage: None,
            reaped: None,
            killing: None,
            orphaned: false,
            framed: None,
            followers: Vec::new(),
            waiters: Vec::new(),
            timers: Vec::new(),
            done: None,
        }
    }

    #[test]
    fn an_identity_is_remembered_after_the_command_is_forgotten() {
        let mut commands = Commands::default();
        let key = commands.add(command(1));
        assert!(commands.was_launched(&[1; 16]) && !commands.was_launched(&[2; 16]));
        commands.over(key, false);
        commands.remove(key);
        assert!(commands.was_launched(&[1; 16]));
        assert_eq!(commands.find(&[1; 16]), None);
        (0..MAX_REMEMBERED as u128).for_each(|id| commands.burn((id + (1 << 64)).to_le_bytes()));
        assert!(!commands.was_launched(&[1; 16]), "the oldest goes when too many are remembered");
    }

    #[test]
    fn only_the_newest_ended_commands_are_kept() {
        let mut commands = Commands::default();
        let keys: Vec<u32> = (0..=255).chain([255]).map(|id| commands.add(command(id))).collect();
        keys.iter().for_each(|key| commands.over(*key, true));
        assert!(!commands.is_kept(keys[0]) && commands.get(keys[0]).is_none());
        assert!(commands.is_kept(keys[1]) && commands.get(keys[1]).is_some());
    }

    #[test]
    fn argv_is_cut() {
        let argv = vec![Blob(vec![b'a'; 5000]), Blob(vec![b'b'; 10])];
        assert_eq!(shown(&argv), [Blob(vec![b'a'; 4096])]);
        assert_eq!(shown(&vec![Blob::default(); 10_000]).len(), 4096);
    }
}
