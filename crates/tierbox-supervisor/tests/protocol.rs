//! The protocol under property tests: what one side writes the other reads, and no bytes whatever do harm.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::strategy::Union;
use tierbox_supervisor::archive;
use tierbox_supervisor::protocol::*;
use tierbox_supervisor::setup::*;
use tierbox_supervisor::wire::{Blob, DecodeError, Wire};

thread_local! {
    /// Bytes that this thread holds, and the most that it held since [`peak_of`] began. None while nobody counts.
    static HELD: Cell<Option<(isize, isize)>> = const { Cell::new(None) };
}

/// The system's allocator, counting.
struct Counting;

fn count(change: isize) {
    let _ = HELD.try_with(|held| {
        if let Some((now, most)) = held.get() {
            held.set(Some((now + change, most.max(now + change))));
        }
    });
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that `work` held at any moment.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    HELD.set(Some((0, 0)));
    let result = work();
    let most = HELD.take().map_or(0, |(_, most)| most);
    (result, most.cast_unsigned())
}

fn blob() -> impl Strategy<Value = Blob> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Blob)
}

fn id() -> impl Strategy<Value = [u8; 16]> {
    any::<[u8; 16]>()
}

fn text() -> impl Strategy<Value = String> {
    ".{0,12}"
}

fn blobs() -> impl Strategy<Value = Vec<Blob>> {
    prop::collection::vec(blob(), 0..5)
}

fn env() -> impl Strategy<Value = Vec<(Blob, Blob)>> {
    prop::collection::vec((blob(), blob()), 0..4)
}

fn option<T: Debug + Clone + 'static>(inner: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Option<T>> {
    prop::option::of(inner).boxed()
}

fn size() -> impl Strategy<Value = WinSize> {
    any::<(u16, u16)>().prop_map(|(rows, cols)| WinSize { rows, cols })
}

fn one_of<T: Debug + Clone + 'static>(values: &[T]) -> BoxedStrategy<T> {
    prop::sample::select(values.to_vec()).boxed()
}

/// One of several strategies.
fn any_of<T: Debug + 'static>(choices: Vec<BoxedStrategy<T>>) -> Union<BoxedStrategy<T>> {
    Union::new(choices)
}

fn confinement() -> BoxedStrategy<Confinement> {
    (blobs(), any::<bool>()).prop_map(|(executables, children)| Confinement { executables, children }).boxed()
}

fn exec() -> impl Strategy<Value = Exec> {
    let words = (id(), blobs(), env(), any::<bool>(), option(blob()), option(text()));
    let stdin = one_of(&[StdinMode::Null, StdinMode::Passed, StdinMode::Framed]);
    let streams = (stdin, one_of(&[OutputMode::Passed, OutputMode::Framed]), option(size()));
    let rest = (any::<Option<u64>>(), any::<Option<u64>>(), any::<bool>(), any::<bool>(), option(confinement()));
    (words, streams, rest).prop_map(
        |(
            (id, argv, env, env_clear, cwd, user),
            (stdin, output, pty),
            (timeout_ms, idle_ms, kill_leftovers, detached, confine),
        )| Exec {
            id,
            argv,
            env,
            env_clear,
            cwd,
            user,
            timeout_ms,
            idle_ms,
            stdin,
            output,
            pty,
            kill_leftovers,
            detached,
            confine,
        },
    )
}

fn file_op() -> impl Strategy<Value = FileOp> {
    any_of(vec![
        (blob(), any::<(u64, Option<u64>, Option<u64>, bool)>())
            .prop_map(|(path, (offset, length, max, passed))| FileOp::Read { path, offset, length, max, passed })
            .boxed(),
        (blob(), any::<(Option<u32>, bool, bool)>(), option(blob()))
            .prop_map(|(path, (mode, create_new, passed), inline)| FileOp::Write { path, mode, create_new, inline, passed })
            .boxed(),
        (blob(), any::<bool>()).prop_map(|(path, follow)| FileOp::Stat { path, follow }).boxed(),
        blob().prop_map(|path| FileOp::List { path }).boxed(),
        (blob(), any::<bool>()).prop_map(|(path, recursive)| FileOp::Remove { path, recursive }).boxed(),
        blob().prop_map(|path| FileOp::MakeDir { path }).boxed(),
        (blob(), any::<bool>()).prop_map(|(path, passed)| FileOp::Unpack { path, passed }).boxed(),
        (blob(), any::<bool>()).prop_map(|(path, passed)| FileOp::Pack { path, passed }).boxed(),
    ])
}

fn kill() -> BoxedStrategy<Kill> {
    one_of(&[Kill::Cancelled, Kill::OutputLimit])
}

fn to_supervisor() -> impl Strategy<Value = ToSupervisor> {
    use ToSupervisor as M;
    let plain = [M::Detach, M::InputEnd, M::Commit, M::ListExecs, M::Abort, M::Shutdown, M::Persist, M::Ping, M::NetworkReady];
    any_of(vec![
        one_of(&plain),
        any::<(u32, u64)>().prop_map(|(version, grace_ms)| M::Hello { version, grace_ms }).boxed(),
        exec().prop_map(|exec| M::Exec { exec }).boxed(),
        (id(), any::<(u64, u64)>())
            .prop_map(|(id, (stdout_from, stderr_from))| M::Attach { id, stdout_from, stderr_from })
            .boxed(),
        blob().prop_map(|data| M::Input { data }).boxed(),
        any::<(u8, u32)>().prop_map(|(stream, bytes)| M::Credit { stream, bytes }).boxed(),
        (id(), any::<i32>()).prop_map(|(id, signal)| M::Signal { id, signal }).boxed(),
        size().prop_map(|size| M::Resize { size }).boxed(),
        kill().prop_map(|reason| M::Kill { reason }).boxed(),
        (id(), kill()).prop_map(|(id, reason)| M::KillById { id, reason }).boxed(),
        id().prop_map(|id| M::Wait { id }).boxed(),
        file_op().prop_map(|op| M::File { op }).boxed(),
        any::<u16>().prop_map(|port| M::Dial { target: Dial::Tcp { port } }).boxed(),
        blob().prop_map(|path| M::Dial { target: Dial::Unix { path } }).boxed(),
        any::<u8>().prop_map(|count| M::Linger { count }).boxed(),
    ])
}

fn done() -> impl Strategy<Value = Done> {
    use NotStarted as N;
    let causes = [
        N::BadCwd,
        N::UnknownUser,
        N::UserNotMapped,
        N::TooBig,
        N::NoResources,
        N::AlreadyLaunched,
        N::Unconfined,
        N::NotAdmitted,
    ];
    let reasons = [Killed::Timeout, Killed::Idle, Killed::OutputLimit, Killed::Memory, Killed::Cancelled, Killed::Lifetime];
    let end = any_of(vec![
        one_of(&causes).prop_map(|cause| End::NotStarted { cause }).boxed(),
        any::<i32>().prop_map(|code| End::Exited { code }).boxed(),
        any::<i32>().prop_map(|signal| End::Signaled { signal }).boxed(),
        one_of(&reasons).prop_map(|reason| End::Killed { reason }).boxed(),
    ]);
    let numbers = any::<(Option<i32>, u64, Option<u64>, Option<u64>, Option<u64>, u64, u64)>();
    (end, numbers).prop_map(|(end, (cannot_execute, wall_us, user_us, system_us, peak_memory, stdout_total, stderr_total))| {
        Done { end, cannot_execute, wall_us, user_us, system_us, peak_memory, stdout_total, stderr_total }
    })
}

fn meta() -> impl Strategy<Value = Meta> {
    let kind = one_of(&[Kind::File, Kind::Directory, Kind::Symlink, Kind::Other]);
    (kind, any::<(u64, u32, u32, u32, i64)>(), option(blob()))
        .prop_map(|(kind, (size, mode, uid, gid, modified_ns), target)| Meta { kind, size, mode, uid, gid, modified_ns, target })
}

fn exec_info() -> impl Strategy<Value = ExecInfo> {
    (id(), blobs(), any::<(Option<u32>, bool, u64)>(), option(done()))
        .prop_map(|(id, argv, (pid, detached, age_ms), done)| ExecInfo { id, argv, pid, detached, age_ms, done })
}

fn failure() -> BoxedStrategy<Failure> {
    use Failure as F;
    one_of(&[
        F::NotFound,
        F::PermissionDenied,
        F::IsADirectory,
        F::NotAFile,
        F::TooLarge,
        F::NoSpace,
        F::AlreadyExists,
        F::UnsafeArchive,
        F::Invalid,
        F::Unsupported,
        F::Interrupted,
        F::Io,
    ])
}

fn from_supervisor() -> impl Strategy<Value = FromSupervisor> {
    use FromSupervisor as M;
    let mechanism = (text(), any::<u8>(), text()).prop_map(|(name, applied, detail)| Mechanism { name, applied, detail });
    let entry = (blob(), meta()).prop_map(|(name, meta)| Entry { name, meta });
    any_of(vec![
        one_of(&[M::InputClosed, M::Finished, M::Dialed, M::Pong]),
        any::<(u64, u64)>().prop_map(|(stdout, stderr)| M::Attached { stdout, stderr }).boxed(),
        (prop::collection::vec(mechanism, 0..4), any::<(u8, bool, bool)>())
            .prop_map(|(mechanisms, (kill_domain, memory_outcome, users))| M::Ready {
                mechanisms,
                kill_domain,
                memory_outcome,
                users,
            })
            .boxed(),
        (text(), any::<i32>(), text()).prop_map(|(step, errno, detail)| M::Refused { step, errno, detail }).boxed(),
        any::<u32>().prop_map(|pid| M::NetworkWanted { pid }).boxed(),
        any::<u32>().prop_map(|version| M::Welcome { version }).boxed(),
        (any::<(u8, u64)>(), blob()).prop_map(|((stream, offset), data)| M::Output { stream, offset, data }).boxed(),
        any::<u8>().prop_map(|stream| M::OutputEnd { stream }).boxed(),
        any::<u32>().prop_map(|bytes| M::InputCredit { bytes }).boxed(),
        any::<u32>().prop_map(|pid| M::Started { pid }).boxed(),
        done().prop_map(|done| M::Done { done }).boxed(),
        prop::collection::vec(exec_info(), 0..4).prop_map(|execs| M::Execs { execs }).boxed(),
        meta().prop_map(|meta| M::Meta { meta }).boxed(),
        (meta(), blob()).prop_map(|(meta, data)| M::Contents { meta, data }).boxed(),
        meta().prop_map(|meta| M::Opened { meta }).boxed(),
        prop::collection::vec(entry, 0..4).prop_map(|entries| M::Entries { entries }).boxed(),
        (failure(), any::<i32>(), text()).prop_map(|(failure, errno, detail)| M::Failed { failure, errno, detail }).boxed(),
    ])
}

fn users() -> impl Strategy<Value = UserMap> {
    any_of(vec![
        Just(UserMap::Single).boxed(),
        any::<(u32, u32)>().prop_map(|(first, count)| UserMap::Direct { first, count }).boxed(),
        (any::<(u32, u32, u32, u32)>(), blob(), blob())
            .prop_map(|((first_uid, uids, first_gid, gids), newuidmap, newgidmap)| UserMap::Helper {
                first_uid,
                uids,
                first_gid,
                gids,
                newuidmap,
                newgidmap,
            })
            .boxed(),
    ])
}

fn net() -> impl Strategy<Value = Net> {
    let blocked4 = prop::collection::vec(any::<([u8; 4], u8)>(), 0..4);
    let blocked6 = prop::collection::vec(any::<([u8; 16], u8)>(), 0..4);
    any_of(vec![
        one_of(&[Net::Isolated, Net::Host]),
        (blocked4, blocked6).prop_map(|(blocked4, blocked6)| Net::External { blocked4, blocked6 }).boxed(),
    ])
}

fn setup() -> impl Strategy<Value = Setup> {
    let agent = (text(), any::<(u32, u32)>(), blob()).prop_map(|(name, (uid, gid), home)| Agent { name, uid, gid, home });
    let root = any_of(vec![Just(Root::Host).boxed(), blob().prop_map(|path| Root::Directory { path }).boxed()]);
    let bind = (blob(), blob(), any::<(bool, bool)>()).prop_map(|(host, guest, (writable, optional))| Bind {
        host,
        guest,
        writable,
        optional,
    });
    let made = (blob(), any::<u32>(), blob()).prop_map(|(path, mode, contents)| MadeFile { path, mode, contents });
    let rlimit = any::<(u32, u64)>().prop_map(|(resource, value)| Rlimit { resource, value });
    let cgroup = (blob(), text(), prop::collection::vec((text(), text()), 0..3)).prop_map(|(path, kind, settings)| Cgroup {
        path,
        kind,
        settings,
    });
    let who = (one_of(&[Mode::Container, Mode::Process, Mode::Guest]), text(), users(), agent, env(), blob());
    let tree = (
        root,
        prop::collection::vec(bind, 0..3),
        prop::collection::vec(made, 0..3),
        blobs(),
        prop::collection::vec(rlimit, 0..3),
        prop::collection::vec(cgroup, 0..3),
    );
    let rest = (
        net(),
        option(blob()),
        option(text()),
        option(blob()),
        any::<(Option<u64>, Option<u64>, bool, Option<u64>, u32, bool)>(),
    );
    (who, tree, rest).prop_map(
        |(
            (mode, id, users, agent, env, workdir),
            (root, binds, files, writable, rlimits, cgroups),
            (net, listen, crash_at, root_path, (disk, inodes, persist, lifetime_ms, version, filter)),
        )| Setup {
            version,
            mode,
            id,
            users,
            agent,
            env,
            root_path,
            workdir,
            root,
            binds,
            files,
            writable,
            disk,
            inodes,
            rlimits,
            cgroups,
            net,
            listen,
            persist,
            lifetime_ms,
            crash_at,
            lifted: Vec::new(),
            filter,
        },
    )
}

/// A message survives frames, pieces, and company; cut or lengthened it is an error.
fn survives<M: Wire + Clone + PartialEq + Debug>(
    messages: &[(u32, M)],
    piece: usize,
    cut: prop::sample::Index,
) -> Result<(), TestCaseError> {
    let stream: Vec<u8> = messages.iter().flat_map(|(call, message)| encode(*call, message)).collect();
    let mut decoder = Decoder::default();
    let mut seen = Vec::new();
    for bytes in stream.chunks(piece) {
        decoder.push(bytes);
        while let Some(frame) = decoder.next_frame::<M>().map_err(|error| TestCaseError::fail(error.to_string()))? {
            seen.push((frame.call, frame.message));
        }
    }
    prop_assert_eq!(&seen[..], messages);
    for (_, message) in messages {
        let bytes = message.to_bytes();
        prop_assert_eq!(M::from_bytes(&[bytes.as_slice(), &[0]].concat()), Err(DecodeError::Trailing));
        // Every prefix is too short: lengths and tags come before what they speak of.
        let short = M::from_bytes(&bytes[..cut.index(bytes.len())]);
        prop_assert!(matches!(short, Err(DecodeError::Truncated | DecodeError::TooLong)), "{short:?}");
        let mut framed = encode(1, message);
        framed.push(0);
        let longer = (framed.len() - 4) as u32;
        framed[..4].copy_from_slice(&longer.to_le_bytes());
        let mut decoder = Decoder::default();
        decoder.push(&framed);
        prop_assert_eq!(decoder.next_frame::<M>(), Err(DecodeError::Trailing));
    }
    Ok(())
}

/// Whatever bytes come, in whatever pieces: an answer, and memory in proportion to what came.
fn bounded<M: Wire>(stream: &[u8], piece: usize) -> Result<(), TestCaseError> {
    let ((), peak) = peak_of(|| {
        let mut decoder = Decoder::default();
        for bytes in stream.chunks(piece) {
            decoder.push(bytes);
            while let Ok(Some(_)) = decoder.next_frame::<M>() {}
        }
    });
    // A byte of input becomes at most one value in memory, of which the largest takes some hundred bytes; the rest is
    // the room that growing vectors keep.
    let most = 4096 + 1024 * stream.len();
    prop_assert!(peak <= most, "{peak} bytes for {} bytes of input", stream.len());
    Ok(())
}

/// Frames with a true length around anything, so that the messages behind it are reached.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let frame =
        (0_u8..24, prop::collection::vec(any_of(vec![any::<u8>().boxed(), (0_u8..4).boxed(), Just(255).boxed()]), 0..200))
            .prop_map(|(tag, body)| {
                let length = (5 + body.len()) as u32;
                [&length.to_le_bytes()[..], &[1, 0, 0, 0, tag], &body].concat()
            });
    any_of(vec![
        prop::collection::vec(frame, 0..4).prop_map(|frames| frames.concat()).boxed(),
        prop::collection::vec(any::<u8>(), 0..300).boxed(),
    ])
}

/// A stream of honest frames in which a few bytes were changed.
fn spoiled<M: Wire + Debug>(message: impl Strategy<Value = M>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (message, changes).prop_map(|(message, changes)| {
        let mut bytes = encode(7, &message);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes
    })
}

mod unit {
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_the_host_says_survives(
            messages in prop::collection::vec((any::<u32>(), to_supervisor()), 1..4), piece in 1_usize..80, cut: prop::sample::Index,
        ) {
            survives(&messages, piece, cut)?;
        }

        #[test]
        fn what_the_supervisor_says_survives(
            messages in prop::collection::vec((any::<u32>(), from_supervisor()), 1..4), piece in 1_usize..80, cut: prop::sample::Index,
        ) {
            survives(&messages, piece, cut)?;
        }

        #[test]
        fn a_setup_survives(setup in setup(), piece in 1_usize..80, cut: prop::sample::Index) {
            survives(&[(0, setup)], piece, cut)?;
        }

        #[test]
        fn any_bytes_get_an_answer_and_little_memory(stream in hostile(), piece in 1_usize..80) {
            bounded::<ToSupervisor>(&stream, piece)?;
            bounded::<FromSupervisor>(&stream, piece)?;
            bounded::<Setup>(&stream, piece)?;
        }

        #[test]
        fn spoiled_messages_get_an_answer_and_little_memory(
            to in spoiled(to_supervisor()), from in spoiled(from_supervisor()), setup in spoiled(setup()), piece in 1_usize..80,
        ) {
            bounded::<ToSupervisor>(&to, piece)?;
            bounded::<FromSupervisor>(&from, piece)?;
            bounded::<Setup>(&setup, piece)?;
        }

        #[test]
        fn a_frame_that_is_too_long_is_refused_by_its_length_alone(excess in 1_u32..=u32::MAX - MAX_FRAME as u32) {
            let mut decoder = Decoder::default();
            decoder.push(&(MAX_FRAME as u32 + excess).to_le_bytes());
            prop_assert_eq!(decoder.next_frame::<ToSupervisor>(), Err(DecodeError::TooLong));
        }

        #[test]
        fn any_bytes_are_an_archive_or_an_error(stream in prop::collection::vec(any::<u8>(), 0..3000)) {
            drain_archive(&stream)?;
        }

        #[test]
        fn a_spoiled_archive_is_an_archive_or_an_error(
            entries in prop::collection::vec(entry(), 0..4), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut stream = archive_of(&entries);
            for (at, value) in changes {
                let at = at.index(stream.len());
                stream[at] = value;
            }
            drain_archive(&stream)?;
        }

        #[test]
        fn an_archive_survives(entries in prop::collection::vec(entry(), 0..6)) {
            let stream = archive_of(&entries);
            let mut reader = archive::Reader::new(stream.as_slice());
            for (expected, contents) in &entries {
                let found = reader.next_entry().unwrap();
                prop_assert_eq!(found.as_ref(), Some(expected));
                let (mut data, mut buffer) = (Vec::new(), [0; 100]);
                while let count @ 1.. = reader.read_data(&mut buffer).unwrap() {
                    data.extend_from_slice(&buffer[..count]);
                }
                prop_assert_eq!(&data, contents);
            }
            prop_assert!(reader.next_entry().unwrap().is_none());
            // Cut anywhere before the end mark's first block is whole, it is no archive.
            let cut = &stream[..stream.len() - 1024];
            prop_assert!(read_all(cut).is_err());
        }

        #[test]
        fn other_readers_agree(entries in prop::collection::vec(entry(), 0..6)) {
            let stream = archive_of(&entries);
            let mut theirs = tar::Archive::new(stream.as_slice());
            let mut count = 0;
            for (found, (expected, contents)) in theirs.entries().unwrap().zip(&entries) {
                let mut found = found.unwrap();
                let path = found.path_bytes().into_owned();
                prop_assert_eq!(&path, &expected.path);
                let mut data = Vec::new();
                std::io::Read::read_to_end(&mut found, &mut data).unwrap();
                prop_assert_eq!(&data, contents);
                count += 1;
            }
            prop_assert_eq!(count, entries.len());
        }
    }

    #[test]
    fn the_longest_frame_passes_and_one_more_byte_does_not() {
        let message = |length| ToSupervisor::Input { data: Blob(vec![0; length]) };
        let overhead = encode(0, &message(0)).len() - 4;
        let longest = try_encode(0, &message(MAX_FRAME - overhead)).unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&longest);
        assert!(decoder.next_frame::<ToSupervisor>().unwrap().is_some());
        assert_eq!(try_encode(0, &message(MAX_FRAME - overhead + 1)), None);
    }

    #[test]
    fn a_length_or_count_that_lies_allocates_nothing() {
        // An Execs frame that claims as many entries as a count can say, and an Output with such a length.
        for body in [&[10, 255, 255, 255, 255][..], &[4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]] {
            let frame = [&(4 + body.len() as u32).to_le_bytes()[..], &[0; 4], body].concat();
            let (result, peak) = peak_of(|| {
                let mut decoder = Decoder::default();
                decoder.push(&frame);
                decoder.next_frame::<FromSupervisor>().map(|_| ())
            });
            assert!(result.is_err());
            assert!(peak < 1024, "{peak} bytes");
        }
    }

    /// A vector of small things that are big in memory: the worst case of the bound.
    #[test]
    fn memory_grows_with_the_input_and_no_faster() {
        let count = 100_000_u32;
        let body = [&[10][..], &count.to_le_bytes(), &vec![0; count as usize]].concat();
        let frame = [&(4 + body.len() as u32).to_le_bytes()[..], &[0; 4], &body].concat();
        bounded::<FromSupervisor>(&frame, frame.len()).unwrap();
    }

    fn entry() -> impl Strategy<Value = (archive::Entry, Vec<u8>)> {
        let name = prop::collection::vec(1_u8..=255, 1..300).prop_filter("a directory of old", |name| !name.ends_with(b"/"));
        let contents = prop::collection::vec(any::<u8>(), 0..1200);
        let kind = (0..4, prop::collection::vec(1_u8..=255, 1..300));
        let mode = prop::sample::select(vec![0_u32, 0o644, 0o755, 0o7777]);
        (name, kind, contents, mode, -(1_i64 << 40)..1 << 40).prop_map(|(path, (kind, target), contents, mode, modified)| {
            let (kind, contents) = match kind {
                0 => (archive::Kind::File { size: contents.len() as u64 }, contents),
                1 => (archive::Kind::Directory, Vec::new()),
                2 => (archive::Kind::Symlink { target }, Vec::new()),
                _ => (archive::Kind::HardLink { target }, Vec::new()),
            };
            (archive::Entry { path, kind, mode, modified }, contents)
        })
    }

    fn archive_of(entries: &[(archive::Entry, Vec<u8>)]) -> Vec<u8> {
        let mut writer = archive::Writer::new(Vec::new());
        for (entry, contents) in entries {
            writer.entry(entry).unwrap();
            writer.data(contents).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read_all(stream: &[u8]) -> Result<usize, archive::ArchiveError> {
        let mut reader = archive::Reader::new(stream);
        let mut count = 0;
        while let Some(entry) = reader.next_entry()? {
            let _ = archive::components(&entry.path);
            count += 1;
        }
        Ok(count)
    }

    fn drain_archive(stream: &[u8]) -> Result<(), TestCaseError> {
        let (_, peak) = peak_of(|| read_all(stream).is_ok());
        prop_assert!(peak <= 64 << 10, "{peak} bytes for {} bytes of input", stream.len());
        Ok(())
    }
}
