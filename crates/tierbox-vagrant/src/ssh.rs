//! One OpenSSH connection per machine, kept while it is used: keys and host keys in files of the environment's own, nothing
//! of the user's configuration.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, Result};
use tierbox_guest::driver;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use crate::BACKEND;
use crate::place::{Place, make_directory, write_private};

/// How long a machine that booted may take to let somebody in.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a connection of another process's may take to say that it lives.
const ANSWER: Duration = Duration::from_secs(2);

/// The most that is read of what a script says.
const MAX_OUTPUT: u64 = 16 << 20;

/// How a machine is reached, as Vagrant tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Its address.
    pub host: String,
    /// The port of its sshd.
    pub port: u16,
    /// Who logs in.
    pub username: String,
    /// Private keys, on this host.
    pub keys: Vec<PathBuf>,
    /// A command to reach it through.
    #[serde(default)]
    pub proxy_command: Option<String>,
}

impl Reach {
    /// What the start wrote down for a machine; `None` if it did not come up.
    ///
    /// # Errors
    /// `Internal` if it cannot be read.
    pub fn told(place: &Place, machine: &str) -> Result<Option<Self>> {
        let path = place.file("ssh").join(format!("{machine}.json"));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read address", error).with_backend(BACKEND)),
        };
        let reach: Self = serde_json::from_str(&text).map_err(|error| {
            Error::new(ErrorKind::Internal, "read address", format!("{machine}: {error}")).with_backend(BACKEND)
        })?;
        reach.checked(machine).map(Some)
    }

    /// Reads what `vagrant ssh-config` prints for one machine.
    pub fn from_config(text: &str) -> Option<Self> {
        let mut reach = Self { host: String::new(), port: 22, username: String::new(), keys: Vec::new(), proxy_command: None };
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once(' ') else { continue };
            let value = value.trim().trim_matches('"');
            match key {
                "HostName" => value.clone_into(&mut reach.host),
                "Port" => reach.port = value.parse().ok()?,
                "User" => value.clone_into(&mut reach.username),
                "IdentityFile" => reach.keys.push(PathBuf::from(value)),
                "ProxyCommand" => reach.proxy_command = Some(value.to_owned()),
                _ => {}
            }
        }
        (!reach.host.is_empty() && !reach.username.is_empty()).then_some(reach)
    }

    /// Nothing in it can add a line to a configuration.
    fn checked(self, machine: &str) -> Result<Self> {
        let plain = |text: &str| !text.is_empty() && !text.contains(|letter: char| letter.is_control() || letter == '"');
        let keys = self.keys.iter().all(|key| key.to_str().is_some_and(plain));
        let host = plain(&self.host) && !self.host.starts_with('-') && !self.host.contains(' ');
        if host && plain(&self.username) && keys && self.proxy_command.as_deref().is_none_or(plain) {
            return Ok(self);
        }
        Err(Error::new(ErrorKind::Protocol, "read address", format!("the address of {machine} is malformed"))
            .with_backend(BACKEND))
    }
}

/// Writes the configuration through which all machines of an environment are reached, and copies their keys.
///
/// # Errors
/// What the file system says.
pub fn configure(place: &Place, machines: &[(String, Reach)]) -> Result<()> {
    let keys = place.file("keys");
    make_directory(&keys)?;
    let mut text = String::new();
    for (name, reach) in machines {
        text.push_str(&format!(
            "Host {name}\n  HostName {}\n  Port {}\n  User \"{}\"\n  HostKeyAlias {name}\n",
            reach.host, reach.port, reach.username
        ));
        for (number, key) in reach.keys.iter().enumerate() {
            let copy = keys.join(format!("{name}-{number}"));
            let bytes = std::fs::read(key).map_err(|error| Error::io("read key", error).with_context("path", key.display()))?;
            write_private(&copy, &bytes)?;
            text.push_str(&format!("  IdentityFile \"{}\"\n", as_value(&copy)?));
        }
        if let Some(command) = &reach.proxy_command {
            text.push_str(&format!("  ProxyCommand {command}\n"));
        }
    }
    text.push_str(&format!(
        "Host *\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile \"{}\"\n  GlobalKnownHostsFile none\n  \
         StrictHostKeyChecking yes\n  UpdateHostKeys no\n  PasswordAuthentication no\n  KbdInteractiveAuthentication no\n  \
         ForwardAgent no\n  ForwardX11 no\n  ConnectTimeout 10\n  ServerAliveInterval 5\n  ServerAliveCountMax 3\n  LogLevel ERROR\n",
        as_value(&place.file("known_hosts"))?
    ));
    write_private(&place.file("ssh_config"), text.as_bytes())
}

/// What a script came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Its status; `None` if the line went away.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained.
    pub stderr: Vec<u8>,
}

/// The line to one machine.
pub struct Ssh {
    directory: PathBuf,
    machine: String,
    master: Mutex<Option<Master>>,
    lent: Lent,
}

/// A connection of another process's own, which this one may use until it drops: a login costs a second and more.
#[derive(Default)]
struct Lent {
    /// Whether to look for one.
    wanted: AtomicBool,
    socket: std::sync::Mutex<Option<String>>,
}

/// The connection that sessions share. It ends with its standard input, so also with this process.
struct Master {
    child: Child,
    _stdin: ChildStdin,
}

impl Ssh {
    /// The line to a machine of a configured environment. Nothing is connected yet.
    pub fn new(place: &Place, machine: &str) -> Self {
        let (directory, machine) = (place.directory.clone(), machine.to_owned());
        Self { directory, machine, master: Mutex::new(None), lent: Lent::default() }
    }

    /// The same for a machine that another process may have a connection to, which serves this one as well.
    pub fn borrowing(place: &Place, machine: &str) -> Self {
        let ssh = Self::new(place, machine);
        ssh.lent.wanted.store(true, Ordering::Release);
        ssh
    }

    /// The arguments after `ssh`, for a person.
    pub fn arguments_for_people(directory: &Path, machine: &str) -> Vec<String> {
        let config = directory.join("ssh_config").display().to_string();
        ["ssh", "-F", &config, machine].map(str::to_owned).to_vec()
    }

    /// Paths are relative to the environment's directory: a control socket's may have 100 bytes at most.
    fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        command.current_dir(&self.directory).args(["-F", "ssh_config", "-T", "-o", "BatchMode=yes"]);
        command.arg("-S").arg(self.socket()).process_group(0).kill_on_drop(true).stdin(Stdio::piped());
        command
    }

    /// One for each process that uses the environment, unless it uses another's.
    fn socket(&self) -> String {
        self.lent_socket().clone().unwrap_or_else(|| self.own_socket())
    }

    fn own_socket(&self) -> String {
        format!("line-{}-{}", std::process::id(), short(&self.machine))
    }

    fn lent_socket(&self) -> MutexGuard<'_, Option<String>> {
        self.lent.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for a connection of another process's that lives.
    async fn borrow(&self) -> Option<String> {
        let names = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        for name in names.filter(|name| is_line_to(name, &self.machine) && *name != self.own_socket()) {
            let mut check = Command::new("ssh");
            check.current_dir(&self.directory).args(["-F", "ssh_config", "-S", &name, "-O", "check", &self.machine]);
            check.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            let answered = tokio::time::timeout(ANSWER, check.status()).await;
            if matches!(answered, Ok(Ok(status)) if status.success()) {
                return Some(name);
            }
        }
        None
    }

    /// Connects, unless it is connected.
    ///
    /// # Errors
    /// `Lost` with what ssh said; `Timeout`.
    pub async fn connect(&self) -> Result<()> {
        let mut master = self.master.lock().await;
        if let Some(alive) = master.as_mut()
            && matches!(alive.child.try_wait(), Ok(None))
        {
            return Ok(());
        }
        *master = None;
        if self.lent_socket().is_some() {
            return Ok(());
        }
        if self.lent.wanted.swap(false, Ordering::AcqRel)
            && let Some(socket) = self.borrow().await
        {
            // If it goes away, `ssh` connects by itself, and whoever held a session on it closes this and comes again.
            *self.lent_socket() = Some(socket);
            return Ok(());
        }
        let _ = std::fs::remove_file(self.directory.join(self.own_socket()));
        *master = Some(tokio::time::timeout(PATIENCE, self.open()).await.map_err(|_| {
            Error::new(ErrorKind::Timeout, "connect", format!("{} let nobody in within {PATIENCE:?}", self.machine))
                .with_backend(BACKEND)
        })??);
        Ok(())
    }

    async fn open(&self) -> Result<Master> {
        // The first connection, made before anything untrusted runs there, tells the machine's key; after that it must match.
        let known = std::fs::metadata(self.directory.join("known_hosts")).is_ok()
            && std::fs::read_to_string(self.directory.join("known_hosts"))
                .is_ok_and(|text| text.lines().any(|line| line.split(' ').next() == Some(&self.machine)));
        let checking = if known { "StrictHostKeyChecking=yes" } else { "StrictHostKeyChecking=accept-new" };
        let mut child = {
            let _inside = driver::handle()?.enter();
            self.command()
                .args(["-o", checking, "-o", "ControlMaster=yes", "-o", "ControlPersist=no", &self.machine])
                .arg("echo; exec cat >/dev/null")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(no_ssh)?
        };
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut first = [0];
        let heard = match stdout {
            Some(mut stdout) => stdout.read(&mut first).await.unwrap_or(0),
            None => 0,
        };
        match stdin {
            Some(stdin) if heard == 1 => Ok(Master { child, _stdin: stdin }),
            _ => {
                let mut said = Vec::new();
                if let Some(stderr) = stderr {
                    let _ = stderr.take(4096).read_to_end(&mut said).await;
                }
                Err(self.refused(&String::from_utf8_lossy(&said)))
            }
        }
    }

    fn refused(&self, said: &str) -> Error {
        let line = said.lines().map(crate::record::shown).rfind(|line| !line.is_empty()).unwrap_or_default();
        let error = Error::new(ErrorKind::Lost, "connect", format!("ssh could not log in to {}: {line}", self.machine));
        let error = error.with_backend(BACKEND).with_context("machine", &self.machine);
        if said.contains("verification failed") || said.contains("IDENTIFICATION HAS CHANGED") {
            return error
                .with_help("the machine shows another host key than at its start: somebody else may answer at its address");
        }
        error.retryable()
    }

    /// Runs a script of POSIX sh that is read from standard input's place: `script` is an argument of the remote shell.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Timeout` after `limit`.
    pub async fn run(&self, script: &str, stdin: &[u8], limit: Duration) -> Result<Done> {
        self.connect().await?;
        let work = async {
            let mut child = {
                let _inside = driver::handle()?.enter();
                let mut command = self.command();
                command.args(["-o", "ControlMaster=no", &self.machine, script]).stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().map_err(no_ssh)?
            };
            let (input, output, complaints) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let write = async {
                if let Some(mut input) = input {
                    // A script need not read what it is given.
                    let _ = input.write_all(stdin).await;
                    let _ = input.shutdown().await;
                }
            };
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let read = async {
                if let Some(output) = output {
                    let _ = output.take(MAX_OUTPUT).read_to_end(&mut stdout).await;
                }
            };
            let complain = async {
                if let Some(complaints) = complaints {
                    let _ = complaints.take(MAX_OUTPUT).read_to_end(&mut stderr).await;
                }
            };
            tokio::join!(write, read, complain);
            let status = child.wait().await.map_err(|error| Error::io("wait for ssh", error))?;
            // ssh itself ends with 255 when the line breaks; no script of ours does.
            let status = status.code().filter(|code| *code != 255);
            Ok(Done { status, stdout, stderr })
        };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "run script", format!("{} did not answer within {limit:?}", self.machine))
                .with_backend(BACKEND))
        })
    }

    /// Opens a session to a program and returns its streams. The session ends when the child is dropped.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn stream(&self, command_line: &str) -> Result<(ChildStdout, ChildStdin, Child)> {
        self.session(command_line, false).await
    }

    /// The same, with the program's complaints as the child's standard error where they are `wanted`.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn session(&self, command_line: &str, wanted: bool) -> Result<(ChildStdout, ChildStdin, Child)> {
        self.connect().await?;
        let _inside = driver::handle()?.enter();
        let mut child = self
            .command()
            .args(["-o", "ControlMaster=no", &self.machine, command_line])
            .stdout(Stdio::piped())
            .stderr(if wanted { Stdio::piped() } else { Stdio::null() })
            .spawn()
            .map_err(no_ssh)?;
        match (child.stdout.take(), child.stdin.take()) {
            (Some(stdout), Some(stdin)) => Ok((stdout, stdin, child)),
            _ => Err(no_streams()),
        }
    }

    /// Ends the connection and all sessions on it.
    pub async fn close(&self) {
        if let Some(mut master) = self.master.lock().await.take() {
            let _ = master.child.start_kill();
            let _ = master.child.wait().await;
        }
        *self.lent_socket() = None;
        let _ = std::fs::remove_file(self.directory.join(self.own_socket()));
    }
}

/// Whether a socket's name is that of a connection to a machine: `line-PID-MACHINE`, and no other machine's whose name ends alike.
fn is_line_to(socket: &str, machine: &str) -> bool {
    let Some((pid, to)) = socket.strip_prefix("line-").and_then(|rest| rest.split_once('-')) else { return false };
    !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) && to == short(machine)
}

/// A machine's name in that of a socket. With it, a socket's path has to stay far below the 108 bytes that one may have: ssh makes
/// it under a longer name first.
fn short(machine: &str) -> String {
    if machine.len() <= 48 {
        return machine.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    machine.hash(&mut hasher);
    format!("{}~{:016x}", machine.chars().take(31).collect::<String>(), hasher.finish())
}

/// A path as a value of ssh's configuration, where `%` begins a token.
fn as_value(path: &Path) -> Result<String> {
    let text =
        path.to_str().filter(|text| !text.contains(['"', '\\']) && !text.contains("${") && !text.chars().any(char::is_control));
    let text = text.ok_or_else(|| {
        Error::new(ErrorKind::HostUnable, "configure ssh", "the state directory has a path that ssh cannot be told")
            .with_backend(BACKEND)
            .with_context("path", path.display())
            .with_help("choose a state directory (TIERBOX_STATE_DIR) of plain letters")
    })?;
    Ok(text.replace('%', "%%"))
}

/// The streams of an `ssh` that was started are missing.
pub fn no_streams() -> Error {
    Error::new(ErrorKind::Internal, "open session", "the streams of ssh are missing").with_backend(BACKEND)
}

fn no_ssh(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        return Error::new(ErrorKind::MissingEngine, "connect", "ssh is not installed")
            .with_backend(BACKEND)
            .with_help("install OpenSSH's client (openssh-client)");
    }
    Error::io("start ssh", error).with_backend(BACKEND)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn reach(host: &str) -> Reach {
        Reach { host: host.into(), port: 22, username: "vagrant".into(), keys: Vec::new(), proxy_command: None }
    }

    #[test]
    fn an_address_cannot_add_to_the_configuration() {
        reach("10.0.0.1").checked("m").unwrap();
        for bad in ["10.0.0.1\n  ProxyCommand id", "-oProxyCommand=id", "a b", ""] {
            assert!(reach(bad).checked("m").is_err(), "{bad}");
        }
        assert!(Reach { username: "x\"\nHost *".into(), ..reach("h") }.checked("m").is_err());
        assert!(Reach { proxy_command: Some("a\nb".into()), ..reach("h") }.checked("m").is_err());
    }

    #[test]
    fn what_ssh_config_prints_is_read() {
        let text =
            "Host attacker\n  HostName 10.1.2.3\n  User vagrant\n  Port 2222\n  IdentityFile \"/a b/key\"\n  LogLevel FATAL\n";
        let read = Reach::from_config(text).unwrap();
        assert_eq!((read.host.as_str(), read.port, read.username.as_str()), ("10.1.2.3", 2222, "vagrant"));
        assert_eq!(read.keys, [PathBuf::from("/a b/key")]);
        assert!(Reach::from_config("Host x\n").is_none());
    }

    #[test]
    fn a_connection_is_borrowed_of_the_same_machine_alone() {
        assert!(is_line_to("line-123-web", "web") && is_line_to("line-123-my-web", "my-web"));
        for other in ["line-123-my-web", "line-123-web.xyz", "line-web", "line--web", "line-12x-web", "xline-123-web"] {
            assert!(!is_line_to(other, "web"), "{other}");
        }
    }

    #[test]
    fn sockets_of_machines_with_long_names_are_short_and_differ() {
        let (one, other) = ("m".repeat(99) + "1", "m".repeat(99) + "2");
        let socket = format!("line-4194304-{}", short(&one));
        assert!(socket.len() + 17 < 100, "{socket}");
        assert!(is_line_to(&socket, &one) && !is_line_to(&socket, &other));
    }

    #[test]
    fn a_state_directory_of_any_name_is_told_to_ssh_as_it_is_or_refused() {
        assert_eq!(as_value(Path::new("/s/100%h/k")).unwrap(), "/s/100%%h/k");
        for bad in ["/s/\"x", "/s/${HOME}", "/s/a\nb", "/s/a\\b"] {
            assert!(as_value(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_configuration_is_strict_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, "secret").unwrap();
        let place = Place {
            token: "0a1b2c3d".into(),
            directory: dir.path().join("p"),
            vagrantfile: "/x".into(),
            provider: "libvirt".into(),
            isolated: None,
        };
        make_directory(&place.directory).unwrap();
        configure(&place, &[("web".to_owned(), Reach { keys: vec![key], ..reach("10.0.0.1") })]).unwrap();
        let text = std::fs::read_to_string(place.file("ssh_config")).unwrap();
        assert!(text.contains("StrictHostKeyChecking yes") && text.contains("HostKeyAlias web"), "{text}");
        let copy = place.file("keys").join("web-0");
        assert_eq!(std::fs::metadata(copy).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
