//! Values of command-line options.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tierbox::transfer::UnpackLimits;
use tierbox::{DialTarget, Signal};

/// `--copy-in SRC[:PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyInArg {
    pub host: PathBuf,
    pub guest: Vec<u8>,
}

/// `--copy-out PATH[:DST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyOutArg {
    pub guest: Vec<u8>,
    pub host: PathBuf,
}

/// `--mount DIR[:PATH][:rw]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountArg {
    pub host: PathBuf,
    pub guest: String,
    pub writable: bool,
}

/// `--env KEY[=VALUE]`, with the value of this process's variable where none is given. Its `Debug` hides the value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EnvArg {
    pub key: String,
    pub value: String,
}

impl std::fmt::Debug for EnvArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvArg").field("key", &self.key).finish_non_exhaustive()
    }
}

/// `forward [PORT:]TARGET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardArg {
    pub port: u16,
    pub target: DialTarget,
}

/// One side of `cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Side {
    Host(PathBuf),
    Guest { sandbox: String, path: Vec<u8> },
}

pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as limits.pids=64")?;
    if key.is_empty() {
        return Err("the key is empty".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) fn env(text: &str) -> Result<EnvArg, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => (text, own_variable(text)?),
    };
    if key.is_empty() {
        return Err("the variable's name is empty".into());
    }
    Ok(EnvArg { key: key.to_owned(), value })
}

fn own_variable(name: &str) -> Result<String, String> {
    use std::env::VarError;
    std::env::var(name).map_err(|error| match error {
        VarError::NotPresent => "there is no such variable here: write KEY=VALUE".into(),
        VarError::NotUnicode(_) => "its value here is not UTF-8, which --env takes only: set it inside, by a command".into(),
    })
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = tierbox::profile::units::parse_duration(text).map_err(|error| error.message().to_owned())?;
    if duration.is_zero() { Err("it is zero".into()) } else { Ok(duration) }
}

pub(crate) fn bound(text: &str) -> Result<UnpackLimits, String> {
    if text == "none" {
        return Ok(UnpackLimits::NONE);
    }
    let bytes = tierbox::profile::units::parse_size(text).map_err(|error| error.message().to_owned())?;
    Ok(UnpackLimits { bytes, ..UnpackLimits::NONE })
}

/// A time span that may be zero.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    tierbox::profile::units::parse_duration(text).map_err(|error| error.message().to_owned())
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    tierbox::profile::units::parse_size(text).map_err(|error| error.message().to_owned())
}

#[cfg(feature = "serve")]
pub(crate) fn count(text: &str) -> Result<(String, u64), String> {
    let (name, count) = text.split_once('=').ok_or("write BACKEND=COUNT, such as vagrant=2")?;
    Ok((name.to_owned(), count.parse().map_err(|_| format!("{count:?} is not a count"))?))
}

pub(crate) fn copy_in(arg: OsString) -> Result<CopyInArg, String> {
    let (host, guest) = split_host(arg.as_bytes());
    let guest = guest.map_or_else(|| own_name(host), |guest| Ok(guest.to_vec()))?;
    Ok(CopyInArg { host: absolute(host)?, guest })
}

pub(crate) fn copy_out(arg: OsString) -> Result<CopyOutArg, String> {
    let (guest, host) = match split_last(arg.as_bytes()) {
        Some((guest, host)) if !guest.is_empty() && !host.is_empty() => (guest, host),
        Some(_) => return Err("write PATH or PATH:DST".into()),
        None => match path(arg.as_bytes()).file_name() {
            Some(name) => (arg.as_bytes(), name.as_bytes()),
            None => return Err("it has no last name: write PATH:DST".into()),
        },
    };
    Ok(CopyOutArg { guest: guest.to_vec(), host: absolute(host)? })
}

pub(crate) fn mount(arg: OsString) -> Result<MountArg, String> {
    let all = arg.as_bytes();
    let (text, writable) = match (all.strip_suffix(b":rw"), all.strip_suffix(b":ro")) {
        (Some(rest), _) => (rest, true),
        (_, Some(rest)) => (rest, false),
        _ => (all, false),
    };
    let (host, guest) = split_host(text);
    let guest =
        guest.map_or_else(|| own_name(host).map(|name| [b"/mnt/", name.as_slice()].concat()), |guest| Ok(guest.to_vec()))?;
    let guest = String::from_utf8(guest).map_err(|_| "the path inside is not UTF-8: write DIR:PATH")?;
    if !guest.starts_with('/') {
        return Err("the path inside must be absolute".into());
    }
    Ok(MountArg { host: absolute(host)?, guest, writable })
}

pub(crate) fn forward(text: &str) -> Result<ForwardArg, String> {
    let (port, target) = match text.split_once(':') {
        Some((port, target)) => (Some(port), target),
        None => (None, text),
    };
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port"));
    let target = if target.starts_with('/') { DialTarget::Unix(target.into()) } else { DialTarget::Tcp(number(target)?) };
    if target == DialTarget::Tcp(0) {
        return Err("nothing can listen on port 0 inside".into());
    }
    let port = match (port, &target) {
        (Some(port), _) => number(port)?,
        (None, DialTarget::Tcp(port)) => *port,
        (None, DialTarget::Unix(_)) => 0,
    };
    Ok(ForwardArg { port, target })
}

pub(crate) fn signal(text: &str) -> Result<Signal, String> {
    const NAMES: &[(&str, i32)] =
        &[("HUP", 1), ("INT", 2), ("QUIT", 3), ("KILL", 9), ("USR1", 10), ("USR2", 12), ("TERM", 15), ("CONT", 18), ("STOP", 19)];
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = match NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, number)) => *number,
        None => text.parse().map_err(|_| "write a number from 1 to 64, or a name such as TERM".to_owned())?,
    };
    Signal::new(number).map_err(|error| error.message().to_owned())
}

/// `SANDBOX:PATH`, or a path of this host's: one that begins with `/` or `.`, or has no colon before its first slash.
pub(crate) fn side(text: &OsStr) -> Side {
    let bytes = text.as_bytes();
    let host = || Side::Host(PathBuf::from(text));
    let Some(colon) = bytes.iter().position(|byte| *byte == b':') else { return host() };
    if matches!(bytes[0], b'/' | b'.' | b':') || bytes[..colon].contains(&b'/') {
        return host();
    }
    match std::str::from_utf8(&bytes[..colon]) {
        Ok(sandbox) => Side::Guest { sandbox: sandbox.to_owned(), path: bytes[colon + 1..].to_vec() },
        Err(_) => host(),
    }
}

pub(crate) fn argv(args: Vec<OsString>) -> Vec<Vec<u8>> {
    args.into_iter().map(OsString::into_vec).collect()
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// What stands before the last colon and behind it.
fn split_last(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = text.iter().rposition(|byte| *byte == b':')?;
    Some((&text[..colon], &text[colon + 1..]))
}

/// Splits `HOST[:GUEST]` at the last colon, unless the whole text names something that exists here.
fn split_host(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match split_last(text) {
        Some((host, guest)) if !host.is_empty() && !guest.is_empty() && !path(text).exists() => (host, Some(guest)),
        _ => (text, None),
    }
}

/// The last name of a path, also of `.` and `..`.
fn own_name(host: &[u8]) -> Result<Vec<u8>, String> {
    let name = |path: &Path| path.file_name().map(|name| name.as_bytes().to_vec());
    let name = name(path(host)).or_else(|| name(&path(host).canonicalize().ok()?));
    name.ok_or_else(|| "it has no name that could be used inside: write HOST:PATH".to_owned())
}

fn absolute(host: &[u8]) -> Result<PathBuf, String> {
    std::path::absolute(path(host)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn copies_and_mounts_have_defaults() {
        let copied = copy_in("/a/task".into()).unwrap();
        assert_eq!((copied.host.to_str(), copied.guest.as_slice()), (Some("/a/task"), b"task".as_slice()));
        assert_eq!(copy_in("/a/b:/in".into()).unwrap().guest, b"/in");
        assert!(copy_in("/".into()).is_err());
        assert_eq!(copy_out("/workspace/out".into()).unwrap().host.file_name().unwrap(), "out");
        assert_eq!(copy_out("out:/tmp/x".into()).unwrap().host, Path::new("/tmp/x"));
        assert!(copy_out(":x".into()).is_err() && copy_out("/".into()).is_err());
        let mounted = mount("/srv/data".into()).unwrap();
        assert_eq!((mounted.guest.as_str(), mounted.writable), ("/mnt/data", false));
        let mounted = mount("/srv/data:/data:rw".into()).unwrap();
        assert_eq!((mounted.guest.as_str(), mounted.writable), ("/data", true));
        assert!(mount("/srv/data:relative".into()).is_err());
    }

    #[test]
    fn paths_need_not_be_text() {
        let odd = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let copied = copy_in(odd(b"/a/\xff")).unwrap();
        assert_eq!((copied.host.into_os_string(), copied.guest), (odd(b"/a/\xff"), b"\xff".to_vec()));
        let copied = copy_out(odd(b"a/\xff:/b/\xfe")).unwrap();
        assert_eq!((copied.guest, copied.host.into_os_string()), (b"a/\xff".to_vec(), odd(b"/b/\xfe")));
        let mounted = mount(odd(b"/a/\xff:/data:rw")).unwrap();
        assert_eq!((mounted.host.into_os_string(), mounted.guest.as_str(), mounted.writable), (odd(b"/a/\xff"), "/data", true));
        assert!(mount(odd(b"/a/\xff")).is_err(), "profiles name paths inside by text");
    }

    #[test]
    fn a_colon_names_a_sandbox_unless_it_is_clearly_a_path() {
        let guest = |sandbox: &str, path: &str| Side::Guest { sandbox: sandbox.into(), path: path.into() };
        assert_eq!(side("demo:/x:y".as_ref()), guest("demo", "/x:y"));
        assert_eq!(side("demo:".as_ref()), guest("demo", ""));
        for host in ["/a:b", "./a:b", "dir/a:b", "plain", ":x"] {
            assert_eq!(side(host.as_ref()), Side::Host(host.into()), "{host}");
        }
    }

    #[test]
    fn forwards_read_both_ways() {
        assert_eq!(forward("8000").unwrap(), ForwardArg { port: 8000, target: DialTarget::Tcp(8000) });
        assert_eq!(forward("0:8000").unwrap(), ForwardArg { port: 0, target: DialTarget::Tcp(8000) });
        assert_eq!(forward("/s").unwrap(), ForwardArg { port: 0, target: DialTarget::Unix("/s".into()) });
        assert!(forward("0").is_err() && forward("80:0").is_err());
        assert!(forward("x:1").is_err() && forward("1:70000").is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal("SIGTERM").unwrap(), Signal::TERM);
        assert_eq!(signal("9").unwrap(), Signal::KILL);
        assert!(signal("65").is_err() && signal("nope").is_err());
    }

    #[test]
    fn debug_hides_values() {
        assert!(!format!("{:?}", env("TOKEN=s3cret").unwrap()).contains("s3cret"));
    }
}
