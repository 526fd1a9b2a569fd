//! The channel to a machine's supervisor: installed over SSH, spoken with over SSH, opened again when the line drops.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tierbox_core::{Capabilities, EnvironmentSpec, Error, ErrorKind, Limits, Result, UserSupport};
use tierbox_guest::install::Landed;
use tierbox_guest::plain::PlainConfig;
use tierbox_guest::{Channel, GuestConfig, GuestSandbox, Line, Ready, Reconnect, driver, install};
use tierbox_supervisor::setup::{Rlimit, Setup};
use tierbox_supervisor::wire::Blob;
use tokio::sync::Notify;

use crate::BACKEND;
use crate::libvirt::virsh;
use crate::machines::Machine;
use crate::place::Place;
use crate::record::shown;
use crate::scripts;
use crate::ssh::Ssh;
use crate::way::Way;

/// How long the supervisor may take to be put in place, and to answer.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long one attempt to open a line may take.
const ATTEMPT: Duration = Duration::from_secs(20);

const RLIMIT_FSIZE: u32 = 1;
const RLIMIT_CORE: u32 = 4;
const RLIMIT_NOFILE: u32 = 7;

/// What is needed to use a machine from another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// The machine.
    pub machine: Machine,
    /// The command that is one more line to its supervisor; `None` where there is none.
    pub join: Option<String>,
    /// Its default user.
    pub agent: String,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// A machine that is spoken with.
pub struct Connected {
    /// Commands and files.
    pub way: Way,
    /// The line below.
    pub ssh: Arc<Ssh>,
    /// How another process finds it.
    pub joining: Joining,
    below: Below,
}

/// What each way needs besides.
enum Below {
    /// Ends the channel when the machine is gone.
    Watch(tokio::task::JoinHandle<()>),
    /// What it was opened with.
    Scripts(Login, Box<PlainConfig>),
}

impl Connected {
    /// A machine that scripts are run in.
    pub fn over_scripts(way: Way, ssh: Arc<Ssh>, joining: Joining, login: Login, config: PlainConfig) -> Self {
        Self { way, ssh, joining, below: Below::Scripts(login, Box::new(config)) }
    }

    /// Speaks with the machine anew, after it was put back to an earlier moment.
    ///
    /// # Errors
    /// As [`join`], or as opening it at first.
    pub async fn again(&self, place: &Place, limits: &Limits) -> Result<Self> {
        match &self.below {
            Below::Watch(_) => join(place, self.joining.clone(), limits, Ssh::new(place, &self.joining.machine.name)).await,
            Below::Scripts(login, config) => {
                let machine = &self.joining.machine;
                let ssh = Arc::new(Ssh::new(place, &machine.name));
                scripts::open(machine, login.clone(), config.as_ref().clone(), ssh).await
            }
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Below::Watch(task) = &self.below {
            task.abort();
        }
    }
}

/// Who logs in, and what is put before a command that is to run as root.
#[derive(Debug, Clone)]
pub struct Login {
    /// The user.
    pub name: String,
    /// `sudo`, if it is needed and may be used.
    pub prefix: &'static str,
}

impl Login {
    /// Asks the machine.
    ///
    /// # Errors
    /// As [`Ssh::run`].
    pub async fn ask(ssh: &Ssh) -> Result<Self> {
        let who = ssh.run(&format!("{} sh :", install::quoted(FIRST)), b"", PATIENCE).await?;
        if who.status.is_none() {
            return Err(Error::new(ErrorKind::Lost, "connect", "the line went away").with_backend(BACKEND).retryable());
        }
        Self::read(&String::from_utf8_lossy(&who.stdout))
    }

    /// Reads what [`FIRST`] says.
    fn read(said: &str) -> Result<Self> {
        let mut lines = said.lines().map(str::trim);
        let name = lines.next().and_then(|line| line.strip_prefix("login="));
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let prefix = if lines.next() == Some("sudo=1") { "sudo -n " } else { "" };
            return Ok(Self { name: name.to_owned(), prefix });
        }
        let first = shown(said.trim_start().lines().next().unwrap_or_default());
        let message = format!("a command that asks who logs in was answered {first:?}");
        let error = Error::new(ErrorKind::Protocol, "connect", message).with_backend(BACKEND);
        if name.is_some() || first.is_empty() {
            return Err(error);
        }
        // It would get into every answer.
        Err(error
            .with_help("let what the login shell reads at its start (.bashrc and the like) print nothing without a terminal"))
    }

    /// A script as a command line of whoever logs in, run as root where that can be.
    fn as_root(&self, script: &str) -> String {
        install::quoted(script).replacen("exec ", &format!("exec {}", self.prefix), 1)
    }

    /// Commands run as who logs in, also where root starts them, unless the profile names somebody.
    pub fn default_user(&self, asked: Option<&str>) -> Option<String> {
        asked.map(str::to_owned).or_else(|| (!self.prefix.is_empty()).then(|| self.name.clone()))
    }
}

/// Whether a machine is known to be gone: libvirt says that it is off, or that there is none. A libvirt that does not answer says
/// nothing, and a paused machine goes on.
pub async fn is_gone(domain: &str) -> bool {
    match virsh(&["domstate", domain]).await {
        Ok(state) => matches!(state.trim(), "shut off" | "crashed"),
        Err(error) => says_missing(error.message()),
    }
}

/// Whether libvirt says that there is no such domain.
fn says_missing(said: &str) -> bool {
    ["Domain not found", "no domain with matching name"].iter().any(|sign| said.contains(sign))
}

/// A machine's domain in libvirt, where there is one.
pub fn domain(place: &Place, machine: &Machine) -> Option<String> {
    (place.provider == "libvirt").then(|| format!("{}{}", place.prefix(), machine.name))
}

/// Opens lines to a supervisor that runs.
struct Reopen {
    ssh: Arc<Ssh>,
    join: String,
    /// The machine's domain in libvirt, where that can be asked whether the machine lives.
    domain: Option<String>,
    gone: Arc<Notify>,
}

#[async_trait]
impl Reconnect for Reopen {
    async fn open(&self) -> Result<Line> {
        // The connection below is what dropped, or is hung: sessions on it would be, too.
        self.ssh.close().await;
        let attempt = tokio::time::timeout(ATTEMPT, self.ssh.stream(&self.join)).await;
        let failed = match attempt {
            Ok(Ok((reader, writer, child))) => return Ok(Line::new(reader, writer).keeping(child)),
            Ok(Err(error)) => error,
            Err(_) => Error::new(ErrorKind::Timeout, "open line", format!("nothing answered within {ATTEMPT:?}")),
        };
        if let Some(domain) = &self.domain
            && is_gone(domain).await
        {
            self.gone.notify_one();
        }
        Err(failed)
    }
}

fn reopen(place: &Place, machine: &Machine, ssh: &Arc<Ssh>, join: &str) -> Arc<Reopen> {
    let domain = domain(place, machine);
    Arc::new(Reopen { ssh: ssh.clone(), join: join.to_owned(), domain, gone: Arc::new(Notify::new()) })
}

/// Ends a channel as soon as its machine is known to be gone, instead of when the grace is over.
fn watch(channel: &Channel, gone: Arc<Notify>) -> Result<tokio::task::JoinHandle<()>> {
    let channel = channel.clone();
    Ok(driver::handle()?.spawn(async move {
        tokio::select! {
            () = gone.notified() => channel.close(),
            _ = channel.closed() => {}
        }
    }))
}

/// Puts the supervisor into a machine and starts it. `more` are variables beside the profile's.
///
/// # Errors
/// `Unsupported` where it cannot run there; `HostUnable`, `Lost`, `Timeout`.
pub async fn begin(
    place: &Place,
    machine: &Machine,
    spec: &EnvironmentSpec,
    capabilities: Capabilities,
    more: &[(String, String)],
    ssh: Arc<Ssh>,
) -> Result<Connected> {
    let (login, Landed { installed, line, .. }) = serve(&ssh, spec.user.as_deref()).await?;
    let join = login.as_root(&installed.join());
    let agent = installed.user.name.clone();
    let setup = setup(spec, more, installed.setup(&format!("{}{}", place.prefix(), machine.name)));
    let again = reopen(place, machine, &ssh, &join);
    let (channel, ready) = Channel::begin(line, again.clone(), &setup, install::GRACE, PATIENCE).await?;
    let capabilities = actual(capabilities, &ready, installed.root);
    let joining = Joining { machine: machine.clone(), join: Some(join), agent, capabilities };
    connected(channel, joining, &spec.limits, ssh, again.gone.clone())
}

/// Connects to the supervisor that was started before.
///
/// # Errors
/// `NotFound` if it does not answer, or has no supervisor.
pub async fn join(place: &Place, joining: Joining, limits: &Limits, ssh: Ssh) -> Result<Connected> {
    let Some(join) = joining.join.clone() else {
        return Err(Error::new(ErrorKind::NotFound, "join machine", "it has no supervisor, and ends with who started it"));
    };
    let ssh = Arc::new(ssh);
    let (reader, writer, child) = ssh.stream(&join).await?;
    let again = reopen(place, &joining.machine, &ssh, &join);
    let channel = Channel::resumable(Line::new(reader, writer).keeping(child), again.clone())?;
    channel.hello(install::GRACE)?;
    channel.ping(PATIENCE).await?;
    connected(channel, joining, limits, ssh, again.gone.clone())
}

fn connected(channel: Channel, joining: Joining, limits: &Limits, ssh: Arc<Ssh>, gone: Arc<Notify>) -> Result<Connected> {
    let below = Below::Watch(watch(&channel, gone)?);
    let config = GuestConfig {
        name: joining.machine.shown.clone(),
        backend: BACKEND,
        capabilities: joining.capabilities.clone(),
        limits: limits.clone(),
        agent: joining.agent.clone(),
    };
    Ok(Connected { way: Way::Channel(Arc::new(GuestSandbox::new(channel, config))), ssh, joining, below })
}

/// Asks who logs in, and then runs the script that is its first argument: as root where the machine lets its user become root.
const FIRST: &str = "me=$(id -un); echo \"login=$me\"; \
    if [ \"$me\" = root ]; then :; elif command -v sudo >/dev/null && sudo -n true </dev/null; then \
    echo sudo=1; exec sudo -n /bin/sh -c \"$1\" sh \"$me\"; fi; exec /bin/sh -c \"$1\"";

/// Puts the supervisor into a machine and starts it.
async fn serve(ssh: &Ssh, user: Option<&str>) -> Result<(Login, Landed)> {
    let options = install::Options { user: user.map(str::to_owned), ..install::Options::default() };
    let first = format!("{} sh '{}'", install::quoted(FIRST), install::script(&options)?);
    let (reader, writer, child) = ssh.stream(&first).await?;
    let landing = install::land(Line::new(reader, writer).keeping(child));
    let landed = tokio::time::timeout(PATIENCE, landing).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, "install supervisor", format!("the machine did not answer within {PATIENCE:?}")))
    });
    let landed = landed.map_err(|error| error.with_backend(BACKEND))?;
    Ok((Login::read(&landed.said)?, landed))
}

/// What the profile adds to what the machine says of itself.
fn setup(spec: &EnvironmentSpec, more: &[(String, String)], mut setup: Setup) -> Setup {
    let blob = |text: &str| Blob::from(text.as_bytes());
    for (name, value) in more.iter().map(|(name, value)| (name, value)).chain(&spec.env) {
        setup.set_variable(blob(name), blob(value));
    }
    if let Some(workdir) = &spec.workdir {
        setup.workdir = blob(workdir);
    }
    let limits = &spec.limits;
    let asked = [
        (RLIMIT_FSIZE, limits.file_size.map(|limit| limit.max)),
        (RLIMIT_NOFILE, limits.open_files.map(|limit| limit.max)),
        (RLIMIT_CORE, Some(limits.core_size)),
    ];
    // The machine ends when it is destroyed, and no sooner: another process may join, or a snapshot be put back.
    setup.persist = true;
    setup.rlimits = asked.into_iter().filter_map(|(resource, value)| Some(Rlimit { resource, value: value? })).collect();
    setup.lifetime_ms = limits.lifetime.map(|life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
    setup
}

/// What the machine really can do.
fn actual(declared: Capabilities, ready: &Ready, root: bool) -> Capabilities {
    Capabilities {
        kill_domain: ready.kill_domain,
        memory_outcome: ready.memory_outcome,
        users: if root && ready.users { UserSupport::Any } else { UserSupport::DefaultOnly },
        ..declared
    }
}

#[cfg(test)]
mod unit {
    use tierbox_core::ErrorKind;

    use super::{FIRST, Login, says_missing};

    #[test]
    fn a_login_shell_that_prints_is_refused_with_the_reason() {
        let read = |said: &str| Login::read(said).map(|login| (login.name, login.prefix));
        assert_eq!(read("login=vagrant\nsudo=1\n").unwrap(), ("vagrant".to_owned(), "sudo -n "));
        assert_eq!(read("login=root\nuid=0\n").unwrap(), ("root".to_owned(), ""));
        for (said, is_noise) in
            [("welcome\nlogin=vagrant\n", true), ("hilogin=vagrant\nsudo=1\n", true), ("login=\n", false), ("", false)]
        {
            let error = read(said).unwrap_err();
            assert_eq!((error.kind(), error.help().is_some()), (ErrorKind::Protocol, is_noise), "{said}: {error}");
        }
    }

    #[test]
    fn the_first_script_goes_through_any_login_shell() {
        assert!(FIRST.is_ascii() && !FIRST.contains(['\'', '\\', '!', '\n']), "{FIRST}");
    }

    #[test]
    fn only_a_libvirt_that_answers_says_that_a_machine_is_gone() {
        assert!(says_missing(
            "`virsh …` failed: error: failed to get domain 'x'\nerror: Domain not found: no domain with matching name 'x'"
        ));
        for silent in [
            "virsh is not installed",
            "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/var/run/libvirt/libvirt-sock'",
            "error: authentication unavailable: no polkit agent available to authenticate action 'org.libvirt.unix.manage'",
            "error: Cannot recv data: Connection reset by peer",
        ] {
            assert!(!says_missing(silent), "{silent}");
        }
    }
}
