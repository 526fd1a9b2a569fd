//! Files: what is refused, and how.

use std::pin::Pin;
use std::task::{Context, Poll};

use tierbox_core::{ByteReader, Error, ErrorKind, GuestPath, ReadOptions, Result, SandboxExt, WriteOptions};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::case::{Verdict, ensure, ensure_eq, ensure_kind, skip};
use crate::subject::Subject;

cases! { "files_edges":
    missing_is_not_found [Files] "What does not exist is NotFound.";
    file_as_directory_is_not_found [Files] "A path through a file (ENOTDIR) is NotFound.";
    directories_are_no_files [Files] "Reading or writing a directory is IsADirectory.";
    fifos_and_devices_are_no_files [Files] "Reading a FIFO or a device is NotAFile, at once.";
    forbidden_is_permission_denied [Files] "What the default user may not do is PermissionDenied.";
    read_only_places_are_permission_denied [Files, Isolation] "Writing to the system's directories is PermissionDenied.";
    create_new_refuses_what_exists [Files] "create_new refuses what exists with AlreadyExists, and leaves it.";
    file_in_place_of_a_directory [Files] "make_dir over a file is AlreadyExists.";
    max_bounds_a_read [Files] "More bytes than max are TooLarge; exactly max are read.";
    full_trees_need_recursive [Files] "Removing a directory that is not empty needs recursive.";
    bad_paths_are_refused [Files] "An empty path, a NUL byte, or more than 4095 bytes is InvalidInput.";
    errors_name_the_path [Files] "An error carries the path as given.";
    broken_source_leaves_the_old [Files] "A write whose source fails leaves the old contents and no other trace.";
    cancelled_write_leaves_the_old [Files] "A write that is cancelled leaves the old contents and no other trace.";
    dangling_links_are_not_found [Files] "A link that leads nowhere is NotFound to read, and a link to stat.";
    abandoned_read_harms_nothing [Files] "Dropping a reader in the middle of a file leaves the sandbox working.";
}

async fn missing_is_not_found(s: Subject) -> Verdict {
    let path = s.path("missing/deeper");
    ensure_kind(s.sandbox.read_bytes(path.clone(), 10).await, ErrorKind::NotFound, "read")?;
    ensure_kind(s.sandbox.stat(&path, true).await, ErrorKind::NotFound, "stat")?;
    ensure_kind(s.sandbox.list(&path).await, ErrorKind::NotFound, "list")?;
    ensure_kind(s.sandbox.remove(&path, false).await, ErrorKind::NotFound, "remove")?;
    ensure_kind(s.sandbox.remove(&path, true).await, ErrorKind::NotFound, "remove of a tree")
}

async fn file_as_directory_is_not_found(s: Subject) -> Verdict {
    s.write("file", "x").await?;
    let path = s.path("file/inside");
    ensure_kind(s.sandbox.read_bytes(path.clone(), 10).await, ErrorKind::NotFound, "read")?;
    ensure_kind(s.sandbox.stat(&path, false).await, ErrorKind::NotFound, "stat")?;
    ensure_kind(s.sandbox.list(&s.path("file")).await, ErrorKind::NotFound, "list of a file")
}

async fn directories_are_no_files(s: Subject) -> Verdict {
    s.sandbox.make_dir(&s.path("dir")).await?;
    ensure_kind(s.sandbox.read_bytes(s.path("dir"), 10).await, ErrorKind::IsADirectory, "read")?;
    ensure_kind(s.sandbox.write_bytes(s.path("dir"), "x").await, ErrorKind::IsADirectory, "write")?;
    ensure_eq!(s.text("ls -A").await?, "dir", "names in the directory");
    Ok(())
}

async fn fifos_and_devices_are_no_files(s: Subject) -> Verdict {
    s.sh("mkfifo fifo").await?;
    let read = s.soon("the refusal of a FIFO", s.sandbox.read_bytes(s.path("fifo"), 10)).await?;
    ensure_kind(read, ErrorKind::NotAFile, "read of a FIFO")?;
    let read = s.soon("the refusal of a device", s.sandbox.read_bytes("/dev/zero", 10)).await?;
    ensure_kind(read, ErrorKind::NotAFile, "read of /dev/zero")
}

async fn forbidden_is_permission_denied(s: Subject) -> Verdict {
    if s.text("id -u").await? == "0" {
        return skip("the default user is root, who may do everything");
    }
    s.sh("echo x > closed; chmod 000 closed; mkdir locked; echo x > locked/file; chmod 500 locked; mkdir shut; chmod 000 shut")
        .await?;
    ensure_kind(s.sandbox.read_bytes(s.path("closed"), 10).await, ErrorKind::PermissionDenied, "read of a closed file")?;
    let write = s.sandbox.write_bytes(s.path("closed"), "y").await;
    ensure_kind(write, ErrorKind::PermissionDenied, "write of a closed file, in a directory where another could take its place")?;
    ensure_kind(
        s.sandbox.write_bytes(s.path("locked/new"), "x").await,
        ErrorKind::PermissionDenied,
        "write into a locked directory",
    )?;
    ensure_kind(
        s.sandbox.remove(&s.path("locked/file"), false).await,
        ErrorKind::PermissionDenied,
        "removal from a locked directory",
    )?;
    ensure_kind(s.sandbox.list(&s.path("shut")).await, ErrorKind::PermissionDenied, "list of a shut directory")?;
    ensure_kind(s.sandbox.make_dir(&s.path("locked/dir")).await, ErrorKind::PermissionDenied, "make_dir in a locked directory")
}

async fn read_only_places_are_permission_denied(s: Subject) -> Verdict {
    for path in ["/usr/tierbox-was-here", "/etc/passwd", "/tierbox-was-here"] {
        ensure_kind(s.sandbox.write_bytes(path, "x").await, ErrorKind::PermissionDenied, path)?;
    }
    Ok(())
}

async fn create_new_refuses_what_exists(s: Subject) -> Verdict {
    let options = WriteOptions { create_new: true, ..WriteOptions::default() };
    let write = |contents: &'static str| {
        let reader: ByteReader = Box::new(contents.as_bytes());
        let (sandbox, path) = (s.sandbox.clone(), s.path("file"));
        async move { sandbox.write(&path, reader, options).await }
    };
    write("first").await?;
    ensure_kind(write("second").await, ErrorKind::AlreadyExists, "the second create_new")?;
    ensure_eq!(s.read("file").await?, b"first".to_vec(), "the file");
    Ok(())
}

async fn file_in_place_of_a_directory(s: Subject) -> Verdict {
    s.write("file", "x").await?;
    ensure_kind(s.sandbox.make_dir(&s.path("file")).await, ErrorKind::AlreadyExists, "make_dir over a file")
}

async fn max_bounds_a_read(s: Subject) -> Verdict {
    for (size, name) in [(1000, "small"), (200_000, "large")] {
        s.write(name, vec![b'x'; size]).await?;
        let at = |max: u64| ReadOptions { max: Some(max), ..ReadOptions::default() };
        ensure_eq!(s.read_part(name, at(size as u64)).await?.len(), size, "bytes read with max at the size");
        let refused = async { s.read_part(name, at(size as u64 - 1)).await }.await;
        ensure_kind(refused, ErrorKind::TooLarge, "a read beyond max")?;
        let part = s.read_part(name, ReadOptions { offset: 10, length: Some(20), max: Some(20) }).await?;
        ensure_eq!(part.len(), 20, "bytes of a range within max");
    }
    Ok(())
}

async fn full_trees_need_recursive(s: Subject) -> Verdict {
    s.write("dir/file", "x").await?;
    ensure_kind(s.sandbox.remove(&s.path("dir"), false).await, ErrorKind::IsADirectory, "removal of a full directory")?;
    ensure!(s.exists("dir/file").await?, "its file is gone");
    Ok(())
}

async fn bad_paths_are_refused(s: Subject) -> Verdict {
    for bytes in [Vec::new(), b"a\0b".to_vec(), vec![b'x'; 4096]] {
        let path = GuestPath::from(bytes.clone());
        let what = format!("a path of {} bytes", bytes.len());
        ensure_kind(s.sandbox.read(&path, ReadOptions::default()).await.map(|_| ()), ErrorKind::InvalidInput, &what)?;
        ensure_kind(s.sandbox.write_bytes(path.clone(), "x").await, ErrorKind::InvalidInput, &what)?;
        ensure_kind(s.sandbox.list(&path).await, ErrorKind::InvalidInput, &what)?;
        ensure_kind(s.sandbox.stat(&path, false).await, ErrorKind::InvalidInput, &what)?;
        ensure_kind(s.sandbox.remove(&path, true).await, ErrorKind::InvalidInput, &what)?;
    }
    Ok(())
}

fn names(error: &Error, path: &str) -> bool {
    error.to_string().contains(path) || error.context().any(|(_, value)| value.contains(path))
}

async fn errors_name_the_path(s: Subject) -> Verdict {
    let missing = |what: &str, result: Result<()>| -> Verdict {
        let Err(error) = result else { return Err(crate::case::Fail::Broken(format!("{what} of a missing file succeeded"))) };
        ensure!(names(&error, "./no-such-file"), "the error of {what} does not name the path as given: {error:?}");
        Ok(())
    };
    let path = GuestPath::from("./no-such-file");
    missing("read", s.sandbox.read(&path, ReadOptions::default()).await.map(drop))?;
    missing("stat", s.sandbox.stat(&path, true).await.map(drop))?;
    missing("list", s.sandbox.list(&path).await.map(drop))?;
    missing("remove", s.sandbox.remove(&path, false).await)
}

/// Gives some bytes, then an error or nothing ever more.
struct Broken {
    left: usize,
    fails: bool,
}

impl AsyncRead for Broken {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.left == 0 {
            return if self.fails { Poll::Ready(Err(std::io::Error::other("the source failed"))) } else { Poll::Pending };
        }
        let count = self.left.min(buf.remaining());
        buf.put_slice(&vec![b'x'; count]);
        self.left -= count;
        Poll::Ready(Ok(()))
    }
}

async fn old_stands(s: &Subject) -> Verdict {
    ensure_eq!(s.read("file").await?, b"old".to_vec(), "the file");
    s.until(s.patience, "no other trace is left in the directory", || async { Ok(s.text("ls -A").await? == "file") }).await
}

async fn broken_source_leaves_the_old(s: Subject) -> Verdict {
    for left in [0, 1000, 3 << 20] {
        s.write("file", "old").await?;
        let source: ByteReader = Box::new(Broken { left, fails: true });
        let result = s.soon("the end of the write", s.sandbox.write(&s.path("file"), source, WriteOptions::default())).await?;
        ensure!(result.is_err(), "the write succeeded although its source failed after {left} bytes");
        old_stands(&s).await?;
    }
    Ok(())
}

async fn cancelled_write_leaves_the_old(s: Subject) -> Verdict {
    s.write("file", "old").await?;
    let source: ByteReader = Box::new(Broken { left: 3 << 20, fails: false });
    let path = s.path("file");
    let write = s.sandbox.write(&path, source, WriteOptions::default());
    ensure!(tokio::time::timeout(std::time::Duration::from_millis(300), write).await.is_err(), "the write ended by itself");
    old_stands(&s).await
}

async fn dangling_links_are_not_found(s: Subject) -> Verdict {
    s.sh("ln -s nowhere link; ln -s loop loop").await?;
    ensure_kind(s.sandbox.read_bytes(s.path("link"), 10).await, ErrorKind::NotFound, "read of a dangling link")?;
    ensure_kind(s.sandbox.stat(&s.path("link"), true).await, ErrorKind::NotFound, "stat through a dangling link")?;
    s.sandbox.stat(&s.path("link"), false).await?;
    let looped = s.soon("the refusal of a link to itself", s.sandbox.read_bytes(s.path("loop"), 10)).await?;
    ensure!(looped.is_err(), "a link to itself was read");
    Ok(())
}

async fn abandoned_read_harms_nothing(s: Subject) -> Verdict {
    s.sh("head -c 20000000 /dev/zero > big; echo x > small").await?;
    for _ in 0..5 {
        let (_, mut reader) = s.sandbox.read(&s.path("big"), ReadOptions::default()).await?;
        let mut first = [0; 100];
        s.soon("the first bytes", reader.read_exact(&mut first)).await??;
    }
    ensure_eq!(s.read("small").await?, b"x\n".to_vec(), "a file read afterwards");
    s.sh("rm big").await?;
    Ok(())
}
