//! Tasks for people who work on tierbox: `cargo xtask test`.
fn main() {}
