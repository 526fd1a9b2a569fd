//! File operations: a few workers that do them, a queue before these, and the data on its way.

mod flow;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;

use super::connection::Call;
use super::poll::{Interest, Token};
use super::stream::{self, Inlet, Outlet, Tap};
use super::sys;
use super::{Child, Engine};
use crate::protocol::{Failure, FileOp, FromSupervisor};
use crate::runtime::files::Worker;

/// Workers that wait for something to do.
const MAX_IDLE: usize = 2;

/// Workers at once.
const MAX_WORKERS: usize = 16;

/// Reads in a row from one operation's pipe.
const BURST: usize = 8;

/// A worker and what it does.
#[derive(Debug)]
struct Desk {
    worker: Worker,
    job: Option<u32>,
    /// Whether its answers wait until the client has read others.
    paused: bool,
}

/// Where an operation's data goes.
#[derive(Debug)]
enum Data {
    /// Nowhere, or through a descriptor of the host's.
    Elsewhere,
    /// To the client, in frames.
    Out(Box<Out>),
    /// From the client, in frames.
    In(Inlet),
}

#[derive(Debug)]
struct Out {
    source: Option<OwnedFd>,
    watched: bool,
    outlet: Outlet,
    tap: Tap,
    /// The worker's last word, which comes after the data.
    finished: bool,
}

/// An operation.
#[derive(Debug)]
struct Job {
    connection: u32,
    call: u32,
    op: FileOp,
    /// The worker's end of the data's pipe, until there is a worker.
    theirs: Option<OwnedFd>,
    desk: Option<u32>,
    data: Data,
    committed: bool,
    answered: bool,
    retried: bool,
}

/// All workers and operations.
#[derive(Debug, Default)]
pub struct Files {
    desks: HashMap<u32, Desk>,
    jobs: HashMap<u32, Job>,
    queue: VecDeque<u32>,
    made: u32,
}

impl Files {
    fn number(&mut self) -> u32 {
        self.made = self.made.wrapping_add(1);
        self.made
    }

    fn idle(&self) -> Vec<u32> {
        self.desks.iter().filter(|(_, desk)| desk.job.is_none()).map(|(id, _)| *id).collect()
    }
}

/// Whether a descriptor comes with an operation.
pub fn passed(op: &FileOp) -> bool {
    match op {
        FileOp::Read { passed, .. } | FileOp::Unpack { passed, .. } | FileOp::Pack { passed, .. } => *passed,
        FileOp::Write { passed, inline, .. } => *passed && inline.is_none(),
        FileOp::Stat { .. } | FileOp::List { .. } | FileOp::Remove { .. } | FileOp::MakeDir { .. } => false,
    }
}

/// The worker's end of an operation's pipe, and what becomes of the other.
fn plumb(op: &FileOp, passed: Option<OwnedFd>) -> io::Result<(Option<OwnedFd>, Data)> {
    if passed.is_some() {
        return Ok((passed, Data::Elsewhere));
    }
    match op {
        FileOp::Read { .. } | FileOp::Pack { .. } => {
            let (source, theirs) = stream::pipe(true)?;
            let (outlet, tap) = (Outlet::default(), Tap::from(0));
            let out = Out { source: Some(source), watched: false, outlet, tap, finished: false };
            Ok((Some(theirs), Data::Out(Box::new(out))))
        }
        FileOp::Write { inline: None, .. } | FileOp::Unpack { .. } => {
            let (theirs, writer) = stream::pipe(false)?;
            Ok((Some(theirs), Data::In(Inlet::new(writer))))
        }
        _ => Ok((None, Data::Elsewhere)),
    }
}

/// Whether an operation that a dead worker may have done can be done once more.
fn repeatable(op: &FileOp) -> bool {
    match op {
        FileOp::Read { passed, .. } => !passed,
        FileOp::Write { inline, create_new, .. } => inline.is_some() && !create_new,
        FileOp::Stat { .. } | FileOp::List { .. } | FileOp::MakeDir { .. } => true,
        FileOp::Remove { .. } | FileOp::Unpack { .. } | FileOp::Pack { .. } => false,
    }
}

impl Engine {
    /// Takes on an operation.
    pub(super) fn begin_file(&mut self, connection: u32, call: u32, op: FileOp, passed: Option<OwnedFd>) {
        let Ok((theirs, data)) = plumb(&op, passed) else {
            return self.fail_call(connection, call, Failure::Io, libc::EMFILE, "the supervisor has no descriptors left");
        };
        let id = self.files.number();
        let job = Job { connection, call, op, theirs, desk: None, data, committed: false, answered: false, retried: false };
        if let Data::In(Inlet { fd: Some(fd), .. }) = &job.data {
            // Without it only the worker's end is noticed, which is enough to finish.
            let _ = self.poller.add(fd, Token::FileData(id), Interest::GONE);
        }
        self.files.jobs.insert(id, job);
        self.files.queue.push_back(id);
        self.connections.open_call(connection, call, Call::File(id));
        self.assign_files();
    }

    /// Gives waiting operations to workers.
    fn assign_files(&mut self) {
        while let Some(id) = self.files.queue.front().copied() {
            let desk = match self.files.idle().first() {
                Some(desk) => *desk,
                None if self.files.desks.len() >= MAX_WORKERS => return,
                None => match self.hire() {
                    Ok(desk) => desk,
                    Err(error) => {
                        self.files.queue.pop_front();
                        let errno = error.raw_os_error().unwrap_or(0);
                        self.end_file(id, &failed(Failure::Io, errno, "no process for file operations can be made"));
                        continue;
                    }
                },
            };
            self.files.queue.pop_front();
            self.start_file(id, desk);
        }
    }

    fn hire(&mut self) -> io::Result<u32> {
        let doors = self.domains.worker_doors()?;
        let worker = Worker::fork(&self.agent, &self.setup.workdir.0, &doors)?;
        let desk = self.files.number();
        self.poller.add(worker.as_fd(), Token::Worker(desk), Interest::READ)?;
        self.children.insert(worker.pid(), Child::Worker(desk));
        self.files.desks.insert(desk, Desk { worker, job: None, paused: false });
        Ok(desk)
    }

    fn start_file(&mut self, id: u32, desk_id: u32) {
        let Some(job) = self.files.jobs.get_mut(&id) else { return };
        let Some(desk) = self.files.desks.get_mut(&desk_id) else { return };
        // A copy goes to the worker, so that another can have it if this one is gone.
        let theirs = job.theirs.as_ref().and_then(|fd| fd.try_clone().ok());
        if self.children.contains_key(&desk.worker.pid()) {
            // Somebody inside may have stopped it.
            let _ = sys::kill(desk.worker.pid(), libc::SIGCONT);
        }
        match desk.worker.submit(&job.op, theirs) {
            Ok(()) => {
                desk.job = Some(id);
                job.desk = Some(desk_id);
                job.theirs = None;
                if job.committed {
                    let _ = desk.worker.commit();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.end_file(id, &failed(Failure::TooLarge, 0, "the contents are too long to travel inside a frame"));
            }
            Err(_) => {
                self.dismiss(desk_id);
                self.files.queue.push_front(id);
            }
        }
    }

    /// Ends a worker.
    fn dismiss(&mut self, desk: u32) {
        if let Some(desk) = self.files.desks.remove(&desk) {
            self.poller.remove(desk.worker.as_fd());
            self.signal_worker(desk.worker.pid(), libc::SIGKILL);
        }
    }

    /// Signals a worker that was not reaped yet: its number may be somebody else's after that.
    fn signal_worker(&self, pid: i32, signal: i32) {
        if self.children.contains_key(&pid) {
            let _ = sys::kill(pid, signal);
        }
    }

    /// A worker answered or ended.
    pub(super) fn hear_worker(&mut self, desk_id: u32) {
        let Some(desk) = self.files.desks.get_mut(&desk_id) else { return };
        let Some(id) = desk.job else {
            // It says nothing unasked; so it ended.
            if desk.worker.receive().is_err() {
                self.dismiss(desk_id);
            }
            return;
        };
        let Ok(answers) = desk.worker.receive() else {
            self.dismiss(desk_id);
            self.on_interrupted(id);
            return self.assign_files();
        };
        for answer in answers {
            self.on_file_answer(id, answer);
        }
        self.pause_worker(desk_id);
    }

    fn pause_worker(&mut self, desk_id: u32) {
        let Some(desk) = self.files.desks.get_mut(&desk_id) else { return };
        let connection = desk.job.and_then(|id| self.files.jobs.get(&id)).map(|job| job.connection);
        if connection.is_some_and(|connection| self.connections.is_busy(connection)) && !desk.paused {
            desk.paused = true;
            self.poller.remove(desk.worker.as_fd());
        }
    }

    /// The client of an operation has room again.
    pub(super) fn resume_file(&mut self, id: u32) {
        self.feed_file(id);
        let Some(desk_id) = self.files.jobs.get(&id).and_then(|job| job.desk) else { return };
        let Some(desk) = self.files.desks.get_mut(&desk_id) else { return };
        if desk.paused {
            desk.paused = self.poller.add(desk.worker.as_fd(), Token::Worker(desk_id), Interest::READ).is_err();
        }
    }

    /// A worker ended in the middle of an operation.
    fn on_interrupted(&mut self, id: u32) {
        let Some(job) = self.files.jobs.get_mut(&id) else { return };
        job.desk = None;
        if repeatable(&job.op) && !job.answered && !job.retried {
            job.retried = true;
            if let Ok((theirs, data)) = plumb(&job.op, None) {
                (job.theirs, job.data) = (theirs, data);
                return self.files.queue.push_front(id);
            }
        }
        self.end_file(id, &failed(Failure::Interrupted, 0, "the process that did it was killed from inside the sandbox"));
    }

    fn on_file_answer(&mut self, id: u32, answer: FromSupervisor) {
        let Some(job) = self.files.jobs.get_mut(&id) else { return };
        job.answered = true;
        match answer {
            FromSupervisor::Opened { .. } => {
                self.connections.send(job.connection, job.call, &answer);
                if let Data::Out(out) = &mut job.data
                    && let Some(source) = &out.source
                {
                    out.watched = self.poller.add(source, Token::FileData(id), Interest::READ).is_ok();
                }
            }
            FromSupervisor::Entries { .. } => self.connections.send(job.connection, job.call, &answer),
            FromSupervisor::Finished => match &mut job.data {
                Data::Out(out) => {
                    out.finished = true;
                    self.free_desk(id);
                    self.pump_file(id);
                }
                _ => self.end_file(id, &answer),
            },
            // Only the other last answers are left.
            _ => self.end_file(id, &answer),
        }
    }

    /// A worker is done with its operation.
    fn free_desk(&mut self, id: u32) {
        let Some(desk_id) = self.files.jobs.get_mut(&id).and_then(|job| job.desk.take()) else { return };
        let too_many = self.files.idle().len() >= MAX_IDLE;
        let Some(desk) = self.files.desks.get_mut(&desk_id) else { return };
        desk.job = None;
        if desk.paused {
            desk.paused = self.poller.add(desk.worker.as_fd(), Token::Worker(desk_id), Interest::READ).is_err();
        }
        if too_many && self.files.queue.is_empty() {
            self.dismiss(desk_id);
        }
        self.assign_files();
    }

    /// Ends an operation with its last answer.
    fn end_file(&mut self, id: u32, answer: &FromSupervisor) {
        self.free_desk(id);
        if let Some(job) = self.drop_job(id) {
            self.connections.finish(job.connection, job.call, answer);
        }
    }

    fn drop_job(&mut self, id: u32) -> Option<Job> {
        let job = self.files.jobs.remove(&id)?;
        match &job.data {
            Data::Out(out) => out.source.iter().for_each(|source| self.poller.remove(source)),
            Data::In(inlet) => inlet.fd.iter().for_each(|fd| self.poller.remove(fd)),
            Data::Elsewhere => {}
        }
        Some(job)
    }

    /// The client gives an operation up.
    pub(super) fn abort_file(&mut self, id: u32) {
        let Some(job) = self.drop_job(id) else { return };
        self.files.queue.retain(|other| *other != id);
        self.connections.forget_call(job.connection, job.call);
        if let Some(desk) = job.desk {
            self.dismiss(desk);
        }
        self.assign_files();
    }

    /// The data of a write or unpack is complete.
    pub(super) fn commit_file(&mut self, id: u32) {
        let Some(job) = self.files.jobs.get_mut(&id) else { return };
        if std::mem::replace(&mut job.committed, true) {
            return;
        }
        if let Some(desk) = job.desk.and_then(|desk| self.files.desks.get_mut(&desk)) {
            // If it is gone, its socket tells.
            let _ = desk.worker.commit();
        }
    }
}

fn failed(failure: Failure, errno: i32, detail: &str) -> FromSupervisor {
    FromSupervisor::Failed { failure, errno, detail: detail.to_owned() }
}
