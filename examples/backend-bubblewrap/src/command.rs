//! What bubblewrap is told.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The user inside: the caller's own, under another number and name.
pub const AGENT: &str = "agent";
/// Its user and group id inside.
pub const AGENT_ID: u32 = 1000;
/// Its home.
pub const HOME: &str = "/home/agent";
/// Where commands start, unless the profile says otherwise.
pub const WORKDIR: &str = "/workspace";

/// The files of one machine on the host, in the directory of its lease.
#[derive(Debug, Clone)]
pub struct Files {
    /// The supervisor's executable.
    pub supervisor: PathBuf,
    /// Calls that are refused.
    pub refuse: PathBuf,
    /// Calls that are said not to exist.
    pub absent: PathBuf,
    /// Users inside.
    pub passwd: PathBuf,
    /// Where bubblewrap writes down the machine's first process.
    pub info: PathBuf,
}

impl Files {
    /// Their places in a lease's directory.
    pub fn new(directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        Self {
            supervisor: at("supervisor"),
            refuse: at("refuse.bpf"),
            absent: at("absent.bpf"),
            passwd: at("passwd"),
            info: at("info.json"),
        }
    }
}

/// Descriptors reach bubblewrap by redirections of a shell, so that no descriptor of the harness is ever inheritable.
/// Every path is an argument, never text of the script.
const SCRIPT: &str = r#"exec 3<"$1" 4<"$2" 5<"$3" 6<"$4" 7>"$5"; shift 5; exec "$@""#;

/// The argv that starts a machine with the supervisor's channel on its stdin and stdout.
pub fn argv(bwrap: &Path, files: &Files) -> Vec<OsString> {
    let mut argv: Vec<OsString> = ["/bin/sh", "-c", SCRIPT, "bubblewrap"].map(OsString::from).into();
    argv.extend([&files.supervisor, &files.passwd, &files.refuse, &files.absent, &files.info].map(OsString::from));
    argv.push(bwrap.into());
    let id = AGENT_ID.to_string();
    let mut say = |words: &[&str]| argv.extend(words.iter().map(OsString::from));
    say(&["--unshare-all", "--new-session", "--clearenv", "--uid", &id, "--gid", &id, "--hostname", "bubblewrap"]);
    say(&["--ro-bind", "/usr", "/usr"]);
    for link in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let at = format!("/{link}");
        match std::fs::read_link(&at) {
            Ok(target) => say(&["--symlink", &target.to_string_lossy(), &at]),
            Err(_) => say(&["--ro-bind-try", &at, &at]),
        }
    }
    for file in ["/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs", "/etc/localtime"] {
        say(&["--ro-bind-try", file, file]);
    }
    say(&["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/var/tmp"]);
    say(&["--tmpfs", "/dev/shm", "--tmpfs", HOME, "--tmpfs", WORKDIR, "--perms", "0444", "--ro-bind-data", "4", "/etc/passwd"]);
    say(&["--perms", "0555", "--ro-bind-data", "3", "/run/tierbox-supervisor"]);
    // Keys of the host's users are in no namespace of ours; and the root is a file system that the agent owns.
    say(&["--ro-bind", "/dev/null", "/proc/keys", "--ro-bind", "/dev/null", "/proc/timer_list", "--remount-ro", "/"]);
    // As pid 1 it can be neither signalled nor traced by what it starts, though they are the same user.
    say(&["--as-pid-1", "--info-fd", "7", "--add-seccomp-fd", "5", "--add-seccomp-fd", "6", "--", "/run/tierbox-supervisor"]);
    argv
}
