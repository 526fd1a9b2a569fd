//! Removes an environment, whatever state it is in and whoever began it.

use std::path::Path;
use std::time::Duration;

use tierbox_core::{DestroyReport, LeaseRecord, Result};

use crate::libvirt::{self, tool};
use crate::place::{Place, Source, prefix};
use crate::program::run;
use crate::provider::find_program;
use crate::start::Memory;
use crate::{crash, groups, index, isolation};

/// How long `vagrant destroy` may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Removes everything that a lease names. What could not be removed is in the report.
pub async fn lease(lease: &LeaseRecord) -> DestroyReport {
    match Memory::of(lease) {
        Some(memory) => place(&memory.place).await,
        // The lease is written before anything is begun.
        None => DestroyReport::default(),
    }
}

/// Removes everything of a place.
pub async fn place(place: &Place) -> DestroyReport {
    let mut report = DestroyReport::default();
    if groups::end(place).await {
        report.removed.push("a running vagrant".to_owned());
    }
    let manual =
        format!("cd {} && VAGRANT_DOTFILE_PATH={} vagrant destroy -f", place.directory.display(), place.dotfile().display());
    let mut why = String::new();
    if has_machines(place) {
        match vagrant_destroy(place).await {
            Ok(()) => report.removed.push("machines of Vagrant".to_owned()),
            // What it could not do may be done without it; if not, that is said.
            Err(error) => {
                tracing::warn!(target: "tierbox::vagrant", token = place.token, "{}", error.message());
                why = format!(": {}", error.message());
            }
        }
    }
    crash::point("destroy");
    sweep(place, &mut report).await;
    if has_machines(place) && !has_sweep(place) {
        report.failed.push(format!("machines of {}{why}", place.directory.display()));
        report.manual.push(manual);
    } else if let Err(error) = index::forget(place) {
        report.failed.push(format!("rows of vagrant global-status: {}", error.message()));
    }
    if report.failed.is_empty() {
        remove_directory(&place.directory, &mut report);
    }
    report
}

/// Whether Vagrant remembers machines there.
fn has_machines(place: &Place) -> bool {
    let machines = std::fs::read_dir(place.dotfile().join("machines")).into_iter().flatten().flatten();
    machines.into_iter().any(|machine| {
        let providers = std::fs::read_dir(machine.path()).into_iter().flatten().flatten();
        providers.into_iter().any(|provider| provider.path().join("id").is_file())
    })
}

/// Whether what is left of machines can be removed without Vagrant.
fn has_sweep(place: &Place) -> bool {
    match place.provider.as_str() {
        "libvirt" => find_program("virsh").is_some(),
        "lxc" => find_program("lxc-ls").is_some(),
        _ => false,
    }
}

async fn vagrant_destroy(place: &Place) -> Result<()> {
    let arguments = ["destroy", "--force"];
    if place.vagrantfile.is_file()
        && run(place, Source::Own, &arguments, PATIENCE, &mut |_| None).await.is_ok()
        && !has_machines(place)
    {
        return Ok(());
    }
    run(place, Source::Gone, &arguments, PATIENCE, &mut |_| None).await.map(drop)
}

async fn sweep(place: &Place, report: &mut DestroyReport) {
    let mut note = |what: &str, done: Result<Vec<String>>| match done {
        Ok(removed) => report.removed.extend(removed),
        Err(error) => report.failed.push(format!("{what}: {}", error.message())),
    };
    if place.provider == "libvirt" && has_sweep(place) {
        note("libvirt", libvirt::sweep(&prefix(&place.token)).await);
    }
    if place.provider == "lxc" && has_sweep(place) {
        note("lxc", sweep_containers(&place.prefix()).await);
    }
    // Only when nothing is left on the bridges may the rules go.
    if place.isolated.is_some() && report.failed.is_empty() {
        match isolation::remove_rules(&place.token).await {
            Ok(true) => report.removed.push(format!("rules {}", isolation::table(&place.token))),
            Ok(false) => {}
            Err(error) => report.failed.push(format!("rules: {}", error.message())),
        }
    }
}

async fn sweep_containers(prefix: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in tool("lxc-ls", &["-1"], b"").await?.split_whitespace().filter(|name| name.starts_with(prefix)) {
        tool("lxc-destroy", &["--force", "--name", name], b"").await?;
        removed.push(format!("container {name}"));
    }
    Ok(removed)
}

fn remove_directory(path: &Path, report: &mut DestroyReport) {
    match tierbox_lease::remove_tree(path) {
        Ok(()) => report.removed.push(path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            report.failed.push(format!("{}: {error}", path.display()));
            report.manual.push(format!("rm -r {}", path.display()));
        }
    }
}
