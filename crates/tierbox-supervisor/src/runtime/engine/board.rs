//! How children report their launch: a slot of shared memory each, so that a good launch costs no system call.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::sys::{Rusage, SharedSlots, Slot};

/// How far a child came. Anything but `Preparing` and `Ready` is an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// Not there yet.
    Preparing = 0,
    /// It is what it should be and executes the program now.
    Ready = 1,
    /// It could not enter its kill domain.
    Attach = 10,
    /// It could not get its descriptors, terminal or limits.
    Resources = 11,
    /// It could not become its user.
    Identity = 12,
    /// It could not enter its working directory.
    Directory = 13,
    /// The program could not be executed.
    Execute = 14,
    /// It could not be kept to named executables.
    Confine = 15,
}

impl Stage {
    fn from_number(number: u32) -> Self {
        [Self::Ready, Self::Attach, Self::Resources, Self::Identity, Self::Directory, Self::Execute, Self::Confine]
            .into_iter()
            .find(|stage| *stage as u32 == number)
            .unwrap_or(Self::Preparing)
    }
}

impl Slot {
    /// Records how far this child came. Async-signal-safe.
    pub fn reach(&self, stage: Stage, errno: i32) {
        self.errno.store(errno, Relaxed);
        self.stage.store(stage as u32, Release);
    }

    /// How far the child came, and what stopped it.
    pub fn reached(&self) -> (Stage, i32) {
        let stage = Stage::from_number(self.stage.load(Acquire));
        (stage, self.errno.load(Relaxed))
    }

    /// Records, in a shim, how its command ended.
    pub fn settle(&self, status: i32, usage: Rusage) {
        self.status.store(status, Relaxed);
        self.user_us.store(usage.user_us, Relaxed);
        self.system_us.store(usage.system_us, Relaxed);
        self.max_rss.store(usage.max_rss, Relaxed);
        self.settled.store(1, Release);
    }

    /// How a shim's command ended, if it did.
    pub fn settled(&self) -> Option<(i32, Rusage)> {
        (self.settled.load(Acquire) == 1).then(|| {
            let usage = Rusage {
                user_us: self.user_us.load(Relaxed),
                system_us: self.system_us.load(Relaxed),
                max_rss: self.max_rss.load(Relaxed),
            };
            (self.status.load(Relaxed), usage)
        })
    }

    fn clear(&self) {
        self.stage.store(0, Relaxed);
        self.errno.store(0, Relaxed);
        self.pid.store(0, Relaxed);
        self.settled.store(0, Release);
    }
}

/// All slots.
#[derive(Debug)]
pub struct Board {
    slots: SharedSlots,
    free: Vec<usize>,
}

impl Board {
    /// Slots for so many children at once.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(count: usize) -> io::Result<Self> {
        Ok(Self { slots: SharedSlots::map(count)?, free: (0..count).rev().collect() })
    }

    /// A free slot, cleared.
    pub fn take(&mut self) -> Option<usize> {
        let index = self.free.pop()?;
        self.slots.get(index).clear();
        Some(index)
    }

    /// The slot of a child.
    pub fn slot(&self, index: usize) -> &Slot {
        self.slots.get(index)
    }

    /// Gives a slot back. Its child has ended or has become another program.
    pub fn give_back(&mut self, index: usize) {
        self.free.push(index);
    }
}
