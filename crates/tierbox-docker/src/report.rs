//! What is really in force, as a machine sees it from inside.

use bollard::models::SystemInfo;
use tierbox_core::{Applied, Error, ErrorKind, GuestPath, Mechanism, ReadOptions, Result, Sandbox};
use tierbox_guest::Ready;
use tokio::io::AsyncReadExt;

use crate::BACKEND;
use crate::network::with_ipv6;
use crate::plan::{MachinePlan, Plan};

/// The namespaces without which a container is not H1, by their names under `/proc/self/ns`.
const NAMESPACES: [(&str, &str); 5] = [
    ("mount namespace", "mnt"),
    ("pid namespace", "pid"),
    ("network namespace", "net"),
    ("ipc namespace", "ipc"),
    ("uts namespace", "uts"),
];

/// Namespaces that are reported, and not required.
const OTHERS: [(&str, &str); 2] = [("user namespace", "user"), ("cgroup namespace", "cgroup")];

/// The most that is read of a file of the kernel's.
const MOST: u64 = 64 << 10;

fn mechanism(name: &str, applied: Applied, detail: impl Into<String>) -> Mechanism {
    Mechanism { name: name.to_owned(), applied, detail: detail.into() }
}

/// What a machine shows of itself.
pub struct Seen {
    /// What is in force.
    pub mechanisms: Vec<Mechanism>,
    /// Whether its default user is root inside, whatever his name.
    pub is_root: bool,
    /// Its links that have an address of IPv6.
    pub by_ipv6: Vec<String>,
}

/// Looks at a machine. What the kernel says inside is read as the default user, whom every command runs as.
///
/// # Errors
/// What reading inside says.
pub async fn seen(
    sandbox: &dyn Sandbox,
    ready: Option<&Ready>,
    plan: &Plan,
    machine: &MachinePlan,
    info: &SystemInfo,
) -> Result<Seen> {
    let mut found = Vec::new();
    for (name, file) in NAMESPACES.into_iter().chain(OTHERS) {
        let own = is_own(sandbox, file).await;
        found.push(mechanism(name, if own { Applied::Enforced } else { Applied::Absent }, ""));
    }
    // A kernel without IPv6 has no such file.
    let addresses = read(sandbox, "/proc/self/net/if_inet6").await.unwrap_or_default();
    let reached: Vec<String> = with_ipv6(&addresses).into_iter().map(str::to_owned).collect();
    let status = read(sandbox, "/proc/self/status").await?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default().trim();
    let own = ready.into_iter().flat_map(|ready| &ready.mechanisms).find(|mechanism| mechanism.name == "seccomp");
    let engines = info.security_options.iter().flatten().any(|option| option.contains("seccomp"));
    found.push(seccomp(field("Seccomp"), own, engines, plan.settings.own_kernel()));
    found.push(flag("no_new_privs", field("NoNewPrivs") == "1", ""));
    let sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"];
    let held = sets.iter().fold(0, |held, set| held | u64::from_str_radix(field(set), 16).unwrap_or(u64::MAX));
    found.push(capabilities(held, &machine.capabilities));
    found.push(flag("read-only root", machine.read_only, ""));
    let options = info.security_options.clone().unwrap_or_default();
    found.push(flag("apparmor", options.iter().any(|option| option.contains("apparmor")), "the engine's default profile"));
    if let Some(runtime) = &plan.settings.runtime {
        found.push(mechanism("runtime", Applied::Enforced, runtime.clone()));
    }
    let mut uids = field("Uid").split_whitespace().map(str::parse::<u32>).peekable();
    // Who cannot be told to be somebody else counts as root.
    let is_root = uids.peek().is_none() || uids.any(|uid| uid.unwrap_or(0) == 0);
    Ok(Seen { mechanisms: found, is_root, by_ipv6: reached })
}

/// What the default user may do beyond others. Root has a few, all of them among the engine's own default.
fn capabilities(held: u64, named: &[String]) -> Mechanism {
    let of_root = format!("root inside has {}", named.join(", "));
    let allowed = named.iter().filter_map(|name| bit(name)).fold(0, |allowed, bit| allowed | 1 << bit);
    match held {
        0 => mechanism("capabilities", Applied::Enforced, format!("the default user has none, {of_root}")),
        held if held & !allowed == 0 => {
            mechanism("capabilities", Applied::Weaker, format!("the default user is root: {of_root}"))
        }
        held => mechanism("capabilities", Applied::Absent, format!("{held:#x} in force")),
    }
}

/// The kernel's number of a capability that can be named.
fn bit(name: &str) -> Option<u32> {
    let numbers = [
        ("CHOWN", 0),
        ("DAC_OVERRIDE", 1),
        ("FOWNER", 3),
        ("FSETID", 4),
        ("KILL", 5),
        ("SETGID", 6),
        ("SETUID", 7),
        ("NET_BIND_SERVICE", 10),
        ("AUDIT_WRITE", 29),
        ("SETFCAP", 31),
    ];
    numbers.iter().find(|(known, _)| *known == name).map(|(_, bit)| *bit)
}

fn flag(name: &str, set: bool, detail: &str) -> Mechanism {
    if set { mechanism(name, Applied::Enforced, detail) } else { mechanism(name, Applied::Absent, "") }
}

fn seccomp(mode: &str, own: Option<&Mechanism>, engines: bool, own_kernel: Option<&str>) -> Mechanism {
    match (mode, own, own_kernel) {
        ("2", Some(own), _) => {
            let beside = if engines { ", beside the engine's filter" } else { "" };
            mechanism("seccomp", Applied::Enforced, format!("{}{beside}", own.detail))
        }
        ("2", None, None) => mechanism("seccomp", Applied::Enforced, "the engine filters, by tierbox's list"),
        ("2", None, _) => mechanism("seccomp", Applied::Enforced, "the engine's filter"),
        (_, _, Some(runtime)) => mechanism("seccomp", Applied::Weaker, format!("left to the kernel of the runtime {runtime}")),
        _ => mechanism("seccomp", Applied::Absent, ""),
    }
}

/// Whether a namespace of the machine differs from this process's own, which only this host can tell.
async fn is_own(sandbox: &dyn Sandbox, file: &str) -> bool {
    let path = format!("/proc/self/ns/{file}");
    let inside = sandbox.stat(&GuestPath::from(path.as_str()), false).await.ok().and_then(|meta| meta.target);
    let here = std::fs::read_link(&path).ok();
    match (inside, here) {
        (Some(inside), Some(here)) => inside != here.as_os_str().as_encoded_bytes(),
        (Some(_), None) => true,
        (None, _) => false,
    }
}

async fn read(sandbox: &dyn Sandbox, path: &str) -> Result<String> {
    let (_, reader) = sandbox.read(&GuestPath::from(path), ReadOptions::default()).await?;
    let mut text = Vec::new();
    reader.take(MOST).read_to_end(&mut text).await.map_err(|error| Error::io("read what is in force", error))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Checks that no link has an address of IPv6: this host's own link-local ones would be reached by it, whatever the tier.
///
/// # Errors
/// `TierRefused` naming the links.
pub fn check_ipv6(machine: &str, links: &[String]) -> Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    let message =
        format!("the machine {machine:?} has addresses of IPv6, by which the engine's host is reached: {}", shown(links));
    Err(Error::new(ErrorKind::TierRefused, "start environment", message).with_backend(BACKEND).with_help(
        "the engine did not set net.ipv6.conf.all.disable_ipv6; run the engine on a host whose containers have IPv4 alone",
    ))
}

/// Names out of a machine, fit to show.
fn shown(names: &[String]) -> String {
    names.iter().take(8).map(|name| name.escape_debug().take(16).collect::<String>()).collect::<Vec<_>>().join(", ")
}

/// Checks that what was made is H1; a runtime with a kernel of its own may do without the filter.
///
/// # Errors
/// `TierRefused` naming what is missing.
pub fn check(machine: &str, mechanisms: &[Mechanism], own_kernel: Option<&str>) -> Result<()> {
    let required = NAMESPACES.iter().map(|(name, _)| *name).chain(["seccomp", "no_new_privs", "capabilities"]);
    let weaker = |name: &str| name == "capabilities" || (name == "seccomp" && own_kernel.is_some());
    let in_force = |name: &str| {
        let found = mechanisms.iter().find(|found| found.name == name).map(|found| found.applied);
        found == Some(Applied::Enforced) || (found == Some(Applied::Weaker) && weaker(name))
    };
    let missing: Vec<&str> = required.filter(|name| !in_force(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TierRefused,
        "start environment",
        format!("H1 needs what is not in force in the machine {machine:?}: {}", missing.join(", ")),
    )
    .with_backend(BACKEND)
    .with_help("`docker info` shows whether the daemon was started without seccomp or its defaults were changed"))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_a_kernel_of_its_own_does_without_the_filter() {
        let others = NAMESPACES.iter().map(|(name, _)| *name).chain(["no_new_privs", "capabilities"]);
        let with = |seccomp: Mechanism| others.clone().map(|name| flag(name, true, "")).chain([seccomp]).collect::<Vec<_>>();
        let own_kernel = with(seccomp("0", None, false, Some("runsc")));
        check("m", &own_kernel, Some("runsc")).unwrap();
        assert!(check("m", &own_kernel, None).unwrap_err().message().contains("seccomp"));
        assert!(check("m", &with(seccomp("0", None, false, None)), None).is_err());
        check("m", &with(seccomp("2", None, false, None)), None).unwrap();
    }
}
