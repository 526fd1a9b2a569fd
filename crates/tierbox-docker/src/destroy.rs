//! Removes what a lease names, and nothing that does not bear its label.

use std::time::Duration;

use tierbox_core::{DestroyReport, LeaseRecord, Result};

use crate::built::{self, Guest};
use crate::engine::{Engine, is_absent};
use crate::environment::Memory;
use crate::removal::{Removal, words};

/// Kinds of resources in a lease.
pub const CONTAINER: &str = "container";
/// See [`CONTAINER`].
pub const NETWORK: &str = "network";
/// See [`CONTAINER`].
pub const VOLUME: &str = "volume";
/// See [`CONTAINER`].
pub const IMAGE: &str = "image";

/// How long a removal takes at most, however much there is.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long one waits to hear whether something lives.
const GLANCE: Duration = Duration::from_secs(10);

/// How long one waits for what a dead harness asked for, before one looks whether something came into being.
const AFTERMATH: Duration = Duration::from_millis(500);

/// How often at most.
const ROUNDS: u32 = 10;

/// Removes everything that a lease names. What could not be removed is in the report.
///
/// # Errors
/// When the engine cannot be asked.
pub async fn lease(lease: &LeaseRecord) -> Result<DestroyReport> {
    if lease.resources.is_empty() {
        return Ok(DestroyReport::default());
    }
    crate::crash::point("destroy");
    let memory = Memory::of(lease)?;
    let engine = Engine::connect(&memory.socket).await?;
    Ok(within(PATIENCE, &engine, lease, memory.ready).await)
}

async fn within(patience: Duration, engine: &Engine, lease: &LeaseRecord, ready: bool) -> DestroyReport {
    let mut pass = Pass { removal: Removal::new(engine, &lease.id, patience), lease, ready, report: DestroyReport::default() };
    if !pass.all().await && !ready {
        pass.belated().await;
    }
    pass.report
}

/// The removal of a lease's things.
struct Pass<'a> {
    removal: Removal<'a>,
    lease: &'a LeaseRecord,
    /// Whether its start went to its end.
    ready: bool,
    report: DestroyReport,
}

impl Pass<'_> {
    /// Its owner may have died with a request on the way, which the engine then carries out all the same. On a busy machine one
    /// thing comes after another: it is over once a whole round finds nothing more.
    async fn belated(&mut self) {
        for _ in 0..ROUNDS {
            tokio::time::sleep(AFTERMATH).await;
            let removed = self.report.removed.len();
            self.all().await;
            if self.report.removed.len() == removed {
                break;
            }
        }
    }

    /// Removes what is there. Whether every container was.
    async fn all(&mut self) -> bool {
        let lease = self.lease;
        self.report = DestroyReport { removed: std::mem::take(&mut self.report.removed), ..DestroyReport::default() };
        let built = lease.resources_of(IMAGE).next().is_some();
        let guests = if built {
            // After the start no build is under way: what bears the label then is somebody else's.
            built::steps(&mut self.removal, lease, !self.ready, &mut self.report).await
        } else {
            Ok(Vec::new())
        };
        let mut complete = true;
        for id in lease.resources_of(CONTAINER).rev() {
            complete &= self.one(CONTAINER, id, id).await;
        }
        self.networks().await;
        for id in lease.resources_of(VOLUME).rev() {
            self.one(VOLUME, id, id).await;
        }
        if built {
            self.images(guests.map_err(|error| words(&error))).await;
        }
        complete
    }

    /// Removes one thing. Whether it was there and is gone.
    async fn one(&mut self, kind: &str, id: &str, shown: &str) -> bool {
        match self.removal.remove(kind, id).await {
            Ok(true) => self.report.removed.push(format!("{kind} {shown}")),
            Ok(false) => return false,
            Err(why) => {
                self.failed(kind, id, shown, &why);
                return false;
            }
        }
        true
    }

    async fn networks(&mut self) {
        let lease = self.lease;
        if lease.resources_of(NETWORK).next().is_none() {
            return;
        }
        match self.removal.networks().await {
            Ok(found) => {
                for (id, name) in found {
                    self.one(NETWORK, &id, &name).await;
                }
            }
            Err(error) => lease.resources_of(NETWORK).for_each(|id| self.failed(NETWORK, id, id, &words(&error))),
        }
    }

    /// Removes the images that were built, unless somebody uses one: its name is then left too, by which he finds it.
    async fn images(&mut self, guests: Result<Vec<Guest>, String>) {
        let lease = self.lease;
        let guests = match guests {
            Ok(guests) => guests,
            Err(why) => return lease.resources_of(IMAGE).for_each(|id| self.failed(IMAGE, id, id, &why)),
        };
        let mut are_held = false;
        for id in lease.resources_of(IMAGE).rev() {
            match built::held(&mut self.removal, &guests, id).await {
                Ok(None) => {
                    self.one(IMAGE, id, id).await;
                }
                Ok(Some(why)) => {
                    are_held = true;
                    self.failed(IMAGE, id, id, &why);
                }
                Err(error) => self.failed(IMAGE, id, id, &words(&error)),
            }
        }
        // What an image that stays was made of stays with it.
        if !are_held {
            built::layers(&mut self.removal, &guests, &mut self.report).await;
        }
    }

    fn failed(&mut self, kind: &str, id: &str, shown: &str, why: &str) {
        self.report.failed.push(format!("{kind} {shown}: {why}"));
        self.report.manual.push(by_hand(self.removal.engine, kind, id));
    }
}

fn by_hand(engine: &Engine, kind: &str, id: &str) -> String {
    let command = match kind {
        CONTAINER => "rm -f -v",
        NETWORK => "network rm",
        VOLUME => "volume rm",
        _ => "rmi",
    };
    format!("docker -H unix://{} {command} {id}", engine.socket.display())
}

/// Whether anything of a lease still runs. Who cannot ask does not know, and takes it for running.
pub async fn is_alive(lease: &LeaseRecord) -> bool {
    let Ok(memory) = Memory::of(lease) else { return false };
    let asked = async {
        let engine = Engine::connect(&memory.socket).await.ok()?;
        for id in lease.resources_of(CONTAINER) {
            match engine.docker.inspect_container(id, None).await {
                Ok(found) if found.state.as_ref().and_then(|state| state.running) == Some(true) => return Some(true),
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(_) => return None,
            }
        }
        Some(false)
    };
    tokio::time::timeout(GLANCE, asked).await.ok().flatten().unwrap_or(true)
}

#[cfg(test)]
mod unit {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use tierbox_core::Resource;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;
    use crate::launch::LABEL;

    const ID: &str = "docker-1";

    /// An engine that tells of every container, and answers a removal with this, or never.
    fn engine(path: &Path, removal: Option<&'static str>) -> Arc<AtomicUsize> {
        let listener = UnixListener::bind(path).unwrap();
        let removals = Arc::new(AtomicUsize::new(0));
        let counted = removals.clone();
        tokio::spawn(async move {
            while let Ok((line, _)) = listener.accept().await {
                tokio::spawn(answer(line, removal, counted.clone()));
            }
        });
        removals
    }

    async fn answer(mut line: UnixStream, removal: Option<&'static str>, removals: Arc<AtomicUsize>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match line.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let (status, body) = match (head.starts_with("DELETE"), removal) {
            (true, None) => {
                removals.fetch_add(1, Ordering::Relaxed);
                return std::future::pending().await;
            }
            (true, Some(status)) => {
                removals.fetch_add(1, Ordering::Relaxed);
                (status, r#"{"message": "it says so"}"#.to_owned())
            }
            (false, _) if head.contains("/version") => ("200 OK", r#"{"ApiVersion": "1.41", "Components": []}"#.to_owned()),
            _ => ("200 OK", format!(r#"{{"Config": {{"Labels": {{"{LABEL}": "{ID}"}}}}, "State": {{"Running": true}}}}"#)),
        };
        let length = body.len();
        let said = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        line.write_all(said.as_bytes()).await.unwrap();
    }

    fn containers(socket: &Path) -> LeaseRecord {
        let memory = Memory { socket: socket.to_owned(), ready: true, detached: None };
        let resource = |id: &str| Resource { kind: CONTAINER.to_owned(), id: id.to_owned() };
        crate::environment::record(ID, &memory, &["a", "b", "c"].map(resource)).unwrap()
    }

    #[tokio::test]
    async fn an_engine_that_answers_no_removal_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        let removals = engine(&socket, None);
        let mut engine = Engine::connect(&socket).await.unwrap();
        engine.docker.set_timeout(Duration::from_secs(1));
        let start = Instant::now();
        let report = within(PATIENCE, &engine, &containers(&socket), true).await;
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        assert_eq!((removals.load(Ordering::Relaxed), report.failed.len(), report.manual.len()), (1, 3, 3), "{report:?}");
        assert!(report.failed.iter().all(|line| line.contains("no answer")) && report.removed.is_empty(), "{report:?}");
    }

    #[tokio::test]
    async fn what_is_busy_is_tried_again_until_time_is_up_and_a_refusal_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("busy.sock");
        let removals = engine(&socket, Some("409 Conflict"));
        let connected = Engine::connect(&socket).await.unwrap();
        let report = within(Duration::from_secs(1), &connected, &containers(&socket), true).await;
        let tried = removals.load(Ordering::Relaxed);
        assert!((2..=crate::removal::TRIES as usize).contains(&tried) && report.failed.len() == 3, "{tried}: {report:?}");
        let socket = dir.path().join("refusing.sock");
        let removals = engine(&socket, Some("400 Bad Request"));
        let connected = Engine::connect(&socket).await.unwrap();
        let report = within(PATIENCE, &connected, &containers(&socket), true).await;
        assert_eq!((removals.load(Ordering::Relaxed), report.failed.len()), (3, 3), "{report:?}");
    }

    #[tokio::test]
    async fn what_nobody_can_tell_counts_as_alive() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        assert!(is_alive(&containers(&socket)).await, "no engine is there to say that it is not");
        engine(&socket, None);
        assert!(is_alive(&containers(&socket)).await);
    }
}
