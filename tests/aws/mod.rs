//! The cases.

mod attach;
mod calls;
mod codes;
mod crash;
mod faults;
mod figures;
mod files;
mod infra;
mod launch;
mod left;
mod named;
mod network;
mod role;
mod settings;
mod setup;
mod updates;
mod verified;
mod world;

pub use crash::{be_harness, is_harness};

/// All of them.
pub fn all() -> Vec<libtest_mimic::Trial> {
    [
        attach::all(),
        calls::all(),
        codes::all(),
        crash::all(),
        faults::all(),
        figures::all(),
        files::all(),
        infra::all(),
        launch::all(),
        left::all(),
        named::all(),
        network::all(),
        role::all(),
        settings::all(),
        setup::all(),
        updates::all(),
        verified::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
