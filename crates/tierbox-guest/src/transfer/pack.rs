//! A directory of this host as a tar stream.

use std::io::{BufWriter, Read, Write};
use std::path::Path;

use tierbox_core::{Error, Result};
use tierbox_supervisor::archive::{Entry, Kind, Writer};

use super::beneath::{Beneath, Facts, Obstacle, Sort};
use super::{Choice, TransferReport, host_error, stream_error};

/// How much is read and written at once.
const BUFFER: usize = 128 << 10;

const TRIED: &str = "upload";

/// Packs what is below `host`, each directory's entries sorted by name.
pub fn pack<T: Beneath>(host: &Path, choose: &dyn Fn(&[u8]) -> Choice, out: impl Write) -> Result<TransferReport> {
    let tree = T::source(host).map_err(|error| host_error(TRIED, host, error))?;
    let archive = Writer::new(BufWriter::with_capacity(BUFFER, out));
    let mut packer = Packer { tree, choose, archive, report: TransferReport::default(), buffer: vec![0; BUFFER] };
    let mut waiting: Vec<Vec<Vec<u8>>> = vec![Vec::new()];
    while let Some(dir) = waiting.pop() {
        let mut below = packer.directory(&dir)?;
        below.reverse();
        waiting.append(&mut below);
    }
    packer.archive.finish().map_err(|error| stream_error(TRIED, error))?;
    Ok(packer.report)
}

struct Packer<'a, T, W: Write> {
    tree: T,
    choose: &'a dyn Fn(&[u8]) -> Choice,
    archive: Writer<BufWriter<W>>,
    report: TransferReport,
    buffer: Vec<u8>,
}

impl<T: Beneath, W: Write> Packer<'_, T, W> {
    /// Packs a directory's entries; returns the directories among them.
    fn directory(&mut self, dir: &[Vec<u8>]) -> Result<Vec<Vec<Vec<u8>>>> {
        let steps: Vec<&[u8]> = dir.iter().map(Vec::as_slice).collect();
        let mut names = match self.tree.names(&steps) {
            Err(obstacle) if obstacle.is_gone() => Vec::new(),
            other => other.map_err(|obstacle| obstacle.error(TRIED, &steps.join(&b'/')))?,
        };
        names.sort_unstable();
        let mut below = Vec::new();
        for name in names {
            let path = steps.iter().copied().chain([name.as_slice()]).collect::<Vec<_>>().join(&b'/');
            match self.entry(&steps, &name, &path) {
                Ok(true) => below.push(dir.iter().cloned().chain([name]).collect()),
                Ok(false) => {}
                // It vanished while the rest was packed.
                Err(Problem::Host(obstacle)) if obstacle.is_gone() => {}
                Err(Problem::Host(obstacle)) => return Err(obstacle.error(TRIED, &path)),
                Err(Problem::Stream(error)) => return Err(error),
            }
        }
        Ok(below)
    }

    /// Packs one entry; returns whether it is a directory.
    fn entry(&mut self, dir: &[&[u8]], name: &[u8], path: &[u8]) -> Result<bool, Problem> {
        let facts = self.tree.facts(dir, name)?;
        match (self.choose)(path) {
            Choice::Pack => {}
            Choice::Instead(contents) if facts.sort == Sort::File => {
                self.instead(path, facts, &contents)?;
                return Ok(false);
            }
            Choice::Instead(_) => {}
            Choice::Descend => return Ok(facts.sort == Sort::Directory),
            Choice::Skip => return Ok(false),
        }
        match facts.sort {
            Sort::File => self.file(dir, name, path)?,
            Sort::Link => {
                let target = self.tree.read_link(dir, name)?;
                self.header(path, Kind::Symlink { target }, facts)?;
            }
            Sort::Directory => self.header(path, Kind::Directory, facts)?,
            Sort::Other => self.report.left_out += 1,
        }
        Ok(facts.sort == Sort::Directory)
    }

    fn file(&mut self, dir: &[&[u8]], name: &[u8], path: &[u8]) -> Result<(), Problem> {
        let mut file = self.tree.open(dir, name)?;
        let found = file.metadata()?;
        let facts = Facts::of(&found);
        if facts.sort != Sort::File {
            return Ok(());
        }
        let mut left = found.len();
        self.header(path, Kind::File { size: left }, facts)?;
        while left > 0 {
            // What the file lost meanwhile becomes zeros, what it gained is left out.
            let step = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            match file.read(&mut self.buffer[..step])? {
                0 => break,
                count => left = self.archive.data(&self.buffer[..count]).map_err(Problem::stream)?,
            }
        }
        self.report.bytes += found.len();
        Ok(())
    }

    fn instead(&mut self, path: &[u8], facts: Facts, contents: &[u8]) -> Result<(), Problem> {
        let size = contents.len() as u64;
        self.header(path, Kind::File { size }, facts)?;
        self.archive.data(contents).map_err(Problem::stream)?;
        self.report.bytes += size;
        Ok(())
    }

    fn header(&mut self, path: &[u8], kind: Kind, facts: Facts) -> Result<(), Problem> {
        self.report.entries += 1;
        let entry = Entry { path: path.to_vec(), kind, mode: facts.mode & 0o777, modified: facts.modified };
        self.archive.entry(&entry).map_err(Problem::stream)
    }
}

/// Which side failed.
enum Problem {
    Host(Obstacle),
    Stream(Error),
}

impl Problem {
    fn stream(error: std::io::Error) -> Self {
        Self::Stream(stream_error(TRIED, error))
    }
}

impl<E: Into<Obstacle>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Host(error.into())
    }
}
