//! The `tierbox` program, as a release builds it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::bench::Failure;

/// Builds the program in release mode, once, and returns its path. `TIERBOX_BENCH_PROGRAM` names another.
pub(crate) fn path() -> Result<PathBuf, Failure> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("TIERBOX_BENCH_PROGRAM") {
        return Ok(path.into());
    }
    let built = BUILT.get_or_init(|| {
        let target = target_directory().map_err(|failure| failure.to_string())?;
        build(&target).map_err(|failure| failure.to_string())?;
        Ok(target.join("release/tierbox"))
    });
    Ok(built.clone()?)
}

/// The time of a build of the program into an empty directory.
pub(crate) fn clean_build(directory: &Path) -> Result<Duration, Failure> {
    let start = Instant::now();
    build(directory)?;
    Ok(start.elapsed())
}

fn build(target: &Path) -> Result<(), Failure> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--quiet", "--locked", "--package", "tierbox-cli", "--target-dir"]).arg(target);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let status = command.status().map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("tierbox-cli does not build: {status}").into()) }
}

/// The target directory that this program lies in.
fn target_directory() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe()?;
    program.parent().and_then(Path::parent).map(Path::to_path_buf).ok_or_else(|| "the program lies in no target directory".into())
}
