//! The process groups in which Vagrant runs for an environment, written down in its place: another process ends them by it, and ends
//! nothing else. What Vagrant starts on demand (a hypervisor's service, an agent for keys) inherits the mark, serves everybody, and
//! lives in a session of its own.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgid, getpgrp, kill_process_group};
use tierbox_core::Result;

use crate::place::{MARK, Place, write_private};

/// How long a `vagrant up` that lost its harness may take to undo what it began.
const INTERRUPTED: Duration = Duration::from_secs(20);

/// What is written of a group that was interrupted: Ruby ends without cleaning up at the second time.
const STOPPING: &[u8] = b"interrupted";

fn file(place: &Place, group: Pid) -> PathBuf {
    place.file("groups").join(group.as_raw_nonzero().to_string())
}

/// Writes a group down.
///
/// # Errors
/// What the file system says.
pub fn note(place: &Place, group: Pid) -> Result<()> {
    crate::place::make_directory(&place.file("groups"))?;
    write_private(&file(place, group), b"")
}

/// Forgets a group that has ended.
pub fn forget(place: &Place, group: Pid) {
    let _ = std::fs::remove_file(file(place, group));
}

/// Interrupts a group, unless somebody did.
pub fn interrupt(place: &Place, group: Pid) {
    if std::fs::read(file(place, group)).is_ok_and(|said| said == STOPPING) {
        return;
    }
    // First, so that nobody who comes meanwhile does it as well.
    let _ = crate::place::make_directory(&place.file("groups"));
    let _ = write_private(&file(place, group), STOPPING);
    let _ = kill_process_group(group, Signal::INT);
}

/// Ends what runs of Vagrant for an environment. Returns whether there was anything.
pub async fn end(place: &Place) -> bool {
    let groups = of(place);
    groups.iter().for_each(|group| interrupt(place, *group));
    let started = Instant::now();
    loop {
        let left: Vec<Pid> = of(place).into_iter().filter(|group| groups.contains(group)).collect();
        if left.is_empty() {
            break;
        }
        if started.elapsed() > INTERRUPTED {
            for group in left {
                let _ = kill_process_group(group, Signal::KILL);
            }
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    groups.iter().for_each(|group| forget(place, *group));
    !groups.is_empty()
}

/// The groups of Vagrant's that have a member which bears the environment's mark. None where there is no `/proc`.
fn of(place: &Place) -> HashSet<Pid> {
    let wanted = format!("{MARK}={}", place.token);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| words(*pid, "environ").iter().any(|variable| variable == wanted.as_bytes()))
        .filter_map(|pid| getpgid(Pid::from_raw(pid)).ok())
        .filter(|group| *group != getpgrp() && (file(place, *group).exists() || is_led_by_vagrant(*group)))
        .collect()
}

/// A harness that died in the moment after it had begun Vagrant did not write it down.
fn is_led_by_vagrant(group: Pid) -> bool {
    let words = words(group.as_raw_nonzero().get(), "cmdline");
    words.iter().any(|word| word == b"--machine-readable")
        && words.iter().any(|word| word == b"vagrant" || word.ends_with(b"/vagrant"))
}

fn words(pid: i32, what: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod unit {
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, Command};

    use super::*;

    fn place(directory: &Path) -> Place {
        Place {
            token: crate::place::new_token().unwrap(),
            directory: directory.to_owned(),
            vagrantfile: "/x".into(),
            provider: "libvirt".into(),
            isolated: None,
        }
    }

    /// A process in a group of its own that bears the mark, and writes how often it was interrupted.
    fn begun(place: &Place, count: &Path) -> (Child, Pid) {
        let script = "trap 'echo >>\"$0\"; sleep 0.3; exit' INT; while :; do sleep 0.02; done";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).arg(count).env(MARK, &place.token).process_group(0);
        let child = command.spawn().unwrap();
        let group = Pid::from_raw(child.id() as i32).unwrap();
        (child, group)
    }

    async fn interrupted(count: &Path) -> usize {
        tokio::time::sleep(Duration::from_millis(20)).await;
        std::fs::read(count).unwrap_or_default().len()
    }

    /// Waits until the shell has set its trap: it sleeps after that.
    fn is_ready(child: &Child) {
        let pid = child.id();
        while !std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).is_ok_and(|children| !children.is_empty()) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[tokio::test]
    async fn what_was_written_down_is_interrupted_once_and_what_only_bears_the_mark_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let (counts, others) = (dir.path().join("counts"), dir.path().join("others"));
        let (mut ours, group) = begun(&place, &counts);
        let (mut service, _) = begun(&place, &others);
        note(&place, group).unwrap();
        is_ready(&ours);
        is_ready(&service);
        // As a start that was given up does, right before it removes what there is.
        interrupt(&place, group);
        let reaped = std::thread::spawn(move || ours.wait().unwrap());
        assert!(end(&place).await);
        assert!(reaped.join().unwrap().code().is_some(), "it was killed");
        assert_eq!((interrupted(&counts).await, interrupted(&others).await), (1, 0));
        assert!(service.try_wait().unwrap().is_none() && !end(&place).await);
        service.kill().unwrap();
        service.wait().unwrap();
    }
}
