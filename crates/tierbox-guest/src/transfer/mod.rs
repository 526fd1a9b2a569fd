//! Files and directories between this host and a sandbox.
//!
//! What comes out of a sandbox is hostile: a download refuses every entry that could reach outside its target, and never
//! follows a link below it. On Linux (feature `descriptors`) the target is held open and every path is walked from it
//! step by step, so that not even a tree that somebody changes meanwhile can lead out. Elsewhere each step is looked at
//! before it is taken, which is as good as long as nobody else changes the target during the download.

#[cfg(all(target_os = "linux", feature = "descriptors"))]
mod at;
mod beneath;
pub(crate) mod bridge;
mod file;
mod pack;
#[cfg(test)]
mod unit;
mod unpack;
#[cfg(any(test, not(all(target_os = "linux", feature = "descriptors"))))]
mod walked;

#[cfg(all(target_os = "linux", feature = "descriptors"))]
use at::Held as Tree;
#[cfg(not(all(target_os = "linux", feature = "descriptors")))]
use walked::Walked as Tree;

use std::io::{Read, Write};
use std::path::Path;

use tierbox_core::{Error, ErrorKind, FileKind, GuestPath, ReadOptions, Result, Sandbox, WriteOptions};

/// The most that one download may bring: what comes out of a sandbox can fill this host's disk. The default is 16 GiB in a million
/// entries; memory stays constant whatever comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of contents in all.
    pub bytes: u64,
    /// Entries: files, directories and links.
    pub entries: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { bytes: 16 << 30, entries: 1_000_000 }
    }
}

impl UnpackLimits {
    /// Whatever comes: for sources that are trusted, or bounded otherwise.
    pub const NONE: Self = Self { bytes: u64::MAX, entries: u64::MAX };
}

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransferReport {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of contents.
    pub bytes: u64,
    /// FIFOs, sockets and devices among what was to be uploaded: they are not carried. 0 for a download, which refuses them.
    pub left_out: u64,
}

/// Packs what is below a directory of this host as a tar stream. Links are packed as links; FIFOs, sockets and devices
/// are left out and counted. Blocks; call it on a blocking thread.
///
/// # Errors
/// `NotFound`, `PermissionDenied` and the like, naming the path; whatever `out` gives.
pub fn pack_directory(host: &Path, out: impl Write) -> Result<TransferReport> {
    pack::pack::<Tree>(host, &|_| Choice::Pack, out)
}

/// What becomes of an entry of a directory that is packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// It is packed.
    Pack,
    /// If it is a file, it is packed with these contents in place of its own.
    Instead(Vec<u8>),
    /// It is left out; what is below it is asked for all the same.
    Descend,
    /// It is left out with all below it.
    Skip,
}

/// As [`pack_directory`], without what is left out. `choose` is given paths below the directory, parts joined by `/`.
///
/// # Errors
/// As [`pack_directory`].
pub fn pack_chosen(host: &Path, choose: &dyn Fn(&[u8]) -> Choice, out: impl Write) -> Result<TransferReport> {
    pack::pack::<Tree>(host, choose, out)
}

/// Unpacks a hostile tar stream below a directory of this host, which is made if need be. Blocks; call it on a blocking
/// thread. What was unpacked before an error stays.
///
/// Entries that exist are replaced, directories are merged. Permission bits are masked by the process's umask, and
/// directories always stay open to their owner.
///
/// # Errors
/// `UnsafeArchive` for an entry that is absolute, goes up, is or goes through a link that leads out, is a device or FIFO,
/// or has setuid or setgid bits, and for a target that is a link; `TooLarge` beyond the limits; whatever the host gives.
pub fn unpack_directory(tar: impl Read, host_target: &Path, limits: UnpackLimits) -> Result<TransferReport> {
    unpack::unpack::<Tree>(tar, host_target, limits)
}

/// Copies a file or directory of this host into a sandbox. A directory's contents are merged into `guest`.
///
/// # Errors
/// As [`Sandbox::write`] and [`Sandbox::unpack`], and what reading the host's files gives.
pub async fn upload(sandbox: &dyn Sandbox, host: &Path, guest: &GuestPath) -> Result<TransferReport> {
    guest.validate()?;
    let found = std::fs::metadata(host).map_err(|error| host_error("upload", host, error))?;
    let path = host.to_owned();
    if found.is_dir() {
        let (tar, sent) = bridge::reader(move |out| pack_directory(&path, out));
        let moved = sandbox.unpack(guest, tar).await;
        return settle(moved, sent).await;
    }
    if !found.is_file() {
        let message = format!("{} is neither a file nor a directory", host.display());
        return Err(Error::new(ErrorKind::NotAFile, "upload", message));
    }
    let options = WriteOptions { mode: Some(file::mode(&found)), ..WriteOptions::default() };
    let (contents, sent) = bridge::reader(move |out| file::send(&path, out));
    let moved = sandbox.write(guest, contents, options).await;
    settle(moved, sent).await
}

/// What to tell people of an upload that left something out; `None` where everything was carried.
pub fn left_out_note(host: &Path, moved: TransferReport) -> Option<String> {
    let what = "(FIFOs, sockets, devices) left out: only files, directories and links are carried";
    (moved.left_out > 0).then(|| format!("{}: {} {what}", host.display(), moved.left_out))
}

/// What an upload came to, from what both sides say.
async fn settle(moved: Result<()>, sent: bridge::Sent) -> Result<TransferReport> {
    match (moved, bridge::finished(sent).await) {
        // This side's own trouble says more than the machine's complaint about a stream that broke off.
        (_, Err(error)) if error.kind() != ErrorKind::Cancelled => Err(error),
        (Err(error), _) => Err(error),
        (Ok(()), report) => report,
    }
}

/// Copies a file or directory out of a sandbox to `host`. A directory's contents are merged into `host`, a file replaces it.
///
/// # Errors
/// As [`Sandbox::read`] and [`Sandbox::pack`], and as [`unpack_directory`]; the help says where a directory's copy was left
/// incomplete, a file is copied whole or not at all. A target that is a link is refused, never followed.
pub async fn download(sandbox: &dyn Sandbox, guest: &GuestPath, host: &Path, limits: UnpackLimits) -> Result<TransferReport> {
    guest.validate()?;
    beneath::refuse_link(host)?;
    let meta = sandbox.stat(guest, true).await?;
    match meta.kind {
        FileKind::Directory => {
            let tar = sandbox.pack(guest).await?;
            let target = host.to_owned();
            let unpacked = bridge::feed(tar, move |tar| unpack_directory(tar, &target, limits)).await;
            unpacked.map_err(|error| incomplete(error, host))
        }
        FileKind::File => {
            let options = ReadOptions { max: Some(limits.bytes), ..ReadOptions::default() };
            let (meta, contents) = sandbox.read(guest, options).await?;
            let target = host.to_owned();
            bridge::feed(contents, move |contents| file::receive(contents, &target, meta.mode, limits.bytes)).await
        }
        _ => Err(Error::new(ErrorKind::NotAFile, "download", format!("{guest} is neither a file nor a directory"))),
    }
}

/// Says that a directory's copy stopped halfway and what came before is there.
fn incomplete(error: Error, host: &Path) -> Error {
    if !host.exists() {
        return error;
    }
    let kept = format!("{} is incomplete: what was copied before the failure is still there", host.display());
    let help = error.help().map_or_else(|| kept.clone(), |help| format!("{help}; {kept}"));
    error.with_help(help)
}

/// An error about a path of this host.
fn host_error(operation: &'static str, path: &Path, error: std::io::Error) -> Error {
    Error::new(Error::io(operation, clone_kind(&error)).kind(), operation, format!("{}: {error}", path.display()))
        .with_source(error)
}

fn clone_kind(error: &std::io::Error) -> std::io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), std::io::Error::from_raw_os_error)
}

/// An error that came through a stream: ours, if one is inside.
fn stream_error(operation: &'static str, error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Error::io(operation, error),
    }
}

/// The refusal of an entry, whose name is escaped.
fn refused(name: &[u8], reason: &str) -> Error {
    let name = tierbox_supervisor::archive::printable(name);
    Error::new(ErrorKind::UnsafeArchive, "unpack", format!("the entry \"{name}\" {reason}"))
        .with_help("the archive came out of the sandbox and was refused; look at the tree inside before downloading it again")
}
