//! Compiles the attack program, which runs inside sandboxes, to one static executable.
//!
//! It has no dependencies but the standard library, so one call of the compiler is enough, and no nested cargo is needed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=attack");
    println!("cargo::rerun-if-env-changed=TIERBOX_ATTACK");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("tierbox-attack");
    if let Some(prebuilt) = env::var_os("TIERBOX_ATTACK") {
        std::fs::copy(prebuilt, &out).expect("TIERBOX_ATTACK names a file that can be read");
        return;
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        std::fs::write(&out, b"").expect("OUT_DIR can be written");
        return;
    }
    // A machine without a static C library still gets a program that runs on hosts like itself.
    if !compile(&out, &["-C", "target-feature=+crt-static", "-C", "relocation-model=static"]) {
        println!("cargo::warning=no static C library here: the attack program is linked dynamically");
        assert!(compile(&out, &[]), "the attack program does not compile");
    }
}

fn compile(out: &Path, flags: &[&str]) -> bool {
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "tierbox_attack", "--target", &target]);
    command.args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols", "-C", "debuginfo=0"]);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut flag = std::ffi::OsString::from("linker=");
        flag.push(linker);
        command.arg("-C").arg(flag);
    }
    command.args(flags).arg("-o").arg(out).arg("attack/main.rs");
    command.status().is_ok_and(|status| status.success())
}
