//! `cap_add` and `cap_drop` of a service.

use tierbox_core::Result;

use super::read::{self, At};
use super::yaml::Node;
use crate::settings::{BASE_CAPABILITIES, check_capability, cut};

/// Every capability that Linux knows: a name that is none of these is a slip of the finger.
const KNOWN: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// What a service asks for.
#[derive(Debug, Default)]
pub struct Asked {
    added: Vec<&'static str>,
    dropped: Vec<String>,
    /// Where `cap_drop` names all.
    all: Option<(String, usize)>,
}

impl Asked {
    /// Reads `cap_add`.
    ///
    /// # Errors
    /// `InvalidProfile` for one that no sandbox is given.
    pub fn add(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        for name in read::texts(at, node)? {
            self.added.push(check_capability(&name).map_err(|error| at.wrong(node.line, error.message()))?);
        }
        Ok(())
    }

    /// Reads `cap_drop`.
    ///
    /// # Errors
    /// `InvalidProfile` for one that is none, and for one that the supervisor cannot do without.
    pub fn drop(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        for name in read::texts(at, node)? {
            let upper = name.to_ascii_uppercase();
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if short == "ALL" {
                self.all = Some((at.path.clone(), node.line));
            } else if BASE_CAPABILITIES.contains(&short) {
                return Err(at
                    .wrong(node.line, format!("root inside cannot do without {short}, by which commands become other users"))
                    .with_help("`ALL` drops all of them from commands of other users, who have none anyway"));
            } else if KNOWN.contains(&short) {
                self.dropped.push(short.to_owned());
            } else {
                return Err(at.wrong(node.line, format!("{:?} is no capability", cut(&name))));
            }
        }
        Ok(())
    }

    /// What root inside has in the end, of what the profile gives, and what of it the report must tell.
    ///
    /// # Errors
    /// `InvalidProfile` where all are dropped and commands run as root.
    pub fn settle(self, at: &At<'_>, given: Vec<String>, is_root: bool) -> Result<(Vec<String>, Vec<String>)> {
        if let (Some((path, line)), true) = (&self.all, is_root) {
            let at = At { file: at.file, path: path.clone() };
            return Err(at.wrong(*line, format!("commands run as root here, who keeps {}", BASE_CAPABILITIES.join(", "))));
        }
        let stays = |name: &String| match BASE_CAPABILITIES.contains(&name.as_str()) {
            true => true,
            false => self.all.is_none() && !self.dropped.contains(name),
        };
        let mut kept: Vec<String> = given.into_iter().filter(stays).collect();
        let mut told = Vec::new();
        for name in self.added {
            if !kept.iter().any(|have| have == name) {
                told.push(format!("{}.cap_add: root inside also has {name}", at.path));
                kept.push(name.to_owned());
            }
        }
        Ok((kept, told))
    }
}
