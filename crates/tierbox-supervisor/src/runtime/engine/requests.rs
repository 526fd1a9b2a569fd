//! What clients ask for.

use super::Engine;
use super::connection::{CHANNEL, Call};
use super::exec::{Follower, Id};
use super::output;
use super::poll::Ready;
use super::stream::Tap;
use super::timers::Timer;
use crate::protocol::{Exec, Failure, FileOp, Frame, FromSupervisor, Kill, Killed, NotStarted, STDERR, ToSupervisor, VERSION};

/// Reads in a row from one client, before others have their turn.
const BURST: usize = 16;

/// Calls that a client may have open.
const MAX_CALLS: usize = 1024;

/// Clients that may follow one command.
const MAX_FOLLOWERS: usize = 64;

/// Commands in a listing, and the bytes of their arguments together.
const MAX_LISTED: usize = 1024;
const MAX_LISTED_BYTES: usize = 2 << 20;

const TOO_MANY: &str = "too many calls at once";

/// A client broke the rules; nothing it says can be trusted any more.
struct Violation;

type Handled = Result<(), Violation>;

impl Engine {
    /// A client can be read or written.
    pub(super) fn on_connection(&mut self, id: u32, ready: Ready) {
        if ready.write {
            self.connections.flush_one(&self.poller, id);
        }
        if !ready.read {
            return;
        }
        match self.read_client(id) {
            Ok(true) => {}
            Ok(false) => self.lose_line(id),
            Err(Violation) => self.disconnect(id),
        }
    }

    /// A client's separate writing end has room, or nobody reads from it any more.
    pub(super) fn on_writing_end(&mut self, id: u32, ready: Ready) {
        self.connections.flush_one(&self.poller, id);
        if ready.gone {
            // What it said before it went counts.
            self.on_connection(id, Ready { read: true, write: false, gone: true });
            self.lose_line(id);
        }
    }

    /// False at the end of the line.
    fn read_client(&mut self, id: u32) -> Result<bool, Violation> {
        for _ in 0..BURST {
            let Some(connection) = self.connections.get(id) else { return Ok(true) };
            // What came before the end of the stream counts.
            let more = connection.read(&mut self.scratch);
            self.handle_frames(id)?;
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn handle_frames(&mut self, id: u32) -> Handled {
        while let Some(connection) = self.connections.get(id) {
            let Some((frame, length)) = connection.next_frame().map_err(|_| Violation)? else { break };
            if self.handle_line(id, &frame)? {
                continue;
            }
            // Counted before it is handled: its answer may tell of it.
            self.connections.took(id, length);
            self.handle(id, frame)?;
        }
        Ok(())
    }

    /// Handles what belongs to a line rather than to a conversation. False if this does not.
    fn handle_line(&mut self, id: u32, frame: &Frame<ToSupervisor>) -> Result<bool, Violation> {
        let connection = self.connections.get(id).ok_or(Violation)?;
        let fresh = !connection.greeted && connection.session.is_none();
        match frame.message {
            ToSupervisor::Join if fresh && self.joined && connection.is_socket() => {
                let [read, write] = connection.take_descriptors(2).and_then(|two| two.try_into().ok()).ok_or(Violation)?;
                self.connections.join(&self.poller, id, read, write).map_err(|_| Violation)?;
            }
            ToSupervisor::Begin { version, session, grace_ms } if fresh => {
                connection.session = Some(super::session::Session::new(session, grace_ms));
                self.greet(id, version, 0)?;
            }
            ToSupervisor::Resume { session, received } if fresh => {
                if !self.resume_session(id, &session, received) {
                    return Err(Violation);
                }
            }
            ToSupervisor::Ack { received } => {
                if !self.connections.acknowledged(id, received) {
                    return Err(Violation);
                }
            }
            ToSupervisor::Join | ToSupervisor::Begin { .. } | ToSupervisor::Resume { .. } | ToSupervisor::Leave => {
                return Err(Violation);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn handle(&mut self, id: u32, Frame { call, message }: Frame<ToSupervisor>) -> Handled {
        let greeted = self.connections.get(id).is_some_and(|connection| connection.greeted);
        match message {
            ToSupervisor::Hello { version, grace_ms } if !greeted => self.greet(id, version, grace_ms),
            _ if !greeted => Err(Violation),
            ToSupervisor::Hello { .. } => Err(Violation),
            ToSupervisor::Exec { exec } => self.on_exec(id, call, exec),
            ToSupervisor::Attach { id: command, stdout_from, stderr_from } => {
                self.opens_call(id, call)?;
                self.attach(id, call, &command, [stdout_from, stderr_from]);
                Ok(())
            }
            ToSupervisor::Wait { id: command } => {
                self.opens_call(id, call)?;
                self.wait_for(id, call, &command);
                Ok(())
            }
            ToSupervisor::Linger { count } => {
                let connection = self.connections.get(id).ok_or(Violation)?;
                let pipes = connection.take_descriptors(usize::from(count)).ok_or(Violation)?;
                pipes.into_iter().for_each(|pipe| self.linger(pipe));
                Ok(())
            }
            ToSupervisor::Signal { id: command, signal } => {
                self.on_signal(id, call, &command, signal);
                Ok(())
            }
            ToSupervisor::KillById { id: command, reason } => {
                self.kill_by_id(id, call, &command, reason);
                Ok(())
            }
            ToSupervisor::ListExecs => {
                self.list(id, call);
                Ok(())
            }
            ToSupervisor::Shutdown => {
                self.ending = true;
                Ok(())
            }
            ToSupervisor::Persist => {
                self.persist = true;
                Ok(())
            }
            ToSupervisor::Ping => {
                self.connections.send(id, call, &FromSupervisor::Pong);
                Ok(())
            }
            // It may come twice from a host that retried, and changes nothing here.
            ToSupervisor::NetworkReady => Ok(()),
            ToSupervisor::Join
            | ToSupervisor::Begin { .. }
            | ToSupervisor::Resume { .. }
            | ToSupervisor::Ack { .. }
            | ToSupervisor::Leave => Err(Violation),
            ToSupervisor::File { op } => self.on_file(id, call, op),
            ToSupervisor::Dial { target } => {
                self.opens_call(id, call)?;
                if self.has_too_many_calls(id) {
                    self.fail_call(id, call, Failure::Invalid, 0, TOO_MANY);
                } else {
                    self.begin_dial(id, call, &target);
                }
                Ok(())
            }
            ToSupervisor::Detach
            | ToSupervisor::Input { .. }
            | ToSupervisor::InputEnd
            | ToSupervisor::Commit
            | ToSupervisor::Credit { .. }
            | ToSupervisor::Resize { .. }
            | ToSupervisor::Kill { .. }
            | ToSupervisor::Abort => self.on_call_message(id, call, message),
        }
    }

    fn greet(&mut self, id: u32, version: u32, grace_ms: u64) -> Handled {
        let connection = self.connections.get(id).ok_or(Violation)?;
        connection.greeted = true;
        connection.grace_ms = grace_ms;
        self.connections.send(id, CHANNEL, &FromSupervisor::Welcome { version: VERSION });
        if version == VERSION {
            return Ok(());
        }
        // The answer tells the other side why.
        self.connections.flush_one(&self.poller, id);
        Err(Violation)
    }

    /// Checks that a call is new.
    fn opens_call(&mut self, id: u32, call: u32) -> Handled {
        let connection = self.connections.get(id).ok_or(Violation)?;
        let fresh = call != CHANNEL && !connection.calls.contains_key(&call);
        if fresh { Ok(()) } else { Err(Violation) }
    }

    fn has_too_many_calls(&mut self, id: u32) -> bool {
        self.connections.get(id).is_some_and(|connection| connection.calls.len() >= MAX_CALLS)
    }

    fn on_exec(&mut self, id: u32, call: u32, exec: Exec) -> Handled {
        self.opens_call(id, call)?;
        let (stdin, outputs) = output::passed(&exec);
        let connection = self.connections.get(id).ok_or(Violation)?;
        let count = usize::from(stdin) + if outputs { 2 } else { 0 };
        let passed = connection.take_descriptors(count).ok_or(Violation)?;
        if self.has_too_many_calls(id) {
            let done = super::lifecycle::never_ran(NotStarted::NoResources);
            self.connections.send(id, call, &FromSupervisor::Done { done });
        } else if exec.idle_ms.is_some() && outputs {
            self.fail_call(id, call, Failure::Invalid, 0, "a limit on silence needs framed output");
        } else {
            self.launch(id, call, exec, passed);
        }
        Ok(())
    }

    fn on_file(&mut self, id: u32, call: u32, op: FileOp) -> Handled {
        self.opens_call(id, call)?;
        let connection = self.connections.get(id).ok_or(Violation)?;
        let passed = connection.take_descriptors(usize::from(super::files::passed(&op))).ok_or(Violation)?;
        if self.has_too_many_calls(id) {
            self.fail_call(id, call, Failure::Invalid, 0, TOO_MANY);
        } else {
            self.begin_file(id, call, op, passed.into_iter().next());
        }
        Ok(())
    }

    /// A message about a call that may have ended in the meantime, which is no fault.
    fn on_call_message(&mut self, id: u32, call: u32, message: ToSupervisor) -> Handled {
        let Some(about) = self.connections.get(id).and_then(|connection| connection.calls.get(&call).copied()) else {
            return Ok(());
        };
        match about {
            Call::Exec(key) => self.on_exec_message(id, call, key, message),
            Call::Wait(key) => {
                if let (ToSupervisor::Abort | ToSupervisor::Detach, Some(command)) = (message, self.commands.get(key)) {
                    command.waiters.retain(|waiter| *waiter != (id, call));
                    self.connections.forget_call(id, call);
                }
                Ok(())
            }
            Call::File(job) => self.on_file_message(job, message),
            Call::Dial(line) => self.on_dial_message(line, message),
        }
    }

    fn on_file_message(&mut self, job: u32, message: ToSupervisor) -> Handled {
        match message {
            ToSupervisor::Input { data } if !self.take_file_data(job, &data.0) => return Err(Violation),
            ToSupervisor::InputEnd => self.end_file_data(job),
            ToSupervisor::Credit { bytes, .. } => self.grant_file(job, bytes),
            ToSupervisor::Commit => self.commit_file(job),
            ToSupervisor::Abort => self.abort_file(job),
            _ => {}
        }
        Ok(())
    }

    fn on_dial_message(&mut self, line: u32, message: ToSupervisor) -> Handled {
        match message {
            ToSupervisor::Input { data } if !self.take_line_data(line, &data.0) => return Err(Violation),
            ToSupervisor::InputEnd => self.end_line_data(line),
            ToSupervisor::Credit { bytes, .. } => self.grant_line(line, bytes),
            ToSupervisor::Abort => self.abort_dial(line),
            _ => {}
        }
        Ok(())
    }

    fn on_exec_message(&mut self, id: u32, call: u32, key: u32, message: ToSupervisor) -> Handled {
        match message {
            ToSupervisor::Input { data } if !self.take_input(key, (id, call), &data.0) => return Err(Violation),
            ToSupervisor::InputEnd => self.end_input(key),
            ToSupervisor::Credit { stream, bytes } => self.grant(id, call, key, stream, bytes),
            ToSupervisor::Kill { reason } => self.begin_kill(key, killed(&reason)),
            ToSupervisor::Resize { size } => {
                if let Some(framed) = self.commands.get(key).and_then(|command| command.framed.as_ref()) {
                    output::resize(framed, size.rows, size.cols);
                }
            }
            ToSupervisor::Detach => self.detach(id, call, key),
            _ => {}
        }
        Ok(())
    }

    fn grant(&mut self, id: u32, call: u32, key: u32, stream: u8, bytes: u32) {
        let Some(command) = self.commands.get(key) else { return };
        let follower = command.followers.iter_mut().find(|follower| (follower.connection, follower.call) == (id, call));
        if let Some(follower) = follower {
            follower.taps[usize::from(stream == STDERR)].grant(bytes);
            self.feed_followers(key);
        }
    }

    fn detach(&mut self, id: u32, call: u32, key: u32) {
        let Some(command) = self.commands.get(key) else { return };
        command.followers.retain(|follower| (follower.connection, follower.call) != (id, call));
        // Without anybody who reads, a command that is to live on must not block.
        command.detached |= command.followers.is_empty();
        self.connections.forget_call(id, call);
        self.feed_followers(key);
    }

    fn attach(&mut self, id: u32, call: u32, command_id: &Id, from: [u64; 2]) {
        let too_many = self.has_too_many_calls(id);
        let Some(key) = self.commands.find(command_id) else {
            return self.fail_call(id, call, Failure::NotFound, 0, "no such command, or it ended long ago");
        };
        let pid = self.pid_of(key);
        let Some(command) = self.commands.get(key) else { return };
        if too_many || command.followers.len() >= MAX_FOLLOWERS {
            return self.fail_call(id, call, Failure::Invalid, 0, TOO_MANY);
        }
        if command.owner.is_none() {
            command.owner = Some(id);
            for (at, timer) in command.timers.extract_if(.., |(_, timer)| *timer == Timer::Grace(key)) {
                self.timers.cancel(at, timer);
            }
        }
        let outlets = command.framed.as_ref().map(|framed| framed.outlets.each_ref());
        let [stdout, stderr] = outlets.map_or([0, 0], |[stdout, stderr]| [stdout.held_from(from[0]), stderr.held_from(from[1])]);
        self.connections.send(id, call, &FromSupervisor::Attached { stdout, stderr });
        command.followers.push(Follower { connection: id, call, taps: from.map(Tap::from) });
        if let (true, Some(pid)) = (command.started, pid) {
            self.connections.send(id, call, &FromSupervisor::Started { pid: pid as u32 });
        }
        self.connections.open_call(id, call, Call::Exec(key));
        self.feed_followers(key);
    }

    fn wait_for(&mut self, id: u32, call: u32, command_id: &Id) {
        let too_many = self.has_too_many_calls(id);
        let Some(key) = self.commands.find(command_id) else {
            return self.fail_call(id, call, Failure::NotFound, 0, "no such command, or it ended long ago");
        };
        let Some(command) = self.commands.get(key) else { return };
        if let Some(done) = command.done.clone() {
            return self.connections.send(id, call, &FromSupervisor::Done { done });
        }
        if too_many {
            return self.fail_call(id, call, Failure::Invalid, 0, TOO_MANY);
        }
        command.waiters.push((id, call));
        self.connections.open_call(id, call, Call::Wait(key));
    }

    fn on_signal(&mut self, id: u32, call: u32, command_id: &Id, signal: i32) {
        let answer = match self.commands.find(command_id) {
            _ if !(1..=64).contains(&signal) => Err((Failure::Invalid, libc::EINVAL, "no such signal")),
            Some(key) if self.signal(key, signal) => Ok(()),
            _ => Err((Failure::NotFound, libc::ESRCH, "no such command, or it has ended")),
        };
        self.answer(id, call, answer);
    }

    fn kill_by_id(&mut self, id: u32, call: u32, command_id: &Id, reason: Kill) {
        let found = self.commands.find(command_id);
        let running = found.filter(|key| self.commands.get(*key).is_some_and(|command| command.done.is_none()));
        if let Some(key) = running {
            self.begin_kill(key, killed(&reason));
        }
        let killed = running.is_some() || self.kill_leftovers_of(command_id);
        let answer = killed.then_some(()).ok_or((Failure::NotFound, libc::ESRCH, "no such command, or it has ended"));
        self.answer(id, call, answer);
    }

    /// Answers a request that stands alone. One that came under another call's number gets no answer, which would end that.
    fn answer(&mut self, id: u32, call: u32, answer: Result<(), (Failure, i32, &str)>) {
        if self.opens_call(id, call).is_err() {
            return;
        }
        match answer {
            Ok(()) => self.connections.send(id, call, &FromSupervisor::Finished),
            Err((failure, errno, detail)) => self.fail_call(id, call, failure, errno, detail),
        }
    }

    fn list(&mut self, id: u32, call: u32) {
        let mut bytes = 0;
        let mut execs = Vec::new();
        for key in self.commands.keys().into_iter().take(MAX_LISTED) {
            let pid = self.pid_of(key);
            let Some(command) = self.commands.get(key) else { continue };
            let info = command.info(pid);
            bytes += info.argv.iter().map(|arg| arg.0.len() + 4).sum::<usize>();
            if bytes > MAX_LISTED_BYTES {
                break;
            }
            execs.push(info);
        }
        self.connections.send(id, call, &FromSupervisor::Execs { execs });
    }
}

fn killed(reason: &Kill) -> Killed {
    match reason {
        Kill::Cancelled => Killed::Cancelled,
        Kill::OutputLimit => Killed::OutputLimit,
    }
}
