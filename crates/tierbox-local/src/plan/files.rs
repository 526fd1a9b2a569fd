//! The files of `/etc` that a container gets. The host's `/etc` is never bound whole: what names users, hosts and
//! resolvers is made, and what programs of `/usr` need is bound singly.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tierbox_core::Result;
use tierbox_supervisor::setup::{Agent, Bind, MadeFile};
use tierbox_supervisor::wire::Blob;

use crate::plan::bytes;
use crate::settings::invalid;

/// What programs of the host's `/usr` read in `/etc`, bound singly. Nothing here names people, keys or peers.
const BOUND: &[&str] = &[
    "/etc/alternatives",
    "/etc/fonts",
    "/etc/java-11-openjdk",
    "/etc/java-17-openjdk",
    "/etc/java-21-openjdk",
    "/etc/java-25-openjdk",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf.d",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
];

/// The same for small files that hardly ever change: a copy costs a start less than a mount does.
const COPIED: &[&str] = &[
    "/etc/debian_version",
    "/etc/ld.so.conf",
    "/etc/localtime",
    "/etc/os-release",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/openssl.cnf",
];

/// The largest file that is copied.
const LARGEST_COPY: u64 = 32 << 10;

/// The longest `/etc/passwd` or `/etc/group` of a root directory that is read.
const LONGEST_DATABASE: u64 = 1 << 20;

/// The default user's name.
pub const AGENT: &str = "agent";

/// The default user's id inside.
pub const AGENT_ID: u32 = 1000;

/// What a container gets of the host's `/etc`, found once per process.
pub fn shared() -> &'static (Vec<Bind>, Vec<MadeFile>) {
    static FOUND: OnceLock<(Vec<Bind>, Vec<MadeFile>)> = OnceLock::new();
    FOUND.get_or_init(|| {
        // By their real path: `/etc/localtime` and others are links.
        let real = |path: &&'static str| Some((Path::new(*path), Path::new(*path).canonicalize().ok()?));
        let bind =
            |(path, host): (&Path, PathBuf)| Bind { host: bytes(&host), guest: bytes(path), writable: false, optional: true };
        let copy = |(path, host): (&Path, PathBuf)| {
            let mut contents = Vec::with_capacity(LARGEST_COPY as usize + 1);
            File::open(host).ok()?.take(LARGEST_COPY + 1).read_to_end(&mut contents).ok()?;
            let whole = contents.len() as u64 <= LARGEST_COPY;
            contents.shrink_to_fit();
            whole.then(|| MadeFile { path: bytes(path), mode: 0o644, contents: Blob(contents) })
        };
        (BOUND.iter().filter_map(real).map(bind).collect(), COPIED.iter().filter_map(real).filter_map(copy).collect())
    })
}

/// The user databases of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    /// The default user.
    pub agent: Agent,
    /// Its login shell.
    pub shell: String,
    /// Contents of `/etc/passwd`.
    pub passwd: String,
    /// Contents of `/etc/group`.
    pub group: String,
}

/// Makes the user databases. `root` is the directory that becomes the container's root, if one is named; its users are
/// kept. `user` is the profile's.
///
/// # Errors
/// `InvalidProfile` for a name that is none.
pub fn users(user: Option<&str>, root: Option<&Path>) -> Result<Users> {
    let read = |name: &str| root.and_then(|root| read_database(root, name));
    let mut passwd = read("etc/passwd").unwrap_or_else(|| PASSWD.to_owned());
    let mut group = read("etc/group").unwrap_or_else(|| GROUP.to_owned());
    let wanted = user.unwrap_or(AGENT);
    let (agent, shell) = match find_user(&passwd, wanted) {
        Some(found) => found,
        None => {
            let added = new_user(wanted, &passwd)?;
            append(&mut passwd, &format!("{0}:x:{1}:{2}::{3}:/bin/sh", added.name, added.uid, added.gid, lossy(&added.home)));
            if !group.lines().any(|line| line.split(':').nth(2) == Some(&added.gid.to_string())) {
                append(&mut group, &format!("{}:x:{}:", added.name, added.gid));
            }
            (added, "/bin/sh".to_owned())
        }
    };
    Ok(Users { agent, shell, passwd, group })
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
    sys:x:3:3:sys:/dev:/usr/sbin/nologin\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";

const GROUP: &str =
    "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\n";

fn append(text: &mut String, line: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
}

fn lossy(blob: &Blob) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&blob.0)
}

/// A user by name or number.
fn find_user(passwd: &str, wanted: &str) -> Option<(Agent, String)> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        if name != wanted && uid != wanted {
            return None;
        }
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let home = if home.starts_with('/') { home } else { "/" };
        let shell = if shell.is_empty() { "/bin/sh" } else { shell };
        Some((Agent { name: name.to_owned(), uid, gid, home: Blob::from(home.as_bytes()) }, shell.to_owned()))
    })
}

fn new_user(wanted: &str, passwd: &str) -> Result<Agent> {
    let taken = |id: u32| passwd.lines().any(|line| line.split(':').nth(2) == Some(&id.to_string()));
    let (name, id) = match wanted.parse::<u32>() {
        // Another way to write a number would be another user of the same number: `00` is root.
        Ok(id) if id < u32::MAX && wanted == id.to_string() => (format!("user{id}"), id),
        _ if is_name(wanted) => (wanted.to_owned(), (AGENT_ID..).find(|id| !taken(*id)).unwrap_or(AGENT_ID)),
        _ => {
            return Err(invalid(format!(
                "user = {:?} is neither a user's name nor a number",
                wanted.chars().take(40).collect::<String>()
            ))
            .with_help("use lower-case letters, digits, `-` and `_`, at most 32, beginning with a letter or `_`"));
        }
    };
    let home = format!("/home/{name}");
    Ok(Agent { name, uid: id, gid: id, home: Blob::from(home.as_bytes()) })
}

fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    first && name.len() <= 32 && name.bytes().all(legal)
}

/// Reads a database below a root directory that may be hostile: no links, a bound, text only.
fn read_database(root: &Path, name: &str) -> Option<String> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    let dir = std::fs::OpenOptions::new().read(true).custom_flags(OFlags::DIRECTORY.bits() as i32).open(root).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat2(&dir, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS).ok()?;
    let mut text = String::new();
    File::from(file).take(LONGEST_DATABASE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The files that are made in `/etc`.
pub fn made(users: &Users, id: &str, nameserver: Option<&str>) -> Vec<MadeFile> {
    let resolv = nameserver.map(|address| format!("nameserver {address}\n")).unwrap_or_default();
    let hosts = format!("127.0.0.1\tlocalhost {id}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    [
        ("/etc/passwd", users.passwd.clone()),
        ("/etc/group", users.group.clone()),
        ("/etc/hosts", hosts),
        ("/etc/hostname", format!("{id}\n")),
        ("/etc/resolv.conf", resolv),
        ("/etc/nsswitch.conf", NSSWITCH.to_owned()),
        ("/etc/shells", "/bin/sh\n/bin/bash\n".to_owned()),
    ]
    .into_iter()
    .map(|(path, contents)| MadeFile {
        path: Blob::from(path.as_bytes()),
        mode: 0o644,
        contents: Blob::from(contents.into_bytes()),
    })
    .collect()
}

const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n";

/// The name and home of a user of this host.
pub fn host_user(uid: u32) -> Option<(String, PathBuf)> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let (agent, _) = find_user(&passwd, &uid.to_string())?;
    Some((agent.name, PathBuf::from(String::from_utf8_lossy(&agent.home.0).into_owned())))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_default_user_is_the_agent() {
        let users = users(None, None).unwrap();
        assert_eq!(
            (users.agent.name.as_str(), users.agent.uid, users.agent.home.0.as_slice()),
            ("agent", 1000, b"/home/agent".as_slice())
        );
        assert!(users.passwd.lines().any(|line| line == "agent:x:1000:1000::/home/agent:/bin/sh"), "{}", users.passwd);
        assert!(users.group.lines().any(|line| line == "agent:x:1000:"));
    }

    #[test]
    fn users_by_name_and_number() {
        assert_eq!(users(Some("root"), None).unwrap().agent.uid, 0);
        let numbered = users(Some("4321"), None).unwrap().agent;
        assert_eq!((numbered.name.as_str(), numbered.uid), ("user4321", 4321));
        for bad in ["", "a:b", "x\ny", "Ann", "../x", "-x", "00", "+0", "01000", &"a".repeat(33)] {
            assert!(users(Some(bad), None).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_root_directorys_users_are_kept() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/bin/ash\napp:x:1000:1000::/app:/bin/ash").unwrap();
        let app = users(Some("app"), Some(root.path())).unwrap();
        assert_eq!((app.agent.uid, app.shell.as_str()), (1000, "/bin/ash"));
        let agent = users(None, Some(root.path())).unwrap();
        assert_eq!(agent.agent.uid, 1001, "1000 is taken");
        assert!(agent.passwd.contains("\napp:x:1000") && agent.passwd.contains("\nagent:x:1001"));
    }

    #[test]
    fn a_root_directorys_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        assert_eq!(read_database(root.path(), "etc/passwd"), None);
    }

    #[test]
    fn nothing_resolves_without_a_network() {
        let files = made(&users(None, None).unwrap(), "abc", None);
        let resolv = files.iter().find(|file| file.path.0 == b"/etc/resolv.conf").unwrap();
        assert!(resolv.contents.0.is_empty());
    }
}
