//! Bytes as words of a shell script that is ASCII.

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
        let mut format = String::new();
        for byte in bytes {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b' ' | b'/' | b'=' | b'.' => format.push(char::from(*byte)),
                // Three digits, so that a digit after it is none of it.
                byte => _ = write!(format, "\\{byte:03o}"),
            }
        }
        _ = writeln!(self.before, "{name}=$(printf '{format}.'); {name}=${{{name}%.}}");
        format!("\"${name}\"")
    }
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
    fn what_shells_take_apart_arrives() {
        let words: Vec<Vec<u8>> =
            [b"".as_slice(), b"a'b", b"\\n%s\\", b"$(id)`id`$HOME", b"tail\n\n", b"\n\xff\n", b"!x", b"-n", b"\x01\x7f9"]
                .map(<[u8]>::to_vec)
                .to_vec();
        let expected: Vec<u8> = words.iter().flat_map(|word| word.iter().copied().chain([0])).collect();
        assert_eq!(echoed(&["/bin/sh"], &words), expected);
    }
}
