//! The hosts, and what must come of them.

use std::io::Write;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use rustix::process::{Pid, WaitOptions, waitpid};
use tierbox_testkit::{Absence, plain};

use crate::support::{self, again};

/// This host cannot do it, or an engine is missing.
const HOST_UNABLE: i32 = 69;
/// Refused: the tier, a required limit.
const REFUSED: i32 = 77;
/// This test's own: something that the program started was alive after it, or a signal ended it.
const LEFT_PROCESSES: i32 = 99;

/// A message must come within this time.
const LIMIT: Duration = Duration::from_secs(1);

/// What a private mount namespace changes before the rest of its arguments is run.
const MASKED_PROC: &str = "mount -t tmpfs -o ro none /proc/sys && exec \"$@\"";
const NO_SUBUID: &str = "mount --bind /dev/null /etc/subuid && mount --bind /dev/null /etc/subgid && exec \"$@\"";
const NO_CGROUP: &str = "for m in $(grep -E ' - cgroup2? ' /proc/self/mountinfo | cut -d' ' -f5); do mount -o remount,bind,ro $m || exit 99; done; exec \"$@\"";
/// As in a container of Docker's: everything below /sys.
const READ_ONLY_SYS: &str = "for m in $(cut -d' ' -f5 /proc/self/mountinfo | grep -E '^/sys(/|$)'); do mount -o remount,bind,ro $m || exit 99; done; exec \"$@\"";
const NO_PROC: &str = "umount -l /proc && exec \"$@\"";
/// What a user namespace of its own changes.
const NO_NAMESPACES: &str = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";

#[derive(Clone, Copy)]
enum Before {
    /// Nothing.
    Nothing,
    /// The attack program's filter of this name, for the program alone.
    Filter(&'static str),
    /// As root, in a private mount namespace, this script.
    Mounts(&'static str),
    /// As the caller, in a user namespace where he is root, this script.
    OwnUsers(&'static str),
    /// As the caller, in a user namespace without a map: nobody, without capabilities.
    Nobody,
    /// As the caller, with no_new_privs: setuid helpers give nothing.
    NoNewPrivileges,
}

/// What must come of a start there.
#[derive(Clone, Copy)]
enum Then {
    /// It works, with everything that the tier needs, and says what is not as asked for.
    Starts { says: &'static [&'static str] },
    /// It ends with this status, and a message with all these words and a remedy with those.
    Refused { status: i32, says: &'static [&'static str], remedy: &'static str },
    /// No such host can be made for this user.
    None,
}

use Then::{Refused, Starts};

const UNABLE_BY_SECCOMP: Then = Refused { status: HOST_UNABLE, says: &["seccomp filter"], remedy: "seccomp=unconfined" };

#[derive(Clone, Copy)]
struct Host {
    name: &'static str,
    before: Before,
    /// What is asked of `tierbox run` beside the command.
    options: &'static [&'static str],
    plain: Then,
    root: Then,
}

const HOSTS: &[Host] = &[
    Host { name: "as_it_is", before: Before::Nothing, options: &[], plain: Starts { says: &[] }, root: Starts { says: &[] } },
    Host {
        name: "namespaces_denied_by_seccomp",
        before: Before::Filter("namespaces"),
        options: &[],
        plain: UNABLE_BY_SECCOMP,
        root: UNABLE_BY_SECCOMP,
    },
    Host {
        name: "user_namespaces_denied_by_seccomp",
        before: Before::Filter("user-namespaces"),
        options: &[],
        plain: UNABLE_BY_SECCOMP,
        root: UNABLE_BY_SECCOMP,
    },
    Host {
        name: "mounts_denied_by_seccomp",
        before: Before::Filter("mount"),
        options: &[],
        plain: UNABLE_BY_SECCOMP,
        root: UNABLE_BY_SECCOMP,
    },
    Host { name: "no_memory_files", before: Before::Filter("memfd"), options: &[], plain: NO_MEMFD, root: NO_MEMFD },
    Host {
        name: "no_more_user_namespaces",
        before: Before::OwnUsers(NO_NAMESPACES),
        options: &[],
        plain: Refused {
            status: HOST_UNABLE,
            says: &["user.max_user_namespaces is 0"],
            remedy: "sysctl -w user.max_user_namespaces",
        },
        root: Then::None,
    },
    Host {
        name: "inside_a_user_namespace",
        before: Before::OwnUsers("exec \"$@\""),
        options: &[],
        plain: Starts { says: &[] },
        root: Then::None,
    },
    Host {
        name: "nobody_in_a_user_namespace",
        before: Before::Nobody,
        options: &[],
        plain: Refused { status: HOST_UNABLE, says: &["user namespace", "no id"], remedy: "uid_map" },
        root: Then::None,
    },
    Host { name: "masked_proc", before: Before::Mounts(MASKED_PROC), options: &[], plain: PROC_MASKED, root: PROC_MASKED },
    Host { name: "no_proc", before: Before::Mounts(NO_PROC), options: &[], plain: PROC_MISSING, root: PROC_MISSING },
    Host {
        name: "no_new_privileges",
        before: Before::NoNewPrivileges,
        options: &[],
        plain: Starts { says: &[] },
        root: Starts { says: &[] },
    },
    Host {
        name: "no_subordinate_ids",
        before: Before::Mounts(NO_SUBUID),
        options: &[],
        plain: Starts { says: &[] },
        root: Starts { says: &[] },
    },
    Host {
        name: "no_subordinate_ids_and_a_required_range",
        before: Before::Mounts(NO_SUBUID),
        options: &["--allow-weaker", "--set", "local.users=\"range\""],
        plain: Refused { status: HOST_UNABLE, says: &["/etc/subuid has no line for this user"], remedy: "usermod --add-subuids" },
        // Root needs no helper.
        root: Starts { says: &[] },
    },
    Host {
        name: "no_writable_cgroup",
        before: Before::Mounts(NO_CGROUP),
        options: &[],
        plain: Starts { says: &["limited more weakly: memory by rlimit", "not limited: cpu"] },
        root: Starts { says: &["limited more weakly: memory by rlimit", "not limited: cpu"] },
    },
    Host {
        name: "no_writable_cgroup_and_a_required_limit",
        before: Before::Mounts(NO_CGROUP),
        options: &["--set", "limits.memory=\"2GiB\""],
        plain: MEMORY_UNLIMITED,
        root: MEMORY_UNLIMITED,
    },
    Host {
        name: "read_only_sys",
        before: Before::Mounts(READ_ONLY_SYS),
        options: &[],
        plain: Starts { says: &["not limited: cpu"] },
        root: Starts { says: &["not limited: cpu"] },
    },
];

const NO_MEMFD: Then =
    Refused { status: HOST_UNABLE, says: &["memory files", "memfd_create"], remedy: "sudo tierbox doctor --install" };
const PROC_MASKED: Then =
    Refused { status: HOST_UNABLE, says: &["parts of /proc are covered", "/proc/sys"], remedy: "systempaths=unconfined" };
const PROC_MISSING: Then = Refused { status: HOST_UNABLE, says: &["/proc is not mounted"], remedy: "mount -t proc proc /proc" };
const MEMORY_UNLIMITED: Then =
    Refused { status: REFUSED, says: &["limits.memory = 2GiB is required", "cgroups here: none"], remedy: "enforce = \"best\"" };

/// Every host as a plain user, and where it makes a difference as root.
pub fn all() -> Vec<Trial> {
    let mut trials = Vec::new();
    for host in HOSTS {
        // A plain user's tests cannot change the host's mounts; root inside a user namespace is no root.
        let plain_works = plain::is_root() || !matches!(host.before, Before::Mounts(_));
        for (who, then, as_plain, works) in
            [("plain", host.plain, true, plain_works), ("root", host.root, false, plain::is_root())]
        {
            if !matches!(then, Then::None) {
                let name = format!("crash::hostile::{who}::{}", host.name);
                trials.push(Trial::test(name, move || run(*host, then, as_plain)).with_ignored_flag(!works));
            }
        }
    }
    trials.push(Trial::test("crash::hostile::the_suite_skips_and_stays_green", suite_skips));
    trials.push(Trial::test("crash::hostile::the_suite_fails_where_the_engine_is_required", suite_fails_on_ci));
    trials
}

/// This program in a role, on the host, as a plain user or as whoever runs the tests.
fn command(before: Before, as_plain: bool, role: &str, dir: &std::path::Path) -> Result<Command, Failed> {
    let attack = again::attack_program(dir).to_string_lossy().into_owned();
    let (outer, inner): (Vec<&str>, Vec<&str>) = match before {
        Before::Nothing => (vec![], vec![]),
        Before::Filter(name) => (vec![], vec![&attack, "deny", name]),
        Before::Mounts(script) => (vec!["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"], vec![]),
        Before::OwnUsers(script) => (vec![], vec!["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]),
        Before::Nobody => (vec![], vec!["unshare", "--user"]),
        Before::NoNewPrivileges => (vec![], vec!["setpriv", "--no-new-privs"]),
    };
    let mut command = if as_plain && plain::is_root() {
        plain::this_program_under(&outer, &inner)?
    } else {
        let mut command = again::this_program_under(&[outer, inner].concat(), role);
        command.env("TIERBOX_STATE_DIR", dir.join("state"));
        command
    };
    command.env(again::ROLE, role);
    Ok(command)
}

/// What came of a run: its output without the log, the environment's id from that, and how long it took.
struct Ran {
    output: Output,
    said: String,
    id: Option<String>,
    took: Duration,
}

fn timed(command: &mut Command) -> std::io::Result<Ran> {
    let start = Instant::now();
    let output = command.env("TIERBOX_LOG", "tierbox::op=info").output()?;
    let took = start.elapsed();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let (log, said): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains(" tierbox::op: "));
    let id = log.iter().find_map(|line| Some(line.split_once(" start id=\"")?.1.split('"').next()?.to_owned()));
    Ok(Ran { said: said.join("\n"), id, took, output })
}

/// Why this user has no containers on the host as it is: then nothing made of it says anything.
fn absent(as_plain: bool) -> Result<Option<Absence>, Failed> {
    static FOUND: [OnceLock<Option<Absence>>; 2] = [const { OnceLock::new() }; 2];
    let found = &FOUND[usize::from(as_plain)];
    if let Some(absence) = found.get() {
        return Ok(absence.clone());
    }
    let dir = tempfile::tempdir()?;
    let output = command(Before::Nothing, as_plain, "cli", dir.path())?.args(["run", "--", "/bin/true"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (reason, remedy) = said.trim_end().split_once("\nhelp: ").unwrap_or((&said, "see `tierbox doctor`"));
    let absence = Absence { reason: reason.to_owned(), install: remedy.to_owned() };
    Ok(found.get_or_init(|| (!output.status.success()).then_some(absence)).clone())
}

fn run(host: Host, then: Then, as_plain: bool) -> Result<(), Failed> {
    if let Some(absence) = absent(as_plain)? {
        return support::skip("local-container", host.name, &absence).map_err(Failed::from);
    }
    let mut fastest = Duration::MAX;
    // A busy machine may need a second look; what is really slow is slow each time.
    for _ in 0..3 {
        let dir = tempfile::tempdir()?;
        let mut command = command(host.before, as_plain, "watched", dir.path())?;
        command.arg("run").args(host.options).args(["--", "/bin/echo", "inside"]);
        let ran = timed(&mut command)?;
        judge(then, &ran)?;
        nothing_left(&ran, &command)?;
        fastest = fastest.min(ran.took);
        if fastest < LIMIT {
            let _ = writeln!(std::io::stderr(), "{}: {} ms", host.name, fastest.as_millis());
            return Ok(());
        }
    }
    Err(format!("it took {fastest:?} or more, three times").into())
}

fn judge(then: Then, ran: &Ran) -> Result<(), Failed> {
    let (out, err) = (String::from_utf8_lossy(&ran.output.stdout), &ran.said);
    let fail =
        |what: &str| Err(Failed::from(format!("{what}\n  status: {}\n  stdout: {out}\n  stderr: {err}", ran.output.status)));
    let code = ran.output.status.code();
    if code.is_none() || code == Some(LEFT_PROCESSES) || err.contains("panicked") {
        return fail("it did not end in an orderly way");
    }
    match then {
        Then::None => fail("this host was not to be made"),
        Starts { says } => {
            if code != Some(0) || out != "inside\n" || !err.contains("tierbox: T0.H1.N2 on local") {
                return fail("it did not run a command under T0.H1.N2");
            }
            match says.iter().find(|word| !err.contains(**word)) {
                Some(word) => fail(&format!("it does not say {word:?}")),
                None => Ok(()),
            }
        }
        Refused { status, says, remedy } => {
            if code == Some(0) {
                return fail("it worked where it cannot: it must have fallen back");
            }
            if code != Some(status) || !out.is_empty() {
                return fail(&format!("a refusal has status {status} and prints nothing on stdout"));
            }
            let Some((message, help)) = err.split_once("\nhelp: ") else { return fail("there is no remedy") };
            if err.matches("error:").count() != 1 || help.contains("help:") {
                return fail("a refusal is one message with one remedy");
            }
            if let Some(word) = says.iter().find(|word| !message.contains(**word)) {
                return fail(&format!("the message does not say {word:?}"));
            }
            if help.contains(remedy) { Ok(()) } else { fail(&format!("the remedy does not say {remedy:?}")) }
        }
    }
}

/// Neither lease nor directory, cgroup, process in one, or mount. Processes elsewhere were waited for.
fn nothing_left(ran: &Ran, command: &Command) -> Result<(), Failed> {
    let Some(id) = &ran.id else {
        // What is refused before anything was made never had an id.
        return if ran.output.status.success() { Err("the log tells no id".into()) } else { Ok(()) };
    };
    let state = command.get_envs().find_map(|(name, value)| (name == "TIERBOX_STATE_DIR").then_some(value?));
    let state = std::path::Path::new(state.ok_or("the state directory is not known")?);
    let mut left = support::remains::of_environment(id);
    left.extend([format!("leases/{id}.json"), format!("env/{id}")].into_iter().filter(|path| state.join(path).exists()));
    if left.is_empty() { Ok(()) } else { Err(format!("left of {id}: {left:?}").into()) }
}

/// Runs `tierbox` and waits until everything that it started has ended, which must be soon.
pub fn watched() -> std::process::ExitCode {
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).expect("this kernel has subreapers");
    let mut arguments = std::env::args_os();
    // Not by /proc, which this host may lack.
    let program = arguments.next().expect("a program has a name");
    let status = Command::new(program).args(arguments).env(again::ROLE, "cli").status().expect("this program can be run");
    let ended = Instant::now();
    loop {
        match waitpid(None::<Pid>, WaitOptions::NOHANG) {
            Err(_) => break,
            Ok(Some(_)) => {}
            Ok(None) if ended.elapsed() > Duration::from_secs(2) => return u8::try_from(LEFT_PROCESSES).unwrap_or(1).into(),
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    let code = status.code().unwrap_or(LEFT_PROCESSES);
    u8::try_from(code).unwrap_or(1).into()
}

/// Runs one test of the suite where namespaces are denied. Returns the output and what was written down as skipped.
fn suite(on_ci: bool) -> Result<(Output, String), Failed> {
    let dir = tempfile::tempdir()?;
    let attack = again::attack_program(dir.path()).to_string_lossy().into_owned();
    let skips = dir.path().join("skips");
    let mut command = again::this_program_under(&[&attack, "deny", "namespaces"], "suite");
    command.args(["--exact", "conformance::exec::argv_is_exact"]).env("TIERBOX_SKIP_FILE", &skips).env_remove("CI");
    if on_ci {
        command.env("CI", "true");
    }
    let output = command.output()?;
    Ok((output, std::fs::read_to_string(skips).unwrap_or_default()))
}

fn suite_skips() -> Result<(), Failed> {
    let (output, skips) = suite(false)?;
    let fields: Vec<&str> = skips.trim_end().split('\t').collect();
    if !output.status.success() {
        return Err(format!("the suite failed: {}", String::from_utf8_lossy(&output.stdout)).into());
    }
    if fields.len() != 4 || fields[0] != "local-container" || fields[2].is_empty() || fields[3].is_empty() {
        return Err(format!("the skip was not written down with its reason and remedy: {skips:?}").into());
    }
    Ok(())
}

fn suite_fails_on_ci() -> Result<(), Failed> {
    let (output, _) = suite(true)?;
    // Only where CI's list says that this engine must be there.
    if output.status.success() && crate::support::REQUIRED.lines().any(|line| line.trim() == "local-container") {
        return Err("a skip of a required engine stayed green on CI".into());
    }
    Ok(())
}
