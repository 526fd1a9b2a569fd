//! Verifies environments: probes with twins of the same backend, and records that are reused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use tierbox_core::{
    AgentPolicy, Backend, Environment, EnvironmentSpec, Error, ErrorKind, ExecRequest, HostIsolation, Lifted, Locality, Report,
    Result, Sandbox, Tooling, Verify,
};
use tierbox_lease::{Journal, NewLease};
use tierbox_verify::{ControlResult, ProbeResult, ProbeStatus, Twin, Twins, Verification, Verified, digest};

use crate::runs::profile_hash;
use crate::undertaker::{Burial, bury};

/// Directories of the state directory where records of verifications are kept.
const RECORDS: &str = "verified";
/// The largest record that is read.
const LARGEST: u64 = 1 << 20;

/// When an environment is verified.
pub(crate) fn mode(spec: &EnvironmentSpec, report: &Report) -> Verify {
    spec.verify.unwrap_or(match report.locality {
        Locality::Local if report.tier.host() != HostIsolation::H3 => Verify::Once,
        _ => Verify::Always,
    })
}

/// Verifies an environment that was just started, or finds the record of an earlier one.
///
/// # Errors
/// `TierRefused` naming the probes that failed.
pub(crate) async fn at_start(
    backend: &Arc<dyn Backend>,
    journal: &Journal,
    spec: &EnvironmentSpec,
    environment: &dyn Environment,
    report: &Report,
) -> Result<Option<Verified>> {
    let mode = mode(spec, report);
    if mode == Verify::Off || report.tier.host() == HostIsolation::H0 {
        return Ok(None);
    }
    let record = match mode {
        Verify::Once => record_path(journal, spec, environment, report),
        _ => None,
    };
    if let Some(verification) = record.as_deref().and_then(read) {
        return Ok(Some(Verified { verification, reused: true }));
    }
    let verification = verify(backend, journal, spec, environment, report).await?;
    if let Some(error) = refusal(&verification, spec) {
        return Err(error);
    }
    if let Some(record) = record {
        keep(&record, &verification);
    }
    Ok(Some(Verified { verification, reused: false }))
}

/// Carries all probes out.
///
/// # Errors
/// If they could not be carried out.
pub(crate) async fn verify(
    backend: &Arc<dyn Backend>,
    journal: &Journal,
    spec: &EnvironmentSpec,
    environment: &dyn Environment,
    report: &Report,
) -> Result<Verification> {
    let program = tierbox_guest::supervisor::BYTES
        .ok_or_else(|| Error::unsupported("verify", "verification by a build without the supervisor for this host"))?;
    let twins = Arc::new(Siblings { backend: backend.clone(), journal: journal.clone(), spec: spec.clone() });
    let mut verification = tierbox_verify::verify(environment.primary(), report, &spec.network.allow, program, twins).await?;
    verification.add(tooling(spec));
    Ok(verification)
}

/// Why an environment whose verification found this may not be used; `None` if nothing failed.
pub(crate) fn refusal(verification: &Verification, spec: &EnvironmentSpec) -> Option<Error> {
    let failed: Vec<String> = verification.failed().map(|probe| format!("{} ({})", probe.id, probe.detail)).collect();
    if failed.is_empty() {
        return None;
    }
    let message = format!("{} is not what is there: {}", spec.tier, failed.join("; "));
    Some(
        Error::new(ErrorKind::TierRefused, "verify environment", message)
            .with_backend(spec.backend.clone())
            .with_help("the environment was destroyed; `tierbox verify` shows every probe with its control"),
    )
}

/// What the agent's rules refuse, with the rules of T0 as the twin.
fn tooling(spec: &EnvironmentSpec) -> Vec<ProbeResult> {
    let tooling = spec.tier.tooling();
    if tooling == Tooling::T0 {
        return Vec::new();
    }
    let unnamed = ExecRequest::new(["/nonexistent/tierbox-probe"]);
    let refused = |policy: &AgentPolicy| policy.check(&unnamed).err().filter(|error| error.kind() == ErrorKind::PolicyDenied);
    let own = refused(&AgentPolicy::of(spec));
    let twin = refused(&AgentPolicy::new(Tooling::T0, Vec::new()));
    let status = match (&own, &twin) {
        (None, _) => ProbeStatus::Fail,
        (Some(_), None) => ProbeStatus::Pass,
        (Some(_), Some(_)) => ProbeStatus::Inconclusive,
    };
    vec![ProbeResult {
        id: "t.exec".to_owned(),
        rule: "The agent's handle refuses a program that is not named".to_owned(),
        status,
        detail: own.map_or_else(|| "it was allowed".to_owned(), |error| error.message().to_owned()),
        control: Some(ControlResult {
            lifted: "tooling axis".to_owned(),
            found: twin.is_none(),
            detail: twin.map_or_else(|| "allowed at T0".to_owned(), |error| error.message().to_owned()),
        }),
    }]
}

/// Twins by the same backend.
struct Siblings {
    backend: Arc<dyn Backend>,
    journal: Journal,
    spec: EnvironmentSpec,
}

#[async_trait]
impl Twins for Siblings {
    async fn start(&self, lifted: &Lifted) -> Result<Box<dyn Twin>> {
        let spec = &self.spec;
        let profile = format!("{} (twin without {})", spec.profile, lifted.name());
        let lease = Arc::new(self.journal.create(NewLease::new(&spec.backend, profile, spec.tier.to_string()))?);
        let mut sibling =
            Sibling(Mutex::new(Some(Burial { backend: self.backend.clone(), lease: lease.clone(), environment: None })), None);
        match self.backend.twin(spec, lifted, lease).await {
            Ok(environment) => {
                sibling.1 = Some(environment.primary());
                if let Some(burial) = sibling.burial().as_mut() {
                    burial.environment = Some(environment);
                }
                Ok(Box::new(sibling))
            }
            Err(error) => {
                Box::new(sibling).end().await;
                Err(error)
            }
        }
    }
}

/// A twin, and what ends it.
struct Sibling(Mutex<Option<Burial>>, Option<Arc<dyn Sandbox>>);

impl Sibling {
    fn burial(&self) -> std::sync::MutexGuard<'_, Option<Burial>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Twin for Sibling {
    fn sandbox(&self) -> Arc<dyn Sandbox> {
        self.1.clone().expect("a twin that was started has a machine")
    }

    async fn end(self: Box<Self>) {
        let burial = self.burial().take();
        if let Some(burial) = burial {
            burial.carry_out().await;
        }
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        if let Some(burial) = self.burial().take() {
            bury(burial);
        }
    }
}

/// Where the record of a configuration is: the same for all starts for which it says something. `None` if the backend does not
/// tell what the environment was made of.
fn record_path(journal: &Journal, spec: &EnvironmentSpec, environment: &dyn Environment, report: &Report) -> Option<PathBuf> {
    let key = record_key(spec, &environment.identity()?, report);
    Some(journal.state().path().join(RECORDS).join(format!("{}.json", digest(key.to_string().as_bytes()))))
}

/// What a record depends on: the profile as resolved, the root or images and the engine, what was enforced, this build of
/// tierbox, and this boot of the host.
fn record_key(spec: &EnvironmentSpec, identity: &BTreeMap<String, String>, report: &Report) -> serde_json::Value {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut mechanisms = report.mechanisms.clone();
    // Which ids a range begins with is another for each start.
    mechanisms.iter_mut().filter(|mechanism| mechanism.name == "user namespace").for_each(|mechanism| mechanism.detail.clear());
    serde_json::json!({
        "profile": profile_hash(spec),
        "identity": identity,
        "mechanisms": mechanisms,
        "mounts": report.mounts,
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

fn read(path: &Path) -> Option<Verification> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(LARGEST).read_to_end(&mut text).ok()?;
    let record: Verification = serde_json::from_slice(&text).ok()?;
    let is_good = record.failed().next().is_none();
    is_good.then_some(record)
}

/// Keeps a record for later starts. Where it cannot be kept, the next start verifies again.
fn keep(path: &Path, verification: &Verification) {
    use std::os::unix::fs::DirBuilderExt;
    let Some(directory) = path.parent() else { return };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    let unfinished =
        directory.join(format!(".{}-{}", std::process::id(), path.file_name().unwrap_or_default().to_string_lossy()));
    let written = made.and_then(|()| std::fs::write(&unfinished, serde_json::to_vec(verification).unwrap_or_default()));
    if written.and_then(|()| std::fs::rename(&unfinished, path)).is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
}

#[cfg(test)]
mod unit {
    use tierbox_core::{KillDomain, Mechanism};

    use super::*;

    fn spec() -> EnvironmentSpec {
        EnvironmentSpec::new("b", "T0.H1.N2".parse().unwrap())
    }

    fn report(locality: Locality, tier: &str) -> Report {
        Report {
            profile: "p".into(),
            tier: tier.parse().unwrap(),
            backend: "b".into(),
            locality,
            kill_domain: KillDomain::Cgroup,
            mechanisms: vec![Mechanism {
                name: "user namespace".into(),
                applied: tierbox_core::Applied::Enforced,
                detail: "65536 ids from 100000".into(),
            }],
            limits: Vec::new(),
            mounts: Vec::new(),
            copied_in: Vec::new(),
            weakened: Vec::new(),
            reason: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn what_is_not_on_this_host_or_not_a_container_is_always_verified() {
        let of = |locality, tier, verify| mode(&EnvironmentSpec { verify, ..spec() }, &report(locality, tier));
        assert_eq!(of(Locality::Local, "T0.H1.N2", None), Verify::Once);
        for (locality, tier) in [(Locality::Remote, "T0.H2.N2"), (Locality::Remote, "T0.H3.N2"), (Locality::Local, "T0.H3.N2")] {
            assert_eq!(of(locality, tier, None), Verify::Always, "{locality:?} {tier}");
        }
        assert_eq!(of(Locality::Remote, "T0.H3.N2", Some(Verify::Once)), Verify::Once);
    }

    /// Each thing on which a record depends makes another key, and what differs between two starts of the same makes none.
    #[test]
    fn a_record_is_for_the_same_configuration_alone() {
        let identity = |root: &str, engine: &str| {
            BTreeMap::from([("root".to_owned(), root.to_owned()), ("engine".to_owned(), engine.to_owned())])
        };
        let local = report(Locality::Local, "T0.H1.N2");
        let key = record_key(&spec(), &identity("r", "1"), &local);
        let mut ranged = local.clone();
        ranged.mechanisms[0].detail = "65536 ids from 900000".into();
        assert_eq!(record_key(&spec(), &identity("r", "1"), &ranged), key);
        let mut weaker = local.clone();
        weaker.mechanisms[0].applied = tierbox_core::Applied::Absent;
        let mut mounted = local.clone();
        mounted.mounts.push("/a -> /b (ro)".into());
        let named = EnvironmentSpec {
            network: tierbox_core::NetworkSpec { allow: vec!["a.test".into()], ..Default::default() },
            ..spec()
        };
        let others = [
            record_key(&named, &identity("r", "1"), &local),
            record_key(&spec(), &identity("other", "1"), &local),
            record_key(&spec(), &identity("r", "2"), &local),
            record_key(&spec(), &identity("r", "1"), &weaker),
            record_key(&spec(), &identity("r", "1"), &mounted),
        ];
        for (number, other) in others.iter().enumerate() {
            assert_ne!(other, &key, "{number}");
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(key["boot"], boot.trim());
        let build = key["build"].as_str().unwrap();
        assert!(build.starts_with(env!("CARGO_PKG_VERSION")));
        assert!(build.contains(&supervisor()));
        assert!(build.contains(&std::fs::metadata("/proc/self/exe").unwrap().len().to_string()));
    }
}
