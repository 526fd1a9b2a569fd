//! What can be seen and reached from where this runs: `tierbox-supervisor probe REQUEST…`, for verification.
//!
//! One line of output per answer: the request, a tab, `yes` or `no`, a tab, what was found with everything that is not
//! printable escaped. Answers come in the order of the requests. Every request is bounded in time.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::thread::{self, CapabilitySets};

/// How long an answer is waited for. What is refused is refused at once; silence is a refusal too.
const PATIENCE: Duration = Duration::from_millis(300);
/// Bytes of an answer that are read.
const MOST: usize = 4096;
/// Bytes of an answer that are reported.
const LONGEST: usize = 256 << 10;
/// Bytes of names of mounts that are listed: escaped, as they are reported, each may become four.
const MOUNTS: usize = LONGEST / 4 - 256;
/// Requests that are taken.
const REQUESTS: usize = 256;
/// What a read says that waited in vain (`EAGAIN`).
const SILENCE: &str = "errno 11";
/// What canaries answer to.
const QUESTION: &[u8] = b"tierbox-probe\n";

/// The same by a process that first takes what capabilities it may have into each of its sets: in a control, what a command is that
/// has them. What it could not take is not there to be found, and so the control finds nothing.
pub fn run_holding(requests: &[std::ffi::OsString]) -> u8 {
    let _ = hold();
    run(requests)
}

fn hold() -> rustix::io::Result<()> {
    let all = thread::capabilities(None)?.permitted;
    thread::set_capabilities(None, CapabilitySets { effective: all, permitted: all, inheritable: all })?;
    all.iter().try_for_each(|each| thread::configure_capability_in_ambient_set(each, true))
}

/// Answers the requests, and returns the exit status.
pub fn run(requests: &[std::ffi::OsString]) -> u8 {
    let requests: Vec<String> = requests.iter().take(REQUESTS).map(|word| word.to_string_lossy().into_owned()).collect();
    let asked = requests.clone();
    // All at once, so that the slowest decides how long it takes.
    let threads: Vec<_> = asked.into_iter().map(|request| std::thread::Builder::new().spawn(move || answer(&request))).collect();
    let mut lines = String::new();
    for (request, thread) in requests.iter().zip(threads) {
        let answer = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err("the probe failed".to_owned())),
            // A machine that may not have threads.
            Err(_) => answer(request),
        };
        let (word, found) = match &answer {
            Ok(found) => ("yes", found.as_bytes()),
            Err(why) => ("no", why.as_bytes()),
        };
        let found = &found[..found.len().min(LONGEST)];
        lines.push_str(&format!("{request}\t{word}\t{}\n", found.escape_ascii()));
    }
    match std::io::stdout().write_all(lines.as_bytes()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

type Answer = Result<String, String>;

fn said(error: std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("errno {number}"),
        None => error.kind().to_string(),
    }
}

fn answer(request: &str) -> Answer {
    let (what, about) = request.split_once(':').unwrap_or((request, ""));
    match what {
        "link" => std::fs::read_link(about).map(|path| path.to_string_lossy().into_owned()).map_err(said),
        "read" => read(about),
        "exists" => std::fs::symlink_metadata(about).map(|_| String::new()).map_err(said),
        "field" => field(about),
        "process" => process(about),
        "procfs" => procfs(about),
        "exec" => started(about),
        "shares" => shares(),
        "mounts" => mounts(about),
        "tcp" => tcp(about),
        "udp" => udp(about),
        "route" => route(about),
        "dns" => dns(about),
        "name" => known(about),
        "web" => web(about),
        "visit" => visit(about),
        "hello" => hello(about),
        "tunnel" => tunnel(about),
        "unix" => unix(UnixStream::connect(about).map_err(said)?),
        "abstract" => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(about).map_err(said)?;
            unix(UnixStream::connect_addr(&address).map_err(said)?)
        }
        _ => Err("this probe is not known".to_owned()),
    }
}

fn read(path: &str) -> Answer {
    let mut found = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(MOST as u64).read_to_end(&mut found)).map_err(said)?;
    Ok(String::from_utf8_lossy(&found).trim_end().to_owned())
}

/// Whether a program (this one once more) can be started, and comes to its end.
fn started(path: &str) -> Answer {
    // By pipes: where nothing may be written to, `/dev/null` cannot be opened either, which would be taken for a refusal.
    let mut other = std::process::Command::new(path);
    let ended = other.arg("probe").stdin(std::process::Stdio::inherit()).output().map_err(said)?.status;
    if ended.success() { Ok("it ran".to_owned()) } else { Err(ended.to_string()) }
}

/// A field of `/proc/self/status`.
fn field(name: &str) -> Answer {
    let status = std::fs::read_to_string("/proc/self/status").map_err(said)?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned()).ok_or_else(|| "there is no such field".to_owned())
}

/// Whether the process of this number and start time (`PID:TICKS`) can be seen.
fn process(about: &str) -> Answer {
    let (pid, ticks) = about.split_once(':').ok_or("PID:TICKS is expected")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(said)?;
    // The name is in parentheses, and may hold anything.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    if rest.split_whitespace().nth(19) == Some(ticks) { Ok(String::new()) } else { Err("it is another process".to_owned()) }
}

/// Whether a path below `/proc` is procfs itself, with nothing mounted on the way.
fn procfs(path: &str) -> Answer {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    let found = rustix::fs::statfs(path).map_err(|errno| format!("errno {}", errno.raw_os_error()))?;
    if found.f_type != PROC_SUPER_MAGIC {
        return Err("it is on another file system".to_owned());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(said)?;
    let covers = |line: &str| {
        let point = line.split_whitespace().nth(4)?;
        (point != "/proc" && Path::new(path).starts_with(point) && point != "/").then(|| point.to_owned())
    };
    match mounts.lines().find_map(covers) {
        Some(point) => Err(format!("{point} is a mount of its own")),
        None => Ok(String::new()),
    }
}

/// Mounts that only a host can be behind.
fn shares() -> Answer {
    const KINDS: [&str; 8] = ["9p", "virtiofs", "vboxsf", "nfs", "nfs4", "cifs", "fuse.sshfs", "fuse.vmhgfs-fuse"];
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(said)?;
    let shared = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split_whitespace().next()?;
        KINDS.contains(&kind).then(|| format!("{} ({kind})", left.split_whitespace().nth(4).unwrap_or_default()))
    };
    let found: Vec<String> = mounts.lines().filter_map(shared).collect();
    if found.is_empty() { Err("none".to_owned()) } else { Ok(found.join(", ")) }
}

/// What is mounted from another kernel's or this host's file systems: of a kind that no container makes for itself, or on one of the
/// devices (`MAJOR:MINOR,…`) that the host has mounted itself. The root is not among them: an engine has that mounted, too.
fn mounts(devices: &str) -> Answer {
    const OWN_KINDS: [&str; 9] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay", "ramfs"];
    // Every container sees the same of these.
    const OF_THE_KERNEL: [&str; 3] = ["sysfs", "cgroup", "cgroup2"];
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(said)?;
    let mut found = Vec::new();
    for line in table.lines() {
        let (left, right) = line.split_once(" - ").ok_or("the mount table cannot be read")?;
        let (fields, kind) = (left.split(' ').collect::<Vec<_>>(), right.split(' ').next().unwrap_or_default());
        let (Some(device), Some(point)) = (fields.get(2), fields.get(4)) else { return Err("a mount has no place".to_owned()) };
        let is_hosts = devices.split(',').any(|host| host == *device) && !OF_THE_KERNEL.contains(&kind);
        if *point != "/" && (is_hosts || !OWN_KINDS.contains(&kind)) {
            found.push(format!("{} ({kind})", unescaped(point)));
        }
    }
    let mut room = MOUNTS;
    let fit = found.iter().take_while(|mount| room.checked_sub(mount.len() + 2).inspect(|left| room = *left).is_some()).count();
    if fit < found.len() {
        // Never taken for one that is known.
        let more = format!("and {} more, too many to be looked at", found.len() - fit);
        found.truncate(fit);
        found.push(more);
    }
    if found.is_empty() { Err("none".to_owned()) } else { Ok(found.join(", ")) }
}

/// A path of the mount table, in which spaces and the like are three octal digits.
fn unescaped(point: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(point.to_owned(), |text, (octal, plain)| text.replace(octal, plain))
}

/// Numbers alone. Names would need the C library's resolver, which is a fifth of this program and cannot work in a static one.
fn address(about: &str) -> Result<SocketAddr, String> {
    about.parse().map_err(|_| "it is no address".to_owned())
}

/// What somebody says who was reached. That nothing comes is said so: he is there.
fn heard(mut stream: impl Read) -> Answer {
    let mut answer = [0; 128];
    Ok(match stream.read(&mut answer) {
        Ok(count) => String::from_utf8_lossy(&answer[..count]).trim_end().to_owned(),
        Err(error) => format!("silent: {}", said(error)),
    })
}

fn unix(stream: UnixStream) -> Answer {
    stream.set_read_timeout(Some(PATIENCE * 3)).map_err(said)?;
    heard(stream)
}

fn tcp(about: &str) -> Answer {
    let mut stream = TcpStream::connect_timeout(&address(about)?, PATIENCE).map_err(said)?;
    // Whoever was reached on a busy host may take a while.
    stream.set_read_timeout(Some(PATIENCE * 3)).map_err(said)?;
    let _ = stream.write_all(QUESTION);
    heard(stream)
}

fn connected(about: &str) -> Result<UdpSocket, String> {
    let to = address(about)?;
    let from = if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind::<SocketAddr>(from).map_err(said)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    socket.connect(to).map_err(said)?;
    Ok(socket)
}

fn udp(about: &str) -> Answer {
    let socket = connected(about)?;
    socket.send(QUESTION).map_err(said)?;
    let mut said_back = [0; 128];
    let count = socket.recv(&mut said_back).map_err(said)?;
    Ok(String::from_utf8_lossy(&said_back[..count]).trim_end().to_owned())
}

/// Whether there is a route to an address. Sends nothing.
fn route(about: &str) -> Answer {
    let socket = connected(about)?;
    socket.local_addr().map(|from| format!("from {}", from.ip())).map_err(said)
}

/// Whether a resolver (`ADDRESS:PORT/NAME`, or `/NAME` for the machine's own) answers a question for a name, and what.
fn dns(about: &str) -> Answer {
    let (server, name) = about.rsplit_once('/').ok_or("SERVER/NAME is expected")?;
    if !server.is_empty() {
        return ask(server, name);
    }
    let configured = std::fs::read_to_string("/etc/resolv.conf").map_err(said)?;
    let servers = configured.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim);
    let mut last = Err("there is no resolver".to_owned());
    for server in servers.take(3) {
        let server = if server.contains(':') { format!("[{server}]:53") } else { format!("{server}:53") };
        last = ask(&server, name);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Whether the machine's own resolver knows an address of a name. One that is silent is asked once more: on a busy host an answer may
/// come late, or be lost.
fn known(name: &str) -> Answer {
    let once = || dns(&format!("/{name}"));
    let said = match once() {
        Err(why) if why == SILENCE => once()?,
        other => other?,
    };
    let has_one = said.strip_prefix("code 0 answers ").is_some_and(|count| count != "0");
    if has_one { Ok(said) } else { Err(said) }
}

fn ask(server: &str, name: &str) -> Answer {
    let mut question = vec![0x7b, 0x0c, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length)).ok_or("this is no name")?;
        question.push(length);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = connected(server)?;
    socket.send(&question).map_err(said)?;
    let mut answer = [0; 512];
    let count = socket.recv(&mut answer).map_err(said)?;
    if count < 12 {
        return Err("it is no answer".to_owned());
    }
    Ok(format!("code {} answers {}", answer[3] & 15, u16::from_be_bytes([answer[6], answer[7]])))
}

/// The gateway of N1, as programs find it: by the variable, or as the machine's resolver. The second part is the proxy's port.
fn gateway() -> Result<(IpAddr, Option<u16>), String> {
    let named = std::env::var("http_proxy").unwrap_or_default();
    if let Some(proxy) = named.strip_prefix("http://").and_then(|rest| rest.trim_end_matches('/').parse::<SocketAddr>().ok()) {
        return Ok((proxy.ip(), Some(proxy.port())));
    }
    let configured = std::fs::read_to_string("/etc/resolv.conf").map_err(said)?;
    let mut servers = configured.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    servers.next().map(|server| (server, None)).ok_or_else(|| "there is no gateway".to_owned())
}

fn reach(to: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(said)?;
    // A gateway has somebody else to ask.
    stream.set_read_timeout(Some(PATIENCE * 3)).map_err(said)?;
    Ok(stream)
}

/// Asks for a page of `NAME:PORT` as programs do: by the proxy that is named, else of that address itself.
fn web(about: &str) -> Answer {
    let mut stream = match gateway() {
        Ok((address, Some(port))) => reach((address, port).into())?,
        _ => reach(address(about)?)?,
    };
    let text = format!("GET http://{about}/ HTTP/1.1\r\nHost: {about}\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).map_err(said)?;
    page(&mut stream)
}

/// Asks the gateway's port for pages of hosts (`PORT:HOST,HOST…`) over one connection, and tells what the last was.
fn visit(about: &str) -> Answer {
    let (port, hosts) = about.split_once(':').ok_or("PORT:HOST is expected")?;
    let port: u16 = port.parse().map_err(|_| "it is no port")?;
    let mut stream = reach((gateway()?.0, port).into())?;
    let (others, last) = hosts.rsplit_once(',').unwrap_or(("", hosts));
    let mut text: String =
        others.split(',').filter(|host| !host.is_empty()).map(|host| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).collect();
    text.push_str(&format!("GET / HTTP/1.1\r\nHost: {last}\r\nConnection: close\r\n\r\n"));
    stream.write_all(text.as_bytes()).map_err(said)?;
    page(&mut stream)
}

/// The last answer of HTTP in what comes. A refusal of the gateway's is a refusal; everything else is an answer, the
/// gateway's word that it tried and failed among them.
fn page(stream: &mut TcpStream) -> Answer {
    let mut found = Vec::new();
    // What came before a connection was cut counts.
    let read = stream.take(MOST as u64).read_to_end(&mut found);
    if found.is_empty() && read.is_err_and(|error| said(error) == SILENCE) {
        return Err("no answer in time".to_owned());
    }
    let text = String::from_utf8_lossy(&found);
    let last = text.rsplit("HTTP/1.1 ").next().filter(|_| text.contains("HTTP/1.1 ")).ok_or("no answer")?;
    let (head, body) = last.split_once("\r\n\r\n").unwrap_or((last, ""));
    let status = head.get(..3).unwrap_or_default();
    let told = format!("status {status}: {}", body.trim_end());
    if head.to_ascii_lowercase().contains("x-tierbox-egress") && status == "403" { Err(told) } else { Ok(told) }
}

/// Says a hello of TLS for a name at the gateway's port: `PORT:NAME`.
fn hello(about: &str) -> Answer {
    let (port, name) = about.split_once(':').ok_or("PORT:NAME is expected")?;
    let port: u16 = port.parse().map_err(|_| "it is no port")?;
    greet(reach((gateway()?.0, port).into())?, name)
}

/// Has the proxy connect to `NAME:PORT`, and says a hello of TLS for another name there: `NAME:PORT/NAME`.
fn tunnel(about: &str) -> Answer {
    let (target, name) = about.split_once('/').ok_or("NAME:PORT/NAME is expected")?;
    let (address, port) = gateway()?;
    let mut stream = reach((address, port.ok_or("there is no proxy")?).into())?;
    let text = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(text.as_bytes()).map_err(said)?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < MOST {
        match stream.read(&mut byte).map_err(said)? {
            0 => break,
            _ => head.push(byte[0]),
        }
    }
    let status = String::from_utf8_lossy(head.get(9..12).unwrap_or_default()).into_owned();
    match status.as_str() {
        "200" => greet(stream, name),
        "403" => Err("status 403".to_owned()),
        _ => Ok(format!("status {status}")),
    }
}

/// Says hello, and tells what is answered. An alert is a refusal.
fn greet(mut stream: TcpStream, name: &str) -> Answer {
    const ALERT: u8 = 21;
    stream.write_all(&client_hello(name)).map_err(said)?;
    let mut answer = [0; 128];
    match stream.read(&mut answer).map_err(said)? {
        0 => Err("closed".to_owned()),
        _ if answer[0] == ALERT => Err("an alert".to_owned()),
        count => Ok(String::from_utf8_lossy(&answer[..count]).trim_end().to_owned()),
    }
}

/// A hello of TLS 1.2 with a server name and nothing else that anybody looks at.
fn client_hello(name: &str) -> Vec<u8> {
    let short = |length: usize| (length as u16).to_be_bytes();
    let entry = [&[0][..], &short(name.len()), name.as_bytes()].concat();
    let list = [&short(entry.len())[..], &entry].concat();
    let extension = [&[0, 0][..], &short(list.len()), &list].concat();
    let body = [&[3, 3][..], &[42; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0], &short(extension.len()), &extension].concat();
    let message = [&[1, 0][..], &short(body.len()), &body].concat();
    [&[22, 3, 1][..], &short(message.len()), &message].concat()
}
