//! What this machine can enforce, why not, and what to install or change.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tierbox_core::{
    Applied, Check, CheckStatus, EnvironmentSpec, Error, ErrorKind, HostIsolation, Network, Result, Tier, Tooling,
};
use tierbox_guest::Ready;

use crate::plan::cgroups::{CONTROLLERS, Cgroups};
use crate::plan::users::{Ids, SUBID_HELP};
use crate::plan::{self, cgroups, network};
use crate::settings::NetworkHelper;
use crate::{BACKEND, launcher, machine, refusal, spawn};

/// How long the trial container may take.
const TRIAL: Duration = Duration::from_secs(10);

/// Every check, in the order in which they build on each other.
pub async fn checks() -> Vec<Check> {
    let mut checks = vec![kernel(), memory_files()];
    checks.extend(trial().await);
    checks.extend([cgroup_kind(), subordinate_ids(), network_helper()]);
    checks.extend(apparmor());
    checks
}

fn ok(name: &str, detail: impl Into<String>) -> Check {
    Check { name: name.to_owned(), status: CheckStatus::Ok, detail: detail.into(), remedy: String::new() }
}

fn warn(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { status: CheckStatus::Warn, remedy: remedy.into(), ..ok(name, detail) }
}

fn fail(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { status: CheckStatus::Fail, ..warn(name, detail, remedy) }
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    // mount_setattr, with which every mount gets its attributes before anybody sees it.
    match (cgroups::at_least(&release, 5, 12), cgroups::at_least(&release, 5, 14)) {
        (false, _) => fail("kernel", format!("Linux {release}"), "use Linux 5.12 or newer"),
        (_, false) => {
            warn("kernel", format!("Linux {release}"), "Linux 5.14 kills a command's whole tree in one step (cgroup.kill)")
        }
        _ => ok("kernel", format!("Linux {release}")),
    }
}

fn memory_files() -> Check {
    match spawn::program() {
        Ok(program) => ok("supervisor", format!("runs from a {}", program.describe())),
        Err(error) => failed("supervisor", &error),
    }
}

fn failed(name: &str, error: &Error) -> Check {
    fail(name, error.message(), error.help().unwrap_or_default())
}

/// Starts the smallest container: the only proof that user map, mounts and loopback work here.
async fn trial() -> Vec<Check> {
    match run_trial().await {
        Ok(ready) => {
            let mut checks = vec![ok("containers", enforced(&ready))];
            checks.extend(weaker(&ready));
            checks
        }
        Err(error) => vec![failed("containers", &error)],
    }
}

fn enforced(ready: &Ready) -> String {
    let names = ready.mechanisms.iter().filter(|mechanism| mechanism.applied == Applied::Enforced);
    names.map(|mechanism| mechanism.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn weaker(ready: &Ready) -> impl Iterator<Item = Check> + '_ {
    ready.mechanisms.iter().filter(|mechanism| mechanism.applied != Applied::Enforced).map(|mechanism| {
        let how = if mechanism.applied == Applied::Absent { "not in force" } else { "in a weaker form" };
        let detail = if mechanism.detail.is_empty() { how.to_owned() } else { format!("{how}: {}", mechanism.detail) };
        let remedy = if mechanism.name == "landlock" {
            "a kernel with Landlock in its list of security modules (lsm=landlock,…)"
        } else {
            ""
        };
        warn(&mechanism.name, detail, remedy)
    })
}

async fn run_trial() -> Result<Ready> {
    let id = format!("doctor-{}", std::process::id());
    // Without cgroups: what they can do is checked by itself.
    let plan = plan::plan(&trial_spec()?, &id, &Cgroups::default(), || {
        Err(Error::new(ErrorKind::Internal, "try a container", "it needs no directory on the host"))
    })?;
    let machine = machine::launch(spawn::keeper(None, false)?, &plan.setup, None, TRIAL).await?;
    machine.channel.shutdown();
    machine.keeper.kill_after(TRIAL);
    machine.keeper.ended().await;
    Ok(machine.ready)
}

fn trial_spec() -> Result<EnvironmentSpec> {
    Ok(EnvironmentSpec::new(BACKEND, Tier::new(Tooling::T0, HostIsolation::H1, Network::N2)?))
}

fn cgroup_kind() -> Check {
    let found = Cgroups::of_this_host();
    let chosen = found.choose(&CONTROLLERS);
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| chosen.enforcer(name).is_none()).collect();
    if missing.is_empty() {
        return ok("cgroups", chosen.summary(&CONTROLLERS));
    }
    let able = chosen.summary(&CONTROLLERS);
    let why = if found.missing.is_empty() { found.summary() } else { found.missing.join("; ") };
    warn(
        "cgroups",
        format!("{able}; not limited for a whole sandbox: {} ({why})", missing.join(", ")),
        "run as root, or as a user of a systemd session (its scopes are asked for by themselves), or under \
         `systemd-run --user --scope -p Delegate=yes`",
    )
}

fn subordinate_ids() -> Check {
    let ids = Ids::read();
    match (&ids.helper, ids.can_map) {
        (_, true) => ok("users", "this process can map any ids"),
        (Ok(helper), _) => ok("users", format!("{} subordinate ids from {}", helper.uids.count, helper.uids.first)),
        (Err(why), _) => warn("users", format!("only the agent exists in containers: {why}"), SUBID_HELP),
    }
}

fn network_helper() -> Check {
    match (network::find_helper(NetworkHelper::Auto, [10, 0, 2]), network::device_cause()) {
        (Ok(helper), Some(cause)) => {
            let detail = format!("{} needs /dev/net/tun, and {}", helper.name(), cause.what());
            warn("network N0", detail, cause.remedy())
        }
        (Ok(helper), None) => ok("network N0", format!("{} at {}", helper.name(), helper.path.display())),
        (Err(error), _) => warn("network N0", error.message(), error.help().unwrap_or_default()),
    }
}

fn apparmor() -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some((what, remedy)) = refusal::standing_cause() {
        checks.push(warn("host policy", what, remedy));
    }
    if Path::new("/sys/kernel/security/apparmor").exists() || fs::exists(launcher::LAUNCHER).unwrap_or(false) {
        checks.push(match launcher::find() {
            Ok(path) => ok("launcher", path.display().to_string()),
            Err(why) if refusal::apparmor_restricts() => fail("launcher", why, "sudo tierbox doctor --install"),
            Err(why) => warn("launcher", why, "sudo tierbox doctor --install, if containers are refused above"),
        });
    }
    checks
}
