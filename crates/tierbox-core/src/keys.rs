//! Where hosts keep keys and tokens: nothing of it is shown to a sandbox, nor copied into one.

use std::path::{Component, Path, PathBuf};

/// Directories that hold keys, wherever they are.
const DIRECTORIES: &[&str] = &[".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".password-store", ".mozilla", ".pki"];

/// Files that hold tokens, wherever they are.
const FILES: &[&str] = &["credentials.toml", ".netrc", ".git-credentials", ".npmrc", ".pypirc", ".vault-token"];

/// Paths below a home directory that hold keys, tokens, or the sockets by which other sandboxes are commanded.
const BELOW_HOME: &[&str] = &[
    ".config/gcloud",
    ".config/gh",
    ".config/containers",
    ".config/tierbox",
    ".local/share/keyrings",
    ".local/state/tierbox",
    ".cargo/credentials",
];

/// The first number that is given to people, and the one that belongs to nobody.
const PEOPLE: std::ops::Range<u32> = 1000..65534;

/// The home directories of this host's people and of root, as its list of users has them.
pub fn homes_of_people() -> Vec<PathBuf> {
    let listed = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    listed.lines().filter_map(home_of_a_person).collect()
}

fn home_of_a_person(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(':').skip(2);
    let id: u32 = fields.next()?.parse().ok()?;
    let home = Path::new(fields.nth(2)?);
    // `/nonexistent`, `/var/empty` and `/` are no homes.
    let is_one = (id == 0 || PEOPLE.contains(&id)) && home.is_absolute() && home.parent().is_some() && home.is_dir();
    (is_one && home != Path::new("/var/empty")).then(|| home.to_path_buf())
}

/// Why a path of this host is not for a sandbox, as far as keys go. `homes` are home directories beside those below `/home` and
/// `/Users`, and `/root`. A directory that has keys directly in it counts, too; `.cargo` without a token is a toolchain.
pub fn holds_keys(path: &Path, homes: &[PathBuf]) -> Option<String> {
    let is_directory_of_keys = |part: Component<'_>| DIRECTORIES.iter().any(|name| part.as_os_str() == *name);
    if path.components().any(is_directory_of_keys) {
        return Some("it holds keys".to_owned());
    }
    if path.file_name().is_some_and(|file| FILES.iter().any(|name| file == *name)) {
        return Some("it holds tokens".to_owned());
    }
    if let Some(name) = DIRECTORIES.iter().chain(FILES).find(|name| path.join(name).symlink_metadata().is_ok()) {
        return Some(format!("it contains {name}; name a directory without it"));
    }
    let inner = below_home(path, homes)?;
    // A directory above keys that are not there is harmless, but it cannot be known to stay so.
    let meets = |keys: &&&str| {
        let above = Path::new(keys).starts_with(&inner);
        inner.starts_with(keys) || (above && (!keys.starts_with(".cargo/") || path.join("credentials").exists()))
    };
    let keys = BELOW_HOME.iter().find(meets)?;
    Some(format!("~/{keys} holds keys and tokens; name what you need beside it"))
}

/// What a path is called below the home directory that it is in, anybody's.
fn below_home(path: &Path, homes: &[PathBuf]) -> Option<PathBuf> {
    let mut homes = homes.iter().map(PathBuf::as_path).chain([Path::new("/root")]);
    if let Some(inner) = homes.find_map(|home| path.strip_prefix(home).ok()) {
        return Some(inner.to_path_buf());
    }
    let inner = ["/home", "/Users"].iter().find_map(|all| path.strip_prefix(all).ok())?;
    Some(inner.components().skip(1).collect())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn keys_and_tokens_are_known_by_their_names() {
        for bad in ["/x/.ssh", "/x/homes/bob/.ssh/id", "/x/.npmrc", "/x/.pypirc", "/x/a/credentials.toml"] {
            assert!(holds_keys(Path::new(bad), &[]).is_some(), "{bad}");
        }
        let homes = [PathBuf::from("/h")];
        for inner in [".config", ".config/tierbox", ".config/gcloud/x", ".local/state/tierbox/env", ".cargo/credentials"] {
            for home in ["/h", "/root", "/home/bob", "/Users/bob"] {
                assert!(holds_keys(&Path::new(home).join(inner), &homes).is_some(), "{home}/{inner}");
            }
        }
        for inner in ["code", ".cargo/bin", ".config/nvim"] {
            assert_eq!(holds_keys(&Path::new("/h").join(inner), &homes), None, "{inner}");
        }
    }

    #[test]
    fn what_contains_them_holds_them() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holds_keys(dir.path(), &[]), None);
        std::fs::create_dir(dir.path().join(".ssh")).unwrap();
        assert!(holds_keys(dir.path(), &[]).is_some_and(|why| why.contains(".ssh")));
    }

    #[test]
    fn homes_are_those_of_people() {
        let dir = tempfile::tempdir().unwrap();
        let line = |id: &str| format!("ann:x:{id}:1000::{}:/bin/sh", dir.path().display());
        assert_eq!(home_of_a_person(&line("1000")).as_deref(), Some(dir.path()));
        assert_eq!(home_of_a_person(&line("0")).as_deref(), Some(dir.path()));
        for other in
            [line("33"), line("65534"), "x:x:1000:1000::/nonexistent:/bin/sh".into(), "odd".into(), "r:x:0:0::/:/x".into()]
        {
            assert_eq!(home_of_a_person(&other), None, "{other}");
        }
    }
}
