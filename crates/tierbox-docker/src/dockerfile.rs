//! Dockerfiles whose every stage bears a label.
//!
//! The builder itself labels the last image alone. What earlier stages, and builds that failed or were interrupted, leave behind
//! would bear nothing by which it is found again; a label that stands at the beginning of each stage is in all that follows.

use std::collections::BTreeMap;

/// What some editors write at the beginning of a file in UTF-8; the builder passes over it.
const BYTE_ORDER: &[u8] = b"\xef\xbb\xbf";

/// Puts a `LABEL` behind every `FROM`, and other images in the place of some that are named there. Everything else stays as it is,
/// byte for byte, but for a mark of the byte order at the beginning, which says nothing.
pub fn labelled(text: &[u8], key: &str, value: &str, instead: &BTreeMap<Vec<u8>, String>) -> Vec<u8> {
    let label = format!("LABEL {key}=\"{value}\"\n");
    let (mut out, mut stages) = (Vec::with_capacity(text.len() + 256), Vec::<String>::new());
    for_each(text, |instruction, written| {
        if !is_from(instruction) {
            return out.extend_from_slice(written);
        }
        // A stage may be called like an image, its own base even: it keeps its name, and is meant by it from then on.
        let image = base(instruction).filter(|(_, word)| !stages.contains(&lower(word)));
        stages.extend(stage(instruction));
        match image.and_then(|(at, word)| Some((at, instead.get(word)?))) {
            // In one line, whatever it was before.
            Some((at, other)) => {
                let mut words: Vec<&[u8]> = words(instruction).collect();
                words[at] = other.as_bytes();
                out.extend_from_slice(&words.join(&b' '));
            }
            None => out.extend_from_slice(written),
        }
        if out.last() != Some(&b'\n') {
            out.push(b'\n');
        }
        out.extend_from_slice(label.as_bytes());
    });
    out
}

/// The images that stages are made of, as each is written and as it is called once arguments stand in it. Earlier stages are none.
pub fn bases(text: &[u8], args: &BTreeMap<String, String>) -> BTreeMap<Vec<u8>, String> {
    let (mut found, mut stages, mut known) = (BTreeMap::new(), Vec::<String>::new(), BTreeMap::new());
    for_each(text, |instruction, _| {
        let all: Vec<&[u8]> = words(instruction).collect();
        let said = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        if all[0].eq_ignore_ascii_case(b"ARG") && stages.is_empty() {
            for word in &all[1..] {
                let word = said(word);
                let (name, value) = word.split_once('=').unwrap_or((&word, ""));
                let value = args.get(name).map_or(value.trim_matches(['"', '\'']), String::as_str);
                known.insert(name.to_owned(), value.to_owned());
            }
        }
        let Some((_, word)) = base(instruction).filter(|_| is_from(instruction)) else { return };
        let name = filled(&said(word), &known);
        if !stages.contains(&name.to_ascii_lowercase()) && !name.contains('$') {
            found.insert(word.to_vec(), name);
        }
        stages.push(stage(instruction).unwrap_or_default());
    });
    found
}

/// A text with arguments in it. What is more than a name (`${A:-b}`) is left as it is.
fn filled(text: &str, known: &BTreeMap<String, String>) -> String {
    // The longest first: a name may be the beginning of another.
    let mut names: Vec<(&String, &String)> = known.iter().collect();
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    names.into_iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value)
    })
}

/// The image that a stage is made of, and which word of the instruction it is.
fn base(instruction: &[u8]) -> Option<(usize, &[u8])> {
    words(instruction).enumerate().skip(1).find(|(_, word)| !word.starts_with(b"--"))
}

/// What the stage is called, in small letters, as the builder compares such names.
fn stage(instruction: &[u8]) -> Option<String> {
    words(instruction).skip_while(|word| !word.eq_ignore_ascii_case(b"AS")).nth(1).map(lower)
}

fn lower(word: &[u8]) -> String {
    String::from_utf8_lossy(word).to_ascii_lowercase()
}

fn words(instruction: &[u8]) -> impl Iterator<Item = &[u8]> {
    instruction.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// Calls `visit` with each instruction in one line, and with how it is written. Comments and empty lines are instructions of nothing but
/// themselves.
fn for_each(text: &[u8], mut visit: impl FnMut(&[u8], &[u8])) {
    let text = text.strip_prefix(BYTE_ORDER).unwrap_or(text);
    let escape = escape(text);
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    while let Some(line) = lines.next() {
        let mut written = line.to_vec();
        if is_nothing(line) {
            visit(b"#", &written);
            continue;
        }
        let instruction = whole(line, escape, &mut lines, &mut written);
        for (word, dashed) in heredocs(&instruction) {
            copy_document(&word, dashed, &mut lines, &mut written);
        }
        visit(&instruction, &written);
    }
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
    words(instruction).next().is_some_and(|word| word.eq_ignore_ascii_case(b"FROM"))
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
        String::from_utf8(labelled(text.as_bytes(), "k", "v", &BTreeMap::new())).unwrap()
    }

    #[test]
    fn every_stage_bears_it() {
        assert_eq!(
            of("ARG A=1\nFROM a AS one\nRUN x\n\nfrom b\nCOPY --from=one / /\n"),
            "ARG A=1\nFROM a AS one\nLABEL k=\"v\"\nRUN x\n\nfrom b\nLABEL k=\"v\"\nCOPY --from=one / /\n"
        );
        assert_eq!(of("FROM a"), "FROM a\nLABEL k=\"v\"\n");
        assert_eq!(of("\u{feff}FROM a"), "FROM a\nLABEL k=\"v\"\n");
        assert_eq!(of("\u{feff}# escape=`\nFROM `\n a\n"), "# escape=`\nFROM `\n a\nLABEL k=\"v\"\n");
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
    fn bases_are_found_and_replaced() {
        let text = "ARG OS=debian\nARG TAG\nFROM --platform=x ${OS}:$TAG AS one\nARG OS=not\nFROM One\nFROM \\\n  b:1 \\\n  as two\nFROM $WHO\n";
        let args = BTreeMap::from([("TAG".to_owned(), "12".to_owned())]);
        let found = bases(text.as_bytes(), &args);
        let expected = [("${OS}:$TAG", "debian:12"), ("b:1", "b:1")];
        assert_eq!(found, expected.map(|(word, name)| (word.as_bytes().to_vec(), name.to_owned())).into());
        let instead = BTreeMap::from([(b"b:1".to_vec(), "sha256:1".to_owned()), (b"${OS}:$TAG".to_vec(), "sha256:2".to_owned())]);
        let labelled = String::from_utf8(labelled(text.as_bytes(), "k", "v", &instead)).unwrap();
        assert!(labelled.contains("\nFROM --platform=x sha256:2 AS one\nLABEL k=\"v\"\n"), "{labelled}");
        assert!(labelled.contains("\nFROM sha256:1 as two\nLABEL") && labelled.contains("\nFROM One\nLABEL"), "{labelled}");
    }

    #[test]
    fn a_stage_that_is_called_like_its_base_keeps_its_name() {
        let instead = BTreeMap::from([(b"base".to_vec(), "sha256:1".to_owned()), (b"from".to_vec(), "sha256:2".to_owned())]);
        let text = "FROM base AS base\nfrom from\nFROM base\nCOPY --from=base /a /b\n";
        let labelled = String::from_utf8(labelled(text.as_bytes(), "k", "v", &instead)).unwrap();
        let label = "LABEL k=\"v\"\n";
        let expected = format!("FROM sha256:1 AS base\n{label}from sha256:2\n{label}FROM base\n{label}COPY --from=base /a /b\n");
        assert_eq!(labelled, expected);
    }

    #[test]
    fn documents_within_are_left_alone() {
        let text = "FROM a\nRUN <<EOF cat <<-'X'\nFROM b\nEOF\nFROM c\n\tX\nFROM d\n";
        assert_eq!(of(text), text.replace("FROM a\n", "FROM a\nLABEL k=\"v\"\n").replace("FROM d\n", "FROM d\nLABEL k=\"v\"\n"));
        assert_eq!(of("FROM a\nRUN x <<<EOF\nFROM b\n").matches("LABEL").count(), 2);
    }
}
