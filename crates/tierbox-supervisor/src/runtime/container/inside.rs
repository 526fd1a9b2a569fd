//! Pid 1's way from a fresh process to a closed room.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::net::AddressFamily;
use rustix::process::{DumpableBehavior, Signal};

use super::keeper::{GROUPED, MAPPED, Prepared};
use super::net::Netlink;
use super::refusal::{AtStep, Refusal, Step};
use super::root::NewRoot;
use super::sources::Sources;
use super::{EXIT_ENDED, EXIT_FAILED, EXIT_KILLED, caps, cgroup, crash, idmap, intake, landlock, refuse, root, seccomp};
use crate::protocol::{FromSupervisor, Mechanism, ToSupervisor};
use crate::runtime::engine;
use crate::runtime::machine::{CgroupDir, Channel, Machine};
use crate::runtime::sys;
use crate::setup::{Net, Setup, UserMap};

/// The namespaces that pid 1 makes itself, while the keeper writes its id map.
const NAMESPACES: [(libc::c_int, &str); 4] = [
    (libc::CLONE_NEWNS, "mount namespace"),
    (libc::CLONE_NEWNET, "network namespace"),
    (libc::CLONE_NEWIPC, "ipc namespace"),
    (libc::CLONE_NEWUTS, "uts namespace"),
];

/// The longest host name.
const HOST_NAME: usize = 64;

/// Why the set-up ended early.
enum Stop {
    /// A step failed.
    Refused(Refusal),
    /// The keeper is gone, and has said why if it could.
    Abandoned,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Sets the machine up and serves it.
pub fn run(setup: Setup, channel: Channel, prepared: Prepared) -> u8 {
    match set_up(&setup, &channel, prepared) {
        Ok(room) => serve(setup, channel, room),
        Err(Stop::Refused(refusal)) => refuse(&channel, &refusal),
        Err(Stop::Abandoned) => EXIT_KILLED,
    }
}

/// What the engine needs of the set-up.
struct Room {
    listener: Option<rustix::fd::OwnedFd>,
    cgroups: Vec<CgroupDir>,
    mechanisms: Vec<Mechanism>,
    word: rustix::fd::OwnedFd,
}

fn set_up(setup: &Setup, channel: &Channel, prepared: Prepared) -> Result<Room, Stop> {
    let Prepared { caller, granted, listener, word } = prepared;
    new_namespaces(setup)?;
    if idmap::is_self_written(&setup.users) {
        idmap::write_own(setup, caller)?;
    }
    let name = &setup.id.as_bytes()[..setup.id.len().min(HOST_NAME)];
    if !lifted(setup, "uts namespace") {
        rustix::system::sethostname(name).at("host name")?;
    }
    let netlink = Netlink::open().at("loopback")?;
    if !lifted(setup, "network namespace") {
        netlink.loopback_up()?;
    }
    rustix::process::umask(Mode::empty());
    // With the caller's identity still, which may see what root inside may not.
    let sources = Sources::gather(setup, granted)?;
    if !idmap::is_self_written(&setup.users) {
        hear(word.as_fd(), MAPPED)?;
        idmap::assume_root(&setup.users)?;
    }
    follow_the_keeper(word.as_fd())?;
    let new_root = root::build(setup, sources)?;
    crash::point(setup, "mount");
    let pid = hear_pid(word.as_fd())?;
    let cgroups = cgroup::enter(setup)?;
    root::enter(&new_root)?;
    crash::point(setup, "pivot");
    intake::null_standard_streams(false).at("mount /dev/null")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    external_network(setup, channel, &netlink, pid)?;
    drop(netlink);
    let mechanisms = close_the_door(setup, &new_root, &cgroups)?;
    crash::point(setup, "seccomp");
    Ok(Room { listener: listener.map(|listener| listener.socket), cgroups, mechanisms, word })
}

/// Whether a mechanism is left out, in a twin.
fn lifted(setup: &Setup, name: &str) -> bool {
    setup.lifted.iter().any(|lifted| lifted == name)
}

fn new_namespaces(setup: &Setup) -> Step {
    let wanted = || NAMESPACES.iter().filter(|(_, name)| !lifted(setup, name));
    let all = wanted().fold(0, |all, (flag, _)| all | flag);
    if sys::unshare(all).is_ok() {
        return Ok(());
    }
    // One by one, to know which.
    for (flag, step) in wanted() {
        sys::unshare(*flag).at(step)?;
    }
    Ok(())
}

/// Ends with the keeper from now on. Setting ids clears the wish, so it comes after that.
fn follow_the_keeper(word: BorrowedFd<'_>) -> Result<(), Stop> {
    // In a session of its own, whatever the keeper's is.
    let _ = rustix::process::setsid();
    sys::set_name(c"tierbox-init");
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at("dumpable")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at("parent death signal")?;
    let mut fds = [PollFd::new(&word, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).at("keeper")?;
    // It may have died before the signal was asked for.
    if fds[0].revents().contains(PollFlags::HUP) { Err(Stop::Abandoned) } else { Ok(()) }
}

fn hear(word: BorrowedFd<'_>, expected: u8) -> Result<(), Stop> {
    let mut heard = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(word, &mut heard)) {
        Ok(1) if heard[0] == expected => Ok(()),
        _ => Err(Stop::Abandoned),
    }
}

fn hear_pid(word: BorrowedFd<'_>) -> Result<u32, Stop> {
    hear(word, GROUPED)?;
    let mut pid = [0; 4];
    match rustix::io::retry_on_intr(|| rustix::io::read(word, &mut pid)) {
        Ok(4) => Ok(u32::from_le_bytes(pid)),
        _ => Err(Stop::Abandoned),
    }
}

/// Lets a helper give the network namespace a way out, and blocks what must not be reached through it.
fn external_network(setup: &Setup, channel: &Channel, netlink: &Netlink, pid: u32) -> Step {
    let (blocked4, blocked6) = match &setup.net {
        Net::External { blocked4, blocked6 } => (blocked4.as_slice(), blocked6.as_slice()),
        Net::Gateway => (&[][..], &[][..]),
        Net::Isolated | Net::Host => return Ok(()),
    };
    // The helper has to open this process's namespaces, which the kernel grants nobody but root while it cannot be dumped.
    // Nothing of the sandbox's runs yet.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).at("dumpable")?;
    channel.send(&FromSupervisor::NetworkWanted { pid }).at("network helper")?;
    let answer = channel.receive().at("network helper")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at("dumpable")?;
    if !matches!(answer, ToSupervisor::NetworkReady) {
        return Err(Refusal::because("network helper", "the host sent something else than NetworkReady"));
    }
    for (address, length) in blocked4 {
        netlink.block(AddressFamily::INET, address, *length)?;
    }
    for (address, length) in blocked6 {
        netlink.block(AddressFamily::INET6, address, *length)?;
    }
    Ok(())
}

/// Gives up rights, one mechanism after the other, and says which are in force.
fn close_the_door(setup: &Setup, root: &NewRoot, cgroups: &[CgroupDir]) -> Step<Vec<Mechanism>> {
    let enforced = |name: &str, detail: &str| Mechanism { name: name.into(), applied: 0, detail: detail.into() };
    let map = match &setup.users {
        UserMap::Single => "the caller alone".into(),
        UserMap::Direct { first, count } => format!("{count} ids from {first}"),
        UserMap::Helper { first_uid, uids, .. } => format!("the caller as root, {uids} ids from {first_uid}"),
    };
    let mut mechanisms = vec![enforced("user namespace", &map), enforced("pid namespace", "")];
    mechanisms.extend(NAMESPACES.iter().map(|(_, name)| enforced(name, "")));
    mechanisms.push(enforced("cgroup namespace", ""));
    mechanisms.push(match root.writable.is_empty() {
        true => enforced("copy-on-write root", ""),
        false => enforced("read-only root", &format!("{} writable directories", root.writable.len())),
    });
    mechanisms.extend(setup.cgroups.iter().map(cgroup::mechanism));
    caps::reduce(!lifted(setup, "capabilities"), !lifted(setup, "no_new_privs"))?;
    mechanisms.extend([enforced("capabilities", "none for users, docker's fewest for root"), enforced("no_new_privs", "")]);
    if !lifted(setup, "landlock") {
        mechanisms.push(confine_files(root, cgroups)?);
    }
    if !lifted(setup, "seccomp") {
        let instructions = seccomp::install().at("seccomp")?;
        mechanisms.push(enforced("seccomp", &format!("{instructions} instructions")));
    }
    mechanisms.retain(|mechanism| !lifted(setup, &mechanism.name));
    Ok(mechanisms)
}

fn confine_files(root: &NewRoot, cgroups: &[CgroupDir]) -> Step<Mechanism> {
    match landlock::restrict(&root.writable, cgroups) {
        Ok(version) => Ok(Mechanism { name: "landlock".into(), applied: 0, detail: format!("ABI {version}") }),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
            Ok(Mechanism { name: "landlock".into(), applied: 2, detail: "this kernel has none, or it is turned off".into() })
        }
        Err(error) => Err(error).at("landlock"),
    }
}

fn serve(setup: Setup, channel: Channel, room: Room) -> u8 {
    let other_users = !matches!(setup.users, UserMap::Single);
    crash::point(&setup, "ready");
    let Room { listener, cgroups, mechanisms, word } = room;
    let status = announce_and_run(Machine { setup, channel, listener, joined: false, cgroups, mechanisms, other_users });
    // Goodbye: the keeper begins to clear up.
    let _ = rustix::net::shutdown(&word, rustix::net::Shutdown::Both);
    status
}

/// Says that the machine is ready, and serves it.
pub fn announce_and_run(machine: Machine) -> u8 {
    let (kill_domain, memory_outcome) = match engine::describe(&machine).at("cgroup of commands") {
        Ok(found) => found,
        Err(refusal) => return super::refuse(&machine.channel, &refusal),
    };
    let mechanisms = machine.mechanisms.clone();
    let ready = FromSupervisor::Ready { mechanisms, kill_domain, memory_outcome, users: machine.other_users };
    // A host that is gone is noticed by the engine.
    let _ = machine.channel.send(&ready);
    if engine::run(machine) == ExitCode::SUCCESS { EXIT_ENDED } else { EXIT_FAILED }
}
