//! Commands: the host's half of one, and the handle on it.

mod call;
mod framed;
mod handle;
mod launch;
#[cfg(all(target_os = "linux", feature = "descriptors"))]
mod passed;

pub(crate) use call::{Ending, completed};
pub(crate) use framed::attach;
pub(crate) use handle::{Handle, wire_reason};
pub(crate) use launch::{NewExec, launch, new_id};
