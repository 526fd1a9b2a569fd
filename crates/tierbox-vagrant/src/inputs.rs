//! What went into machines besides the Vagrantfile itself, so that kept ones are not taken for what would be made today: files that it
//! loads and provisioners read, the box, and variables that it looks at.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tierbox_core::{Error, Result};

use crate::BACKEND;
use crate::place::Place;
use crate::settings::invalid;

/// The most files beside a Vagrantfile of which a pool keeps watch.
const MAX_FILES: usize = 4096;

/// What was read, as it was then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    files: Vec<(PathBuf, Option<u64>)>,
    variables: Vec<(String, Option<u64>)>,
}

/// As the evaluation of the Vagrantfile tells it.
#[derive(Deserialize)]
struct Told {
    files: Vec<PathBuf>,
    variables: Vec<String>,
}

impl Inputs {
    /// What the evaluation of a Vagrantfile used; `None` if it did not tell.
    pub fn of(place: &Place, env: &BTreeMap<String, String>) -> Option<Self> {
        let told: Told = serde_json::from_slice(&std::fs::read(place.file("inputs.json")).ok()?).ok()?;
        Some(Self {
            files: told.files.into_iter().map(|path| (path.clone(), state(&path))).collect(),
            variables: told.variables.into_iter().map(|name| (name.clone(), value(&name, env))).collect(),
        })
    }

    /// Whether all of it is as it was.
    pub fn are_unchanged(&self, env: &BTreeMap<String, String>) -> bool {
        self.files.iter().all(|(path, then)| state(path) == *then)
            && self.variables.iter().all(|(name, then)| value(name, env) == *then)
    }
}

fn hash(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// A variable as Vagrant gets it.
fn value(name: &str, env: &BTreeMap<String, String>) -> Option<u64> {
    let given = env.get(name).map(std::ffi::OsString::from);
    given.or_else(|| std::env::var_os(name)).map(hash)
}

/// What tells a file from an earlier one of that name.
fn state(path: &Path) -> Option<u64> {
    let found = std::fs::metadata(path).ok()?;
    Some(hash((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec(), found.mode())))
}

/// The same for everything in a directory, except what version control and Vagrant keep there.
///
/// # Errors
/// `InvalidProfile` if that is too much; what the file system says.
pub fn tree(directory: &Path) -> Result<u64> {
    let failed = |error| Error::io("look at the files beside the Vagrantfile", error).with_backend(BACKEND);
    let (mut found, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.ends_with(".git") || path.ends_with(".vagrant") {
                continue;
            }
            if found.len() == MAX_FILES {
                return Err(invalid(format!("vagrant.pool: there are more than {MAX_FILES} files beside the Vagrantfile"))
                    .with_help("put the Vagrantfile into a directory of its own, or leave vagrant.pool out"));
            }
            // Not through links: what they lead to is seen below.
            if path.symlink_metadata().map_err(failed)?.is_dir() {
                left.push(path.clone());
            }
            found.push((state(&path).filter(|_| !path.is_dir()), path));
        }
    }
    found.sort();
    Ok(hash(found))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_script_beside_the_vagrantfile_counts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("scripts/.git")).unwrap();
        let script = dir.path().join("scripts/setup.sh");
        std::fs::write(&script, "one").unwrap();
        let before = tree(dir.path()).unwrap();
        std::fs::write(dir.path().join("scripts/.git/index"), "x").unwrap();
        assert_eq!(tree(dir.path()).unwrap(), before);
        std::fs::write(&script, "other").unwrap();
        let changed = tree(dir.path()).unwrap();
        assert_ne!(changed, before);
        std::fs::write(dir.path().join("more"), "").unwrap();
        assert_ne!(tree(dir.path()).unwrap(), changed);
    }

    #[test]
    fn what_was_loaded_from_elsewhere_and_looked_at_counts() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            token: "0a1b2c3d".into(),
            directory: dir.path().into(),
            vagrantfile: "/x".into(),
            provider: "libvirt".into(),
            isolated: None,
        };
        let env = |value: &str| BTreeMap::from([("BOX".to_owned(), value.to_owned())]);
        assert!(Inputs::of(&place, &env("a")).is_none());
        let loaded = dir.path().join("common.rb");
        let told = serde_json::json!({"files": [&loaded, "/nowhere/at/all"], "variables": ["BOX", "TIERBOX_TEST_UNSET"]});
        std::fs::write(place.file("inputs.json"), told.to_string()).unwrap();
        std::fs::write(&loaded, "1").unwrap();
        let inputs = Inputs::of(&place, &env("a")).unwrap();
        assert!(inputs.are_unchanged(&env("a")) && !inputs.are_unchanged(&env("b")));
        std::fs::write(&loaded, "22").unwrap();
        assert!(!inputs.are_unchanged(&env("a")));
    }
}
