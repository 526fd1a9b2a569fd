//! A gateway in a process of its own, for a sandbox that outlives whoever started it.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, Result};

use crate::gateway::{Config, Gateway};
use crate::rules::Rules;
use crate::sockets::{Plan, Sockets};

/// The argument by which a program is asked to be a gateway.
const WORD: &str = "tierbox-egress-gateway";

/// The program that is a gateway and nothing else.
const PROGRAM: &str = "tierbox-egress";

/// Names the gateway's program, if it is not where it is looked for.
const VARIABLE: &str = "TIERBOX_EGRESS";

/// How long the process may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most sockets of one gateway, and the sign of life.
const MOST: usize = 130;

/// The longest order.
const LONGEST: u64 = 4 << 20;

/// Whether this process's own program takes the word.
static WILLING: AtomicBool = AtomicBool::new(false);

/// What a gateway is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    sandbox: String,
    allow: Vec<String>,
    address: Ipv4Addr,
    log: PathBuf,
}

/// Becomes a gateway if this process was started as one; `None` otherwise. A program that starts detached sandboxes with N1
/// calls this first thing in `main`, so that its own executable can be the gateway; others need `tierbox-egress` installed.
pub fn run_if_asked() -> Option<ExitCode> {
    if std::env::args_os().nth(1).is_some_and(|word| word == WORD) {
        return Some(run());
    }
    WILLING.store(true, Ordering::Release);
    None
}

/// The program and arguments that become a gateway.
///
/// # Errors
/// `HostUnable` if there is none.
fn program() -> Result<Vec<OsString>> {
    if WILLING.load(Ordering::Acquire) {
        return Ok(vec!["/proc/self/exe".into(), WORD.into()]);
    }
    Ok(vec![installed()?.into_os_string(), WORD.into()])
}

/// The program `tierbox-egress` of this host.
///
/// # Errors
/// `HostUnable` if there is none.
pub fn installed() -> Result<PathBuf> {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from).filter(|path| path.is_absolute());
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let usual = ["/usr/local/bin", "/usr/bin", "/usr/local/libexec", "/usr/libexec"].map(|dir| Path::new(dir).join(PROGRAM));
    let found = named.into_iter().chain(beside).chain(usual).find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::new(
            ErrorKind::HostUnable,
            "start egress gateway",
            format!("no {PROGRAM} is installed, and the sandbox outlives this process"),
        )
        .with_help(format!(
            "install {PROGRAM}, name it in {VARIABLE}, or call tierbox_egress::run_if_asked() at the start of main"
        ))
    })
}

/// Starts a gateway that serves until the other end of `life` is closed (or, if that is a pidfd, until its process ends),
/// whatever becomes of this process. Blocks for some
/// milliseconds. The resolver is the host's, whichever the configuration names.
///
/// # Errors
/// `HostUnable` if there is no program for it, or it does not come up.
pub fn spawn(config: &Config, sockets: &Sockets, life: &OwnedFd) -> Result<Child> {
    let failed = |error: io::Error| Error::new(ErrorKind::HostUnable, "start egress gateway", error.to_string());
    let program = program()?;
    let order = Order {
        sandbox: config.sandbox.clone(),
        allow: config.rules.iter().map(ToString::to_string).collect(),
        address: config.plan.address(),
        log: config.log.clone(),
    };
    let order = serde_json::to_vec(&order).map_err(|error| failed(error.into()))?;
    let (line, theirs) = UnixStream::pair().map_err(failed)?;
    line.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).env_clear().current_dir("/").process_group(0);
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    drop(command);
    match instruct(line, &order, sockets, life) {
        Ok(()) => Ok(child),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(failed(error))
        }
    }
}

fn instruct(mut line: UnixStream, order: &[u8], sockets: &Sockets, life: &OwnedFd) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = std::iter::once(life.as_fd()).chain(sockets.descriptors()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many ports"));
    }
    rustix::net::sendmsg(&line, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::NOSIGNAL)?;
    line.write_all(order)?;
    line.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    line.take(4096).read_to_string(&mut answer)?;
    match answer.as_str() {
        "ok" => Ok(()),
        "" => Err(io::Error::other("the gateway ended before it listened")),
        why => Err(io::Error::other(why.to_owned())),
    }
}

fn run() -> ExitCode {
    let Ok(stdin) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let mut line = UnixStream::from(stdin);
    raise_limit();
    match receive(&mut line).and_then(|(order, life, sockets)| Ok((start(order, sockets)?, life))) {
        Ok((gateway, life)) => {
            let _ = line.write_all(b"ok").and_then(|()| line.shutdown(std::net::Shutdown::Both));
            await_end(&life);
            drop(gateway);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = line.write_all(error.to_string().as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Waits for the end of a pipe into which nothing is ever written, or of the process that a descriptor stands for.
fn await_end(life: &OwnedFd) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut waiting = [PollFd::new(life, PollFlags::IN)];
    let _ = rustix::io::retry_on_intr(|| poll(&mut waiting, None));
}

fn receive(line: &mut UnixStream) -> io::Result<(Order, OwnedFd, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0; 1];
    rustix::net::recvmsg(&*line, &mut [IoSliceMut::new(&mut first)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let passed = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut passed = passed.flatten();
    let life = passed.next().ok_or_else(|| io::Error::other("no sockets came"))?;
    let sockets = passed.collect();
    let mut order = Vec::new();
    line.take(LONGEST).read_to_end(&mut order)?;
    Ok((serde_json::from_slice(&order)?, life, sockets))
}

fn start(order: Order, sockets: Vec<OwnedFd>) -> io::Result<Gateway> {
    let rules = Rules::parse(&order.allow).map_err(io::Error::other)?;
    let plan = Plan::new(order.address, &rules);
    let sockets = Sockets::from_descriptors(&plan, sockets)?;
    Gateway::start(Config::new(&order.sandbox, rules, plan, &order.log), sockets).map_err(io::Error::other)
}

/// As many descriptors as this process may have: it does nothing else.
pub(crate) fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Serves on an address of this machine's own, as a configuration file says, until this process is killed: for a machine
/// that is the gateway of others. The file is JSON: `{"sandbox", "allow", "address", "log"}`.
///
/// # Errors
/// `InvalidProfile` for a file that is none, `HostUnable`.
pub fn stand_alone(path: &Path) -> Result<()> {
    let invalid = |why: String| Error::new(ErrorKind::InvalidProfile, "read gateway configuration", why);
    let bytes = std::fs::read(path).map_err(|error| Error::io("read gateway configuration", error))?;
    let order: Order = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    raise_limit();
    let rules = Rules::parse(&order.allow)?;
    let plan = Plan::new(order.address, &rules);
    let sockets = plan.bind().map_err(|error| Error::io("start egress gateway", error))?;
    let _gateway = Gateway::start(Config::new(&order.sandbox, rules, plan, &order.log), sockets)?;
    loop {
        std::thread::park();
    }
}
