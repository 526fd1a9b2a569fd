//! Where profiles are found, and what they may be called.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tierbox_core::{Error, ErrorKind, Result};

use crate::hostpath;
use crate::inspect::{nearest, shown};
use crate::surroundings::Surroundings;

/// The profile that is used where none is named.
pub const DEFAULT_PROFILE: &str = "local";

/// The largest profile that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The ready profiles, which are part of the program.
const READY: &[(&str, &str)] = &[
    ("docker", include_str!("../ready/docker.toml")),
    ("docker-web", include_str!("../ready/docker-web.toml")),
    ("ec2", include_str!("../ready/ec2.toml")),
    ("ec2-closed", include_str!("../ready/ec2-closed.toml")),
    ("ec2-data-science", include_str!("../ready/ec2-data-science.toml")),
    ("ec2-default", include_str!("../ready/ec2-default.toml")),
    ("ec2-development", include_str!("../ready/ec2-development.toml")),
    ("ec2-education", include_str!("../ready/ec2-education.toml")),
    ("ec2-production", include_str!("../ready/ec2-production.toml")),
    ("ec2-web-development", include_str!("../ready/ec2-web-development.toml")),
    ("local", include_str!("../ready/local.toml")),
    ("local-browse", include_str!("../ready/local-browse.toml")),
    ("local-open", include_str!("../ready/local-open.toml")),
    ("local-process", include_str!("../ready/local-process.toml")),
    ("local-text", include_str!("../ready/local-text.toml")),
    ("local-tools", include_str!("../ready/local-tools.toml")),
    ("local-web", include_str!("../ready/local-web.toml")),
    ("remote-container", include_str!("../ready/remote-container.toml")),
    ("vagrant", include_str!("../ready/vagrant.toml")),
];

/// The text of a profile, and where it was found.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub name: String,
    /// The path that messages show.
    pub label: Arc<PathBuf>,
    pub text: String,
    /// Where relative paths begin.
    pub base: PathBuf,
    pub is_ready: bool,
}

/// Finds a profile by name or path.
pub(crate) fn find(name: &str, surroundings: &Surroundings) -> Result<Source> {
    if is_path(name) {
        let path = checked_path(name)?;
        return read(&surroundings.directory().join(path), path);
    }
    check_name(name)?;
    for directory in surroundings.profile_directories() {
        let path = directory.join(format!("{name}.toml"));
        if path.exists() {
            return read(&path, &path);
        }
    }
    ready(name).ok_or_else(|| unknown(name, surroundings))
}

/// Finds what a profile extends. Ready profiles extend ready profiles only.
pub(crate) fn find_extended(reference: &str, from: &Source, surroundings: &Surroundings) -> Result<Source> {
    if is_path(reference) && !from.is_ready {
        let path = from.base.join(checked_path(reference)?);
        let beside = reference.strip_prefix("./").unwrap_or(reference);
        let label = from.label.parent().map_or_else(|| path.clone(), |directory| directory.join(beside));
        return read(&path, &label);
    }
    if from.is_ready {
        return ready(reference).ok_or_else(|| unknown(reference, surroundings));
    }
    // A profile of the user's own that is named as the one it extends means the ready one.
    match find(reference, surroundings) {
        Ok(found) if found.label == from.label => ready(reference).ok_or_else(|| unknown(reference, surroundings)),
        other => other,
    }
}

/// The names of all profiles that can be found by name, sorted, each with its file if it has one.
pub(crate) fn names(surroundings: &Surroundings) -> Vec<(String, Option<PathBuf>)> {
    let mut names: Vec<(String, Option<PathBuf>)> = Vec::new();
    for directory in surroundings.profile_directories() {
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten().take(1000);
        for path in entries.map(|entry| entry.path()) {
            let stem = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".toml"));
            if let Some(stem) = stem.filter(|stem| check_name(stem).is_ok())
                && !names.iter().any(|(name, _)| name == stem)
            {
                names.push((stem.to_owned(), Some(path.clone())));
            }
        }
    }
    for (name, _) in READY {
        if !names.iter().any(|(known, _)| known == name) {
            names.push(((*name).to_owned(), None));
        }
    }
    names.sort();
    names
}

fn ready(name: &str) -> Option<Source> {
    let (name, text) = READY.iter().find(|(ready, _)| *ready == name)?;
    Some(Source {
        name: (*name).to_owned(),
        label: Arc::new(PathBuf::from(format!("<built-in>/{name}.toml"))),
        text: (*text).to_owned(),
        base: PathBuf::from("/"),
        is_ready: true,
    })
}

/// Reads a profile's file.
pub(crate) fn read(path: &Path, label: &Path) -> Result<Source> {
    let failed = |kind: ErrorKind, why: &str| Error::new(kind, "read profile", format!("{}: {why}", label.display()));
    let file = hostpath::open_regular(path).map_err(|why| {
        if path.exists() {
            return failed(ErrorKind::InvalidProfile, &why);
        }
        let help = format!("`tierbox config template > {}` makes one to start from", label.display());
        failed(ErrorKind::UnknownProfile, &format!("there is no such file ({why})")).with_help(help)
    })?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| failed(ErrorKind::Io, &error.to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(ErrorKind::InvalidProfile, "it is larger than 1MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        failed(ErrorKind::InvalidProfile, &format!("line {line} is not UTF-8"))
    })?;
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let base = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    Ok(Source { name, label: Arc::new(label.to_path_buf()), text, base, is_ready: false })
}

/// Whether a profile is named by its path.
fn is_path(name: &str) -> bool {
    name.contains('/') || name.ends_with(".toml")
}

fn checked_path(name: &str) -> Result<&Path> {
    if name.len() > 4096 || name.contains(char::is_control) {
        return Err(hostile(name));
    }
    Ok(Path::new(name))
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let starts_well = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if starts_well && name.len() <= 64 && name.bytes().all(plain) { Ok(()) } else { Err(hostile(name)) }
}

fn hostile(name: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "find profile", format!("{} is not a profile's name", shown(name)))
        .with_help("a name has letters, digits, `-`, `_` and `.`, at most 64; a path contains `/` or ends in .toml")
}

fn unknown(name: &str, surroundings: &Surroundings) -> Error {
    let names = names(surroundings);
    let list: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
    let help = match nearest(name, list.iter().copied()) {
        Some(near) => format!("did you mean {near}? A file is named by its path, such as ./{name}.toml"),
        None => format!("a file is named by its path, such as ./{name}.toml"),
    };
    let message = format!("there is no profile {}; there is: {}", shown(name), list.join(", "));
    Error::new(ErrorKind::UnknownProfile, "find profile", message).with_help(help)
}
