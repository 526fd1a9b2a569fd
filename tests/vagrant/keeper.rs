//! One machine for all cases: a process of its own boots it, keeps it detached while somebody uses it, and ends it a minute after the
//! last. Environments that cases start for themselves come from a pool.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};
use tierbox::{Connection, Environment, Error, ErrorKind, Hold, Report, Result, Running, Sandbox, StartOptions, Tierbox};
use tierbox_testkit::{Absence, Adjust, Factory};

use crate::support::again;
use crate::world;

/// How long the shared machine outlives its last user.
const IDLE: Duration = Duration::from_secs(60);

/// How long two boots may take on a busy host.
const BOOT: Duration = Duration::from_secs(840);

/// The state directory that all cases share.
fn state() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("vagrant-state")
}

fn lock_file(name: &str) -> File {
    std::fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("vagrant-{name}"));
    File::options().create(true).truncate(false).read(true).write(true).open(path).expect("a lock file")
}

/// The shared machine, and those of a pool.
#[derive(Default)]
pub struct Shared {
    is_shared_out: AtomicBool,
}

fn failed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, "start the shared machine", what)
}

/// What a case's own environment is started from. The pool's size counts those that wait, not those in use.
fn own_spec(client: &Tierbox) -> tierbox::EnvironmentSpec {
    world::spec(client, "vagrant-basic", &[("vagrant.pool", "2"), ("limits.startup", "14m")])
}

#[async_trait]
impl Factory for Shared {
    fn engine(&self) -> &str {
        "vagrant"
    }

    fn absent(&self) -> Option<Absence> {
        world::absent("libvirt")
    }

    fn start_limit(&self) -> Duration {
        BOOT
    }

    fn case_limit(&self) -> Duration {
        Duration::from_secs(300)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn start(&self, adjust: Adjust<'_>) -> Result<Arc<dyn Environment>> {
        let client = world::client(&state());
        let mut spec = own_spec(&client);
        let plain = spec.clone();
        adjust(&mut spec);
        let in_use = lock_file("in-use");
        flock(&in_use, FlockOperation::LockShared).map_err(|error| failed(error.to_string()))?;
        // The runner asks for the one that cases share before any case asks for one of its own.
        let running = if spec == plain && !self.is_shared_out.swap(true, Ordering::AcqRel) {
            tokio::task::spawn_blocking(keep).await.map_err(|error| failed(error.to_string()))??;
            client.attach("shared").await?
        } else {
            client.start_spec(spec, StartOptions::new()).await?
        };
        Ok(Arc::new(Facade::of(running, Some(in_use))))
    }
}

/// An environment of the client's, for cases.
pub fn shown(running: Running) -> Arc<dyn Environment> {
    Arc::new(Facade::of(running, None))
}

/// Has a keeper run that has the machine ready.
fn keep() -> Result<()> {
    let starting = lock_file("starting");
    flock(&starting, FlockOperation::LockExclusive).map_err(|error| failed(error.to_string()))?;
    let ready = state().join("shared-is-ready");
    if ready.exists() && is_alive() {
        return Ok(());
    }
    let _ = std::fs::remove_file(&ready);
    let log = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("vagrant-keeper.log"))
        .map_err(|error| failed(error.to_string()))?;
    let errors = log.try_clone().map_err(|error| failed(error.to_string()))?;
    let mut command = again::this_program_under(&[], "keeper");
    command.env_remove("NEXTEST").stdout(log).stderr(errors).stdin(Stdio::null()).process_group(0);
    let mut keeper = command.spawn().map_err(|error| failed(error.to_string()))?;
    let started = Instant::now();
    while !ready.exists() {
        if let Ok(Some(status)) = keeper.try_wait() {
            let log = std::fs::read_to_string(Path::new(env!("CARGO_TARGET_TMPDIR")).join("vagrant-keeper.log"));
            return Err(failed(format!("the keeper ended with {status}: {}", log.unwrap_or_default())));
        }
        if started.elapsed() > BOOT {
            return Err(failed(format!("the keeper was not ready after {BOOT:?}")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Whether a keeper lives: it holds this lock.
fn is_alive() -> bool {
    flock(lock_file("keeper"), FlockOperation::NonBlockingLockExclusive).is_err()
}

/// The keeper.
pub fn main() -> ExitCode {
    // One that is about to end still has its machines to remove.
    let alive = lock_file("keeper");
    if flock(&alive, FlockOperation::LockExclusive).is_err() {
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    match runtime.block_on(serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{error:?}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<()> {
    let client = world::client(&state());
    let all = tierbox::CleanupOptions { all: true, kept: true };
    client.cleanup(all).await?;
    let mut shared = world::spec(&client, "vagrant-basic", &[]);
    shared.hold = Hold::Until(SystemTime::now() + Duration::from_secs(3600));
    let hold = shared.hold;
    let one = client.start_spec(shared, StartOptions::new().name("shared").hold(hold));
    // At the same time, the first of those that cases start for themselves.
    let other = async { client.start_spec(own_spec(&client), StartOptions::new()).await?.stop().await };
    let (one, other) = tokio::join!(one, other);
    let served = match (one, other) {
        (Ok(_one), Ok(())) => {
            std::fs::write(state().join("shared-is-ready"), "").map_err(|error| Error::io("tell readiness", error))?;
            wait_for_idleness().await;
            Ok(())
        }
        (one, other) => one.map(drop).and(other),
    };
    let _ = std::fs::remove_file(state().join("shared-is-ready"));
    client.cleanup(all).await?;
    served
}

/// Returns when nobody has used the machine for a while.
async fn wait_for_idleness() {
    let mut last_used = Instant::now();
    while last_used.elapsed() < IDLE {
        let in_use = lock_file("in-use");
        if flock(&in_use, FlockOperation::NonBlockingLockExclusive).is_err() {
            last_used = Instant::now();
        }
        drop(in_use);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// An environment of the client's, as the suites want it.
struct Facade {
    id: String,
    machines: Vec<Arc<dyn Sandbox>>,
    report: Report,
    running: tokio::sync::Mutex<Option<Running>>,
    /// While it is locked, the keeper stays.
    _in_use: Option<File>,
}

impl Facade {
    fn of(running: Running, in_use: Option<File>) -> Self {
        Self {
            id: running.id().to_owned(),
            machines: running.machines(),
            report: running.report().clone(),
            running: tokio::sync::Mutex::new(Some(running)),
            _in_use: in_use,
        }
    }
}

#[async_trait]
impl Environment for Facade {
    fn id(&self) -> &str {
        &self.id
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        self.machines.clone()
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn connection(&self, machine: &str) -> Result<Connection> {
        match self.running.try_lock() {
            Ok(running) => running.as_ref().ok_or_else(|| failed("it was stopped"))?.connection(machine),
            Err(_) => Err(failed("it is being stopped")),
        }
    }

    async fn stop(&self) -> Result<()> {
        let mut running = self.running.lock().await;
        match running.take() {
            // The shared one is the keeper's.
            Some(attached) if !attached.is_attached() => Ok(()),
            Some(own) => own.stop().await,
            None => Ok(()),
        }
    }

    async fn ended(&self, limit: Duration) -> bool {
        match self.running.lock().await.as_ref() {
            Some(running) => running.ended(limit).await,
            None => true,
        }
    }
}
