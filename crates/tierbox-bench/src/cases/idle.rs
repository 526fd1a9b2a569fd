//! What a sandbox costs that does nothing.

use std::process::{Child, Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};
use tierbox::{Running, StartOptions};

use crate::bench::{Bench, Failure, NAMED, PROFILE};
use crate::machine::memory as of_this_process;
use crate::peers::{TRUE, bwrap};
use crate::report::{Row, short};
use crate::stats::Summary;

/// How many are alive at once.
const MANY: usize = 50;

/// Set where this program runs again: the profile.
const MARK: &str = "TIERBOX_BENCH_IDLE";

/// Measures, if this program was run for that.
pub(crate) fn inside() -> Option<ExitCode> {
    let profile = std::env::var(MARK).ok()?;
    let told = Bench::new(true).and_then(|bench| Ok(serde_json::to_string(&Cost::of(&bench, &profile)?)?));
    Some(match told {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    })
}

/// Memory of an idle sandbox, with what the harness keeps of it, against bubblewrap around a program that sleeps; and the same with
/// named hosts, where the harness keeps a gateway too.
pub(crate) fn memory(_: &Bench) -> Result<Vec<Row>, Failure> {
    let (plain, named) = (Cost::alone(PROFILE)?, Cost::alone(NAMED)?);
    let bubbles: Vec<Bubble> = (0..MANY).map(|_| Bubble::start()).collect::<Result<_, _>>()?;
    let theirs: Vec<f64> = bubbles.iter().map(|bubble| tree(bubble.0.id())).collect::<Result<_, _>>()?;
    drop(bubbles);
    let theirs = Summary::of(theirs);
    let gateway = short(named.total() - plain.total());
    let with = format!("{gateway} KiB more than without named hosts; {}", named.note());
    Ok(vec![
        plain.row("memory per idle sandbox", theirs).note(plain.note()),
        named.row("memory per idle sandbox, N1", theirs).note(with),
    ])
}

/// What idle sandboxes of a profile cost, in KiB.
#[derive(Serialize, Deserialize)]
struct Cost {
    /// What the processes of each hold.
    processes: Vec<f64>,
    /// What this process holds more of for each: its channel, and with N1 its gateway, whose sockets and tasks are here.
    harness: f64,
    /// What the kernel holds more of for each.
    kernel: f64,
}

impl Cost {
    /// In a process of its own: what earlier sandboxes gave back in this one would be the next ones', and not count.
    fn alone(profile: &str) -> Result<Self, Failure> {
        let output = Command::new(std::env::current_exe()?).env(MARK, profile).stderr(Stdio::inherit()).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let last = said.lines().last().unwrap_or_default();
        Ok(serde_json::from_str(last).map_err(|error| format!("{}: {error}", output.status))?)
    }

    fn of(bench: &Bench, profile: &str) -> Result<Self, Failure> {
        let start = || bench.client.start_with(profile, StartOptions::new().set("verify", "off").allow_weaker());
        let many = || (0..MANY).map(|_| bench.wait(start())).collect::<Result<Vec<Running>, _>>();
        let end = |all: Vec<Running>| all.into_iter().try_for_each(|running| bench.wait(running.stop()));
        // The first ones take what is made once, such as the threads of all gateways.
        let first = many()?;
        let (slab, (before, _)) = (kernel(), of_this_process());
        let all = many()?;
        let each = |grown: u64, unit: f64| grown as f64 / unit / MANY as f64;
        let harness = each(of_this_process().0.saturating_sub(before), 1024.0);
        let kernel = each(kernel().saturating_sub(slab), 1.0);
        end(first)?;
        let processes = all.iter().map(|running| bench.wait(processes(bench, running))).collect::<Result<_, _>>()?;
        end(all)?;
        Ok(Self { processes, harness, kernel })
    }

    fn each(&self) -> Summary {
        Summary::of(self.processes.iter().map(|own| own + self.harness).collect())
    }

    fn total(&self) -> f64 {
        self.each().median
    }

    fn row(&self, name: &str, theirs: Summary) -> Row {
        Row::less_is_better(name, "KiB", self.each(), "bwrap with a sleep", theirs, 2.0)
    }

    fn note(&self) -> String {
        format!("{} KiB of it the harness's; the kernel's own grew by {} KiB each", short(self.harness), short(self.kernel))
    }
}

/// The keeper of a sandbox, and everything below it.
async fn processes(bench: &Bench, running: &Running) -> Result<f64, Failure> {
    let lease = bench.client.list_one(running.id()).await?.record;
    let keeper = lease.data["keeper"]["pid"].as_u64().ok_or("the lease names no keeper")?;
    tree(u32::try_from(keeper)?)
}

/// KiB of a process and all its descendants; what processes share counts in parts.
pub(super) fn tree(pid: u32) -> Result<f64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss is told")?;
    let own: f64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.split_whitespace().try_fold(own, |sum, child| Ok(sum + tree(child.parse()?)?))
}

/// KiB that the kernel has for itself: objects, page tables and stacks.
fn kernel() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let counted = |line: &&str| ["Slab:", "PageTables:", "KernelStack:"].iter().any(|name| line.starts_with(name));
    text.lines().filter(counted).filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// Bubblewrap around a sleep.
struct Bubble(Child);

impl Bubble {
    fn start() -> Result<Self, Failure> {
        let like = bwrap();
        let mut command = Command::new(like.get_program());
        command.args(like.get_args().filter(|word| *word != TRUE)).args(["/bin/sleep", "1000"]).stdin(Stdio::null());
        let bubble = Self(command.spawn()?);
        for _ in 0..500 {
            // bwrap, the first process inside, and the sleep.
            if descendants(bubble.0.id()) >= 2 {
                return Ok(bubble);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Err("bwrap does not start".into())
    }
}

fn descendants(pid: u32) -> usize {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).map(|child| 1 + descendants(child)).sum()
}

impl Drop for Bubble {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
