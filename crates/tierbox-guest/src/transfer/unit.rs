//! What hostile archives and targets do to a download: nothing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tierbox_core::{ErrorKind, Result};

use super::beneath::Beneath;
use super::walked::Walked;
use super::{Choice, TransferReport, UnpackLimits, bridge, file, pack, unpack};

/// An archive with entries that no honest program writes.
#[derive(Default)]
struct Forged(Vec<u8>);

impl Forged {
    fn file(self, name: &str, contents: &[u8]) -> Self {
        self.raw(b'0', name, "", 0o644, contents)
    }

    fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.raw(kind, name, target, 0o777, b"")
    }

    fn raw(mut self, kind: u8, name: &str, target: &str, mode: u32, contents: &[u8]) -> Self {
        self = self.claim(kind, name, target, mode, contents.len() as u64);
        self.0.extend_from_slice(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A header with a size that nothing need back.
    fn claim(mut self, kind: u8, name: &str, target: &str, mode: u32, size: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(1_000_000);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory with a canary beside the target.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        fs::create_dir(bench.path("outside")).unwrap();
        fs::write(bench.path("outside/canary"), b"safe").unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn check_canary(&self) {
        assert_eq!(fs::read(self.path("outside/canary")).unwrap(), b"safe");
        assert_eq!(fs::metadata(self.path("outside/canary")).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(self.path("outside")).unwrap().count(), 1);
    }
}

/// Both ways to fill a directory: by path, and where it is built in, by descriptors.
fn each(test: impl Fn(&Bench, &dyn Fn(&[u8], UnpackLimits) -> Result<TransferReport>)) {
    fn with<T: Beneath>(test: &impl Fn(&Bench, &dyn Fn(&[u8], UnpackLimits) -> Result<TransferReport>)) {
        let bench = Bench::new();
        test(&bench, &|archive, limits| unpack::unpack::<T>(archive, &bench.path("to"), limits));
        bench.check_canary();
    }
    with::<Walked>(&test);
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    with::<super::at::Held>(&test);
}

/// Every archive is refused as unsafe, naming the entry; `left` is what may be there then.
fn refuses(entry: &str, archive: Forged) {
    let archive = archive.finish();
    each(|bench, unpack| {
        let error = unpack(&archive, UnpackLimits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafeArchive, "{error}");
        assert!(error.message().contains(entry), "{error}");
        assert!(fs::symlink_metadata(bench.path("to").join("victim")).is_err());
    });
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../outside/canary", "/tmp/victim", "a/../../outside/canary", "..", "a/b/../../victim"] {
        refuses(name, Forged::default().file(name, b"bad"));
    }
}

#[test]
fn control_characters_in_names_are_escaped_in_errors() {
    refuses("../\\x1b[31m\\n", Forged::default().file("../\x1b[31m\n", b"bad"));
}

#[test]
fn links_that_lead_out_are_refused() {
    for target in ["../outside", "/etc/passwd", "/", "a/../../outside", "b/..", ".."] {
        refuses("victim", Forged::default().link(b'2', "victim", target));
    }
    refuses("d/victim", Forged::default().link(b'2', "d/victim", "../../outside/canary"));
    // Inside by the letter, but `up` leads to the top and its parent lies outside.
    refuses("victim", Forged::default().link(b'2', "d/up", "..").link(b'2', "victim", "d/up/../outside"));
}

#[test]
fn nothing_goes_through_a_link() {
    refuses("way/victim", Forged::default().raw(b'5', "d", "", 0o755, b"").link(b'2', "way", "d").file("way/victim", b"bad"));
    refuses("way/d/victim", Forged::default().link(b'2', "way", ".").raw(b'5', "way/d/victim", "", 0o755, b""));
    refuses("way/victim", Forged::default().link(b'2', "way", ".").link(b'2', "way/victim", "x"));
    refuses("victim", Forged::default().file("f", b"").link(b'2', "way", ".").link(b'1', "victim", "way/f"));
}

#[test]
fn a_link_that_was_there_before_is_not_followed() {
    let archive = Forged::default().file("way/canary", b"bad").finish();
    each(|bench, unpack| {
        fs::create_dir(bench.path("to")).unwrap();
        symlink("../outside", bench.path("to/way")).unwrap();
        assert_eq!(unpack(&archive, UnpackLimits::default()).unwrap_err().kind(), ErrorKind::UnsafeArchive);
    });
    let archive = Forged::default().file("file", b"own").raw(b'5', "dir", "", 0o755, b"").file("dir/x", b"").finish();
    each(|bench, unpack| {
        fs::create_dir(bench.path("to")).unwrap();
        symlink("../outside/canary", bench.path("to/file")).unwrap();
        symlink("../outside", bench.path("to/dir")).unwrap();
        unpack(&archive, UnpackLimits::default()).unwrap();
        assert!(fs::symlink_metadata(bench.path("to/file")).unwrap().is_file());
        assert!(fs::symlink_metadata(bench.path("to/dir")).unwrap().is_dir());
    });
}

#[test]
fn a_hard_link_that_was_there_before_is_not_written_through() {
    let archive = Forged::default().file("file", b"own").finish();
    each(|bench, unpack| {
        fs::create_dir(bench.path("to")).unwrap();
        fs::hard_link(bench.path("outside/canary"), bench.path("to/file")).unwrap();
        unpack(&archive, UnpackLimits::default()).unwrap();
        assert_eq!(fs::read(bench.path("to/file")).unwrap(), b"own");
    });
}

#[test]
fn a_target_that_became_a_link_is_refused() {
    let archive = Forged::default().file("canary", b"bad").finish();
    each(|bench, unpack| {
        symlink("outside", bench.path("to")).unwrap();
        let error = unpack(&archive, UnpackLimits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsafeArchive);
        assert!(error.message().contains("symbolic link"));
    });
    let bench = Bench::new();
    symlink("outside/canary", bench.path("to")).unwrap();
    let error = file::receive(b"bad".as_slice(), &bench.path("to"), 0o644, 100).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsafeArchive);
    bench.check_canary();
}

#[test]
fn hard_links_that_lead_out_are_refused() {
    for target in ["../outside/canary", "/etc/passwd", "a/../../outside/canary", "."] {
        refuses("victim", Forged::default().link(b'1', "victim", target));
    }
    // A second name elsewhere would move the point from which the link leads.
    refuses("victim", Forged::default().link(b'2', "d/e/l", "../../x").link(b'1', "victim", "d/e/l"));
}

#[test]
fn devices_fifos_and_unknown_kinds_are_refused() {
    for kind in [b'3', b'4', b'6', b'Z'] {
        refuses("victim", Forged::default().raw(kind, "victim", "", 0o666, b""));
    }
}

#[test]
fn setuid_and_setgid_bits_are_refused() {
    for (kind, mode) in [(b'0', 0o4755), (b'0', 0o2755), (b'5', 0o2755)] {
        refuses("victim", Forged::default().raw(kind, "victim", "", mode, b""));
    }
}

#[test]
fn sizes_are_not_believed() {
    refuses("middle of a file", Forged::default().claim(b'0', "big", "", 0o644, 1 << 30));
    refuses("victim", Forged::default().claim(b'S', "victim", "", 0o644, 1 << 40));
    refuses("too long", Forged::default().claim(b'L', "long", "", 0o644, 1 << 40));
    refuses("too long", Forged::default().claim(b'x', "long", "", 0o644, 1 << 40));
    each(|_, unpack| {
        for bad in [b"".as_slice(), &[0; 100], &[b'x'; 4096]] {
            assert_eq!(unpack(bad, UnpackLimits::default()).unwrap_err().kind(), ErrorKind::UnsafeArchive);
        }
    });
}

/// What a sandbox sends can fill a disk, so that nobody has to ask for a bound.
#[test]
fn there_is_a_bound_by_default() {
    let archive = Forged::default().claim(b'0', "big", "", 0o644, 1 << 40).finish();
    each(|_, unpack| assert_eq!(unpack(&archive, UnpackLimits::default()).unwrap_err().kind(), ErrorKind::TooLarge));
}

#[test]
fn limits_hold_before_anything_is_written() {
    let archive = Forged::default().file("a", &[1; 600]).file("b", &[1; 600]).finish();
    each(|bench, unpack| {
        let error = unpack(&archive, UnpackLimits { bytes: 1000, entries: 9 }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(!bench.path("to/b").exists());
        assert_eq!(unpack(&archive, UnpackLimits { bytes: 1200, entries: 1 }).unwrap_err().kind(), ErrorKind::TooLarge);
        let report = unpack(&archive, UnpackLimits { bytes: 1200, entries: 2 }).unwrap();
        assert_eq!(report, TransferReport { entries: 2, bytes: 1200, left_out: 0 });
    });
}

#[test]
fn what_is_harmless_arrives() {
    let archive = Forged::default()
        .raw(b'5', "./", "", 0o755, b"")
        .raw(b'5', "shut", "", 0o000, b"")
        .file("shut/file", b"first")
        .file("shut/file", b"second")
        .link(b'2', "shut/link", "../shut/file")
        .link(b'1', "twin", "shut/file")
        .raw(b'0', "run", "", 0o1755, b"#!")
        .finish();
    each(|bench, unpack| {
        let report = unpack(&archive, UnpackLimits::default()).unwrap();
        assert_eq!(report, TransferReport { entries: 7, bytes: 13, left_out: 0 });
        let to = bench.path("to");
        assert_eq!(fs::read(to.join("shut/link")).unwrap(), b"second");
        assert_eq!(fs::metadata(to.join("twin")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(to.join("run")).unwrap().mode() & 0o7700, 0o700);
        assert_eq!(fs::metadata(to.join("run")).unwrap().mtime(), 1_000_000);
    });
}

fn make_tree(top: &Path) {
    fs::create_dir_all(top.join("sub/empty")).unwrap();
    fs::create_dir_all(top.join("n".repeat(120)).join("m".repeat(120))).unwrap();
    fs::write(top.join("n".repeat(120)).join("m".repeat(120)).join("file"), b"deep").unwrap();
    fs::write(top.join("sub/big"), vec![5; 700_001]).unwrap();
    fs::set_permissions(top.join("sub/big"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("sub/big", top.join("link")).unwrap();
}

fn check_tree(top: &Path) {
    assert!(fs::read(top.join("link")).unwrap() == vec![5; 700_001]);
    assert_eq!(fs::read(top.join("n".repeat(120)).join("m".repeat(120)).join("file")).unwrap(), b"deep");
    assert_eq!(fs::metadata(top.join("sub/big")).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(top.join("sub/empty")).unwrap().count(), 0);
}

#[test]
fn a_tree_survives_both_ways() {
    fn with<T: Beneath>() {
        let bench = Bench::new();
        make_tree(&bench.path("from"));
        // As a person may name it: through a link.
        symlink("from", bench.path("alias")).unwrap();
        let mut archive = Vec::new();
        let packed = pack::pack::<T>(&bench.path("alias"), &|_| Choice::Pack, &mut archive).unwrap();
        let unpacked = unpack::unpack::<T>(archive.as_slice(), &bench.path("deep/to"), UnpackLimits::default()).unwrap();
        assert_eq!(packed, unpacked);
        assert_eq!(packed, TransferReport { entries: 7, bytes: 700_005, left_out: 0 });
        check_tree(&bench.path("deep/to"));
    }
    with::<Walked>();
    #[cfg(all(target_os = "linux", feature = "descriptors"))]
    with::<super::at::Held>();
}

#[test]
fn other_programs_read_what_is_packed() {
    let bench = Bench::new();
    make_tree(&bench.path("from"));
    let mut archive = Vec::new();
    pack::pack::<Walked>(&bench.path("from"), &|_| Choice::Pack, &mut archive).unwrap();
    tar::Archive::new(archive.as_slice()).unpack(bench.path("to")).unwrap();
    check_tree(&bench.path("to"));
}

#[test]
fn a_missing_source_is_named() {
    let error = pack::pack::<Walked>(Path::new("/nowhere/at/all"), &|_| Choice::Pack, std::io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("/nowhere/at/all"));
}

#[test]
fn a_file_takes_its_place_in_one_step() {
    let bench = Bench::new();
    let target = bench.path("new/file");
    file::receive(b"one".as_slice(), &target, 0o4755, 3).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7700, 0o700);
    let error = file::receive(b"four".as_slice(), &target, 0o644, 3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(fs::read(&target).unwrap(), b"one");
    assert_eq!(fs::read_dir(bench.path("new")).unwrap().count(), 1);
    assert_eq!(file::receive(b"".as_slice(), &bench.path("new"), 0o644, 3).unwrap_err().kind(), ErrorKind::IsADirectory);
}

#[test]
fn a_copy_that_stopped_halfway_says_where_it_is() {
    let bench = Bench::new();
    let archive = Forged::default().file("a", b"fine").file("../b", b"evil").finish();
    let target = bench.path("half");
    let error = unpack::unpack::<Walked>(archive.as_slice(), &target, UnpackLimits::default()).unwrap_err();
    let (help, told) = (error.help().unwrap().to_owned(), super::incomplete(error, &target));
    assert!(target.join("a").exists());
    let text = told.help().unwrap();
    assert!(text.starts_with(&help) && text.contains("half is incomplete"), "{text}");
    let none = super::incomplete(tierbox_core::Error::new(ErrorKind::Lost, "download", "gone"), &bench.path("never"));
    assert_eq!(none.help(), None);
}

#[tokio::test]
async fn streams_cross_between_the_two_worlds() {
    let bench = Bench::new();
    make_tree(&bench.path("from"));
    let (from, to) = (bench.path("from"), bench.path("to"));
    let (stream, sent) = bridge::reader(move |out| pack::pack::<Walked>(&from, &|_| Choice::Pack, out));
    let unpacked = bridge::feed(stream, move |tar| unpack::unpack::<Walked>(tar, &to, UnpackLimits::default())).await;
    assert_eq!(unpacked.unwrap(), bridge::finished(sent).await.unwrap());
    check_tree(&bench.path("to"));
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error_on_both_sides() {
    let failing = |out: bridge::Producer| pack::pack::<Walked>(Path::new("/nowhere"), &|_| Choice::Pack, out);
    let (stream, sent) = bridge::reader(failing);
    let received = bridge::feed(stream, |mut stream| {
        let copied = std::io::copy(&mut stream, &mut std::io::sink());
        copied.map_err(|error| super::stream_error("test", error))
    });
    assert!(received.await.unwrap_err().message().contains("/nowhere"));
    assert_eq!(bridge::finished(sent).await.unwrap_err().kind(), ErrorKind::NotFound);
    // A consumer that stops early stops the producer too.
    let (stream, sent) = bridge::reader(|mut out| {
        std::io::copy(&mut std::io::repeat(1), &mut out).map_err(|error| super::stream_error("test", error))?;
        Ok(TransferReport::default())
    });
    drop(stream);
    assert_eq!(bridge::finished(sent).await.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[cfg(all(target_os = "linux", feature = "descriptors"))]
#[test]
fn a_directory_that_is_swapped_for_a_link_in_a_loop_leads_nowhere() {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    /// Ends the other thread however this one ends.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let bench = Bench::new();
    fs::create_dir_all(bench.path("to/way")).unwrap();
    symlink("../outside", bench.path("to/other")).unwrap();
    let archive = (0..40).fold(Forged::default(), |forged, at| forged.file(&format!("way/{at}"), b"bad")).finish();
    let (one, other) = (bench.path("to/way"), bench.path("to/other"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..60 {
            let result = unpack::unpack::<super::at::Held>(archive.as_slice(), &bench.path("to"), UnpackLimits::default());
            if let Err(error) = result {
                assert!(matches!(error.kind(), ErrorKind::UnsafeArchive | ErrorKind::NotFound), "{error}");
            }
        }
    });
    bench.check_canary();
}
