//! Ids of environments: `local-7f3k2m`.

use std::hash::{BuildHasher, Hasher, RandomState};

use tierbox_core::{Error, ErrorKind, Result};

/// Digits and letters that nobody confuses.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// So many characters of an id are random.
const RANDOM: usize = 6;

/// The longest id; it is also used as a host name.
const MAX: usize = 63;

/// Checks that a text can be an id or a name: lower-case letters, digits and dashes, beginning with a letter or digit, at
/// most 63 bytes. Such a text is safe as a file name.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn check_id(text: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > MAX || text.starts_with('-') || !text.bytes().all(legal) {
        let shown: String = text.chars().take(MAX + 1).collect();
        return Err(Error::new(ErrorKind::InvalidInput, "read id", format!("{shown:?} cannot be an environment's id or name"))
            .with_help("ids and names are lower-case letters, digits and dashes, at most 63"));
    }
    Ok(())
}

/// Whether a text is shaped like the ids that environments of this backend get, so that it could come to mean another one.
pub fn is_shaped_like_id(text: &str, backend: &str) -> bool {
    let rest = text.strip_prefix(prefix(backend).as_str()).and_then(|rest| rest.strip_prefix('-'));
    rest.is_some_and(|rest| rest.len() == RANDOM && rest.bytes().all(|byte| ALPHABET.contains(&byte)))
}

fn prefix(backend: &str) -> String {
    let prefix: String =
        backend.chars().filter(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit()).take(32).collect();
    if prefix.is_empty() { "env".to_owned() } else { prefix }
}

/// A new id for an environment of this backend.
pub(crate) fn random_id(backend: &str) -> String {
    format!("{}-{}", prefix(backend), random_text())
}

/// Random characters. The hasher's keys are random; ids need to differ, not to be secret, and a clash is noticed.
fn random_text() -> String {
    let random = RandomState::new().build_hasher().finish();
    (0..RANDOM).map(|index| char::from(ALPHABET[(random >> (5 * index)) as usize % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn made_ids_are_legal_whatever_the_backend_is_called() {
        for backend in ["local", "", "Ünïcode/../x", &"x".repeat(200)] {
            let id = random_id(backend);
            check_id(&id).unwrap();
            assert!(is_shaped_like_id(&id, backend), "{id}");
        }
        for name in
            ["local", "local-", "local-web", "local-7f3k2", "local-7f3k2mm", "local-server-7f3k2m", "my-7f3k2m", "local-lloopp"]
        {
            assert!(!is_shaped_like_id(name, "local"), "{name}");
        }
        assert!(random_id("local").starts_with("local-"));
    }

    proptest! {
        #[test]
        fn a_legal_id_is_a_plain_file_name(text in ".{0,80}") {
            if check_id(&text).is_ok() {
                prop_assert!(!text.contains(['/', '.', '\0', ' ', '\n']) && !text.is_empty() && text.len() <= 63);
            }
        }
    }
}
