//! The mount table of a container as this host's kernel shows it, against what was planned.

use std::borrow::Cow;

use tierbox_supervisor::setup::{Root, Setup};

use crate::selfcheck::Seen;

/// What the host's programs and libraries lie in.
const PROGRAMS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What every container may write to.
const WRITABLE: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Device nodes, and their file systems on hosts of every kind.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Where a container shows something of this host's that no profile names. Below `/proc` lie the covers of what is closed there.
pub(crate) fn parts(setup: &Setup) -> Vec<String> {
    let always = DEVICES.iter().chain(&["/proc/"]).map(|path| (*path).to_owned());
    if !matches!(setup.root, Root::Host) {
        return always.collect();
    }
    let settings = crate::plan::files::shared().0.iter().map(|bind| String::from_utf8_lossy(&bind.guest.0).into_owned());
    always.chain(PROGRAMS.map(str::to_owned)).chain(settings).collect()
}

/// What may be mounted where.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// Whether the root is made of the host's `/usr`; else it is a directory's copy on write.
    host: bool,
    /// Directories of the container's own that may be written to.
    writable: Vec<String>,
    /// Host paths inside, and whether they may be changed.
    binds: Vec<(String, bool)>,
}

impl Planned {
    /// What a set-up says.
    pub(crate) fn of(setup: &Setup) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('/').to_owned();
        let own = [&setup.agent.home, &setup.workdir].into_iter().chain(&setup.writable).map(|path| text(&path.0));
        Self {
            host: matches!(setup.root, Root::Host),
            writable: own.chain(WRITABLE.map(str::to_owned)).collect(),
            binds: setup.binds.iter().map(|bind| (text(&bind.guest.0), bind.writable)).collect(),
        }
    }

    /// Why a mount should not be there.
    fn refusal(&self, point: &str, kind: &str, read_only: bool) -> Option<&'static str> {
        const UNPLANNED: Option<&str> = Some("nobody planned it");
        const TO_WRITE: Option<&str> = Some("it can be written to");
        let below = |outer: &str| point.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let write_guarded = |guarded: bool| if guarded && !read_only { TO_WRITE } else { None };
        // The longest path counts: a writable directory may lie in one that is not.
        if let Some((_, writable)) = self.binds.iter().filter(|(guest, _)| below(guest)).max_by_key(|(guest, _)| guest.len()) {
            return write_guarded(!writable);
        }
        match point {
            "/" if kind != if self.host { "tmpfs" } else { "overlay" } => Some("it is not the container's own"),
            "/" => write_guarded(self.host),
            "/dev" if !self.host && kind == "tmpfs" => None,
            "/dev/pts" => {
                if kind == "devpts" {
                    None
                } else {
                    UNPLANNED
                }
            }
            _ if self.writable.iter().any(|own| own == point) => {
                if kind == "tmpfs" || !self.host {
                    None
                } else {
                    UNPLANNED
                }
            }
            _ if DEVICES.contains(&point) => None,
            "/proc" => {
                if kind == "proc" {
                    None
                } else {
                    UNPLANNED
                }
            }
            _ if below("/proc") => write_guarded(true),
            _ if self.host && PROGRAMS.iter().any(|outer| below(outer)) => write_guarded(true),
            _ => UNPLANNED,
        }
    }
}

/// A line of a mount table.
struct Mount<'a> {
    id: &'a str,
    parent: &'a str,
    device: &'a str,
    point: Cow<'a, str>,
    kind: &'a str,
    read_only: bool,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ');
        let (id, parent, device) = (fields.next()?, fields.next()?, fields.next()?);
        let mut fields = fields.skip(1);
        let (point, options) = (unescaped(fields.next()?), fields.next()?);
        let read_only = options.split(',').any(|option| option == "ro");
        Some(Self { id, parent, device, point, kind: right.split(' ').next().unwrap_or_default(), read_only })
    }

    /// Whether it is a directory of the container's own over which another mount lies, as over a working directory that the profile
    /// mounts: nobody inside reaches it. A covered root is none: it would hold the host.
    fn is_covered(&self, all: &[Self]) -> bool {
        let over = |other: &Self| other.parent == self.id && other.point == self.point;
        self.kind == "tmpfs" && self.point != "/" && all.iter().any(over)
    }
}

/// Checks a table as `/proc/<pid>/mountinfo` has it.
pub(crate) fn check(table: Option<&str>, planned: &Planned) -> Seen {
    let Some(table) = table else { return Ok(None) };
    let parsed = |line| Mount::parse(line).ok_or_else(|| format!("its mount table has the line {line:?}"));
    let mounts = table.lines().map(parsed).collect::<Result<Vec<_>, _>>()?;
    let store = mounts.iter().find(|mount| mount.point == "/").map(|root| root.device);
    for mount in &mounts {
        // A directory of the container's own that lies below what the profile mounts, and is covered by it.
        let is_own = Some(mount.device) == store && planned.writable.iter().any(|own| *own == mount.point);
        if is_own && planned.binds.iter().all(|(guest, _)| *guest != mount.point) {
            continue;
        }
        if let Some(why) = planned.refusal(&mount.point, mount.kind, mount.read_only)
            && !mount.is_covered(&mounts)
        {
            return Err(format!("there is a mount at {} ({}), and {why}", mount.point, mount.kind));
        }
    }
    match mounts.iter().filter(|mount| mount.point == "/").count() {
        1 => Ok(Some("mounts".to_owned())),
        roots => Err(format!("it has {roots} roots")),
    }
}

/// The kernel writes blanks and backslashes of a path in octal.
fn unescaped(path: &str) -> Cow<'_, str> {
    if !path.contains('\\') {
        return path.into();
    }
    let mut parts = path.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(3).unwrap_or((part, ""));
        bytes.extend(u8::from_str_radix(digits, 8));
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod unit {
    use super::*;

    fn planned(host: bool) -> Planned {
        Planned {
            host,
            writable: ["/workspace", "/home/agent", "/tmp", "/data/work"].map(str::to_owned).to_vec(),
            binds: vec![("/data".to_owned(), false), ("/data/out put".to_owned(), true)],
        }
    }

    fn table(lines: &[(&str, &str, &str)]) -> String {
        // One file system of each kind.
        let line = |(point, options, kind): &(&str, &str, &str)| {
            format!("1 2 0:{} / {point} {options},nosuid shared:1 - {kind} x rw\n", kind.len())
        };
        lines.iter().map(line).collect()
    }

    const GOOD: &[(&str, &str, &str)] = &[
        ("/", "ro", "tmpfs"),
        ("/usr", "ro", "ext4"),
        ("/usr/share/x", "ro", "squashfs"),
        ("/dev/null", "ro", "devtmpfs"),
        ("/dev/pts", "rw", "devpts"),
        ("/proc", "rw", "proc"),
        ("/proc/sys", "ro", "proc"),
        ("/proc/keys", "ro", "devtmpfs"),
        ("/workspace", "rw", "tmpfs"),
        ("/data", "ro", "ext4"),
        ("/data/below", "ro", "ext4"),
        ("/data/work", "rw", "tmpfs"),
        ("/data/out\\040put", "rw", "ext4"),
    ];

    #[test]
    fn a_planned_table_is_seen() {
        assert_eq!(check(Some(&table(GOOD)), &planned(true)), Ok(Some("mounts".to_owned())));
        assert_eq!(check(None, &planned(true)), Ok(None));
        let copied = [("/", "rw", "overlay"), ("/dev", "rw", "tmpfs"), ("/proc", "rw", "proc"), ("/workspace", "rw", "overlay")];
        assert!(check(Some(&table(&copied)), &planned(false)).unwrap().is_some());
    }

    #[test]
    fn what_lies_below_a_planned_mount_is_out_of_reach() {
        let planned = Planned { binds: vec![("/workspace".to_owned(), false)], ..planned(true) };
        let line = |id: u8, parent: u8, point: &str, options: &str, kind: &str| {
            format!("{id} {parent} 0:1 / {point} {options} shared:1 - {kind} x rw\n")
        };
        let root = line(1, 0, "/", "ro", "tmpfs");
        let covered = root.clone() + &line(2, 1, "/workspace", "rw", "tmpfs") + &line(3, 2, "/workspace", "ro", "ext4");
        assert!(check(Some(&covered), &planned).unwrap().is_some());
        let above = root.clone() + &line(3, 1, "/workspace", "ro", "ext4") + &line(2, 3, "/workspace", "rw", "tmpfs");
        assert!(check(Some(&above), &planned).is_err(), "what lies above is reached");
        let host = root + &line(2, 1, "/workspace", "rw", "ext4") + &line(3, 2, "/workspace", "ro", "ext4");
        assert!(check(Some(&host), &planned).is_err(), "it is not the container's own");
    }

    #[test]
    fn whatever_else_is_mounted_is_refused() {
        for (point, options, kind) in [
            ("/run/docker.sock", "ro", "tmpfs"),
            ("/etc", "ro", "ext4"),
            ("/mnt/share", "ro", "9p"),
            ("/", "ro", "tmpfs"),
            ("/usr/lib", "rw", "ext4"),
            ("/data/below", "rw", "ext4"),
            ("/data/work", "rw", "ext4"),
            ("/proc", "rw", "tmpfs"),
            ("/proc/sys", "rw", "proc"),
            ("/dev/pts", "rw", "tmpfs"),
            ("/dev/kvm", "rw", "devtmpfs"),
            ("/dev", "rw", "devtmpfs"),
            ("/workspace", "rw", "ext4"),
            ("/database", "ro", "ext4"),
            ("/usrlocal", "ro", "ext4"),
        ] {
            let lines: Vec<_> = GOOD.iter().copied().chain([(point, options, kind)]).collect();
            assert!(check(Some(&table(&lines)), &planned(true)).is_err(), "{point} {options} {kind}");
        }
        assert!(check(Some(&table(&[("/", "rw", "ext4")])), &planned(true)).is_err());
        assert!(check(Some(&table(&[("/", "rw", "tmpfs")])), &planned(true)).is_err());
        assert!(check(Some(""), &planned(true)).is_err());
        assert!(check(Some("nonsense"), &planned(true)).is_err());
    }
}
