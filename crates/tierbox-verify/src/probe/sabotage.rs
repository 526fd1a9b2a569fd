//! What is done to sandboxes in tests to show that each probe can fail: one list for the tests and for the book.

use std::fmt::Write;

/// A sandbox in which something does not hold, and the probes that must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sabotage {
    /// A name for tests.
    pub name: &'static str,
    /// What was done, in words.
    pub what: &'static str,
    /// The probes that must fail.
    pub caught_by: &'static [&'static str],
}

/// Every sabotage. A probe that is in none of them could not be shown to fail, and a test sees that there is no such probe.
pub const SABOTAGES: &[Sabotage] = &[
    Sabotage {
        name: "isolation",
        what: "commands run beside the host's own",
        caught_by: &["h.namespace.mnt", "h.namespace.pid", "h.marker", "h.processes", "n.unix", "n.abstract"],
    },
    Sabotage {
        name: "network",
        what: "the host's network is shared",
        caught_by: &["h.namespace.net", "n.routes", "n.metadata", "n.tcp", "n.udp", "n.tcp6", "n.udp6", "n.dns"],
    },
    Sabotage {
        name: "outside",
        what: "the machine is on the engine's own network, which leads outside and to its host",
        caught_by: &["n.routes", "n.metadata", "n.tcp", "n.udp", "n.dns"],
    },
    Sabotage { name: "ipc", what: "the host's ipc namespace is shared", caught_by: &["h.namespace.ipc"] },
    Sabotage { name: "uts", what: "the host's uts namespace is shared", caught_by: &["h.namespace.uts"] },
    Sabotage { name: "capabilities", what: "capabilities are not reduced", caught_by: &["h.capabilities"] },
    Sabotage { name: "no-new-privs", what: "no_new_privs is not set", caught_by: &["h.no-new-privs"] },
    Sabotage { name: "seccomp", what: "system calls are not filtered", caught_by: &["h.seccomp"] },
    Sabotage { name: "socket", what: "an engine's socket is mounted", caught_by: &["h.sockets"] },
    Sabotage { name: "share", what: "a folder of the host is shared, and the profile names none", caught_by: &["h.shares"] },
    Sabotage { name: "bind", what: "a directory of the host is mounted, and the profile names none", caught_by: &["h.shares"] },
    Sabotage {
        name: "kernel",
        what: "a container claims to be a virtual machine",
        caught_by: &["h.kernel.namespaces", "h.kernel.boot", "h.kernel.engine"],
    },
    Sabotage {
        name: "kernel-of-a-container",
        what: "the same, and its engine says so too",
        caught_by: &["h.kernel.namespaces", "h.kernel.boot"],
    },
    Sabotage {
        name: "kernel-of-a-process",
        what: "a process of this host's claims to be one, and its engine says so too",
        caught_by: &["h.kernel.boot"],
    },
    Sabotage {
        name: "bypass",
        what: "N1, and the host's network is there beside the gateway",
        caught_by: &["h.namespace.net", "n.routes", "n.tcp", "n.address"],
    },
    Sabotage {
        name: "lists-more",
        what: "N1, and the gateway lists a name that the profile does not",
        caught_by: &["n.unlisted", "n.unlisted.tls"],
    },
    Sabotage { name: "lists-less", what: "N1, and the gateway does not list what the profile does", caught_by: &["n.names"] },
    Sabotage { name: "deaf", what: "N1, and a name that is listed leads nowhere", caught_by: &["n.listed"] },
    Sabotage {
        name: "careless",
        what: "N1, and the gateway judges a connection by its beginning alone",
        caught_by: &["n.sni", "n.host", "n.port"],
    },
    Sabotage { name: "rules", what: "the agent's rules let a program through that nobody named", caught_by: &["t.exec"] },
    Sabotage {
        name: "handle",
        what: "the agent gets a handle of a lower tier",
        caught_by: &["t.exec", "t.shell", "t.interpreter", "t.variables", "t.write", "t.code", "t.look"],
    },
    Sabotage {
        name: "unconfined",
        what: "a machine takes T1's list of programs, and does nothing with it",
        caught_by: &["t.kernel"],
    },
];

/// The list as a table of Markdown.
pub fn sabotage_table() -> String {
    let mut table = "| sabotage | probe that catches it |\n|---|---|\n".to_owned();
    for sabotage in SABOTAGES {
        let probes: Vec<String> = sabotage.caught_by.iter().map(|probe| format!("`{probe}`")).collect();
        let _ = writeln!(table, "| {} | {} |", sabotage.what, probes.join(", "));
    }
    table
}
