//! The cases.

mod attach;
mod calls;
mod crash;
mod faults;
mod figures;
mod files;
mod launch;
mod left;
mod named;
mod network;
mod role;
mod setup;
mod verified;
mod world;

pub use crash::{be_harness, is_harness};

/// All of them.
pub fn all() -> Vec<libtest_mimic::Trial> {
    [
        attach::all(),
        calls::all(),
        crash::all(),
        faults::all(),
        figures::all(),
        files::all(),
        launch::all(),
        left::all(),
        named::all(),
        network::all(),
        role::all(),
        setup::all(),
        verified::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
