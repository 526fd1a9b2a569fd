//! All leases of a state directory.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use tierbox_core::{Error, ErrorKind, Hold, LeaseRecord, Result};

use crate::lease::Lease;
use crate::lines::Whole;
use crate::lock::Gate;
use crate::unpublished::{UNFINISHED, Unpublished};
use crate::{StateDir, id, lines, lock, owner};

/// What a new lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLease {
    /// The backend's name.
    pub backend: String,
    /// The profile's name.
    pub profile: String,
    /// The tier, as written.
    pub tier: String,
    /// A name given by a person, unique among all leases. None by default.
    pub name: Option<String>,
    /// The life of the environment, from now. Unlimited by default.
    pub lifetime: Option<Duration>,
    /// Leases of this backend that may exist at once in this state directory. Unlimited by default.
    pub max_environments: Option<u64>,
    /// Whether it is for a twin, which a verification makes and ends: no environment of anybody's, counted by no limit. Not by default.
    pub twin: bool,
    /// What the creator wants to find again; backends never see it. Never a secret. Null by default.
    pub memo: serde_json::Value,
}

impl NewLease {
    /// A lease without a name or limits.
    pub fn new(backend: impl Into<String>, profile: impl Into<String>, tier: impl Into<String>) -> Self {
        Self {
            backend: backend.into(),
            profile: profile.into(),
            tier: tier.into(),
            name: None,
            lifetime: None,
            max_environments: None,
            twin: false,
            memo: serde_json::Value::Null,
        }
    }
}

/// A lease as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What it says.
    pub record: LeaseRecord,
    /// Whether it is for a verification's twin.
    pub twin: bool,
    /// What its creator noted.
    pub memo: serde_json::Value,
    /// Whether a living process has it locked.
    pub locked: bool,
}

/// Who wants an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A living process.
    Held,
    /// Nobody: its process died.
    Orphaned,
    /// Nobody in particular, until a time that is to come.
    Until,
    /// Nobody: that time has passed.
    Expired,
    /// A person, who asked to keep it.
    Kept,
}

impl Entry {
    /// Who wants it, at this time. The end of its lifetime is the end of every hold but a living process's.
    pub fn standing(&self, now: SystemTime) -> Standing {
        if self.locked {
            return Standing::Held;
        }
        if self.record.expires.is_some_and(|end| end <= now) {
            return Standing::Expired;
        }
        match self.record.hold {
            Hold::Process => Standing::Orphaned,
            Hold::Until(end) if end <= now => Standing::Expired,
            Hold::Until(_) => Standing::Until,
            Hold::Kept => Standing::Kept,
        }
    }
}

/// A file among the leases that is none, or none that this program can read. It is never touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// What is in a journal.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Listing {
    /// The leases, oldest first.
    pub entries: Vec<Entry>,
    /// What else lies there.
    pub foreign: Vec<Foreign>,
}

/// The leases of one state directory.
#[derive(Debug, Clone)]
pub struct Journal {
    state: StateDir,
}

impl Journal {
    /// The journal of the default state directory.
    ///
    /// # Errors
    /// As [`StateDir::locate`] and [`StateDir::open`].
    pub fn open_default() -> Result<Self> {
        Self::at(&StateDir::locate()?)
    }

    /// The journal of a state directory, which is made if need be.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn at(path: &Path) -> Result<Self> {
        Ok(Self { state: StateDir::open(path)? })
    }

    /// The state directory.
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// Writes a lease with the hold `process` for the caller, who holds it locked from before it can be seen.
    ///
    /// # Errors
    /// `LimitReached` if `max_environments` leases of the backend exist, listing them; `AlreadyExists` if the name is
    /// taken; `InvalidInput` for a name that cannot be one.
    pub fn create(&self, new: NewLease) -> Result<Lease> {
        // Both gates stay shut until the lease is there, so that two creators cannot count the same free place.
        let mut gates = Vec::new();
        if let Some(name) = &new.name {
            id::check_id(name)?;
            gates.push(Gate::enter(&self.state.locks().join("names"))?);
            self.refuse_taken_name(name)?;
        }
        if let Some(max) = new.max_environments {
            gates.push(Gate::enter(&self.state.locks().join(format!("count-{}", file_part(&new.backend))))?);
            self.refuse_beyond(&new.backend, max)?;
        }
        loop {
            match self.write_new(&new) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
    }

    /// One lease by its id.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for what cannot be an id; `Internal` for a file that is not as tierbox writes it.
    pub fn get(&self, id: &str) -> Result<Entry> {
        let path = self.path_of(id)?;
        match self.read(&path) {
            Ok(Some(entry)) => Ok(entry),
            Ok(None) => Err(not_found(id)),
            Err(problem) => Err(unreadable(&path, problem)),
        }
    }

    /// One lease by its id or its name.
    ///
    /// # Errors
    /// `NotFound`, naming what there is.
    pub fn find(&self, id_or_name: &str) -> Result<Entry> {
        match self.get(id_or_name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
        let entries = self.list()?.entries;
        let named = entries.iter().find(|entry| entry.record.name.as_deref() == Some(id_or_name));
        named.cloned().ok_or_else(|| {
            let there: Vec<&str> = entries.iter().filter(|entry| !entry.twin).map(|entry| entry.record.id.as_str()).collect();
            let there = if there.is_empty() { "none is running".to_owned() } else { format!("there is: {}", there.join(", ")) };
            Error::new(ErrorKind::NotFound, "find environment", format!("no environment is called {id_or_name:?}; {there}"))
                .with_help("`tierbox ls` lists them")
        })
    }

    /// Everything in the journal. Leases that vanish meanwhile are left out.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Listing> {
        let failed = |error| Error::io("list leases", error).with_context("path", self.state.leases().display());
        let mut listing = Listing::default();
        for file in std::fs::read_dir(self.state.leases()).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(UNFINISHED)) {
                continue;
            }
            match self.read(&path) {
                Ok(Some(entry)) => listing.entries.push(entry),
                Ok(None) => {}
                Err(problem) => listing.foreign.push(Foreign { path, problem }),
            }
        }
        listing.entries.sort_by(|a, b| (a.record.created, &a.record.id).cmp(&(b.record.created, &b.record.id)));
        Ok(listing)
    }

    /// Leases that nobody wants any more: `process` leases whose lock is free, `until` leases whose time has passed, and
    /// those whose lifetime is over.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn expired(&self, now: SystemTime) -> Result<Vec<Entry>> {
        let mut entries = self.list()?.entries;
        entries.retain(|entry| matches!(entry.standing(now), Standing::Orphaned | Standing::Expired));
        Ok(entries)
    }

    /// Takes a lease over in order to destroy what it names (or to renew it). The caller holds its lock from here on.
    ///
    /// # Errors
    /// `LimitReached` if a living process holds it; `NotFound`.
    pub fn adopt(&self, id: &str) -> Result<Lease> {
        let path = self.path_of(id)?;
        let file = open_lease(&path).map_err(|problem| unreadable(&path, problem))?.ok_or_else(|| not_found(id))?;
        if !lock::try_exclusive_past_tests(&file)? {
            // It may have vanished just now.
            let holder = owner::holder(&self.get(id)?.record);
            let error = Error::new(ErrorKind::LimitReached, "take lease over", format!("{id}: {holder}"));
            return Err(match holder {
                owner::Holder::Owner(_) => error.with_help("end it where it was started"),
                owner::Holder::Another => error.with_help("try again in a moment").retryable(),
            });
        }
        // Whoever held the lock may have removed the lease: then this file has no name any more.
        if !is_same_file(&file, &path) {
            return Err(not_found(id));
        }
        let Whole { record, .. } = read_record(&file, &path).map_err(|problem| unreadable(&path, problem))?;
        Ok(Lease::held(self.clone(), record, file))
    }

    /// Removes files that a creator left behind when it died before its lease had a name. Returns how many.
    pub(crate) fn sweep_unfinished(&self) -> usize {
        let Ok(files) = std::fs::read_dir(self.state.leases()) else { return 0 };
        let unfinished = files.flatten().filter(|file| file.file_name().to_string_lossy().starts_with(UNFINISHED));
        unfinished.filter(|file| remove_if_dead(&file.path())).count()
    }

    pub(crate) fn path_of(&self, id: &str) -> Result<PathBuf> {
        id::check_id(id)?;
        Ok(self.state.leases().join(format!("{id}.json")))
    }

    fn refuse_taken_name(&self, name: &str) -> Result<()> {
        for entry in self.list()?.entries {
            if entry.record.name.as_deref() == Some(name) || entry.record.id == name {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    "name environment",
                    format!("{name:?} is the name of {}", entry.record.id),
                )
                .with_help(format!("end it with `tierbox down {name}`, or `tierbox cleanup` if its owner died")));
            }
        }
        Ok(())
    }

    fn refuse_beyond(&self, backend: &str, max: u64) -> Result<()> {
        let entries = self.list()?.entries;
        let there: Vec<String> = entries
            .iter()
            .filter(|entry| entry.record.backend == backend && !entry.twin)
            .map(|entry| format!("{} ({} old)", entry.record.id, age(&entry.record)))
            .collect();
        if (there.len() as u64) < max {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::LimitReached,
            "start environment",
            format!("{} of at most {max} environments exist: {}", there.len(), there.join(", ")),
        )
        .with_backend(backend.to_owned())
        .with_help("end one with `tierbox down`, remove dead ones with `tierbox cleanup`, or raise limits.max-environments")
        .retryable())
    }

    fn write_new(&self, new: &NewLease) -> Result<Lease> {
        let created = SystemTime::now();
        let record = LeaseRecord {
            id: id::random_id(&new.backend),
            name: new.name.clone(),
            backend: new.backend.clone(),
            profile: new.profile.clone(),
            tier: new.tier.clone(),
            created,
            expires: new.lifetime.and_then(|lifetime| created.checked_add(lifetime)),
            hold: Hold::Process,
            owner: owner::current(),
            resources: Vec::new(),
            data: serde_json::Value::Null,
        };
        let failed = |error: std::io::Error| Error::io("write lease", error).with_context("path", self.state.leases().display());
        let line = lines::first_line(&record, &new.memo, new.twin).map_err(|error| failed(error.into()))?;
        let new = Unpublished::make(&self.state.leases(), &record.id).map_err(failed)?;
        let written = (|| {
            if !lock::try_exclusive(&new.file)? {
                return Err(Error::new(ErrorKind::AlreadyExists, "write lease", "somebody else locked it"));
            }
            std::os::unix::fs::FileExt::write_all_at(&new.file, &line, 0).map_err(failed)?;
            new.publish(&self.path_of(&record.id)?).map_err(failed)
        })();
        if let Err(error) = written {
            new.discard();
            return Err(error);
        }
        Ok(Lease::held(self.clone(), record, new.file))
    }

    /// Reads a lease's file. `None` if it is gone.
    fn read(&self, path: &Path) -> Result<Option<Entry>, String> {
        let Some(file) = open_lease(path)? else { return Ok(None) };
        let locked = lock::is_held(&file).map_err(|error| error.message().to_owned())?;
        let Whole { record, memo, twin } = read_record(&file, path)?;
        // An owner removes its lease before it lets go of the lock, so what looks orphaned may just have ended.
        if !locked && !is_same_file(&file, path) {
            return Ok(None);
        }
        Ok(Some(Entry { record, twin, memo, locked }))
    }
}

fn age(record: &LeaseRecord) -> String {
    let seconds = record.age().as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    }
}

/// A backend's name as part of a file's name.
pub(crate) fn file_part(name: &str) -> String {
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).take(64).collect()
}

fn not_found(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, "find environment", format!("there is no environment {id:?}"))
        .with_help("`tierbox ls` lists what there is")
}

fn unreadable(path: &Path, problem: String) -> Error {
    Error::new(ErrorKind::Internal, "read lease", problem)
        .with_context("path", path.display())
        .with_help(format!("look at {}: tierbox removes nothing that it did not write", path.display()))
}

/// Opens a file that should be a lease, without side effects whatever it is. `None` if there is none.
fn open_lease(path: &Path) -> Result<Option<File>, String> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: File = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(format!("it cannot be opened: {}", std::io::Error::from(error))),
    };
    let stat = rustix::fs::fstat(&file).map_err(|error| std::io::Error::from(error).to_string())?;
    let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    match () {
        () if !regular => Err("it is not a regular file".into()),
        () if stat.st_uid != rustix::process::geteuid().as_raw() => Err(format!("it belongs to user {}", stat.st_uid)),
        () if stat.st_size as u64 > lines::MAX => Err(format!("it is {} bytes long", stat.st_size)),
        () => Ok(Some(file)),
    }
}

fn read_record(mut file: &File, path: &Path) -> Result<Whole, String> {
    use std::io::Seek;
    let mut contents = Vec::new();
    file.rewind().and_then(|()| file.take(lines::MAX + 1).read_to_end(&mut contents)).map_err(|error| error.to_string())?;
    let whole = lines::parse(&contents)?;
    let record = &whole.record;
    id::check_id(&record.id).map_err(|error| error.message().to_owned())?;
    if path.file_name() != Some(format!("{}.json", record.id).as_ref()) {
        return Err(format!("it says that it is {:?}", record.id));
    }
    Ok(whole)
}

pub(crate) fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (rustix::fs::fstat(file), rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)) else {
        return false;
    };
    (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino)
}

/// Gives a finished file its name, unless that name is taken.
fn remove_if_dead(path: &Path) -> bool {
    let old = |file: &File| {
        let modified = file.metadata().and_then(|meta| meta.modified());
        modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > Duration::from_secs(10)))
    };
    matches!(open_lease(path), Ok(Some(file)) if old(&file) && lock::try_exclusive(&file).unwrap_or(false))
        && std::fs::remove_file(path).is_ok()
}

#[cfg(test)]
mod unit;
