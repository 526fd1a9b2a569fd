//! Who a command or a file worker is.

use std::io;

use crate::setup::Agent;

/// A user inside the machine, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name, or the number as text where it has none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: Vec<u8>,
    /// Login shell.
    pub shell: Vec<u8>,
}

impl Identity {
    /// The machine's default user.
    pub fn agent(agent: &Agent) -> Self {
        Self {
            name: agent.name.clone(),
            uid: agent.uid,
            gid: agent.gid,
            groups: vec![agent.gid],
            home: agent.home.0.clone(),
            shell: b"/bin/sh".to_vec(),
        }
    }

    /// Becomes this user for good: groups, ids, no capability (root keeps the bounding set's on its next exec).
    ///
    /// Makes only async-signal-safe calls, so it may run between fork and exec.
    ///
    /// # Errors
    /// The first call that failed.
    pub fn assume(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(38))
    }
}
