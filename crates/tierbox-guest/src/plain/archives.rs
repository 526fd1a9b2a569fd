//! Directories over a plain transport, by the machine's own `tar`. What goes in is checked and written anew on this side first.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read, Write};

use bytes::{Bytes, BytesMut};
use tierbox_core::{ByteReader, Error, ErrorKind, ExecRequest, GuestPath, Outcome, Result};
use tierbox_supervisor::archive::{ArchiveError, Entry, Kind, Reader, Writer, components, printable};
use tokio::sync::mpsc;

use super::files::BLAME;
use super::script::PRELUDE;
use super::words::{Words, quote};
use super::{PlainRun, PlainSandbox};
use crate::transfer::bridge;

/// Links in one archive, which must be remembered.
const MAX_LINKS: usize = 100_000;
/// How much is copied at once.
const BUFFER: usize = 64 << 10;

impl PlainSandbox {
    /// Packs a directory.
    pub(super) async fn pack_path(&self, path: &GuestPath) -> Result<ByteReader> {
        let mut words = Words::default();
        let word = words.word(path.as_bytes());
        let script = format!(
            "{PRELUDE}{}P={word}; case $P in -*) P=./$P;; esac\n{BLAME}\
             [ -e \"$P\" ] || blame \"$P\"\n[ -d \"$P\" ] || fail missing\ncd \"$P\" || fail denied\nexec tar -cf - .\n",
            words.before
        );
        self.internal_stream(ExecRequest::shell(script), "pack", path).await
    }

    /// Unpacks an archive.
    pub(super) async fn unpack_path(&self, path: &GuestPath, tar: ByteReader) -> Result<()> {
        const TRIED: &str = "unpack";
        let id = crate::exec::new_id()?;
        let file = format!("{}.in", self.yard.dir(id));
        let spent = Spent { sandbox: self, file: file.clone() };
        let (sender, receiver) = mpsc::channel(4);
        let checked = bridge::feed(tar, move |source| check(source, Outgoing(sender)).map_err(|error| refused(&error)));
        let (checked, uploaded) = tokio::join!(checked, self.upload_pieces(&file, receiver));
        checked?;
        uploaded?;
        let mut words = Words::default();
        let word = words.word(path.as_bytes());
        let script = format!(
            "{PRELUDE}{}P={word}; case $P in -*) P=./$P;; esac\n{BLAME}umask 022\n\
             if [ ! -d \"$P\" ]; then [ ! -e \"$P\" ] || fail missing; mkdir -p -- \"$P\" || exit 1; fi\n\
             cd \"$P\" || fail denied\nexec tar -xpf -\n",
            words.before
        );
        let mut handle = self.launch_own(ExecRequest::shell(script), Some(file)).await?;
        let output = self.collected(&mut handle, TRIED).await?;
        drop(spent);
        match output {
            (Outcome::Exited(0), _) => Ok(()),
            (Outcome::Exited(_), output) => Err(super::files::failed(&output, TRIED, path)),
            (Outcome::Lost, _) => Err(Error::new(ErrorKind::Lost, TRIED, "the machine went away")),
            (outcome, _) => Err(Error::new(ErrorKind::Io, TRIED, format!("{path}: the machine's tar {outcome}"))),
        }
    }

    async fn upload_pieces(&self, file: &str, mut pieces: mpsc::Receiver<Bytes>) -> Result<()> {
        let size = self.yard.caller.limits().stdin;
        let (mut at, mut waiting, mut open) = (0, BytesMut::new(), true);
        while open {
            while open && waiting.len() < size {
                match pieces.recv().await {
                    Some(piece) => waiting.extend_from_slice(&piece),
                    None => open = false,
                }
            }
            while waiting.len() >= size || (!open && (!waiting.is_empty() || at == 0)) {
                let piece = waiting.split_to(waiting.len().min(size)).freeze();
                let count = piece.len() as u64;
                let (caller, word) = (self.yard.caller.clone(), quote(file));
                let upload =
                    crate::driver::handle()?.spawn(async move { super::files::append(&caller, &word, at, piece, false).await });
                upload.await.map_err(|error| Error::new(ErrorKind::Internal, "unpack", error.to_string()))??;
                at += count;
                if count == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Removes an archive that was moved to the machine.
struct Spent<'a> {
    sandbox: &'a PlainSandbox,
    file: String,
}

impl Drop for Spent<'_> {
    fn drop(&mut self) {
        let (caller, file) = (self.sandbox.yard.caller.clone(), quote(&self.file));
        if let Ok(driver) = crate::driver::handle() {
            driver.spawn(async move {
                let limit = std::time::Duration::from_secs(60);
                let _ = caller.run_here(PlainRun::new(format!("{PRELUDE}rm -f {file}\n"), Bytes::new(), limit), "unpack").await;
            });
        }
    }
}

/// Pieces of the checked archive, from the thread that checks it.
struct Outgoing(mpsc::Sender<Bytes>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(BUFFER)];
        self.0.blocking_send(Bytes::copy_from_slice(piece)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn refused(error: &ArchiveError) -> Error {
    let kind = match error {
        ArchiveError::Io(_) => ErrorKind::Io,
        ArchiveError::Malformed(_) => ErrorKind::InvalidInput,
        ArchiveError::Refused { .. } => ErrorKind::UnsafeArchive,
    };
    Error::new(kind, "unpack", error.to_string())
}

/// Copies an archive entry by entry, and refuses what could leave the directory.
fn check(source: impl Read, to: Outgoing) -> Result<(), ArchiveError> {
    let mut archive = Reader::new(BufReader::with_capacity(BUFFER, source));
    let mut writer = Writer::new(io::BufWriter::with_capacity(BUFFER, to));
    let mut links = BTreeSet::new();
    let mut buffer = vec![0; BUFFER];
    while let Some(mut entry) = archive.next_entry()? {
        if !admit(&entry, &mut links)? {
            continue;
        }
        // No setuid, setgid or sticky bit arrives.
        entry.mode &= 0o777;
        writer.entry(&entry)?;
        loop {
            match archive.read_data(&mut buffer)? {
                0 => break,
                count => _ = writer.data(&buffer[..count])?,
            }
        }
    }
    archive.drain()?;
    writer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(())
}

/// Whether an entry is copied; the root itself is not.
fn admit(entry: &Entry, links: &mut BTreeSet<Vec<Vec<u8>>>) -> Result<bool, ArchiveError> {
    let refuse = |reason| ArchiveError::Refused { path: printable(&entry.path), reason };
    let steps = |path: &[u8]| -> Result<Vec<Vec<u8>>, ArchiveError> {
        Ok(components(path).map_err(refuse)?.into_iter().map(<[u8]>::to_vec).collect())
    };
    let path = steps(&entry.path)?;
    let Some(parents) = path.len().checked_sub(1) else {
        return if entry.kind == Kind::Directory { Ok(false) } else { Err(refuse("has no name")) };
    };
    let through_link = |path: &[Vec<u8>], most: usize| (1..=most).any(|count| links.contains(&path[..count]));
    if through_link(&path, parents) {
        return Err(refuse("goes through a link of this archive"));
    }
    match &entry.kind {
        Kind::Symlink { .. } => {
            links.insert(path);
            if links.len() > MAX_LINKS {
                return Err(refuse("is one link too many"));
            }
            return Ok(true);
        }
        Kind::HardLink { target } => {
            let target = steps(target)?;
            if target.is_empty() || through_link(&target, target.len()) {
                return Err(refuse("is a hard link to what is no file of this archive"));
            }
        }
        Kind::Other(_) => return Err(refuse("is a device, a FIFO or something unknown")),
        Kind::File { .. } | Kind::Directory => {}
    }
    links.remove(&path);
    Ok(true)
}
