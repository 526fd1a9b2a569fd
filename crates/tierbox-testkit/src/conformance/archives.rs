//! Directories as tar streams.

use std::collections::BTreeMap;
use std::io::Read;

use tierbox_core::{ByteReader, ErrorKind, FileKind, GuestPath};
use tokio::io::AsyncReadExt;

use super::stdin::pattern;
use crate::case::{Fail, Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::Subject;

cases! { "archives":
    round_trip [Archives, Files] "Contents, modes, links, empty directories and odd names survive packing and unpacking.";
    pack_is_relative [Archives] "Names in a packed stream are relative to the directory.";
    unpack_makes_the_directory [Archives] "The target directory is made if need be.";
    missing_is_not_found [Archives] "Packing what does not exist is NotFound.";
    thousand_files_and_16_mebibytes [Archives, Files] "Many files and large ones travel.";
    hostile_entries_are_refused [Archives] "Entries that leave the directory, by dots, absolute names or links, are UnsafeArchive and write nothing outside.";
    devices_and_setuid_are_refused [Archives] "Devices are UnsafeArchive; no setuid bit arrives.";
    cut_archives_fail [Archives] "A stream that is cut off is an error, and at once.";
}

/// A tree as path, kind, mode, contents or target.
type Tree = BTreeMap<Vec<u8>, (FileKind, u32, Vec<u8>)>;

async fn tree(s: &Subject, root: &GuestPath) -> Verdict<Tree> {
    let mut tree = Tree::new();
    let mut pending = vec![Vec::new()];
    while let Some(dir) = pending.pop() {
        let path = GuestPath::from([root.as_bytes(), b"/", &dir].concat());
        for entry in s.sandbox.list(&path).await? {
            let name: Vec<u8> = [dir.as_slice(), &entry.name].concat();
            let full = GuestPath::from([root.as_bytes(), b"/", &name].concat());
            let payload = match entry.meta.kind {
                FileKind::File => tierbox_core::SandboxExt::read_bytes(&*s.sandbox, full, 64 << 20).await?,
                _ => entry.meta.target.clone().unwrap_or_default(),
            };
            if entry.meta.kind == FileKind::Directory {
                pending.push([name.as_slice(), b"/"].concat());
            }
            let mode = if entry.meta.kind == FileKind::Symlink { 0 } else { entry.meta.mode };
            tree.insert(name, (entry.meta.kind, mode, payload));
        }
    }
    Ok(tree)
}

async fn pack(s: &Subject, path: &GuestPath) -> Verdict<Vec<u8>> {
    let mut reader = s.soon("the pack", s.sandbox.pack(path)).await??;
    let mut bytes = Vec::new();
    s.soon("the packed stream", reader.read_to_end(&mut bytes)).await??;
    Ok(bytes)
}

async fn unpack(s: &Subject, name: &str, tar: Vec<u8>) -> Verdict<tierbox_core::Result<()>> {
    let reader: ByteReader = Box::new(std::io::Cursor::new(tar));
    s.soon("the unpack", s.sandbox.unpack(&s.path(name), reader)).await
}

async fn round_trip(s: Subject) -> Verdict {
    let long = "l".repeat(150);
    s.sh(format!(
        "mkdir src; cd src; echo plain > file; printf '' > empty; mkdir -p a/b/none 'sp ace'; echo x > a/b/tool; chmod 755 a/b/tool; \
         chmod 700 'sp ace'; echo s > 'sp ace/line\nbreak'; chmod 600 'sp ace/line\nbreak'; ln -s file link; ln -s /absolute/target far; \
         ln -s nowhere dangling; mkdir -p {long}/{long}; echo deep > {long}/{long}/{long}; printf x > \"$(printf '\\377\\376')\"; touch -- -rf; ln file hard"
    ))
    .await?;
    s.write("src/binary", pattern(100_000)).await?;
    let packed = pack(&s, &s.path("src")).await?;
    unpack(&s, "copy", packed).await??;
    let (before, after) = (tree(&s, &s.path("src")).await?, tree(&s, &s.path("copy")).await?);
    for (name, facts) in &before {
        ensure_eq!(after.get(name), Some(facts), "\"{}\" in the copy", name.escape_ascii());
    }
    ensure_eq!(after.len(), before.len(), "names in the copy");
    Ok(())
}

async fn pack_is_relative(s: Subject) -> Verdict {
    s.sh("mkdir -p src/sub; echo x > src/sub/file").await?;
    let packed = pack(&s, &s.path("src")).await?;
    let mut archive = tar::Archive::new(packed.as_slice());
    let mut seen = Vec::new();
    for entry in archive.entries()? {
        let entry = entry?;
        seen.push(String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").trim_end_matches('/').to_owned());
    }
    ensure!(seen.iter().any(|name| name == "sub/file"), "the names are {seen:?}");
    ensure!(seen.iter().all(|name| !name.starts_with('/') && !name.contains("..")), "the names are {seen:?}");
    Ok(())
}

fn one_file(name: &str, contents: &[u8]) -> Verdict<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, contents)?;
    Ok(builder.into_inner()?)
}

async fn unpack_makes_the_directory(s: Subject) -> Verdict {
    unpack(&s, "new/deeper", one_file("sub/file", b"hello")?).await??;
    ensure_eq!(s.text("cat new/deeper/sub/file").await?, "hello", "the file");
    Ok(())
}

async fn missing_is_not_found(s: Subject) -> Verdict {
    let packed = async {
        let mut reader = s.sandbox.pack(&s.path("missing")).await?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.map_err(|error| match error.downcast::<tierbox_core::Error>() {
            Ok(ours) => ours,
            Err(other) => tierbox_core::Error::io("pack", other),
        })
    };
    ensure_kind(s.soon("the refusal", packed).await?, ErrorKind::NotFound, "pack of a missing directory")
}

async fn thousand_files_and_16_mebibytes(s: Subject) -> Verdict {
    s.sh("mkdir src; cd src; for i in $(seq 1000); do echo $i > f$i; done; head -c 16777216 /dev/urandom > big").await?;
    let packed = pack(&s, &s.path("src")).await?;
    ensure!(packed.len() > 16 << 20, "only {} bytes were packed", packed.len());
    unpack(&s, "copy", packed).await??;
    s.sh("cmp src/big copy/big && diff -r src copy && rm -r src copy").await?;
    Ok(())
}

/// A raw entry: the library that builds archives would refuse most of these.
pub(crate) fn entry(name: &[u8], kind: u8, link: &[u8], mode: u32, contents: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    header[108..124].copy_from_slice(b"0001750\x000001750\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", contents.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[329..345].copy_from_slice(b"0000001\x000000003\0");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(contents);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Entries in a row, with the end mark.
pub(crate) fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

async fn hostile_entries_are_refused(s: Subject) -> Verdict {
    s.sh("mkdir outside; echo canary > outside/file").await?;
    let outside = format!("{}/outside", s.dir);
    let absolute = format!("{outside}/absolute");
    let archives = [
        ("dots", vec![entry(b"../outside/dots", b'0', b"", 0o644, b"x")]),
        ("hidden dots", vec![entry(b"a/../../outside/dots2", b'0', b"", 0o644, b"x")]),
        ("absolute", vec![entry(absolute.as_bytes(), b'0', b"", 0o644, b"x")]),
        ("through a link", vec![entry(b"l", b'2', outside.as_bytes(), 0o777, b""), entry(b"l/through", b'0', b"", 0o644, b"x")]),
        (
            "through a relative link",
            vec![entry(b"l", b'2', b"../outside", 0o777, b""), entry(b"l/through", b'0', b"", 0o644, b"x")],
        ),
        ("hard link out", vec![entry(b"h", b'1', b"../outside/file", 0o644, b""), entry(b"h", b'0', b"", 0o644, b"changed")]),
        ("absolute hard link", vec![entry(b"h", b'1', format!("{outside}/file").as_bytes(), 0o644, b"")]),
        (
            "file over a link",
            vec![entry(b"l", b'2', format!("{outside}/over").as_bytes(), 0o777, b""), entry(b"l", b'0', b"", 0o644, b"x")],
        ),
    ];
    for (number, (what, entries)) in archives.into_iter().enumerate() {
        let result = unpack(&s, &format!("in{number}"), archive(&entries)).await?;
        // Replacing a link by a file inside the directory is harmless; all else must be refused.
        if what != "file over a link" {
            ensure_kind(result, ErrorKind::UnsafeArchive, what)?;
        }
        ensure_eq!(s.text("cat outside/*; ls outside").await?, "canary\nfile", "the directory outside after \"{what}\"");
    }
    Ok(())
}

async fn devices_and_setuid_are_refused(s: Subject) -> Verdict {
    for (what, kind) in [("a character device", b'3'), ("a block device", b'4')] {
        let result = unpack(&s, "dev", archive(&[entry(b"node", kind, b"", 0o666, b"")])).await?;
        ensure_kind(result, ErrorKind::UnsafeArchive, what)?;
    }
    ensure!(!s.exists("dev/node").await?, "a device node was made");
    let result = unpack(&s, "suid", archive(&[entry(b"tool", b'0', b"", 0o6755, b"x")])).await?;
    match result {
        Err(error) => ensure_eq!(error.kind(), ErrorKind::UnsafeArchive, "the refusal"),
        Ok(()) => ensure_eq!(s.mode("suid/tool").await? & 0o7000, 0, "setuid and setgid bits"),
    }
    Ok(())
}

async fn cut_archives_fail(s: Subject) -> Verdict {
    let whole = archive(&[entry(b"one", b'0', b"", 0o644, &[b'x'; 5000]), entry(b"two", b'0', b"", 0o644, &[b'y'; 5000])]);
    for cut in [100, 2000, 8000] {
        let result = unpack(&s, "cut", whole[..cut].to_vec()).await?;
        ensure!(result.is_err(), "an archive cut at byte {cut} of {} was accepted", whole.len());
    }
    let mut contents = Vec::new();
    tar::Archive::new(whole.as_slice())
        .entries()?
        .next()
        .ok_or_else(|| Fail::Broken("no entry".into()))??
        .read_to_end(&mut contents)?;
    ensure_eq!(contents.len(), 5000, "bytes of the case's own archive");
    Ok(())
}
