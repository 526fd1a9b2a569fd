//! The cases.

mod calls;
mod launch;
mod world;

/// All of them.
pub fn all() -> Vec<libtest_mimic::Trial> {
    [calls::all(), launch::all()].into_iter().flatten().collect()
}
