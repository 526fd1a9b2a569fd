//! An MCP server that gives a model one sandbox: code tasks, commands, files. What it offers, and what it lets through, is what
//! the tier and the approvals of the profile let the agent do.
//!
//! | tool | at | what |
//! |---|---|---|
//! | `run_code` | T0 | runs code in a language, in a directory of its own |
//! | `get_files` | T0 | the files of a task |
//! | `cleanup` | T0 | removes old tasks |
//! | `status` | T0, T1 | runtimes, tasks, disk, and the tier |
//! | `exec` | T0, T1 | runs a program; at T1 a named one |
//! | `read_file`, `list_directory` | T0, T1 | looks at files |
//! | `write_file` | T0 | writes a file |
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod arguments;
mod call;
mod lines;
mod offer;
mod server;

pub use server::{Server, serve};
