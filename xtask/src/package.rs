//! What is published must build alone: without the checkout, from the files that cargo packs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{cargo, check, root};

/// The program that stands for somebody who depends on the packages.
const CONSUMER: &str = "\
//! Builds only if the supervisor is embedded.
const _: () = assert!(tierbox_guest::supervisor::BYTES.is_some());
fn main() {}
";

/// Part of the path of a package's sources that a supervisor is built from (`crates/tierbox-guest/build.rs`).
const COPY: &str = "/supervisor-package/";

/// Packs what is published, and builds it outside the workspace.
pub fn run() -> Result<(), String> {
    // Always the same: cargo would keep what it built for each other place.
    let target = built_in()?;
    let directory = target.join("tmp").join("packages");
    let _ = fs::remove_dir_all(&directory);
    make_directory(&directory)?;
    let outcome = pack_and_build(&directory, &target);
    let _ = fs::remove_dir_all(&directory);
    outcome?;
    println!("xtask: the packages build alone, with the supervisor from its own package");
    Ok(())
}

/// Where cargo builds, as cargo itself would write it.
fn built_in() -> Result<PathBuf, String> {
    let target = crate::target();
    make_directory(&target)?;
    target.canonicalize().map_err(|error| format!("{}: {error}", target.display()))
}

fn pack_and_build(directory: &Path, target: &Path) -> Result<(), String> {
    let packed = directory.join("packed");
    let unpacked = directory.join("unpacked");
    let mut pack = cargo();
    // Each package is built below as others will build it, which is more than cargo's own check does.
    pack.args(["package", "--workspace", "--no-verify", "--allow-dirty", "--locked", "--quiet", "--target-dir"]).arg(&packed);
    for private in ["tierbox-bench", "tierbox-tests", "xtask"] {
        pack.args(["--exclude", private]);
    }
    check(&mut pack)?;
    make_directory(&unpacked)?;
    for file in list(&packed.join("package"))?.iter().filter(|path| path.extension().is_some_and(|end| end == "crate")) {
        // Newer than what cargo built of it before: the times in there never change.
        check(Command::new("tar").args(["-m", "-xzf"]).arg(file).arg("-C").arg(&unpacked))?;
    }
    let consumer = directory.join("consumer");
    write_consumer(&consumer, &list(&unpacked)?)?;
    // An earlier run's are not to be taken for what is built now.
    for (list, _) in supervisors(target)? {
        fs::remove_file(&list).map_err(|error| format!("{}: {error}", list.display()))?;
    }
    // What others wrote is checked only once: with the same features and profile as for the documentation.
    check(cargo().current_dir(&consumer).args(["check", "--quiet", "--target-dir"]).arg(target))?;
    built_from(&unpacked, target)
}

/// A package that depends on all the others with all features, each from its unpacked directory, with the versions of the workspace's
/// lock file and its profiles.
fn write_consumer(consumer: &Path, packages: &[PathBuf]) -> Result<(), String> {
    let mut dependencies = String::new();
    let mut patches = String::new();
    for path in packages {
        let directory = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (name, version) = directory.rsplit_once('-').ok_or_else(|| format!("{directory} is not NAME-VERSION"))?;
        let features = section(&read(&path.join("Cargo.toml"))?, "features");
        let features: Vec<&str> = features.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
        dependencies.push_str(&format!("{name} = {{ version = \"={version}\", features = {features:?} }}\n"));
        patches.push_str(&format!("{name} = {{ path = {path:?} }}\n"));
    }
    let package = "[package]\nname = \"consumer\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n";
    let own = read(&root().join("Cargo.toml"))?;
    let profiles = ["profile.dev", "profile.dev.package.\"*\""].map(|name| format!("[{name}]\n{}", section(&own, name))).concat();
    let manifest = format!("{package}\n[dependencies]\n{dependencies}\n[patch.crates-io]\n{patches}\n{profiles}");
    make_directory(&consumer.join("src"))?;
    write(&consumer.join("Cargo.toml"), &manifest)?;
    write(&consumer.join("src/main.rs"), CONSUMER)?;
    fs::copy(root().join("Cargo.lock"), consumer.join("Cargo.lock")).map_err(|error| format!("Cargo.lock: {error}"))?;
    Ok(())
}

/// The lines of a manifest below a header.
fn section(manifest: &str, name: &str) -> String {
    let header = format!("[{name}]");
    let lines = manifest.lines().skip_while(|line| *line != header).skip(1).take_while(|line| !line.starts_with('['));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Asserts that the supervisor's build read nothing of the checkout, by the list of its sources that cargo wrote beside it.
fn built_from(unpacked: &Path, target: &Path) -> Result<(), String> {
    let supervisors = supervisors(target)?;
    let [(_, text)] = supervisors.as_slice() else {
        return Err(format!("{} supervisors were built from its package, below {}", supervisors.len(), target.display()));
    };
    let sources: Vec<&str> = text.split_whitespace().filter(|word| word.ends_with(".rs")).collect();
    let same = |source: &&str| {
        let inner = source.split_once(COPY).map(|(_, inner)| inner);
        let packed =
            list(unpacked).unwrap_or_default().into_iter().filter(|path| path.to_string_lossy().contains("tierbox-supervisor-"));
        inner.is_some_and(|inner| packed.into_iter().any(|package| fs::read(package.join(inner)).ok() == fs::read(source).ok()))
    };
    match sources.iter().find(|source| !same(source)) {
        _ if sources.is_empty() => Err("cargo listed no source of the supervisor: nothing was checked".to_owned()),
        Some(foreign) => Err(format!("the embedded supervisor was built from {foreign}, which is no part of its package")),
        None => Ok(()),
    }
}

/// The lists of sources of supervisors that were built from the copy of a package. The checkout's own builds left others.
fn supervisors(target: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let lists = find(target, "tierbox-supervisor.d")?.into_iter().map(|path| read(&path).map(|text| (path, text)));
    let all = lists.collect::<Result<Vec<_>, _>>()?;
    Ok(all.into_iter().filter(|(_, text)| text.contains(COPY)).collect())
}

/// The files of this name below a directory.
fn find(directory: &Path, name: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for path in list(directory)? {
        if path.is_dir() && !path.is_symlink() {
            found.extend(find(&path, name)?);
        } else if path.file_name().is_some_and(|file| file == name) && path.ancestors().any(|dir| dir.ends_with("out/supervisor"))
        {
            found.push(path);
        }
    }
    Ok(found)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{} cannot be listed: {error}", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn make_directory(path: &Path) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|error| format!("{} cannot be made: {error}", path.display()))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))
}
