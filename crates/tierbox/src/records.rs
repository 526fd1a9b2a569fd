//! Records of verifications, which later starts of the same configuration believe.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tierbox_core::{Environment, EnvironmentSpec, Report};
use tierbox_lease::Journal;
use tierbox_verify::{ProbeStatus, Verification, digest};

use crate::runs::profile_hash;

/// The directory of the state directory where they are kept.
const RECORDS: &str = "verified";
/// The largest that is read.
const LARGEST: u64 = 1 << 20;
/// How long one is believed.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long one is believed in which some probe could not tell. What stood in its way may be gone by then.
const OPEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How often in a row probes must have been unable to tell until they are not tried again at every start. Once may be chance.
const AGREED: u32 = 2;
/// How many are kept. The oldest go first.
const MOST: usize = 200;

/// Where the verification of a configuration is recorded: the same for all starts for which it says something.
pub(crate) struct Record {
    path: PathBuf,
    key: serde_json::Value,
}

/// What is written: a verification that says itself of what it is one.
#[derive(Serialize, Deserialize)]
struct Written {
    key: serde_json::Value,
    verification: Verification,
    /// How many verifications in a row left the same probes open.
    #[serde(default)]
    agreed: u32,
}

impl Record {
    /// For an environment that was just started. `None` if its backend does not tell what it was made of.
    pub(crate) fn of(journal: &Journal, spec: &EnvironmentSpec, environment: &dyn Environment, report: &Report) -> Option<Self> {
        let key = key(spec, &environment.identity()?, report);
        Some(Self::at(&journal.state().path().join(RECORDS), key))
    }

    fn at(directory: &Path, key: serde_json::Value) -> Self {
        Self { path: directory.join(format!("{}.json", digest(key.to_string().as_bytes()))), key }
    }

    /// What was found. `None`, and all is measured again, if there is no record, if it is old, if somebody else could have written it,
    /// or if it is not of this configuration, whatever its name says. One that left probes open is believed once a second
    /// verification left the same ones open; it says itself that nothing was verified.
    pub(crate) fn read(&self) -> Option<Verification> {
        let (written, age) = self.written()?;
        let life = if open(&written.verification).is_empty() { LIFE } else { OPEN_LIFE };
        let is_settled = life == LIFE || written.agreed >= AGREED;
        (age < life && is_settled && is_telling(&written.verification)).then_some(written.verification)
    }

    /// What stands there of this configuration, and how old it is, if nobody else could have written it.
    fn written(&self) -> Option<(Written, Duration)> {
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).ok()?;
        let file = std::fs::File::options().read(true).custom_flags(flags).open(&self.path).ok()?;
        let meta = file.metadata().ok()?;
        let is_ours = meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0;
        let age = SystemTime::now().duration_since(meta.modified().ok()?).ok()?;
        if !is_ours {
            return None;
        }
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text).ok()?;
        let mut written: Written = serde_json::from_slice(&text).ok()?;
        // What it says of itself does not count: its probes do.
        written.verification.settle();
        (written.key == self.key).then_some((written, age))
    }

    /// Keeps what was found for later starts. Where it cannot be kept, or does not tell enough, the next start verifies again.
    pub(crate) fn keep(&self, verification: &Verification) {
        let Some(directory) = self.path.parent().filter(|_| is_telling(verification)) else { return };
        let before = self.written().filter(|(known, _)| open(&known.verification) == open(verification));
        let agreed = before.map_or(0, |(known, _)| known.agreed).saturating_add(1);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let unfinished = directory.join(format!(".{}-{name}", std::process::id()));
        let written = Written { key: self.key.clone(), verification: verification.clone(), agreed };
        let text = serde_json::to_vec(&written).unwrap_or_default();
        let write = || {
            // One that a process of this number left is not written through.
            let _ = std::fs::remove_file(&unfinished);
            let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            std::io::Write::write_all(&mut file, &text)?;
            std::fs::rename(&unfinished, &self.path)
        };
        if made.and_then(|()| write()).is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        prune(directory);
    }
}

/// Whether a later start could rest on it: probes were carried out in every machine, and none failed.
fn is_telling(found: &Verification) -> bool {
    !found.probes.is_empty() && found.unprobed.is_empty() && found.failed().next().is_none()
}

/// The probes that could not tell.
fn open(found: &Verification) -> Vec<(&str, Option<&str>)> {
    let open = found.probes.iter().filter(|probe| probe.status == ProbeStatus::Inconclusive);
    open.map(|probe| (probe.id.as_str(), probe.machine.as_deref())).collect()
}

/// Removes what is too old to be believed, what was never finished, and the oldest of too many.
fn prune(directory: &Path) {
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(modified) = entry.metadata().and_then(|meta| meta.modified()) else { continue };
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        let is_unfinished = entry.file_name().as_encoded_bytes().starts_with(b".");
        match () {
            () if age >= LIFE || (is_unfinished && age > Duration::from_secs(60)) => drop(std::fs::remove_file(entry.path())),
            () if is_unfinished => (),
            () => kept.push((age, entry.path())),
        }
    }
    kept.sort();
    for (_, path) in kept.into_iter().skip(MOST) {
        let _ = std::fs::remove_file(path);
    }
}

/// What a record depends on: the profile as resolved, the root or images and the engine, what was enforced, this build of
/// tierbox, and this boot of the host.
fn key(spec: &EnvironmentSpec, identity: &BTreeMap<String, String>, report: &Report) -> serde_json::Value {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut mechanisms = report.mechanisms.clone();
    // Which ids a range begins with is another for each start.
    mechanisms.iter_mut().filter(|mechanism| mechanism.name == "user namespace").for_each(|mechanism| mechanism.detail.clear());
    serde_json::json!({
        "profile": profile_hash(spec),
        "identity": identity,
        "mechanisms": mechanisms,
        "mounts": report.mounts,
        "parts": report.parts,
        "notes": report.notes,
        "build": build(),
        "boot": boot.trim(),
    })
}

/// This build: the version, the supervisor that it brings, and the very file of the program that this code is in.
fn build() -> &'static str {
    static BUILD: OnceLock<String> = OnceLock::new();
    BUILD.get_or_init(|| {
        use std::os::unix::fs::MetadataExt;
        let program = std::fs::metadata("/proc/self/exe").map_or_else(
            // A program that cannot be told from another never finds a record of it.
            |_| format!("process {} of {:?}", std::process::id(), std::time::SystemTime::now()),
            |meta| format!("{}:{} {} {}.{:09}", meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()),
        );
        format!("{} {} {program}", env!("CARGO_PKG_VERSION"), supervisor())
    })
}

/// The supervisor's hash.
fn supervisor() -> String {
    tierbox_guest::supervisor::sha256().unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod unit {
    use std::os::unix::fs::PermissionsExt;

    use tierbox_core::{KillDomain, Locality, Mechanism};
    use tierbox_verify::ProbeResult;

    use super::*;

    fn spec() -> EnvironmentSpec {
        EnvironmentSpec::new("b", "T0.H1.N2".parse().unwrap())
    }

    fn report() -> Report {
        Report {
            mechanisms: vec![Mechanism {
                name: "user namespace".into(),
                applied: tierbox_core::Applied::Enforced,
                detail: "65536 ids from 100000".into(),
            }],
            ..Report::bare("b", "T0.H1.N2".parse().unwrap(), Locality::Local, KillDomain::Cgroup)
        }
    }

    fn found(status: ProbeStatus) -> Verification {
        let probe =
            ProbeResult { id: "h.x".into(), machine: None, rule: String::new(), status, detail: String::new(), control: None };
        let mut found = Verification::default();
        found.add([probe]);
        found
    }

    #[test]
    fn a_record_is_believed_by_its_own_configuration_alone_and_only_if_nobody_else_could_write_it() {
        let dir = tempfile::tempdir().unwrap();
        let record = |profile: &str| Record::at(&dir.path().join("verified"), serde_json::json!({ "profile": profile }));
        let good = found(ProbeStatus::Pass);
        assert!(record("a").read().is_none());
        record("a").keep(&good);
        assert_eq!(record("a").read(), Some(good.clone()));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&record("a").path), mode(record("a").path.parent().unwrap())), (0o600, 0o700));
        // The record of another configuration, under this one's name.
        std::fs::copy(&record("a").path, &record("b").path).unwrap();
        assert!(record("b").read().is_none());
        // One that others may change, one that is a link, one of the form that names no key.
        std::fs::set_permissions(&record("a").path, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert!(record("a").read().is_none());
        record("c").keep(&good);
        std::fs::rename(&record("c").path, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &record("c").path).unwrap();
        assert!(record("c").read().is_none());
        record("d").keep(&good);
        std::fs::write(&record("d").path, serde_json::to_vec(&good).unwrap()).unwrap();
        assert!(record("d").read().is_none());
    }

    /// What a record claims does not count, and neither does one without probes.
    #[test]
    fn a_record_is_judged_by_its_probes() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::at(&dir.path().join("verified"), serde_json::json!("k"));
        record.keep(&found(ProbeStatus::Pass));
        for probes in [vec![], found(ProbeStatus::Fail).probes] {
            let lie =
                Verification { verified: true, verdict: tierbox_verify::Verdict::Verified, probes, ..Verification::default() };
            let text = serde_json::to_vec(&Written { key: record.key.clone(), verification: lie.clone(), agreed: 9 }).unwrap();
            std::fs::write(&record.path, text).unwrap();
            assert!(record.read().is_none(), "{lie:?}");
            std::fs::remove_file(&record.path).unwrap();
            record.keep(&lie);
            assert!(!record.path.exists());
            record.keep(&found(ProbeStatus::Pass));
        }
    }

    /// A probe that could not tell is tried once more. Then it is known that it cannot, and no start pays for it; it is called verified
    /// by nobody.
    #[test]
    fn what_could_not_be_told_twice_is_known_for_a_day_and_never_verified() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::at(&dir.path().join("verified"), serde_json::json!("k"));
        let mut inconclusive = found(ProbeStatus::Inconclusive);
        record.keep(&inconclusive);
        assert!(record.read().is_none());
        // Another probe: nothing was confirmed by it.
        inconclusive.probes[0].id = "h.y".into();
        record.keep(&inconclusive);
        assert!(record.read().is_none());
        record.keep(&inconclusive);
        let known = record.read().unwrap();
        assert!(!known.verified && known.verdict == tierbox_verify::Verdict::NotVerified);
        let file = std::fs::File::options().write(true).open(&record.path).unwrap();
        file.set_modified(SystemTime::now() - OPEN_LIFE).unwrap();
        assert!(record.read().is_none());
        // Once all is told, that counts at once.
        record.keep(&found(ProbeStatus::Pass));
        assert!(record.read().unwrap().verified);
    }

    #[test]
    fn old_records_are_not_believed_and_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("verified");
        let record = |number: usize| Record::at(&directory, serde_json::json!(number));
        let dated = |number: usize, age: Duration| {
            let file = std::fs::File::options().write(true).open(&record(number).path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        record(0).keep(&found(ProbeStatus::Pass));
        dated(0, LIFE + Duration::from_secs(1));
        assert!(record(0).read().is_none());
        record(1).keep(&found(ProbeStatus::Pass));
        assert!(!record(0).path.exists() && record(1).path.exists());
        // A time that is still to come says nothing of the age.
        let file = std::fs::File::options().write(true).open(&record(1).path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
        assert!(record(1).read().is_none());
        for number in 2..MOST + 2 {
            record(number).keep(&found(ProbeStatus::Pass));
            dated(number, Duration::from_secs((MOST + 2 - number) as u64 + 60));
        }
        record(MOST + 2).keep(&found(ProbeStatus::Pass));
        let left = std::fs::read_dir(&directory).unwrap().count();
        assert_eq!(left, MOST);
        assert!(record(MOST + 2).path.exists() && !record(2).path.exists());
    }

    /// Each thing on which a record depends makes another key, and what differs between two starts of the same makes none.
    #[test]
    fn a_record_is_for_the_same_configuration_alone() {
        let identity = |root: &str, engine: &str| {
            BTreeMap::from([("root".to_owned(), root.to_owned()), ("engine".to_owned(), engine.to_owned())])
        };
        let local = report();
        let own = key(&spec(), &identity("r", "1"), &local);
        let mut ranged = local.clone();
        ranged.mechanisms[0].detail = "65536 ids from 900000".into();
        assert_eq!(key(&spec(), &identity("r", "1"), &ranged), own);
        let mut weaker = local.clone();
        weaker.mechanisms[0].applied = tierbox_core::Applied::Absent;
        let mut mounted = local.clone();
        mounted.mounts.push("/a -> /b (ro)".into());
        let named = EnvironmentSpec {
            network: tierbox_core::NetworkSpec { allow: vec!["a.test".into()], ..Default::default() },
            ..spec()
        };
        let others = [
            key(&named, &identity("r", "1"), &local),
            key(&spec(), &identity("other", "1"), &local),
            key(&spec(), &identity("r", "2"), &local),
            key(&spec(), &identity("r", "1"), &weaker),
            key(&spec(), &identity("r", "1"), &mounted),
        ];
        for (number, other) in others.iter().enumerate() {
            assert_ne!(other, &own, "{number}");
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(own["boot"], boot.trim());
        let build = own["build"].as_str().unwrap();
        assert!(build.starts_with(env!("CARGO_PKG_VERSION")));
        assert!(build.contains(&supervisor()));
        assert!(build.contains(&std::fs::metadata("/proc/self/exe").unwrap().len().to_string()));
    }
}
