//! The file worker, used as the engine uses it: over its socket, with pipes for the data.
#![cfg(target_os = "linux")]

mod support;

mod unit {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::time::{Duration, Instant};

    use tierbox_supervisor::protocol::{Failure, FileOp, FromSupervisor, INLINE, Kind};

    use crate::support::{Answer, Bench, failure, is_root, read_all};

    fn read_op(path: &str) -> FileOp {
        FileOp::Read { path: path.as_bytes().into(), offset: 0, length: None, max: None, passed: true }
    }

    fn write_op(path: &str, inline: Option<&[u8]>) -> FileOp {
        let inline = inline.map(Into::into);
        FileOp::Write { path: path.as_bytes().into(), mode: None, create_new: false, inline, passed: true }
    }

    fn pack_op(path: &str) -> FileOp {
        FileOp::Pack { path: path.as_bytes().into(), passed: true }
    }

    fn remove_op(path: &str, recursive: bool) -> FileOp {
        FileOp::Remove { path: path.as_bytes().into(), recursive }
    }

    #[test]
    fn small_contents_travel_inside_the_frames() {
        let mut bench = Bench::new();
        assert_eq!(bench.run(write_op("new/deep/file", Some(b"hello"))), Answer::Finished);
        let Answer::Contents { meta, data } = bench.run(read_op("new/deep/file")) else { panic!("no contents") };
        assert_eq!((meta.kind, meta.mode, data.0.as_slice()), (Kind::File, 0o644, b"hello".as_slice()));
        assert_eq!(bench.names("new/deep"), ["file"]);
    }

    #[test]
    fn a_stream_replaces_the_file_only_after_the_commit() {
        let mut bench = Bench::new();
        bench.make("file", b"old");
        let contents: Vec<u8> = (0..3 << 20).map(|at: u32| (at / 7) as u8).collect();
        let mut pipe = bench.begin_with_source(write_op("file", None));
        pipe.write_all(&contents).unwrap();
        drop(pipe);
        assert_eq!(fs::read(bench.path("file")).unwrap(), b"old");
        bench.worker.commit().unwrap();
        assert_eq!(bench.last(), Answer::Finished);
        assert!(fs::read(bench.path("file")).unwrap() == contents);
        assert_eq!(bench.names(""), ["file"]);
    }

    #[test]
    fn without_the_commit_the_old_file_stands_and_nothing_else() {
        for kill in [false, true] {
            let mut bench = Bench::new();
            bench.make("file", b"old");
            let mut pipe = bench.begin_with_source(write_op("file", None));
            // More than the pipe holds, so the worker has begun.
            pipe.write_all(&[1; 600_000]).unwrap();
            if kill {
                bench.kill();
            }
            drop(pipe);
            bench.end();
            assert_eq!(fs::read(bench.path("file")).unwrap(), b"old");
            assert_eq!(bench.names(""), ["file"], "killed: {kill}");
        }
    }

    #[test]
    fn the_mode_is_given_or_kept() {
        let mut bench = Bench::new();
        let given = |mode| FileOp::Write {
            path: b"file".as_slice().into(),
            mode: Some(mode),
            create_new: false,
            inline: Some(b"x".as_slice().into()),
            passed: false,
        };
        let mode = |bench: &Bench| fs::metadata(bench.path("file")).unwrap().mode() & 0o7777;
        bench.run(given(0o750));
        assert_eq!(mode(&bench), 0o750);
        assert_eq!(bench.run(write_op("file", Some(b"y"))), Answer::Finished);
        assert_eq!(mode(&bench), 0o750);
        assert_eq!(bench.run(given(0o440)), Answer::Finished);
        assert_eq!(failure(bench.run(write_op("file", Some(b"z")))), Failure::PermissionDenied);
        assert_eq!(mode(&bench), 0o440);
    }

    #[test]
    fn create_new_refuses_what_exists() {
        let mut bench = Bench::new();
        let op = |path: &str| FileOp::Write {
            path: path.as_bytes().into(),
            mode: None,
            create_new: true,
            inline: Some(b"new".as_slice().into()),
            passed: false,
        };
        symlink("nowhere", bench.path("link")).unwrap();
        assert_eq!(bench.run(op("file")), Answer::Finished);
        assert_eq!(failure(bench.run(op("file"))), Failure::AlreadyExists);
        assert_eq!(failure(bench.run(op("link"))), Failure::AlreadyExists);
        assert_eq!(bench.names(""), ["file", "link"]);
    }

    #[test]
    fn what_is_no_file_is_told_at_once() {
        let mut bench = Bench::new();
        bench.make_dir("dir");
        bench.make_fifo("fifo");
        let _listener = std::os::unix::net::UnixListener::bind(bench.path("socket")).unwrap();
        bench.make("file", b"");
        let started = Instant::now();
        for (path, expected) in [
            ("dir", Failure::IsADirectory),
            ("fifo", Failure::NotAFile),
            ("socket", Failure::NotAFile),
            ("/dev/zero", Failure::NotAFile),
            ("/", Failure::IsADirectory),
            ("file/below", Failure::NotFound),
            ("a\0b", Failure::Invalid),
            ("", Failure::Invalid),
        ] {
            assert_eq!(failure(bench.run(read_op(path))), expected, "read {path}");
            assert_eq!(failure(bench.run(write_op(path, Some(b"x")))), expected, "write {path}");
        }
        assert_eq!(failure(bench.run(read_op("missing"))), Failure::NotFound);
        assert_eq!(failure(bench.run(read_op(&"x".repeat(256)))), Failure::Invalid);
        assert_eq!(failure(bench.run(read_op(&"x/".repeat(2049)))), Failure::Invalid);
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_write_through_a_link_reaches_what_it_names() {
        let mut bench = Bench::new();
        bench.make_dir("dir");
        bench.make("dir/file", b"old");
        symlink("dir/second", bench.path("first")).unwrap();
        symlink("file", bench.path("dir/second")).unwrap();
        symlink("dir/fresh", bench.path("dangling")).unwrap();
        symlink("loop", bench.path("loop")).unwrap();
        assert_eq!(bench.run(write_op("first", Some(b"new"))), Answer::Finished);
        assert_eq!(fs::read(bench.path("dir/file")).unwrap(), b"new");
        assert!(fs::symlink_metadata(bench.path("first")).unwrap().is_symlink());
        assert_eq!(bench.run(write_op("dangling", Some(b"made"))), Answer::Finished);
        assert_eq!(fs::read(bench.path("dir/fresh")).unwrap(), b"made");
        assert_eq!(failure(bench.run(write_op("loop", Some(b"x")))), Failure::Io);
    }

    #[test]
    fn a_range_and_a_limit_bound_a_read() {
        let mut bench = Bench::new();
        bench.make("file", b"0123456789");
        let op = |offset, length, max| FileOp::Read { path: b"file".as_slice().into(), offset, length, max, passed: true };
        for (offset, length, expected) in
            [(0, Some(3), "012"), (8, Some(9), "89"), (9, None, "9"), (10, None, ""), (u64::MAX, None, ""), (3, Some(0), "")]
        {
            let Answer::Contents { data, .. } = bench.run(op(offset, length, None)) else { panic!("no contents") };
            assert_eq!(data.0, expected.as_bytes(), "{offset} {length:?}");
        }
        assert!(matches!(bench.run(op(0, None, Some(10))), Answer::Contents { .. }));
        assert!(matches!(bench.run(op(4, Some(6), Some(6))), Answer::Contents { .. }));
        assert_eq!(failure(bench.run(op(0, None, Some(9)))), Failure::TooLarge);
    }

    #[test]
    fn made_up_files_are_read_to_their_end() {
        let mut bench = Bench::new();
        let Answer::Contents { data, .. } = bench.run(read_op("/proc/self/status")) else { panic!("no contents") };
        assert!(data.0.windows(8).any(|part| part == b"\nCapPrm:"));
    }

    #[test]
    fn big_contents_come_through_the_pipe() {
        let mut bench = Bench::new();
        let contents: Vec<u8> = (0..2 << 20).map(|at: u32| (at / 11) as u8).collect();
        bench.make("file", &contents);
        let (answer, data) = bench.run_with_sink(read_op("file"));
        assert_eq!(answer, Answer::Finished);
        assert!(data == contents);
        let middle = FileOp::Read {
            path: b"file".as_slice().into(),
            offset: 1000,
            length: Some(u64::from(INLINE) + 1),
            max: None,
            passed: true,
        };
        let (answer, data) = bench.run_with_sink(middle);
        assert_eq!(answer, Answer::Finished);
        assert!(data == contents[1000..][..INLINE as usize + 1]);
        assert_eq!(failure(bench.run(read_op("file"))), Failure::Invalid, "without a pipe");
    }

    #[test]
    fn a_file_that_grows_is_not_chased() {
        for (max, length) in [(None, 400_000), (Some(500_000), 500_000)] {
            let mut bench = Bench::new();
            bench.make("file", &[7; 400_000]);
            let op = FileOp::Read { path: b"file".as_slice().into(), offset: 0, length: None, max, passed: true };
            let mut pipe = bench.begin_with_sink(op);
            // The pipe holds less, so the worker waits while the file grows.
            assert!(matches!(bench.next(), FromSupervisor::Opened { .. }));
            fs::OpenOptions::new().append(true).open(bench.path("file")).unwrap().write_all(&[8; 400_000]).unwrap();
            assert_eq!(read_all(&mut pipe).len(), length);
            match max {
                None => assert_eq!(bench.last(), Answer::Finished),
                Some(_) => assert_eq!(failure(bench.last()), Failure::TooLarge),
            }
        }
    }

    #[test]
    fn facts_are_told() {
        let mut bench = Bench::new();
        bench.make("file", b"123");
        symlink("file", bench.path("link")).unwrap();
        let op = |follow| FileOp::Stat { path: b"link".as_slice().into(), follow };
        let Answer::Meta { meta } = bench.run(op(false)) else { panic!("no facts") };
        assert_eq!((meta.kind, meta.target.map(|target| target.0)), (Kind::Symlink, Some(b"file".to_vec())));
        let Answer::Meta { meta } = bench.run(op(true)) else { panic!("no facts") };
        let real = fs::metadata(bench.path("file")).unwrap();
        assert_eq!((meta.kind, meta.size, meta.uid), (Kind::File, 3, real.uid()));
        assert_eq!(meta.modified_ns, real.mtime() * 1_000_000_000 + real.mtime_nsec());
    }

    #[test]
    fn a_listing_is_sorted_and_comes_in_bounded_parts() {
        let mut bench = Bench::new();
        bench.make_dir("dir");
        let name = |at: usize| format!("{at:05}{}", "x".repeat(200));
        for at in (0..2000).rev() {
            fs::write(bench.path("dir").join(name(at)), b"").unwrap();
        }
        let list = |path: &str| FileOp::List { path: path.as_bytes().into() };
        bench.worker.submit(&list("dir"), None).unwrap();
        let (mut names, mut parts) = (Vec::new(), 0);
        loop {
            match bench.next() {
                FromSupervisor::Entries { entries } => {
                    assert!(entries.iter().map(|entry| entry.name.0.len() + 60).sum::<usize>() < 256 << 10);
                    names.extend(entries.into_iter().map(|entry| entry.name.0));
                    parts += 1;
                }
                answer => {
                    assert_eq!(answer, FromSupervisor::Finished);
                    break;
                }
            }
        }
        assert!(parts > 1);
        assert_eq!(names, (0..2000).map(|at| name(at).into_bytes()).collect::<Vec<_>>());
        bench.make("file", b"");
        assert_eq!(failure(bench.run(list("file"))), Failure::NotFound);
        assert_eq!(failure(bench.run(list("missing"))), Failure::NotFound);
    }

    #[test]
    fn removing_asks_before_it_takes_a_tree_and_never_follows_a_link() {
        let mut bench = Bench::new();
        bench.make_dir("dir");
        bench.make("dir/file", b"");
        bench.make_dir("kept");
        bench.make("kept/file", b"");
        symlink("../kept", bench.path("dir/link")).unwrap();
        symlink("kept", bench.path("link")).unwrap();
        assert_eq!(failure(bench.run(remove_op("dir", false))), Failure::IsADirectory);
        assert_eq!(bench.run(remove_op("dir/", true)), Answer::Finished);
        assert_eq!(bench.run(remove_op("link/", true)), Answer::Finished);
        assert_eq!(bench.names(""), ["kept"]);
        assert_eq!(bench.names("kept"), ["file"]);
        assert_eq!(failure(bench.run(remove_op("dir", true))), Failure::NotFound);
        for odd in ["/", ".", "kept/..", "kept/."] {
            assert_eq!(failure(bench.run(remove_op(odd, true))), Failure::Invalid, "{odd}");
        }
    }

    #[test]
    fn very_deep_and_wide_trees_are_removed() {
        let mut bench = Bench::new();
        bench.make_dir("top");
        // Deeper than a path can name and than a process can hold open.
        bench.make_chain("top", "down", 1200);
        for at in 0..4500 {
            fs::write(bench.path("top").join(format!("file{at}")), b"").unwrap();
            if at % 10 == 0 {
                bench.make_dir(&format!("top/dir{at}"));
                bench.make_dir(&format!("top/dir{at}/below"));
            }
        }
        assert_eq!(bench.run(remove_op("top", true)), Answer::Finished);
        assert!(bench.names("").is_empty());
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let mut bench = Bench::new();
        let make = |path: &str| FileOp::MakeDir { path: path.as_bytes().into() };
        assert_eq!(bench.run(make("a/b//c/")), Answer::Finished);
        assert_eq!(bench.run(make("a/b/c")), Answer::Finished);
        assert!(bench.path("a/b/c").is_dir());
        bench.make("file", b"");
        assert_eq!(failure(bench.run(make("file"))), Failure::AlreadyExists);
        assert_eq!(failure(bench.run(make("file/x"))), Failure::NotFound);
    }

    #[test]
    fn the_worker_is_the_agent_and_holds_nothing() {
        let mut bench = Bench::new();
        bench.run(write_op("file", Some(b"")));
        let process = format!("/proc/{}", bench.worker.pid());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert!(line("Uid:").split_whitespace().all(|uid| uid == bench.uid.to_string()), "{}", line("Uid:"));
        assert_eq!(line("CapPrm:"), "0000000000000000");
        assert_eq!(fs::metadata(bench.path("file")).unwrap().uid(), bench.uid);
        if is_root() {
            // Only root may look: the process is not dumpable.
            assert_eq!(fs::read_dir(format!("{process}/fd")).unwrap().count(), 4);
            fs::set_permissions(bench.path(""), fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(failure(bench.run(write_op("other", Some(b"")))), Failure::PermissionDenied);
            assert_eq!(failure(bench.run(read_op("/etc/shadow"))), Failure::PermissionDenied);
        }
    }

    #[test]
    fn a_limit_on_file_size_is_told_and_does_not_kill() {
        let mut bench = Bench::new();
        bench.limit_file_size(1000);
        assert_eq!(failure(bench.run(write_op("file", Some(&[1; 1001])))), Failure::TooLarge);
        assert_eq!(bench.run(write_op("file", Some(&[1; 1000]))), Answer::Finished);
        assert_eq!(bench.names(""), ["file"]);
    }

    #[test]
    fn a_full_disk_is_told_and_the_old_file_stands() {
        let mut bench = Bench::new();
        // A plain user has no small file system; the limit on file size above takes the same way.
        let Some(_mount) = bench.mount_small("disk") else { return };
        assert_eq!(bench.run(write_op("disk/file", Some(b"old"))), Answer::Finished);
        let mut pipe = bench.begin_with_source(write_op("disk/file", None));
        // The worker stops reading, so this fails or not, as it happens.
        let _ = pipe.write_all(&vec![1; 4 << 20]);
        drop(pipe);
        assert_eq!(failure(bench.last()), Failure::NoSpace);
        assert_eq!(bench.names("disk"), ["file"]);
        assert_eq!(fs::read(bench.path("disk/file")).unwrap(), b"old");
        // A commit that was already on its way does not disturb what follows.
        bench.worker.commit().unwrap();
        assert!(matches!(bench.run(read_op("disk/file")), Answer::Contents { .. }));
    }

    #[test]
    fn what_does_not_fit_the_socket_is_refused_before_it_is_sent() {
        let mut bench = Bench::new();
        let error = bench.worker.submit(&write_op("file", Some(&[0; INLINE as usize + 1])), None).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(bench.run(write_op("file", Some(&[0; INLINE as usize]))), Answer::Finished);
    }

    #[test]
    fn a_stopped_worker_never_blocks_the_engine() {
        let mut bench = Bench::new();
        bench.stop();
        let op = write_op("file", Some(&[0; INLINE as usize]));
        let started = Instant::now();
        bench.worker.submit(&op, None).unwrap();
        let error = (0..100).find_map(|_| bench.worker.submit(&op, None).err()).unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        assert!(bench.worker.receive().unwrap().is_empty());
        assert!(started.elapsed() < Duration::from_secs(5));
        bench.kill();
        bench.end();
    }

    #[test]
    fn a_tree_survives_packing_and_unpacking() {
        let mut bench = Bench::new();
        let long = "l".repeat(255);
        let odd = std::ffi::OsStr::from_bytes(b"\xff \n'");
        for dir in ["from", "from/empty", "from/sub", &format!("from/sub/{long}")] {
            bench.make_dir(dir);
        }
        bench.make(&format!("from/sub/{long}/{long}"), b"deep");
        fs::write(bench.path("from").join(odd), b"odd").unwrap();
        bench.make("from/big", &vec![3; 700_001]);
        bench.make("from/none", b"");
        fs::set_permissions(bench.path("from/none"), fs::Permissions::from_mode(0o751)).unwrap();
        symlink("/nowhere/at/all", bench.path("from/link")).unwrap();
        bench.make_fifo("from/fifo");
        let (answer, archive) = bench.run_with_sink(pack_op("from"));
        assert_eq!(answer, Answer::Finished);
        assert_eq!(bench.unpack("to/here", &archive), Answer::Finished);
        let to = bench.path("to/here");
        assert_eq!(fs::read(to.join("sub").join(&long).join(&long)).unwrap(), b"deep");
        assert_eq!(fs::read(to.join(odd)).unwrap(), b"odd");
        assert!(fs::read(to.join("big")).unwrap() == vec![3; 700_001]);
        assert_eq!(fs::metadata(to.join("none")).unwrap().mode() & 0o7777, 0o751);
        assert_eq!(fs::read_link(to.join("link")).unwrap().to_str(), Some("/nowhere/at/all"));
        assert!(to.join("empty").is_dir() && !to.join("fifo").exists());
        let modified = |dir: &std::path::Path| fs::metadata(dir.join("big")).unwrap().mtime();
        assert_eq!(modified(&to), modified(&bench.path("from")));
    }

    #[test]
    fn gnu_tar_and_the_worker_understand_each_other() {
        let mut bench = Bench::new();
        let long = "n".repeat(150);
        bench.make_dir("from");
        bench.make("from/file", b"contents");
        bench.make(&format!("from/{long}"), b"long");
        fs::hard_link(bench.path("from/file"), bench.path("from/twin")).unwrap();
        for format in ["gnu", "pax", "ustar"] {
            let made = std::process::Command::new("tar")
                .args(["--create", "--format", format, "--directory"])
                .args([bench.path("from").as_os_str(), ".".as_ref()])
                .output()
                .unwrap();
            let to = format!("to-{format}");
            assert_eq!(bench.unpack(&to, &made.stdout), Answer::Finished, "{format}");
            let to = bench.path(&to);
            assert_eq!(fs::read(to.join("twin")).unwrap(), b"contents");
            assert_eq!(fs::metadata(to.join("twin")).unwrap().nlink(), 2);
            // A name of 150 bytes without a slash has no place in the old format, and tar leaves it out.
            assert_eq!(to.join(&long).exists(), format != "ustar");
        }
        let (_, archive) = bench.run_with_sink(pack_op("from"));
        fs::write(bench.path("archive"), archive).unwrap();
        let listed = std::process::Command::new("tar").arg("--list").arg("--file").arg(bench.path("archive")).output().unwrap();
        assert!(listed.status.success());
        let names = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(names.lines().collect::<Vec<_>>(), ["file", &long, "twin"]);
    }

    #[test]
    fn a_tree_that_is_too_deep_to_name_is_a_typed_failure() {
        let mut bench = Bench::new();
        bench.make_dir("top");
        bench.make_chain("top", &"d".repeat(250), 140);
        let (answer, _) = bench.run_with_sink(pack_op("top"));
        assert_eq!(failure(answer), Failure::TooLarge);
        assert_eq!(bench.run(remove_op("top", true)), Answer::Finished);
    }

    #[test]
    fn a_truncated_archive_is_refused() {
        let mut bench = Bench::new();
        bench.make_dir("from");
        bench.make("from/file", &[1; 2000]);
        let (_, archive) = bench.run_with_sink(pack_op("from"));
        for length in [0, 100, 512, 1000, archive.len() - 1024] {
            assert_eq!(failure(bench.unpack("to", &archive[..length])), Failure::Invalid, "{length} bytes");
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_ends_the_operation() {
        let mut bench = Bench::new();
        bench.make("file", &[0; 1 << 20]);
        drop(bench.begin_with_sink(read_op("file")));
        assert!(matches!(bench.next(), FromSupervisor::Opened { .. }));
        assert_eq!(failure(bench.last()), Failure::Io);
    }

    #[test]
    fn a_big_file_needs_no_memory() {
        let mut bench = Bench::new();
        fs::File::create(bench.path("sparse")).unwrap().set_len(200 << 20).unwrap();
        let mut pipe = bench.begin_with_sink(read_op("sparse"));
        let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            match pipe.read(&mut buffer).unwrap() {
                0 => break,
                count => total += count,
            }
        }
        assert_eq!(total, 200 << 20);
        assert!(matches!(bench.next(), FromSupervisor::Opened { .. }));
        assert_eq!(bench.last(), Answer::Finished);
        let memory = bench.memory_kib();
        assert!(memory < 32 << 10, "{memory} KiB");
    }
}

mod escape {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use tierbox_supervisor::protocol::Failure;

    use crate::support::{Answer, Bench, Forged, failure, while_swapping};

    /// Unpacks a forged archive beside a canary; returns the answer.
    fn unpack(forge: impl FnOnce(&mut Forged)) -> (Bench, Answer) {
        let mut bench = Bench::new();
        bench.make_dir("outside");
        bench.make("outside/canary", b"safe");
        let mut forged = Forged::default();
        forge(&mut forged);
        let answer = bench.unpack("to", &forged.finish());
        assert_eq!(fs::read(bench.path("outside/canary")).unwrap(), b"safe");
        assert_eq!(bench.names("outside"), ["canary"]);
        (bench, answer)
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../outside/canary", "/tmp/x", "a/../../outside/canary", ".."] {
            let (bench, answer) = unpack(|forged| forged.file(name, b"bad"));
            assert_eq!(failure(answer), Failure::UnsafeArchive, "{name}");
            assert!(bench.names("to").is_empty());
        }
    }

    #[test]
    fn links_are_made_but_never_followed() {
        let (bench, answer) = unpack(|forged| {
            forged.link(b'2', "way", "../outside");
            forged.file("way/canary", b"bad");
        });
        assert_eq!(failure(answer), Failure::UnsafeArchive);
        assert!(fs::symlink_metadata(bench.path("to/way")).unwrap().is_symlink());
        let (bench, answer) = unpack(|forged| {
            forged.link(b'2', "file", "../outside/canary");
            forged.file("file", b"own");
        });
        assert_eq!(answer, Answer::Finished);
        assert_eq!(fs::read(bench.path("to/file")).unwrap(), b"own");
        assert!(fs::symlink_metadata(bench.path("to/file")).unwrap().is_file());
    }

    #[test]
    fn hard_links_reach_only_files_inside() {
        for target in ["../outside/canary", "/etc/passwd", "way/canary", "way"] {
            let (_, answer) = unpack(|forged| {
                forged.link(b'2', "way", "../outside");
                forged.link(b'1', "twin", target);
            });
            assert_eq!(failure(answer), Failure::UnsafeArchive, "{target}");
        }
    }

    #[test]
    fn devices_and_unknown_kinds_are_refused() {
        for kind in [b'3', b'4', b'6', b'Z'] {
            let (_, answer) = unpack(|forged| forged.raw(kind, "thing", "", 0o666, b""));
            assert_eq!(failure(answer), Failure::UnsafeArchive, "{}", kind as char);
        }
    }

    #[test]
    fn setuid_bits_are_dropped_and_duplicates_replace() {
        let (bench, answer) = unpack(|forged| {
            forged.raw(b'0', "file", "", 0o6755, b"first");
            forged.raw(b'0', "file", "", 0o6755, b"second");
            forged.raw(b'5', "dir", "", 0o7755, b"");
            forged.raw(b'5', "shut", "", 0o555, b"");
            forged.file("shut/inside", b"");
        });
        assert_eq!(answer, Answer::Finished);
        let mode = |name: &str| fs::metadata(bench.path("to").join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("file"), mode("dir"), mode("shut")), (0o755, 0o755, 0o555));
        assert_eq!(fs::read(bench.path("to/file")).unwrap(), b"second");
        // Otherwise a plain user could not remove the test's directory.
        fs::set_permissions(bench.path("to/shut"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn sizes_are_not_believed() {
        let (_, answer) = unpack(|forged| forged.claim(b'0', "big", 1 << 40));
        assert_eq!(failure(answer), Failure::Invalid);
        let (_, answer) = unpack(|forged| forged.claim(b'S', "sparse", 1 << 40));
        assert_eq!(failure(answer), Failure::UnsafeArchive);
        let (_, answer) = unpack(|forged| forged.claim(b'L', "long", 1 << 40));
        assert_eq!(failure(answer), Failure::Invalid);
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_in_a_loop_leads_nowhere() {
        let mut bench = Bench::new();
        for dir in ["outside", "to", "to/way"] {
            bench.make_dir(dir);
        }
        std::os::unix::fs::symlink("../outside", bench.path("to/other")).unwrap();
        let mut forged = Forged::default();
        for at in 0..50 {
            forged.file(&format!("way/{at}"), b"data");
            // Each entry walks anew, since the one before was elsewhere.
            forged.file(&format!("file{at}"), b"data");
        }
        let archive = forged.finish();
        let (one, other) = (bench.path("to/way"), bench.path("to/other"));
        let (mut whole, mut refused) = (0, 0);
        let swaps = while_swapping(one, other, || {
            for _ in 0..60 {
                match bench.unpack("to", &archive) {
                    Answer::Finished => whole += 1,
                    answer => {
                        assert!(matches!(failure(answer), Failure::UnsafeArchive | Failure::NotFound));
                        refused += 1;
                    }
                }
            }
        });
        assert!(swaps > 0 && whole + refused == 60);
        assert!(bench.names("outside").is_empty());
    }
}
