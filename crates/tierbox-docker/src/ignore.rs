//! `.dockerignore`: what of a build context is not sent, by the patterns that Docker's own builder takes.

use std::io::Read;
use std::path::{Path, PathBuf};

use tierbox_core::Result;
use tierbox_guest::transfer::Choice;

use crate::settings::{cut, invalid};

/// The largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The most patterns, and the longest one.
const MAX_PATTERNS: usize = 1000;
const MAX_PATTERN: usize = 1024;

/// The patterns of one file. The last that fits a path decides.
#[derive(Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
    /// Paths that are sent whatever the patterns say: what the builder itself needs.
    needed: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Pattern {
    /// Whether what fits is sent after all.
    excepted: bool,
    tokens: Vec<Token>,
}

/// A part of a pattern.
#[derive(Debug)]
enum Token {
    /// This byte.
    Byte(u8),
    /// One byte of a name.
    Any,
    /// Some bytes of a name.
    Run,
    /// Some bytes, of however many names.
    Deep,
    /// Nothing, or whole names: `**/`. Followed by [`Names`](Self::Names).
    Maybe,
    /// Within whole names.
    Names,
    /// One byte of a set, or not of it.
    Set { negated: bool, ranges: Vec<(u8, u8)> },
}

impl Ignore {
    /// The patterns for a Dockerfile in a context: those of `<Dockerfile>.dockerignore` if that is there, else `.dockerignore`'s.
    ///
    /// # Errors
    /// `InvalidProfile` for a file that cannot be read, or a pattern that is none.
    pub fn of(context: &Path, dockerfile: &str) -> Result<Self> {
        let own = format!("{dockerfile}.dockerignore");
        let name = if context.join(&own).symlink_metadata().is_ok() { own.as_str() } else { ".dockerignore" };
        let path = context.join(name);
        let needed = vec![dockerfile.as_bytes().to_vec(), name.as_bytes().to_vec()];
        let Some(text) = read(&path)? else { return Ok(Self { patterns: Vec::new(), needed }) };
        let mut patterns = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let pattern = Pattern::read(line).map_err(|why| invalid(format!("{}:{number}: {why}", path.display())))?;
            patterns.extend(pattern);
            if patterns.len() > MAX_PATTERNS {
                return Err(invalid(format!("{}: more than {MAX_PATTERNS} patterns", path.display())));
            }
        }
        Ok(Self { patterns, needed })
    }

    /// What becomes of a path.
    pub fn choose(&self, path: &[u8]) -> Choice {
        if self.needed.iter().any(|needed| needed == path) {
            return Choice::Pack;
        }
        let mut ignored = false;
        for pattern in &self.patterns {
            if pattern.excepted == ignored && pattern.fits_or_parent(path) {
                ignored = !pattern.excepted;
            }
        }
        let inside = [path, b"/"].concat();
        let may_hold =
            self.patterns.iter().any(|pattern| pattern.excepted) || self.needed.iter().any(|needed| needed.starts_with(&inside));
        match (ignored, may_hold) {
            (false, _) => Choice::Pack,
            (true, true) => Choice::Descend,
            (true, false) => Choice::Skip,
        }
    }
}

/// A file's text; `None` if there is none. A link is not followed.
fn read(path: &PathBuf) -> Result<Option<String>> {
    let unread = |why: String| invalid(format!("{} cannot be read: {why}", path.display()));
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unread(error.to_string())),
        Ok(found) if !found.is_file() => return Err(unread("it is not a file".to_owned())),
        Ok(found) if found.len() > MAX_BYTES => return Err(unread("it is larger than 1 MiB".to_owned())),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| unread(error.to_string()))?;
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|error| unread(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unread("it is not UTF-8".to_owned()))?;
    Ok(Some(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned)))
}

impl Pattern {
    /// Reads a line; `None` for an empty one or a remark.
    fn read(line: &str) -> Result<Option<Self>, String> {
        if line.starts_with('#') {
            return Ok(None);
        }
        let line = line.trim();
        let (excepted, text) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
        if text.len() > MAX_PATTERN {
            return Err("the pattern is too long".to_owned());
        }
        if excepted && text.is_empty() {
            return Err("`!` names nothing".to_owned());
        }
        let clean = cleaned(text);
        if clean.is_empty() {
            return Ok(None);
        }
        let tokens = tokens(clean.as_bytes()).ok_or_else(|| format!("{:?} is not a pattern", cut(text)))?;
        Ok(Some(Self { excepted, tokens }))
    }

    /// Whether a path or one of the directories it is in fits.
    fn fits_or_parent(&self, path: &[u8]) -> bool {
        let ends = (0..path.len()).filter(|at| path[*at] == b'/').chain([path.len()]);
        ends.into_iter().any(|end| self.fits(&path[..end]))
    }

    /// Whether the whole path fits. Every place of the pattern that can be reached is kept, so no path takes long.
    fn fits(&self, path: &[u8]) -> bool {
        let mut places = vec![false; self.tokens.len() + 1];
        self.enter(&mut places, 0);
        for byte in path {
            let mut next = vec![false; places.len()];
            for (at, token) in self.tokens.iter().enumerate().filter(|(at, _)| places[*at]) {
                match token {
                    Token::Deep => self.enter(&mut next, at),
                    Token::Run if *byte != b'/' => self.enter(&mut next, at),
                    Token::Names => {
                        next[at] = true;
                        if *byte == b'/' {
                            self.enter(&mut next, at + 1);
                        }
                    }
                    token if token.takes(*byte) => self.enter(&mut next, at + 1),
                    _ => {}
                }
            }
            places = next;
        }
        places[self.tokens.len()]
    }

    /// Marks a place and those that follow it without a byte.
    fn enter(&self, places: &mut [bool], at: usize) {
        if places[at] {
            return;
        }
        places[at] = true;
        match self.tokens.get(at) {
            Some(Token::Run | Token::Deep) => self.enter(places, at + 1),
            Some(Token::Maybe) => {
                places[at + 1] = true;
                self.enter(places, at + 2);
            }
            _ => {}
        }
    }
}

impl Token {
    /// Whether it stands for this one byte.
    fn takes(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::Any => byte != b'/',
            Self::Set { negated, ranges } => {
                byte != b'/' && ranges.iter().any(|(from, to)| (*from..=*to).contains(&byte)) != *negated
            }
            Self::Run | Self::Deep | Self::Maybe | Self::Names => false,
        }
    }
}

/// A pattern's path in its plain form: relative, without `.`, `..` and empty names.
fn cleaned(text: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in text.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

/// The parts of a pattern; `None` if a set is not closed.
fn tokens(text: &[u8]) -> Option<Vec<Token>> {
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'*' if text.get(at) == Some(&b'*') => {
                while text.get(at) == Some(&b'*') {
                    at += 1;
                }
                if text.get(at) == Some(&b'/') {
                    at += 1;
                    tokens.extend([Token::Maybe, Token::Names]);
                } else {
                    tokens.push(Token::Deep);
                }
            }
            b'*' => tokens.push(Token::Run),
            b'?' => tokens.push(Token::Any),
            b'[' => tokens.push(set(text, &mut at)?),
            b'\\' => {
                tokens.push(Token::Byte(*text.get(at)?));
                at += 1;
            }
            byte => tokens.push(Token::Byte(*byte)),
        }
    }
    Some(tokens)
}

fn set(text: &[u8], at: &mut usize) -> Option<Token> {
    let negated = text.get(*at) == Some(&b'^');
    *at += usize::from(negated);
    let mut ranges = Vec::new();
    while *text.get(*at)? != b']' || ranges.is_empty() {
        let from = member(text, at)?;
        let to = if text.get(*at) == Some(&b'-') && text.get(*at + 1) != Some(&b']') {
            *at += 1;
            member(text, at)?
        } else {
            from
        };
        ranges.push((from, to));
    }
    *at += 1;
    Some(Token::Set { negated, ranges })
}

fn member(text: &[u8], at: &mut usize) -> Option<u8> {
    *at += usize::from(text.get(*at) == Some(&b'\\'));
    let byte = text.get(*at).copied();
    *at += 1;
    byte
}

#[cfg(test)]
mod unit {
    use super::*;

    fn chosen(patterns: &str, path: &str) -> Choice {
        let patterns = patterns.lines().filter_map(|line| Pattern::read(line).unwrap()).collect();
        Ignore { patterns, needed: vec![b"Dockerfile".to_vec()] }.choose(path.as_bytes())
    }

    #[test]
    fn patterns_mean_what_dockers_mean() {
        for (pattern, fitting, others) in [
            ("*.log", &["a.log", ".log"][..], &["a/b.log", "a.logs"][..]),
            ("**/*.log", &["a.log", "a/b.log", "a/b/c.log"], &["a.txt"]),
            ("a", &["a", "a/b", "a/b/c"], &["b/a", "ab"]),
            ("/a/", &["a", "a/b"], &["b/a"]),
            ("./a/../b", &["b"], &["a"]),
            ("a/**", &["a/b", "a/b/c"], &["b"]),
            ("a/**/z", &["a/z", "a/b/z", "a/b/c/z"], &["a/bz", "az"]),
            ("*/temp*", &["a/temp", "a/temporary.txt"], &["temp", "a/b/temp"]),
            ("temp?", &["tempa"], &["temp", "temp/"]),
            ("[a-c]x[^0-9]", &["axy", "cx-"], &["dxy", "ax1"]),
            ("\\*", &["*"], &["a"]),
            ("**", &["a", "a/b"], &[]),
        ] {
            for path in fitting {
                assert_eq!(chosen(pattern, path), Choice::Skip, "{pattern} {path}");
            }
            for path in others {
                assert_eq!(chosen(pattern, path), Choice::Pack, "{pattern} {path}");
            }
        }
    }

    #[test]
    fn the_last_that_fits_decides_and_what_the_builder_needs_is_sent() {
        let patterns = "# remark\n\n*\n!src\nsrc/secret\n";
        assert_eq!(chosen(patterns, "a"), Choice::Descend);
        assert_eq!(chosen(patterns, "src/main.rs"), Choice::Pack);
        assert_eq!(chosen(patterns, "src/secret"), Choice::Descend);
        assert_eq!(chosen("*", "Dockerfile"), Choice::Pack);
    }

    #[test]
    fn what_is_no_pattern_is_refused_and_none_takes_long() {
        for bad in ["[a", "a\\", "!"] {
            assert!(Pattern::read(bad).is_err(), "{bad}");
        }
        let many = "*a".repeat(500);
        let begun = std::time::Instant::now();
        assert_eq!(chosen(&many, &"a".repeat(400)), Choice::Pack);
        assert!(begun.elapsed().as_secs() < 5);
    }

    #[test]
    fn a_link_is_no_list() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(".dockerignore")).unwrap();
        assert!(Ignore::of(dir.path(), "Dockerfile").is_err());
    }
}
