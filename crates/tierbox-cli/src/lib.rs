//! The tierbox command line, as a program and as a library.
#![deny(missing_docs)]
