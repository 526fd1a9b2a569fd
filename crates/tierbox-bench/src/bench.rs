//! What all measurements share: a client with a state directory of its own, and two runtimes.

use std::error::Error;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;

use tierbox::{Running, StartOptions, Tierbox};
use tokio::runtime::{Builder, Runtime};

/// Why something could not be measured.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The profile that is measured.
pub(crate) const PROFILE: &str = "local";

/// The same with named hosts.
pub(crate) const NAMED: &str = "local-web";

/// What all measurements share.
pub(crate) struct Bench {
    pub quick: bool,
    pub client: Tierbox,
    directory: PathBuf,
    single: Runtime,
    multi: Runtime,
}

impl Bench {
    /// Checks that the peer and the profile are there.
    pub fn new(quick: bool) -> Result<Self, Failure> {
        let found = Command::new("bwrap").arg("--version").output().is_ok_and(|output| output.status.success());
        if !found {
            return Err("bwrap, the peer, is not installed: apt-get install bubblewrap".into());
        }
        // Beside the program, because a real state directory lies on a disk too.
        let beside = std::env::current_exe()?.parent().map(Path::to_path_buf).ok_or("the program lies nowhere")?;
        let directory = beside.join(format!("tierbox-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let client = Tierbox::builder().user_config(false).state_dir(directory.join("state")).build()?;
        let single = Builder::new_current_thread().enable_all().build()?;
        let multi = Builder::new_multi_thread().enable_all().build()?;
        let bench = Self { quick, client, directory, single, multi };
        let first = bench.wait(bench.start()).map_err(|error| format!("the profile `{PROFILE}` does not start here: {error}"))?;
        println!("{}\n", first.report().summary());
        bench.wait(first.stop())?;
        Ok(bench)
    }

    /// How many samples to take of what takes milliseconds.
    pub fn samples(&self) -> usize {
        if self.quick { 20 } else { 100 }
    }

    /// Runs to its end on one thread: this one.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.single.block_on(future)
    }

    /// Runs to its end on as many threads as there are cores.
    pub fn wait_with_all_cores<F: Future>(&self, future: F) -> F::Output {
        self.multi.block_on(future)
    }

    /// Starts a sandbox.
    pub async fn start(&self) -> tierbox::Result<Running> {
        self.client.start_with(PROFILE, StartOptions::new()).await
    }

    /// A directory for files, removed at the end.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
