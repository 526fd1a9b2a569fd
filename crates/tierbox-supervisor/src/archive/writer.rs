//! Writing an archive entry by entry.

use std::io::{self, Write};

use super::header::{BLOCK, Header};
use super::{Entry, Kind, MAX_NAME};

const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Puts entries into a stream, as GNU tar does: names of any bytes, long ones in extension headers.
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    /// Contents that the current entry still lacks.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// A writer of a new archive. Give it a buffered stream.
    pub fn new(sink: W) -> Self {
        Self { sink, left: 0, padding: 0 }
    }

    /// Begins an entry. A file's contents follow by [`data`](Self::data); what is missing of them becomes zeros.
    ///
    /// # Errors
    /// If the stream fails; `InvalidInput` for a name longer than [`MAX_NAME`] and for a kind that is not written.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.end_entry()?;
        let none = Vec::new();
        let (kind, size, target) = match &entry.kind {
            Kind::File { size } => (b'0', *size, &none),
            Kind::Directory => (b'5', 0, &none),
            Kind::Symlink { target } => (b'2', 0, target),
            Kind::HardLink { target } => (b'1', 0, target),
            Kind::Other(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "such an entry is not written")),
        };
        self.long_name(b'K', target)?;
        self.long_name(b'L', &entry.path)?;
        let (path, target) = (entry.path.clone(), target.clone());
        let header = Header { path, mode: entry.mode & 0o7777, size, modified: entry.modified, kind, target };
        self.sink.write_all(&header.format())?;
        self.begin(size);
        Ok(())
    }

    /// Contents of the current file; returns how many bytes still fit.
    ///
    /// # Errors
    /// If the stream fails; `InvalidInput` beyond the size that was announced.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let rest = self.left.checked_sub(bytes.len() as u64);
        let rest = rest.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "more contents than were announced"))?;
        self.sink.write_all(bytes)?;
        self.left = rest;
        Ok(rest)
    }

    /// Ends the archive and returns the stream, flushed.
    ///
    /// # Errors
    /// If the stream fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.sink.write_all(&ZEROS)?;
        self.sink.write_all(&ZEROS)?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
    }

    fn end_entry(&mut self) -> io::Result<()> {
        while self.left > 0 {
            let count = usize::try_from(self.left).unwrap_or(BLOCK).min(BLOCK);
            self.sink.write_all(&ZEROS[..count])?;
            self.left -= count as u64;
        }
        let padding = std::mem::take(&mut self.padding);
        self.sink.write_all(&ZEROS[..padding])
    }

    fn long_name(&mut self, kind: u8, name: &[u8]) -> io::Result<()> {
        if name.len() > MAX_NAME {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name is too long for an archive"));
        }
        if name.len() <= 100 {
            return Ok(());
        }
        let size = name.len() as u64 + 1;
        let path = b"././@LongLink".to_vec();
        let header = Header { path, mode: 0o644, size, modified: 0, kind, target: Vec::new() };
        self.sink.write_all(&header.format())?;
        self.begin(size);
        self.data(name)?;
        self.end_entry()
    }
}
