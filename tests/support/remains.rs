//! What an ended environment could have left on this host.

use std::fs;
use std::path::{Path, PathBuf};

/// The names in a directory; none if it cannot be read.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Cgroups, processes in them, mounts and files in shared places that bear an environment's id.
pub fn of_environment(id: &str) -> Vec<String> {
    anywhere(&|text| text.contains(id))
}

/// The same for everything that `known` recognises by a name, a line of mountinfo, or a line of a process's cgroups.
pub fn anywhere(known: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut left = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| known(line)).map(|line| format!("mount {line}")));
    let mut groups = Vec::new();
    find_directories(Path::new("/sys/fs/cgroup"), 6, known, &mut groups);
    left.extend(groups.into_iter().map(|path| format!("cgroup {}", path.display())));
    for pid in names(Path::new("/proc")).into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        left.extend(groups.lines().find(|line| known(line)).map(|line| format!("process {pid} in {line}")));
    }
    for place in [std::env::temp_dir(), PathBuf::from("/run"), PathBuf::from("/dev/shm"), PathBuf::from("/var/tmp")] {
        left.extend(names(&place).into_iter().filter(|name| known(name)).map(|name| format!("{}/{name}", place.display())));
    }
    left
}

fn find_directories(dir: &Path, depth: u32, wanted: &dyn Fn(&str) -> bool, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        } else if depth > 0 {
            find_directories(&entry.path(), depth - 1, wanted, found);
        }
    }
}
