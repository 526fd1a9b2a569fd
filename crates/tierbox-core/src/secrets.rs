//! Values that must never be shown, and how they are taken out of what is written down.

use std::borrow::Cow;
use std::fmt;

/// What stands in the place of a secret.
const MASK: &[u8] = b"***";

/// Secret values of an environment. `Debug` shows how many there are.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// No secrets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value. An empty one is no secret.
    pub fn add(&mut self, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        let escaped = value.escape_ascii().to_string().into_bytes();
        // Bytes that are no text are written escaped, and names of hosts in small letters; short words would match by chance.
        let lower = if value.len() < 8 { value.to_vec() } else { value.to_ascii_lowercase() };
        for form in [value.to_vec(), escaped, lower] {
            if !form.is_empty() && !self.0.contains(&form) {
                self.0.push(form);
            }
        }
        // The longest first: a secret may be the beginning of another one.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes at the end of `bytes` are the beginning of a secret, and not the whole of it.
    pub fn begun(&self, bytes: &[u8]) -> usize {
        let begun = |secret: &Vec<u8>| (1..secret.len()).rev().find(|length| bytes.ends_with(&secret[..*length]));
        self.0.iter().filter_map(begun).max().unwrap_or(0)
    }

    /// The same bytes, with `***` in the place of each secret.
    pub fn redact<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(mut at) = self.find(bytes, 0) else { return Cow::Borrowed(bytes) };
        let (mut clean, mut from) = (Vec::with_capacity(bytes.len()), 0);
        loop {
            clean.extend_from_slice(&bytes[from..at.0]);
            clean.extend_from_slice(MASK);
            from = at.1;
            match self.find(bytes, from) {
                Some(next) => at = next,
                None => break,
            }
        }
        clean.extend_from_slice(&bytes[from..]);
        Cow::Owned(clean)
    }

    /// The same text, with `***` in the place of each secret.
    pub fn redact_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.redact(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(clean) => Cow::Owned(String::from_utf8_lossy(&clean).into_owned()),
        }
    }

    /// Takes them out of a stream that comes in pieces.
    pub fn masking(&self) -> Masking {
        let longest = self.0.iter().map(Vec::len).max().unwrap_or(0);
        Masking { secrets: self.clone(), held: Vec::new(), most: longest.saturating_sub(1) }
    }

    /// Where the first secret from `from` on begins and ends.
    fn find(&self, bytes: &[u8], from: usize) -> Option<(usize, usize)> {
        let found = self.0.iter().filter_map(|secret| {
            let at = position(&bytes[from..], secret)?;
            Some((from + at, from + at + secret.len()))
        });
        // At the same place the longer one.
        found.min_by_key(|(start, end)| (*start, std::cmp::Reverse(*end)))
    }
}

/// A stream from which secrets are taken out, wherever it is cut into pieces: its last bytes are held back until it is known that none
/// begins there.
#[derive(Clone, Debug)]
pub struct Masking {
    secrets: Secrets,
    held: Vec<u8>,
    /// One less than the length of the longest.
    most: usize,
}

impl Masking {
    /// What of the stream can be written down once this piece came.
    pub fn push<'a>(&mut self, piece: &'a [u8]) -> Cow<'a, [u8]> {
        if self.secrets.is_empty() {
            return Cow::Borrowed(piece);
        }
        self.held.extend_from_slice(piece);
        let safe = self.held.len().saturating_sub(self.most);
        Cow::Owned(self.take(safe))
    }

    /// How many bytes of the stream came and cannot be written down yet.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The rest of a stream that has ended. Of one that was cut off, what may have begun a secret is left out.
    pub fn finish(mut self, complete: bool) -> Vec<u8> {
        if !complete {
            let begun = self.secrets.begun(&self.held);
            self.held.truncate(self.held.len() - begun);
        }
        self.take(self.held.len())
    }

    /// Everything before `safe`, and secrets that begin there in whole.
    fn take(&mut self, safe: usize) -> Vec<u8> {
        let (mut clean, mut from) = (Vec::with_capacity(safe), 0);
        while let Some((start, end)) = self.secrets.find(&self.held, from).filter(|(start, _)| *start < safe) {
            clean.extend_from_slice(&self.held[from..start]);
            clean.extend_from_slice(MASK);
            from = end;
        }
        let end = from.max(safe);
        clean.extend_from_slice(&self.held[from..end]);
        self.held.drain(..end);
        clean
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let (first, mut from) = (wanted[0], 0);
    loop {
        let at = from + bytes[from..].iter().position(|byte| *byte == first)?;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

/// Whether a variable's name says that its value is a secret: a part of it is TOKEN, SECRET, PASSWORD, KEY or the like.
pub fn names_a_secret(key: &str) -> bool {
    const PARTS: &[&str] = &[
        "KEY",
        "KEYS",
        "CREDENTIAL",
        "CREDENTIALS",
        "PASSPHRASE",
        "PASSWD",
        "PWD",
        "PAT",
        "AUTHORIZATION",
        "BEARER",
        "COOKIE",
        "COOKIES",
    ];
    // `SSH_AUTH_SOCK` is a path, and `PASS_THROUGH` no secret.
    const LAST: &[&str] = &["AUTH", "PASS"];
    const ENDS: &[&str] = &["TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWORDS", "APIKEY", "ACCESSKEY", "PRIVATEKEY"];
    let key = key.to_uppercase();
    // These two are directories, and every shell knows them.
    if key == "PWD" || key == "OLDPWD" {
        return false;
    }
    let mut parts = key.split(['_', '-', '.']);
    parts.clone().next_back().is_some_and(|last| LAST.contains(&last))
        || parts.any(|part| PARTS.contains(&part) || ENDS.iter().any(|end| part.ends_with(end)))
}

/// Whether a value is a secret by its look, whatever its name: a token of a well-known issuer, a private key, or an address with a
/// password in it. What it knows is what issuers made to be found; a secret of another form is not seen.
pub fn looks_like_a_secret(value: &str) -> bool {
    const BEGINNINGS: &[&str] = &[
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
        "glpat-",
        "xoxb-",
        "xoxp-",
        "xapp-",
        "AKIA",
        "ASIA",
        "sk-",
        "hf_",
        "npm_",
        "pypi-",
    ];
    const SHORTEST: usize = 20;
    let is_token = value.len() >= SHORTEST
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        && value.bytes().any(|byte| byte.is_ascii_digit())
        && BEGINNINGS.iter().any(|beginning| value.starts_with(beginning));
    is_token || (value.contains("-----BEGIN ") && value.contains("PRIVATE KEY-----")) || has_password(value)
}

/// Whether an address names a user with a password.
fn has_password(address: &str) -> bool {
    let Some((_, rest)) = address.split_once("://") else { return false };
    let place = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((user, _)) = place.rsplit_once('@') else { return false };
    user.split_once(':').is_some_and(|(_, password)| !password.is_empty())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        let mut secrets = Secrets::new();
        for value in ["hunter2", "hunter2-long", "", "ä\""] {
            secrets.add(value);
        }
        assert_eq!(secrets.redact_text("hunter2-longhunter2 x hunter"), "****** x hunter");
        assert_eq!(secrets.redact_text("nothing"), "nothing");
        let mut named = Secrets::new();
        named.add("Hunter2-Long");
        assert_eq!(named.redact_text("hunter2-long.example.org"), "***.example.org");
        assert_eq!(&*secrets.redact("a ä\" b".as_bytes()), b"a *** b");
        // As an escaped form holds it.
        assert_eq!(secrets.redact_text("\\xc3\\xa4\\\""), "***");
        assert!(!format!("{secrets:?}").contains("hunter"));
    }

    #[test]
    fn a_stream_is_masked_as_it_would_be_in_one_piece() {
        let mut secrets = Secrets::new();
        ["abab", "ababab", "hunter2", "2"].into_iter().for_each(|value| secrets.add(value));
        let text = b"xabababab hunter hunter2 ab2abab hunt";
        for size in 1..text.len() {
            let mut masking = secrets.masking();
            let mut clean: Vec<u8> = text.chunks(size).flat_map(|piece| masking.push(piece).into_owned()).collect();
            clean.extend(masking.finish(true));
            assert_eq!(clean, &*secrets.redact(text), "pieces of {size}");
        }
        let mut cut = secrets.masking();
        let mut clean = cut.push(b"and hunte").into_owned();
        clean.extend(cut.finish(false));
        assert_eq!(clean, b"and ");
    }

    #[test]
    fn names_tell() {
        for key in [
            "API_KEY",
            "github_token",
            "DB_PASSWORD",
            "AWS_SECRET_ACCESS_KEY",
            "OPENAI_APIKEY",
            "PGPASSWORD",
            "SECRET",
            "DB_PASS",
            "NPM_AUTH",
            "AUTHORIZATION",
            "SESSION_COOKIE",
        ] {
            assert!(names_a_secret(key), "{key}");
        }
        for key in [
            "PATH",
            "KEYBOARD",
            "TOKENIZERS_PARALLELISM",
            "MONKEY",
            "PWD",
            "LANG",
            "PYTHONPATH",
            "SSH_AUTH_SOCK",
            "PASS_THROUGH",
            "AUTHOR",
        ] {
            assert!(!names_a_secret(key), "{key}");
        }
    }

    #[test]
    fn values_tell() {
        let token = |beginning: &str| format!("{beginning}{}", "a1".repeat(12));
        for value in ["ghp_", "sk-", "AKIA", "glpat-"].map(token) {
            assert!(looks_like_a_secret(&value), "{value}");
        }
        for value in ["postgres://app:hunter2@db/x", "-----BEGIN RSA PRIVATE KEY-----\nx", "https://u:p@h"] {
            assert!(looks_like_a_secret(value), "{value}");
        }
        for value in [
            "sk-learn",
            "https://example.org/a:b@c",
            "https://user@example.org",
            "a plain value",
            "AKIA",
            "sk-a-name-of-some-thing-else",
        ] {
            assert!(!looks_like_a_secret(value), "{value}");
        }
    }
}
