//! Brings one machine up: keeper, channel, set-up, network helper.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tierbox_core::{CanaryName, Error, ErrorKind, Result};
use tierbox_egress::{Config, Gateway, Sockets};
use tierbox_guest::{Channel, Ready, SetupReply};
use tierbox_supervisor::setup::Setup;

use crate::BACKEND;
use crate::plan::network::{self, GatewayPlan, HelperKind, HelperProgram};
use crate::reaper::{Watched, watch_child};
use crate::refusal;
use crate::spawn::{self, Spawned};

/// How long a network helper may take.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);
const HELPER_STEP: Duration = Duration::from_millis(2);

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    /// The line to it, greeted.
    pub channel: Channel,
    /// What was enforced.
    pub ready: Ready,
    /// The process that cleans up after it.
    pub keeper: Watched,
    /// The network helper, or a gateway in a process of its own.
    pub helper: Option<Watched>,
    /// The gateway, in this process.
    pub gateway: Option<Gateway>,
}

/// Who gives the machine its network, and the file where they write.
#[derive(Debug)]
pub enum Way<'a> {
    /// A helper, and what it says.
    Helper(&'a HelperProgram, &'a Path),
    /// The gateway, and what it decides. In a process of its own if the machine may outlive this one.
    Gateway {
        /// What it allows.
        plan: &'a GatewayPlan,
        /// The environment's id.
        id: &'a str,
        /// The log.
        log: &'a Path,
        /// In a twin, names of verification's own.
        canaries: &'a [CanaryName],
    },
}

/// What was attached.
#[derive(Debug, Default)]
struct Attached {
    helper: Option<Watched>,
    gateway: Option<Gateway>,
}

/// Sets a machine up in a keeper that was just started. On failure nothing is left: the keeper ends with its channel.
///
/// # Errors
/// `HostUnable` naming what was refused and the remedy; `Timeout`.
pub async fn launch(spawned: Spawned, setup: &Setup, way: Option<&Way<'_>>, limit: Duration) -> Result<Machine> {
    let Spawned { keeper, socket, life } = spawned;
    let deadline = tokio::time::Instant::now() + limit;
    let channel = Channel::socket(socket)?;
    let guard = Guard(Some(&keeper));
    let mut reply = channel.setup(setup, limit).await.map_err(refusal::silent)?;
    let mut attached = Attached::default();
    if let SetupReply::NetworkWanted { pid } = reply {
        attached = match way {
            Some(Way::Helper(program, log)) => {
                Attached { helper: Some(attach_helper(program, pid, life, log).await?), gateway: None }
            }
            Some(Way::Gateway { plan, id, log, canaries }) => {
                let config = Config::new(id, plan.rules.clone(), plan.sockets.clone(), log).with_canaries(canaries)?;
                attach_gateway(config, pid, life).await?
            }
            None => return Err(unexpected("the machine asks for a network that nobody planned")),
        };
        reply = channel
            .network_ready(deadline.saturating_duration_since(tokio::time::Instant::now()))
            .await
            .map_err(refusal::silent)?;
    }
    let ready = match reply {
        SetupReply::Ready(ready) => ready,
        SetupReply::Refused { step, errno, detail } => return Err(refusal::explain(&step, errno, &detail)),
        SetupReply::NetworkWanted { .. } => return Err(unexpected("the machine asks for a network twice")),
    };
    // Nothing outlives the line by itself: attached machines end with it, and a detached one is told so when it is detached.
    channel.hello(Duration::ZERO)?;
    guard.disarm();
    let Attached { helper, gateway } = attached;
    Ok(Machine { channel, ready, keeper, helper, gateway })
}

/// Sees that a keeper whose start failed or was given up ends, even if it hangs.
struct Guard<'a>(Option<&'a Watched>);

impl Guard<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(keeper) = self.0 {
            keeper.kill_after(Duration::from_secs(2));
        }
    }
}

fn unexpected(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, "start sandbox", what).with_backend(BACKEND)
}

/// Makes the gateway's sockets in the network of a machine's first process, and serves them: here, or with `life` in a process
/// that ends when `life` does.
async fn attach_gateway(config: Config, pid: u32, life: Option<OwnedFd>) -> Result<Attached> {
    let serve = move || {
        let failed = |error: std::io::Error| {
            Error::new(
                ErrorKind::HostUnable,
                "start egress gateway",
                format!("its sockets cannot be made in the sandbox: {error}"),
            )
            .with_help("`tierbox doctor` says what this host lacks; or use a profile with N2")
        };
        let made = tierbox_guest::listen_inside(&spawn::program()?.path(), pid, &config.plan.tcp()).map_err(failed)?;
        let sockets = Sockets::from_descriptors(&config.plan, made).map_err(failed)?;
        match life {
            Some(life) => {
                let child = tierbox_egress::spawn(&config, &sockets, &life)?;
                Ok(Attached { helper: Some(watch_child(child)?), gateway: None })
            }
            None => Ok(Attached { helper: None, gateway: Some(Gateway::start(config, sockets)?) }),
        }
    };
    let served = tokio::task::spawn_blocking(serve).await;
    served.unwrap_or_else(|error| Err(unexpected(&error.to_string()))).map_err(|error: Error| error.with_backend(BACKEND))
}

/// Starts the network helper for a machine's first process and waits until there is a route. It ends when `life` does.
async fn attach_helper(program: &HelperProgram, pid: u32, life: Option<OwnedFd>, log: &Path) -> Result<Watched> {
    let failed = |error: std::io::Error| {
        Error::io("start network helper", error).with_backend(BACKEND).with_context("helper", program.name())
    };
    let life = life.ok_or_else(|| unexpected("the network helper would outlive its machine"))?;
    let output = File::create(log).map_err(failed)?;
    let watched_life = life.try_clone().map_err(failed)?;
    let mut command = helper_command(program, pid);
    command.env_clear().current_dir("/").stdin(life).stderr(output.try_clone().map_err(failed)?).stdout(output);
    let helper = watch_child(command.spawn().map_err(failed)?)?;
    let deadline = tokio::time::Instant::now() + HELPER_PATIENCE;
    while !network::is_connected(pid) {
        // Looked at before the helper is killed, so that the error names what happened first.
        let ended = helper.has_ended();
        if ended || tokio::time::Instant::now() >= deadline {
            helper.kill();
            // A machine that ends takes its helper with it: what the helper then says is not the cause.
            return Err(if is_over(&watched_life) {
                refusal::silent(Error::new(ErrorKind::Lost, "start sandbox", "it ended while its network was made"))
            } else {
                helper_failed(program, log, ended)
            });
        }
        tokio::time::sleep(HELPER_STEP).await;
    }
    Ok(helper)
}

fn helper_command(program: &HelperProgram, pid: u32) -> Command {
    let arguments = program.arguments(pid);
    match program.kind {
        // It watches the pipe on its stdin itself.
        HelperKind::Slirp4netns => {
            let mut command = Command::new(&program.path);
            command.arg("--exit-fd=0").args(arguments);
            command
        }
        // pasta has no such thing, so a shell waits for the end of the pipe for it.
        HelperKind::Pasta => {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(PASTA_WRAPPER).arg("tierbox-network").arg(&program.path).args(arguments);
            command
        }
    }
}

/// Runs pasta until the pipe on stdin ends; ends itself when pasta does.
const PASTA_WRAPPER: &str = r#"exec 3<&0
"$@" </dev/null 3<&- &
helper=$!
{ read -r _ <&3; kill "$helper" 2>/dev/null; } &
watcher=$!
exec 3<&-
wait "$helper"
status=$?
kill "$watcher" 2>/dev/null
exit "$status""#;

/// Whether the machine that holds the other end of this pipe has ended.
fn is_over(life: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut waiting = [PollFd::new(life, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut waiting, Some(&at_once)).is_ok() && waiting[0].revents().contains(PollFlags::HUP)
}

fn helper_failed(program: &HelperProgram, log: &Path, ended: bool) -> Error {
    let said = std::fs::read(log).unwrap_or_default();
    let said: String =
        String::from_utf8_lossy(&said[..said.len().min(2000)]).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let what = if ended { "ended before the network was up" } else { "gave the sandbox no route in time" };
    Error::new(ErrorKind::HostUnable, "start network helper", format!("{} {what}: {}", program.name(), said.trim()))
        .with_backend(BACKEND)
        .with_help("try the other helper (local.network = \"slirp4netns\" or \"pasta\"), or a profile with N2")
}

#[cfg(test)]
mod unit {
    use std::process::Stdio;

    use super::*;

    fn program(kind: HelperKind, path: &str) -> HelperProgram {
        HelperProgram { kind, path: path.into(), prefix: [10, 0, 2] }
    }

    #[tokio::test]
    async fn a_helper_that_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        // The shell of the wrapper says that the program does not exist.
        let error =
            attach_helper(&program(HelperKind::Pasta, "/nonexistent/pasta"), 4_000_000, Some(reader), &log).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnable);
        assert!(error.message().contains("/nonexistent/pasta"), "{error}");
    }

    #[tokio::test]
    async fn a_machine_that_ends_is_not_blamed_on_its_helper() {
        let dir = tempfile::tempdir().unwrap();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        drop(writer);
        let helper = program(HelperKind::Pasta, "/bin/sleep");
        let error = attach_helper(&helper, 4_000_000, Some(reader), &dir.path().join("log")).await.unwrap_err();
        assert!(error.message().contains("was killed before"), "{error}");
    }

    #[tokio::test]
    async fn the_wrapped_helper_ends_with_the_machine() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(PASTA_WRAPPER)
            .args(["x", "/bin/sleep", "100"])
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let wrapper = watch_child(command.spawn().unwrap()).unwrap();
        drop(command);
        assert!(!wrapper.has_ended());
        drop(writer);
        tokio::time::timeout(Duration::from_secs(10), wrapper.ended()).await.unwrap();
    }
}
