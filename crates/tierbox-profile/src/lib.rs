//! Profiles of tierbox: TOML files that choose a backend and state a tier, with the layers above them.
//!
//! Layers, weakest first: built-in defaults; the profile, above what it `extends`; the user's file
//! (`$XDG_CONFIG_HOME/tierbox/config.toml`, never the working directory); environment variables
//! (`TIERBOX__SECTION__KEY_NAME`); `--set section.key=value`; values set in code ([`Overrides`]). Layers above the
//! profile may tighten its tier, limits, network, mounts, files and users. Weakening needs
//! [`Loader::allow_weaker`] or code, and is listed in the environment's report; a backend's own settings count as
//! weakening unless its schema marks them `x-tunable`.
//!
//! A profile names secrets, it never holds them: `env:NAME` or `file:PATH`, where a value is known to be a secret.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod agent;
mod builder;
mod check;
mod diagnostic;
mod document;
mod find;
mod groups;
mod hostpath;
mod inspect;
mod layer;
mod loader;
mod node;
mod overlay;
mod profile;
mod schema;
mod secret;
mod settings;
mod surroundings;
mod template;
pub mod units;
mod weaken;

pub use builder::{Overrides, ProfileBuilder};
pub use diagnostic::{Diagnostic, Severity};
pub use find::DEFAULT_PROFILE;
pub use hostpath::check_exposed;
pub use layer::{Layer, Provenance};
pub use loader::{Listed, Loader, Summary};
pub use node::Place;
pub use overlay::PLAIN_VARIABLES;
pub use profile::{Profile, ShownValue};
pub use schema::{host_paths, schema};
pub use secret::{Secret, SecretRef};
pub use surroundings::Surroundings;
pub use template::template;
pub use weaken::Weakening;
