//! Kills a harness, cleans up after it, and looks for what is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, set_child_subreaper, waitpid};
use tierbox::{CleanupOptions, ExecRequest, SandboxExt, Tierbox};
use tierbox_testkit::Mark;

use crate::support::again;
use crate::support::remains::{self, names};

type Outcome = Result<(), String>;

fn word(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

pub fn main() -> ExitCode {
    let own = rustix::process::getpid();
    set_child_subreaper(Some(own)).expect("this kernel has subreapers");
    let judge = Judge {
        state: tempfile::Builder::new().prefix("tierbox-crash-").tempdir().expect("a directory"),
        mark: Mark::new(),
        ids: Arc::default(),
        runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime"),
    };
    let moments: Vec<u64> = word("CRASH_MOMENTS").split(',').filter_map(|moment| moment.parse().ok()).collect();
    let outcome = match word("CRASH_PLAN").as_str() {
        "random" => {
            moments.iter().try_for_each(|moment| judge.at_moment(*moment).map_err(|problem| format!("{moment} µs: {problem}")))
        }
        "detach" => judge.detached(),
        "cleanup" => judge.at_cleanup(),
        _ => judge.at_point(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Cleans up, once.
pub fn clean() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = Tierbox::builder().state_dir(word("TIERBOX_STATE_DIR")).user_config(false).build().expect("the facade");
    match runtime.block_on(client.cleanup(CleanupOptions::default())) {
        Ok(report) if report.failed.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

struct Judge {
    state: tempfile::TempDir,
    mark: Mark,
    /// Environments that the harness said it has.
    ids: Arc<Mutex<BTreeSet<String>>>,
    runtime: tokio::runtime::Runtime,
}

/// A harness, and what it says.
struct Harness {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Harness {
    fn wait_for(&self, wanted: &[&str], limit: Duration) -> Result<String, String> {
        let end = Instant::now() + limit;
        let mut said = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if wanted.contains(&line.as_str()) => return Ok(line),
                Ok(line) => said.push(line),
                // It died, as it may at a crash point.
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(String::new()),
                Err(_) => return Err(format!("the harness said neither of {wanted:?} within {limit:?}, but {said:?}")),
            }
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Judge {
    fn harness(&self, plan: &str) -> Harness {
        let mut command: Command = again::this_program_under(&[], "harness");
        command.env("TIERBOX_STATE_DIR", self.state_dir()).env("CRASH_PLAN", plan).stdout(Stdio::piped());
        command.env("CRASH_MARK", self.mark.sleep().trim_start_matches("sleep "));
        let mut child = command.spawn().expect("this program can be run");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (tell, lines) = std::sync::mpsc::channel();
        let ids = self.ids.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(id) = line.strip_prefix("id ") {
                    ids.lock().expect("nobody panics with it").insert(id.to_owned());
                }
                let _ = tell.send(line);
            }
        });
        Harness { child, lines }
    }

    fn state_dir(&self) -> PathBuf {
        self.state.path().join("state")
    }

    fn client(&self) -> Tierbox {
        Tierbox::builder().state_dir(self.state_dir()).user_config(false).build().expect("the facade")
    }

    /// The harness, or the supervisor, dies at the point that `TIERBOX_CRASH_AT` names.
    fn at_point(&self) -> Outcome {
        let mut harness = self.harness("once");
        let said = harness.wait_for(&["failed", "done"], Duration::from_secs(20))?;
        harness.kill();
        if said == "done" {
            return Err("nothing died: the point was never reached".to_owned());
        }
        self.all_gone()?;
        self.clean_up(CleanupOptions::default())?;
        self.nothing_left()
    }

    /// The harness is killed, and then the clean-up dies at the point; the next clean-up does the rest.
    fn at_cleanup(&self) -> Outcome {
        let mut harness = self.harness("stay");
        harness.wait_for(&["ready"], Duration::from_secs(20))?;
        harness.kill();
        self.all_gone()?;
        let mut cleaner = again::this_program_under(&[], "cleaner");
        let ended = cleaner.env("TIERBOX_STATE_DIR", self.state_dir()).env("TIERBOX_CRASH_AT", word("CRASH_CLEANUP_AT")).output();
        let ended = ended.map_err(|error| error.to_string())?;
        if std::os::unix::process::ExitStatusExt::signal(&ended.status).is_none() {
            return Err(format!("the clean-up did not die: {}, the point was never reached", ended.status));
        }
        self.clean_up(CleanupOptions::default())?;
        self.nothing_left()
    }

    /// The harness is killed so long after it began.
    fn at_moment(&self, moment: u64) -> Outcome {
        let mut harness = self.harness("loop");
        harness.wait_for(&["start"], Duration::from_secs(20))?;
        std::thread::sleep(Duration::from_micros(moment));
        harness.kill();
        self.all_gone()?;
        self.clean_up(CleanupOptions::default())?;
        self.nothing_left()
    }

    /// A detached environment outlives its harness, and ends by a clean-up of everything.
    fn detached(&self) -> Outcome {
        let mut harness = self.harness("detach");
        harness.wait_for(&["done"], Duration::from_secs(20))?;
        harness.kill();
        self.clean_up(CleanupOptions::default())?;
        let id = self.ids.lock().expect("nobody panics with it").iter().next().cloned().ok_or("the harness told no id")?;
        self.runtime.block_on(async {
            let running = self.client().attach(&id).await.map_err(|error| format!("the environment is gone: {error}"))?;
            let ran = running.sandbox().run(ExecRequest::new(["cat", "file"])).await.map_err(|error| error.to_string())?;
            if ran.stdout.bytes() != b"x\n" {
                return Err(format!("the environment lost its files: {ran:?}"));
            }
            Ok(())
        })?;
        self.clean_up(CleanupOptions { all: true, kept: true })?;
        self.all_gone()?;
        self.nothing_left()
    }

    /// Waits until every process that came home to this one has ended: two seconds, as attached environments promise.
    fn all_gone(&self) -> Outcome {
        let start = Instant::now();
        loop {
            while let Ok(Some(_)) = waitpid(None::<Pid>, WaitOptions::NOHANG) {}
            let left = children();
            if left.is_empty() && !self.mark.is_on_host() {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(2) {
                return Err(format!("still alive 2 s after the harness was killed: {left:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn clean_up(&self, options: CleanupOptions) -> Outcome {
        let leases = self.state_dir().join("leases");
        for name in names(&leases) {
            let id = name.split('.').next().unwrap_or_default().to_owned();
            self.ids.lock().expect("nobody panics with it").insert(id);
        }
        let report = self.runtime.block_on(self.client().cleanup(options)).map_err(|error| format!("cleanup: {error:?}"))?;
        if report.failed.is_empty() { Ok(()) } else { Err(format!("cleanup could not remove: {:?}", report.failed)) }
    }

    /// No process, mount, cgroup, directory, socket or lease.
    fn nothing_left(&self) -> Outcome {
        let state = self.state_dir();
        for part in ["leases", "env"] {
            let left = names(&state.join(part));
            if !left.is_empty() {
                return Err(format!("left in {part}: {left:?}"));
            }
        }
        let ids = self.ids.lock().expect("nobody panics with it").clone();
        let place = state.to_string_lossy().into_owned();
        let known = |text: &str| ids.iter().any(|id| id.len() > 6 && text.contains(id)) || text.contains(&*place);
        let left = remains::anywhere(&known);
        if left.is_empty() { Ok(()) } else { Err(format!("left: {left:?}")) }
    }
}

/// Living children of this process, with what they run.
fn children() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<String> = lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let describe = |pid: String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit(") ").next()?.chars().next()?;
        (state != 'Z' && state != 'X').then(|| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("{pid} {state} {}", line.escape_ascii())
        })
    };
    pids.into_iter().filter_map(describe).collect()
}
