//! Files: questions with one answer, and contents that stream through a pipe or in frames.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tierbox_core::{ByteReader, DirEntry, Error, ErrorKind, FileKind, FileMeta, GuestPath, ReadOptions, Result, WriteOptions};
use tierbox_supervisor::protocol::{FileOp, FromSupervisor, INLINE, Kind, Meta, STDOUT, ToSupervisor};
use tierbox_supervisor::wire::Blob;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::channel::Channel;
use crate::flow::{FramedReader, FramedWriter};
use crate::operation::{Operation, Running};
#[cfg(all(target_os = "linux", feature = "descriptors"))]
use crate::pipe::{self, ReadEnd};

/// How much is copied at once.
const PIECE: usize = 256 << 10;

fn wire_path(path: &GuestPath) -> Blob {
    Blob::from(path.as_bytes())
}

async fn ask(channel: &Channel, op: FileOp, tried: &'static str, path: &GuestPath) -> Result<Running> {
    Running::start(channel, Operation::plain(), &ToSupervisor::File { op }, tried, path.to_string()).await
}

/// Facts about a path.
pub(crate) async fn stat(channel: &Channel, path: &GuestPath, follow: bool) -> Result<FileMeta> {
    let running = ask(channel, FileOp::Stat { path: wire_path(path), follow }, "stat", path).await?;
    match running.answer().await? {
        FromSupervisor::Meta { meta } => Ok(file_meta(meta)),
        _ => Err(running.unexpected()),
    }
}

/// A directory's entries, sorted.
pub(crate) async fn list(channel: &Channel, path: &GuestPath) -> Result<Vec<DirEntry>> {
    let running = ask(channel, FileOp::List { path: wire_path(path) }, "list", path).await?;
    running.end().await?;
    let entries = running.operation.take_entries();
    if entries.iter().any(|entry| !is_name(&entry.name.0)) {
        return Err(running.unexpected());
    }
    let mut entries: Vec<DirEntry> =
        entries.into_iter().map(|entry| DirEntry { name: entry.name.0, meta: file_meta(entry.meta) }).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Whether a name can stand in a directory: callers join it to paths.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

/// Removes a path.
pub(crate) async fn remove(channel: &Channel, path: &GuestPath, recursive: bool) -> Result<()> {
    ask(channel, FileOp::Remove { path: wire_path(path), recursive }, "remove", path).await?.end().await
}

/// Makes a directory.
pub(crate) async fn make_dir(channel: &Channel, path: &GuestPath) -> Result<()> {
    ask(channel, FileOp::MakeDir { path: wire_path(path) }, "make directory", path).await?.end().await
}

fn file_meta(meta: Meta) -> FileMeta {
    let kind = match meta.kind {
        Kind::File => FileKind::File,
        Kind::Directory => FileKind::Directory,
        Kind::Symlink => FileKind::Symlink,
        Kind::Other => FileKind::Other,
    };
    FileMeta {
        kind,
        size: meta.size,
        mode: meta.mode & 0o7777,
        uid: meta.uid,
        gid: meta.gid,
        modified_ns: meta.modified_ns,
        target: meta.target.map(|target| target.0),
    }
}

/// Reads a file.
pub(crate) async fn read(channel: &Channel, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
    let op =
        |passed| FileOp::Read { path: wire_path(path), offset: options.offset, length: options.length, max: options.max, passed };
    let (running, data) = start_reading(channel, op, "read", path).await?;
    // The machine was told the bounds; that it keeps to them is not taken on trust.
    let allowed = options.max.unwrap_or(u64::MAX).min(options.length.unwrap_or(u64::MAX));
    match running.answer().await? {
        FromSupervisor::Contents { data, .. } if data.0.len() as u64 > allowed => Err(running.unexpected()),
        FromSupervisor::Contents { meta, data } => Ok((file_meta(meta), Box::new(io::Cursor::new(data.0)))),
        FromSupervisor::Opened { meta } => Ok((file_meta(meta), Box::new(Contents { data, running, allowed, ended: false }))),
        _ => Err(running.unexpected()),
    }
}

/// Reads a directory as a tar stream.
pub(crate) async fn pack(channel: &Channel, path: &GuestPath) -> Result<ByteReader> {
    let op = |passed| FileOp::Pack { path: wire_path(path), passed };
    let (running, data) = start_reading(channel, op, "pack", path).await?;
    match running.answer().await? {
        FromSupervisor::Opened { .. } => Ok(Box::new(Contents { data, running, allowed: u64::MAX, ended: false })),
        _ => Err(running.unexpected()),
    }
}

async fn start_reading(
    channel: &Channel,
    op: impl Fn(bool) -> FileOp,
    tried: &'static str,
    path: &GuestPath,
) -> Result<(Running, Data)> {
    channel.shared().room().await;
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    if channel.passes_descriptors() {
        let (end, theirs) = pipe::incoming().map_err(|error| Error::io(tried, error))?;
        let running = Running::open(channel, Operation::plain(), tried, path.to_string())?;
        let frame = tierbox_supervisor::protocol::encode(running.call, &ToSupervisor::File { op: op(true) });
        channel.shared().send_frame(frame, vec![theirs], tried)?;
        return Ok((running, Data::Passed(end)));
    }
    let operation = Operation::with_output(tried);
    let flow = operation.output.clone();
    let running = Running::start(channel, operation, &ToSupervisor::File { op: op(false) }, tried, path.to_string()).await?;
    let flow = flow.ok_or_else(|| running.unexpected())?;
    let reader = FramedReader::new(channel.clone(), running.call, STDOUT, flow);
    Ok((running, Data::Framed(reader)))
}

/// Where contents come from.
enum Data {
    Framed(FramedReader),
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    Passed(ReadEnd),
}

/// Contents that arrive while they are read. They are complete only when the machine says so.
struct Contents {
    data: Data,
    running: Running,
    allowed: u64,
    ended: bool,
}

impl Contents {
    fn fail(&self, error: Error) -> io::Error {
        io::Error::other(error.with_context("path", &self.running.subject))
    }

    /// The data is at its end: says whether it is whole.
    fn poll_finished(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = ready!(self.running.operation.poll_end(cx));
        self.ended = true;
        Poll::Ready(end.map_err(|fault| self.fail(self.running.fault(&fault))))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.data {
            Data::Framed(reader) => Pin::new(reader).poll_read(cx, buf),
            #[cfg(all(target_os = "linux", feature = "descriptors"))]
            Data::Passed(end) => {
                // Asked before reading: once it has ended, all of the contents are in the pipe, whoever holds it open.
                let over = match self.running.operation.poll_end(cx) {
                    Poll::Ready(Err(fault)) => return Poll::Ready(Err(self.fail(self.running.fault(&fault)))),
                    end => end.is_ready(),
                };
                let space = buf.initialize_unfilled();
                let count = match end.read(space) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && over => 0,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(end.poll_read(cx, space))?,
                    result => result?,
                };
                buf.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncRead for Contents {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.ended || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_data(cx, buf))?;
        let count = (buf.filled().len() - before) as u64;
        if count == 0 {
            return self.poll_finished(cx);
        }
        match self.allowed.checked_sub(count) {
            Some(rest) => self.allowed = rest,
            None => {
                buf.set_filled(before);
                let error = Error::new(ErrorKind::TooLarge, self.running.tried, "more bytes came than were allowed");
                return Poll::Ready(Err(self.fail(error)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes a file.
pub(crate) async fn write(channel: &Channel, path: &GuestPath, mut contents: ByteReader, options: WriteOptions) -> Result<()> {
    let mut first = Vec::new();
    let whole = read_first(&mut contents, &mut first).await.map_err(|error| unreadable("write", path, error))?;
    let op = |inline: Option<Blob>, passed| FileOp::Write {
        path: wire_path(path),
        mode: options.mode,
        create_new: options.create_new,
        inline,
        passed,
    };
    if whole {
        return ask(channel, op(Some(Blob(first)), false), "write", path).await?.end().await;
    }
    send_stream(channel, |passed| op(None, passed), "write", path, first, contents).await
}

/// Unpacks a tar stream.
pub(crate) async fn unpack(channel: &Channel, path: &GuestPath, tar: ByteReader) -> Result<()> {
    send_stream(channel, |passed| FileOp::Unpack { path: wire_path(path), passed }, "unpack", path, Vec::new(), tar).await
}

/// Reads as much as fits into a frame; true if that was all.
async fn read_first(contents: &mut ByteReader, first: &mut Vec<u8>) -> io::Result<bool> {
    contents.take(u64::from(INLINE) + 1).read_to_end(first).await?;
    Ok(first.len() <= INLINE as usize)
}

fn unreadable(tried: &'static str, path: &GuestPath, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::new(ErrorKind::Io, tried, format!("{path}: cannot read what is to be written: {error}"))
            .with_help("nothing was changed in the sandbox")
            .with_source(error),
    }
}

/// Sends contents that do not fit into a frame. Dropped or failed before the end, it leaves what was there.
async fn send_stream(
    channel: &Channel,
    op: impl Fn(bool) -> FileOp,
    tried: &'static str,
    path: &GuestPath,
    first: Vec<u8>,
    contents: ByteReader,
) -> Result<()> {
    channel.shared().room().await;
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    if channel.passes_descriptors() {
        let (theirs, end) = pipe::outgoing().map_err(|error| Error::io(tried, error))?;
        let running = Running::open(channel, Operation::plain(), tried, path.to_string())?;
        let frame = tierbox_supervisor::protocol::encode(running.call, &ToSupervisor::File { op: op(true) });
        channel.shared().send_frame(frame, vec![theirs], tried)?;
        copy(&running, first, contents, end, path).await?;
        channel.shared().must_send(running.call, &ToSupervisor::Commit, tried)?;
        return running.end().await;
    }
    let message = ToSupervisor::File { op: op(false) };
    let running = Running::start(channel, Operation::with_input(), &message, tried, path.to_string()).await?;
    let flow = running.operation.input.clone().ok_or_else(|| running.unexpected())?;
    let mut writer = Unfinished(Some(FramedWriter::new(channel.clone(), running.call, flow)));
    copy(&running, first, contents, &mut writer, path).await?;
    writer.finish().await;
    running.end().await
}

/// Copies everything, unless the machine ends the operation first.
async fn copy(
    running: &Running,
    first: Vec<u8>,
    mut contents: ByteReader,
    mut to: impl AsyncWrite + Unpin,
    path: &GuestPath,
) -> Result<()> {
    let tried = running.tried;
    let feed = async {
        let mut piece = first;
        loop {
            if !piece.is_empty() && to.write_all(&piece).await.is_err() {
                // Nobody reads any more: the operation's end says why.
                return running.end().await.and_then(|()| Err(running.unexpected()));
            }
            piece.resize(PIECE, 0);
            let count = contents.read(&mut piece).await.map_err(|error| unreadable(tried, path, error))?;
            if count == 0 {
                return Ok(());
            }
            piece.truncate(count);
        }
    };
    tokio::select! {
        biased;
        fed = feed => fed,
        ended = running.end() => ended.and_then(|()| Err(running.unexpected())),
    }
}

/// A framed writer whose end means "complete": it must not be reached by being dropped.
struct Unfinished(Option<FramedWriter>);

impl Unfinished {
    async fn finish(mut self) {
        if let Some(mut writer) = self.0.take() {
            let _ = writer.shutdown().await;
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(writer) = self.0.take() {
            writer.abandon();
        }
    }
}

impl AsyncWrite for Unfinished {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(writer) => Pin::new(writer).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
