use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use tierbox_core::{AuditData, AuditOperation, AuditOutcome, ExecId, Principal};

use super::*;

fn entry(text: &str) -> AuditEntry {
    AuditEntry::new("e", Principal::Harness, AuditOperation::Exec).argument("argv", vec![text])
}

fn open(directory: &Path) -> OperationLog {
    OperationLog::open(directory, Secrets::new(), LogLimits::default()).unwrap()
}

/// A log with a header and three entries, the last with a file beside it.
fn written() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    log.record(entry("a"));
    log.record(entry("b"));
    log.record(entry("c").data(AuditData::new("stdout", 5000, vec![b'x'; 5000])));
    drop(log);
    let path = directory.path().join(NAME);
    (directory, path)
}

#[test]
fn what_is_recorded_is_read_in_order_and_private() {
    let (directory, path) = written();
    let records = read(directory.path()).unwrap();
    let argv: Vec<_> = records[1..].iter().map(|record| record.value["arguments"]["argv"][0].as_str().unwrap()).collect();
    assert_eq!((records.len(), argv), (4, vec!["a", "b", "c"]));
    let standing = check(directory.path()).unwrap();
    assert!(standing.is_intact(), "{standing:?}");
    assert_eq!((standing.head.lines, standing.torn, standing.references), (4, 0, 1));
    for file in [path, directory.path().join("outputs/00000003-stdout")] {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn every_change_is_found() {
    for change in 0..7 {
        let (directory, path) = written();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        match change {
            0 => lines[1] = lines[1].replace("\"a\"", "\"A\""),
            1 => drop(lines.remove(1)),
            2 => lines.swap(1, 2),
            3 => lines.insert(2, lines[1].clone()),
            4 => lines[2] = "no JSON".to_owned(),
            5 => std::fs::write(directory.path().join("outputs/00000003-stdout"), "other").unwrap(),
            _ => std::fs::remove_file(directory.path().join("outputs/00000003-stdout")).unwrap(),
        }
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        let standing = check(directory.path()).unwrap();
        assert!(!standing.is_intact(), "change {change} went unseen");
        assert_eq!(standing.torn, 0);
    }
}

#[test]
fn a_torn_line_is_told_from_tampering_and_cut_by_the_next_writer() {
    let (directory, path) = written();
    let whole = check(directory.path()).unwrap().head;
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"seq\":4,\"pr");
    std::fs::write(&path, text).unwrap();
    let standing = check(directory.path()).unwrap();
    assert!(standing.is_intact());
    assert_eq!((standing.torn, &standing.head), (12, &whole));
    let log = open(directory.path());
    log.record(entry("d"));
    drop(log);
    let standing = check(directory.path()).unwrap();
    assert!(standing.is_intact(), "{standing:?}");
    assert_eq!((standing.torn, standing.head.lines), (0, 6));
    let records = read(directory.path()).unwrap();
    assert_eq!(records[4].value["arguments"]["step"], "torn-line-cut");
}

#[test]
fn a_line_that_is_cut_off_shows_in_the_head() {
    let (directory, path) = written();
    let before = check(directory.path()).unwrap().head;
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: String = text.lines().take(3).map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, kept).unwrap();
    assert_ne!(check(directory.path()).unwrap().head, before);
}

#[test]
fn writers_share_one_chain() {
    let directory = tempfile::tempdir().unwrap();
    let logs: Vec<_> = (0..4).map(|_| Arc::new(open(directory.path()))).collect();
    let threads = logs.iter().map(|log| {
        let log = log.clone();
        std::thread::spawn(move || (0..50).for_each(|_| log.record(entry("x"))))
    });
    threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    drop(logs);
    let standing = check(directory.path()).unwrap();
    assert!(standing.is_intact(), "{standing:?}");
    assert_eq!(standing.head.lines, 201);
}

#[test]
fn a_full_log_lets_nothing_more_happen() {
    let directory = tempfile::tempdir().unwrap();
    let log = OperationLog::open(directory.path(), Secrets::new(), LogLimits { bytes: 10_000, ..LogLimits::default() }).unwrap();
    assert!(log.check().is_ok());
    log.record(entry("x").data(AuditData::new("stdout", 20_000, vec![b'x'; 20_000])));
    assert_eq!(log.flush(false).unwrap_err().kind(), ErrorKind::LimitReached);
    assert_eq!(log.check().unwrap_err().kind(), ErrorKind::LimitReached);
    // What was under way is recorded to its end.
    log.record(entry("end"));
    drop(log);
    assert_eq!(check(directory.path()).unwrap().head.lines, 3);
}

#[test]
fn commands_without_an_end_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for (id, outcome) in [(1, AuditOutcome::Started), (2, AuditOutcome::Started), (1, AuditOutcome::Done)] {
        log.record(entry("x").exec(ExecId([id; 16])).outcome(outcome));
    }
    log.flush(true).unwrap();
    let standing = check(directory.path()).unwrap();
    assert_eq!(standing.unfinished, [ExecId([2; 16]).to_string()]);
    assert!(!standing.ended);
}

/// A log whose end is noted elsewhere, with three entries.
fn kept() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let (run, note) = (directory.path().join("run"), directory.path().join("heads/run"));
    let log = OperationLog::open_kept(&run, &note, Secrets::new(), LogLimits::default()).unwrap();
    ["a", "b", "c"].into_iter().for_each(|text| log.record(entry(text)));
    drop(log);
    (directory, run, note)
}

fn cut(run: &Path, lines: usize) {
    let text = std::fs::read_to_string(run.join(NAME)).unwrap();
    let kept: String = text.lines().take(lines).map(|line| format!("{line}\n")).collect();
    std::fs::write(run.join(NAME), kept).unwrap();
}

/// One that is too long to be read would else end the check as if it were the last.
#[test]
fn a_line_that_nobody_could_have_written_is_no_end() {
    let (directory, log) = written();
    let run = directory.path();
    let text = std::fs::read_to_string(&log).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let endless = "x".repeat(usize::try_from(super::file::LONGEST_LINE).unwrap() + 5);
    std::fs::write(&log, format!("{first}\n{endless}\n{rest}")).unwrap();
    let found = check(run).unwrap();
    assert!(found.torn == 0 && found.problems[0].line == 2, "{found:?}");
    assert!(super::read(run).is_err());
    assert_eq!(super::read_readable(run).unwrap().len(), text.lines().count());
}

#[test]
fn lines_that_are_cut_off_at_the_end_are_missed() {
    let (_directory, run, note) = kept();
    let against = Against { kept: Some(&note), noted: None };
    assert!(check_against(&run, against).unwrap().is_intact());
    assert_eq!(std::fs::metadata(&note).unwrap().permissions().mode() & 0o777, 0o600);
    for lines in [3, 1, 0] {
        let (_directory, run, note) = kept();
        cut(&run, lines);
        assert!(check(&run).unwrap().is_intact(), "the log alone shows it, and need not be compared");
        let problems = check_against(&run, Against { kept: Some(&note), noted: None }).unwrap().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].what.contains(&format!("{} are missing at its end", 4 - lines)), "{problems:?}");
        // Nobody goes on with it, which would note its new end.
        assert!(OperationLog::open_kept(&run, &note, Secrets::new(), LogLimits::default()).is_err());
    }
}

#[test]
fn a_note_that_is_gone_or_of_another_log_is_found() {
    let (_directory, run, note) = kept();
    let other = std::fs::read_to_string(&note).unwrap().replace(['0', '1', '2'], "3");
    std::fs::write(&note, format!("{:020}{}", 4, &other[20..])).unwrap();
    let found = check_against(&run, Against { kept: Some(&note), noted: None }).unwrap();
    assert!(found.problems[0].what.contains("its line 4 is not the one"), "{found:?}");
    std::fs::write(&note, "nonsense").unwrap();
    assert!(!check_against(&run, Against { kept: Some(&note), noted: None }).unwrap().is_intact());
    std::fs::remove_file(&note).unwrap();
    let found = check_against(&run, Against { kept: Some(&note), noted: None }).unwrap();
    assert!(found.problems[0].what.contains("that is gone"), "{found:?}");
}

#[test]
fn a_hash_that_was_written_down_must_still_be_there() {
    let (_directory, run, _) = kept();
    let head = check(&run).unwrap().head;
    assert!(check_against(&run, Against { kept: None, noted: Some(&head.hash) }).unwrap().is_intact());
    cut(&run, 3);
    assert!(!check_against(&run, Against { kept: None, noted: Some(&head.hash) }).unwrap().is_intact());
}

#[test]
fn a_log_that_shrinks_while_it_is_written_is_not_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    log.record(entry("a"));
    log.flush(false).unwrap();
    cut(directory.path(), 1);
    log.record(entry("b"));
    assert!(log.flush(false).unwrap_err().message().contains("cut off"));
}

/// A log that knows a secret, with room for so many bytes of long streams.
fn with_secret(directory: &Path, long: u64) -> OperationLog {
    let mut secrets = Secrets::new();
    secrets.add("hunter2-long");
    OperationLog::open(directory, secrets, LogLimits { long, ..LogLimits::default() }).unwrap()
}

#[test]
fn a_long_stream_is_a_file_without_its_secrets_wherever_it_is_cut() {
    let text = [b"hunter2-long, hunter2-hunter2-long and ".repeat(20), b"an end: hunter2-lon".to_vec()].concat();
    let clean = String::from_utf8(text.clone()).unwrap().replace("hunter2-long", "***");
    for size in 1..40 {
        let directory = tempfile::tempdir().unwrap();
        let log = with_secret(directory.path(), 1 << 20);
        let mut spill = log.spill("stdout").unwrap();
        text.chunks(size).for_each(|piece| spill.write(piece));
        let file = spill.finish(true).unwrap();
        let path = directory.path().join("outputs").join(&file.name);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), clean, "pieces of {size}");
        assert_eq!((file.bytes, &file.sha256), (text.len() as u64, &hash(clean.as_bytes())));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        log.record(entry("x").data(AuditData::in_file("stdout", text.len() as u64, Some(file))));
        drop(log);
        let standing = check(directory.path()).unwrap();
        assert!(standing.is_intact() && standing.references == 1, "{standing:?}");
        std::fs::write(&path, clean.replacen("an end", "AN END", 1)).unwrap();
        assert!(!check(directory.path()).unwrap().is_intact());
    }
}

#[test]
fn long_streams_have_so_much_room_and_end_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = with_secret(directory.path(), 1000);
    // One that is given up leaves nothing, and its room to others.
    let mut given_up = log.spill("stdout").unwrap();
    given_up.write(&[b'x'; 900]);
    drop(given_up);
    let mut spill = log.spill("stdout").unwrap();
    (0..20).for_each(|_| spill.write(&[b'x'; 90]));
    let file = spill.finish(true).unwrap();
    assert_eq!(file.bytes, 1000);
    assert!(log.spill("stderr").is_none() && log.check().is_ok());
    log.record(entry("x").data(AuditData::in_file("stdout", 1800, Some(file))));
    drop(log);
    let line = read(directory.path()).unwrap().pop().unwrap().value;
    assert_eq!((&line["data"][0]["bytes"], &line["data"][0]["kept"]), (&1800.into(), &1000.into()));
    assert_eq!(std::fs::read_dir(directory.path().join("outputs")).unwrap().count(), 1);
    // Whoever goes on with the log has no more room than is left.
    assert!(with_secret(directory.path(), 1000).spill("stdout").is_none());
    assert!(check(directory.path()).unwrap().is_intact());
    // A process that does not know the secrets keeps nothing.
    assert!(with_secret(directory.path(), 5000).withholding().spill("stdout").is_none());
}

#[test]
fn what_waits_for_the_disk_is_counted_with_its_arguments() {
    let plain = size(&entry(""));
    assert!(size(&entry(&"x".repeat(1 << 20))) >= plain + (1 << 20));
    let nested = entry("").argument("env", json!({ "A": ["x".repeat(1 << 20)] }));
    assert!(size(&nested) >= plain + (1 << 20));
}

/// A disk that takes so many bytes more, and can or cannot cut a file.
struct Filling {
    disk: Box<dyn spill::Sink>,
    room: usize,
    cuts: bool,
}

impl std::io::Write for Filling {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.disk.write(&bytes[..bytes.len().min(self.room)])?;
        self.room -= count;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.disk.flush()
    }
}

impl spill::Sink for Filling {
    fn cut(&mut self, length: u64) -> std::io::Result<()> {
        if self.cuts { self.disk.cut(length) } else { Err(std::io::Error::other("it cannot be cut")) }
    }
}

#[test]
fn a_long_stream_of_which_a_write_came_half_is_kept_as_far_as_it_was_counted() {
    let directory = tempfile::tempdir().unwrap();
    let log = with_secret(directory.path(), 1 << 20);
    // Of a piece of 100, the bytes that may begin a secret wait for the next one.
    let held = b"hunter2-long".len() - 1;
    for (room, cuts, kept) in
        [(350, true, Some(300 - held)), (50, true, Some(0)), (395, true, Some(400 - held)), (350, false, None)]
    {
        let mut spill = spill::Spill::begin(&directory.path().join(OUTPUTS), "stdout", &log.secrets, &log.room).unwrap();
        spill.divert(|disk| Box::new(Filling { disk, room, cuts }));
        let mut spill: Box<dyn AuditSpill> = Box::new(spill);
        (0..6).for_each(|_| spill.write(&[b'x'; 100]));
        let file = spill.finish(true);
        assert_eq!(file.as_ref().map(|file| file.bytes), kept.map(|kept| kept as u64), "room for {room}");
        if let Some(file) = file {
            log.record(entry("x").data(AuditData::in_file("stdout", 600, Some(file))));
        }
    }
    // Of one that ends where the last bytes have no room.
    let mut spill = spill::Spill::begin(&directory.path().join(OUTPUTS), "stdout", &log.secrets, &log.room).unwrap();
    spill.divert(|disk| Box::new(Filling { disk, room: 95, cuts: true }));
    let mut spill: Box<dyn AuditSpill> = Box::new(spill);
    spill.write(&[b'x'; 100]);
    let file = spill.finish(true).unwrap();
    assert_eq!(file.bytes, 100 - held as u64);
    log.record(entry("x").data(AuditData::in_file("stdout", 100, Some(file))));
    drop(log);
    let standing = check(directory.path()).unwrap();
    assert!(standing.is_intact() && standing.references == 4, "{standing:?}");
}

/// A disk that is full for a while: what could not be written comes before what is written later, and what was not kept is counted.
#[test]
fn a_write_that_failed_is_made_up_for() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let mut writer = Writer {
        shared: Shared::new(Head { lines: 0, hash: String::new() }),
        chain: Chain::open(directory.path(), None).unwrap(),
        secrets: Secrets::new(),
        limits: LogLimits::default(),
        outputs: directory.path().join(OUTPUTS),
        written: 0,
        unwritten: Vec::new(),
    };
    // Of which nothing can be written.
    let readable = std::fs::File::open(directory.path().join(NAME)).unwrap();
    let good = writer.chain.divert(readable);
    assert!(writer.turn(vec![entry("a"), entry("b")], 0, false).is_err());
    assert!(writer.turn(vec![entry("c")], 0, false).is_err());
    writer.chain.divert(good);
    writer.turn(vec![entry("d")], 7, false).unwrap();
    assert!(writer.unwritten.is_empty());
    let records = read(directory.path()).unwrap();
    let argv = |record: &Record| record.value["arguments"]["argv"][0].as_str().map(str::to_owned);
    assert_eq!(records.iter().filter_map(argv).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    let last = &records.last().unwrap().value["arguments"];
    assert_eq!((&last["step"], &last["entries"]), (&"entries-lost".into(), &7.into()));
    assert!(check(directory.path()).unwrap().is_intact());
}
