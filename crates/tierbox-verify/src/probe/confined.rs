//! Whether a machine's kernel keeps a command to the files that it may execute.

use tierbox_core::{ErrorKind, ExecRequest, GuestPath, NotStartedCause, Outcome, Result, Sandbox, SandboxExt};

use super::run::{PATIENCE, parse, put};
use super::{ControlResult, ProbeResult, ProbeStatus};

const ID: &str = "t.kernel";
const RULE: &str = "The kernel refuses a named program that starts another";

/// Starts the probe program, as one of the named ones, and has it start another: a copy of itself, which is a program beyond doubt. The
/// control is the same without the restriction. `named` are the files that the agent's commands may execute.
///
/// # Errors
/// If it cannot be carried out at all.
pub async fn verify_confined(sandbox: &dyn Sandbox, program: &'static [u8], named: &[GuestPath]) -> Result<ProbeResult> {
    if !sandbox.capabilities().confined_exec {
        return Ok(unconfined("this machine is not served by a supervisor that confines commands"));
    }
    let nonce = super::canary::nonce().map_err(|error| tierbox_core::Error::io("verify", error))?;
    let (first, second) = (put(sandbox, program, &format!("tierbox-probe-{nonce}")).await?, format!("tierbox-other-{nonce}"));
    let other = put(sandbox, program, &second).await;
    let found = match &other {
        Ok(other) => tried(sandbox, &first, other, named).await,
        Err(error) => Err(tierbox_core::Error::new(error.kind(), "verify", error.message().to_owned())),
    };
    for path in [Some(&first), other.as_ref().ok()].into_iter().flatten() {
        let _ = sandbox.remove(&GuestPath::from(path.as_str()), false).await;
    }
    found
}

async fn tried(sandbox: &dyn Sandbox, first: &str, other: &str, named: &[GuestPath]) -> Result<ProbeResult> {
    const SELF: &str = "link:/proc/self/exe";
    let exec = format!("exec:{other}");
    // In order, as answers are looked up.
    let requests = [exec.clone(), SELF.to_owned()];
    let ask =
        |path: &str| ExecRequest::new([path, "probe"].into_iter().chain(requests.iter().map(String::as_str))).timeout(PATIENCE);
    let free = sandbox.run(ask(first)).await?;
    let answers = parse(&free.stdout.text(), &requests);
    let (Some((true, path)), Some((is_free, how))) = (answers.get(SELF), answers.get(&exec)) else {
        return Ok(result(ProbeStatus::Inconclusive, format!("the probe program {}", free.outcome()), None));
    };
    let control = ControlResult { lifted: "kernel's restriction".to_owned(), found: *is_free, detail: how.clone() };
    let may = named.iter().cloned().chain([GuestPath::from(path.as_str())]);
    let held = match sandbox.run(ask(path).confine(may)).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(unconfined(error.message())),
        held => held?,
    };
    if let Outcome::NotStarted { cause: NotStartedCause::Unconfined, .. } = held.outcome() {
        return Ok(unconfined("its kernel has no Landlock"));
    }
    let (status, detail) = match parse(&held.stdout.text(), &requests).get(&exec) {
        Some((true, how)) => (ProbeStatus::Fail, format!("it started {other}: {how}")),
        Some((false, why)) if *is_free => (ProbeStatus::Pass, why.clone()),
        Some((false, why)) => (ProbeStatus::Inconclusive, why.clone()),
        None => (ProbeStatus::Inconclusive, format!("the probe program {}", held.outcome())),
    };
    Ok(result(status, detail, Some(control)))
}

/// The probe of a machine in which the agent's handle refuses every program, since commands cannot be kept to the named ones: it shows
/// nothing, and nothing can be done there.
pub fn unconfined(why: &str) -> ProbeResult {
    result(ProbeStatus::Inconclusive, format!("{why}; the agent's handle refuses every program"), None)
}

fn result(status: ProbeStatus, detail: String, control: Option<ControlResult>) -> ProbeResult {
    ProbeResult { id: ID.to_owned(), machine: None, rule: RULE.to_owned(), status, detail, control }
}
