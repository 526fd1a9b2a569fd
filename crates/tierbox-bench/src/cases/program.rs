//! The program as a whole.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::bench::{Bench, Failure};
use crate::peers::{TRUE, bwrap, spawn_and_wait, timed};
use crate::program;
use crate::report::{Row, short};
use crate::stats::{Summary, in_turns};

/// The program, with a state directory of the benchmark's and nobody's configuration.
fn tierbox(bench: &Bench, program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"TIERBOX_")) {
        command.env_remove(name);
    }
    command.env("TIERBOX_STATE_DIR", bench.directory().join("state")).env("XDG_CONFIG_HOME", bench.directory().join("config"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// `tierbox run` as a whole process against bubblewrap.
pub(crate) fn run(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let program = program::path()?;
    let ours = || timed(tierbox(bench, &program).args(["run", "--quiet", "--", TRUE]));
    let (ours, theirs) = in_turns(bench.samples(), ours, || timed(&mut bwrap()))?;
    let (ours, theirs) = (Summary::of_times(&ours), Summary::of_times(&theirs));
    Ok(vec![Row::less_is_better("tierbox run /bin/true", "ms", ours, "bwrap --unshare-all", theirs, 1.5)])
}

/// The size of the program.
pub(crate) fn size(_: &Bench) -> Result<Vec<Row>, Failure> {
    let bytes = std::fs::metadata(program::path()?)?.len();
    let size = Summary::one(bytes as f64 / 1e6);
    Ok(vec![Row::less_is_better("size of the program", "MB", size, "the bound", Summary::one(15.0), 1.0)])
}

/// The time to say what it can do.
pub(crate) fn help(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let program = program::path()?;
    let ours = || timed(tierbox(bench, &program).arg("--help"));
    let (ours, floor) = in_turns(bench.samples(), ours, spawn_and_wait)?;
    let floor = short(Summary::of_times(&floor).median);
    let row = Row::less_is_better("tierbox --help", "ms", Summary::of_times(&ours), "the bound", Summary::one(10.0), 1.0);
    Ok(vec![row.note(format!("/bin/true takes {floor} ms"))])
}

/// The time of a release build from nothing.
pub(crate) fn build(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let seconds = program::clean_build(&bench.directory().join("build"))?.as_secs_f64();
    Ok(vec![Row::less_is_better("release build from nothing", "s", Summary::one(seconds), "the bound", Summary::one(300.0), 1.0)])
}
