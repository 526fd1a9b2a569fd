//! Paths in documents: text where they are UTF-8, else a list of their bytes.
//!
//! One that could not be written would be missing where specifications are told apart by what is written of them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::GuestPath;

/// Something that is bytes, as paths are.
pub(crate) trait Path: From<PathBuf> {
    /// Its bytes.
    fn bytes(&self) -> &[u8];
}

impl Path for PathBuf {
    fn bytes(&self) -> &[u8] {
        self.as_os_str().as_bytes()
    }
}

impl Path for GuestPath {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes(Vec<u8>),
}

pub(crate) fn serialize<P: Path, S: Serializer>(path: &P, to: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(path.bytes()) {
        Ok(text) => to.serialize_str(text),
        Err(_) => Written::Bytes(path.bytes().to_vec()).serialize(to),
    }
}

pub(crate) fn deserialize<'de, P: Path, D: Deserializer<'de>>(from: D) -> Result<P, D::Error> {
    let bytes = match Written::deserialize(from)? {
        Written::Text(text) => text.into_bytes(),
        Written::Bytes(bytes) => bytes,
    };
    Ok(PathBuf::from(OsString::from_vec(bytes)).into())
}

#[cfg(test)]
mod unit {
    use crate::{CopyIn, MountSpec};

    use super::*;

    #[test]
    fn no_two_paths_are_written_alike_and_each_is_read_back() {
        let host = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        let copies =
            [b"/a".as_slice(), b"/\xff", b"/\xfe", b"/\xef\xbf\xbd"].map(|path| CopyIn { host: host(path), guest: path.into() });
        let texts = copies.clone().map(|copy| serde_json::to_string(&copy).unwrap());
        assert_eq!(texts[0], r#"{"host":"/a","guest":"/a"}"#);
        assert_eq!(texts.iter().collect::<std::collections::BTreeSet<_>>().len(), copies.len());
        assert_eq!(texts.map(|text| serde_json::from_str::<CopyIn>(&text).unwrap()), copies);
        let mount = MountSpec { host: host(b"/\xff"), guest: "/mnt/x".into(), writable: true };
        assert_eq!(serde_json::from_value::<MountSpec>(serde_json::to_value(&mount).unwrap()).unwrap(), mount);
    }
}
