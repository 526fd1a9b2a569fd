//! One gateway for many environments, on a machine that is the gateway of others: each sandbox is known by the address that it
//! comes from, so the network must let nobody use another's.
//!
//! Of each environment there is a file `ID.json` in a directory: `{"sandbox", "allow", "clients", "life"}`. Files come, change and go
//! while the gateway runs. One that nobody has touched for `life` seconds counts no more; a client that two name is the newer one's.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, Result};

use crate::gateway::{self, Config};
use crate::process::raise_limit;
use crate::rules::Rules;
use crate::sockets::Plan;
use crate::tenant::{Tenant, Tenants};

/// Between two looks at the directory.
const LOOK: Duration = Duration::from_millis(200);

/// The longest file.
const LONGEST: u64 = 4 << 20;

/// An environment's part in a gateway that serves many: one file of its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lodger {
    /// The environment's id, which is the file's name without `.json`.
    pub sandbox: String,
    /// What it may reach.
    pub allow: Vec<String>,
    /// The addresses of its machines.
    pub clients: Vec<Ipv4Addr>,
    /// For how many seconds the file counts after it was last touched.
    pub life: u64,
}

/// Serves all whose files are in a directory, until this process is killed. Decisions go to `logs`, a file `ID.jsonl` for each.
///
/// # Errors
/// `HostUnable` if the address or the threads cannot be had.
pub fn share(address: Ipv4Addr, directory: &Path, logs: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::HostUnable, "start egress gateway", error.to_string());
    raise_limit();
    let house = House::new(address, directory, logs, crate::address::refused);
    let sockets = house.plan.bind().map_err(failed)?;
    let runtime = gateway::runtime().map_err(failed)?;
    {
        let _inside = runtime.enter();
        gateway::serve(&Tenants::Many(house.doors.clone()), sockets, |work| drop(runtime.spawn(work))).map_err(failed)?;
    }
    let mut house = house;
    loop {
        house.look();
        std::thread::sleep(LOOK);
    }
}

/// Whether an address is dialled.
type Refused = fn(IpAddr) -> Option<&'static str>;

/// Those who are served.
pub(crate) struct House {
    plan: Plan,
    directory: PathBuf,
    logs: PathBuf,
    refused: Refused,
    rooms: HashMap<String, Let>,
    pub(crate) doors: Arc<RwLock<HashMap<IpAddr, Arc<Tenant>>>>,
}

/// A file that was read: who stands in it, or nobody.
struct Let {
    touched: SystemTime,
    /// When it was laid there, which no sign of life makes younger.
    laid: SystemTime,
    lodger: Option<(Lodger, Arc<Tenant>)>,
}

impl House {
    pub(crate) fn new(address: Ipv4Addr, directory: &Path, logs: &Path, refused: Refused) -> Self {
        let (plan, doors) = (Plan::shared(address), Arc::default());
        Self { plan, directory: directory.to_owned(), logs: logs.to_owned(), refused, rooms: HashMap::new(), doors }
    }

    /// Reads what has changed. What cannot be read serves nobody.
    pub(crate) fn look(&mut self) {
        let now = SystemTime::now();
        let mut found = self.files();
        self.rooms.retain(|id, _| found.contains_key(id));
        for (id, (touched, laid)) in found.drain() {
            if self.rooms.get(&id).is_some_and(|known| known.touched == touched) {
                continue;
            }
            let known = self.rooms.remove(&id);
            // Some file systems do not tell: then it is when it was seen first.
            let laid = laid.unwrap_or_else(|| known.as_ref().map_or(touched, |known| known.laid));
            let lodger = self.read(&id, known.and_then(|known| known.lodger));
            self.rooms.insert(id, Let { touched, laid, lodger });
        }
        let doors = self.plan_doors(now);
        self.evict(&doors);
        let moved = self.deprived(&doors);
        for id in &moved {
            // With new rooms, the connections that the client had under the older rules are cut.
            let lodger = self.read(id, None);
            if let Some(each) = self.rooms.get_mut(id) {
                each.lodger = lodger;
            }
        }
        let doors = if moved.is_empty() { doors } else { self.plan_doors(now) };
        *self.doors.write().unwrap_or_else(PoisonError::into_inner) = doors;
    }

    /// Whose address is whose: the newer one's. An older one that gives signs of life still may have lost its machine, whose address then
    /// went to another.
    fn plan_doors(&self, now: SystemTime) -> HashMap<IpAddr, Arc<Tenant>> {
        let is_over = |each: &&Let| {
            let life = each.lodger.as_ref().map_or(0, |(lodger, _)| lodger.life);
            now.duration_since(each.touched).is_ok_and(|age| age > Duration::from_secs(life))
        };
        let mut living: Vec<&Let> = self.rooms.values().filter(|each| !is_over(each)).collect();
        living.sort_by_key(|each| (each.laid, each.touched));
        let pairs = living.into_iter().filter_map(|each| each.lodger.as_ref()).flat_map(|(lodger, tenant)| {
            lodger.clients.iter().map(|client| (IpAddr::V4(*client), tenant.clone())).collect::<Vec<_>>()
        });
        pairs.collect()
    }

    /// Those who keep some of their doors, and lost one to somebody newer.
    fn deprived(&self, doors: &HashMap<IpAddr, Arc<Tenant>>) -> Vec<String> {
        let before = self.doors.read().unwrap_or_else(PoisonError::into_inner);
        let lost = |tenant: &Arc<Tenant>| {
            let mut had = before.iter().filter(|(_, owner)| Arc::ptr_eq(owner, tenant));
            had.any(|(door, _)| doors.get(door).is_none_or(|owner| !Arc::ptr_eq(owner, tenant)))
        };
        let is_deprived = |each: &Let| each.lodger.as_ref().is_some_and(|(_, tenant)| lost(tenant));
        self.rooms.iter().filter(|(_, each)| is_deprived(each)).map(|(id, _)| id.clone()).collect()
    }

    /// Cuts the connections of those who have no door any more.
    fn evict(&mut self, doors: &HashMap<IpAddr, Arc<Tenant>>) {
        for each in self.rooms.values_mut() {
            let has_door = |tenant: &Arc<Tenant>| doors.values().any(|other| Arc::ptr_eq(tenant, other));
            if each.lodger.as_ref().is_some_and(|(_, tenant)| !has_door(tenant)) {
                each.lodger = None;
            }
        }
    }

    /// The files, when each was touched last, and when it was laid there if that is known.
    fn files(&self) -> HashMap<String, (SystemTime, Option<SystemTime>)> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let one = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let id = name.strip_suffix(".json").filter(|id| is_plain(id))?.to_owned();
            let facts = entry.metadata().ok().filter(|facts| facts.is_file() && facts.len() <= LONGEST)?;
            Some((id, (facts.modified().ok()?, facts.created().ok())))
        };
        entries.filter_map(one).collect()
    }

    fn read(&self, id: &str, before: Option<(Lodger, Arc<Tenant>)>) -> Option<(Lodger, Arc<Tenant>)> {
        let path = self.directory.join(format!("{id}.json"));
        let read = || -> Result<Lodger> {
            let bytes = std::fs::read(&path).map_err(|error| Error::io("read gateway configuration", error))?;
            let invalid = |why: String| Error::new(ErrorKind::InvalidProfile, "read gateway configuration", why);
            let lodger: Lodger = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
            if lodger.sandbox == id { Ok(lodger) } else { Err(invalid(format!("it is of {:?}", lodger.sandbox))) }
        };
        let made = read().and_then(|lodger| {
            if let Some((known, tenant)) = before.filter(|(known, _)| *known == lodger) {
                return Ok((known, tenant));
            }
            let rules = Rules::parse(&lodger.allow)?;
            let log = self.logs.join(format!("{id}.jsonl"));
            let tenant = gateway::tenant(Config::new(id, rules, self.plan.clone(), &log), self.refused)?;
            Ok((lodger, Arc::new(tenant)))
        });
        made.inspect_err(|error| tracing::warn!("{}: {}", path.display(), error.message())).ok()
    }
}

/// Whether an id is a plain name.
fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::serve::Guard;

    struct Town {
        directory: tempfile::TempDir,
        house: House,
    }

    impl Town {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let house = House::new(Ipv4Addr::LOCALHOST, directory.path(), directory.path(), crate::address::refused);
            Self { directory, house }
        }

        /// Writes a file that was touched so many seconds ago.
        fn write(&self, name: &str, text: &str, age: u64) {
            let path = self.directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }

        fn lodger(&self, id: &str, clients: &[&str], age: u64) {
            let clients = clients.iter().map(|client| client.parse().unwrap()).collect();
            let lodger = Lodger { sandbox: id.to_owned(), allow: vec![format!("{id}.test")], clients, life: 60 };
            self.write(&format!("{id}.json"), &serde_json::to_string(&lodger).unwrap(), age);
        }

        fn at(&self, client: &str) -> Option<String> {
            let tenant = Tenants::Many(self.house.doors.clone()).at(client.parse().unwrap());
            tenant.map(|tenant| tenant.room.sandbox.clone())
        }
    }

    #[test]
    fn each_address_is_one_environments() {
        let mut town = Town::new();
        town.lodger("a", &["10.0.0.1", "10.0.0.2"], 9);
        town.lodger("b", &["10.0.0.2", "10.0.0.3"], 5);
        town.house.look();
        assert_eq!(town.at("10.0.0.1").as_deref(), Some("a"));
        assert_eq!(town.at("10.0.0.2").as_deref(), Some("b"), "the newer one has it");
        assert_eq!(town.at("10.0.0.3").as_deref(), Some("b"));
        assert_eq!(town.at("10.0.0.4"), None);
    }

    #[test]
    fn a_sign_of_life_takes_no_address_back_from_somebody_newer() {
        let mut town = Town::new();
        let laid = |id: &str| std::fs::metadata(town.directory.path().join(format!("{id}.json"))).unwrap().created().ok();
        town.lodger("a", &["10.0.0.1"], 9);
        let limit = std::time::Instant::now() + Duration::from_secs(20);
        // Clocks of file systems tick a few hundred times a second.
        loop {
            let _ = std::fs::remove_file(town.directory.path().join("b.json"));
            town.lodger("b", &["10.0.0.1"], 5);
            if laid("a") != laid("b") || laid("a").is_none() {
                break;
            }
            assert!(std::time::Instant::now() < limit, "the clock stands still");
        }
        town.house.look();
        assert_eq!(town.at("10.0.0.1").as_deref(), Some("b"));
        town.lodger("a", &["10.0.0.1"], 0);
        town.house.look();
        assert_eq!(town.at("10.0.0.1").as_deref(), Some("b"));
    }

    #[test]
    fn a_client_that_moves_leaves_its_connections_behind() {
        let mut town = Town::new();
        town.lodger("a", &["10.0.0.1", "10.0.0.2"], 9);
        town.house.look();
        let guard_at =
            |town: &Town, client: &str| town.house.doors.read().unwrap()[&client.parse::<IpAddr>().unwrap()].guard.clone();
        let before = guard_at(&town, "10.0.0.2");
        town.lodger("b", &["10.0.0.2"], 1);
        town.house.look();
        assert_eq!((town.at("10.0.0.1").as_deref(), town.at("10.0.0.2").as_deref()), (Some("a"), Some("b")));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let cut = |guard: Guard| {
            let waited = async move {
                tokio::time::timeout(Duration::from_millis(50), guard.until_closed(std::future::pending::<()>())).await
            };
            runtime.block_on(waited).is_ok()
        };
        assert!(cut(before), "connections under the older rules go on");
        // And nobody is cut again by the next look.
        let now = guard_at(&town, "10.0.0.1");
        town.house.look();
        assert!(!cut(now));
    }

    #[test]
    fn who_gave_no_sign_of_life_or_is_gone_is_not_served_and_cut_off() {
        let mut town = Town::new();
        town.lodger("a", &["10.0.0.1"], 1);
        town.lodger("b", &["10.0.0.2"], 61);
        town.house.look();
        assert_eq!((town.at("10.0.0.1").as_deref(), town.at("10.0.0.2")), (Some("a"), None));
        let guard = town.house.doors.read().unwrap()[&"10.0.0.1".parse::<IpAddr>().unwrap()].guard.clone();
        std::fs::remove_file(town.directory.path().join("a.json")).unwrap();
        town.house.look();
        assert_eq!(town.at("10.0.0.1"), None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(guard.until_closed(std::future::pending::<()>())).is_none());
    }

    #[test]
    fn a_sign_of_life_cuts_nothing_and_a_late_one_brings_it_back() {
        let mut town = Town::new();
        town.lodger("a", &["10.0.0.1"], 30);
        town.house.look();
        let before = town.house.doors.read().unwrap()[&"10.0.0.1".parse::<IpAddr>().unwrap()].clone();
        town.lodger("a", &["10.0.0.1"], 0);
        town.house.look();
        let after = town.house.doors.read().unwrap()[&"10.0.0.1".parse::<IpAddr>().unwrap()].clone();
        assert!(Arc::ptr_eq(&before, &after));
        town.lodger("a", &["10.0.0.1"], 100);
        town.house.look();
        assert_eq!(town.at("10.0.0.1"), None);
        town.lodger("a", &["10.0.0.1"], 1);
        town.house.look();
        assert_eq!(town.at("10.0.0.1").as_deref(), Some("a"));
    }

    #[test]
    fn what_makes_no_sense_serves_nobody() {
        let mut town = Town::new();
        town.lodger("a", &["10.0.0.1"], 1);
        town.house.look();
        town.write("a.json", "{", 0);
        town.write("b.json", r#"{"sandbox":"c","allow":[],"clients":["10.0.0.2"],"life":60}"#, 0);
        town.write("d.json", r#"{"sandbox":"d","allow":["*.com"],"clients":["10.0.0.3"],"life":60}"#, 0);
        town.write("e.json", r#"{"sandbox":"e","allow":[],"clients":["10.0.0.4"],"life":60,"more":1}"#, 0);
        town.house.look();
        assert!(town.house.doors.read().unwrap().is_empty());
    }
}
