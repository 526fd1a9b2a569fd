//! The thread that reads every channel.
//!
//! It belongs to no caller's runtime: a command is cancelled and its end is heard of whatever became of the runtime in
//! which it was started. Callers write to channels themselves where they can, so most commands cost this thread one wake-up.

use std::sync::{Mutex, OnceLock, PoisonError};

use tierbox_core::{Error, Result};
use tokio::runtime::{Builder, Handle};

static DRIVER: OnceLock<Handle> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

/// The driver's runtime, started at the first call.
///
/// Streams for [`Channel::stream`](crate::Channel::stream) that depend on a reactor (a child's pipes, a TCP connection)
/// should be made inside it, so that they outlive the caller's runtime.
///
/// # Errors
/// `Io` if no thread or no event queue can be made.
pub fn handle() -> Result<&'static Handle> {
    if let Some(handle) = DRIVER.get() {
        return Ok(handle);
    }
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = DRIVER.get() {
        return Ok(handle);
    }
    let handle = start().map_err(|error| Error::io("start the driver thread", error))?;
    Ok(DRIVER.get_or_init(|| handle))
}

fn start() -> std::io::Result<Handle> {
    // Never dropped: where no thread is to be had, the caller may be inside another runtime, in which none may be.
    let runtime = std::mem::ManuallyDrop::new(Builder::new_current_thread().enable_all().build()?);
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("tierbox-driver".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}
