//! This test program, run again in another role.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the role.
pub const ROLE: &str = "TIERBOX_TEST_ROLE";

/// The role of this process; none for the tests themselves.
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// A command that runs this program again with the words before it, in a role.
pub fn this_program_under(words: &[&str], role: &str) -> Command {
    let this = std::env::current_exe().expect("this program's path");
    let mut command = match words.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(this);
            command
        }
        None => Command::new(this),
    };
    command.env(ROLE, role).stdin(Stdio::null());
    command
}

/// The attack program on this host, in a directory that everybody may enter.
pub fn attack_program(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("the directory is ours");
    let path = dir.join("attack");
    // Written by a child, so that no other fork of this process holds it open for writing while it is started.
    let mut copy = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    copy.stdin.take().expect("stdin is piped").write_all(tierbox_testkit::attack::PROGRAM).expect("a file can be written");
    assert!(copy.wait().expect("the copy ends").success());
    path
}
