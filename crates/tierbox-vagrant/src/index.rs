//! Vagrant's own list of machines (`vagrant global-status`): rows of machines that were removed without Vagrant.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::place::Place;

/// Takes an environment's rows out, and nobody else's.
///
/// # Errors
/// What the file system says; `Internal` for a list of another form.
pub fn forget(place: &Place) -> Result<()> {
    let Some(home) = place.home() else { return Ok(()) };
    forget_in(&home.join("data/machine-index"), &place.dotfile())
        .map_err(|error| error.with_backend(BACKEND).with_context("home", home.display()))
}

fn forget_in(directory: &Path, dotfile: &Path) -> Result<()> {
    let failed = |error| Error::io("read Vagrant's index", error);
    let path = directory.join("index");
    if !path.is_file() {
        return Ok(());
    }
    // As Vagrant locks it.
    let lock = File::options().create(true).truncate(false).write(true).open(directory.join("index.lock")).map_err(failed)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let odd = || Error::new(ErrorKind::Internal, "read Vagrant's index", "it is not of a form that is known");
    let mut index: Value = serde_json::from_str(&text).map_err(|_| odd())?;
    let machines = index.get_mut("machines").and_then(Value::as_object_mut).ok_or_else(odd)?;
    let before = machines.len();
    machines.retain(|_, row| row.get("local_data_path").and_then(Value::as_str).map(Path::new) != Some(dotfile));
    if machines.len() == before {
        return Ok(());
    }
    let part = directory.join("index.tierbox");
    std::fs::write(&part, index.to_string()).and_then(|()| std::fs::rename(&part, &path)).map_err(failed)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn rows_of_other_environments_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        forget_in(dir.path(), Path::new("/s/one/dot")).unwrap();
        let rows = r#"{"version":1,"machines":{"a":{"name":"web","local_data_path":"/s/one/dot"},"b":{"local_data_path":"/s/two/dot"},"c":{"local_data_path":null}}}"#;
        std::fs::write(&path, rows).unwrap();
        forget_in(dir.path(), Path::new("/s/one/dot")).unwrap();
        let left: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(left["machines"].as_object().unwrap().keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(left["version"], 1);
        std::fs::write(&path, "[]").unwrap();
        assert!(forget_in(dir.path(), Path::new("/s/one/dot")).is_err());
    }
}
