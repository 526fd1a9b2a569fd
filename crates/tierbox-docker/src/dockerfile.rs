//! Dockerfiles whose every stage bears a label.
//!
//! The builder itself labels the last image alone. What earlier stages, and builds that failed or were interrupted, leave behind
//! would bear nothing by which it is found again; a label that stands at the beginning of each stage is in all that follows.

/// Puts a `LABEL` behind every `FROM`. Everything else stays as it is, byte for byte.
pub fn labelled(text: &[u8], key: &str, value: &str) -> Vec<u8> {
    let label = format!("LABEL {key}=\"{value}\"\n");
    let escape = escape(text);
    let mut out = Vec::with_capacity(text.len() + 256);
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    while let Some(line) = lines.next() {
        out.extend_from_slice(line);
        if is_nothing(line) {
            continue;
        }
        let instruction = whole(line, escape, &mut lines, &mut out);
        for (word, dashed) in heredocs(&instruction) {
            copy_document(&word, dashed, &mut lines, &mut out);
        }
        if is_from(&instruction) {
            if out.last() != Some(&b'\n') {
                out.push(b'\n');
            }
            out.extend_from_slice(label.as_bytes());
        }
    }
    out
}

/// An instruction in one line, whose further lines are copied on the way. Comments and empty lines may stand among them.
fn whole<'a>(first: &'a [u8], escape: u8, lines: &mut impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) -> Vec<u8> {
    let mut instruction = first.to_vec();
    let mut joined = goes_on(first, escape);
    while joined {
        let Some(next) = lines.next() else { break };
        out.extend_from_slice(next);
        if !is_nothing(next) {
            cut(&mut instruction);
            instruction.extend_from_slice(next);
            joined = goes_on(next, escape);
        }
    }
    instruction
}

/// Copies a document up to the word that ends it.
fn copy_document<'a>(word: &[u8], dashed: bool, lines: &mut impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    for line in lines {
        out.extend_from_slice(line);
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let tabs = if dashed { line.iter().take_while(|byte| **byte == b'\t').count() } else { 0 };
        if &line[tabs..] == word {
            break;
        }
    }
}

/// The character that joins a line with the next: a directive in the first lines may name another than the backslash.
fn escape(text: &[u8]) -> u8 {
    for line in text.split(|byte| *byte == b'\n') {
        let Some(rest) = line.trim_ascii().strip_prefix(b"#") else { break };
        let Some(equals) = rest.iter().position(|byte| *byte == b'=') else { break };
        if rest[..equals].trim_ascii().eq_ignore_ascii_case(b"escape") && rest[equals + 1..].trim_ascii() == b"`" {
            return b'`';
        }
    }
    b'\\'
}

/// Whether a line is empty or a comment.
fn is_nothing(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.is_empty() || line.starts_with(b"#")
}

/// Whether a line is joined with the next.
fn goes_on(line: &[u8], escape: u8) -> bool {
    line.trim_ascii_end().last() == Some(&escape)
}

/// Takes off what joins it with the next.
fn cut(line: &mut Vec<u8>) {
    let length = line.trim_ascii_end().len();
    line.truncate(length.saturating_sub(1));
    line.push(b' ');
}

fn is_from(instruction: &[u8]) -> bool {
    instruction
        .split(u8::is_ascii_whitespace)
        .find(|word| !word.is_empty())
        .is_some_and(|word| word.eq_ignore_ascii_case(b"FROM"))
}

/// The words that end the documents that follow an instruction, and whether tabs may stand before each.
fn heredocs(instruction: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let mut words = instruction.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let takes_some = ["RUN", "COPY", "ADD"].map(str::as_bytes);
    if !words.next().is_some_and(|word| takes_some.iter().any(|known| word.eq_ignore_ascii_case(known))) {
        return Vec::new();
    }
    words.filter_map(heredoc).collect()
}

/// `<<WORD`, `<<-WORD`, with quotes or without; a number may stand before it.
fn heredoc(word: &[u8]) -> Option<(Vec<u8>, bool)> {
    let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = word[digits..].strip_prefix(b"<<")?;
    let (dashed, rest) = rest.strip_prefix(b"-").map_or((false, rest), |rest| (true, rest));
    let name: Vec<u8> = rest.iter().copied().filter(|byte| !b"'\"".contains(byte)).collect();
    (!name.is_empty() && !name.contains(&b'<')).then_some((name, dashed))
}

#[cfg(test)]
mod unit {
    use super::*;

    fn of(text: &str) -> String {
        String::from_utf8(labelled(text.as_bytes(), "k", "v")).unwrap()
    }

    #[test]
    fn every_stage_bears_it() {
        assert_eq!(
            of("ARG A=1\nFROM a AS one\nRUN x\n\nfrom b\nCOPY --from=one / /\n"),
            "ARG A=1\nFROM a AS one\nLABEL k=\"v\"\nRUN x\n\nfrom b\nLABEL k=\"v\"\nCOPY --from=one / /\n"
        );
        assert_eq!(of("FROM a"), "FROM a\nLABEL k=\"v\"\n");
    }

    #[test]
    fn lines_that_are_joined_stay_so() {
        assert_eq!(
            of("FROM \\\n# why\n\n  a\nRUN x \\\n  FROM y\n"),
            "FROM \\\n# why\n\n  a\nLABEL k=\"v\"\nRUN x \\\n  FROM y\n"
        );
        assert_eq!(of("# escape=`\nFROM `\n a\nRUN c:\\\nRUN d\n"), "# escape=`\nFROM `\n a\nLABEL k=\"v\"\nRUN c:\\\nRUN d\n");
        assert_eq!(of("# FROM a \\\nFROM b\n"), "# FROM a \\\nFROM b\nLABEL k=\"v\"\n");
    }

    #[test]
    fn documents_within_are_left_alone() {
        let text = "FROM a\nRUN <<EOF cat <<-'X'\nFROM b\nEOF\nFROM c\n\tX\nFROM d\n";
        assert_eq!(of(text), text.replace("FROM a\n", "FROM a\nLABEL k=\"v\"\n").replace("FROM d\n", "FROM d\nLABEL k=\"v\"\n"));
        assert_eq!(of("FROM a\nRUN x <<<EOF\nFROM b\n").matches("LABEL").count(), 2);
    }
}
