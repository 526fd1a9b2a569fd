//! What a sandbox costs that does nothing.

use std::process::{Child, Command, Stdio};

use tierbox::Running;

use crate::bench::{Bench, Failure};
use crate::machine::memory as of_this_process;
use crate::peers::{TRUE, bwrap};
use crate::report::{Row, short};
use crate::stats::Summary;

/// How many are alive at once.
const MANY: usize = 50;

/// Memory of an idle sandbox, with what the harness keeps of it, against bubblewrap around a program that sleeps.
pub(crate) fn memory(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let slab = kernel();
    let (before, _) = of_this_process();
    let mut all = Vec::new();
    for _ in 0..MANY {
        all.push(bench.wait(bench.start())?);
    }
    let (after, _) = of_this_process();
    let grown = kernel().saturating_sub(slab);
    let harness = after.saturating_sub(before) as f64 / 1024.0 / MANY as f64;
    let ours: Vec<f64> =
        all.iter().map(|running| Ok(bench.wait(processes(bench, running))? + harness)).collect::<Result<_, Failure>>()?;
    for running in all {
        bench.wait(running.stop())?;
    }
    let bubbles: Vec<Bubble> = (0..MANY).map(|_| Bubble::start()).collect::<Result<_, _>>()?;
    let theirs: Vec<f64> = bubbles.iter().map(|bubble| tree(bubble.0.id())).collect::<Result<_, _>>()?;
    drop(bubbles);
    let row =
        Row::less_is_better("memory per idle sandbox", "KiB", Summary::of(ours), "bwrap with a sleep", Summary::of(theirs), 2.0);
    let each = grown as f64 / MANY as f64;
    Ok(vec![row.note(format!("{} KiB of it the harness's; the kernel's own grew by {} KiB each", short(harness), short(each)))])
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
