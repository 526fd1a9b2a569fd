//! mcp
#![allow(missing_docs)]
