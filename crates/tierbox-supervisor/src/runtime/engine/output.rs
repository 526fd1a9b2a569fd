//! Framed streams of commands: from their pipes to clients, and from clients to their stdin.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::Engine;
use super::exec::{Command, Follower, Framed};
use super::poll::{Interest, Ready, Token};
use super::stream::{self, Flow, Found, Inlet};
use super::timers::Timer;
use crate::protocol::{Exec, FromSupervisor, Killed, OutputMode, STDERR, STDOUT, StdinMode, WINDOW};
use crate::runtime::identity::Identity;

/// Reads in a row from one stream, before others have their turn.
const BURST: usize = 8;

/// What is taken from a pipe at a command's end: as much as a pipe can hold that the command may have made bigger.
const LAST_READS: usize = 1 << 20;

/// Pipes that are read only to be discarded.
const MAX_LINGERING: usize = 4096;

/// Stdin, stdout and stderr of a child; nothing means `/dev/null`.
type Stdio = [Option<OwnedFd>; 3];

/// Which descriptors come with a command's frame: stdin's, and stdout's and stderr's.
pub fn passed(exec: &Exec) -> (bool, bool) {
    let stdin = exec.pty.is_none() && exec.stdin == StdinMode::Passed;
    let output = exec.pty.is_none() && !exec.detached && exec.output == OutputMode::Passed;
    (stdin, output)
}

/// How soon a terminal is told again that its input is at its end, and how often that pause doubles: up to some seconds.
const FIRST_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
const DOUBLINGS: u32 = 5;

impl Engine {
    /// Makes what a command's descriptors are, from passed ones, pipes or a terminal.
    pub(super) fn stdio(&self, exec: &Exec, passed_fds: Vec<OwnedFd>, user: &Identity) -> io::Result<(Stdio, Option<Framed>)> {
        if let Some(size) = &exec.pty {
            return terminal(super::pty::open(size, user)?);
        }
        let (_, output_passed) = passed(exec);
        let mut fds = passed_fds.into_iter();
        let mut framed = Framed::default();
        let stdin = match exec.stdin {
            StdinMode::Null => None,
            StdinMode::Passed => fds.next(),
            StdinMode::Framed => {
                let (reader, writer) = stream::pipe(false)?;
                framed.input = Some(Inlet::new(writer));
                Some(reader)
            }
        };
        if output_passed {
            framed.outlets.iter_mut().for_each(|outlet| outlet.closed = true);
            return Ok(([stdin, fds.next(), fds.next()], framed.input.is_some().then_some(framed)));
        }
        framed.told = true;
        let mut writers = [None, None];
        for (source, writer) in framed.sources.iter_mut().zip(&mut writers) {
            let (reader, end) = stream::pipe(true)?;
            (*source, *writer) = (Some(reader), Some(end));
        }
        let [stdout, stderr] = writers;
        Ok(([stdin, stdout, stderr], Some(framed)))
    }

    /// Begins to watch a new command's streams.
    pub(super) fn watch_streams(&mut self, key: u32) {
        let Some(framed) = self.commands.get(key).and_then(|command| command.framed.as_mut()) else { return };
        let mut watched = Ok(());
        for (source, stream) in framed.sources.iter().zip([STDOUT, STDERR]) {
            if let Some(source) = source {
                watched = watched.and(self.poller.add(source, Token::Output(key, stream), Interest::READ));
            }
        }
        if let Some(input) = framed.input.as_ref().and_then(|input| input.fd.as_ref()) {
            watched = watched.and(self.poller.add(input, Token::Input(key), Interest::GONE));
        }
        if watched.is_err() {
            // The kernel has no memory for it: a command that nobody can hear is better ended.
            self.begin_kill(key, Killed::Cancelled);
        }
    }

    /// A command's stream has something to read, or ended.
    pub(super) fn pump_output(&mut self, key: u32, stream: u8) {
        for _ in 0..BURST {
            match self.read_output(key, stream, false) {
                Found::Bytes(_) => self.feed_followers(key),
                Found::Nothing => return,
                Found::End => {
                    self.close_source(key, stream);
                    self.feed_followers(key);
                    return self.settle(key);
                }
            }
        }
    }

    /// Reads once from a stream; with `overdraw` even if there is no room.
    fn read_output(&mut self, key: u32, stream: u8, overdraw: bool) -> Found {
        let index = usize::from(stream == STDERR);
        let Some(command) = self.commands.get(key) else { return Found::Nothing };
        let Some(framed) = &mut command.framed else { return Found::Nothing };
        let Some(source) = &framed.sources[index] else { return Found::Nothing };
        let room = if command.detached || overdraw { WINDOW as usize } else { framed.outlets[index].room() };
        if room == 0 {
            if !std::mem::replace(&mut framed.paused[index], true) {
                self.poller.remove(source);
            }
            return Found::Nothing;
        }
        let length = room.min(self.scratch.len());
        let found = stream::read_some(source, &mut self.scratch[..length]);
        if let Found::Bytes(count) = found {
            framed.outlets[index].push(&self.scratch[..count], command.detached);
            framed.last_output = command.idle.map(|_| Instant::now());
        }
        found
    }

    fn close_source(&mut self, key: u32, stream: u8) {
        let index = usize::from(stream == STDERR);
        let Some(framed) = self.commands.get(key).and_then(|command| command.framed.as_mut()) else { return };
        framed.outlets[index].closed = true;
        if let Some(source) = framed.sources[index].take() {
            self.poller.remove(source);
        }
    }

    /// Takes what is in a command's pipes. Whether one of them is still open.
    pub(super) fn drain_now(&mut self, key: u32) -> bool {
        for stream in [STDOUT, STDERR] {
            let mut taken = 0;
            while taken < LAST_READS {
                match self.read_output(key, stream, true) {
                    Found::Bytes(count) => taken += count,
                    Found::Nothing => break,
                    Found::End => {
                        self.close_source(key, stream);
                        break;
                    }
                }
            }
        }
        self.feed_followers(key);
        let framed = self.commands.get(key).and_then(|command| command.framed.as_ref());
        framed.is_some_and(|framed| framed.sources.iter().any(Option::is_some))
    }

    /// Leaves the pipes of a command that ended to whoever holds them still.
    pub(super) fn close_streams(&mut self, key: u32) {
        let Some(framed) = self.commands.get(key).and_then(|command| command.framed.as_mut()) else { return };
        let sources = framed.sources.each_mut().map(Option::take);
        framed.outlets.iter_mut().for_each(|outlet| outlet.closed = true);
        for source in sources.into_iter().flatten() {
            self.poller.remove(&source);
            self.linger(source);
        }
        self.feed_followers(key);
        self.settle(key);
    }

    /// Sends clients what they may have, and forgets what all of them have.
    pub(super) fn feed_followers(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        let mut finished = Vec::new();
        let mut followers = std::mem::take(&mut command.followers);
        followers.retain_mut(|follower| {
            let over = feed(command, follower, &mut self.connections);
            if over {
                finished.push((follower.connection, follower.call));
            }
            !over
        });
        command.followers = followers;
        for (connection, call) in finished {
            self.connections.forget_call(connection, call);
        }
        self.resume_sources(key);
        let Some(command) = self.commands.get(key) else { return };
        if command.done.is_some() && command.followers.is_empty() && !self.commands.is_kept(key) {
            self.commands.remove(key);
        }
    }

    fn resume_sources(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        let Some(framed) = &mut command.framed else { return };
        for (index, stream) in [STDOUT, STDERR].into_iter().enumerate() {
            let acknowledged = command.followers.iter().map(|follower| follower.taps[index].acknowledged()).min();
            if let (Some(acknowledged), false) = (acknowledged, command.detached) {
                framed.outlets[index].forget(acknowledged);
            }
            let room = command.detached || framed.outlets[index].room() > 0;
            if let (true, true, Some(source)) = (framed.paused[index], room, &framed.sources[index]) {
                // If the kernel has no memory for it, the next acknowledgement tries again.
                framed.paused[index] = self.poller.add(source, Token::Output(key, stream), Interest::READ).is_err();
            }
        }
    }

    /// Data from a client for a command. False if that is more than it may send.
    pub(super) fn take_input(&mut self, key: u32, from: (u32, u32), data: &[u8]) -> bool {
        let Some(command) = self.commands.get(key) else { return true };
        let limit = (command.followers.len() + 1) * WINDOW as usize;
        let Some(input) = command.framed.as_mut().and_then(|framed| framed.input.as_mut()) else { return true };
        // Another client may go on where one ended.
        input.told_ends = 0;
        if !input.push(data, limit) {
            return false;
        }
        self.pump_input(key, Some(from));
        true
    }

    /// A client's input for a command is complete.
    pub(super) fn end_input(&mut self, key: u32) {
        let Some(framed) = self.commands.get(key).and_then(|command| command.framed.as_mut()) else { return };
        let Some(input) = &mut framed.input else { return };
        if framed.terminal.is_some() {
            return self.tell_end(key);
        }
        input.end();
        self.pump_input(key, None);
    }

    /// Tells the reader of a terminal that the input is at its end. The terminal itself stays, and may lose the news: a shell that is
    /// about to edit a line changes its mode, with which the end that waits there becomes a byte that means nothing. So it is told again,
    /// ever more rarely, as long as the command lives: whoever reads after the end finds the end.
    fn tell_end(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        let Some(input) = command.framed.as_mut().and_then(|framed| framed.input.as_mut()) else { return };
        if !input.blocked {
            input.push(&[super::pty::END_OF_INPUT], usize::MAX);
        }
        let pause = FIRST_PAUSE * (1 << input.told_ends.min(DOUBLINGS));
        input.told_ends += 1;
        self.set_timer(key, pause, Timer::InputEnd(key));
        self.pump_input(key, None);
    }

    /// Tells the end once more, unless that is over.
    pub(super) fn repeat_end(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        command.timers.retain(|(_, timer)| *timer != Timer::InputEnd(key));
        let input = command.framed.as_ref().and_then(|framed| framed.input.as_ref());
        if command.reaped.is_none() && input.is_some_and(|input| input.fd.is_some() && input.told_ends > 0) {
            self.tell_end(key);
        }
    }

    /// A command's stdin takes more, or nobody reads it any more.
    pub(super) fn on_input(&mut self, key: u32, ready: Ready) {
        if ready.gone {
            self.close_input(key, true);
        } else {
            self.pump_input(key, None);
        }
    }

    fn pump_input(&mut self, key: u32, from: Option<(u32, u32)>) {
        let Some(framed) = self.commands.get(key).and_then(|command| command.framed.as_mut()) else { return };
        let Some(input) = &mut framed.input else { return };
        input.writer = from.or(input.writer);
        let flow = input.pump();
        if let (Some(bytes), Some((connection, call))) = (input.credit(), input.writer) {
            self.connections.send(connection, call, &FromSupervisor::InputCredit { bytes });
        }
        let blocked = flow == Flow::Blocked;
        if let Some(fd) = &input.fd
            && std::mem::replace(&mut input.blocked, blocked) != blocked
        {
            self.poller.change(fd, Token::Input(key), if blocked { Interest::WRITE } else { Interest::GONE });
        }
        match flow {
            Flow::Drained | Flow::Blocked => {}
            Flow::Ended => self.close_input(key, false),
            Flow::Broken => self.close_input(key, true),
        }
    }

    fn close_input(&mut self, key: u32, broken: bool) {
        let Some(command) = self.commands.get(key) else { return };
        let Some(input) = command.framed.as_mut().and_then(|framed| framed.input.as_mut()) else { return };
        let Some(fd) = input.close() else { return };
        self.poller.remove(&fd);
        if broken {
            for follower in &command.followers {
                self.connections.send(follower.connection, follower.call, &FromSupervisor::InputClosed);
            }
        }
    }

    /// Kills a command that was silent too long.
    pub(super) fn check_idle(&mut self, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        let Some(limit) = command.idle else { return };
        command.timers.retain(|(_, timer)| *timer != Timer::Idle(key));
        let last = command.framed.as_ref().and_then(|framed| framed.last_output).unwrap_or(command.launched);
        // A command that cannot write because its client does not read is not silent.
        let paused = command.framed.as_ref().is_some_and(|framed| framed.paused.contains(&true));
        let silent = if paused { std::time::Duration::ZERO } else { last.elapsed() };
        if silent >= limit {
            self.begin_kill(key, Killed::Idle);
        } else {
            self.set_timer(key, limit - silent, Timer::Idle(key));
        }
    }

    /// Reads a pipe to its end and forgets what comes.
    pub(super) fn linger(&mut self, pipe: OwnedFd) {
        self.lingered = self.lingered.wrapping_add(1);
        let id = self.lingered;
        let adopted = stream::unblock(&pipe).and_then(|()| self.poller.add(&pipe, Token::Linger(id), Interest::READ));
        // Otherwise it is closed, and whoever writes to it notices.
        if adopted.is_ok() && self.lingering.len() < MAX_LINGERING {
            self.lingering.insert(id, pipe);
        }
    }

    /// A pipe that nobody wants has something to read.
    pub(super) fn discard(&mut self, id: u32) {
        let Some(pipe) = self.lingering.get(&id) else { return };
        for _ in 0..BURST {
            match stream::read_some(pipe, &mut self.scratch) {
                Found::Bytes(_) => {}
                Found::Nothing => return,
                Found::End => {
                    self.poller.remove(pipe);
                    self.lingering.remove(&id);
                    return;
                }
            }
        }
    }
}

fn terminal((master, slave): (OwnedFd, OwnedFd)) -> io::Result<(Stdio, Option<Framed>)> {
    let mut framed = Framed { told: true, terminal: Some(master.try_clone()?), ..Framed::default() };
    framed.input = Some(Inlet::new(master.try_clone()?));
    framed.sources[0] = Some(master);
    framed.outlets[1].closed = true;
    Ok(([Some(slave.try_clone()?), Some(slave.try_clone()?), Some(slave)], Some(framed)))
}

/// Sends one client what it may have. Whether it has got everything there will ever be.
fn feed(command: &Command, follower: &mut Follower, connections: &mut super::connection::Connections) -> bool {
    let (connection, call) = (follower.connection, follower.call);
    let mut exhausted = true;
    for (index, stream) in [STDOUT, STDERR].into_iter().enumerate() {
        let (Some(framed), tap) = (&command.framed, &mut follower.taps[index]) else { continue };
        let outlet = &framed.outlets[index];
        while !connections.is_busy(connection)
            && let Some(frame) = outlet.next_frame(tap, stream)
        {
            connections.send(connection, call, &frame);
        }
        let ended = outlet.exhausted_by(tap);
        if ended && framed.told && !std::mem::replace(&mut tap.ended, true) {
            connections.send(connection, call, &FromSupervisor::OutputEnd { stream });
        }
        exhausted &= ended;
    }
    let Some(done) = command.done.as_ref().filter(|_| exhausted) else { return false };
    connections.send(connection, call, &FromSupervisor::Done { done: done.clone() });
    true
}

/// Makes a terminal this size.
pub fn resize(framed: &Framed, rows: u16, cols: u16) {
    if let Some(terminal) = &framed.terminal {
        super::sys::set_window(terminal.as_fd(), rows, cols);
    }
}
