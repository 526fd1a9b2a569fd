//! Leases: renewed by their clients, ended by them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tierbox::{Error, ErrorKind, Hold, Leased, Result};

use crate::environments::{invalid, seconds};
use crate::server::Shared;
use crate::turns::Client;
use crate::{labels, wire};

impl Shared {
    /// Renews one lease.
    pub fn renew(&self, id_or_name: &str, asked: &wire::Renew) -> Result<wire::Renewed> {
        let (hold, ttl) = self.hold(asked)?;
        let id = self.client.journal()?.find(id_or_name)?.record.id;
        self.renew_one(&id, hold, ttl)?;
        Ok(wire::Renewed { environments: vec![id] })
    }

    /// Renews every lease of a client, by what the journal says of whose it is: also of machines that do not answer. Those that
    /// are gone are left out.
    pub fn renew_all(&self, client: &Client, asked: &wire::Renew) -> Result<wire::Renewed> {
        let (hold, ttl) = self.hold(asked)?;
        let named = |id: &str| asked.environments.as_ref().is_none_or(|ids| ids.iter().any(|named| named == id));
        let mine = |leased: &Leased| named(&leased.record.id) && labels::is_of(&leased.labels, client);
        let mine = self.client.leases()?.into_iter().filter(mine).map(|leased| leased.record.id);
        let renewed = mine.filter(|id| self.renew_one(id, hold, ttl).is_ok());
        Ok(wire::Renewed { environments: renewed.collect() })
    }

    fn renew_one(&self, id: &str, hold: Hold, ttl: Duration) -> Result<()> {
        let held = self.environments().get(id).cloned();
        if held.is_some_and(|held| held.prolong(hold, ttl)) {
            return Ok(());
        }
        self.client.renew(id, hold).map(drop)
    }

    fn hold(&self, asked: &wire::Renew) -> Result<(Hold, Duration)> {
        let ttl = self.ttl(asked.ttl)?;
        Ok((if asked.keep { Hold::Kept } else { Hold::Until(SystemTime::now() + ttl) }, ttl))
    }

    pub(crate) fn ttl(&self, asked: Option<f64>) -> Result<Duration> {
        let ttl = asked.map_or(Ok(self.options.ttl), |ttl| seconds("ttl", ttl))?;
        if !(1..=604_800).contains(&ttl.as_secs()) {
            return Err(invalid("the ttl is not between one second and one week"));
        }
        Ok(ttl)
    }

    /// Ends an environment, in a task of its own: a client that goes away meanwhile leaves nothing half done.
    pub async fn destroy(self: &Arc<Self>, id_or_name: &str) -> Result<wire::Removed> {
        let id = self.client.journal()?.find(id_or_name)?.record.id;
        let shared = self.clone();
        let ended = tokio::spawn(async move { shared.end(id).await }).await;
        ended.map_err(|error| Error::new(ErrorKind::Internal, "end environment", error.to_string()))?
    }

    /// Its share of the budget is given back when it is gone: here, or when its lease is seen to be. What could not be ended stays
    /// where it is, and is tried again.
    async fn end(&self, id: String) -> Result<wire::Removed> {
        let held = self.environments().get(&id).cloned();
        // One that cannot be detached is this process's own: it ends by its handle, whoever uses it.
        let removed = match held.filter(|held| held.running.is_attached()) {
            None => {
                self.environments().remove(&id);
                self.client.down(&id).await?.removed
            }
            Some(held) => {
                held.running.end().await?;
                vec![id.clone()]
            }
        };
        self.events.tell(wire::EventKind::Destroyed, &id, |_| ());
        self.forget(&id);
        Ok(wire::Removed { removed })
    }

    /// Forgets an environment whose lease is gone. Whether this daemon had it.
    pub(crate) fn forget(&self, id: &str) -> bool {
        if !self.is_gone(id) {
            return false;
        }
        let (held, share) = (self.environments().remove(id), self.shares().remove(id));
        // Both end outside their locks.
        drop(share);
        held.is_some()
    }

    fn is_gone(&self, id: &str) -> bool {
        let entry = self.client.journal().and_then(|journal| journal.get(id));
        entry.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }
}
