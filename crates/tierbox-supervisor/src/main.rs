//! `tierbox-supervisor`: the program inside a sandbox. See the library for what it does.
//!
//! Started by the C library directly: what Rust does before `main` (a guard for the stack, an alternate stack for its overflow)
//! takes a tenth of a millisecond, and a sandbox starts in three.
#![deny(missing_docs)]
#![no_main]

/// The entry point. Arguments are not used: everything comes through descriptor 0.
// SAFETY: the C library calls the symbol `main` with this signature, once, on the only thread.
#[unsafe(no_mangle)]
pub extern "C" fn main(_count: std::ffi::c_int, _arguments: *const *const std::ffi::c_char) -> std::ffi::c_int {
    tierbox_supervisor::runtime::main().into()
}
