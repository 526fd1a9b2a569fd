//! Which call a frame belongs to.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tierbox_supervisor::protocol::FromSupervisor;

use crate::channel::Shared;
use crate::errors::{Closed, Fault};

/// Frames in a row that may name a call that never was.
const STRAYS: u32 = 64;
/// Calls that were given up and may still be spoken of.
const RELEASED: usize = 1024;

/// What a frame did to its call.
pub(crate) enum Step {
    /// More frames may come.
    More,
    /// That was the last one.
    Last,
    /// It may not come here: the channel must be closed.
    Broken(&'static str),
}

/// The host's half of a call. Never blocks: it runs on the driver.
pub(crate) trait Sink: Send + Sync {
    /// Takes a frame in. `shared` is there to answer it, on this `call`.
    fn frame(&self, call: u32, message: FromSupervisor, shared: &Shared) -> Step;

    /// The call ends without an answer.
    fn fault(&self, fault: Fault);

    /// When an answer is overdue, whatever else the machine says.
    fn overdue(&self) -> Option<Instant> {
        None
    }
}

/// The calls of a channel.
#[derive(Default)]
pub(crate) struct Table {
    last: u32,
    open: HashMap<u32, Arc<dyn Sink>>,
    released: VecDeque<u32>,
    strays: u32,
}

impl Table {
    pub(crate) fn open(&mut self, sink: Arc<dyn Sink>) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.open.contains_key(&self.last) {
                self.open.insert(self.last, sink);
                return self.last;
            }
        }
    }

    pub(crate) fn find(&mut self, call: u32) -> Option<Arc<dyn Sink>> {
        let found = self.open.get(&call).cloned();
        if found.is_some() {
            self.strays = 0;
        }
        found
    }

    /// Ends a call. Frames that are still on their way are ignored.
    pub(crate) fn release(&mut self, call: u32) {
        if self.open.remove(&call).is_some() {
            if self.released.len() == RELEASED {
                self.released.pop_front();
            }
            self.released.push_back(call);
        }
    }

    /// Whether a frame for a call that is not open can be let pass.
    pub(crate) fn tolerates(&mut self, call: u32) -> bool {
        if self.released.contains(&call) {
            return true;
        }
        self.strays += 1;
        self.strays <= STRAYS
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes out the calls that `overdue` says nothing more is to be awaited for.
    pub(crate) fn take_overdue(&mut self, now: Instant) -> Vec<Arc<dyn Sink>> {
        let late: Vec<u32> =
            self.open.iter().filter(|(_, sink)| sink.overdue().is_some_and(|at| at < now)).map(|(call, _)| *call).collect();
        late.into_iter()
            .filter_map(|call| {
                let sink = self.open.get(&call).cloned();
                self.release(call);
                sink
            })
            .collect()
    }

    /// Ends all calls.
    pub(crate) fn drain(&mut self) -> Vec<Arc<dyn Sink>> {
        self.open.drain().map(|(_, sink)| sink).collect()
    }
}

/// Tells calls that nothing more comes.
pub(crate) fn end_all(sinks: Vec<Arc<dyn Sink>>, closed: &Closed) {
    for sink in sinks {
        sink.fault(Fault::Closed(closed.clone()));
    }
}
