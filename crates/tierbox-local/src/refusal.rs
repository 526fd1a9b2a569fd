//! Why this host would not let a machine be made, and what to do about it.
//!
//! Nothing here runs unless something was refused: causes are looked for afterwards, so that a start that works pays for
//! none of it.

use std::fs;
use std::io;
use std::path::Path;

use tierbox_core::{Error, ErrorKind};

use crate::BACKEND;
use crate::launcher::LAUNCHER;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const EUSERS: i32 = 87;

/// What stands in the way, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cause {
    what: String,
    remedy: String,
}

impl Cause {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// The error for a step that the supervisor could not do.
pub fn explain(step: &str, errno: i32, detail: &str) -> Error {
    explain_at(Path::new("/"), rustix::process::geteuid().is_root(), step, errno, detail)
}

fn explain_at(root: &Path, is_root: bool, step: &str, errno: i32, detail: &str) -> Error {
    let cause = Host { root, is_root }.cause(step, errno, detail);
    let particulars = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    let said = if errno == 0 { String::new() } else { format!(": {}", io::Error::from_raw_os_error(errno)) };
    let because = cause.as_ref().map(|cause| format!("; {}", cause.what)).unwrap_or_default();
    let error =
        Error::new(ErrorKind::HostUnable, "start sandbox", format!("this host refused \"{step}\"{particulars}{said}{because}"));
    let remedy = cause.map_or_else(|| "run `tierbox doctor` for what this host allows".to_owned(), |cause| cause.remedy);
    error.with_backend(BACKEND).with_help(remedy).with_context("step", step).with_context("errno", errno)
}

/// The error for a supervisor that could not even be executed.
pub fn cannot_spawn(error: &io::Error, program: &str) -> Error {
    let errno = error.raw_os_error().unwrap_or(0);
    let cause = match errno {
        ENOENT if !Path::new("/proc/self").exists() => Cause::new(
            "/proc is not mounted here",
            format!("mount -t proc proc /proc, or install {LAUNCHER}: sudo tierbox doctor --install"),
        ),
        EACCES | EPERM => Cause::new(
            "this host does not execute memory files (vm.memfd_noexec, or a security module)",
            "sysctl vm.memfd_noexec=0, or install the launcher: sudo tierbox doctor --install",
        ),
        EAGAIN => Cause::new(
            "no more processes may be made",
            "raise this user's limit on processes (ulimit -u), or the cgroup's pids.max",
        ),
        _ => Cause::new("", "run `tierbox doctor` for what this host allows"),
    };
    let because = if cause.what.is_empty() { String::new() } else { format!("; {}", cause.what) };
    Error::new(ErrorKind::HostUnable, "start supervisor", format!("cannot execute the {program}: {error}{because}"))
        .with_backend(BACKEND)
        .with_help(cause.remedy)
}

/// The error for a supervisor that went away before it answered. Nothing is left of it.
pub fn silent(error: Error) -> Error {
    if error.kind() != ErrorKind::Lost {
        return error.with_backend(BACKEND);
    }
    let host = Host { root: Path::new("/"), is_root: rustix::process::geteuid().is_root() };
    let (because, remedy) = match host.confinement() {
        Some(cause) => (format!("; {}", cause.what), cause.remedy),
        None => (String::new(), "try again; if it stays so, run `tierbox doctor` for what this host allows".to_owned()),
    };
    Error::new(ErrorKind::HostUnable, "start sandbox", format!("the supervisor was killed before it could answer{because}"))
        .with_backend(BACKEND)
        .with_help(remedy)
        .with_source(error)
}

/// The error for a host without `/proc`.
pub fn no_proc() -> Error {
    Error::new(ErrorKind::HostUnable, "look at this host", "/proc is not mounted here, and every container needs one of its own")
        .with_backend(BACKEND)
        .with_help("as root: mount -t proc proc /proc")
}

/// Whether AppArmor keeps plain users from namespaces with capabilities, and this process is one of them.
pub fn apparmor_restricts() -> bool {
    !rustix::process::geteuid().is_root() && Host { root: Path::new("/"), is_root: false }.apparmor_restricts()
}

/// What this host's own files say, for `doctor`: the first thing that would deny namespaces, if any.
pub fn standing_cause() -> Option<(String, String)> {
    let host = Host { root: Path::new("/"), is_root: rustix::process::geteuid().is_root() };
    host.namespaces(0).or_else(|| host.confinement()).map(|cause| (cause.what, cause.remedy))
}

/// The files that tell, below a root that tests can choose.
struct Host<'a> {
    root: &'a Path,
    is_root: bool,
}

impl Host<'_> {
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn is_zero(&self, path: &str) -> bool {
        self.read(path).as_deref() == Some("0")
    }

    fn apparmor_restricts(&self) -> bool {
        self.read("proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1")
    }

    fn cause(&self, step: &str, errno: i32, detail: &str) -> Option<Cause> {
        let denied = matches!(errno, EPERM | EACCES | ENOSYS | ENOSPC | EUSERS | EINVAL);
        if step.starts_with("user namespace") || step.contains("namespace") {
            return self.namespaces(errno).or_else(|| self.confinement());
        }
        if step.starts_with("uid map") {
            return self.maps(detail);
        }
        if step.starts_with("cgroup") {
            return self.cgroups(errno);
        }
        if step.starts_with("file ") || step.starts_with("directory ") {
            return None;
        }
        if step.starts_with("setup frame") {
            return Some(Cause::new(
                "the supervisor is another version than this program",
                "reinstall the launcher: sudo tierbox doctor --install",
            ));
        }
        if errno == ENOENT && step.starts_with("mount /") {
            return Some(Cause::new("the path does not exist on this host", "check the profile's mounts and local.binds"));
        }
        // Mounts, the loopback device and capabilities all need what a user namespace should have given.
        if denied { self.masked_proc(step).or_else(|| self.apparmor_cause()).or_else(|| self.confinement()) } else { None }
    }

    fn namespaces(&self, errno: i32) -> Option<Cause> {
        if self.is_zero("proc/sys/user/max_user_namespaces") {
            return Some(Cause::new("user.max_user_namespaces is 0", "as root: sysctl -w user.max_user_namespaces=15000"));
        }
        if !self.is_root && self.is_zero("proc/sys/kernel/unprivileged_userns_clone") {
            return Some(Cause::new(
                "kernel.unprivileged_userns_clone is 0",
                "as root: sysctl -w kernel.unprivileged_userns_clone=1",
            ));
        }
        if matches!(errno, ENOSPC | EUSERS) {
            return Some(Cause::new(
                "too many namespaces exist, or they are nested too deeply",
                "stop other sandboxes (tierbox ls, tierbox cleanup), or as root raise user.max_user_namespaces",
            ));
        }
        if errno == ENOSYS || errno == EINVAL {
            return self.confinement().or_else(|| {
                Some(Cause::new("this kernel has no user namespaces", "use a kernel with CONFIG_USER_NS, or another backend"))
            });
        }
        self.apparmor_cause()
    }

    fn apparmor_cause(&self) -> Option<Cause> {
        (!self.is_root && self.apparmor_restricts()).then(|| {
            Cause::new(
                "AppArmor gives plain users' namespaces no capabilities (kernel.apparmor_restrict_unprivileged_userns is 1)",
                "install tierbox's launcher with its AppArmor profile: sudo tierbox doctor --install",
            )
        })
    }

    fn maps(&self, detail: &str) -> Option<Cause> {
        if detail.contains("newuidmap") || detail.contains("newgidmap") {
            return Some(Cause::new("the subordinate ids were not granted", crate::plan::users::SUBID_HELP));
        }
        self.apparmor_cause().or_else(|| self.confinement())
    }

    fn cgroups(&self, errno: i32) -> Option<Cause> {
        if errno == EROFS {
            return Some(Cause::new(
                "the cgroup file system is mounted read-only, as in a container",
                "run on the host, or give the container its own cgroups: docker run --cgroupns=private --privileged",
            ));
        }
        self.confinement().or_else(|| {
            Some(Cause::new(
                "this process may not manage cgroups there",
                "run as root, or under `systemd-run --user --scope -p Delegate=yes`",
            ))
        })
    }

    /// The kernel lets a user namespace mount procfs only where the whole of it is visible already.
    fn masked_proc(&self, step: &str) -> Option<Cause> {
        if !step.starts_with("mount") || !step.contains("proc") {
            return None;
        }
        let mounts = self.read("proc/self/mountinfo")?;
        let over = mounts.lines().filter_map(|line| line.split(' ').nth(4)).find(|point| point.starts_with("/proc/"))?;
        Some(Cause::new(
            format!("parts of /proc are covered here ({over}), so the kernel allows no fresh one"),
            "inside Docker: docker run --security-opt systempaths=unconfined --security-opt seccomp=unconfined; or run on the host",
        ))
    }

    /// A seccomp filter, or no_new_privs inside a container: signs that somebody confined this very process.
    fn confinement(&self) -> Option<Cause> {
        let status = self.read("proc/self/status").unwrap_or_default();
        let filtered = status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"]));
        filtered.then(|| {
            let inside = if self.in_container() { "the container" } else { "whatever started this process" };
            Cause::new(
                format!("{inside} runs it under a seccomp filter"),
                "inside Docker or a CI container: docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined \
                 --security-opt apparmor=unconfined; or run on the host",
            )
        })
    }

    fn in_container(&self) -> bool {
        [".dockerenv", "run/.containerenv"].iter().any(|name| self.root.join(name).exists())
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn explained(files: &[(&str, &str)], step: &str, errno: i32, detail: &str) -> (String, String) {
        let root = host(files);
        let error = explain_at(root.path(), false, step, errno, detail);
        assert_eq!(error.kind(), ErrorKind::HostUnable);
        (error.message().to_owned(), error.help().unwrap().to_owned())
    }

    #[test]
    fn each_kind_of_host_is_told_apart() {
        type Files = &'static [(&'static str, &'static str)];
        let cases: [(Files, &str, i32, &str, &str, &str); 9] = [
            (&[("proc/sys/user/max_user_namespaces", "0\n")], "user namespace", ENOSPC, "", "max_user_namespaces", "sysctl"),
            (
                &[("proc/sys/kernel/unprivileged_userns_clone", "0\n")],
                "user namespace",
                EPERM,
                "",
                "unprivileged_userns_clone",
                "sysctl",
            ),
            (
                &[("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")],
                "loopback",
                EPERM,
                "",
                "AppArmor",
                "doctor --install",
            ),
            (&[("proc/self/status", "Name:\tx\nSeccomp:\t2\n")], "user namespace", EPERM, "", "seccomp", "seccomp=unconfined"),
            (
                &[("proc/self/mountinfo", "1 2 0:3 / /proc/kcore ro - tmpfs tmpfs rw\n")],
                "mount proc",
                EPERM,
                "",
                "/proc/kcore",
                "systempaths",
            ),
            (&[], "uid map", 0, "/usr/bin/newuidmap: not allowed", "subordinate", "usermod"),
            (&[], "cgroup memory", EROFS, "", "read-only", "run on the host"),
            (&[], "user namespace", EUSERS, "", "too many", "cleanup"),
            (&[], "mount /data/x", ENOENT, "", "does not exist", "binds"),
        ];
        for (files, step, errno, detail, what, remedy) in cases {
            let (message, help) = explained(files, step, errno, detail);
            assert!(message.contains(what) && message.contains(step), "{step}: {message}");
            assert!(help.contains(remedy), "{step}: {help}");
        }
    }

    #[test]
    fn an_unknown_cause_still_says_what_was_refused() {
        let (message, help) = explained(&[], "pivot root", EPERM, "");
        assert!(message.contains("pivot root") && help.contains("doctor"), "{message} {help}");
    }
}
