use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use tierbox_core::{LeaseHandle, Resource};

use super::*;

struct Fixture {
    _dir: tempfile::TempDir,
    journal: Journal,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(&dir.path().join("state")).unwrap();
    Fixture { _dir: dir, journal }
}

fn new() -> NewLease {
    NewLease::new("local", "local", "T0.H1.N2")
}

fn resource(id: &str) -> Resource {
    Resource { kind: "directory".into(), id: id.into() }
}

#[test]
fn a_lease_lives_from_create_to_remove() {
    let Fixture { journal, _dir } = fixture();
    let memo = serde_json::json!(["/usr/bin/ls"]);
    let lease = journal.create(NewLease { memo: memo.clone(), ..new() }).unwrap();
    lease.record(&[resource("/a")]).unwrap();
    lease.set_data(serde_json::json!({"pid": 7})).unwrap();
    let directory = lease.directory().unwrap();
    assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::write(directory.join("socket"), "").unwrap();

    let entry = journal.get(lease.id()).unwrap();
    assert_eq!((&entry.record, entry.memo.clone()), (&lease.snapshot(), memo));
    assert_eq!((entry.record.resources.len(), entry.standing(SystemTime::now())), (1, Standing::Held));
    assert_eq!(journal.adopt(lease.id()).unwrap_err().kind(), ErrorKind::LimitReached);
    let mode = std::fs::metadata(journal.path_of(lease.id()).unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    lease.remove().unwrap();
    lease.remove().unwrap();
    assert!(!directory.exists());
    assert_eq!(journal.get(lease.id()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(journal.list().unwrap(), Listing::default());
}

#[test]
fn a_dropped_handle_is_an_orphan_and_can_be_adopted() {
    let Fixture { journal, _dir } = fixture();
    let id = journal.create(new()).unwrap().id().to_owned();
    assert_eq!(journal.expired(SystemTime::now()).unwrap().len(), 1);
    let adopted = journal.adopt(&id).unwrap();
    assert!(journal.expired(SystemTime::now()).unwrap().is_empty());
    adopted.record(&[resource("/b")]).unwrap();
    assert_eq!(journal.get(&id).unwrap().record.resources, [resource("/b")]);
}

#[test]
fn holds_decide_who_wants_it() {
    let Fixture { journal, _dir } = fixture();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for (hold, lifetime, want) in [
        (Hold::Process, None, Standing::Orphaned),
        (Hold::Until(now + hour), None, Standing::Until),
        (Hold::Until(now - hour), None, Standing::Expired),
        (Hold::Kept, None, Standing::Kept),
        (Hold::Kept, Some(Duration::ZERO), Standing::Expired),
        (Hold::Until(now + hour), Some(Duration::ZERO), Standing::Expired),
    ] {
        let lease = journal.create(NewLease { lifetime, ..new() }).unwrap();
        lease.set_hold(hold).unwrap();
        let id = lease.id().to_owned();
        assert_eq!(journal.get(&id).unwrap().standing(SystemTime::now()), Standing::Held);
        drop(lease);
        assert_eq!(journal.get(&id).unwrap().standing(SystemTime::now()), want, "{hold:?} {lifetime:?}");
    }
}

#[test]
fn a_released_lease_can_be_taken_over() {
    let Fixture { journal, _dir } = fixture();
    let lease = journal.create(new()).unwrap();
    lease.set_hold(Hold::Kept).unwrap();
    lease.release().unwrap();
    let id = lease.id().to_owned();
    journal.adopt(&id).unwrap().remove().unwrap();
    lease.remove().unwrap();
}

#[test]
fn names_are_unique_and_found() {
    let Fixture { journal, _dir } = fixture();
    let named = NewLease { name: Some("box".into()), ..new() };
    let lease = journal.create(named.clone()).unwrap();
    assert_eq!(journal.find("box").unwrap().record.id, lease.id());
    assert_eq!(journal.find(lease.id()).unwrap().record.id, lease.id());
    assert_eq!(journal.create(named.clone()).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let taken = NewLease { name: Some(lease.id().to_owned()), ..new() };
    assert_eq!(journal.create(taken).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(journal.find("other").unwrap_err().message().contains(lease.id()));
    lease.remove().unwrap();
    journal.create(named).unwrap();
}

#[test]
fn no_more_than_the_limit_exist_however_many_ask() {
    let Fixture { journal, _dir } = fixture();
    let limited = NewLease { max_environments: Some(3), ..new() };
    let leases: Vec<_> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..16).map(|_| scope.spawn(|| journal.create(limited.clone()))).collect();
        tasks.into_iter().filter_map(|task| task.join().unwrap().ok()).collect()
    });
    assert_eq!(leases.len(), 3);
    let refused = journal.create(limited.clone()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LimitReached);
    assert!(leases.iter().all(|lease| refused.message().contains(lease.id())), "{refused}");
    journal.create(NewLease { backend: "other".into(), ..limited.clone() }).unwrap();
    leases[0].remove().unwrap();
    journal.create(limited).unwrap();
}

/// A verification's twins are nobody's environments: no limit counts them.
#[test]
fn twins_are_told_apart_and_not_counted() {
    let Fixture { journal, _dir } = fixture();
    let twins: Vec<_> = (0..4).map(|_| journal.create(NewLease { twin: true, ..new() }).unwrap()).collect();
    let limited = NewLease { max_environments: Some(1), ..new() };
    let lease = journal.create(limited.clone()).unwrap();
    let marked = |id: &str| journal.get(id).unwrap().twin;
    assert!(twins.iter().all(|twin| marked(twin.id())) && !marked(lease.id()));
    let refused = journal.create(limited).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LimitReached);
    assert!(!refused.message().contains(twins[0].id()), "{refused}");
}

/// Who made a lease is not blamed for what somebody else does with it.
#[test]
fn who_holds_a_lease_is_told_as_it_is() {
    let Fixture { journal, _dir } = fixture();
    let lease = journal.create(new()).unwrap();
    let refused = journal.adopt(lease.id()).unwrap_err();
    assert_eq!(refused.message(), format!("{}: in use by process {}", lease.id(), std::process::id()));
    lease.set_hold(Hold::Until(SystemTime::UNIX_EPOCH)).unwrap();
    let id = lease.id().to_owned();
    drop(lease);
    let _cleaning = journal.adopt(&id).unwrap();
    let refused = journal.adopt(&id).unwrap_err();
    assert!(refused.is_retryable() && refused.message().contains("another tierbox process"), "{refused}");
    assert_eq!(refused.message().matches(&id).count(), 1, "{refused}");
}

#[test]
fn hostile_ids_never_become_paths() {
    let Fixture { journal, _dir } = fixture();
    for id in ["", "..", "../x", "a/b", "A", "a b", "-a", "a\0b", ".new-x", "ü", &"a".repeat(64)] {
        assert_eq!(journal.get(id).unwrap_err().kind(), ErrorKind::InvalidInput, "{id:?}");
        assert_eq!(journal.adopt(id).unwrap_err().kind(), ErrorKind::InvalidInput, "{id:?}");
        assert!(journal.find(id).is_err());
        assert!(journal.create(NewLease { name: Some(id.into()), ..new() }).is_err());
    }
}

#[test]
fn foreign_files_are_reported_and_left_alone() {
    let Fixture { journal, _dir } = fixture();
    let leases = journal.state().leases();
    let real = journal.create(new()).unwrap();
    let copy = std::fs::read(journal.path_of(real.id()).unwrap()).unwrap();
    std::fs::write(leases.join("notes.txt"), "mine").unwrap();
    std::fs::write(leases.join("local-empty.json"), "").unwrap();
    std::fs::write(leases.join("local-other.json"), &copy).unwrap();
    std::fs::write(leases.join("local-garbage.json"), [0xff; 100]).unwrap();
    std::fs::create_dir(leases.join("local-dir.json")).unwrap();
    symlink("/etc/passwd", leases.join("local-link.json")).unwrap();
    rustix::fs::mknodat(CWD, leases.join("local-fifo.json"), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let huge = File::create(leases.join("local-huge.json")).unwrap();
    huge.set_len(lines::MAX + 1).unwrap();

    let listing = journal.list().unwrap();
    assert_eq!((listing.entries.len(), listing.foreign.len()), (1, 8), "{:#?}", listing.foreign);
    assert_eq!(journal.get("local-garbage").unwrap_err().kind(), ErrorKind::Internal);
    assert!(journal.adopt("local-other").is_err());
    assert!(listing.foreign.iter().all(|file| file.path.symlink_metadata().is_ok()));
}

#[test]
fn a_change_after_a_torn_one_is_read_back() {
    let Fixture { journal, _dir } = fixture();
    let lease = journal.create(new()).unwrap();
    lease.record(&[resource("/a")]).unwrap();
    let id = lease.id().to_owned();
    drop(lease);
    let path = journal.path_of(&id).unwrap();
    let mut contents = std::fs::read(&path).unwrap();
    contents.extend(b"{\"resources\":[{\"kind\":\"dir");
    std::fs::write(&path, contents).unwrap();
    assert_eq!(journal.get(&id).unwrap().record.resources, [resource("/a")]);
    let adopted = journal.adopt(&id).unwrap();
    adopted.record(&[resource("/b")]).unwrap();
    assert_eq!(journal.get(&id).unwrap().record.resources, [resource("/a"), resource("/b")]);
}

#[test]
fn tests_for_liveness_do_not_disturb_a_takeover() {
    let Fixture { journal, _dir } = fixture();
    let ids: Vec<String> = (0..50).map(|_| journal.create(new()).unwrap().id().to_owned()).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                journal.list().unwrap();
            }
        });
        for id in &ids {
            journal.adopt(id).unwrap().remove().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(journal.list().unwrap().entries.is_empty());
}

#[test]
fn what_a_dead_creator_left_is_swept_once_it_is_old() {
    let Fixture { journal, _dir } = fixture();
    let old = journal.state().leases().join(".new-local-aaaaaa");
    let young = journal.state().leases().join(".new-local-bbbbbb");
    std::fs::write(&young, "").unwrap();
    let file = File::create(&old).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    assert_eq!(journal.list().unwrap(), Listing::default());
    assert_eq!(journal.sweep_unfinished(), 1);
    assert!(!old.exists() && young.exists());
}

/// The other half of the test below: holds a lease until it is killed.
#[test]
fn helper_that_holds_a_lease() {
    let Some(state) = std::env::var_os("LEASE_TEST_STATE") else { return };
    let lease = Journal::at(Path::new(&state)).unwrap().create(new()).unwrap();
    std::fs::write(Path::new(&state).join("id"), lease.id()).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    std::process::exit(0);
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn the_lock_tells_across_pid_namespaces() {
    let Fixture { journal, _dir } = fixture();
    let id_file = journal.state().path().join("id");
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-current-user");
    }
    // The user's `kill -9` reaches only unshare; `--kill-child` ends the namespace with it.
    let child = command
        .args(["--pid", "--fork", "--kill-child", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "journal::unit::helper_that_holds_a_lease", "--nocapture"])
        .env("LEASE_TEST_STATE", journal.state().path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return eprintln!("skipped: no unshare here") };
    let limit = std::time::Instant::now() + Duration::from_secs(20);
    let id = loop {
        if let Ok(id) = std::fs::read_to_string(&id_file)
            .map(|id| id.trim().to_owned())
            .and_then(|id| if id.is_empty() { Err(std::io::ErrorKind::NotFound.into()) } else { Ok(id) })
        {
            break id;
        }
        if child.try_wait().unwrap().is_some() {
            return eprintln!("skipped: pid namespaces are denied here");
        }
        assert!(std::time::Instant::now() < limit, "the holder never came up");
        std::thread::yield_now();
    };
    let entry = journal.get(&id).unwrap();
    assert!(entry.locked);
    assert_ne!(entry.record.owner.pid_namespace, owner::current().pid_namespace);
    assert!(entry.record.owner.pid < 10, "it sees its own pid namespace: {:?}", entry.record.owner);
    assert_eq!(journal.adopt(&id).unwrap_err().kind(), ErrorKind::LimitReached);

    child.kill().unwrap();
    child.wait().unwrap();
    while journal.get(&id).unwrap().locked {
        assert!(std::time::Instant::now() < limit, "the lock outlived its owner");
        std::thread::yield_now();
    }
    journal.adopt(&id).unwrap().remove().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_lies_there_is_read_without_harm(name in "[a-z0-9-]{1,12}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let Fixture { journal, _dir } = fixture();
        let path = journal.state().leases().join(format!("{name}.json"));
        std::fs::write(&path, &bytes).unwrap();
        let listing = journal.list().unwrap();
        prop_assert_eq!(listing.entries.len() + listing.foreign.len(), 1);
        let _ = journal.adopt(&name);
        prop_assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}
