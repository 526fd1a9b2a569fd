//! Builds the supervisor for the target and hands its bytes to `src/supervisor.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "embed")]
    embed::main();
}

#[cfg(feature = "embed")]
mod embed {
    use std::env;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use sha2::{Digest, Sha256};

    /// Cargo puts this file into every package that it makes.
    const PACKED: &str = "Cargo.toml.orig";

    pub fn main() {
        println!("cargo::rerun-if-env-changed=TIERBOX_SUPERVISOR");
        println!("cargo::rerun-if-env-changed=DOCS_RS");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let program = program(&out);
        let code = match &program {
            Some(path) => embedded(path),
            None => constants("None", "None"),
        };
        fs::write(out.join("embedded.rs"), code).expect("OUT_DIR can be written");
    }

    /// The program to embed, built if need be. None for targets on which it does not run, and for documentation.
    fn program(out: &Path) -> Option<PathBuf> {
        let target_os = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
        if target_os != "linux" || env::var_os("DOCS_RS").is_some() {
            return None;
        }
        if let Some(path) = env::var_os("TIERBOX_SUPERVISOR").filter(|path| !path.is_empty()) {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            return Some(PathBuf::from(path));
        }
        Some(build(out))
    }

    fn constants(bytes: &str, sha256: &str) -> String {
        format!(
            "/// The program, a static executable for this host; `None` without feature `embed`, and where it cannot be built.\n\
         pub static BYTES: Option<&[u8]> = {bytes};\n\
         const SHA256: Option<[u8; 32]> = {sha256};\n"
        )
    }

    fn embedded(program: &Path) -> String {
        let bytes = fs::read(program).unwrap_or_else(|error| panic!("cannot read the supervisor {}: {error}", program.display()));
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        constants(&format!("Some(include_bytes!({:?}))", program.display().to_string()), &format!("Some({hash:?})"))
    }

    /// Where the supervisor's sources are. In a checkout they lie beside this package; what the dependency tells may come from another
    /// checkout that shares the target directory, since cargo does not run its build again for that.
    fn source() -> PathBuf {
        println!("cargo::rerun-if-env-changed=DEP_TIERBOX_SUPERVISOR_SOURCE");
        let own = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
        let sibling = own.with_file_name("tierbox-supervisor");
        if !own.join(PACKED).is_file() && sibling.join("Cargo.toml").is_file() {
            return sibling;
        }
        PathBuf::from(env::var_os("DEP_TIERBOX_SUPERVISOR_SOURCE").expect("tierbox-supervisor tells where it is"))
    }

    /// The supervisor's manifest, in the sources of the package `tierbox-supervisor` that this build depends on.
    ///
    /// In a checkout these are part of the workspace, whose lock file counts. A published package has a lock file of its own,
    /// and is built from a copy: it must belong to no workspace, and vendored sources lie in the one that vendors them.
    fn manifest(out: &Path) -> PathBuf {
        let source = source();
        let lock = source.ancestors().map(|dir| dir.join("Cargo.lock")).find(|path| path.is_file());
        for watched in [source.join("Cargo.toml"), source.join("src")].into_iter().chain(lock) {
            println!("cargo::rerun-if-changed={}", watched.display());
        }
        if !source.join(PACKED).is_file() {
            return source.join("Cargo.toml");
        }
        let copy = out.join("supervisor-package");
        copied(&source, &copy).unwrap_or_else(|error| panic!("cannot copy {}: {error}", source.display()))
    }

    fn copied(package: &Path, copy: &Path) -> std::io::Result<PathBuf> {
        let _ = fs::remove_dir_all(copy);
        copy_tree(package, copy)?;
        let manifest = copy.join("Cargo.toml");
        let text = fs::read_to_string(package.join("Cargo.toml"))?;
        fs::write(&manifest, format!("{text}\n[workspace]\n"))?;
        Ok(manifest)
    }

    fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                copy_tree(&entry.path(), &target)?;
            } else {
                // The contents alone: a registry's files may be read-only.
                fs::write(target, fs::read(entry.path())?)?;
            }
        }
        Ok(())
    }

    fn build(out: &Path) -> PathBuf {
        let target = env::var("TARGET").expect("cargo sets TARGET");
        // A target directory of its own: cargo holds a lock on the outer one while this runs.
        let target_dir = out.join("supervisor");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        clear_environment(&mut cargo);
        cargo
            .args(["build", "--locked", "--release", "--bin", "tierbox-supervisor", "--features", "tierbox-supervisor/runtime"])
            .args(["-p", "tierbox-supervisor", "--target", &target])
            .arg("--target-dir")
            .arg(&target_dir)
            .arg("--manifest-path")
            .arg(manifest(out))
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env("CARGO_PROFILE_RELEASE_LTO", "true")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
        let output = cargo.output().unwrap_or_else(|error| panic!("cannot run cargo to build the supervisor: {error}"));
        assert!(
            output.status.success(),
            "building the supervisor failed ({}). Set TIERBOX_SUPERVISOR to a prebuilt one to skip it.\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        target_dir.join(target).join("release/tierbox-supervisor")
    }

    /// Takes away what the outer build set for itself: flags, wrappers (clippy is one), profiles, its job server.
    fn clear_environment(cargo: &mut Command) {
        const NAMES: &[&str] = &[
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_BUILD_TARGET_DIR",
            "CARGO_TARGET_DIR",
            "RUSTC",
            "RUSTDOC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_BUILD_RUSTC_WRAPPER",
            "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_LINKER",
            "MAKEFLAGS",
            "MFLAGS",
            "CARGO_MAKEFLAGS",
            "CLIPPY_ARGS",
            "CLIPPY_CONF_DIR",
            "LLVM_PROFILE_FILE",
            "NEXTEST",
            "HOST",
            "TARGET",
            "OUT_DIR",
            "OPT_LEVEL",
            "DEBUG",
            "PROFILE",
            "NUM_JOBS",
        ];
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            let inherited = NAMES.contains(&text.as_ref())
                || ["CARGO_PROFILE_", "CARGO_FEATURE_", "CARGO_CFG_", "CARGO_PKG_"].iter().any(|start| text.starts_with(start))
                || (text.starts_with("CARGO_TARGET_") && text.ends_with("_RUSTFLAGS"));
            if inherited {
                cargo.env_remove(&name);
            }
        }
    }
}
