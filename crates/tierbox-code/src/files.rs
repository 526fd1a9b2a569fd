//! What the scripts say of files.

use std::collections::{BTreeMap, VecDeque};

use tierbox_core::{Error, ErrorKind, Result};

use crate::hash::sha256;
use crate::script::{Answer, unclear};
use crate::task::{CodeTask, CreatedFile, TaskEntry, TaskFile, TaskFiles};

/// Files that are listed. The script ends a few groups of 200 beyond it.
const MOST_LISTED: usize = 10_000;
/// Bytes that are hashed of the first 200 files.
pub(crate) const HASHED_FIRST: u64 = 128 << 20;
/// Bytes that are hashed of each 200 that follow: a task may leave so much that hashing never ends.
pub(crate) const HASHED_LATER: u64 = 8 << 20;
/// What to do about files that are too many or too large for one answer.
pub(crate) const ONE_BY_ONE: &str = "ask for one file by its name";

/// Files by name: size and hash.
#[derive(Default)]
pub(crate) struct Listing {
    files: BTreeMap<Vec<u8>, (u64, Option<String>)>,
    /// Why these are not all.
    incomplete: Option<String>,
}

impl Listing {
    /// What is there before the first run.
    pub fn of_inputs(task: &CodeTask) -> Self {
        let entry = |(name, contents): (&String, &Vec<u8>)| {
            let parts: Vec<&str> = name.split('/').filter(|part| *part != ".").collect();
            (parts.join("/").into_bytes(), (contents.len() as u64, Some(sha256(contents))))
        };
        Self { files: task.files.iter().map(entry).collect(), incomplete: None }
    }

    /// Reads as far as the answer makes sense: whatever is wrong with it, a task's files are not to stand in its way.
    pub fn read(answer: &mut Answer) -> Self {
        let mut listing = Self::default();
        while let Some([first, size, name]) = answer.fields() {
            listing.entry(&first, &size, name);
        }
        let cut = answer.incomplete.take().map(|(_, why)| why);
        listing.incomplete = listing.incomplete.or(cut);
        listing
    }

    /// Size and name, hash and name, or a remark.
    fn entry(&mut self, first: &[u8], size: &[u8], name: Vec<u8>) {
        if name.is_empty() {
            let remark = match first {
                b"many" => format!("there are more than {MOST_LISTED} files"),
                _ => "not everything that is there can be read".to_owned(),
            };
            self.incomplete.get_or_insert(remark);
            return;
        }
        if let Some(hash) = sha256_of(first) {
            if let Some(facts) = self.files.get_mut(&name) {
                facts.1 = Some(hash);
            }
        } else if self.files.len() == MOST_LISTED {
            self.entry(b"many", b"", Vec::new());
        } else if let Some(size) = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok()) {
            self.files.insert(name, (size, None));
        }
    }

    /// What is new or another than it was, and why that may not be all, or more than all.
    pub fn changed_since(self, before: &Self) -> (Vec<CreatedFile>, Option<String>) {
        let is_new = |(name, facts): &(Vec<u8>, (u64, Option<String>))| {
            before.files.get(name).is_none_or(|old| old != facts || facts.1.is_none())
        };
        let shown = |(name, (size, sha256)): (Vec<u8>, (u64, Option<String>))| CreatedFile {
            name: String::from_utf8_lossy(&name).into_owned(),
            name_bytes: name,
            size,
            sha256,
        };
        let earlier = before.incomplete.as_ref();
        let incomplete =
            self.incomplete.or_else(|| earlier.map(|why| format!("some may be older than this run: before it, {why}")));
        (self.files.into_iter().filter(is_new).map(shown).collect(), incomplete)
    }

    /// Names and sizes alone.
    pub fn into_files(self) -> TaskFiles {
        let files = self.files.into_iter().map(|(name, (size, _))| TaskEntry { name, size }).collect();
        TaskFiles { files, incomplete: self.incomplete }
    }
}

fn sha256_of(field: &[u8]) -> Option<String> {
    let is_sha256 = field.len() == 64 && field.iter().all(u8::is_ascii_hexdigit);
    is_sha256.then(|| String::from_utf8_lossy(field).into_owned())
}

/// Reads files and what they hold: names and sizes of some, what they hold one after the other, and the next.
pub(crate) fn read_contents(answer: &mut Answer, max: u64) -> Result<Vec<TaskFile>> {
    let operation = answer.operation;
    let (mut files, mut some, mut total) = (Vec::new(), VecDeque::new(), 0_u64);
    while let Some([kind, size, name]) = answer.fields() {
        match kind.as_slice() {
            b"file" => {
                let size: u64 = String::from_utf8_lossy(&size).parse().map_err(|_| unclear(operation))?;
                total = total.saturating_add(size);
                if total > max {
                    return Err(Error::new(ErrorKind::TooLarge, operation, format!("the files take more than {max} bytes"))
                        .with_help(ONE_BY_ONE));
                }
                some.push_back((name, usize::try_from(size).map_err(|_| unclear(operation))?));
            }
            b"contents" => {
                while let Some((name, size)) = some.pop_front() {
                    let contents = answer.take(size).ok_or_else(|| changed(operation))?.to_vec();
                    files.push(TaskFile { name, contents });
                }
            }
            b"many" => {
                let message = format!("there are more than {MOST_LISTED} files");
                return Err(Error::new(ErrorKind::TooLarge, operation, message).with_help(ONE_BY_ONE));
            }
            b"end" | b"unreadable" => {}
            _ => return Err(changed(operation)),
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// What a file holds is not as long as it was told before.
fn changed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Io, operation, "the files changed while they were read")
        .with_help("ask again when no task of the session runs, or for one file by its name")
        .retryable()
}

#[cfg(test)]
mod unit {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn listing(text: &str) -> Listing {
        Listing::read(&mut Answer::of("list", text.replace('|', "\0").as_bytes()))
    }

    #[test]
    fn what_cannot_be_listed_is_told_and_hides_nothing_else() {
        let listing = listing(&format!("|3|a||5|b|unreadable|0||many|0|||x|c|{HASH}||a|{HASH}||none|7"));
        assert_eq!(listing.files[b"a".as_slice()], (3, Some(HASH.to_owned())));
        assert_eq!(listing.files[b"b".as_slice()], (5, None));
        assert_eq!((listing.files.len(), listing.incomplete.unwrap().as_str()), (2, "not everything that is there can be read"));
    }

    #[test]
    fn what_is_not_known_to_be_older_is_shown_and_that_is_said() {
        let (before, after) = (listing("|3|a||5|b|many|0||"), listing(&format!("|3|a||5|b|{HASH}||a|")));
        let mut known = listing(&format!("|3|a|{HASH}||a|many|0||"));
        let names = |files: Vec<CreatedFile>| files.into_iter().map(|file| file.name).collect::<Vec<_>>();
        let (files, why) = after.changed_since(&before);
        assert_eq!(names(files), ["a", "b"], "without a hash nobody knows whether it is the same");
        assert_eq!(why.unwrap(), "some may be older than this run: before it, there are more than 10000 files");
        known.incomplete = None;
        let (files, why) = listing(&format!("|3|a|{HASH}||a|")).changed_since(&known);
        assert_eq!((names(files), why), (vec![], None));
    }

    #[test]
    fn contents_are_cut_by_the_sizes_that_were_told() {
        let read = |text: &str, max| read_contents(&mut Answer::of("get", text.replace('|', "\0").as_bytes()), max);
        let text = "file|2|b|file|0|a|contents|0||x|end|0||file|1|c|contents|0||yend|0||";
        let files = read(text, 3).unwrap();
        let files: Vec<_> = files.iter().map(|file| (file.name.as_slice(), file.contents.as_slice())).collect();
        assert_eq!(files, [(b"a".as_slice(), b"".as_slice()), (b"b", b"x\0"), (b"c", b"y")]);
        assert_eq!(read(text, 2).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(read("file|1|b|contents|0||xyend|0||", 9).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(read("file|4|b|contents|0||x", 9).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(read("many|0||", 9).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
