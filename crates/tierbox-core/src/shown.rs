//! What a reader does not see as what it is.

/// Whether a character hides, or shows what is around it otherwise than it is: control characters, and Unicode's format characters
/// that turn the direction of writing, break lines or have no width. Joiners (U+200C and U+200D) are not among them, since whole scripts
/// and many emoji need them.
///
/// Texts out of a sandbox show these by their numbers. ([Unicode Technical Report 36](https://www.unicode.org/reports/tr36/), and
/// CVE-2021-42574 for what can be done with them.)
pub fn is_deceptive(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod unit {
    use super::is_deceptive;

    #[test]
    fn what_turns_or_hides_is_told_from_what_people_write() {
        let deceptive = "\u{1b}\u{9b}\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{61c}";
        assert!(deceptive.chars().all(is_deceptive));
        assert!(!"grüße שלום 👩\u{200d}👧 می\u{200c}خواهم €".chars().any(is_deceptive));
    }
}
