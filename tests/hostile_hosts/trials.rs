//! The hosts, and what must come of them.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use tierbox_testkit::plain;

use crate::support::again;

/// This host cannot do it, or an engine is missing.
const HOST_UNABLE: i32 = 69;
/// Refused: the tier, a required limit.
const REFUSED: i32 = 77;

/// A message must come within this time.
const LIMIT: Duration = Duration::from_secs(1);

/// What a private mount namespace changes before the rest of its arguments is run.
const MASKED_PROC: &str = "mount -t tmpfs -o ro none /proc/sys && exec \"$@\"";
const NO_SUBUID: &str = "mount --bind /dev/null /etc/subuid && mount --bind /dev/null /etc/subgid && exec \"$@\"";
const NO_CGROUP: &str = "for m in $(grep -E ' - cgroup2? ' /proc/self/mountinfo | cut -d' ' -f5); do mount -o remount,bind,ro $m || exit 99; done; exec \"$@\"";
const READ_ONLY_SYS: &str = "mount -o remount,bind,ro /sys && exec \"$@\"";
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

#[derive(Clone, Copy)]
struct Host {
    name: &'static str,
    before: Before,
    /// Whether a start may succeed all the same, with everything that the tier needs.
    may_work: bool,
    /// Words of which the message must have one.
    says: &'static [&'static str],
    /// What is asked of `tierbox run` beside the command.
    options: &'static [&'static str],
}

const HOSTS: &[Host] = &[
    Host { name: "as_it_is", before: Before::Nothing, may_work: true, says: &[], options: &[] },
    Host {
        name: "namespaces_denied_by_seccomp",
        before: Before::Filter("namespaces"),
        may_work: false,
        says: &["seccomp"],
        options: &[],
    },
    Host {
        name: "user_namespaces_denied_by_seccomp",
        before: Before::Filter("user-namespaces"),
        may_work: false,
        says: &["seccomp"],
        options: &[],
    },
    Host { name: "mounts_denied_by_seccomp", before: Before::Filter("mount"), may_work: false, says: &["seccomp"], options: &[] },
    Host {
        name: "no_memory_files",
        before: Before::Filter("memfd"),
        may_work: true,
        says: &["memory file", "memfd"],
        options: &[],
    },
    Host {
        name: "no_more_user_namespaces",
        before: Before::OwnUsers(NO_NAMESPACES),
        may_work: false,
        says: &["max_user_namespaces"],
        options: &[],
    },
    Host {
        name: "nobody_in_a_user_namespace",
        before: Before::Nobody,
        may_work: false,
        says: &["user namespace", "namespace"],
        options: &[],
    },
    Host { name: "masked_proc", before: Before::Mounts(MASKED_PROC), may_work: false, says: &["/proc"], options: &[] },
    Host { name: "no_proc", before: Before::Mounts(NO_PROC), may_work: false, says: &["/proc"], options: &[] },
    Host { name: "no_new_privileges", before: Before::NoNewPrivileges, may_work: true, says: &["no_new_privs"], options: &[] },
    Host { name: "no_subordinate_ids", before: Before::Mounts(NO_SUBUID), may_work: true, says: &["subuid"], options: &[] },
    Host { name: "no_writable_cgroup", before: Before::Mounts(NO_CGROUP), may_work: true, says: &["cgroup"], options: &[] },
    Host {
        name: "no_writable_cgroup_and_a_required_limit",
        before: Before::Mounts(NO_CGROUP),
        may_work: false,
        says: &["memory"],
        options: &["--set", "limits.memory=\"2GiB\""],
    },
    Host {
        name: "read_only_sys",
        before: Before::Mounts(READ_ONLY_SYS),
        may_work: true,
        says: &["/sys", "cgroup"],
        options: &[],
    },
];

/// Every host as a plain user, and where it makes a difference as root.
pub fn all() -> Vec<Trial> {
    let mut trials = Vec::new();
    for host in HOSTS {
        // A plain user's tests cannot change the host's mounts; root inside a user namespace is no root.
        let plain_works = plain::is_root() || !matches!(host.before, Before::Mounts(_));
        trials.push(
            Trial::test(format!("crash::hosts::plain::{}", host.name), || run(*host, true)).with_ignored_flag(!plain_works),
        );
        if !matches!(host.before, Before::OwnUsers(_) | Before::Nobody) {
            trials.push(
                Trial::test(format!("crash::hosts::root::{}", host.name), || run(*host, false))
                    .with_ignored_flag(!plain::is_root()),
            );
        }
    }
    trials.push(Trial::test("crash::hosts::the_suite_skips_and_stays_green", suite_skips));
    trials.push(Trial::test("crash::hosts::the_suite_fails_where_the_engine_is_required", suite_fails_on_ci));
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

fn timed(command: &mut Command) -> std::io::Result<(Output, Duration)> {
    let start = Instant::now();
    let output = command.output()?;
    Ok((output, start.elapsed()))
}

fn run(host: Host, as_plain: bool) -> Result<(), Failed> {
    let mut slowest = Duration::MAX;
    // A busy machine may need a second look; what is really slow is slow each time.
    for _ in 0..3 {
        let dir = tempfile::tempdir()?;
        let mut command = command(host.before, as_plain, "cli", dir.path())?;
        command.arg("run").args(host.options).args(["--", "/bin/echo", "inside"]);
        let (output, took) = timed(&mut command)?;
        judge(host, &output)?;
        slowest = slowest.min(took);
        if slowest < LIMIT {
            return Ok(());
        }
    }
    Err(format!("it took {slowest:?}, three times").into())
}

fn judge(host: Host, output: &Output) -> Result<(), Failed> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let fail = |what: &str| Err(Failed::from(format!("{what}\n  status: {}\n  stdout: {out}\n  stderr: {err}", output.status)));
    if output.status.signal().is_some() || err.contains("panicked") {
        return fail("it did not end in an orderly way");
    }
    match output.status.code() {
        Some(0) if host.may_work => {
            if out != "inside\n" || !err.contains("T0.H1.N2") {
                return fail("it says that it worked, and shows no command of T0.H1.N2");
            }
        }
        Some(0) => return fail("it worked where it cannot: it must have fallen back"),
        Some(HOST_UNABLE | REFUSED) => {
            if !out.is_empty() {
                return fail("a refusal prints nothing on stdout");
            }
            if err.matches("help:").count() != 1 {
                return fail("a refusal is one message with one remedy");
            }
            if !host.says.iter().any(|word| err.contains(word)) {
                return fail(&format!("the message names none of {:?}", host.says));
            }
        }
        _ => return fail("the status is not one of those documented for this"),
    }
    Ok(())
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
