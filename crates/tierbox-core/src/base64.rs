//! Base64 as the standard has it, with padding: bytes that are no text, in documents that are.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes as base64.
pub fn encode(bytes: &[u8]) -> String {
    let group = |chunk: &[u8]| {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | u32::from(chunk.get(index).copied().unwrap_or(0)));
        let digit = |place: usize| match place <= chunk.len() {
            true => char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]),
            false => '=',
        };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(group).collect()
}

/// Bytes as base64 if they are no text: what their text alone would not tell.
pub fn unless_text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).is_err().then(|| encode(bytes))
}

/// The bytes of a base64 text, in which blanks mean nothing. `None` if it is malformed.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let plain = digits.split(|byte| *byte == b'=').next().unwrap_or_default();
    let padding = &digits[plain.len()..];
    if !digits.len().is_multiple_of(4) || padding.len() > 2 || padding.iter().any(|byte| *byte != b'=') {
        return None;
    }
    let mut bytes = Vec::with_capacity(plain.len() * 3 / 4);
    for chunk in plain.chunks(4) {
        let mut bits = 0_u32;
        for index in 0..4 {
            let value = chunk.get(index).map_or(Some(0), |digit| ALPHABET.iter().position(|known| known == digit));
            bits = bits << 6 | u32::try_from(value?).ok()?;
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..chunk.len().max(1)]);
    }
    Some(bytes)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn it_is_the_standard_one_and_goes_both_ways() {
        let known = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (text, encoded) in known {
            assert_eq!(encode(text.as_bytes()), encoded);
            assert_eq!(decode(encoded).as_deref(), Some(text.as_bytes()));
        }
        assert_eq!(encode(&[0xff, 0xfe]), "//4=");
        assert_eq!(decode(" Zm9v\nYmFy "), Some(b"foobar".to_vec()));
        for bad in ["a", "ab=c", "abc", "ab===", "*abc", "====", "abcd="] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!((unless_text("é".as_bytes()), unless_text(b"\xff")), (None, Some("/w==".to_owned())));
    }
}
