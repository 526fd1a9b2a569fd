//! Leases as data: a row written before a resource is made, and removed after it is gone. The journal that keeps
//! them is `tierbox-lease`.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::Result;

/// Who or what keeps an environment alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// A living process that holds the lease's file locked.
    Process,
    /// Nobody, until this time; renewable.
    Until(SystemTime),
    /// Nobody; it ends only by `down`, `cleanup --kept` or its lifetime.
    Kept,
}

/// The process that made a lease. It describes; only the lock decides whether the owner lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process id, in `pid_namespace`.
    pub pid: u32,
    /// Start time in clock ticks since boot, from `/proc/<pid>/stat`; 0 where unknown.
    pub start_ticks: u64,
    /// The host's boot id; empty where unknown.
    pub boot_id: String,
    /// The inode of its pid namespace; 0 where unknown.
    pub pid_namespace: u64,
    /// Its user id.
    pub uid: u32,
}

/// Something that a backend made and that `destroy` must remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// What it is, in the backend's words: `cgroup`, `directory`, `vm`, …
    pub kind: String,
    /// Its identity: a path, an instance id, a domain's name.
    pub id: String,
}

/// A lease as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The environment's id: lower-case letters, digits and dashes.
    pub id: String,
    /// A name given by a person, unique among living environments.
    pub name: Option<String>,
    /// The backend's name.
    pub backend: String,
    /// The profile's name.
    pub profile: String,
    /// The tier, as written.
    pub tier: String,
    /// When it was made.
    pub created: SystemTime,
    /// When its lifetime ends, whatever its hold.
    pub expires: Option<SystemTime>,
    /// Who keeps it.
    pub hold: Hold,
    /// Who made it.
    pub owner: Owner,
    /// What was made, in order.
    pub resources: Vec<Resource>,
    /// What the backend needs to find or destroy it again (never a secret).
    pub data: serde_json::Value,
}

impl LeaseRecord {
    /// Its age.
    pub fn age(&self) -> Duration {
        SystemTime::now().duration_since(self.created).unwrap_or_default()
    }

    /// The ids of the resources of one kind, oldest first.
    pub fn resources_of<'a>(&'a self, kind: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.resources.iter().filter(move |resource| resource.kind == kind).map(|resource| resource.id.as_str())
    }
}

/// A lease in the hands of the backend that starts an environment.
pub trait LeaseHandle: Send + Sync {
    /// The environment's id.
    fn id(&self) -> &str;

    /// The directory for this environment's own files on the host (sockets, logs), mode 0700. Made on first use, removed
    /// with the lease.
    ///
    /// # Errors
    /// What the file system says.
    fn directory(&self) -> Result<std::path::PathBuf>;

    /// Writes down resources *before* they are made.
    ///
    /// # Errors
    /// What the file system says; the resource must then not be made.
    fn record(&self, resources: &[Resource]) -> Result<()>;

    /// Keeps data that [`Backend::attach`](crate::Backend::attach) and [`Backend::destroy`](crate::Backend::destroy) need.
    ///
    /// # Errors
    /// What the file system says.
    fn set_data(&self, data: serde_json::Value) -> Result<()>;
}
