//! The program: becomes the keeper and pid 1 of a container, or serves the machine it was started in.

pub mod canaries;
pub mod container;
pub mod engine;
pub mod files;
pub mod identity;
pub mod machine;
pub mod probe;
pub mod sys;

/// Runs the program: reads [`Setup`](crate::setup::Setup) from descriptor 0, sets the machine up, serves it.
/// Returns the exit status, one of the `EXIT_` constants of [`container`].
pub fn main() -> u8 {
    container::main()
}
