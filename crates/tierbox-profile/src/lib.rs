//! Profiles of tierbox: layers, provenance, validation, schema.
#![deny(missing_docs)]
