//! What this host has for Vagrant.

use std::process::Stdio;
use std::time::Duration;

use tierbox_core::{Check, CheckStatus};
use tokio::process::Command;

use crate::libvirt::virsh;
use crate::provider::{Provider, find_program};

/// How long Vagrant may take to list its plugins.
const PATIENCE: Duration = Duration::from_secs(30);

fn check(name: &str, status: CheckStatus, detail: impl Into<String>, remedy: &str) -> Check {
    Check { name: name.to_owned(), status, detail: detail.into(), remedy: remedy.to_owned() }
}

/// All checks.
pub async fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    let Some(vagrant) = find_program("vagrant") else {
        return vec![check(
            "vagrant",
            CheckStatus::Fail,
            "not installed",
            "install Vagrant, or its package of your distribution",
        )];
    };
    checks.push(check("vagrant", CheckStatus::Ok, vagrant.display().to_string(), ""));
    checks.push(match find_program("ssh") {
        Some(path) => check("ssh", CheckStatus::Ok, path.display().to_string(), ""),
        None => check("ssh", CheckStatus::Fail, "not installed", "install OpenSSH's client (openssh-client)"),
    });
    checks.push(plugins().await);
    checks.push(provider());
    if find_program("virsh").is_some() {
        checks.push(match virsh(&["version"]).await {
            Ok(_) => check("libvirt", CheckStatus::Ok, "answers", ""),
            Err(error) => check("libvirt", CheckStatus::Warn, error.message(), "start libvirtd, and join the group libvirt"),
        });
        let libvirt = Provider::new("libvirt").ok();
        checks.push(match libvirt.and_then(|libvirt| libvirt.lacks_for_closing()) {
            None => check("N1 and N2 on libvirt", CheckStatus::Ok, "isolated networks with rules of nftables", ""),
            Some(why) => check("N1 and N2 on libvirt", CheckStatus::Warn, why, "run as root, with nftables installed"),
        });
    }
    checks
}

fn provider() -> Check {
    match std::env::var("VAGRANT_DEFAULT_PROVIDER").ok().filter(|name| !name.is_empty()) {
        None => check("provider", CheckStatus::Ok, "the profile must name one (vagrant.provider)", ""),
        Some(name) => match Provider::new(&name) {
            Ok(provider) => check("provider", CheckStatus::Ok, format!("{name} gives {}", provider.isolation()), ""),
            Err(error) => check("provider", CheckStatus::Warn, error.message(), "name a known one in the profile"),
        },
    }
}

async fn plugins() -> Check {
    let mut command = Command::new("vagrant");
    command.args(["plugin", "list"]).env("VAGRANT_CHECKPOINT_DISABLE", "1").stdin(Stdio::null()).kill_on_drop(true);
    let listed = tokio::time::timeout(PATIENCE, command.output()).await;
    match listed {
        Ok(Ok(output)) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let names: Vec<&str> =
                text.lines().filter_map(|line| line.split(' ').next()).filter(|name| name.contains("vagrant")).collect();
            let detail =
                if names.is_empty() { "none: VirtualBox, Docker and Hyper-V need none".to_owned() } else { names.join(", ") };
            check("plugins", CheckStatus::Ok, detail, "")
        }
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).lines().next_back().unwrap_or_default().to_owned();
            check("plugins", CheckStatus::Fail, crate::record::shown(&said), "run `vagrant plugin list`")
        }
        Ok(Err(error)) => check("plugins", CheckStatus::Fail, error.to_string(), "run `vagrant plugin list`"),
        Err(_) => check("plugins", CheckStatus::Fail, "vagrant does not answer", "run `vagrant plugin list`"),
    }
}
