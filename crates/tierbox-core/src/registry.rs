//! Backends by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Backend, Error, ErrorKind, Result};

/// A backend that registers itself. A crate submits one with [`register_backend!`](crate::register_backend).
///
/// Only linked crates register: a crate that is merely listed in `Cargo.toml` must be named in code (`use tierbox_x as _;`).
pub struct BackendEntry {
    /// Makes the backend.
    pub make: fn() -> Arc<dyn Backend>,
}

inventory::collect!(BackendEntry);

/// Registers a backend with every program that links the calling crate.
///
/// ```ignore
/// tierbox_core::register_backend!(|| std::sync::Arc::new(MyBackend::new()));
/// ```
#[macro_export]
macro_rules! register_backend {
    ($make:expr) => {
        $crate::inventory::submit! { $crate::BackendEntry { make: $make } }
    };
}

/// A set of backends by name.
#[derive(Clone, Default)]
pub struct Registry {
    backends: BTreeMap<&'static str, Arc<dyn Backend>>,
}

impl Registry {
    /// No backend.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Every backend that is linked into this program.
    pub fn linked() -> Self {
        let mut registry = Self::default();
        for entry in inventory::iter::<BackendEntry> {
            registry.register((entry.make)());
        }
        registry
    }

    /// Adds a backend, in place of one of the same name.
    pub fn register(&mut self, backend: Arc<dyn Backend>) -> &mut Self {
        self.backends.insert(backend.name(), backend);
        self
    }

    /// The names there are, sorted.
    pub fn names(&self) -> Vec<&'static str> {
        self.backends.keys().copied().collect()
    }

    /// Every backend, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Backend>> {
        self.backends.values()
    }

    /// A backend by name.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownBackend`], listing what there is.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Backend>> {
        self.backends.get(name).cloned().ok_or_else(|| {
            let names = self.names();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let shown: String = name.chars().take(40).collect();
            Error::new(ErrorKind::UnknownBackend, "find backend", format!("{shown:?} is not compiled in; there is: {there}"))
                .with_help("check the profile's `backend`, or build tierbox with that backend's cargo feature")
        })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
