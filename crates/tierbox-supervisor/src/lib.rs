//! The program inside a tierbox sandbox, and the protocol it speaks.
//!
//! One supervisor runs per machine. It launches commands, streams them, reaps and kills them, and serves files, over one
//! byte stream: a socket on this host, or stdin and stdout of a process started in a container or VM. The library half
//! ([`protocol`], [`setup`], [`wire`]) is synchronous, has no dependencies, and is what the host side uses. The program
//! half (feature `runtime`, Linux only) is the one place in tierbox that talks to the kernel directly.
//!
//! Both sides treat what they read as hostile: every field is bounded, and a malformed frame closes the channel.
#![deny(missing_docs)]

pub mod archive;
pub mod calls;
#[cfg(target_os = "linux")]
pub mod canary;
pub mod protocol;
pub mod setup;
pub mod wire;

#[cfg(all(target_os = "linux", feature = "runtime"))]
pub mod runtime;
