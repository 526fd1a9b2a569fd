//! The twin without any isolation: the supervisor as a process of this host's, beside which verification shows that its probes
//! would find what a container must not see.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{
    Capabilities, Connection, Environment, Error, ErrorKind, HostIsolation, KillDomain, LeaseHandle, Lifted, Limits, Locality,
    Report, Result, Sandbox, Tier, Tooling,
};
use tierbox_guest::{Channel, GuestSandbox, SetupReply, supervisor};
use tierbox_supervisor::setup::{Agent, Mode, Setup};
use tierbox_supervisor::wire::Blob;

use crate::BACKEND;
use crate::environment::sandbox;
use crate::plan::DEFAULT_MACHINE;

/// How long it may take to say that it is ready.
const READY: Duration = Duration::from_secs(20);

/// A process of this host's, and what ends it.
pub struct Beside {
    id: String,
    channel: Channel,
    sandbox: Arc<GuestSandbox>,
    report: Report,
}

impl Beside {
    /// Starts it. It ends with this process, and leaves nothing.
    ///
    /// # Errors
    /// `HostUnable` if the program cannot be started here.
    pub async fn start(lease: &dyn LeaseHandle) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::HostUnable, "start twin", format!("the supervisor cannot be started here: {error}"))
                .with_backend(BACKEND)
        };
        let directory = lease.directory()?;
        let program = supervisor::memory_file().map_err(failed)?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program));
        let mut command = Command::new(path);
        command.env_clear().current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed)?;
        drop(program);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        std::thread::spawn(move || child.wait());
        let (Some(stdin), Some(stdout)) = (stdin, stdout) else { return Err(failed(std::io::ErrorKind::BrokenPipe.into())) };
        let writer = tokio::net::unix::pipe::Sender::from_owned_fd(stdin.into()).map_err(failed)?;
        let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(stdout.into()).map_err(failed)?;
        let channel = Channel::stream(Box::new(reader), Box::new(writer))?;
        let place = Blob::from(directory.as_os_str().as_encoded_bytes());
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let agent = Agent { name: "twin".to_owned(), uid, gid, home: place.clone() };
        let SetupReply::Ready(_) = channel.setup(&Setup::new(Mode::Guest, lease.id(), agent, place), READY).await? else {
            return Err(failed(std::io::Error::other("it refuses")));
        };
        channel.hello(Duration::ZERO)?;
        let capabilities = Capabilities {
            kill_domain: KillDomain::Subreaper,
            ..tierbox_guest::capabilities(HostIsolation::H0, Locality::Local)
        };
        let sandbox = sandbox(channel.clone(), DEFAULT_MACHINE, "twin", capabilities, &Limits::default());
        Ok(Self { id: lease.id().to_owned(), channel, sandbox, report: report()? })
    }
}

fn report() -> Result<Report> {
    let tier = Tier::new(Tooling::T0, HostIsolation::H0, tierbox_core::Network::N0)?;
    let notes = vec![format!("a twin without its {}", Lifted::Isolation.name())];
    Ok(Report { notes, ..Report::bare(BACKEND, tier, Locality::Local, KillDomain::Subreaper) })
}

#[async_trait]
impl Environment for Beside {
    fn id(&self) -> &str {
        &self.id
    }

    fn machines(&self) -> Vec<Arc<dyn Sandbox>> {
        vec![self.sandbox.clone()]
    }

    fn report(&self) -> &Report {
        &self.report
    }

    fn connection(&self, _: &str) -> Result<Connection> {
        Err(Error::unsupported("connect", "a twin").with_backend(BACKEND))
    }

    async fn stop(&self) -> Result<()> {
        self.channel.shutdown();
        // Whatever it still does ends with its line.
        let _ = tokio::time::timeout(READY, self.channel.closed()).await;
        self.channel.close();
        Ok(())
    }

    async fn ended(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.channel.closed()).await.is_ok()
    }
}
