//! Whether an engine is here, may be used, and can enforce what profiles ask for.

use bollard::models::SystemInfo;
use tierbox_core::{Check, CheckStatus};

use crate::engine::{self, Engine};
use crate::settings::Settings;

fn check(name: &str, status: CheckStatus, detail: impl Into<String>, remedy: &str) -> Check {
    Check { name: name.to_owned(), status, detail: detail.into(), remedy: remedy.to_owned() }
}

/// Every check, in the order in which they build on each other.
pub async fn checks() -> Vec<Check> {
    let socket = match engine::locate(&Settings::default()) {
        Ok(socket) => socket,
        Err(error) => return vec![check("docker engine", CheckStatus::Fail, error.message(), error.help().unwrap_or_default())],
    };
    let engine = match Engine::connect(&socket).await {
        Ok(engine) => engine,
        Err(error) => return vec![check("docker engine", CheckStatus::Fail, error.message(), error.help().unwrap_or_default())],
    };
    let info = match engine.docker.info().await {
        Ok(info) => info,
        Err(error) => {
            let error = engine::failed("ask the engine", &error);
            return vec![check("docker engine", CheckStatus::Fail, error.message(), error.help().unwrap_or_default())];
        }
    };
    let version = info.server_version.clone().unwrap_or_default();
    let at = format!("{} at {}", engine::bounded(&version), socket.display());
    vec![check("docker engine", CheckStatus::Ok, at, ""), seccomp(&info), limits(&info), users(&info)]
}

fn has(info: &SystemInfo, option: &str) -> bool {
    info.security_options.iter().flatten().any(|found| found.contains(option))
}

fn seccomp(info: &SystemInfo) -> Check {
    if has(info, "seccomp") {
        return check("docker seccomp", CheckStatus::Ok, "the engine filters system calls", "");
    }
    let remedy = "start the daemon with its default seccomp profile; without it H1 is refused";
    check("docker seccomp", CheckStatus::Fail, "the engine filters no system calls", remedy)
}

fn limits(info: &SystemInfo) -> Check {
    let named = [("memory", info.memory_limit), ("cpu", info.cpu_cfs_quota), ("pids", info.pids_limit)];
    let missing: Vec<&str> = named.iter().filter(|(_, can)| *can == Some(false)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return check("docker limits", CheckStatus::Ok, "memory, cpu and pids can be limited", "");
    }
    let detail = format!("the engine cannot limit {}", missing.join(", "));
    check("docker limits", CheckStatus::Warn, detail, "give the engine these cgroup controllers (rootless: delegate them)")
}

fn users(info: &SystemInfo) -> Check {
    if has(info, "userns") || has(info, "rootless") {
        return check("docker users", CheckStatus::Ok, "containers have a user namespace of their own", "");
    }
    let remedy = "userns-remap or a rootless engine keeps root inside from being root on this host";
    check("docker users", CheckStatus::Warn, "root inside a container is root on this host, with few capabilities", remedy)
}
