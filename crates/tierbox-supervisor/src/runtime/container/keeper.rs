//! The keeper: outlives pid 1, and leaves nothing of the machine behind.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::DumpableBehavior;

use super::cgroup::Made;
use super::idmap::{self, Caller};
use super::listen::Listener;
use super::refusal::{AtStep, Refusal, Step};
use super::sources::Granted;
use super::{EXIT_KILLED, EXIT_REFUSED, crash, inside, intake, listen, refuse};
use crate::runtime::machine::Channel;
use crate::runtime::sys::{self, Fork};
use crate::setup::{Net, Setup};

/// The kernel that the mount calls need.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

/// From the keeper: the id map is written.
pub const MAPPED: u8 = b'M';
/// From the keeper: the cgroups are made. Pid 1's number on the host follows, in 4 bytes.
pub const GROUPED: u8 = b'G';

/// What a terminal or a careless `kill` sends. The machine's end is decided by the channel, and by SIGKILL.
pub const IGNORED: [libc::c_int; 8] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGTTOU, libc::SIGTTIN];

/// What both halves need, made before they part.
#[derive(Debug)]
pub struct Prepared {
    /// Who the machine is made for.
    pub caller: Caller,
    /// Host trees that only the keeper may take.
    pub granted: Granted,
    /// Where later clients connect.
    pub listener: Option<Listener>,
    /// The keeper's word comes here; its end is the keeper's.
    pub word: OwnedFd,
}

/// Makes a container and keeps it.
pub fn run(setup: Setup, channel: Channel) -> u8 {
    // Away from the caller's terminal: its Ctrl-C is the caller's to handle.
    let _ = rustix::process::setsid();
    sys::set_name(c"tierbox-keeper");
    let (prepared, voice) = match prepare(&setup) {
        Ok(prepared) => prepared,
        Err(refusal) => return refuse(&channel, &refusal),
    };
    match sys::fork_into(libc::CLONE_NEWUSER | libc::CLONE_NEWPID) {
        Ok(Fork::Child) => {
            drop(voice);
            inside::run(setup, channel, prepared)
        }
        Ok(Fork::Parent(pid)) => keep(&setup, channel, prepared, &voice, pid),
        Err(error) => {
            if let Some(listener) = prepared.listener {
                listener.place.remove();
            }
            refuse(&channel, &namespace_refusal(error))
        }
    }
}

fn prepare(setup: &Setup) -> Step<(Prepared, OwnedFd)> {
    check_kernel()?;
    if setup.net == Net::Host {
        return Err(Refusal::because("network namespace", "a container cannot have the host's network"));
    }
    let (word, voice) = intake::line().at("line to the keeper")?;
    let granted = Granted::take(setup)?;
    let listener = listen::open(setup)?;
    Ok((Prepared { caller: Caller::now(), granted, listener, word }, voice))
}

fn check_kernel() -> Step {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    match version(&release) {
        Some(found) if found < OLDEST_KERNEL => {
            let (major, minor) = OLDEST_KERNEL;
            Err(Refusal::because("kernel version", format!("Linux {release} is older than {major}.{minor}")))
        }
        // A name that cannot be read is some build's of a newer kernel.
        _ => Ok(()),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Which of the two namespaces was denied.
fn namespace_refusal(error: std::io::Error) -> Refusal {
    let alone = sys::unshare(libc::CLONE_NEWUSER);
    let step = if alone.is_err() { "user namespace" } else { "pid namespace" };
    Refusal { step: step.into(), errno: error.raw_os_error().unwrap_or(0), detail: String::new() }
}

fn keep(setup: &Setup, channel: Channel, prepared: Prepared, voice: &OwnedFd, pid: i32) -> u8 {
    let Prepared { caller, granted, listener, word } = prepared;
    drop(word);
    sys::ignore_signals(&IGNORED);
    crash::point(setup, "clone");
    let mut made = Made::default();
    let support = support(setup, caller, &granted, voice, pid, &mut made);
    if let Err(refusal) = &support {
        // Pid 1 first: it must not be heard after this.
        let _ = sys::kill(pid, libc::SIGKILL);
        let _ = channel.send(&refusal.message());
    }
    // The channel's end has to be seen by the host when pid 1 is gone, and pid 1 must see the host's.
    drop((channel, granted));
    let place = listener.map(|listener| listener.place);
    await_goodbye(voice);
    // While pid 1 dies, which takes as long again: its commands are dead already, or the second try is for them.
    made.remove_empty();
    let ended = sys::wait_for(pid);
    made.remove_all();
    if let Some(place) = place {
        place.remove();
    }
    match ended {
        _ if support.is_err() => EXIT_REFUSED,
        Ok((_, status)) if libc::WIFEXITED(status) => libc::WEXITSTATUS(status) as u8,
        _ => EXIT_KILLED,
    }
}

/// What pid 1 cannot do for itself.
fn support<'a>(setup: &'a Setup, caller: Caller, granted: &Granted, voice: &OwnedFd, pid: i32, made: &mut Made<'a>) -> Step {
    if !idmap::is_self_written(&setup.users) {
        idmap::write_for(pid, &setup.users, caller)?;
        granted.translate_owners(pid);
        granted.lend_to_agent(setup);
        say(voice, &[MAPPED]);
    }
    crash::point(setup, "map");
    made.make_all(setup, pid)?;
    crash::point(setup, "cgroup");
    let mut word = [GROUPED; 5];
    word[1..].copy_from_slice(&pid.to_le_bytes());
    say(voice, &word);
    // Its memory holds the set-up, secrets in the environment included.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    Ok(())
}

/// Waits until pid 1 says that it ends, or has ended.
fn await_goodbye(voice: &OwnedFd) {
    // It says nothing else, so the first thing to be read is the end.
    let _ = rustix::io::retry_on_intr(|| rustix::io::read(voice, &mut [0; 1]));
}

/// Tells pid 1. If it is gone already, waiting for it tells more than this could.
fn say(voice: &OwnedFd, word: &[u8]) {
    let _ = rustix::io::write(voice.as_fd(), word);
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn kernel_versions_are_read_from_any_release_name() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.4.0"), Some((5, 4)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("custom"), None);
        assert!((5, 4) < OLDEST_KERNEL && (6, 1) > OLDEST_KERNEL);
    }
}
