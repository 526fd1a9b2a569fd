//! The same tests as a plain user, where they are run by root.
//!
//! The test program runs itself again under `setpriv`, with nothing of root's left: no groups, no environment, a home and a
//! state directory of its own.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use tempfile::TempDir;

use crate::subject::Absence;

/// The user that the tests make where it does not exist.
pub const USER: &str = "tierbox-test";

/// Set in the process that runs as the plain user.
const MARK: &str = "TIERBOX_TESTKIT_PLAIN";

/// What is removed when the tests are over.
static KEPT: Mutex<Option<Place>> = Mutex::new(None);

struct Place {
    home: TempDir,
    program: PathBuf,
}

/// Whether this process is the one that runs as the plain user.
pub fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Why tests cannot be run as a plain user from here, if so.
pub fn absent() -> Option<Absence> {
    if !is_root() {
        return Some(Absence { reason: "the tests already run as a plain user".into(), install: String::new() });
    }
    let missing = ["setpriv", "useradd"].into_iter().find(|tool| !find(tool));
    missing
        .map(|tool| Absence { reason: format!("{tool} is not installed"), install: "apt-get install util-linux passwd".into() })
}

fn find(tool: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(tool).exists())
}

fn id_of_user() -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find_map(|line| line.strip_prefix(USER)?.strip_prefix(':').map(str::to_owned))?;
    let mut fields = line.split(':').skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn ensure_user() -> Result<(u32, u32), String> {
    if let Some(ids) = id_of_user() {
        return Ok(ids);
    }
    // Several test processes may be here at once: whoever comes late finds the user made.
    for _ in 0..20 {
        let made = Command::new("useradd").args(["--no-create-home", "--shell", "/bin/sh", USER]).output();
        if let Some(ids) = id_of_user() {
            return Ok(ids);
        }
        let made = made.map_err(|error| format!("useradd: {error}"))?;
        if made.status.code() != Some(1) && made.status.code() != Some(10) {
            return Err(format!("useradd {USER}: {}", String::from_utf8_lossy(&made.stderr)));
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(format!("the user {USER} could not be made: the password file stayed locked"))
}

/// Whether everybody may reach and run a file.
fn is_open(path: &Path) -> bool {
    let allows = |path: &Path, bits| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & bits == bits);
    allows(path, 0o005) && path.ancestors().skip(1).all(|dir| allows(dir, 0o001))
}

fn prepare() -> Result<Place, String> {
    let (uid, gid) = ensure_user()?;
    let place = || -> io::Result<Place> {
        let home = tempfile::Builder::new().prefix("tierbox-plain-").permissions(fs::Permissions::from_mode(0o700)).tempdir()?;
        let mut program = std::env::current_exe()?;
        if !is_open(&program) {
            let copy = home.path().join("tests");
            fs::copy(&program, &copy)?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
            program = copy;
        }
        chown(home.path(), Some(uid), Some(gid))?;
        Ok(Place { home, program })
    };
    place().map_err(|error| format!("no place for the plain user's tests could be made: {error}"))
}

/// A command of the plain user's that runs this test program again.
///
/// # Errors
/// If the user or its directory cannot be made.
pub fn this_program() -> Result<Command, String> {
    this_program_under(&[], &[])
}

/// The same, with other programs before it: `outer` is run as root, `inner` as the plain user. Each must run what follows it.
///
/// # Errors
/// If the user or its directory cannot be made.
pub fn this_program_under(outer: &[&str], inner: &[&str]) -> Result<Command, String> {
    let mut kept = KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if kept.is_none() {
        *kept = Some(prepare()?);
    }
    let place = kept.as_ref().ok_or("no place for the plain user's tests")?;
    let become_plain = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups", "--inh-caps=-all", "--"];
    let mut words = outer.iter().chain(&become_plain).chain(inner);
    let mut command = Command::new(words.next().ok_or("no program")?);
    command.args(words).arg(&place.program);
    surround(&mut command, place.home.path());
    Ok(command)
}

/// Gives a command the plain user's environment, and nothing of root's.
fn surround(command: &mut Command, home: &Path) {
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    command.env("HOME", home).env("USER", USER).env("LOGNAME", USER).env("TIERBOX_STATE_DIR", home.join("state"));
    command.env("TIERBOX_SKIP_FILE", home.join("skips")).env(MARK, "1");
    // By this a case sees whether anything of the harness's environment gets inside.
    command.env("TIERBOX_TESTKIT_CANARY", "canary");
    for name in ["CI", "RUST_BACKTRACE", "TIERBOX_LOG"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.current_dir(home).stdin(Stdio::null());
}

/// Runs one test of this program as the plain user.
///
/// # Errors
/// What the test said.
pub fn run_test(name: &str) -> Result<(), String> {
    let output = this_program()?.args(["--exact", name, "--nocapture", "--test-threads=1"]).output();
    let output = output.map_err(|error| format!("setpriv: {error}"))?;
    pass_skips_on().map_err(|error| format!("the plain user's skips could not be passed on: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(said);
    }
    if !said.contains("1 passed") {
        return Err(format!("the plain user's process ran no such test:\n{said}"));
    }
    Ok(())
}

fn pass_skips_on() -> io::Result<()> {
    let kept = KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (Some(place), Some(path)) = (kept.as_ref(), std::env::var_os("TIERBOX_SKIP_FILE")) else { return Ok(()) };
    let theirs = place.home.path().join("skips");
    let Ok(skips) = fs::read(&theirs) else { return Ok(()) };
    fs::remove_file(theirs)?;
    fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(&skips)
}

/// Removes what [`this_program`] made, but for the user.
pub fn clean() {
    KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
}
