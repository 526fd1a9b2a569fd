//! Files over a plain transport. Small ones take one script, large ones one for each piece, some pieces at a time.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tierbox_core::{ByteReader, DirEntry, Error, ErrorKind, FileKind, FileMeta, GuestPath, ReadOptions, Result, WriteOptions};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::call::Caller;
use super::exec::Pieces;
use super::script::PRELUDE;
use super::words::Words;
use super::{PlainOutput, PlainRun, PlainSandbox};
use crate::driver;
use crate::errors::printable;

/// How long one script may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Pieces of one file that are under way at once.
const AHEAD: usize = 4;
/// What is held of a directory's listing.
const LISTING: u64 = 64 << 20;

/// Says what is wrong with a path, for `fail`: the nearest directory that exists and cannot be entered, or nothing.
pub(super) const BLAME: &str = r#"
fail() { echo "tierbox-fail $1"; exit 1; }
blame() {
  at=$1
  while :; do
    case $at in */*) at=${at%/*};; *) at=.;; esac
    [ -n "$at" ] || at=/
    if [ -d "$at" ]; then [ -x "$at" ] || fail denied; fail missing; fi
    [ -e "$at" ] || [ -L "$at" ] && fail missing
    case $at in /|.) fail missing;; esac
  done
}
exists() { [ -e "$1" ] || [ -L "$1" ] || blame "$1"; }
facts() { stat -c '%f %s %u %g '$Y -- "$1"; }
"#;

const STAT: &str = r#"
if [ -n "$FOLLOW" ]; then [ -e "$P" ] || blame "$P"; else exists "$P"; fi
if [ -n "$FOLLOW" ]; then stat -L -c '%f %s %u %g '$Y -- "$P"; else facts "$P"; fi || exit 1
if [ -z "$FOLLOW" ] && [ -L "$P" ]; then readlink -n -- "$P" || exit 1; fi
"#;

const READ: &str = r#"
[ -e "$P" ] || blame "$P"
[ ! -d "$P" ] || fail directory
[ -f "$P" ] || fail other
[ -r "$P" ] || fail denied
stat -L -c '%f %s %u %g '$Y -- "$P" || exit 1
"#;

const WRITE_PLACE: &str = r#"
if [ -L "$P" ]; then P=$(readlink -f -- "$P"; echo .); P=${P%.}; P=${P%
}; [ -n "$P" ] || fail missing; fi
[ ! -d "$P" ] || fail directory
case $P in */) fail directory;; esac
if [ -e "$P" ]; then
  [ -f "$P" ] || fail other
  [ -z "$NEW" ] || fail exists
  [ -w "$P" ] || fail denied
fi
case $P in */*) dir=${P%/*}; [ -n "$dir" ] || dir=/;; *) dir=.;; esac
if [ ! -d "$dir" ]; then
  [ ! -e "$dir" ] || fail missing
  mkdir -p -- "$dir" || exit 1
fi
[ -w "$dir" ] && [ -x "$dir" ] || fail denied
T=$dir/.tierbox-$TAG
"#;

const WRITE_END: &str = r#"
if [ -z "$MODE" ]; then if [ -e "$P" ]; then MODE=$(stat -L -c %a -- "$P"); else MODE=644; fi; fi
chmod "$MODE" "$T" || { rm -f -- "$T"; exit 1; }
if [ -n "$NEW" ]; then
  ln -- "$T" "$P" || { rm -f -- "$T"; exit 1; }
  rm -f -- "$T"
else
  mv -f -- "$T" "$P" || { rm -f -- "$T"; exit 1; }
fi
"#;

const LIST: &str = r#"
exists "$P"
[ -d "$P" ] || fail missing
[ -r "$P" ] && cd -- "$P" || fail denied
set +f
set --
for name in * .*; do
  case $name in .|..) continue;; esac
  [ -e "$name" ] || [ -L "$name" ] || continue
  if [ $# -ge 200 ]; then show "$@"; set --; fi
  printf '%s\0' "$name"
  set -- "$@" "$name"
done
[ $# = 0 ] || show "$@"
"#;

/// The facts of names that were printed, in their order, and where links lead.
const SHOW: &str = r#"
show() {
  printf '\0'
  stat -c '%f %s %u %g '$Y -- "$@" || exit 1
  for link in "$@"; do
    if [ -L "$link" ]; then readlink -n -- "$link" || exit 1; printf '\0'; fi
  done
  printf '\0'
}
"#;

const REMOVE: &str = r#"
exists "$P"
case $P in */) [ ! -L "${P%/}" ] || P=${P%/};; esac
if [ -d "$P" ] && [ ! -L "$P" ]; then
  if [ -n "$TREE" ]; then rm -rf -- "$P"; else rmdir -- "$P"; fi
else
  rm -f -- "$P"
fi || exit 1
"#;

const MAKE_DIR: &str = r#"
[ ! -d "$P" ] || exit 0
! { [ -e "$P" ] || [ -L "$P" ]; } || fail exists
umask 022
mkdir -p -- "$P" || { [ -e "$P" ] && fail exists; exit 1; }
"#;

/// What went wrong, from a script's own word or from what a tool complained.
pub(super) fn failed(output: &PlainOutput, tried: &'static str, path: &GuestPath) -> Error {
    let text = String::from_utf8_lossy(&output.stdout);
    let word = text.lines().find_map(|line| line.strip_prefix("tierbox-fail "));
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    // Behind the last colon stands the system's own message; before it may stand a name that says anything.
    let cause = complaint.rsplit(": ").next().unwrap_or_default();
    let (kind, what) = match (word, cause) {
        (Some("missing"), _) | (None, "No such file or directory" | "Not a directory") => (ErrorKind::NotFound, "not found"),
        (Some("denied"), _) | (None, "Permission denied" | "Operation not permitted" | "Read-only file system") => {
            (ErrorKind::PermissionDenied, "permission denied")
        }
        (Some("directory"), _) | (None, "Is a directory" | "Directory not empty") => (ErrorKind::IsADirectory, "is a directory"),
        (Some("other"), _) => (ErrorKind::NotAFile, "is not a regular file"),
        (Some("exists"), _) | (None, "File exists") => (ErrorKind::AlreadyExists, "exists already"),
        (None, "No space left on device" | "Disk quota exceeded") => (ErrorKind::NoSpace, "no space left in the sandbox"),
        (None, "File too large") => (ErrorKind::TooLarge, "is larger than allowed"),
        _ => {
            let message =
                format!("{path}: the machine's script failed (status {}): {}", output.status, printable(complaint, 300));
            return Error::new(ErrorKind::Io, tried, message);
        }
    };
    Error::new(kind, tried, format!("{path}: {what}")).with_context("path", path)
}

fn odd(tried: &'static str, path: &GuestPath) -> Error {
    Error::new(ErrorKind::Protocol, tried, format!("{path}: the machine's answer makes no sense"))
}

/// Reads a line of facts.
fn meta(line: &[u8]) -> Option<FileMeta> {
    let text = std::str::from_utf8(line).ok()?;
    let mut fields = text.split(' ');
    let mode = u32::from_str_radix(fields.next()?, 16).ok()?;
    let size = fields.next()?.parse().ok()?;
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let modified_ns = nanoseconds(fields.next()?)?;
    let kind = match mode & 0o170_000 {
        0o100_000 => FileKind::File,
        0o040_000 => FileKind::Directory,
        0o120_000 => FileKind::Symlink,
        _ => FileKind::Other,
    };
    Some(FileMeta { kind, size, mode: mode & 0o7777, uid, gid, modified_ns, target: None })
}

/// Seconds since 1970, with nine digits of a fraction or none.
fn nanoseconds(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let fraction = format!("{fraction:0<9}");
    let fraction: i64 = fraction.get(..9)?.parse().ok()?;
    let whole: i64 = seconds.parse().ok()?;
    whole.checked_mul(1_000_000_000)?.checked_add(if text.starts_with('-') { -fraction } else { fraction })
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// One piece of a file of our own, from a position on.
pub(super) async fn piece(caller: &Caller, file: &str, at: u64, tried: &'static str) -> Result<Bytes> {
    let run = PlainRun::new(format!("{PRELUDE}{}", piece_script(caller, file, at)), Bytes::new(), LIMIT);
    let output = caller.run_here(run.expecting(caller.piece()), tried).await?;
    Ok(from_piece(caller, output, at))
}

/// Prints the piece in which a position lies, whole: what is before the position is cut off here.
fn piece_script(caller: &Caller, file: &str, at: u64) -> String {
    let size = caller.piece();
    format!("dd if={file} bs={size} skip={} count=1 2>/dev/null\n", at / size as u64)
}

fn from_piece(caller: &Caller, output: PlainOutput, at: u64) -> Bytes {
    let mut piece = Bytes::from(output.stdout);
    let before = (at % caller.piece() as u64) as usize;
    piece.split_off(before.min(piece.len()))
}

/// Appends to a file of our own that is so long already. Running it again changes nothing.
pub(super) async fn append(caller: &Caller, file: &str, at: u64, piece: Bytes, private: bool) -> Result<()> {
    let script = format!("{PRELUDE}umask 077\n{}", append_script(file, at, piece.len()));
    let output = caller.run_here(PlainRun::new(script, piece, LIMIT).private(private), "upload").await?;
    if output.status == 0 { Ok(()) } else { Err(failed(&output, "upload", &GuestPath::from(file))) }
}

/// `file` is a word of a script.
fn append_script(file: &str, at: u64, count: usize) -> String {
    if at == 0 {
        return format!("cat >{file} || exit 1\n");
    }
    format!(
        "size=$(wc -c <{file}) || exit 1\n\
         if [ $((size)) = {at} ]; then cat >>{file} || exit 1\n\
         elif [ $((size)) != {} ]; then echo 'the file has changed' >&2; exit 1; fi\n",
        at + count as u64
    )
}

/// Writes a piece of `$T` at its place. Running it again changes nothing.
fn put_script(at: u64, size: usize) -> String {
    if at == 0 {
        return "cat >\"$T\" || { rm -f -- \"$T\"; exit 1; }\n".to_owned();
    }
    // Of what it says the first line is the complaint; the others count.
    format!(
        "[ -f \"$T\" ] || fail missing\n\
         said=$(dd of=\"$T\" bs={size} seek={} conv=notrunc 2>&1) || {{\n\
         rm -f -- \"$T\"; printf '%s\\n' \"$said\" | head -n 1 >&2; exit 1; }}\n",
        at / size as u64
    )
}

/// Checks that all of `$T` is there.
fn whole_script(size: u64) -> String {
    format!(
        "there=$(wc -c <\"$T\") || exit 1\n\
         [ $((there)) = {size} ] || {{ rm -f -- \"$T\"; echo 'the file has changed' >&2; exit 1; }}\n"
    )
}

/// What became of one of several.
fn settled(done: Option<Result<Result<()>, tokio::task::JoinError>>) -> Result<()> {
    match done {
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(Error::new(ErrorKind::Internal, "write", error.to_string())),
        None => Ok(()),
    }
}

/// A piece that was asked for. Who does not want it any more drops this.
struct Asked(JoinHandle<Result<Bytes>>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PlainSandbox {
    /// Runs a script as the default user, in the working directory, with `P` set to the path.
    async fn on_path(
        &self,
        path: &GuestPath,
        vars: &str,
        script: &str,
        stdin: Bytes,
        tried: &'static str,
    ) -> Result<PlainOutput> {
        let run = self.run_on(path, vars, script, stdin);
        self.answer(path, run, tried).await
    }

    fn run_on(&self, path: &GuestPath, vars: &str, script: &str, stdin: Bytes) -> PlainRun {
        let mut words = Words::default();
        let word = words.word(path.as_bytes());
        let dir = words.word(&self.workdir);
        // A path that begins with a dash is no option of anything.
        let text = format!(
            "{PRELUDE}{}umask 022\ncd {dir} 2>/dev/null || cd /\nP={word}; case $P in -*) P=./$P;; esac; Y={}; {vars}\n{BLAME}{script}",
            words.before,
            self.time_format()
        );
        PlainRun::new(self.as_user(text), stdin, LIMIT)
    }

    async fn answer(&self, path: &GuestPath, run: PlainRun, tried: &'static str) -> Result<PlainOutput> {
        let output = self.yard.caller.run(run, tried).await?;
        if output.status != 0 {
            return Err(failed(&output, tried, path));
        }
        Ok(output)
    }

    fn time_format(&self) -> &'static str {
        if self.machine.fraction { "%.9Y" } else { "%Y" }
    }

    pub(super) async fn stat_path(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        let vars = format!("FOLLOW={}", if follow { "1" } else { "" });
        let output = self.on_path(path, &vars, STAT, Bytes::new(), "stat").await?;
        let (line, rest) = split_line(&output.stdout).ok_or_else(|| odd("stat", path))?;
        let mut meta = meta(line).ok_or_else(|| odd("stat", path))?;
        meta.target = (meta.kind == FileKind::Symlink).then(|| rest.to_vec());
        Ok(meta)
    }

    pub(super) async fn read_path(&self, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
        const TRIED: &str = "read";
        let size = self.yard.caller.piece();
        let data = if options.offset < size as u64 {
            format!("head -c {size} -- \"$P\"\n")
        } else {
            piece_script(&self.yard.caller, "\"$P\"", options.offset)
        };
        let output = self.on_path(path, "", &format!("{READ}{data}"), Bytes::new(), TRIED).await?;
        let (line, first) = split_line(&output.stdout).ok_or_else(|| odd(TRIED, path))?;
        let meta = meta(line).filter(|_| first.len() <= size).ok_or_else(|| odd(TRIED, path))?;
        let whole = first.len() < size;
        let mut first = Bytes::copy_from_slice(first);
        first = first.split_off(((options.offset % size as u64) as usize).min(first.len()));
        let wanted = options.length.unwrap_or(u64::MAX);
        let there = if whole { first.len() as u64 } else { meta.size.saturating_sub(options.offset).max(first.len() as u64) };
        if options.max.is_some_and(|max| there.min(wanted) > max) {
            return Err(
                Error::new(ErrorKind::TooLarge, TRIED, format!("{path}: is larger than allowed")).with_context("path", path)
            );
        }
        let wanted = wanted.min(options.max.unwrap_or(u64::MAX));
        first.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        if whole || first.len() as u64 == wanted {
            return Ok((meta, Box::new(io::Cursor::new(first))));
        }
        let at = options.offset + first.len() as u64;
        let rest = self.pieces(path.clone(), first, at, options.offset.saturating_add(wanted), meta.size)?;
        Ok((meta, rest))
    }

    /// The rest of a file from a position on, some pieces ahead of who reads. `known` is how long the file was.
    fn pieces(&self, path: GuestPath, first: Bytes, mut at: u64, end: u64, known: u64) -> Result<ByteReader> {
        let (sender, pieces) = mpsc::channel(1);
        let (this, size) = (self.clone(), self.yard.caller.piece() as u64);
        driver::handle()?.spawn(async move {
            let (mut ahead, mut next) = (VecDeque::new(), at);
            while at < end {
                // What came to it meanwhile is asked for when it is due.
                while ahead.len() < AHEAD && next < end && (ahead.is_empty() || next < known) {
                    ahead.push_back(Asked(tokio::spawn(this.clone().piece_of(path.clone(), next))));
                    next = (next / size + 1) * size;
                }
                let Some(mut asked) = ahead.pop_front() else { return };
                let piece = (&mut asked.0).await;
                let mut piece = match piece.map_err(|error| Error::new(ErrorKind::Internal, "read", error.to_string())) {
                    Ok(Ok(piece)) => piece,
                    Ok(Err(error)) | Err(error) => return drop(sender.send(Err(io::Error::other(error))).await),
                };
                let is_short = (piece.len() as u64) < size - at % size;
                piece.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
                at += piece.len() as u64;
                if piece.is_empty() || sender.send(Ok(piece)).await.is_err() {
                    return;
                }
                if is_short {
                    ahead.clear();
                    next = at;
                }
            }
        });
        Ok(Box::new(Pieces { pieces, current: first }))
    }

    /// The piece of a file in which a position lies, from that on.
    async fn piece_of(self, path: GuestPath, at: u64) -> Result<Bytes> {
        let script = format!("[ -f \"$P\" ] || blame \"$P\"\n{}", piece_script(&self.yard.caller, "\"$P\"", at));
        let run = self.run_on(&path, "", &script, Bytes::new()).expecting(self.yard.caller.piece());
        let output = self.answer(&path, run, "read").await?;
        Ok(from_piece(&self.yard.caller, output, at))
    }

    pub(super) async fn write_path(&self, path: &GuestPath, mut contents: ByteReader, options: WriteOptions) -> Result<()> {
        let size = self.yard.caller.limits().stdin;
        let tag = crate::exec::new_id()?;
        let new = if options.create_new { "1" } else { "" };
        let mode = options.mode.map(|mode| format!("{:o}", mode & 0o7777)).unwrap_or_default();
        let vars = format!("NEW={new}; MODE={mode}; TAG={tag}");
        let mut piece = self.next_piece(&mut contents, size, path).await?;
        let turn = Arc::new(RwLock::new(()));
        let mut guard =
            Unfinished { sandbox: self.clone(), path: path.clone(), vars: vars.clone(), turn: turn.clone(), armed: false };
        let (mut at, mut writing) = (0, JoinSet::new());
        loop {
            let next = if piece.len() < size { Bytes::new() } else { self.next_piece(&mut contents, size, path).await? };
            let last = next.is_empty();
            let count = piece.len() as u64;
            let end = if last { format!("{}{WRITE_END}", whole_script(at + count)) } else { String::new() };
            let script = format!("{WRITE_PLACE}umask 077\n{}{end}", put_script(at, size));
            guard.armed = true;
            // The first makes the file and the last gives it its name; those between come in any order, some at once.
            let alone = at == 0 || last;
            while writing.len() >= if alone { 1 } else { AHEAD } {
                settled(writing.join_next().await)?;
            }
            let turn = turn.clone().read_owned().await;
            let write = self.clone().write_piece(path.clone(), vars.clone(), script, piece, turn);
            if alone {
                write.await?;
            } else {
                writing.spawn_on(write, driver::handle()?);
            }
            if last {
                guard.armed = false;
                return Ok(());
            }
            at += count;
            piece = next;
        }
    }

    /// Its turn ends with the script, not with the call: whoever gives up the call leaves the script running.
    async fn write_piece(
        self,
        path: GuestPath,
        vars: String,
        script: String,
        piece: Bytes,
        turn: OwnedRwLockReadGuard<()>,
    ) -> Result<()> {
        let running = driver::handle()?.spawn(async move {
            let result = self.on_path(&path, &vars, &script, piece, "write").await;
            drop(turn);
            result
        });
        running.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "write", "the transport panicked"))).map(drop)
    }

    async fn next_piece(&self, contents: &mut ByteReader, size: usize, path: &GuestPath) -> Result<Bytes> {
        let mut piece = BytesMut::with_capacity(size.min(64 << 10));
        while piece.len() < size {
            let mut rest = contents.take((size - piece.len()) as u64);
            match rest.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let error = match error.downcast::<Error>() {
                        Ok(ours) => ours,
                        Err(error) => {
                            Error::new(ErrorKind::Io, "write", format!("{path}: cannot read what is to be written: {error}"))
                                .with_help("nothing was changed in the sandbox")
                                .with_source(error)
                        }
                    };
                    return Err(error);
                }
            }
        }
        Ok(piece.freeze())
    }

    pub(super) async fn list_path(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        const TRIED: &str = "list";
        let mut words = Words::default();
        let word = words.word(path.as_bytes());
        let script = format!(
            "{PRELUDE}{}P={word}; case $P in -*) P=./$P;; esac; Y={}\n{BLAME}{SHOW}{LIST}",
            words.before,
            self.time_format()
        );
        let (output, status) = self.internal(script, LISTING, TRIED).await?;
        if status != 0 {
            return Err(failed(&output, TRIED, path));
        }
        let mut entries = listing(&output.stdout).ok_or_else(|| odd(TRIED, path))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    pub(super) async fn remove_path(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        let vars = format!("TREE={}", if recursive { "1" } else { "" });
        self.on_path(path, &vars, REMOVE, Bytes::new(), "remove").await.map(drop)
    }

    pub(super) async fn make_dir_path(&self, path: &GuestPath) -> Result<()> {
        self.on_path(path, "", MAKE_DIR, Bytes::new(), "make directory").await.map(drop)
    }
}

/// Reads a listing: names up to an empty one, then their facts by line and the targets of links, again and again.
fn listing(mut bytes: &[u8]) -> Option<Vec<DirEntry>> {
    let mut entries = Vec::new();
    let mut pending: Vec<Vec<u8>> = Vec::new();
    let text = |bytes: &mut &[u8]| -> Option<Vec<u8>> {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let text = bytes[..end].to_vec();
        *bytes = &bytes[end + 1..];
        Some(text)
    };
    while !bytes.is_empty() {
        let name = text(&mut bytes)?;
        if !name.is_empty() {
            if matches!(name.as_slice(), b"." | b"..") || name.contains(&b'/') {
                return None;
            }
            pending.push(name);
            continue;
        }
        let mut batch = Vec::new();
        for name in std::mem::take(&mut pending) {
            let (line, rest) = split_line(bytes)?;
            batch.push(DirEntry { name, meta: meta(line)? });
            bytes = rest;
        }
        for entry in batch.iter_mut().filter(|entry| entry.meta.kind == FileKind::Symlink) {
            entry.meta.target = Some(text(&mut bytes)?);
        }
        if !text(&mut bytes)?.is_empty() {
            return None;
        }
        entries.append(&mut batch);
    }
    pending.is_empty().then_some(entries)
}

/// Removes what a write left that did not come to its end.
struct Unfinished {
    sandbox: PlainSandbox,
    path: GuestPath,
    vars: String,
    /// Held while pieces are written: what a script is still about to make cannot be removed yet.
    turn: Arc<RwLock<()>>,
    armed: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (sandbox, path, vars, turn) = (self.sandbox.clone(), self.path.clone(), self.vars.clone(), self.turn.clone());
        if let Ok(driver) = driver::handle() {
            driver.spawn(async move {
                let _turn = turn.write().await;
                let script = format!("{WRITE_PLACE}rm -f -- \"$T\"\n");
                let _ = sandbox.on_path(&path, &vars, &script, Bytes::new(), "write").await;
            });
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn listings_are_taken_apart_and_nonsense_is_refused() {
        let good = b"a\0l\0\0" as &[u8];
        let facts = b"81a4 5 0 0 7\na1ff 1 0 0 7\nto\0\0" as &[u8];
        let entries = listing(&[good, facts].concat()).unwrap();
        assert_eq!((entries.len(), entries[1].meta.target.as_deref()), (2, Some(b"to".as_slice())));
        assert_eq!(entries[0].meta.size, 5);
        for nonsense in [
            b"a".as_slice(),
            b"a\0",
            b"..\0\0",
            b"a/b\0\0",
            b"a\0\0zz 1 1 1 1\n\0",
            b"a\0\081a4 5 0 0 7\n",
            b"a\0\081a4 5 0 0\n\0",
        ] {
            assert!(listing(nonsense).is_none(), "{}", nonsense.escape_ascii());
        }
        assert!(listing(b"").unwrap().is_empty());
    }

    #[test]
    fn a_name_cannot_choose_its_error() {
        let output = PlainOutput { status: 1, stdout: Vec::new(), stderr: b"mv: x: File exists: Permission denied\n".to_vec() };
        assert_eq!(failed(&output, "write", &GuestPath::from("x")).kind(), ErrorKind::PermissionDenied);
    }
}
