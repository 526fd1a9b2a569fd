//! What a container is made of beside its specification: the root that it shows, and the kernel that isolates it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Directories of a root whose entries come and go as something is installed there.
const PARTS: [&str; 9] = ["", "bin", "lib", "lib64", "sbin", "usr", "usr/bin", "usr/lib", "usr/sbin"];

/// The identity of a container with this root. A root has no digest: reading all of it would take longer than any
/// verification. Its directories tell when something was installed or removed, or another was put in their place.
pub(crate) fn of(root: &Path) -> Option<BTreeMap<String, String>> {
    let meta = |part: &&str| std::fs::metadata(root.join(part)).ok();
    let parts: Vec<String> = PARTS
        .iter()
        .filter_map(meta)
        .map(|meta| format!("{}:{}:{}.{:09}", meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
        .collect();
    if parts.is_empty() {
        return None;
    }
    let uname = rustix::system::uname();
    let engine = format!("{} {}", uname.release().to_string_lossy(), uname.version().to_string_lossy());
    Some(BTreeMap::from([("root".to_owned(), format!("{} {}", root.display(), parts.join(" "))), ("engine".to_owned(), engine)]))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_root_in_which_something_is_installed_is_another() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        let before = of(root.path()).unwrap();
        assert_eq!(of(root.path()).unwrap(), before);
        std::fs::write(root.path().join("usr/bin/x"), "").unwrap();
        assert_ne!(of(root.path()).unwrap(), before);
        assert!(before.contains_key("engine") && of(Path::new("/nonexistent")).is_none());
    }
}
