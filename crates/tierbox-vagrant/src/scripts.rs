//! The way in for machines where the supervisor cannot run, or must not: sessions on the kept connection, of one script each, and some
//! that are kept for commands.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tierbox_core::{Capabilities, EnvironmentSpec, Error, ErrorKind, Result};
use tierbox_guest::Line;
use tierbox_guest::plain::kept::{self, Shells, Streams};
use tierbox_guest::plain::{self, PlainConfig, PlainLimits, PlainOutput, PlainRun, PlainSandbox, PlainTransport};

use crate::BACKEND;
use crate::line::{Connected, Joining, Login};
use crate::machines::Machine;
use crate::ssh::Ssh;
use crate::way::Way;

/// What one session carries. A script is one argument of `ssh`, and may grow to four times its length by quoting.
const LIMITS: PlainLimits = PlainLimits { script: 28 << 10, stdin: 8 << 20, output: 8 << 20 };

/// What a machine can do over scripts that could do this over a channel.
pub fn capabilities(over_channel: &Capabilities) -> Capabilities {
    Capabilities {
        multi_machine: over_channel.multi_machine,
        snapshots: over_channel.snapshots,
        ..plain::capabilities(over_channel.host, over_channel.networks.clone(), over_channel.locality)
    }
}

/// Sessions to one machine.
struct Sessions {
    ssh: Arc<Ssh>,
    login: Login,
    kept: Shells,
}

/// Opens sessions that are kept.
struct Opened {
    ssh: Arc<Ssh>,
    login: Login,
}

#[async_trait]
impl kept::Open for Opened {
    async fn open(&self) -> Result<Streams> {
        let (reader, writer, mut child) = self.ssh.session(&format!("exec {}{}", self.login.prefix, kept::COMMAND), true).await?;
        let stderr = child.stderr.take().ok_or_else(crate::ssh::no_streams)?;
        Ok(Streams::new(Line::new(reader, writer).keeping(child), stderr))
    }
}

#[async_trait]
impl PlainTransport for Sessions {
    fn limits(&self) -> PlainLimits {
        LIMITS
    }

    fn shells(&self) -> Option<&Shells> {
        Some(&self.kept)
    }

    async fn run(&self, run: PlainRun) -> Result<PlainOutput> {
        // What keeps the time is inside; this only ends what hangs.
        let limit = run.limit.saturating_add(Duration::from_secs(10));
        let quoted = run.script.replace('\'', "'\\''");
        let line = format!("exec {}/bin/sh -c '{quoted}'", self.login.prefix);
        let done = self.ssh.run(&line, &run.stdin, limit).await?;
        match done.status.and_then(|status| u8::try_from(status).ok()) {
            Some(status) => Ok(PlainOutput { status: status.into(), stdout: done.stdout, stderr: done.stderr }),
            None => Err(Error::new(ErrorKind::Lost, "run script", "the line went away").with_backend(BACKEND)),
        }
    }
}

/// Looks at a machine and makes a sandbox of it. `more` are variables beside the profile's.
///
/// # Errors
/// As [`PlainSandbox::open`].
pub async fn begin(
    machine: &Machine,
    spec: &EnvironmentSpec,
    declared: &Capabilities,
    more: &[(String, String)],
    ssh: Arc<Ssh>,
) -> Result<Connected> {
    let login = Login::ask(&ssh).await?;
    let config = PlainConfig {
        limits: spec.limits.clone(),
        user: login.default_user(spec.user.as_deref()),
        workdir: spec.workdir.clone(),
        env: more
            .iter()
            .map(|(name, value)| (name, value))
            .chain(&spec.env)
            .map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes()))
            .collect(),
        ..PlainConfig::new(&machine.shown, BACKEND, capabilities(declared))
    };
    open(machine, login, config, ssh).await
}

/// Makes a sandbox of a machine that was looked at before.
///
/// # Errors
/// As [`PlainSandbox::open`].
pub async fn open(machine: &Machine, login: Login, config: PlainConfig, ssh: Arc<Ssh>) -> Result<Connected> {
    let agent = login.name.clone();
    let kept = Shells::new(Opened { ssh: ssh.clone(), login: login.clone() });
    let sessions = Arc::new(Sessions { ssh: ssh.clone(), login: login.clone(), kept });
    let sandbox = PlainSandbox::open(sessions, config.clone()).await.map_err(|error| error.with_backend(BACKEND))?;
    let capabilities = tierbox_core::Sandbox::capabilities(&sandbox).clone();
    let joining = Joining { machine: machine.clone(), join: None, agent, capabilities };
    Ok(Connected::over_scripts(Way::Plain(Arc::new(sandbox)), ssh, joining, login, config))
}
