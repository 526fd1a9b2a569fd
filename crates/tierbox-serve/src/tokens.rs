//! Tokens: who comes over TCP.

use std::fmt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tierbox::{Error, ErrorKind, Result};

use crate::grant::Grant;
use crate::principal::Principal;

/// The fewest characters of a token: 128 bits as hex.
const SHORTEST: usize = 32;

/// The tokens that a daemon knows. Only their hashes are kept.
#[derive(Clone, Default)]
pub struct Tokens {
    known: Vec<(Hash, Principal)>,
    /// What tokens for agents are derived from.
    key: Option<Hash>,
}

type Hash = [u8; 32];

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.known.len())
    }
}

impl Tokens {
    /// Reads a file of lines `harness TOKEN` and `agent TOKEN ENVIRONMENT [MACHINE…]`, where an agent without machines has the
    /// primary one. Empty lines and lines with `#` are skipped.
    ///
    /// # Errors
    /// `PermissionDenied` if others can read the file or it belongs to somebody else; `InvalidInput` naming the line that
    /// is wrong, without its token.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("read tokens", error).with_context("path", path.display());
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if meta.mode() & 0o077 != 0 || meta.uid() != rustix::process::geteuid().as_raw() || !meta.is_file() {
            let message = format!("{} is not a file of your own that nobody else can read", path.display());
            return Err(Error::new(ErrorKind::PermissionDenied, "read tokens", message)
                .with_help(format!("chmod 600 {}", path.display())));
        }
        Self::parse(&std::io::read_to_string(file).map_err(failed)?)
    }

    /// Makes a file with one new harness token, mode 0600, unless it exists; then reads it.
    ///
    /// # Errors
    /// As [`read`](Self::read), and what the file system says.
    pub fn read_or_make(path: &Path) -> Result<Self> {
        use std::io::Write;
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match made {
            Ok(mut file) => {
                let line = format!("harness {}\n", random()?);
                file.write_all(line.as_bytes()).map_err(|error| Error::io("write tokens", error))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("write tokens", error).with_context("path", path.display())),
        }
        Self::read(path)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut tokens = Self::default();
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (token, principal) = match words.as_slice() {
                [] => continue,
                [first, ..] if first.starts_with('#') => continue,
                ["harness", token] => (*token, Principal::Harness),
                ["agent", token, environment, machines @ ..] => {
                    let machines = machines.iter().map(|name| (*name).to_owned()).collect();
                    (*token, Principal::Agent(Grant { environment: (*environment).to_owned(), machines }))
                }
                _ => return Err(bad_line(index, "is neither `harness TOKEN` nor `agent TOKEN ENVIRONMENT [MACHINE…]`")),
            };
            if token.len() < SHORTEST || token.len() > 512 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(bad_line(index, "has a token of fewer than 32 characters, or one with odd characters"));
            }
            if principal == Principal::Harness {
                tokens.key.get_or_insert_with(|| hash(&[b"tierbox agent tokens", token.as_bytes()]));
            }
            tokens.known.push((hash(&[token.as_bytes()]), principal));
        }
        if tokens.known.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "read tokens", "there is no token in the file")
                .with_help("write a line `harness TOKEN`, with 32 random characters or more"));
        }
        Ok(tokens)
    }

    /// Tokens for a daemon without a file: only agents' tokens, which end with the daemon.
    pub(crate) fn ephemeral() -> Result<Self> {
        Ok(Self { known: Vec::new(), key: Some(hash(&[random()?.as_bytes()])) })
    }

    /// A token for an agent. The same one for the same grant, as long as the harness token stands.
    pub(crate) fn for_agent(&self, grant: &Grant) -> Option<String> {
        self.signed(&grant.claim())
    }

    fn signed(&self, claim: &str) -> Option<String> {
        let proof = hash(&[&self.key?, claim.as_bytes()]);
        Some(format!("{claim}.{}", hex(&proof)))
    }

    /// Whose token it is. Takes the same time for every wrong one of the same form.
    pub(crate) fn principal(&self, token: &str) -> Option<Principal> {
        let given = hash(&[token.as_bytes()]);
        let mut found = None;
        for (known, principal) in &self.known {
            if bool::from(known.ct_eq(&given)) {
                found = Some(principal.clone());
            }
        }
        found.or_else(|| self.derived(token))
    }

    /// By what one knows a token again, also after its file was changed, without learning what it is.
    pub(crate) fn mark(token: &str) -> String {
        hex(&hash(&[b"tierbox owner", token.as_bytes()])[..8])
    }

    fn derived(&self, token: &str) -> Option<Principal> {
        let (claim, _) = token.rsplit_once('.')?;
        let expected = self.signed(claim)?;
        bool::from(expected.as_bytes().ct_eq(token.as_bytes())).then(|| Grant::read(claim).map(Principal::Agent))?
    }
}

/// Each part with its length before it, so that no two lists of parts hash alike.
fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn random() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(ErrorKind::HostUnable, "make token", error.to_string()))?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bad_line(index: usize, what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "read tokens", format!("line {} {what}", index + 1))
}

#[cfg(test)]
mod unit {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HARNESS: &str = "0123456789abcdef0123456789abcdef";
    const AGENT: &str = "fedcba9876543210fedcba9876543210";

    fn grant(environment: &str, machines: &[&str]) -> Grant {
        Grant { environment: environment.to_owned(), machines: machines.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_token_is_its_principal_and_nothing_near_it_is() {
        let tokens = Tokens::parse(&format!("# who\n\nharness {HARNESS}\nagent {AGENT} local-abc db web\n")).unwrap();
        assert_eq!(tokens.principal(HARNESS), Some(Principal::Harness));
        assert_eq!(tokens.principal(AGENT), Some(Principal::Agent(grant("local-abc", &["db", "web"]))));
        assert!(Tokens::mark(HARNESS) == Tokens::mark(HARNESS) && Tokens::mark(HARNESS) != Tokens::mark(AGENT));
        let made = tokens.for_agent(&grant("local-x", &["db"])).unwrap();
        assert_eq!(tokens.principal(&made), Some(Principal::Agent(grant("local-x", &["db"]))));
        let stolen = made.replace("local-x", "local-y");
        let (wider, other) = (made.replace(":db", ""), made.replace(":db", ":db,web"));
        for wrong in ["", ".", "local-x.", &HARNESS[1..], &stolen, &wider, &other, &made[..made.len() - 1]] {
            assert_eq!(tokens.principal(wrong), None, "{wrong}");
        }
        assert!(!format!("{tokens:?}").contains(&HARNESS[..8]));
    }

    #[test]
    fn a_bad_line_is_named_without_its_token() {
        for bad in ["harness short", &format!("root {HARNESS}"), &format!("harness {HARNESS} x"), &format!("agent {AGENT}"), ""] {
            let error = Tokens::parse(bad).unwrap_err();
            assert!(error.kind() == ErrorKind::InvalidInput && !error.to_string().contains(HARNESS), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let directory = std::env::temp_dir().join(format!("tierbox-tokens-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("tokens");
        let made = Tokens::read_or_make(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Tokens::read_or_make(&path).unwrap();
        assert_eq!(made.for_agent(&grant("e", &[])), again.for_agent(&grant("e", &[])));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(Tokens::read(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
