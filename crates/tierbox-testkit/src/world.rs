//! A small internet of a test's own: network namespaces with servers under invented names, so that nothing that is tested can
//! reach any real address.
//!
//! The test program runs itself again in fresh network and mount namespaces. There `/etc/hosts` and `/etc/resolv.conf` are the
//! world's, and a second namespace behind a pair of devices holds the servers. A sandbox that the test starts has the
//! world for its host. Where an engine's networks are this host's own, the test program stays in this host's network, and only the
//! names and the servers are the world's ([`run_beside`]).

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::plain;

/// The server's address.
pub const SERVER: &str = "203.0.113.10";

/// What a profile in this world allows.
pub const ALLOWED: &[&str] = &[
    "index.test",
    "*.files.test",
    "*.files.test:8080",
    "private.test",
    "metadata.test",
    "mapped.test",
    "own.test",
    "loopback.test",
    "tcp://git.test:22",
];

/// Allowed names that lead where nobody may go, though servers listen there.
pub const LEADS_ASTRAY: &[&str] = &["private.test", "metadata.test", "mapped.test", "own.test", "loopback.test"];

/// The cases of the escape corpus that are about the network: what a test of N1 runs.
pub const ATTACKS: &[&str] = &[
    "network::e43_default_deny",
    "network::e44_metadata",
    "network::e48_without_proxies",
    "network::e49_ports_of_the_host",
    "egress::e45_other_names",
    "egress::e45_what_hides_the_name",
    "egress::e45_second_names",
    "egress::e45_no_http",
    "egress::e46_addresses",
    "egress::e47_names_as_a_channel",
    "egress::e48_without_variables",
    "egress::e51_slow_names",
    "egress::e51_flood",
];

/// The rules of [`ALLOWED`] that ask for no port of their own: for a gateway at an address that others have ports of.
pub fn allowed_at_usual_ports() -> Vec<String> {
    ALLOWED.iter().filter(|rule| !rule.contains(':')).map(|rule| (*rule).to_owned()).collect()
}

/// Set where the test program runs again.
const MARK: &str = "TIERBOX_TESTKIT_WORLD";

/// The line of the world's `/etc/hosts` that names its directory.
const LINE: &str = "# the world of ";

const HOSTS: &str = "127.0.0.1 localhost loopback.test\n\
    203.0.113.1 own.test\n\
    203.0.113.10 index.test files.test x.files.test a.files.test other.test xindex.test index.test.other.test git.test\n\
    10.99.0.10 private.test\n\
    ::ffff:10.99.0.10 mapped.test\n\
    METADATA metadata.test\n";

/// Whose network the test program is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// The world's.
    Own,
    /// This host's.
    Hosts,
}

impl Network {
    /// What [`MARK`] is then.
    fn mark(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Hosts => "host",
        }
    }

    /// Where the metadata service of this world is. This host's own stays where it is: there may be one.
    fn metadata(self) -> &'static str {
        match self {
            Self::Own => "169.254.169.254",
            Self::Hosts => "169.254.77.254",
        }
    }

    /// The test program's end of the way to the servers.
    fn device(self) -> String {
        match self {
            Self::Own => "w0".to_owned(),
            Self::Hosts => format!("tbxw{}", std::process::id()),
        }
    }

    /// The ways to the addresses that lead astray, by a device that is up.
    fn routes(self) -> Vec<String> {
        let device = self.device();
        match self {
            Self::Own => {
                vec![format!("ip addr add 10.99.0.1/24 dev {device}"), format!("ip route add 169.254.0.0/16 dev {device}")]
            }
            // No more of this host's network is taken than is needed.
            Self::Hosts => {
                ["10.99.0.10", self.metadata()].map(|address| format!("ip route add {address}/32 dev {device}")).to_vec()
            }
        }
    }
}

/// Namespaces, devices and servers, for as long as this lives.
#[derive(Debug)]
pub struct World {
    _servers: Child,
    _directory: Option<TempDir>,
    _alone: Option<fs::File>,
}

/// Why there can be no world here, if so.
pub fn absent() -> Option<crate::Absence> {
    let missing = |reason: &str, install: &str| Some(crate::Absence { reason: reason.into(), install: install.into() });
    let there = |tool: &str| ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(tool).exists());
    if is_inside() {
        return None;
    }
    if !plain::is_root() {
        return missing("network namespaces with servers in them are made by root", "run the tests as root");
    }
    let lacking = ["unshare", "nsenter", "ip", "mount", "python3", "openssl"].into_iter().find(|tool| !there(tool))?;
    missing(&format!("{lacking} is not installed"), "apt-get install iproute2 util-linux python3 openssl")
}

/// Runs a test program in a world of its own, if there can be one; tests that need it look at [`absent`] themselves.
pub fn run(body: impl FnOnce() -> ExitCode) -> ExitCode {
    run_in(Network::Own, body)
}

/// The same in this host's network, for engines whose networks are this host's. One waits for the other: the servers have the same
/// addresses in each.
pub fn run_beside(body: impl FnOnce() -> ExitCode) -> ExitCode {
    run_in(Network::Hosts, body)
}

fn run_in(network: Network, body: impl FnOnce() -> ExitCode) -> ExitCode {
    let lists = std::env::args().any(|word| word == "--list");
    if lists || is_inside() || (std::env::var_os(MARK).is_none() && absent().is_some()) {
        return body();
    }
    if std::env::var_os(MARK).is_none() {
        let program = std::env::current_exe().unwrap_or_default();
        let mut again = Command::new("unshare");
        if network == Network::Own {
            again.arg("--net");
        }
        again.args(["--mount", "--"]).arg(program).args(std::env::args_os().skip(1)).env(MARK, network.mark());
        let status = again.status().ok().and_then(|status| status.code());
        return ExitCode::from(status.and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
    }
    match World::make(network) {
        Ok(_world) => body(),
        Err(error) => {
            let _ = io::Write::write_all(&mut io::stderr(), format!("the world could not be made: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Whether this process is in a world.
pub fn is_inside() -> bool {
    directory().is_some()
}

/// The world's directory: `www` is served under every name, `ca.pem` is who signed the server's certificate.
pub fn directory() -> Option<PathBuf> {
    let hosts = fs::read_to_string("/etc/hosts").ok()?;
    hosts.lines().find_map(|line| line.strip_prefix(LINE)).map(PathBuf::from)
}

/// Does work on a thread that is in the servers' network namespace, where it can listen on [`SERVER`]. Threads that it starts
/// stay there.
///
/// # Errors
/// If there is no world, or the thread cannot enter.
pub fn among_servers<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    use std::os::fd::AsFd;
    let directory = directory().ok_or(io::ErrorKind::NotFound)?;
    let pid = fs::read_to_string(directory.join("pid"))?;
    let namespace = fs::File::open(format!("/proc/{}/ns/net", pid.trim()))?;
    let work = || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))?;
        Ok(work())
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))))
}

/// Everything that the world's resolver was asked for, in lower case, as far as it is text.
///
/// # Errors
/// If there is no world.
pub fn heard() -> io::Result<String> {
    let directory = directory().ok_or(io::ErrorKind::NotFound)?;
    Ok(String::from_utf8_lossy(&fs::read(directory.join("heard"))?).to_lowercase())
}

impl World {
    /// Makes the world in the mount namespace that this process has to itself, and in this network.
    ///
    /// # Errors
    /// The first step that fails, with what its program said.
    fn make(network: Network) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let alone = (network == Network::Hosts).then(alone).transpose()?;
        let directory = tempfile::Builder::new().prefix("tierbox-world-").tempdir()?;
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(path.join("www"))?;
        fs::write(path.join("www/x"), "hello\n")?;
        fs::write(path.join("heard"), "")?;
        certify(path)?;
        fs::write(path.join("hosts"), format!("{LINE}{}\n{}", path.display(), HOSTS.replace("METADATA", network.metadata())))?;
        fs::write(path.join("resolv.conf"), "nameserver 203.0.113.53\noptions timeout:15 attempts:1\n")?;
        for name in ["hosts", "resolv.conf"] {
            let at = fs::canonicalize(Path::new("/etc").join(name))?;
            sh(&format!("mount --bind {} {}", path.join(name).display(), at.display()))?;
        }
        fs::write(path.join("world.py"), include_str!("world.py"))?;
        let mut servers = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo; read _; exec python3 \"$0/world.py\" \"$0\" \"$0/heard\" \"$1\""])
            .arg(path)
            .arg(network.metadata())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        fs::write(path.join("pid"), servers.id().to_string())?;
        connect(&mut servers, network)?;
        Ok(Self { _servers: servers, _directory: Some(directory), _alone: alone })
    }
}

/// Waits for whoever else has a world beside this host's network, and removes what one that was killed left of its own. It is this one's
/// turn for as long as the file lives.
fn alone() -> io::Result<fs::File> {
    let turn = fs::File::options().create(true).append(true).open("/tmp/tierbox-test-world")?;
    rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive)?;
    sh("for left in /sys/class/net/tbxw*; do [ ! -e $left ] || ip link del ${left##*/} 2>&1 || [ ! -e $left ]; done")?;
    Ok(turn)
}

/// Joins the servers' namespace to the network, and waits until the servers listen.
fn connect(servers: &mut Child, network: Network) -> io::Result<()> {
    use std::io::Write;
    let (pid, device) = (servers.id(), network.device());
    let mut said = BufReader::new(servers.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?).lines();
    said.next().ok_or(io::ErrorKind::BrokenPipe)??;
    let inside = |what: &str| format!("nsenter --target {pid} --net -- {what}");
    let mut steps = vec![
        "ip link set lo up".to_owned(),
        format!("ip link add {device} type veth peer name s0 netns {pid}"),
        format!("ip addr add 203.0.113.1/24 dev {device}"),
        format!("ip link set {device} up"),
        inside("ip link set lo up"),
        inside("ip link set s0 up"),
        inside(&format!("ip addr add {}/16 dev s0", network.metadata())),
    ];
    steps.extend(
        ["203.0.113.10", "203.0.113.53", "10.99.0.10"].map(|address| inside(&format!("ip addr add {address}/24 dev s0"))),
    );
    steps.extend(network.routes());
    for step in &steps {
        sh(step)?;
    }
    let stdin = servers.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    stdin.write_all(b"\n")?;
    match said.next() {
        Some(Ok(line)) if line == "ready" => are_reached(network),
        other => Err(io::Error::other(format!("the servers did not start: {other:?}"))),
    }
}

/// Fails if a server cannot be reached: its refusal by a gateway would prove nothing.
fn are_reached(network: Network) -> io::Result<()> {
    for address in [SERVER, "10.99.0.10", network.metadata()] {
        let target = SocketAddr::new(address.parse().map_err(io::Error::other)?, 80);
        let failed = |error| io::Error::other(format!("the server at {target} is not reached: {error}"));
        TcpStream::connect_timeout(&target, Duration::from_secs(10)).map_err(failed)?;
    }
    Ok(())
}

/// An authority, and a certificate of its own for every name.
fn certify(path: &Path) -> io::Result<()> {
    let names = "DNS:index.test,DNS:*.files.test,DNS:other.test,DNS:git.test";
    let dir = path.display();
    sh(&format!(
        "cd {dir} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 \
         -subj /CN=world -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>&1 && \
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=index.test 2>&1 && \
         printf 'subjectAltName={names}\\nbasicConstraints=CA:FALSE\\nextendedKeyUsage=serverAuth\\n' > server.ext && \
         openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.crt 2>&1 && \
         cat server.crt server.key > server.pem"
    ))
}

fn sh(script: &str) -> io::Result<()> {
    let output = Command::new("sh").args(["-c", script]).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{script}: {said}")))
}
