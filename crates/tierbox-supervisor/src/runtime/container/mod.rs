//! Sets a machine up.
//!
//! The program starts as the *keeper*: it reads the set-up, makes cgroups and the process that becomes pid 1, waits for its
//! end, and removes what it made. Pid 1 builds its own root and closes the door behind itself; then it serves the channel.
//! Both run at the same time: the keeper writes the id map and makes cgroups while pid 1 makes its namespaces and mounts.

mod caps;
mod cgroup;
mod crash;
mod guest;
mod idmap;
mod inside;
mod intake;
mod join;
mod keeper;
mod landlock;
mod listen;
mod mount;
mod net;
mod proc;
mod process;
mod refusal;
mod root;
mod seccomp;
mod serve;
mod sources;
mod visit;

pub(super) use join::say;
use refusal::Refusal;

use super::machine::Channel;
use crate::setup::Mode;

/// The machine served and ended.
pub const EXIT_ENDED: u8 = 0;
/// The machine was set up, but could not be served.
pub const EXIT_FAILED: u8 = 1;
/// The machine could not be set up; the channel got a `Refused` frame.
pub const EXIT_REFUSED: u8 = 3;
/// There was no usable channel at all.
pub const EXIT_NO_CHANNEL: u8 = 4;
/// Pid 1 was killed, or gave up because its keeper did.
pub const EXIT_KILLED: u8 = 5;
/// The machine ended, but processes of it could not be killed (mode `Process` only: they belong to another user).
pub const EXIT_LEFTOVERS: u8 = 6;

/// The arguments make no sense.
pub const EXIT_USAGE: u8 = 2;
/// No machine is served there, or its supervisor takes nobody.
pub const EXIT_NO_MACHINE: u8 = 7;

/// What the arguments ask for: nothing is a new machine at the other end of descriptor 0.
pub fn main() -> u8 {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => own_channel(),
        [what, dir] if what == "serve" => serve::run(dir.as_ref()),
        [what, dir] if what == "join" => join::run(dir.as_ref(), false),
        [what, dir, first] if what == "join" && first == "first" => join::run(dir.as_ref(), true),
        [what, rest @ ..] if what == "listen" => visit::run(rest),
        [what, rest @ ..] if what == "bar" => visit::bar(rest),
        [what, requests @ ..] if what == "probe" => super::probe::run(requests),
        [what, requests @ ..] if what == "probe-holding" => super::probe::run_holding(requests),
        [what, rest @ ..] if what == "canaries" => super::canaries::run(rest),
        [what] if what == "version" => join::say(1, &format!("tierbox-supervisor {}", crate::protocol::VERSION), 0),
        _ => join::say(
            2,
            "usage: tierbox-supervisor [serve DIR | join DIR [first] | listen PID ADDRESS:PORT... | bar PID ADDRESS/BITS... | probe REQUEST... | \
             probe-holding REQUEST... | canaries NONCE NAME SECONDS | version]",
            EXIT_USAGE,
        ),
    }
}

/// Reads the set-up, makes the machine, hands it to the engine.
fn own_channel() -> u8 {
    let Ok(channel) = intake::take_channel() else { return EXIT_NO_CHANNEL };
    let setup = match intake::read_setup(&channel) {
        Ok(setup) => setup,
        Err(refusal) => return refuse(&channel, &refusal),
    };
    match setup.mode {
        Mode::Container => keeper::run(setup, channel),
        Mode::Process => process::run(setup, channel),
        Mode::Guest => guest::run(setup, channel),
    }
}

/// Tells the host why not.
fn refuse(channel: &Channel, refusal: &Refusal) -> u8 {
    // A host that is gone does not need to know.
    let _ = channel.send(&refusal.message());
    EXIT_REFUSED
}
