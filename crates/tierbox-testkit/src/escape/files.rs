//! Files and archives.

use std::time::Instant;

use tierbox_core::{ByteReader, ErrorKind, ExecRequest, GuestPath, HostIsolation, KillReason, Locality, ReadOptions, SandboxExt};

use super::{Canary, attacks};
use crate::case::{Verdict, ensure, ensure_eq, ensure_kind};
use crate::conformance::{archive, entry};
use crate::subject::Subject;

attacks! { "files":
    e01_links_to_host_files [Files, Isolation] "A link to a host file gives the sandbox's own file or NotFound, never host bytes.";
    e02_swapped_parents [Files, Isolation] "Writing through a parent that is swapped for a link in a loop never leaves the sandbox.";
    e03_through_proc [Files, Isolation] "/proc/self/root, /proc/1/root and descriptors of others lead nowhere.";
    e03_above_the_root [Isolation] "Nothing lies above the root: neither the root of the host nor what a root was built from.";
    e04_names [Files] "Names with dots, NUL, newlines, quotes, substitutions, dashes, or too many bytes are names or typed errors.";
    e05_archives [Archives, Files] "Archives with dots, absolute names, links, hard links, duplicates, extended names or a sparse TiB change nothing outside.";
    e05_devices_and_setuid [Archives, Files] "Archives make no device and no setuid file.";
    e06_odd_files [Files] "Reading a FIFO, a socket, a device or a directory is typed and prompt.";
    e07_growing_files [Files] "A file that grows while it is read ends, within the caller's limit.";
    e12_deep_trees [Files] "A very deep tree can be made, and removed.";
}

async fn read_anything(s: &Subject, path: &str) -> Verdict<Vec<u8>> {
    Ok(s.soon("the answer to a read", s.sandbox.read_bytes(path, 1 << 20)).await?.unwrap_or_default())
}

async fn e01_links_to_host_files(s: Subject, canary: Canary) -> Verdict {
    let secret = canary.secret_path();
    s.sh(format!(
        "ln -s {secret} one; ln -s ../../../../../../../..{secret} two; ln -s {} dir; ln -s /etc/shadow shadow",
        canary.directory()
    ))
    .await?;
    for name in ["one", "two", "dir/secret"] {
        let bytes = read_anything(&s, &format!("{}/{name}", s.dir)).await?;
        ensure!(!canary.is_in(&bytes), "{name} gave the host's file");
        let packed = s.run(s.shell(format!("cat {name}"))).await?;
        ensure!(!canary.is_in(&packed.stdout.bytes()), "cat {name} gave the host's file");
    }
    let shadow = read_anything(&s, &format!("{}/shadow", s.dir)).await?;
    let host = std::fs::read("/etc/shadow").unwrap_or_default();
    ensure!(shadow.is_empty() || shadow != host, "the host's /etc/shadow was read");
    Ok(())
}

async fn e02_swapped_parents(s: Subject, canary: Canary) -> Verdict {
    // The targets: a directory of the host's, and one inside that is not the agent's.
    let script = format!(
        "mkdir d; touch ready; while :; do mv d e; ln -s {} d; rm d; ln -s /etc d; rm d; mv e d; done",
        canary.directory()
    );
    let mut swapping = s.spawn(s.shell(script)).await?;
    s.until(s.patience, "the swapping begins", || s.exists("ready")).await?;
    // At least 150 writes, and until one of them met the directory: on a busy machine a link may stand for all of the 150.
    let (mut tried, mut written) = (0, 0);
    let limit = Instant::now() + s.patience;
    while tried < 150 || (written == 0 && Instant::now() < limit) {
        tried += 1;
        let name = format!("d/escaped-{tried}");
        written += u32::from(s.sandbox.write_bytes(s.path(&name), "x").await.is_ok());
    }
    swapping.kill(KillReason::Cancelled);
    s.outcome(&mut swapping).await?;
    ensure!(written > 0, "not one write succeeded, so nothing was tried");
    let found = s.text("ls /etc | grep -c escaped; :").await?;
    ensure_eq!(found, "0", "files that were written into /etc");
    Ok(())
}

async fn e03_through_proc(s: Subject, canary: Canary) -> Verdict {
    let secret = canary.secret_path();
    let pid = s.text("echo $$").await?;
    let me = std::process::id();
    for path in [
        format!("/proc/self/root{secret}"),
        format!("/proc/1/root{secret}"),
        format!("/proc/{pid}/root{secret}"),
        format!("/proc/{me}/root{secret}"),
        format!("/proc/1/cwd/../../../../../..{secret}"),
        format!("/proc/self/cwd/../../../../../..{secret}"),
    ] {
        ensure!(!canary.is_in(&read_anything(&s, &path).await?), "{path} gave the host's file");
        let cat = s.run(ExecRequest::new(["cat", path.as_str()])).await?;
        ensure!(!canary.is_in(&cat.stdout.bytes()), "cat {path} gave the host's file");
    }
    for number in 0..40 {
        for owner in ["1", "self"] {
            let path = format!("/proc/{owner}/fd/{number}");
            let bytes = read_anything(&s, &path).await?;
            ensure!(!canary.is_in(&bytes), "{path} gave the host's file");
            let listed = s.sandbox.list(&GuestPath::from(format!("{path}/"))).await.unwrap_or_default();
            ensure!(!listed.iter().any(|entry| entry.name == b"secret"), "{path} is a directory of the host's");
        }
    }
    Ok(())
}

async fn e03_above_the_root(s: Subject, canary: Canary) -> Verdict {
    let (secret, directory) = (canary.secret_path(), canary.directory());
    for up in ["/..", "/../..", "/proc/self/root/..", "/proc/1/root/..", "/proc/self/cwd/../../../../../../../.."] {
        // Existence alone would tell of the host, and sockets are reached without being opened.
        let script =
            format!("test -e {up}{secret} && echo seen; test -e {up}{directory}/socket && echo socket; cat {up}{secret}; :");
        let found = s.run(s.shell(script)).await?;
        ensure_eq!(found.stdout.text(), "", "what is above the root by {up}");
    }
    let (above, root) = (s.text("stat -c %d:%i /..").await?, s.text("stat -c %d:%i /").await?);
    ensure_eq!(above, root, "the parent of the root");
    Ok(())
}

async fn e04_names(s: Subject, canary: Canary) -> Verdict {
    let up = "../".repeat(60);
    for path in [format!("{}/{up}{}", s.dir, canary.secret_path()), format!("{up}{}", &canary.secret_path()[1..])] {
        if s.can(crate::case::Need::Isolation) {
            ensure!(!canary.is_in(&read_anything(&s, &path).await?), "{path} gave the host's file");
        }
    }
    let odd: [&[u8]; 10] = [
        b"new\nline",
        b"quo\"te",
        b"quo'te",
        b"$(touch made)",
        b"`touch made`",
        b"-rf",
        b"--help",
        b";touch made",
        b"\xff\xfe\x01",
        b"a|b&c",
    ];
    for name in odd {
        s.sandbox.write_bytes(s.path_bytes(name), name.to_vec()).await?;
        ensure_eq!(s.sandbox.read_bytes(s.path_bytes(name), 100).await?, name.to_vec(), "the file \"{}\"", name.escape_ascii());
        s.sandbox.remove(&s.path_bytes(name), false).await?;
    }
    ensure!(!s.exists("made").await?, "a name was run as a command");
    s.write(&"n".repeat(255), "x").await?;
    ensure!(s.sandbox.write_bytes(s.path(&"n".repeat(256)), "x").await.is_err(), "a name of 256 bytes was accepted");
    for path in [b"a\0b".to_vec(), vec![b'x'; 4097], b"".to_vec()] {
        ensure_kind(s.sandbox.write_bytes(path.clone(), "x").await, ErrorKind::InvalidInput, "a path that cannot be")?;
        ensure_kind(
            s.sandbox.read(&GuestPath::from(path), ReadOptions::default()).await.map(drop),
            ErrorKind::InvalidInput,
            "a path that cannot be",
        )?;
    }
    Ok(())
}

async fn unpack(s: &Subject, name: &str, bytes: Vec<u8>) -> Verdict<tierbox_core::Result<()>> {
    let reader: ByteReader = Box::new(std::io::Cursor::new(bytes));
    s.soon("the answer to an unpack", s.sandbox.unpack(&s.path(name), reader)).await
}

/// An entry whose real name stands in an extended header before it.
fn extended(record: &str) -> Vec<Vec<u8>> {
    // The length of a record counts its own digits.
    let mut line = String::new();
    for length in record.len()..record.len() + 8 {
        line = format!("{length} {record}\n");
        if line.len() == length {
            break;
        }
    }
    vec![entry(b"x", b'x', b"", 0o644, line.as_bytes()), entry(b"plain", b'0', b"", 0o644, b"changed")]
}

async fn e05_archives(s: Subject, canary: Canary) -> Verdict {
    s.sh("mkdir outside; echo canary > outside/file").await?;
    let (outside, host) = (format!("{}/outside", s.dir), canary.directory());
    let up = format!("{}{}/escaped", "../".repeat(12), &host[1..]);
    let archives: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("dots", vec![entry(b"../outside/file", b'0', b"", 0o644, b"changed")]),
        ("many dots", vec![entry(up.as_bytes(), b'0', b"", 0o644, b"changed")]),
        ("absolute", vec![entry(format!("{host}/escaped").as_bytes(), b'0', b"", 0o644, b"changed")]),
        ("link", vec![entry(b"l", b'2', outside.as_bytes(), 0o777, b""), entry(b"l/file", b'0', b"", 0o644, b"changed")]),
        (
            "link to the host",
            vec![entry(b"l", b'2', host.as_bytes(), 0o777, b""), entry(b"l/secret", b'0', b"", 0o644, b"changed")],
        ),
        ("chain", vec![entry(b"a", b'2', b"..", 0o777, b""), entry(b"a/outside/file", b'0', b"", 0o644, b"changed")]),
        ("hard link", vec![entry(b"h", b'1', b"../outside/file", 0o644, b""), entry(b"h", b'0', b"", 0o644, b"changed")]),
        (
            "duplicate",
            vec![entry(b"f", b'2', format!("{outside}/file").as_bytes(), 0o777, b""), entry(b"f", b'0', b"", 0o644, b"changed")],
        ),
        ("extended name", extended("path=../outside/file")),
        ("extended link", [extended(&format!("linkpath={outside}")), vec![entry(b"x", b'0', b"", 0o644, b"y")]].concat()),
        ("directory mode", vec![entry(b"../outside/", b'5', b"", 0o000, b"")]),
        (
            "long name",
            vec![entry(b"././@LongLink", b'L', b"", 0o644, b"../outside/file\0"), entry(b"plain", b'0', b"", 0o644, b"changed")],
        ),
    ];
    for (number, (what, entries)) in archives.into_iter().enumerate() {
        // Whether it is refused or made harmless is conformance's matter; here only what it reaches counts.
        let _ = unpack(&s, &format!("in{number}"), archive(&entries)).await?;
        ensure_eq!(
            s.text("cat outside/*; ls outside; stat -c %a outside").await?,
            "canary\nfile\n755",
            "the directory outside after \"{what}\""
        );
        canary.check()?;
    }
    sparse(&s).await
}

/// A file that claims a TiB of which nothing follows.
async fn sparse(s: &Subject) -> Verdict {
    let mut header = entry(b"sparse", b'S', b"", 0o644, b"");
    header[386..398].copy_from_slice(b"00000000000\0");
    header[483..495].copy_from_slice(b"20000000000\0");
    let mut huge = entry(b"huge", b'0', b"", 0o644, b"");
    huge[124..136].copy_from_slice(b"77777777777\0");
    for (name, mut bytes) in [("sparse", header), ("huge", huge)] {
        bytes[148..156].copy_from_slice(b"        ");
        let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let _ = unpack(s, "big", archive(&[bytes])).await?;
        let used: u64 = s.text("du -sk . | cut -f1").await?.parse().unwrap_or(u64::MAX);
        ensure!(used < 16 << 10, "{name}: {used} KiB are used after an archive of one KiB");
    }
    Ok(())
}

async fn e05_devices_and_setuid(s: Subject, _: Canary) -> Verdict {
    for kind in [b'3', b'4'] {
        ensure!(unpack(&s, "dev", archive(&[entry(b"node", kind, b"", 0o666, b"")])).await?.is_err(), "a device was accepted");
    }
    ensure!(!s.exists("dev/node").await?, "a device node was made");
    if unpack(&s, "suid", archive(&[entry(b"tool", b'0', b"", 0o7755, b"x")])).await?.is_ok() {
        ensure_eq!(s.mode("suid/tool").await? & 0o6000, 0, "setuid and setgid bits");
    }
    Ok(())
}

async fn e06_odd_files(s: Subject, _: Canary) -> Verdict {
    s.sh("mkfifo fifo; mkdir dir").await?;
    let program = crate::attack::install(&s).await?;
    let mut listening = s.spawn(s.shell(format!("exec '{program}' echo unix socket"))).await?;
    s.until(s.patience, "the socket is there", || s.exists("socket")).await?;
    for (path, kind) in [("fifo", ErrorKind::NotAFile), ("socket", ErrorKind::NotAFile), ("dir", ErrorKind::IsADirectory)] {
        let read = s.soon("the refusal", s.sandbox.read_bytes(s.path(path), 100)).await?;
        ensure_kind(read, kind, path)?;
    }
    for device in ["/dev/zero", "/dev/null", "/dev/random", "/dev/tty", "/dev/ptmx"] {
        let read = s.soon("the refusal", s.sandbox.read_bytes(device, 100)).await?;
        ensure!(
            read.as_ref().is_err_and(|error| matches!(
                error.kind(),
                ErrorKind::NotAFile | ErrorKind::NotFound | ErrorKind::PermissionDenied
            )),
            "{device}: {read:?}"
        );
    }
    // A write into a FIFO would wait for a reader for ever.
    let write = s.soon("the answer to a write over a FIFO", s.sandbox.write_bytes(s.path("fifo"), "x")).await?;
    ensure!(write.is_ok() || write.is_err_and(|error| error.kind() == ErrorKind::NotAFile), "a write over a FIFO ended oddly");
    listening.kill(KillReason::Cancelled);
    s.outcome(&mut listening).await?;
    Ok(())
}

async fn e07_growing_files(s: Subject, _: Canary) -> Verdict {
    let mut growing = s
        .spawn(s.shell("while :; do head -c 65536 /dev/zero >> log; [ $(stat -c %s log) -gt 20000000 ] && : > log; done"))
        .await?;
    s.until(s.patience, "the file grows", || s.exists("log")).await?;
    for _ in 0..10 {
        let read = s.soon("the end of a growing file", s.sandbox.read_bytes(s.path("log"), 1 << 20)).await?;
        match read {
            Ok(bytes) => ensure!(bytes.len() <= 1 << 20, "{} bytes were read", bytes.len()),
            Err(error) => ensure_eq!(error.kind(), ErrorKind::TooLarge, "the refusal"),
        }
    }
    growing.kill(KillReason::Cancelled);
    s.outcome(&mut growing).await?;
    Ok(())
}

async fn e12_deep_trees(s: Subject, _: Canary) -> Verdict {
    let own = s.another(&|_| ()).await?;
    // Where this program itself cleans up, deeper than a stack or descriptors reach.
    let cleans_up = s.capabilities().host == HostIsolation::H0 && s.capabilities().locality == Locality::Local;
    // A thousand at a time: a longer path cannot be said at once, nor would a shell change into one that it made absolute.
    let script = |thousands: u32| {
        let thousand = "p=$(printf 'd/%.0s' $(seq 1000))";
        format!("mkdir tree; cd tree; {thousand}; for i in $(seq {thousands}); do mkdir -p $p && cd -P $p || exit 1; done")
    };
    let made = own.run(own.shell(script(3))).await?;
    ensure!(made.success(), "the tree could not be made: {:?}", made.outcome());
    own.soon("the removal of a deep tree", own.sandbox.remove(&own.path("tree"), true)).await??;
    ensure!(!own.exists("tree").await?, "the tree is still there");
    // And once more for whoever cleans up after the sandbox.
    own.run(own.shell(script(if cleans_up { 21 } else { 3 }))).await?;
    own.stop().await
}
