//! Named groups of allowed names, in a file of the user's.

use std::collections::BTreeMap;
use std::path::Path;

use tierbox_core::{Error, ErrorKind, Result};

/// The largest file of groups.
const LARGEST: u64 = 1 << 20;

/// Puts the names of each `@group` in its place, once each.
///
/// # Errors
/// `InvalidProfile` for a file that cannot be read or is no table of lists, and for a group that it does not have.
pub(crate) fn expand(allow: &[String], file: Option<&Path>) -> Result<Vec<String>> {
    if !allow.iter().any(|entry| entry.starts_with('@')) {
        return Ok(allow.to_vec());
    }
    let file = file.ok_or_else(|| {
        invalid("network.allow names a group, and network.groups names no file".to_owned())
            .with_help("write the file's path: groups = \"groups.toml\" under [network]")
    })?;
    let groups = read(file)?;
    let mut names: Vec<String> = Vec::new();
    for entry in allow {
        let members = match entry.strip_prefix('@') {
            None => std::slice::from_ref(entry),
            Some(name) => groups.get(name).ok_or_else(|| unknown(name, &groups, file))?,
        };
        for member in members {
            if !names.contains(member) {
                names.push(member.clone());
            }
        }
    }
    Ok(names)
}

fn read(file: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let failed = |why: String| invalid(format!("network.groups = {}: {why}", file.display()));
    let meta = std::fs::metadata(file).map_err(|error| failed(error.to_string()))?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(failed("it is no file of groups".to_owned()));
    }
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let groups: BTreeMap<String, Vec<String>> = toml::from_str(&text)
        .map_err(|error| failed(error.to_string()).with_help("write each group as a list: name = [\"index.example.org\"]"))?;
    let nested = groups.iter().find(|(_, members)| members.iter().any(|member| member.starts_with('@')));
    match nested {
        Some((name, _)) => Err(failed(format!("the group {name} names another group"))),
        None => Ok(groups),
    }
}

fn unknown(name: &str, groups: &BTreeMap<String, Vec<String>>, file: &Path) -> Error {
    let there: Vec<&str> = groups.keys().map(String::as_str).collect();
    invalid(format!("no group is named {name:?}; {} has {}", file.display(), there.join(", ")))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidProfile, "read network.allow", message)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn expanded(groups: &str, allow: &[&str]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("groups.toml");
        std::fs::write(&file, groups).unwrap();
        expand(&allow.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>(), Some(&file))
    }

    #[test]
    fn groups_are_put_in_place_once() {
        let groups = "python = [\"index.test\", \"*.files.test\"]\nboth = [\"index.test\", \"x.test:8443\"]";
        let names = expanded(groups, &["a.test", "@python", "@both", "a.test"]).unwrap();
        assert_eq!(names, ["a.test", "index.test", "*.files.test", "x.test:8443"]);
    }

    #[test]
    fn what_is_no_group_is_named() {
        for (groups, allow, part) in [
            ("a = [\"x.test\"]", "@b", "no group is named \"b\""),
            ("a = \"x.test\"", "@a", "groups.toml"),
            ("a = [\"@b\"]\nb = []", "@a", "another group"),
        ] {
            let error = expanded(groups, &[allow]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidProfile);
            assert!(error.message().contains(part), "{error}");
        }
        assert!(expand(&["@a".to_owned()], None).unwrap_err().help().is_some());
        assert!(expand(&["@a".to_owned()], Some(Path::new("/nonexistent"))).is_err());
    }
}
