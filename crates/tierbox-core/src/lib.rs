//! The contract of tierbox: what a tier is, what a backend promises, and what happens to a command.
//!
//! This crate knows no backend and no file format. A backend implements [`Backend`] (a lifecycle), and returns an
//! [`Environment`] of one or more [`Sandbox`]es (a way in). Everything convenient lives in [`SandboxExt`], which nobody
//! implements.
//!
//! ```
//! use tierbox_core::Tier;
//!
//! let tier: Tier = "T0.H1.N2".parse()?;
//! assert!(tier.is_at_least("T0.H0.N0".parse()?));
//! # Ok::<(), tierbox_core::Error>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod admit;
mod agent;
mod approve;
mod audit;
mod backend;
pub mod base64;
mod capability;
mod code;
mod egress;
mod elf;
mod error;
mod exec;
mod ext;
mod files;
mod keys;
mod lease;
mod limits;
mod pattern;
mod policy;
mod registry;
mod report;
mod rules;
mod sandbox;
mod secrets;
mod shown;
mod sockets;
mod tier;
mod twin;
mod written;

pub use admit::malformed_path;
pub use agent::{AgentSettings, Approval, ApprovalRule, Preset, ProgramRule, Sensitive};
pub use approve::{Action, Approver, Consent};
pub use audit::{Audit, AuditData, AuditEntry, AuditFile, AuditOperation, AuditOutcome, AuditSpill, Principal, audit_text};
pub use backend::{
    Backend, Check, CheckStatus, CopyIn, DestroyReport, EnvironmentSpec, MountSpec, NetworkSpec, Progress, Silent, Verify,
};
pub use capability::{Capabilities, KillDomain, LimitCapabilities, Locality, MountSupport, UserSupport};
pub use code::{CodeSettings, Runtime};
pub use egress::{AllowRule, AllowScheme, Decision, Protocol, Verdict, host_name};
pub use elf::elf_loader;
pub use error::{Error, ErrorKind, Result};
pub use exec::{
    Captured, Completed, Confinement, ExecHandle, ExecId, ExecInfo, ExecRequest, ExecResult, ExecState, KillReason, Leftovers,
    NotStartedCause, OnExceed, Outcome, OutputLimit, PtySize, Signal, Stdin, Usage,
};
pub use ext::{SandboxExt, collect};
pub use files::{ByteReader, ByteStream, ByteWriter, DirEntry, FileKind, FileMeta, GuestPath, ReadOptions, WriteOptions};
pub use keys::{holds_keys, homes_of_people};
pub use lease::{Hold, LeaseHandle, LeaseRecord, Owner, Resource};
pub use limits::{Enforce, Limit, Limits};
pub use pattern::fits;
pub use policy::AgentPolicy;
pub use registry::{BackendEntry, Registry};
pub use report::{Applied, LimitReport, Mechanism, Report};
pub use rules::is_harmless_variable;
pub use sandbox::{Connection, DialTarget, Environment, Sandbox};
pub use secrets::{Masking, Secrets, looks_like_a_secret, names_a_secret};
pub use shown::is_deceptive;
pub use sockets::{ENGINE_SOCKETS, engine_socket_below};
pub use tier::{HostIsolation, Network, Tier, Tooling};
pub use twin::{CanaryName, Lifted, ShownPath};

#[doc(hidden)]
pub use inventory;
