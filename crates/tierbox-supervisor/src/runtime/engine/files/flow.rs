//! Data of file operations on its way between a worker's pipe and the client.

use super::{BURST, Data, Job};
use crate::protocol::{FromSupervisor, STDOUT, WINDOW};
use crate::runtime::engine::Engine;
use crate::runtime::engine::poll::{Interest, Token};
use crate::runtime::engine::stream::{self, Flow, Found};

impl Engine {
    /// The pipe of an operation has something to read, or takes more.
    pub(in crate::runtime::engine) fn on_file_data(&mut self, id: u32) {
        match self.files.jobs.get(&id).map(|job| &job.data) {
            Some(Data::Out(_)) => self.pump_file(id),
            Some(Data::In(_)) => self.push_file(id),
            _ => {}
        }
    }

    pub(super) fn pump_file(&mut self, id: u32) {
        for _ in 0..BURST {
            let Some(Job { data: Data::Out(out), .. }) = self.files.jobs.get_mut(&id) else { return };
            let Some(source) = &out.source else { break };
            let room = out.outlet.room();
            if room == 0 {
                if std::mem::replace(&mut out.watched, false) {
                    self.poller.remove(source);
                }
                break;
            }
            let length = room.min(self.scratch.len());
            match stream::read_some(source, &mut self.scratch[..length]) {
                Found::Bytes(count) => out.outlet.push(&self.scratch[..count], false),
                Found::Nothing => break,
                Found::End => {
                    self.poller.remove(source);
                    out.source = None;
                    out.outlet.closed = true;
                }
            }
            self.feed_file(id);
        }
        self.feed_file(id);
    }

    pub(super) fn feed_file(&mut self, id: u32) {
        let Some(Job { data: Data::Out(out), connection, call, .. }) = self.files.jobs.get_mut(&id) else { return };
        while !self.connections.is_busy(*connection)
            && let Some(frame) = out.outlet.next_frame(&mut out.tap, STDOUT)
        {
            self.connections.send(*connection, *call, &frame);
        }
        out.outlet.forget(out.tap.acknowledged());
        if let (Some(source), false, true) = (&out.source, out.watched, out.outlet.room() > 0 && out.outlet.total() > 0) {
            out.watched = self.poller.add(source, Token::FileData(id), Interest::READ).is_ok();
        }
        if out.finished && out.outlet.exhausted_by(&out.tap) {
            self.end_file(id, &FromSupervisor::Finished);
        }
    }

    /// The client consumed data.
    pub(in crate::runtime::engine) fn grant_file(&mut self, id: u32, bytes: u32) {
        if let Some(Job { data: Data::Out(out), .. }) = self.files.jobs.get_mut(&id) {
            out.tap.grant(bytes);
            self.feed_file(id);
        }
    }

    /// Data from the client. False if that is more than it may send.
    pub(in crate::runtime::engine) fn take_file_data(&mut self, id: u32, data: &[u8]) -> bool {
        let Some(Job { data: Data::In(inlet), .. }) = self.files.jobs.get_mut(&id) else { return true };
        let allowed = inlet.push(data, WINDOW as usize);
        self.push_file(id);
        allowed
    }

    /// The client's data is complete.
    pub(in crate::runtime::engine) fn end_file_data(&mut self, id: u32) {
        if let Some(Job { data: Data::In(inlet), .. }) = self.files.jobs.get_mut(&id) {
            inlet.end();
            self.push_file(id);
        }
    }

    fn push_file(&mut self, id: u32) {
        let Some(Job { data: Data::In(inlet), connection, call, .. }) = self.files.jobs.get_mut(&id) else { return };
        let flow = inlet.pump();
        if let Some(bytes) = inlet.credit() {
            self.connections.send(*connection, *call, &FromSupervisor::InputCredit { bytes });
        }
        let blocked = flow == Flow::Blocked;
        if let Some(fd) = &inlet.fd
            && std::mem::replace(&mut inlet.blocked, blocked) != blocked
        {
            self.poller.change(fd, Token::FileData(id), if blocked { Interest::WRITE } else { Interest::GONE });
        }
        if matches!(flow, Flow::Ended | Flow::Broken)
            && let Some(fd) = inlet.close()
        {
            self.poller.remove(&fd);
            drop(fd);
            match flow {
                Flow::Ended => self.commit_file(id),
                // Why, the worker says.
                _ => self.connections.send(*connection, *call, &FromSupervisor::InputClosed),
            }
        }
    }
}
