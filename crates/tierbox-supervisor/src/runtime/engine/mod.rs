//! Serves a machine: one thread, one loop, everything that waits is a descriptor or a deadline.

mod board;
mod clients;
mod confine;
mod connection;
mod dial;
mod domain;
mod ending;
mod environment;
mod exec;
mod files;
mod launch;
mod lifecycle;
mod output;
mod poll;
mod pty;
mod reap;
mod requests;
mod session;
mod spare;
mod stream;
mod sys;
mod timers;
mod whole;

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::{Mode as FileMode, OFlags};

use self::board::Board;
use self::connection::Connections;
use self::dial::Lines;
use self::domain::{Domain, Domains};
use self::exec::{Commands, MAX_LIVE};
use self::files::Files;
use self::launch::Habitat;
use self::poll::{Interest, Poller, Ready, Token};
use self::spare::Spares;
use self::timers::{Timer, Timers};
use self::whole::Counter;
use super::identity::Identity;
use super::machine::Machine;
use crate::setup::{Mode, Setup};

/// How a machine's own commands die with it at `Shutdown`, where no namespace does it.
const LAST_KILL: Duration = Duration::from_secs(3);

/// Descriptors that are not for commands: what can come at once with a frame, clients, workers, the engine's own.
const RESERVED: usize = 512;

/// Descriptors of a command's streams: two outputs, an input or three for a terminal.
const STREAMS: usize = 5;

/// Who a child of the supervisor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    /// A command, or its shim.
    Command(u32),
    /// A shim whose command is done and left something behind.
    Leftover,
    /// A file worker.
    Worker(u32),
    /// A child that waits to become a command.
    Spare,
    /// One that takes no orders, with its slot.
    Dropped(usize),
    /// Something short-lived of the supervisor's own.
    Helper,
}

/// Everything that serving takes.
struct Engine {
    setup: Setup,
    agent: Identity,
    other_users: bool,
    poller: Poller,
    timers: Timers,
    connections: Connections,
    listener: Option<OwnedFd>,
    /// Whether clients of the listener bring a line each.
    joined: bool,
    signals: OwnedFd,
    /// Where shims tell that their commands ended; the other end is theirs.
    shim_events: (OwnedFd, OwnedFd),
    /// Commands with shims, by slot.
    shimmed: HashMap<usize, u32>,
    domains: Domains,
    /// Kills for want of memory in the whole machine, where commands have no counters of their own.
    whole: Option<Counter>,
    board: Board,
    habitat: Habitat,
    commands: Commands,
    children: HashMap<i32, Child>,
    /// Domains of commands that are done, to be looked at.
    spent: Vec<Domain>,
    /// Domains in which something lives on.
    leftovers: Vec<Domain>,
    leftovers_timed: bool,
    spares: Spares,
    files: Files,
    lines: Lines,
    lingering: HashMap<u32, OwnedFd>,
    lingered: u32,
    persist: bool,
    /// Whether the grace of the machine's own channel is over.
    abandoned: bool,
    /// Whether nobody can come back: the machine ends with its last command.
    lonely: bool,
    ending: bool,
    /// Its time is up: it ends once whoever waits for a command was told.
    expired: bool,
    scratch: Box<[u8]>,
    /// Kept open for commands without stdin.
    _null: OwnedFd,
}

thread_local! {
    /// What [`describe`] found out, for [`run`].
    static DESCRIBED: Cell<Option<(Domains, Option<Counter>)>> = const { Cell::new(None) };
}

/// What kills a command's whole tree here (0 session, 1 subreaper, 2 cgroup), and whether a kill for want of memory can be
/// told. To be asked once, of the machine that is run next.
///
/// # Errors
/// If a cgroup that the machine was given cannot be used: its limits would not hold, so the machine must not start.
pub fn describe(machine: &Machine) -> io::Result<(u8, bool)> {
    let (domains, whole) = found_out(machine)?;
    let answer = (if domains.by_cgroup() { 2 } else { 1 }, domains.counts_memory() || whole.is_some());
    DESCRIBED.set(Some((domains, whole)));
    Ok(answer)
}

fn found_out(machine: &Machine) -> io::Result<(Domains, Option<Counter>)> {
    let domains = Domains::new(&machine.cgroups)?;
    let whole = if domains.counts_memory() { None } else { Counter::of(machine) };
    Ok((domains, whole))
}

/// Serves the machine until it ends.
pub fn run(machine: Machine) -> ExitCode {
    let served = Engine::new(machine).and_then(|mut engine| {
        let served = engine.serve();
        engine.end_everything();
        served
    });
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Engine {
    fn new(machine: Machine) -> io::Result<Self> {
        sys::hide_from_debuggers();
        sys::supervisor_signals();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, FileMode::empty())?;
        sys::occupy_standard(&null)?;
        if std::process::id() != 1 {
            sys::become_subreaper()?;
        }
        let poller = Poller::new()?;
        let signals = sys::child_signals()?;
        poller.add(&signals, Token::Children, Interest::READ)?;
        let shim_events = stream::pipe(true)?;
        poller.add(&shim_events.0, Token::Shims, Interest::READ)?;
        let (domains, whole) = DESCRIBED.take().map_or_else(|| found_out(&machine), Ok)?;
        let most = most_commands(domains.descriptors());
        let habitat = Habitat {
            rlimits: rlimits(&machine.setup),
            null: null.as_raw_fd(),
            shared_cgroups: domains.shared_doors(),
            shim_events: shim_events.1.as_raw_fd(),
        };
        let mut engine = Self {
            agent: Identity::agent(&machine.setup.agent),
            other_users: machine.other_users,
            poller,
            timers: Timers::default(),
            connections: Connections::default(),
            listener: machine.listener,
            joined: machine.joined,
            signals,
            shim_events,
            shimmed: HashMap::new(),
            domains,
            whole,
            board: Board::new(MAX_LIVE + 64)?,
            habitat,
            commands: Commands::new(most),
            children: HashMap::new(),
            spent: Vec::new(),
            leftovers: Vec::new(),
            leftovers_timed: false,
            spares: Spares::default(),
            files: Files::default(),
            lines: Lines::default(),
            lingering: HashMap::new(),
            lingered: 0,
            persist: machine.setup.persist,
            abandoned: false,
            lonely: false,
            ending: false,
            expired: false,
            scratch: connection::scratch(),
            setup: machine.setup,
            _null: null,
        };
        engine.connections.add(&engine.poller, machine.channel, true)?;
        if let Some(listener) = &engine.listener {
            stream::unblock(listener)?;
            engine.poller.add(listener, Token::Listener, Interest::READ)?;
        }
        if let Some(lifetime) = engine.setup.lifetime_ms {
            engine.timers.after(Duration::from_millis(lifetime), Timer::Lifetime);
        }
        Ok(engine)
    }

    fn serve(&mut self) -> io::Result<()> {
        while !self.ending {
            while self.connections.flush(&self.poller) {
                self.drop_broken();
            }
            // A client may have turned out to be gone just now, and the machine with it.
            if self.ending || self.has_expired() {
                break;
            }
            if !self.spent.is_empty() {
                self.recycle();
            }
            self.make_spare();
            let events = self.poller.wait(self.timers.next_wait())?;
            for (token, ready) in events {
                self.on_event(token, ready);
            }
            let now = Instant::now();
            while let Some(timer) = self.timers.pop(now) {
                self.on_timer(timer);
            }
        }
        self.connections.flush(&self.poller);
        Ok(())
    }

    fn on_event(&mut self, token: Token, ready: Ready) {
        match token {
            Token::Listener => self.accept(),
            Token::Children => self.reap_children(),
            Token::Shims => self.hear_shims(),
            Token::Connection(id) => self.on_connection(id, ready),
            Token::ConnectionOut(id) => self.on_writing_end(id, ready),
            Token::Output(key, stream) => self.pump_output(key, stream),
            Token::Input(key) => self.on_input(key, ready),
            Token::Linger(id) => self.discard(id),
            Token::Dial(id) => self.on_dial(id, ready),
            Token::Connector(id) => self.on_connector(id),
            Token::Worker(desk) => self.hear_worker(desk),
            Token::FileData(id) => self.on_file_data(id),
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Timeout(key) => self.begin_kill(key, crate::protocol::Killed::Timeout),
            Timer::Idle(key) => self.check_idle(key),
            Timer::InputEnd(key) => self.repeat_end(key),
            Timer::Look(key) => self.look(key),
            Timer::Drained(key) => self.close_streams(key),
            Timer::Grace(key) => self.end_grace(key),
            Timer::Leftovers => {
                self.leftovers_timed = false;
                self.recycle();
            }
            Timer::Spare => self.add_spare_later(),
            Timer::Lifetime => self.expire(),
            Timer::LastWords => self.ending = true,
            Timer::Abandoned => self.end_if_abandoned(),
            Timer::Dial(id) => self.give_up_dial(id),
            Timer::Session(id, lines) => self.end_session(id, lines),
        }
    }

    /// Kills everything, where the end of this process alone does not.
    fn end_everything(&mut self) {
        if self.setup.mode == Mode::Container && std::process::id() == 1 {
            return;
        }
        self.dismiss_spares();
        let deadline = Instant::now() + LAST_KILL;
        let shims: Vec<i32> = self.children.keys().copied().collect();
        while Instant::now() < deadline {
            for key in self.commands.keys() {
                self.kill_once(key);
            }
            self.leftovers.iter().for_each(|domain| self.domains.kill(domain));
            let no_strangers = self.domains.kill_strangers(&|pid| shims.contains(&pid));
            self.reap_children();
            let live = self.commands.keys().into_iter().any(|key| self.is_alive(key));
            self.recycle();
            if !live && no_strangers && self.leftovers.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// How many commands can be at once, so that descriptors are left for all that is not a command: a machine that cannot take
/// in a descriptor any more loses its channel.
fn most_commands(descriptors_of_domain: usize) -> usize {
    let limit = sys::descriptor_limit().map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
    (limit.saturating_sub(RESERVED) / (descriptors_of_domain + STREAMS)).clamp(8, MAX_LIVE)
}

/// What every command gets: the machine's limits, and the descriptor limit as it was before the supervisor raised its own.
fn rlimits(setup: &Setup) -> Vec<(u32, u64, u64)> {
    let mut limits: Vec<_> = setup.rlimits.iter().map(|limit| (limit.resource, limit.value, limit.value)).collect();
    let descriptors = sys::DESCRIPTORS;
    if let Some((soft, hard)) = sys::descriptor_limit() {
        if !limits.iter().any(|(resource, ..)| *resource == descriptors) {
            limits.push((descriptors, soft, hard));
        }
        // Without more descriptors there are fewer commands at once, which is said when it happens.
        let _ = sys::set_rlimit(descriptors, hard, hard);
    }
    limits
}
