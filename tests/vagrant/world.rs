//! What the tests of whole environments have in common.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tierbox::{EnvironmentSpec, Hold, Registry, StartOptions, Tierbox};
use tierbox_testkit::Absence;

/// What a test comes to.
pub type Outcome = Result<(), String>;

/// Anything that goes wrong, as text.
pub fn text(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

/// Why there is no Vagrant with this provider, if so.
pub fn absent(provider: &str) -> Option<Absence> {
    let there = std::env::var("TIERBOX_TEST_VAGRANT").unwrap_or_default();
    if there.split(',').any(|name| name == provider) {
        return None;
    }
    Some(Absence {
        reason: format!("TIERBOX_TEST_VAGRANT does not name {provider}: tests/engines/vagrant.sh was not started"),
        install: "cargo xtask test --engine vagrant".to_owned(),
    })
}

/// A test that needs a provider.
pub fn trial<F>(provider: &'static str, name: &str, test: fn(World) -> F) -> Trial
where
    F: Future<Output = Outcome> + Send + 'static,
{
    let absent = absent(provider);
    let name = name.to_owned();
    let own = name.clone();
    let ignored = absent.is_some() && std::env::var_os("CI").is_none_or(|value| value.is_empty());
    let run = move || {
        if let Some(absence) = absent {
            return crate::support::skip("vagrant", &own, &absence).map_err(Into::into);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(text)?;
        let world = World::new();
        let outcome = runtime.block_on(async {
            match tokio::time::timeout(Duration::from_secs(600), test(world.clone())).await {
                Ok(outcome) => outcome,
                Err(_) => Err("it did not end within 10 minutes".to_owned()),
            }
        });
        runtime.block_on(world.end());
        outcome.map_err(Into::into)
    };
    Trial::test(name, run).with_kind(if ignored { "engine absent" } else { "" }).with_ignored_flag(ignored)
}

/// A state directory of a test's own, and a client of it.
#[derive(Clone)]
pub struct World {
    /// The client.
    pub client: Tierbox,
    /// Its state directory.
    pub state: PathBuf,
    /// A directory for files, which profiles may name.
    pub files: PathBuf,
}

impl World {
    fn new() -> Self {
        let directory = || tempfile::Builder::new().prefix("tierbox-vagrant-").tempdir().expect("a directory").keep();
        let state = directory();
        Self { client: client(&state), state, files: directory() }
    }

    /// A ready profile with changes.
    pub fn spec(&self, profile: &str, changes: &[(&str, &str)]) -> EnvironmentSpec {
        spec(&self.client, profile, changes)
    }

    /// Starts a ready profile with changes.
    pub async fn start(&self, profile: &str, changes: &[(&str, &str)]) -> tierbox::Result<tierbox::Running> {
        self.client.start_with(profile, options(changes)).await
    }

    /// Removes whatever a failed test left.
    async fn end(&self) {
        let all = tierbox::CleanupOptions { all: true, kept: true };
        let _ = self.client.cleanup(all).await;
        let _ = std::fs::remove_dir_all(&self.state);
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

/// A client of a state directory that takes nothing from whoever runs the tests.
pub fn client(state: &Path) -> Tierbox {
    Tierbox::builder().profile_dir(profiles()).state_dir(state).user_config(false).build().expect("the facade")
}

fn profiles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../profiles")
}

/// What a profile for LXC would say.
pub const LXC: [(&str, &str); 3] = [("tier", "T0.H0.N0"), ("vagrant.provider", "lxc"), ("reason", "a test")];

/// A ready profile with changes; `lxc-test` is the one of one machine on LXC.
pub fn spec(client: &Tierbox, profile: &str, changes: &[(&str, &str)]) -> EnvironmentSpec {
    let (profile, changes) = if profile == "lxc-test" { ("vagrant-basic", LXC.as_slice()) } else { (profile, changes) };
    let profile = client.load(profile, &options(changes)).expect("a ready profile");
    profile.spec(&Registry::linked(), Hold::Process).expect("a ready profile's specification")
}

fn options(changes: &[(&str, &str)]) -> StartOptions {
    changes.iter().fold(StartOptions::new().allow_weaker(), |options, (key, value)| options.set(*key, *value))
}

/// Waits until a condition holds.
pub async fn until<F, R>(what: &str, limit: Duration, mut ask: F) -> Outcome
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let started = Instant::now();
    while !ask().await {
        if started.elapsed() > limit {
            return Err(format!("after {limit:?}, still not: {what}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// What a command of this host prints, or nothing if it fails.
pub fn printed(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).stdin(std::process::Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// What Vagrant's own list of machines holds, in many lines.
pub fn rows() -> String {
    let index = std::env::var_os("VAGRANT_HOME").map(|home| Path::new(&home).join("data/machine-index/index"));
    index.and_then(|index| std::fs::read_to_string(index).ok()).unwrap_or_default().replace(',', "\n")
}

/// Everything on this host that bears a token: domains, volumes, networks, containers, rules, rows of Vagrant's index.
pub fn remains(token: &str) -> Vec<String> {
    let uri = ["-q", "-c", "qemu:///system"];
    let virsh = |words: &[&str]| printed("virsh", &[uri.as_slice(), words].concat());
    let places = [
        virsh(&["list", "--all", "--name"]),
        virsh(&["net-list", "--all", "--name"]),
        virsh(&["vol-list", "default"]),
        printed("lxc-ls", &["-1"]),
        printed("nft", &["list", "tables"]),
        printed("ip", &["-o", "link"]),
        rows(),
        printed("ps", &["-eo", "args"]).lines().filter(|line| line.contains("qemu")).collect::<Vec<_>>().join("\n"),
    ];
    places.iter().flat_map(|text| text.lines()).filter(|line| line.contains(token)).map(str::to_owned).collect()
}

/// The tokens in a state directory's leases.
pub fn tokens(client: &Tierbox) -> Vec<String> {
    let listing = client.journal().and_then(|journal| journal.list()).map(|listing| listing.entries).unwrap_or_default();
    listing.iter().flat_map(|entry| entry.record.resources_of("vagrant").map(str::to_owned).collect::<Vec<_>>()).collect()
}
