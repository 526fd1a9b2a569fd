//! Scoring: in a fresh sandbox without a network, from the tree that the agent left.

use std::time::Duration;

use tierbox::{ExecRequest, KillReason, Outcome, Result, Sandbox, SandboxExt, StartOptions, Tierbox};
use tokio::io::AsyncReadExt;

use crate::record::Verdict;
use crate::run::{WORK, is_the_agents};
use crate::task::Sample;

/// The most that a tree may take. More is the agent's failure, not the harness's memory.
const MOST_BYTES: u64 = 64 << 20;

/// The time of a scorer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory as it was: a tar stream, which is hostile if the agent had the directory.
pub type Tree = Vec<u8>;

/// Takes a directory out of a sandbox; `None` if it is too large.
///
/// # Errors
/// As [`Sandbox::pack`].
pub async fn export(sandbox: &dyn Sandbox) -> Result<Option<Tree>> {
    let mut tree = Vec::new();
    let reader = sandbox.pack(&WORK.into()).await?;
    let read = reader.take(MOST_BYTES + 1).read_to_end(&mut tree).await;
    read.map_err(|error| tierbox::Error::io("export tree", error))?;
    Ok((tree.len() as u64 <= MOST_BYTES).then_some(tree))
}

/// Puts a tree into a sandbox. The sandbox unpacks it, and refuses what would lead out of it.
///
/// # Errors
/// As [`Sandbox::unpack`].
pub async fn import(sandbox: &dyn Sandbox, tree: &Tree) -> Result<()> {
    sandbox.unpack(&WORK.into(), Box::new(std::io::Cursor::new(tree.clone()))).await
}

/// The same boundary as the profile's, and no network whatever the profile says.
fn sealed(client: &Tierbox, profile: &str) -> Result<StartOptions> {
    let tier = client.load(profile, &StartOptions::new())?.tier();
    // A process on the host has the host's network, so that H0 cannot be sealed.
    let network = if tier.host() == tierbox::HostIsolation::H0 { tier.network() } else { tierbox::Network::N2 };
    let options = StartOptions::new().set("tier", format!("{}.{}.{network}", tier.tooling(), tier.host()));
    Ok(if network == tier.network() { options } else { options.set("network.allow", "[]") })
}

/// Scores a tree.
///
/// # Errors
/// If no sandbox can be had: it then says nothing about the agent.
pub async fn score(client: &Tierbox, profile: &str, sample: &Sample, tree: &Tree) -> Result<Verdict> {
    let running = client.start_with(profile, sealed(client, profile)?).await?;
    let verdict = async {
        if let Err(error) = import(running.sandbox().as_ref(), tree).await {
            // The sandbox is as fresh as all are: what it cannot take in is the tree.
            return match is_the_agents(&error) {
                true => Ok(Verdict::Failed(format!("the tree cannot be taken in: {}", error.message()))),
                false => Err(error),
            };
        }
        let scored = running.run(ExecRequest::shell(sample.scorer).cwd(WORK).timeout(PATIENCE).kill_leftovers()).await?;
        let said: String = scored.stderr.text().trim().chars().take(200).collect();
        Ok(match scored.outcome() {
            Outcome::Exited(0) => Verdict::Right,
            Outcome::Exited(status) if said.is_empty() => Verdict::Wrong(format!("the scorer exited with status {status}")),
            Outcome::Exited(_) => Verdict::Wrong(said),
            Outcome::Killed(KillReason::Timeout) => Verdict::Failed("what it left cannot be scored in time".to_owned()),
            other => Verdict::Invalid(format!("the scorer {other}")),
        })
    }
    .await;
    running.stop().await?;
    verdict
}
