//! What a lease remembers of an environment.

use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, LeaseRecord, Result};

use crate::aws::Account;
use crate::task::Task;

/// What a lease remembers. No secret is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Where it is.
    pub(crate) account: Account,
    /// Its bucket.
    pub(crate) bucket: String,
    /// What its keys begin with, the environment's own part included.
    pub(crate) prefix: String,
    /// The machines that were made.
    pub(crate) machines: Vec<Machine>,
    /// The instance that is its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<String>,
    /// The account that it is in, if AWS told: with credentials of another one it looks as if it were gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    /// Its task on an instance that others made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<Task>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Its name in the environment.
    pub(crate) name: String,
    /// The instance's id.
    pub(crate) instance: String,
}

impl Memory {
    /// Reads it from a lease; `None` if nothing was begun under that lease.
    pub(crate) fn of(lease: &LeaseRecord) -> Option<Self> {
        Self::deserialize(&lease.data).ok()
    }

    /// As the lease keeps it.
    ///
    /// # Errors
    /// `Internal` if it has no JSON form.
    pub(crate) fn to_data(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|error| Error::new(ErrorKind::Internal, "write lease", error.to_string()))
    }
}
