//! Text from a sandbox, made harmless for a terminal.
//!
//! A terminal obeys escape sequences: they can retitle its window, answer into its input, or hide what was printed before.
//! So control characters are shown and not sent, but for newline, tab and carriage return; and so are characters that turn the
//! direction of writing or have no width.

use tierbox::is_deceptive;

/// Makes a stream harmless, chunk by chunk.
#[derive(Debug, Default)]
pub(crate) struct Neutralizer {
    /// The beginning of a character that the last chunk cut off.
    pending: Vec<u8>,
}

impl Neutralizer {
    /// The harmless form of the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.pending.is_empty() && bytes.iter().all(is_plain) {
            return bytes.to_vec();
        }
        let mut input = std::mem::take(&mut self.pending);
        input.extend_from_slice(bytes);
        let mut out = String::with_capacity(input.len());
        let mut rest = input.as_slice();
        while let Some(chunk) = rest.utf8_chunks().next() {
            chunk.valid().chars().for_each(|letter| push_visible(letter, &mut out));
            let bad = chunk.invalid();
            rest = &rest[chunk.valid().len() + bad.len()..];
            if rest.is_empty() && is_unfinished(bad) {
                self.pending = bad.to_vec();
            } else if !bad.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
        out.into_bytes()
    }

    /// What is left at the end of the stream.
    pub fn finish(&mut self) -> Vec<u8> {
        if std::mem::take(&mut self.pending).is_empty() {
            Vec::new()
        } else {
            char::REPLACEMENT_CHARACTER.to_string().into_bytes()
        }
    }
}

/// A text that may hold words from a sandbox, on one or more lines.
pub(crate) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|letter| push_visible(letter, &mut out));
    out.replace('\r', "^M")
}

/// Bytes from a sandbox, on one line.
pub(crate) fn line(bytes: &[u8]) -> String {
    text(&String::from_utf8_lossy(bytes)).replace('\n', "\\n").replace('\t', " ")
}

fn push_visible(letter: char, out: &mut String) {
    match letter {
        '\n' | '\t' | '\r' => out.push(letter),
        '\0'..='\u{1f}' => out.extend(['^', char::from(letter as u8 + 0x40)]),
        '\u{7f}' => out.push_str("^?"),
        '\u{80}'..='\u{9f}' => out.push_str(&format!("\\x{:02x}", letter as u32)),
        letter if is_deceptive(letter) => out.extend(letter.escape_unicode()),
        _ => out.push(letter),
    }
}

fn is_plain(byte: &u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\n' | b'\t' | b'\r')
}

/// Whether these invalid bytes could be the beginning of a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod unit {
    use super::*;

    fn whole(chunks: &[&[u8]]) -> String {
        let mut filter = Neutralizer::default();
        let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| filter.push(chunk)).collect();
        out.extend(filter.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_are_shown() {
        assert_eq!(whole(&[b"a\x1b]0;title\x07b\tc\r\n"]), "a^[]0;title^Gb\tc\r\n");
        assert_eq!(whole(&["\u{9b}31m".as_bytes()]), "\\x9b31m");
        assert_eq!(whole(&[b"\x9b31m\xff"]), "\u{fffd}31m\u{fffd}");
        assert_eq!(text("x\ry\u{8}"), "x^My^H");
        assert_eq!(whole(&["a\u{202e}b\u{feff}".as_bytes()]), "a\\u{202e}b\\u{feff}");
        assert_eq!(whole(&["x".as_bytes(), &[0xe2, 0x80], &[0xae]]), "x\\u{202e}");
    }

    #[test]
    fn characters_survive_being_cut() {
        let text = "grüße €😀 ok\n".as_bytes();
        for cut in 0..text.len() {
            assert_eq!(whole(&[&text[..cut], &text[cut..]]).as_bytes(), text, "{cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(whole(&bytes).as_bytes(), text);
        // A control character in two bytes does not slip through between two chunks.
        assert_eq!(whole(&[b"\xc2", b"\x9b31m"]), "\\x9b31m");
        assert_eq!(whole(&[b"x\xe2\x82"]), "x\u{fffd}");
    }
}
