//! The portable build: without the local backend nothing may need Linux's system calls.
//!
//! The question is asked for a target that is not Linux. On Linux itself the lease journal's file locks come through
//! rustix, which uses the system calls of whatever Unix it is built for.

use crate::cargo;

/// Crates that only the local backend and the supervisor's program may bring in.
const LINUX_ONLY: &[&str] = &["tierbox-local", "landlock", "seccompiler", "caps", "linux-raw-sys"];

/// A target that is not Linux.
const ELSEWHERE: &str = "aarch64-apple-darwin";

/// Asserts with `cargo tree` that the facade with the engines that work everywhere, and without the local backend, has none of them.
pub fn run() -> Result<(), String> {
    let output = cargo()
        .args([
            "tree",
            "--package",
            "tierbox",
            "--no-default-features",
            "--features",
            "docker,vagrant",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--locked",
        ])
        .args(["--target", ELSEWHERE])
        .output()
        .map_err(|error| format!("cargo tree could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo tree failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<&&str> =
        LINUX_ONLY.iter().filter(|name| tree.lines().any(|line| line.split(' ').next() == Some(**name))).collect();
    if !tree.contains("tierbox-core") {
        return Err("cargo tree did not list tierbox-core: nothing was checked".to_owned());
    }
    if found.is_empty() {
        println!("xtask: a build without the local backend needs no Linux system-call crate");
        Ok(())
    } else {
        Err(format!("a build without the local backend needs {found:?}:\n{tree}"))
    }
}
