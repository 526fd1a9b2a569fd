//! Files: contents, names, modes, listings.

use std::future::Future;
use std::sync::Arc;

use tierbox_core::{ByteReader, FileKind, Locality, ReadOptions, Sandbox, SandboxExt, WriteOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::stdin::pattern;
use crate::case::{Fail, Verdict, ensure, ensure_eq};
use crate::subject::Subject;

cases! { "files":
    round_trip_is_exact [Files] "Any byte is legal in contents.";
    empty_files_are_files [Files] "An empty file is written and read as one.";
    commands_see_what_is_written [Files] "What is written is there for commands at once, and the other way round.";
    any_name_works [Files] "Any byte but NUL and / is legal in a name.";
    names_of_255_bytes_work [Files] "Names up to the file system's limit work.";
    relative_paths_start_at_the_workdir [Files] "Relative paths start where commands start.";
    parents_are_made [Files] "Writing makes parent directories.";
    new_files_are_0644 [Files] "A new file has mode 0644 where none is given.";
    given_mode_is_set [Files] "A given mode is set, whatever the umask, on new and old files.";
    mode_is_kept [Files] "Replacing a file keeps its mode.";
    replacement_is_atomic [Files] "A reader that has the old file open sees the old contents to its end.";
    ranges_are_exact [Files] "A range is the bytes from offset, at most length, and empty beyond the end.";
    sixty_four_mebibytes_stream [Files] "64 MiB stream in and out whole.";
    links_resolve_inside [Files] "Symbolic links are resolved inside the sandbox.";
    stat_tells_the_facts [Files] "stat tells kind, size, mode, owner, time and a link's target, following only when asked.";
    list_is_sorted_and_complete [Files] "list gives every name with its facts, sorted, links not followed.";
    large_directories_are_listed [Files] "A directory of 3000 files is listed whole.";
    remove_takes_files_links_and_trees [Files] "remove takes a file, a link (not its target), an empty directory, and with recursive a tree.";
    removing_a_tree_follows_no_link [Files] "A recursive removal never leaves the tree by a link.";
    directories_are_made [Files] "make_dir makes parents and succeeds if the directory exists.";
}

async fn round_trip_is_exact(s: Subject) -> Verdict {
    for length in [1, 255, 4096, 65_535, 65_536, 65_537, 1 << 20] {
        let bytes = pattern(length);
        s.write("file", bytes.clone()).await?;
        let seen = s.read("file").await?;
        ensure!(seen == bytes, "{length} bytes came back as {} bytes, or others", seen.len());
    }
    Ok(())
}

async fn empty_files_are_files(s: Subject) -> Verdict {
    s.write("empty", "").await?;
    ensure_eq!(s.read("empty").await?, Vec::<u8>::new(), "contents");
    ensure_eq!(s.text("stat -c '%F %s' empty").await?, "regular empty file 0", "what stat says");
    Ok(())
}

async fn commands_see_what_is_written(s: Subject) -> Verdict {
    s.write("in", "from outside").await?;
    ensure_eq!(s.text("cat in").await?, "from outside", "what a command reads");
    s.sh("printf 'from inside' > out").await?;
    ensure_eq!(s.read("out").await?, b"from inside".to_vec(), "what a command wrote");
    Ok(())
}

/// Every byte that a name may hold, so many in one name, each between the same neighbours; and names that shells misread.
fn odd_names(in_one: usize) -> Vec<Vec<u8>> {
    let bytes: Vec<u8> = (1..=255u8).filter(|byte| *byte != b'/').collect();
    let mut names: Vec<Vec<u8>> =
        bytes.chunks(in_one).map(|some| some.iter().flat_map(|byte| [b'n', *byte, b'x']).collect()).collect();
    names.extend(
        [
            b"-rf".as_slice(),
            b"--",
            b" ",
            b"\n",
            b"$(id)",
            b"`id`",
            b"'",
            b"\"",
            b"*",
            b"...",
            b"\\",
            "é漢".as_bytes(),
            b"\xff\xfe",
        ]
        .map(<[u8]>::to_vec),
    );
    names
}

/// Does something for each name, for eight at a time: where a call takes half a second, hundreds take minutes.
async fn each<F>(s: &Subject, names: &[Vec<u8>], work: impl Fn(Arc<dyn Sandbox>, Vec<u8>) -> F) -> Verdict
where
    F: Future<Output = Verdict> + Send + 'static,
{
    let mut running = JoinSet::new();
    for name in names {
        if running.len() == 8
            && let Some(done) = running.join_next().await
        {
            done.map_err(|error| Fail::Broken(error.to_string()))??;
        }
        running.spawn(work(s.sandbox.clone(), name.clone()));
    }
    while let Some(done) = running.join_next().await {
        done.map_err(|error| Fail::Broken(error.to_string()))??;
    }
    Ok(())
}

async fn any_name_works(s: Subject) -> Verdict {
    // Where each file takes a second or more, a few names have all the bytes.
    let mut names = odd_names(if s.sandbox.capabilities().locality == Locality::Remote { 16 } else { 1 });
    let dir = s.path("names");
    let path = |name: &[u8]| s.path_bytes(&[b"names/".as_slice(), name].concat());
    each(&s, &names, |sandbox, name| {
        let path = path(&name);
        async move {
            sandbox.write_bytes(path.clone(), name.clone()).await?;
            ensure_eq!(sandbox.read_bytes(path, 100).await?, name, "contents of the file named \"{}\"", name.escape_ascii());
            Ok(())
        }
    })
    .await?;
    names.sort();
    let listed: Vec<Vec<u8>> = s.sandbox.list(&dir).await?.into_iter().map(|entry| entry.name).collect();
    ensure!(listed == names, "the listing differs: {} names of {}", listed.len(), names.len());
    each(&s, &names, |sandbox, name| {
        let path = path(&name);
        async move { Ok(sandbox.remove(&path, false).await?) }
    })
    .await?;
    ensure_eq!(s.sandbox.list(&dir).await?.len(), 0, "names left");
    Ok(())
}

async fn names_of_255_bytes_work(s: Subject) -> Verdict {
    let name = "x".repeat(255);
    s.write(&name, "long").await?;
    ensure_eq!(s.read(&name).await?, b"long".to_vec(), "contents");
    let deep = vec!["d".repeat(200); 15].join("/");
    s.write(&deep, "deep").await?;
    ensure_eq!(s.read(&deep).await?, b"deep".to_vec(), "contents of a path of 3000 bytes");
    Ok(())
}

async fn relative_paths_start_at_the_workdir(s: Subject) -> Verdict {
    let name = s.dir.rsplit('/').next().unwrap_or_default();
    s.sandbox.write_bytes(format!("{name}/relative"), "here").await?;
    ensure_eq!(s.text("cat relative").await?, "here", "the file by its absolute path");
    ensure_eq!(s.sandbox.read_bytes(format!("{name}/relative"), 10).await?, b"here".to_vec(), "the file by its relative path");
    Ok(())
}

async fn parents_are_made(s: Subject) -> Verdict {
    s.write("a/b/c/file", "x").await?;
    ensure_eq!(s.text("cat a/b/c/file").await?, "x", "contents");
    Ok(())
}

async fn new_files_are_0644(s: Subject) -> Verdict {
    s.write("new", "x").await?;
    ensure_eq!(format!("{:o}", s.mode("new").await?), "644", "mode");
    Ok(())
}

async fn write_with(s: &Subject, name: &str, contents: &'static str, options: WriteOptions) -> tierbox_core::Result<()> {
    let reader: ByteReader = Box::new(contents.as_bytes());
    s.sandbox.write(&s.path(name), reader, options).await
}

async fn given_mode_is_set(s: Subject) -> Verdict {
    for mode in [0o755, 0o600, 0o777, 0o666, 0o400] {
        let options = WriteOptions { mode: Some(mode), ..WriteOptions::default() };
        write_with(&s, &format!("new-{mode:o}"), "x", options).await?;
        write_with(&s, "same", "x", options).await?;
        for name in [format!("new-{mode:o}"), "same".to_owned()] {
            ensure_eq!(format!("{:o}", s.mode(&name).await?), format!("{mode:o}"), "mode of {name}");
        }
    }
    Ok(())
}

async fn mode_is_kept(s: Subject) -> Verdict {
    s.sh("echo old > tool; chmod 751 tool").await?;
    s.write("tool", "new").await?;
    ensure_eq!(s.text("cat tool; stat -c %a tool").await?, "new751", "contents and mode");
    Ok(())
}

async fn replacement_is_atomic(s: Subject) -> Verdict {
    s.write("file", "old contents").await?;
    let mut handle = s.spawn(s.shell("exec 3<file; touch open; while ! test -e go; do sleep 0.02; done; cat <&3")).await?;
    s.until(s.patience, "a command has the file open", || s.exists("open")).await?;
    s.write("file", "NEW").await?;
    s.sh("touch go").await?;
    let mut seen = String::new();
    let mut stdout = handle.take_stdout().ok_or_else(|| crate::case::Fail::Broken("stdout is missing".into()))?;
    s.soon("the reader's output", stdout.read_to_string(&mut seen)).await??;
    s.outcome(&mut handle).await?;
    ensure_eq!(seen, "old contents", "what the reader of the old file saw");
    ensure_eq!(s.read("file").await?, b"NEW".to_vec(), "the file now");
    let names = s.text("ls -A").await?;
    ensure_eq!(names, "file\ngo\nopen", "names in the directory");
    Ok(())
}

async fn ranges_are_exact(s: Subject) -> Verdict {
    let bytes = pattern(200_000);
    s.write("file", bytes.clone()).await?;
    for (offset, length) in [
        (0, Some(10)),
        (5, Some(1)),
        (100, None),
        (199_999, Some(10)),
        (200_000, None),
        (500_000, Some(3)),
        (7, Some(0)),
        (1000, Some(150_000)),
    ] {
        let seen = s.read_part("file", ReadOptions { offset, length, max: None }).await?;
        let from = (offset as usize).min(bytes.len());
        let to = length.map_or(bytes.len(), |length| (from + length as usize).min(bytes.len()));
        ensure!(seen == bytes[from..to], "range {offset}, {length:?}: {} bytes, expected {}", seen.len(), to - from);
    }
    Ok(())
}

async fn sixty_four_mebibytes_stream(s: Subject) -> Verdict {
    const CHUNKS: u32 = 1024;
    let (mut feed, contents) = tokio::io::duplex(256 << 10);
    let chunk = pattern(64 << 10);
    let sent = chunk.clone();
    let feeding = tokio::spawn(async move {
        for number in 0..CHUNKS {
            feed.write_all(&number.to_le_bytes()).await?;
            feed.write_all(&sent[4..]).await?;
        }
        feed.shutdown().await
    });
    s.soon("a write of 64 MiB", s.sandbox.write(&s.path("big"), Box::new(contents), WriteOptions::default())).await??;
    feeding.await.map_err(|error| crate::case::Fail::Broken(error.to_string()))??;
    let (meta, reader) = s.sandbox.read(&s.path("big"), ReadOptions::default()).await?;
    ensure_eq!(meta.size, u64::from(CHUNKS) << 16, "size");
    let mut reader = tokio::io::BufReader::with_capacity(128 << 10, reader);
    let mut seen = vec![0; 64 << 10];
    for number in 0..CHUNKS {
        s.soon("more of the file", reader.read_exact(&mut seen)).await??;
        ensure!(seen[..4] == number.to_le_bytes() && seen[4..] == chunk[4..], "chunk {number} of {CHUNKS} differs");
    }
    ensure_eq!(reader.read(&mut seen).await?, 0, "bytes after the end");
    s.sandbox.remove(&s.path("big"), false).await?;
    Ok(())
}

async fn links_resolve_inside(s: Subject) -> Verdict {
    s.sh("echo target > file; ln -s file near; ln -s /etc/passwd far; mkdir d; ln -s d dirlink; echo in > d/x").await?;
    ensure_eq!(s.read("near").await?, b"target\n".to_vec(), "a relative link");
    ensure_eq!(s.read("dirlink/x").await?, b"in\n".to_vec(), "a file through a linked directory");
    let inside = s.sh("cat /etc/passwd").await?;
    ensure!(s.read("far").await? == inside, "an absolute link does not lead where it leads commands");
    Ok(())
}

async fn stat_tells_the_facts(s: Subject) -> Verdict {
    s.sh("printf 12345 > file; chmod 640 file; touch -d @1000000000.5 file; ln -s file link; mkdir dir; mkfifo fifo").await?;
    let ids = s.text("id -u; id -g").await?;
    let meta = s.sandbox.stat(&s.path("file"), false).await?;
    ensure_eq!((meta.kind, meta.size, meta.mode), (FileKind::File, 5, 0o640), "kind, size and mode");
    // Not every machine's tools can set fractions of seconds, or tell them.
    match s.text("stat -c %.9Y file 2>/dev/null; :").await?.as_str() {
        "1000000000.500000000" => ensure_eq!(meta.modified_ns, 1_000_000_000_500_000_000, "time of change"),
        _ => ensure_eq!((meta.modified_ns / 1_000_000_000).to_string(), s.text("stat -c %Y file").await?, "second of change"),
    }
    ensure_eq!(format!("{}\n{}", meta.uid, meta.gid), ids, "owner");
    let link = s.sandbox.stat(&s.path("link"), false).await?;
    ensure_eq!((link.kind, link.target), (FileKind::Symlink, Some(b"file".to_vec())), "a link");
    ensure_eq!(s.sandbox.stat(&s.path("link"), true).await?.kind, FileKind::File, "a followed link");
    ensure_eq!(s.sandbox.stat(&s.path("dir"), false).await?.kind, FileKind::Directory, "a directory");
    ensure_eq!(s.sandbox.stat(&s.path("fifo"), false).await?.kind, FileKind::Other, "a FIFO");
    Ok(())
}

async fn list_is_sorted_and_complete(s: Subject) -> Verdict {
    s.sh("mkdir d; cd d; printf 123 > b; mkdir a; ln -s /nowhere c; touch .hidden B").await?;
    let entries = s.sandbox.list(&s.path("d")).await?;
    let seen: Vec<(String, FileKind)> =
        entries.iter().map(|entry| (String::from_utf8_lossy(&entry.name).into_owned(), entry.meta.kind)).collect();
    let wanted = [
        (".hidden", FileKind::File),
        ("B", FileKind::File),
        ("a", FileKind::Directory),
        ("b", FileKind::File),
        ("c", FileKind::Symlink),
    ];
    ensure_eq!(seen, wanted.map(|(name, kind)| (name.to_owned(), kind)).to_vec(), "entries");
    ensure_eq!(entries[3].meta.size, 3, "size of b");
    ensure_eq!(entries[4].meta.target, Some(b"/nowhere".to_vec()), "target of c");
    s.sh("mkdir none").await?;
    ensure_eq!(s.sandbox.list(&s.path("none")).await?.len(), 0, "entries of an empty directory");
    Ok(())
}

async fn large_directories_are_listed(s: Subject) -> Verdict {
    s.sh("mkdir many; cd many; seq 3000 | sed 's/^/file-with-a-rather-long-name-00/' | xargs touch").await?;
    let entries = s.soon("a listing", s.sandbox.list(&s.path("many"))).await??;
    ensure_eq!(entries.len(), 3000, "entries");
    ensure!(entries.windows(2).all(|pair| pair[0].name < pair[1].name), "they are not sorted");
    s.sandbox.remove(&s.path("many"), true).await?;
    Ok(())
}

async fn remove_takes_files_links_and_trees(s: Subject) -> Verdict {
    s.sh("touch file target; ln -s target link; ln -s /nowhere dangling; mkdir empty; mkdir -p tree/a/b; touch tree/a/b/c tree/d; chmod 000 tree/d").await?;
    for name in ["file", "link", "dangling", "empty"] {
        s.sandbox.remove(&s.path(name), false).await?;
        ensure!(!s.exists(name).await?, "{name} is still there");
    }
    ensure!(s.exists("target").await?, "the link's target is gone");
    s.sandbox.remove(&s.path("tree"), true).await?;
    ensure!(!s.exists("tree").await?, "the tree is still there");
    Ok(())
}

async fn removing_a_tree_follows_no_link(s: Subject) -> Verdict {
    s.sh("mkdir kept tree; touch kept/file; ln -s ../kept tree/link; ln -s \"$PWD/kept\" tree/absolute").await?;
    s.sandbox.remove(&s.path("tree"), true).await?;
    ensure!(s.exists("kept/file").await?, "a file behind a link is gone");
    Ok(())
}

async fn directories_are_made(s: Subject) -> Verdict {
    for _ in 0..2 {
        s.sandbox.make_dir(&s.path("a/b/c")).await?;
    }
    ensure_eq!(s.text("stat -c '%F' a/b/c").await?, "directory", "what stat says");
    Ok(())
}
