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
    let log = OperationLog::open(directory.path(), Secrets::new(), LogLimits { bytes: 10_000 }).unwrap();
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
