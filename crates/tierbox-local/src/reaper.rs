//! Waits for keepers and helpers, in one thread of its own for the whole process.
//!
//! Waiting is by pidfd and by exact process id: a harness has children of its own, and nothing here may reap those.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tierbox_core::{Error, Result};
use tokio::sync::watch;

use crate::destroy;

/// How long the parts of a machine have to go after its first process was killed.
const AFTER_KILL: Duration = Duration::from_millis(500);

/// A process that is being waited for. Clones are the same process; dropping all of them does nothing to it.
#[derive(Debug, Clone)]
pub struct Watched {
    pid: u32,
    start_ticks: u64,
    ended: watch::Receiver<bool>,
    pidfd: Arc<OwnedFd>,
}

enum Request {
    Watch { pid: u32, pidfd: Arc<OwnedFd>, child: Option<Child>, ended: watch::Sender<bool> },
    KillAt { pid: u32, at: Instant },
}

struct Reaper {
    requests: Mutex<Vec<Request>>,
    wake: OwnedFd,
}

struct Entry {
    pidfd: Arc<OwnedFd>,
    child: Option<Child>,
    ended: watch::Sender<bool>,
    kill_at: Option<Instant>,
    killed: bool,
}

/// Watches a child of this process, and reaps it.
///
/// # Errors
/// `Io` without descriptors or threads.
pub fn watch_child(child: Child) -> Result<Watched> {
    let pid = child.id();
    watch_process(pid, Some(child))
}

/// Watches a process that may be nobody's child here, if it is still the one that started at `start_ticks`.
pub fn watch_other(pid: u32, start_ticks: u64) -> Option<Watched> {
    let watched = watch_process(pid, None).ok()?;
    // Compared after the pidfd is open: the number cannot have passed to another process since.
    (watched.start_ticks == start_ticks && start_ticks != 0).then_some(watched)
}

fn watch_process(pid: u32, child: Option<Child>) -> Result<Watched> {
    let reaper = reaper()?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let opened = raw.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let pidfd = Arc::new(opened.map_err(|errno| Error::io("watch process", errno.into()))?);
    let start_ticks = destroy::start_ticks(pid).unwrap_or(0);
    let (ended, receiver) = watch::channel(false);
    reaper.send(Request::Watch { pid, pidfd: pidfd.clone(), child, ended });
    Ok(Watched { pid, start_ticks, ended: receiver, pidfd })
}

impl Watched {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks since boot; 0 if that could not be read.
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        // An error means that the sender is gone, which happens only after the end.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Kills what it started, and then itself, if it has not ended by itself within `patience`.
    pub fn kill_after(&self, patience: Duration) {
        if let Ok(reaper) = reaper() {
            reaper.send(Request::KillAt { pid: self.pid, at: Instant::now() + patience });
        }
    }

    /// Sends SIGKILL to it alone.
    pub fn kill(&self) {
        // It may be gone, which is what is wanted.
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }
}

fn reaper() -> Result<&'static Reaper> {
    static REAPER: OnceLock<std::result::Result<Reaper, rustix::io::Errno>> = OnceLock::new();
    static THREAD: OnceLock<bool> = OnceLock::new();
    let made = REAPER.get_or_init(|| {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Reaper { requests: Mutex::default(), wake })
    });
    let reaper = made.as_ref().map_err(|errno| Error::io("start reaper", (*errno).into()))?;
    let running = THREAD.get_or_init(|| {
        let thread = std::thread::Builder::new().name("tierbox-reaper".to_owned()).stack_size(128 << 10);
        thread.spawn(move || reaper.run()).is_ok()
    });
    if *running { Ok(reaper) } else { Err(Error::io("start reaper", std::io::Error::other("no thread could be started"))) }
}

impl Reaper {
    fn send(&self, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        // A full counter wakes the thread as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn run(&self) {
        let mut entries: HashMap<u32, Vec<Entry>> = HashMap::new();
        loop {
            let requests = std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner));
            for request in requests {
                take(&mut entries, request);
            }
            self.wait(&entries);
            for (pid, same) in &mut entries {
                same.retain_mut(|entry| !entry.settle(*pid));
            }
            entries.retain(|_, same| !same.is_empty());
        }
    }

    /// Waits for a request, an end, or the next deadline.
    fn wait(&self, entries: &HashMap<u32, Vec<Entry>>) {
        let all = || entries.values().flatten();
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(all().map(|entry| PollFd::from_borrowed_fd(entry.pidfd.as_fd(), PollFlags::IN)));
        let next = all().filter_map(|entry| entry.kill_at).min();
        let timeout = next.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().min(3600) as i64, tv_nsec: left.subsec_nanos().into() }
        });
        // Interrupted or not, the caller looks at everything again.
        let _ = poll(&mut polled, timeout.as_ref());
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
    }
}

fn take(entries: &mut HashMap<u32, Vec<Entry>>, request: Request) {
    match request {
        Request::Watch { pid, pidfd, child, ended } => {
            entries.entry(pid).or_default().push(Entry { pidfd, child, ended, kill_at: None, killed: false });
        }
        Request::KillAt { pid, at } => {
            for entry in entries.get_mut(&pid).into_iter().flatten() {
                entry.kill_at = Some(entry.kill_at.map_or(at, |earlier| earlier.min(at)));
            }
        }
    }
}

impl Entry {
    /// Looks whether the process has ended, and kills it if its time is up. True once it has ended.
    fn settle(&mut self, pid: u32) -> bool {
        if self.is_over() {
            self.ended.send_replace(true);
            return true;
        }
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            destroy::kill_children(pid);
            if self.killed {
                let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
            }
            // First its children only, so that it can still clean up; itself the next time.
            self.killed = true;
            self.kill_at = Some(Instant::now() + AFTER_KILL);
        }
        false
    }

    fn is_over(&mut self) -> bool {
        match &mut self.child {
            // An error means that somebody else reaped it, or SIGCHLD is ignored: it is gone either way.
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => {
                let mut polled = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                matches!(poll(&mut polled, Some(&now)), Ok(ready) if ready > 0)
            }
        }
    }
}

#[cfg(test)]
mod unit {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper() -> Child {
        Command::new("/bin/sleep").arg("100").stdin(Stdio::null()).spawn().unwrap()
    }

    #[tokio::test]
    async fn an_end_is_noticed_and_reaped() {
        let watched = watch_child(Command::new("/bin/true").spawn().unwrap()).unwrap();
        tokio::time::timeout(Duration::from_secs(10), watched.ended()).await.unwrap();
        assert!(watched.has_ended());
        assert!(!std::path::Path::new("/proc").join(watched.pid().to_string()).exists(), "no zombie is left");
    }

    #[tokio::test]
    async fn patience_ends_in_a_kill() {
        let watched = watch_child(sleeper()).unwrap();
        watched.kill_after(Duration::from_millis(10));
        tokio::time::timeout(Duration::from_secs(10), watched.ended()).await.unwrap();
    }

    #[tokio::test]
    async fn a_process_is_known_by_its_start() {
        let child = sleeper();
        let pid = child.id();
        let own = watch_child(child).unwrap();
        assert!(watch_other(pid, own.start_ticks() + 1).is_none());
        let other = watch_other(pid, own.start_ticks()).unwrap();
        own.kill();
        tokio::time::timeout(Duration::from_secs(10), other.ended()).await.unwrap();
    }
}
