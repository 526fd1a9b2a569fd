//! Reading an archive entry by entry, in constant memory.

use std::io::{self, Read};

use super::header::{BLOCK, Header};
use super::{ArchiveError, Entry, Kind, MAX_NAME, printable};

/// The most bytes of extensions before one entry: both names, and room for attributes that are skipped.
const MAX_EXTENSION: u64 = 1 << 20;

/// Takes entries out of a stream. Give it a buffered one.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    /// Contents of the current entry that were not read yet.
    left: u64,
    /// Zeros after them, to the next block.
    padding: u64,
    ended: bool,
}

/// What extension headers said about the next entry.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<i64>,
    sparse: bool,
    bytes: u64,
}

impl<R: Read> Reader<R> {
    /// A reader at the start of an archive.
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0, ended: false }
    }

    /// The next entry; what was not read of the current one is skipped. `None` at the archive's end mark.
    ///
    /// # Errors
    /// For what is no archive, ends without an end mark, or holds an entry that is refused as such.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extension = Extension::default();
        while !self.ended {
            self.skip(self.left.saturating_add(self.padding))?;
            let mut block = [0; BLOCK];
            self.source.read_exact(&mut block).map_err(early)?;
            let Some(header) = Header::parse(&block)? else {
                self.ended = true;
                break;
            };
            match header.kind {
                b'L' | b'K' | b'x' => self.extend(&mut extension, &header)?,
                // Facts for the whole archive: nothing that is used here.
                b'g' => self.begin(header.size),
                _ => return self.entry(header, extension).map(Some),
            }
        }
        Ok(None)
    }

    /// Reads contents of the current entry; 0 at their end.
    ///
    /// # Errors
    /// If the stream fails or ends before them.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = retry(|| self.source.read(&mut buffer[..wanted]))?;
        if count == 0 {
            return Err(ArchiveError::Malformed("ends in the middle of a file"));
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// Reads whatever follows the end mark (archives are padded), so that the writer can finish.
    ///
    /// # Errors
    /// If the stream fails.
    pub fn drain(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; 8 << 10];
        while retry(|| self.source.read(&mut buffer))? > 0 {}
        Ok(())
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip(&mut self, count: u64) -> Result<(), ArchiveError> {
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.source.by_ref().take(count), &mut io::sink())?;
        if skipped == count { Ok(()) } else { Err(ArchiveError::Malformed("ends too early")) }
    }

    fn extend(&mut self, extension: &mut Extension, header: &Header) -> Result<(), ArchiveError> {
        extension.bytes = extension.bytes.saturating_add(header.size).saturating_add(BLOCK as u64);
        if extension.bytes > MAX_EXTENSION {
            return Err(ArchiveError::Malformed("has an extension header that is too long"));
        }
        self.begin(header.size);
        let mut data = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.read_data(&mut chunk)? {
                0 => break,
                count => data.extend_from_slice(&chunk[..count]),
            }
        }
        match header.kind {
            b'L' => extension.path = Some(until_nul(data)),
            b'K' => extension.target = Some(until_nul(data)),
            _ => extension.read_pax(&data)?,
        }
        Ok(())
    }

    fn entry(&mut self, header: Header, extension: Extension) -> Result<Entry, ArchiveError> {
        let path = extension.path.unwrap_or(header.path);
        let target = extension.target.unwrap_or(header.target);
        let size = extension.size.unwrap_or(header.size);
        let refuse = |reason| Err(ArchiveError::Refused { path: printable(&path), reason });
        if path.len() > MAX_NAME || target.len() > MAX_NAME {
            return refuse("has a name that is too long");
        }
        if extension.sparse || header.kind == b'S' {
            return refuse("is stored as a sparse file, which could claim any size");
        }
        let kind = match header.kind {
            // Before directories had a type, they were files whose name ends so.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File { size },
            b'1' => Kind::HardLink { target },
            b'2' => Kind::Symlink { target },
            b'5' => Kind::Directory,
            other => Kind::Other(other),
        };
        // Links, devices and directories have no contents, whatever they claim.
        self.begin(if matches!(header.kind, b'1'..=b'6') { 0 } else { size });
        Ok(Entry { path, kind, mode: header.mode, modified: extension.modified.unwrap_or(header.modified) })
    }
}

impl Extension {
    /// Records of the form `length key=value\n`, the length counting all of it.
    fn read_pax(&mut self, mut data: &[u8]) -> Result<(), ArchiveError> {
        const BAD: ArchiveError = ArchiveError::Malformed("has an extension header that cannot be read");
        while !data.is_empty() {
            let space = data.iter().position(|&byte| byte == b' ').ok_or(BAD)?;
            let length: usize = ascii(&data[..space]).ok_or(BAD)?;
            let record = data.get(space + 1..length).ok_or(BAD)?;
            let (last, record) = record.split_last().ok_or(BAD)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if *last != b'\n' {
                return Err(BAD);
            }
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => self.size = Some(ascii(value).ok_or(BAD)?),
                b"mtime" => self.modified = value.split(|&byte| byte == b'.').next().and_then(ascii),
                _ => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
            data = &data[length..];
        }
        Ok(())
    }
}

fn ascii<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    data.truncate(end);
    data
}

fn early(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Malformed("ends without its end mark"),
        _ => ArchiveError::Io(error),
    }
}

fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
