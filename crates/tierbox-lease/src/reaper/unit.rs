use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{
    Backend, Capabilities, Check, DestroyReport, Environment, EnvironmentSpec, Error, Hold, LeaseRecord, Progress, Resource,
    Result as CoreResult,
};

use super::*;
use crate::NewLease;

/// Destroys by writing down the id; fails for resources of the kind `stubborn`.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

#[async_trait]
impl Backend for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }
    fn settings_schema(&self) -> serde_json::Value {
        serde_json::Value::Bool(true)
    }
    fn validate(&self, _: &EnvironmentSpec) -> CoreResult<()> {
        Ok(())
    }
    fn capabilities(&self, _: &EnvironmentSpec) -> CoreResult<Capabilities> {
        Err(Error::unsupported("describe", "a machine"))
    }
    async fn start(&self, _: &EnvironmentSpec, _: Arc<dyn LeaseHandle>, _: &dyn Progress) -> CoreResult<Box<dyn Environment>> {
        Err(Error::unsupported("start", "a machine"))
    }
    async fn attach(&self, _: &LeaseRecord) -> CoreResult<Box<dyn Environment>> {
        Err(Error::unsupported("attach", "a machine"))
    }
    async fn is_alive(&self, _: &LeaseRecord) -> bool {
        false
    }
    async fn destroy(&self, lease: &LeaseRecord) -> CoreResult<DestroyReport> {
        if lease.resources_of("stubborn").next().is_some() {
            let manual = vec!["rm -r /stubborn".into()];
            return Ok(DestroyReport { failed: vec!["/stubborn: busy".into()], manual, ..DestroyReport::default() });
        }
        self.0.lock().unwrap().push(lease.id.clone());
        Ok(DestroyReport { removed: lease.resources.iter().map(|resource| resource.id.clone()).collect(), ..Default::default() })
    }
    async fn doctor(&self) -> Vec<Check> {
        Vec::new()
    }
}

struct Fixture {
    _dir: tempfile::TempDir,
    journal: Journal,
    registry: Registry,
    recorder: Arc<Recorder>,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(&dir.path().join("state")).unwrap();
    let recorder = Arc::new(Recorder::default());
    let mut registry = Registry::empty();
    registry.register(recorder.clone());
    Fixture { _dir: dir, journal, registry, recorder }
}

fn make(journal: &Journal, hold: Hold, kind: &str) -> String {
    let lease = journal.create(NewLease::new("recorder", "p", "T0.H1.N2")).unwrap();
    lease.record(&[Resource { kind: kind.into(), id: format!("/{}", lease.id()) }]).unwrap();
    lease.set_hold(hold).unwrap();
    lease.id().to_owned()
}

#[tokio::test(flavor = "current_thread")]
async fn only_what_nobody_wants_goes() {
    let Fixture { _dir, journal, registry, recorder } = fixture();
    let later = SystemTime::now() + Duration::from_secs(3600);
    let held = journal.create(NewLease::new("recorder", "p", "T0.H1.N2")).unwrap();
    let orphan = make(&journal, Hold::Process, "directory");
    let until = make(&journal, Hold::Until(later), "directory");
    let over = make(&journal, Hold::Until(SystemTime::UNIX_EPOCH), "directory");
    let kept = make(&journal, Hold::Kept, "directory");

    let report = cleanup(&journal, &registry, CleanupOptions::default()).await.unwrap();
    let mut destroyed = recorder.0.lock().unwrap().clone();
    destroyed.sort();
    let mut want = vec![orphan, over];
    want.sort();
    assert_eq!(destroyed, want);
    assert_eq!((report.removed.len(), report.kept.len(), report.failed.len()), (2, 3, 0), "{report:?}");

    cleanup(&journal, &registry, CleanupOptions { kept: true, all: false }).await.unwrap();
    assert_eq!(journal.get(&kept).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(journal.get(&until).is_ok());
    cleanup(&journal, &registry, CleanupOptions { kept: false, all: true }).await.unwrap();
    let left: Vec<String> = journal.list().unwrap().entries.into_iter().map(|entry| entry.record.id).collect();
    assert_eq!(left, [held.id()]);
}

#[tokio::test(flavor = "current_thread")]
async fn what_cannot_be_removed_keeps_its_lease() {
    let Fixture { _dir, journal, registry, .. } = fixture();
    let stubborn = make(&journal, Hold::Process, "stubborn");
    let unknown = journal.create(NewLease::new("elsewhere", "p", "T0.H3.N2")).unwrap();
    let unknown_id = unknown.id().to_owned();
    drop(unknown);
    std::fs::write(journal.state().leases().join("local-garbage.json"), "x").unwrap();

    let report = cleanup(&journal, &registry, CleanupOptions { kept: true, all: true }).await.unwrap();
    assert_eq!((report.removed.len(), report.failed.len()), (0, 3), "{report:?}");
    assert_eq!(report.manual, ["rm -r /stubborn"]);
    assert!(journal.get(&stubborn).is_ok() && journal.get(&unknown_id).is_ok());
    assert!(journal.state().leases().join("local-garbage.json").exists());
}

#[tokio::test(flavor = "current_thread")]
async fn one_alone_goes_unless_it_is_in_use_or_wanted() {
    let Fixture { _dir, journal, registry, recorder } = fixture();
    let over = Hold::Until(SystemTime::UNIX_EPOCH);
    let (one, other) = (make(&journal, over, "directory"), make(&journal, over, "directory"));
    let later = make(&journal, Hold::Until(SystemTime::now() + Duration::from_secs(3600)), "directory");
    let gone = Mutex::new(Vec::new());
    let note = |entry: &Entry| gone.lock().unwrap().push(entry.record.id.clone());
    for (id, wanted) in [(&one, true), (&later, false)] {
        let report = cleanup_one(&journal, &registry, id, &|| wanted, &note).await.unwrap();
        assert_eq!((report.removed.len(), report.kept.len()), (0, 1), "{report:?}");
    }
    assert!(recorder.0.lock().unwrap().is_empty());
    cleanup_one(&journal, &registry, &one, &|| false, &note).await.unwrap();
    assert_eq!((recorder.0.lock().unwrap().clone(), gone.into_inner().unwrap()), (vec![one.clone()], vec![one.clone()]));
    assert!(journal.get(&other).is_ok() && journal.get(&later).is_ok());
    assert_eq!(cleanup_one(&journal, &registry, &one, &|| false, &|_| ()).await.unwrap_err().kind(), ErrorKind::NotFound);
}
