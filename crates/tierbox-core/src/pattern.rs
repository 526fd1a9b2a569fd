//! Patterns of rules.

/// Whether a text fits a pattern: `*` stands for any text, `?` for one byte, `#` for a number (all digits there are, at least
/// one), everything else for itself. The whole text must fit.
pub fn fits(pattern: &str, text: &[u8]) -> bool {
    let pattern = pattern.as_bytes();
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star, one byte further each time: the text is hostile, so nothing here may branch.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            Some(b'#') => {
                let digits = text[t..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                (digits > 0).then_some(digits)
            }
            Some(b'?') => (t < text.len()).then_some(1),
            Some(byte) => (text.get(t) == Some(byte)).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(count), _) => (p, t) = (p + 1, t + count),
            (None, Some((after, from))) if from < text.len() => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            (None, _) => return false,
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_whole_text_must_fit() {
        for (pattern, text) in [
            ("", ""),
            ("a", "a"),
            ("*", ""),
            ("*", "anything\nat all"),
            ("a*c", "abbc"),
            ("a*b*c", "a--b-b-c"),
            ("https://*.example.org/*", "https://a.example.org/x"),
            ("#", "042"),
            ("v#.#", "v10.2"),
            ("?x", "ax"),
            ("*#", "a1b22"),
        ] {
            assert!(fits(pattern, text.as_bytes()), "{pattern:?} {text:?}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("a", "ab"),
            ("a*c", "abb"),
            ("#", ""),
            ("#", "1a"),
            ("#1", "11"),
            ("?", ""),
            ("https://example.org/*", "https://example.org.evil/"),
        ] {
            assert!(!fits(pattern, text.as_bytes()), "{pattern:?} {text:?}");
        }
    }

    #[test]
    fn a_hostile_text_takes_no_exponential_time() {
        let text = vec![b'a'; 100_000];
        assert!(!fits("*a*a*a*a*a*b", &text));
    }
}
