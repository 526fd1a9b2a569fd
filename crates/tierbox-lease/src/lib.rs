//! The lease journal: what was made, by whom, and who still wants it.
//!
//! A lease is written before the first resource is made and removed after the last one is gone, so that whatever happens
//! to the program in between, the next `cleanup` knows what is left. Every lease is one file, `leases/<id>.json` in the
//! state directory, and a lease with the hold `process` stays locked (`flock`) for its owner's life: a free lock means a
//! dead owner, in whatever pid namespace it lived. What the file says about the owner only describes it.
//!
//! The file is a list of JSON lines. The first is the record; each later one is a change. A change is one append, so a
//! crash in the middle of it costs that change and nothing older: the reader ignores a last line without its newline.
//! Since a resource is recorded before it is made, the lost change never names something that exists.
//!
//! Nothing is synced to the disk: what tierbox makes on this host does not outlive a crash of the host either.
//!
//! ```
//! use tierbox_lease::{Journal, NewLease};
//! use tierbox_core::{LeaseHandle, Resource};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("state");
//! let journal = Journal::at(&path)?;
//! let lease = journal.create(NewLease::new("local", "local", "T0.H1.N2"))?;
//! lease.record(&[Resource { kind: "directory".into(), id: "/run/example".into() }])?;
//! assert!(journal.get(lease.id())?.locked);
//! lease.remove()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod id;
mod journal;
mod lease;
mod lines;
mod lock;
mod owner;
mod reaper;
mod slots;
mod state;
mod tree;
mod unpublished;

pub use id::{check_id, is_shaped_like_id};
pub use journal::{Entry, Foreign, Journal, Listing, NewLease, Standing};
pub use lease::Lease;
pub use reaper::{CleanupOptions, CleanupReport, cleanup, cleanup_one, cleanup_with};
pub use slots::{Slot, Slots};
pub use state::StateDir;
pub use tree::remove_tree;
