//! Machines kept for the next start of the same kind, put back to their first moment.
//!
//! A kept environment has a lease of its own, which nobody holds and which expires: `tierbox cleanup` removes it then.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime};

use tierbox_core::{Error, ErrorKind, Hold, LeaseHandle, Resource, Result};
use tierbox_lease::{Entry, Journal, Lease, NewLease, Standing};

use crate::place::Place;
use crate::start::{Memory, Plan};
use crate::{BACKEND, crash, destroy, inputs, libvirt};

/// The name of the snapshot that a kept environment is put back to.
pub const FIRST: &str = "tierbox-first";

/// The kind of resource by which a lease says that nobody needs what it names: the facade's word for it, too.
const SPARE: &str = "spare";

/// How long an environment is kept without use.
const KEPT: Duration = Duration::from_secs(600);

/// A pool: the journal that its leases are in, and what its environments have in common.
#[derive(Clone)]
pub struct Pool {
    journal: Journal,
    key: String,
    size: usize,
    profile: String,
    tier: String,
    /// The Vagrantfile's variables.
    env: BTreeMap<String, String>,
}

impl Pool {
    /// The pool that a specification asks for; `None` if it asks for none, or there is no journal to keep it in.
    pub fn of(plan: &Plan, spec: &tierbox_core::EnvironmentSpec, lease: &dyn LeaseHandle) -> Result<Option<Self>> {
        if plan.settings.pool == 0 || !plan.provider.can_snapshot() {
            return Ok(None);
        }
        let Some(journal) = journal_of(lease)? else { return Ok(None) };
        Ok(Some(Self {
            journal,
            key: key(plan, spec)?,
            size: plan.settings.pool as usize,
            profile: spec.profile.clone(),
            tier: spec.tier.to_string(),
            env: plan.settings.env.clone(),
        }))
    }

    fn entries(&self, standing: Standing, of_any: bool) -> Result<Vec<Entry>> {
        let now = SystemTime::now();
        let mut entries = self.journal.list()?.entries;
        entries.retain(|entry| {
            let kept = Memory::of(&entry.record).and_then(|memory| memory.kept);
            entry.record.backend == BACKEND
                && entry.standing(now) == standing
                && kept.is_some_and(|key| of_any || key == self.key)
        });
        Ok(entries)
    }

    fn kept(&self) -> Result<Vec<Entry>> {
        self.entries(Standing::Until, false)
    }

    /// Removes what was kept, by whatever pool, and not used in its time.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn empty_expired(&self) -> Result<()> {
        for entry in self.entries(Standing::Expired, true)? {
            let Ok(former) = self.journal.adopt(&entry.record.id) else { continue };
            remove(&former).await?;
        }
        Ok(())
    }

    /// Takes a kept environment over into a lease; `None` if there is none that lives.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn take(&self, lease: &dyn LeaseHandle) -> Result<Option<Memory>> {
        for entry in self.kept()? {
            let Ok(former) = self.journal.adopt(&entry.record.id) else { continue };
            // Another process may have taken it between the look and the lock.
            let Some(mut memory) = Memory::of(&former.snapshot()).filter(|memory| memory.kept.as_deref() == Some(&self.key))
            else {
                continue;
            };
            let is_same = memory.inputs.as_ref().is_some_and(|inputs| inputs.are_unchanged(&self.env));
            if !is_same || !lives(&memory).await {
                remove(&former).await?;
                continue;
            }
            memory.kept = None;
            // From here on nobody else can take it, and if this process dies, both leases are those of a dead one.
            former.set_data(memory.to_data()?)?;
            former.set_hold(Hold::Process)?;
            lease.record(&resources(&memory.place))?;
            lease.set_data(memory.to_data()?)?;
            crash::point("taken");
            former.set_data(serde_json::Value::Null)?;
            former.remove()?;
            return Ok(Some(memory));
        }
        Ok(None)
    }

    /// Whether one more may be kept.
    ///
    /// # Errors
    /// What the file system says.
    pub fn has_room(&self) -> Result<bool> {
        Ok(self.kept()?.len() < self.size)
    }

    /// Keeps an environment under a lease of its own, and takes it out of the one it had.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&self, memory: &Memory, from: &dyn LeaseHandle) -> Result<()> {
        let lease: Lease = self.journal.create(NewLease::new(BACKEND, &self.profile, &self.tier))?;
        lease.record(&resources(&memory.place))?;
        // Whoever needs room for another environment knows by it that this one may go.
        lease.record(&[Resource { kind: SPARE.to_owned(), id: self.key.clone() }])?;
        lease.set_data(Memory { kept: Some(self.key.clone()), ..memory.clone() }.to_data()?)?;
        from.set_data(serde_json::Value::Null)?;
        lease.set_hold(Hold::Until(SystemTime::now() + KEPT))?;
        lease.release()
    }
}

/// What stands in a lease for a place.
pub fn resources(place: &Place) -> Vec<Resource> {
    let resource = |kind: &str, id: String| Resource { kind: kind.to_owned(), id };
    let mut all = vec![
        resource("vagrant", place.token.clone()),
        resource("names", place.prefix()),
        resource("directory", place.directory.display().to_string()),
    ];
    if let Some(network) = &place.isolated {
        all.push(resource("nftables", crate::isolation::table(&place.token)));
        all.push(resource("network", network.name.clone()));
    }
    all
}

/// The journal that a lease is in, told from where its directory is; `None` for a lease without a journal.
pub fn journal_of(lease: &dyn LeaseHandle) -> Result<Option<Journal>> {
    let directory = lease.directory()?;
    let state = directory.parent().filter(|parent| parent.ends_with("env")).and_then(|parent| parent.parent());
    match state.filter(|state| state.join("leases").is_dir()) {
        Some(state) => Journal::at(state).map(Some),
        None => Ok(None),
    }
}

/// Destroys what a lease names, and the lease with it unless something is left.
async fn remove(lease: &Lease) -> Result<()> {
    if destroy::lease(&lease.snapshot()).await.failed.is_empty() { lease.remove() } else { Ok(()) }
}

async fn lives(memory: &Memory) -> bool {
    let prefix = memory.place.prefix();
    if memory.place.provider != "libvirt" {
        return true;
    }
    for machine in &memory.machines {
        let domain = format!("{prefix}{}", machine.name);
        if !libvirt::virsh(&["domstate", &domain]).await.is_ok_and(|state| state.trim() == "running") {
            return false;
        }
    }
    !memory.machines.is_empty()
}

/// What must be the same for one start to take what another left: all that goes into `vagrant up` and is known before it. What only
/// the evaluation tells is in [`inputs`].
fn key(plan: &Plan, spec: &tierbox_core::EnvironmentSpec) -> Result<String> {
    let contents = std::fs::read(&plan.vagrantfile).map_err(|error| {
        Error::io("read Vagrantfile", error).with_backend(BACKEND).with_context("path", plan.vagrantfile.display())
    })?;
    let beside = plan.vagrantfile.parent().map(inputs::tree).transpose()?;
    let mut hasher = DefaultHasher::new();
    (beside, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    (&plan.vagrantfile, contents, plan.provider.name(), spec.tier.to_string()).hash(&mut hasher);
    (&plan.settings.machines, &plan.settings.primary, &plan.settings.env).hash(&mut hasher);
    // What the rules let through was decided when they were made.
    spec.network.allow.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// The error for a snapshot that a provider cannot make.
pub fn unsupported(provider: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "save snapshot", format!("the provider {provider} cannot save running machines"))
        .with_backend(BACKEND)
}

#[cfg(test)]
mod unit {
    use std::path::Path;

    use super::*;
    use crate::inputs::Inputs;

    /// A pool of a provider that needs nothing of this host.
    fn pool(directory: &Path, key: &str) -> Pool {
        Pool {
            journal: Journal::at(&directory.join("state")).unwrap(),
            key: key.into(),
            size: 1,
            profile: "p".into(),
            tier: "T0.H3.N0".into(),
            env: BTreeMap::new(),
        }
    }

    fn lease(pool: &Pool) -> Lease {
        pool.journal.create(NewLease::new(BACKEND, "p", "T0.H3.N0")).unwrap()
    }

    /// What a start left, with a file that it was made from.
    fn left(directory: &Path, token: &str) -> Memory {
        let place = Place {
            token: token.into(),
            directory: directory.join("state/vagrant").join(token),
            vagrantfile: directory.join("Vagrantfile"),
            provider: "virtualbox".into(),
            isolated: None,
        };
        place.write(&BTreeMap::new(), true).unwrap();
        let told = serde_json::json!({"files": [directory.join("script.sh")], "variables": []});
        std::fs::write(place.file("inputs.json"), told.to_string()).unwrap();
        let inputs = Inputs::of(&place, &BTreeMap::new());
        Memory { place, machines: Vec::new(), is_guess: false, running: None, kept: None, inputs }
    }

    fn ids(pool: &Pool) -> Vec<String> {
        pool.journal.list().unwrap().entries.into_iter().map(|entry| entry.record.id).collect()
    }

    #[tokio::test]
    async fn what_is_kept_goes_to_the_next_of_its_kind_and_has_one_lease_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path(), "one");
        let memory = left(dir.path(), "0a1b2c3d");
        let first = lease(&pool);
        pool.keep(&memory, &first).unwrap();
        assert!(Memory::of(&first.snapshot()).is_none() && !pool.has_room().unwrap());
        first.remove().unwrap();

        let next = lease(&pool);
        assert!(self::pool(dir.path(), "another").take(&next).await.unwrap().is_none());
        let taken = pool.take(&next).await.unwrap().unwrap();
        assert_eq!((taken.place.token.as_str(), taken.kept), ("0a1b2c3d", None));
        assert_eq!(ids(&pool), [next.snapshot().id]);
        assert!(Memory::of(&next.snapshot()).is_some() && pool.take(&next).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_would_be_made_differently_today_is_removed_instead() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path(), "one");
        std::fs::write(dir.path().join("script.sh"), "1").unwrap();
        let memory = left(dir.path(), "0a1b2c3d");
        let first = lease(&pool);
        pool.keep(&memory, &first).unwrap();
        first.remove().unwrap();
        std::fs::write(dir.path().join("script.sh"), "22").unwrap();
        let next = lease(&pool);
        assert!(pool.take(&next).await.unwrap().is_none());
        assert!(!memory.place.directory.exists());
        assert_eq!(ids(&pool), [next.snapshot().id]);
    }

    #[tokio::test]
    async fn what_nobody_used_in_its_time_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (pool, other) = (pool(dir.path(), "one"), pool(dir.path(), "other"));
        let hour = Duration::from_secs(3600);
        let mut places = Vec::new();
        for (token, kept, until) in [
            ("0000000a", Some("one"), SystemTime::now() - hour),
            ("0000000b", Some("one"), SystemTime::now() + hour),
            ("0000000c", None, SystemTime::now() - hour),
        ] {
            let lease = lease(&other);
            let memory = Memory { kept: kept.map(str::to_owned), ..left(dir.path(), token) };
            lease.set_data(memory.to_data().unwrap()).unwrap();
            lease.set_hold(Hold::Until(until)).unwrap();
            places.push(memory.place.directory);
        }
        other.empty_expired().await.unwrap();
        assert_eq!(places.iter().map(|place| place.exists()).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(ids(&pool).len(), 2);
    }
}
