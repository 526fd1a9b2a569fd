//! The conformance suite and the escape corpus of tierbox, for any backend.
//!
//! A backend proves itself in a test of a few lines, with `harness = false`:
//!
//! ```no_run
//! use std::sync::Arc;
//! use tierbox_testkit::{Suite, minimum, run};
//! # fn my_factory() -> Arc<dyn tierbox_testkit::Factory> { unimplemented!() }
//!
//! let suite = Suite::conformance(minimum::local_process(), my_factory());
//! run(&[suite]).exit();
//! ```
//!
//! What is tested follows from capabilities, both ways: what is declared must work, and what is not declared must be refused
//! as `Unsupported` before any side effect. The set that decides which tests are listed is fixed per backend in
//! [`minimum`], so a backend that declares less does not pass more, and listing starts no engine.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod attack;
mod case;
pub mod conformance;
pub mod escape;
mod factory;
mod lease;
pub mod minimum;
pub mod mutant;
pub mod plain;
mod runner;
mod subject;
#[cfg(target_os = "linux")]
pub mod world;

pub use case::{Case, Fail, Need, Verdict, skip};
pub use factory::BackendFactory;
pub use runner::{Suite, run, run_with, skipped};
pub use subject::{Absence, Adjust, Factory, Mark, Subject};
