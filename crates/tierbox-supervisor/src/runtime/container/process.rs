//! Processes on this host without isolation: a supervisor in a session of its own, and a keeper that kills what it leaves.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::cgroup::Made;
use super::listen::Listener;
use super::refusal::{AtStep, Step};
use super::{EXIT_KILLED, EXIT_LEFTOVERS, cgroup, crash, guest, inside, intake, listen, refuse};
use crate::protocol::Mechanism;
use crate::runtime::machine::{CgroupDir, Channel, Machine};
use crate::runtime::sys::{self, Fork};
use crate::setup::Setup;

/// How long the end of killed processes is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the supervisor and kills what it leaves behind.
pub fn run(setup: Setup, channel: Channel) -> u8 {
    let _ = rustix::process::setsid();
    let (listener, word, voice) = match prepare(&setup) {
        Ok(prepared) => prepared,
        Err(refusal) => return refuse(&channel, &refusal),
    };
    match sys::fork_into(0).at("fork") {
        Ok(Fork::Child) => {
            drop(voice);
            supervise(setup, channel, listener, &word)
        }
        Ok(Fork::Parent(pid)) => {
            drop(word);
            keep(&setup, channel, listener, voice, pid)
        }
        Err(refusal) => {
            listener.inspect(|listener| listener.place.remove());
            refuse(&channel, &refusal)
        }
    }
}

fn prepare(setup: &Setup) -> Step<(Option<Listener>, OwnedFd, OwnedFd)> {
    sys::become_subreaper().at("subreaper")?;
    let listener = listen::open(setup)?;
    let (word, voice) = intake::line().at("line to the keeper")?;
    Ok((listener, word, voice))
}

fn supervise(setup: Setup, channel: Channel, listener: Option<Listener>, word: &OwnedFd) -> u8 {
    let _ = rustix::process::setsid();
    // The keeper makes the cgroups; if it says nothing it has refused already.
    let mut heard = [0];
    if !matches!(rustix::io::retry_on_intr(|| rustix::io::read(word, &mut heard)), Ok(1)) {
        return EXIT_KILLED;
    }
    let prepared = guest::prepare(&setup).and_then(|()| cgroup::open(&setup));
    let cgroups: Vec<CgroupDir> = match prepared {
        Ok(cgroups) => cgroups,
        Err(refusal) => return refuse(&channel, &refusal),
    };
    crash::point(&setup, "ready");
    let mut mechanisms: Vec<Mechanism> = setup.cgroups.iter().map(cgroup::mechanism).collect();
    let detail = "what loses its parent comes to the supervisor and its keeper, who kill it";
    mechanisms.push(Mechanism { name: "subreaper".into(), applied: 0, detail: detail.into() });
    let other_users = rustix::process::geteuid().is_root();
    let listener = listener.map(|listener| listener.socket);
    inside::announce_and_run(Machine { setup, channel, listener, joined: false, cgroups, mechanisms, other_users })
}

fn keep(setup: &Setup, channel: Channel, listener: Option<Listener>, voice: OwnedFd, pid: i32) -> u8 {
    sys::ignore_signals(&super::keeper::IGNORED);
    sys::set_name(c"tierbox-keeper");
    crash::point(setup, "clone");
    let mut made = Made::default();
    match made.make_all(setup, pid) {
        Ok(()) => {
            crash::point(setup, "cgroup");
            let _ = rustix::io::write(&voice, b"G");
        }
        Err(refusal) => {
            let _ = sys::kill(pid, libc::SIGKILL);
            let _ = channel.send(&refusal.message());
        }
    }
    drop((channel, voice));
    let place = listener.map(|listener| listener.place);
    let status = await_supervisor(pid);
    let gone = kill_descendants();
    made.remove_all();
    place.inspect(super::listen::Place::remove);
    if gone { status } else { EXIT_LEFTOVERS }
}

/// Waits for the supervisor, and for orphans that come here after it.
fn await_supervisor(pid: i32) -> u8 {
    loop {
        match sys::wait_for(-1) {
            Ok((ended, status)) if ended == pid && libc::WIFEXITED(status) => {
                return libc::WEXITSTATUS(status) as u8;
            }
            Ok((ended, _)) if ended == pid => return EXIT_KILLED,
            Ok(_) => {}
            Err(_) => return EXIT_KILLED,
        }
    }
}

/// Kills everything below this process until nothing is left. Whatever loses its parent becomes this process's child, so the
/// loop sees all of it in the end. Tells whether nothing is left.
fn kill_descendants() -> bool {
    let end = Instant::now() + PATIENCE;
    loop {
        match children() {
            Ok(children) => children.into_iter().for_each(|pid| drop(sys::kill(pid, libc::SIGKILL))),
            // Without the list there is nothing to kill by; what ended is still collected.
            Err(_) => return !has_children(),
        }
        while let Ok(true) = sys::collect_ended() {}
        if !has_children() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn has_children() -> bool {
    !matches!(sys::collect_ended(), Err(error) if error.raw_os_error() == Some(libc::ECHILD))
}

fn children() -> io::Result<Vec<i32>> {
    let text = std::fs::read_to_string("/proc/thread-self/children")?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}
