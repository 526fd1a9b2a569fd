//! Holds the tests that are in the workspace's `tests/` directory: suites that need several crates at once.
#![forbid(unsafe_code)]
