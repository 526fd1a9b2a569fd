//! The cases.

mod attach;
mod calls;
mod crash;
mod faults;
mod files;
mod launch;
mod network;
mod role;
mod world;

pub use crash::{be_harness, is_harness};

/// All of them.
pub fn all() -> Vec<libtest_mimic::Trial> {
    [attach::all(), calls::all(), crash::all(), faults::all(), files::all(), launch::all(), network::all(), role::all()]
        .into_iter()
        .flatten()
        .collect()
}
