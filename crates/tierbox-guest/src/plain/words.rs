//! Bytes as words of a shell script that is ASCII.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Quotes words. What cannot stand in quotes is made by assignments, which come before.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// Assignments that must run before the words are used.
    pub(crate) before: String,
    made: usize,
}

impl Words {
    /// A word that the shell reads as these bytes. They hold no NUL.
    pub(crate) fn word(&mut self, bytes: &[u8]) -> String {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t')) => quote(text),
            _ => self.made_of(bytes),
        }
    }

    /// By `printf`, whose escapes every shell knows. The dot at the end keeps final newlines from being dropped.
    fn made_of(&mut self, bytes: &[u8]) -> String {
        self.made += 1;
        let name = format!("v{}", self.made);
        _ = writeln!(self.before, "{name}=$(printf {}); {name}=${{{name}%.}}", escaped(&[bytes, b"."].concat()));
        format!("\"${name}\"")
    }
}

/// Bytes as a format of `printf`, quoted.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    let mut format = String::from("'");
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b' ' | b'/' | b'=' | b'.' => format.push(char::from(*byte)),
            // Three digits, so that a digit after it is none of it.
            byte => _ = write!(format, "\\{byte:03o}"),
        }
    }
    format.push('\'');
    format
}

/// The variables of a command, as the shell that becomes it makes them.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// Lines that export them.
    pub(crate) exported: String,
    /// Lines that export those by which the shell itself would work in another way. They come last of all.
    pub(crate) last: String,
    /// Options of `env`: without what shells put there unasked.
    pub(crate) unset: String,
    /// Words for `env`: those that a shell cannot export.
    pub(crate) assigned: Vec<String>,
}

impl Words {
    /// Variables, in an order in which none of them is in the way of another.
    pub(crate) fn environment(&mut self, variables: &BTreeMap<Vec<u8>, Vec<u8>>) -> Environment {
        let mut all = Environment::default();
        let own = ["OLDPWD", "PATH", "PWD", "SHLVL", "_"].into_iter().filter(|name| !variables.contains_key(name.as_bytes()));
        all.unset = own.map(|name| format!("-u {name}")).collect::<Vec<_>>().join(" ");
        for (key, value) in variables {
            let name = std::str::from_utf8(key).unwrap_or_default();
            let make = kind(name);
            if make == Kind::Argument {
                all.assigned.push(self.word(&[key.as_slice(), b"=", value].concat()));
                continue;
            }
            let value = self.word(value);
            _ = match make {
                Kind::Free => writeln!(all.exported, "export {name}={value}"),
                // A locale that is not there is complained of.
                Kind::Last => writeln!(all.last, "{{ export {name}={value}; }} 2>/dev/null"),
                _ => writeln!(
                    all.last,
                    "if [ -z \"${{BASH_VERSION-}}${{ZSH_VERSION-}}\" ]; then export {name}={value}; else set -- {name}={value} \"$@\"; fi"
                ),
            };
        }
        all
    }
}

/// How a variable gets to its command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Every shell exports it as it is.
    Free,
    /// So it does, but goes by it from then on.
    Last,
    /// Shells export it, but for those that keep it for themselves.
    Mostly,
    /// It is an argument of `env` for a moment, which whoever sees the machine's processes can read.
    Argument,
}

fn kind(name: &str) -> Kind {
    const LAST: [&str; 10] = ["LANG", "LANGUAGE", "ENV", "COLUMNS", "LINES", "TMOUT", "POSIXLY_CORRECT", "PS1", "PS2", "PS4"];
    match name {
        name if is_free(name) => Kind::Free,
        name if is_name(name) && (LAST.contains(&name) || name.starts_with("LC_")) => Kind::Last,
        "UID" | "EUID" | "GROUPS" => Kind::Mostly,
        _ => Kind::Argument,
    }
}

/// Whether a variable of this name would stand in an argument of a process in the machine, since no shell can make it.
pub fn stands_in_an_argument(name: &[u8]) -> bool {
    std::str::from_utf8(name).map_or(true, |name| kind(name) == Kind::Argument)
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
}

/// Whether every shell takes a variable as it is, and neither keeps it for itself nor complains about its value.
fn is_free(name: &str) -> bool {
    const TAKEN: [&str; 28] = [
        "_",
        "COLUMNS",
        "DIRSTACK",
        "ENV",
        "EPOCHREALTIME",
        "EPOCHSECONDS",
        "EUID",
        "FUNCNAME",
        "FUNCNEST",
        "GROUPS",
        "HISTCMD",
        "IFS",
        "LANG",
        "LANGUAGE",
        "LINENO",
        "LINES",
        "MAILCHECK",
        "OLDPWD",
        "PIPESTATUS",
        "PPID",
        "PWD",
        "RANDOM",
        "SECONDS",
        "SHELLOPTS",
        "SHLVL",
        "SRANDOM",
        "TMOUT",
        "UID",
    ];
    let is_word = name.strip_prefix('v').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
    let prefixes = ["BASH", "COMP", "HIST", "LC_", "OPT", "POSIXLY", "PS"];
    is_name(name) && !is_word && !TAKEN.contains(&name) && !prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Printable text in single quotes.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod unit {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn echoed(shell: &[&str], words: &[Vec<u8>]) -> Vec<u8> {
        let mut quoted = Words::default();
        let list: Vec<String> = words.iter().map(|word| quoted.word(word)).collect();
        let script = format!("{}printf '%s\\0' {}", quoted.before, list.join(" "));
        assert!(script.is_ascii());
        let output = Command::new(shell[0]).args(&shell[1..]).arg("-c").arg(script).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn is_there(shell: &[&str]) -> bool {
        Command::new(shell[0]).args(&shell[1..]).args(["-c", ":"]).output().is_ok_and(|output| output.status.success())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_bytes_arrive(words in prop::collection::vec(prop::collection::vec(1u8..=255, 0..40), 1..5)) {
            let expected: Vec<u8> = words.iter().flat_map(|word| word.iter().copied().chain([0])).collect();
            for shell in [&["/bin/sh"][..], &["busybox", "sh"]] {
                if shell.len() == 1 || is_there(shell) {
                    prop_assert_eq!(echoed(shell, &words), expected.clone());
                }
            }
        }
    }

    #[test]
    fn variables_arrive_and_no_other_is_there() {
        let odd = [b"a.b".as_slice(), b"_", b"v1", b"1x", b"BASH_ENV", b"PPID"];
        let late = [b"UID".as_slice(), b"LC_ALL", b"LANG", b"PS4", b"ENV", b"COLUMNS", b"TMOUT", b"EUID"];
        let usual = [b"A".as_slice(), b"PATH", b"a_b1", b"TOKEN", b"D", b"vx"];
        let mut all: BTreeMap<Vec<u8>, Vec<u8>> =
            odd.into_iter().chain(late).chain(usual).map(|key| (key.to_vec(), [b"'$x\n\xff", key, b"\n"].concat())).collect();
        all.insert(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec());
        all.insert(b"LC_ALL".to_vec(), b"no such locale".to_vec());
        let mut words = Words::default();
        let made = words.environment(&all);
        let exported = made.exported.lines().filter(|line| line.starts_with("export ")).count();
        assert_eq!((made.assigned.len(), made.last.matches("export ").count(), exported), (6, 8, 6));
        assert!(odd.iter().all(|name| stands_in_an_argument(name)) && !late.iter().any(|name| stands_in_an_argument(name)));
        let script = format!(
            "{}set -- /usr/bin/env -0\ncd /\n{}{}exec /usr/bin/env {} -- {} \"$@\"",
            words.before,
            made.exported,
            made.last,
            made.unset,
            made.assigned.join(" ")
        );
        for shell in [&["/bin/sh"][..], &["bash"], &["busybox", "sh"]] {
            if shell[0] != "/bin/sh" && !is_there(shell) {
                continue;
            }
            let mut command = Command::new(shell[0]);
            let output =
                command.args(&shell[1..]).arg("-c").arg(&script).env_clear().env("PATH", "/bin:/usr/bin").output().unwrap();
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{shell:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let mut seen: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).filter(|line| !line.is_empty()).collect();
            seen.sort_unstable();
            let expected: Vec<Vec<u8>> = all.iter().map(|(key, value)| [key.as_slice(), b"=", value].concat()).collect();
            let mut expected: Vec<&[u8]> = expected.iter().map(Vec::as_slice).collect();
            expected.sort_unstable();
            assert_eq!(seen, expected, "{shell:?}");
        }
    }

    #[test]
    fn what_shells_take_apart_arrives() {
        let words: Vec<Vec<u8>> =
            [b"".as_slice(), b"a'b", b"\\n%s\\", b"$(id)`id`$HOME", b"tail\n\n", b"\n\xff\n", b"!x", b"-n", b"\x01\x7f9"]
                .map(<[u8]>::to_vec)
                .to_vec();
        let expected: Vec<u8> = words.iter().flat_map(|word| word.iter().copied().chain([0])).collect();
        assert_eq!(echoed(&["/bin/sh"], &words), expected);
    }
}
