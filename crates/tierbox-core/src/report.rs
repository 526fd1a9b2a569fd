//! What was really enforced, recorded with every environment.

use serde::{Deserialize, Serialize};

use crate::{KillDomain, Limit, Limits, Locality, Tier};

/// How far a mechanism was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Applied {
    /// In force.
    Enforced,
    /// In force in a weaker form; the detail says which.
    Weaker,
    /// Not in force.
    Absent,
}

/// One mechanism of isolation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mechanism {
    /// Its name: `user namespace`, `seccomp`, `landlock`, …
    pub name: String,
    /// How far it is in force.
    pub applied: Applied,
    /// The particulars: an ABI version, a rule count, a reason. May be empty.
    pub detail: String,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitReport {
    /// Its name, as in a profile's `[limits]`.
    pub name: String,
    /// The value in force, as people write it.
    pub value: String,
    /// What enforces it: `cgroup v2`, `cgroup v1`, `rlimit`, `tmpfs`, or `nothing`.
    pub by: String,
    /// How far it is in force.
    pub applied: Applied,
}

impl LimitReport {
    /// The limits of a machine that tierbox does not make itself: what a profile asks for of the whole machine is its maker's to give (an
    /// instance type, a Vagrantfile), of a process its kernel's.
    pub fn of_processes_alone(limits: &Limits) -> Vec<Self> {
        let line = |name: &str, limit: Option<Limit<u64>>, by: &str, applied| {
            limit.map(|limit| Self { name: name.to_owned(), value: limit.max.to_string(), by: by.to_owned(), applied })
        };
        [
            line("memory", limits.memory, "nothing", Applied::Absent),
            line("cpu", limits.cpu_millis, "nothing", Applied::Absent),
            line("pids", limits.pids, "nothing", Applied::Absent),
            line("disk", limits.disk, "nothing", Applied::Absent),
            line("inodes", limits.inodes, "nothing", Applied::Absent),
            line("file-size", limits.file_size, "rlimit", Applied::Enforced),
            line("open-files", limits.open_files, "rlimit", Applied::Enforced),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What an environment's tier rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The profile that was started.
    pub profile: String,
    /// The tier that it states, which is the tier that is enforced: `start` refuses otherwise.
    pub tier: Tier,
    /// The backend's name.
    pub backend: String,
    /// Where the machines are.
    pub locality: Locality,
    /// How a command's tree is killed.
    pub kill_domain: KillDomain,
    /// The mechanisms of isolation.
    pub mechanisms: Vec<Mechanism>,
    /// The limits.
    pub limits: Vec<LimitReport>,
    /// Host directories that are visible inside, as `host -> inside (ro|rw)`.
    pub mounts: Vec<String>,
    /// Paths inside, each with what is below it, at which the backend itself shows something of the host's that no profile names:
    /// programs, devices, the supervisor. One that ends in `/` stands for what is below it alone.
    #[serde(default)]
    pub parts: Vec<String>,
    /// Files and directories that were copied in, as `host -> inside`.
    pub copied_in: Vec<String>,
    /// Settings that weaken the profile, each with who asked for it.
    pub weakened: Vec<String>,
    /// The profile's reason for H0 or N0, where it gives one.
    pub reason: Option<String>,
    /// Other remarks for people.
    pub notes: Vec<String>,
}

impl Report {
    /// A report of a backend's environment of which nothing else is said yet: no mechanism, no limit, nothing of the host's inside.
    pub fn bare(backend: impl Into<String>, tier: Tier, locality: Locality, kill_domain: KillDomain) -> Self {
        Self {
            profile: String::new(),
            tier,
            backend: backend.into(),
            locality,
            kill_domain,
            mechanisms: Vec::new(),
            limits: Vec::new(),
            mounts: Vec::new(),
            parts: Vec::new(),
            copied_in: Vec::new(),
            weakened: Vec::new(),
            reason: None,
            notes: Vec::new(),
        }
    }

    /// One line for people: tier, backend, what enforces it, and which limits are not held as they were asked for.
    pub fn summary(&self) -> String {
        let enforced: Vec<&str> = self
            .mechanisms
            .iter()
            .filter(|mechanism| mechanism.applied != Applied::Absent)
            .map(|mechanism| mechanism.name.as_str())
            .collect();
        let by = if enforced.is_empty() { "nothing".to_owned() } else { enforced.join(", ") };
        let limits = |applied: Applied| self.limits.iter().filter(move |limit| limit.applied == applied);
        let weaker: Vec<String> = limits(Applied::Weaker).map(|limit| format!("{} by {}", limit.name, limit.by)).collect();
        let absent: Vec<&str> = limits(Applied::Absent).map(|limit| limit.name.as_str()).collect();
        let mut line = format!("{} on {}, enforced by {by}", self.tier, self.backend);
        for (what, which) in [("limited more weakly", weaker.join(", ")), ("not limited", absent.join(", "))] {
            if !which.is_empty() {
                line.push_str(&format!("; {what}: {which}"));
            }
        }
        line
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn limit(name: &str, by: &str, applied: Applied) -> LimitReport {
        LimitReport { name: name.into(), value: "1".into(), by: by.into(), applied }
    }

    #[test]
    fn a_limit_that_is_not_held_as_asked_for_is_said() {
        let mut report = Report {
            mechanisms: vec![Mechanism { name: "seccomp".into(), applied: Applied::Enforced, detail: String::new() }],
            limits: vec![limit("disk", "tmpfs", Applied::Enforced)],
            ..Report::bare("b", "T0.H1.N2".parse().unwrap(), Locality::Local, KillDomain::Cgroup)
        };
        assert_eq!(report.summary(), "T0.H1.N2 on b, enforced by seccomp");
        report.limits.push(limit("memory", "rlimit", Applied::Weaker));
        report.limits.push(limit("cpu", "nothing", Applied::Absent));
        let said = "T0.H1.N2 on b, enforced by seccomp; limited more weakly: memory by rlimit; not limited: cpu";
        assert_eq!(report.summary(), said);
    }
}
