//! A machine of Vagrant on libvirt against Vagrant by itself and a bare multiplexed `ssh` to the same machine.
//!
//! Needs what `tests/engines/vagrant.sh start` prints in the environment.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierbox::{ExecRequest, GuestPath, ReadOptions, Running, SandboxExt, StartOptions, Tierbox};
use tokio::io::AsyncReadExt as _;

use crate::bench::{Bench, Failure};
use crate::peers::timed;
use crate::report::Row;
use crate::stats::{Summary, in_turns};

const BYTES: usize = 100 << 20;

/// A call of Vagrant itself, for the machines that a dotfile directory tells of.
fn vagrant(dotfile: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("vagrant");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vagrantfiles/basic");
    command.args(words).env("VAGRANT_CWD", examples).env("VAGRANT_DOTFILE_PATH", dotfile);
    command.env("VAGRANT_DEFAULT_PROVIDER", "libvirt").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Machines by Vagrant alone, with a dotfile directory of their own.
struct Alone {
    dotfile: PathBuf,
}

impl Alone {
    fn new(bench: &Bench) -> Self {
        Self { dotfile: bench.directory().join("vagrant-alone") }
    }

    fn call(&self, words: &[&str]) -> Command {
        vagrant(&self.dotfile, words)
    }
}

/// The dotfile directory of a machine that tierbox had Vagrant make: beside the configuration that people log in with.
fn dotfile_of(running: &Running) -> Result<PathBuf, Failure> {
    let login = running.connection("default")?.argv;
    let config = login.iter().skip_while(|word| *word != "-F").nth(1).ok_or("the connection names no configuration")?;
    Ok(Path::new(config).with_file_name("dot"))
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.call(&["destroy", "--force"]).status();
    }
}

/// A multiplexed connection of OpenSSH's own to a machine.
struct Mux {
    words: Vec<String>,
}

impl Mux {
    fn new(bench: &Bench, running: &Running) -> Result<Self, Failure> {
        let mut words = running.connection("default")?.argv;
        let host = words.pop().ok_or("the connection names no machine")?;
        // Relative, because the path of a socket has 100 bytes at most.
        words.extend(["-S", "mux", "-o", "ControlMaster=auto", "-o", "ControlPersist=600"].map(str::to_owned));
        words.push(host);
        let mux = Self { words };
        timed(&mut mux.run(bench, "true"))?;
        Ok(mux)
    }

    fn run(&self, bench: &Bench, script: &str) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.current_dir(bench.directory()).args(&self.words[1..]).arg(script);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn end(&self, bench: &Bench) {
        let (host, options) = self.words.split_last().expect("there is a host");
        let mut command = Command::new(&options[0]);
        let _ =
            command.current_dir(bench.directory()).args(&options[1..]).args(["-O", "exit", host]).stderr(Stdio::null()).status();
    }
}

fn client(bench: &Bench) -> Result<Tierbox, Failure> {
    let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../profiles");
    Ok(Tierbox::builder().user_config(false).profile_dir(profiles).state_dir(bench.directory().join("vagrant-state")).build()?)
}

fn start(bench: &Bench, client: &Tierbox, pool: bool) -> Result<Running, Failure> {
    let options = StartOptions::new().set("vagrant.pool", if pool { "1" } else { "0" });
    Ok(bench.wait(client.start_with("vagrant-basic", options))?)
}

/// A client, where there is a Vagrant.
fn able_client(bench: &Bench) -> Result<Tierbox, Failure> {
    if !std::env::var("TIERBOX_TEST_VAGRANT").is_ok_and(|there| there.contains("libvirt")) {
        return Err("there is no Vagrant for it: tests/engines/vagrant.sh start prints what to set".into());
    }
    client(bench)
}

/// Measures on a machine, which is ended whatever comes of it.
fn on_machine(
    bench: &Bench,
    options: StartOptions,
    measure: impl FnOnce(&Running, &Mux) -> Result<Vec<Row>, Failure>,
) -> Result<Vec<Row>, Failure> {
    let client = able_client(bench)?;
    let running = bench.wait(client.start_with("vagrant-basic", options))?;
    let measured = Mux::new(bench, &running).and_then(|mux| {
        let rows = measure(&running, &mux);
        mux.end(bench);
        rows
    });
    bench.wait(running.stop())?;
    measured
}

/// A start against `vagrant up` of the same Vagrantfile, and one from the pool, which is restored to a snapshot, against the same.
pub(crate) fn starts(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let client = &able_client(bench)?;
    // Vagrant itself takes a fifth more or less from one time to the next.
    let samples = if bench.quick { 1 } else { 7 };
    let ours = || -> Result<Duration, Failure> {
        let begin = Instant::now();
        let running = start(bench, client, false)?;
        let time = begin.elapsed();
        bench.wait(running.stop())?;
        Ok(time)
    };
    let theirs = || -> Result<Duration, Failure> {
        let alone = Alone::new(bench);
        timed(&mut alone.call(&["up"]))
    };
    let (ours, theirs) = in_turns(samples, ours, theirs)?;
    let up = Summary::of_times(&theirs);
    // The first one of a pool boots, and what it leaves is taken.
    bench.wait(start(bench, client, true)?.stop())?;
    let mut warm = Vec::new();
    for _ in 0..samples {
        let begin = Instant::now();
        let running = start(bench, client, true)?;
        warm.push(begin.elapsed());
        bench.wait(running.stop())?;
    }
    bench.wait(client.cleanup(tierbox::CleanupOptions { all: true, kept: true }))?;
    Ok(vec![
        Row::less_is_better("vagrant: start", "ms", Summary::of_times(&ours), "vagrant up", up, 1.15),
        Row::less_is_better("vagrant: start from the pool", "ms", Summary::of_times(&warm), "vagrant up", up, 0.5),
    ])
}

/// The time of a command that does nothing.
fn exec(bench: &Bench, running: &Running) -> Result<Duration, Failure> {
    let begin = Instant::now();
    let result = bench.wait(running.sandbox().run(ExecRequest::new(["/bin/true"])))?;
    if result.success() { Ok(begin.elapsed()) } else { Err(format!("/bin/true {}", result.outcome()).into()) }
}

/// Commands by scripts alone, where no supervisor may run.
pub(crate) fn scripts(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let options = StartOptions::new().set("vagrant.supervisor", "never").set("tier", "T0.H0.N0").allow_weaker();
    on_machine(bench, options, |running, mux| {
        let (ours, plain) = in_turns(bench.samples(), || exec(bench, running), || timed(&mut mux.run(bench, "/bin/true")))?;
        let (ours, plain) = (Summary::of_times(&ours), Summary::of_times(&plain));
        Ok(vec![Row::less_is_better("vagrant: exec by scripts", "ms", ours, "multiplexed ssh", plain, 1.2)])
    })
}

/// Commands over the supervisor, and a verification.
pub(crate) fn commands(bench: &Bench) -> Result<Vec<Row>, Failure> {
    on_machine(bench, StartOptions::new(), |running, mux| on_supervisor(bench, running, mux))
}

fn on_supervisor(bench: &Bench, running: &Running, mux: &Mux) -> Result<Vec<Row>, Failure> {
    let ours = || exec(bench, running);
    let (fast, plain) = in_turns(bench.samples(), ours, || timed(&mut mux.run(bench, "/bin/true")))?;
    let dotfile = dotfile_of(running)?;
    let few = if bench.quick { 3 } else { 5 };
    let (mut row, mut slow) = (Vec::new(), Vec::new());
    for _ in 0..few {
        slow.push(timed(&mut vagrant(&dotfile, &["ssh", "-c", "/bin/true"]))?);
        // One after the other, without the moment between them in which the next process is made ready.
        for _ in 0..bench.samples() / few {
            row.push(ours()?);
        }
    }
    let summary = Summary::of_times;
    let mut proofs = Vec::new();
    for _ in 0..few {
        let begin = Instant::now();
        bench.wait(running.verify())?;
        proofs.push(begin.elapsed());
    }
    Ok(vec![
        Row::less_is_better("vagrant: verification", "ms", summary(&proofs), "vagrant ssh -c", summary(&slow), 2.0),
        Row::less_is_better("vagrant: exec", "ms", summary(&fast), "multiplexed ssh", summary(&plain), 0.5),
        Row::less_is_better("vagrant: exec", "ms", summary(&fast), "vagrant ssh -c", summary(&slow), 0.01),
        Row::less_is_better("vagrant: exec, in a row", "ms", summary(&row), "vagrant ssh -c", summary(&slow), 0.01),
    ])
}

/// A hundred MiB up and down.
pub(crate) fn files(bench: &Bench) -> Result<Vec<Row>, Failure> {
    on_machine(bench, StartOptions::new(), |running, mux| in_and_out(bench, running, mux))
}

fn in_and_out(bench: &Bench, running: &Running, mux: &Mux) -> Result<Vec<Row>, Failure> {
    let data: Bytes = (0..BYTES).map(|index| (index % 251) as u8).collect();
    let local = bench.directory().join("large");
    std::fs::write(&local, &data)?;
    let few = if bench.quick { 1 } else { 3 };
    let sandbox = running.sandbox();
    let write = || -> Result<Duration, Failure> {
        let begin = Instant::now();
        bench.wait(sandbox.write_bytes("large", data.clone()))?;
        Ok(begin.elapsed())
    };
    let cat_up = || -> Result<Duration, Failure> { timed(mux.run(bench, "cat > theirs").stdin(std::fs::File::open(&local)?)) };
    let (up, cat_in) = in_turns(few, write, cat_up)?;
    let read = || -> Result<Duration, Failure> {
        let begin = Instant::now();
        let total = bench.wait(async {
            let (_, mut reader) = sandbox.read(&GuestPath::from("large"), ReadOptions::default()).await?;
            let mut buffer = vec![0; 1 << 20];
            let mut total = 0;
            loop {
                match reader.read(&mut buffer).await? {
                    0 => return Ok::<usize, Failure>(total),
                    count => total += count,
                }
            }
        })?;
        if total == BYTES { Ok(begin.elapsed()) } else { Err(format!("{total} bytes came of {BYTES}").into()) }
    };
    let cat_down = || -> Result<Duration, Failure> {
        timed(mux.run(bench, "cat theirs").stdout(std::fs::File::create(bench.directory().join("back"))?))
    };
    let (down, cat_out) = in_turns(few, read, cat_down)?;
    let rate = |times: &[Duration]| Summary::of_times(times).map(|millis| BYTES as f64 / f64::from(1 << 20) / millis * 1e3);
    Ok(vec![
        Row::more_is_better("vagrant: 100 MiB in", "MiB/s", rate(&up), "ssh cat", rate(&cat_in), 1.5),
        Row::more_is_better("vagrant: 100 MiB out", "MiB/s", rate(&down), "ssh cat", rate(&cat_out), 1.5),
    ])
}
