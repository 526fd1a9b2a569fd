//! What compose services run beside the commands of the harness.

use std::time::{Duration, Instant};

use tierbox_core::{Error, ErrorKind, ExecId, ExecRequest, ExecState, Outcome, Result, Sandbox, SandboxExt};
use tokio::io::AsyncReadExt;

use crate::BACKEND;
use crate::image::Image;
use crate::plan::{Condition, Health, MachinePlan, Service};

/// The longest pause between two looks at a service that starts.
const PAUSE: Duration = Duration::from_millis(200);

/// The shortest.
const BREATH: Duration = Duration::from_millis(10);

/// How much of a service's last words goes into an error.
const LAST_WORDS: u64 = 2000;

/// A service that was started.
#[derive(Debug, Clone)]
pub struct Running {
    name: String,
    exec: Option<ExecId>,
    /// How it is known to be well.
    health: Option<Health>,
    /// Whether the compose file says so itself, not the image.
    is_said: bool,
}

/// What a service runs: its own entrypoint and command, or the image's. A new entrypoint leaves the image's command out.
fn argv(service: &Service, image: &Image) -> Vec<String> {
    let (entrypoint, default) = match &service.entrypoint {
        Some(own) => (own.clone(), Vec::new()),
        None => (image.entrypoint.clone(), image.command.clone()),
    };
    entrypoint.into_iter().chain(service.command.clone().unwrap_or(default)).collect()
}

/// Starts what a machine runs as a service, if anything.
///
/// # Errors
/// What the launch says.
pub async fn start(sandbox: &dyn Sandbox, machine: &MachinePlan, image: &Image) -> Result<Option<Running>> {
    let Some(service) = &machine.service else { return Ok(None) };
    let argv = argv(service, image);
    // It serves for as long as there is the machine: `limits.exec` is for commands.
    let request = || ExecRequest::new(argv.clone()).timeout(Duration::MAX);
    let exec = if argv.is_empty() { None } else { Some(sandbox.spawn_detached(request()).await?) };
    // What the file says counts in place of the image's own, also that there is to be none.
    let health = service.health.as_ref().or(image.health.as_ref()).filter(|health| health.test.is_some());
    Ok(Some(Running { name: machine.name.clone(), exec, health: health.cloned(), is_said: service.health.is_some() }))
}

impl Running {
    /// Waits until a condition holds.
    ///
    /// # Errors
    /// `HostUnable` with the service's last words if it can no longer hold; `InvalidProfile` for the health of what has no check.
    pub async fn reach(&self, sandbox: &dyn Sandbox, condition: Condition) -> Result<()> {
        match condition {
            Condition::Started => Ok(()),
            Condition::Healthy => match &self.health {
                Some(health) => self.passes(sandbox, health).await,
                None => Err(self.unchecked()),
            },
            Condition::Completed => self.completed(sandbox).await,
        }
    }

    /// Waits until the service is well; one without a health check in its file is well while it has not failed. An image's own check
    /// is for those who wait for it: it is of the image's command, and another may run here.
    ///
    /// # Errors
    /// As [`reach`](Self::reach).
    pub async fn healthy(&self, sandbox: &dyn Sandbox) -> Result<()> {
        match self.health.as_ref().filter(|_| self.is_said) {
            Some(health) => self.passes(sandbox, health).await,
            None => self.not_failed(sandbox).await,
        }
    }

    async fn passes(&self, sandbox: &dyn Sandbox, health: &Health) -> Result<()> {
        let test = health.test.clone().unwrap_or_default();
        let round = health.interval.saturating_add(health.timeout);
        let grace = health.start_period.saturating_add(round.saturating_mul(health.retries.max(1)));
        let start = Instant::now();
        loop {
            let request = ExecRequest::new(test.clone()).timeout(health.timeout);
            let result = sandbox.run(request).await?;
            if result.success() {
                return Ok(());
            }
            self.not_failed(sandbox).await?;
            if start.elapsed() > grace {
                let said = format!("{}{}", result.stdout.text(), result.stderr.text());
                let why = format!("its health check still fails after {grace:?}: {}", last(&said));
                return Err(self.failed(sandbox, &why).await);
            }
            tokio::time::sleep(health.interval.clamp(BREATH, PAUSE)).await;
        }
    }

    fn unchecked(&self) -> Error {
        let why = format!("another waits for the health of the service {}, and neither it nor its image has a check", self.name);
        Error::new(ErrorKind::InvalidProfile, "start the services", why)
            .with_backend(BACKEND)
            .with_help("give it a `healthcheck`, or wait for `service_started`")
    }

    async fn not_failed(&self, sandbox: &dyn Sandbox) -> Result<()> {
        let Some(id) = self.exec else { return Ok(()) };
        let found = sandbox.execs().await?.into_iter().find(|exec| exec.id == id);
        match found.map(|exec| exec.state) {
            Some(ExecState::Ended(end)) if end.outcome != Outcome::Exited(0) => {
                Err(self.failed(sandbox, &format!("it ended: {:?}", end.outcome)).await)
            }
            _ => Ok(()),
        }
    }

    async fn completed(&self, sandbox: &dyn Sandbox) -> Result<()> {
        let Some(id) = self.exec else { return Ok(()) };
        match sandbox.wait(id).await?.outcome {
            Outcome::Exited(0) => Ok(()),
            other => Err(self.failed(sandbox, &format!("it ended: {other:?}")).await),
        }
    }

    async fn failed(&self, sandbox: &dyn Sandbox, why: &str) -> Error {
        let words = match self.exec {
            Some(id) => last_words(sandbox, id).await,
            None => String::new(),
        };
        Error::new(ErrorKind::HostUnable, "start the services", format!("service {}: {why}\nits last words: {words}", self.name))
            .with_backend(BACKEND)
            .with_help("see that it runs as this user, with this root and without a network (docker.read-only, `user`)")
    }
}

async fn last_words(sandbox: &dyn Sandbox, id: ExecId) -> String {
    let Ok(mut handle) = sandbox.attach(id, 0, 0).await else { return String::new() };
    let mut said = Vec::new();
    for stream in [handle.take_stdout(), handle.take_stderr()].into_iter().flatten() {
        // What is held of an ended service is there at once; a living one is not waited for.
        let _ = tokio::time::timeout(PAUSE, stream.take(1 << 20).read_to_end(&mut said)).await;
    }
    last(&String::from_utf8_lossy(&said))
}

fn last(text: &str) -> String {
    let from = text.char_indices().rev().nth(LAST_WORDS as usize).map_or(0, |(at, _)| at);
    text[from..]
        .chars()
        .map(|char| if char.is_control() && char != '\n' { ' ' } else { char })
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn commands_and_entrypoints_combine_as_people_know_it() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let image = Image { entrypoint: words(&["e"]), command: words(&["c"]), ..Image::default() };
        let service = |entrypoint: Option<&[&str]>, command: Option<&[&str]>| Service {
            entrypoint: entrypoint.map(words),
            command: command.map(words),
            ..Service::default()
        };
        assert_eq!(argv(&service(None, None), &image), ["e", "c"]);
        assert_eq!(argv(&service(None, Some(&["x"])), &image), ["e", "x"]);
        assert_eq!(argv(&service(Some(&["y"]), None), &image), ["y"]);
        assert_eq!(argv(&service(Some(&["y"]), Some(&["x"])), &image), ["y", "x"]);
    }
}
