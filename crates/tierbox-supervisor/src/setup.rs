//! What a new machine should be: the first frame (call 0) on its own channel.

use crate::wire::Blob;
use crate::{wire_enum, wire_struct};

wire_enum! {
    /// What kind of machine.
    pub enum Mode {
        /// A container: own namespaces, own root. The supervisor becomes pid 1.
        Container = 0,
        /// Processes on this host without isolation.
        Process = 1,
        /// The supervisor was started inside a machine that somebody else isolates (a container, a VM).
        Guest = 2,
    }
}

wire_enum! {
    /// Which users exist inside a container.
    pub enum UserMap {
        /// Only the caller's own user, who appears as the agent.
        Single = 0,
        /// A range of the host's ids, written directly (needs CAP_SETUID and CAP_SETGID on the host).
        Direct {
            /// The host id that is 0 inside.
            first: u32,
            /// How many ids.
            count: u32,
        } = 1,
        /// A range from /etc/subuid and /etc/subgid, written by newuidmap and newgidmap; inside 0 is the caller.
        Helper {
            /// The first subordinate user id, which is 1 inside.
            first_uid: u32,
            /// How many.
            uids: u32,
            /// The first subordinate group id, which is 1 inside.
            first_gid: u32,
            /// How many.
            gids: u32,
            /// Absolute paths of newuidmap and newgidmap.
            newuidmap: Blob,
            /// See `newuidmap`.
            newgidmap: Blob,
        } = 2,
    }
}

/// In an [`Agent`] of mode [`Guest`](Mode::Guest): look the user up by name in the machine's own database.
pub const UNKNOWN_ID: u32 = u32::MAX;

wire_struct! {
    /// The user that commands and file operations use unless told otherwise.
    pub struct Agent {
        /// Its name; with an unknown id it may be `name:group`, for another group than the user's own.
        pub name: String,
        /// Its id inside, or [`UNKNOWN_ID`].
        pub uid: u32,
        /// Its group inside; with an unknown id, [`UNKNOWN_ID`] stands for the user's own.
        pub gid: u32,
        /// Its home; with an unknown id, an empty one stands for the user's own.
        pub home: Blob,
    }
}

wire_enum! {
    /// What a container's root is made of.
    pub enum Root {
        /// The host's `/usr` (and `/bin`, `/lib*`, `/sbin` as they are there), read-only, and private rest.
        Host = 0,
        /// A directory of the host's, copy on write.
        Directory {
            /// Its path.
            path: Blob,
        } = 1,
    }
}

wire_struct! {
    /// A host path that is visible inside.
    pub struct Bind {
        /// On the host.
        pub host: Blob,
        /// Inside.
        pub guest: Blob,
        /// Whether it may be changed.
        pub writable: bool,
        /// Skip it if it does not exist.
        pub optional: bool,
    }
}

wire_struct! {
    /// A file or directory that is made inside, in the read-only part of the root.
    pub struct MadeFile {
        /// Absolute path.
        pub path: Blob,
        /// Permission bits.
        pub mode: u32,
        /// Contents.
        pub contents: Blob,
    }
}

wire_struct! {
    /// A resource limit of each process.
    pub struct Rlimit {
        /// The kernel's number (`RLIMIT_*`).
        pub resource: u32,
        /// Soft and hard value.
        pub value: u64,
    }
}

wire_struct! {
    /// A cgroup that the keeper makes and removes, and into which commands go.
    pub struct Cgroup {
        /// The directory, absolute on the host. Its parent exists.
        pub path: Blob,
        /// `v2`, or the v1 controllers of this hierarchy joined by commas (`memory`, `cpu,cpuacct`, `pids`, `freezer`).
        pub kind: String,
        /// Files to write after the directory is made: name and value. A failure refuses the start.
        pub settings: Vec<(String, String)>,
    }
}

wire_enum! {
    /// What a container can reach.
    pub enum Net {
        /// Its own loopback, and nothing else.
        Isolated = 0,
        /// A helper gives its network namespace a way out; these prefixes are unreachable.
        External {
            /// IPv4 prefixes: address and length.
            blocked4: Vec<([u8; 4], u8)>,
            /// IPv6 prefixes.
            blocked6: Vec<([u8; 16], u8)>,
        } = 1,
        /// The host's own network. Only for modes without isolation.
        Host = 2,
        /// Sockets of the host's in its network namespace, made while it waits, and nothing else.
        Gateway = 3,
    }
}

wire_struct! {
    /// A new machine.
    pub struct Setup {
        /// [`protocol::VERSION`](crate::protocol::VERSION).
        pub version: u32,
        /// What kind.
        pub mode: Mode,
        /// Its id; also its host name.
        pub id: String,
        /// Which users exist inside.
        pub users: UserMap,
        /// The default user.
        pub agent: Agent,
        /// The base environment of every command.
        pub env: Vec<(Blob, Blob)>,
        /// `PATH` of commands as root where root is not the default user, instead of the one in `env`.
        pub root_path: Option<Blob>,
        /// Where commands start and relative paths begin. Made if it does not exist.
        pub workdir: Blob,
        /// What the root is made of.
        pub root: Root,
        /// Host paths inside.
        pub binds: Vec<Bind>,
        /// Files made inside.
        pub files: Vec<MadeFile>,
        /// Directories inside that the agent may write to, beside `/tmp`, `/var/tmp`, `/dev/shm`, its home and `workdir`. In
        /// mode `Guest` they are made if need be, and given to the agent.
        pub writable: Vec<Blob>,
        /// Size of all writable areas together, in bytes.
        pub disk: Option<u64>,
        /// Files in all writable areas together.
        pub inodes: Option<u64>,
        /// Limits of each process.
        pub rlimits: Vec<Rlimit>,
        /// Cgroups, at most one per hierarchy.
        pub cgroups: Vec<Cgroup>,
        /// What it can reach.
        pub net: Net,
        /// A path for a listening socket (mode 0600), so that the machine can be found again: on the host, or in mode `Guest`
        /// inside, named `socket` in a directory that does not exist yet, for joiners.
        pub listen: Option<Blob>,
        /// Do not end with the first channel.
        pub persist: bool,
        /// End after this many milliseconds.
        pub lifetime_ms: Option<u64>,
        /// Names of crash points at which to abort, for tests.
        pub crash_at: Option<String>,
        /// Mechanisms that are left out, by their names in `Ready`: in a twin, in which verification sees what its probes would
        /// find if they were not there. Some of `network namespace`, `ipc namespace`, `uts namespace`, `capabilities`,
        /// `no_new_privs`, `seccomp`, `landlock`. Nothing of a user's ever runs in a twin.
        pub lifted: Vec<String>,
        /// In mode `Guest`: also refuse the system calls that a container of mode `Container` refuses. Others always do, or never.
        pub filter: bool,
    }
}

impl Setup {
    /// Sets a variable of every command, whoever it runs as, in place of one of the same name.
    pub fn set_variable(&mut self, name: Blob, value: Blob) {
        if name.0 == b"PATH" {
            self.root_path = None;
        }
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value));
    }

    /// A machine of this kind with one user and nothing else: no variables, files, binds, limits or cgroups; it ends with its
    /// channel. A container is isolated from every network, the others have the host's.
    pub fn new(mode: Mode, id: impl Into<String>, agent: Agent, workdir: Blob) -> Self {
        let net = if mode == Mode::Container { Net::Isolated } else { Net::Host };
        Self {
            version: crate::protocol::VERSION,
            mode,
            id: id.into(),
            users: UserMap::Single,
            agent,
            env: Vec::new(),
            root_path: None,
            workdir,
            root: Root::Host,
            binds: Vec::new(),
            files: Vec::new(),
            writable: Vec::new(),
            disk: None,
            inodes: None,
            rlimits: Vec::new(),
            cgroups: Vec::new(),
            net,
            listen: None,
            persist: false,
            lifetime_ms: None,
            crash_at: None,
            lifted: Vec::new(),
            filter: false,
        }
    }
}
