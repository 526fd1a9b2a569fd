//! The machine that the numbers are from.

use std::fmt;
use std::fs;

use serde::Serialize;

/// What decides how fast things are.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub root: bool,
}

impl Machine {
    /// Of this machine; what cannot be read is `unknown`.
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let kib: f64 =
            field(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0.0);
        let uid = field(&read("/proc/self/status"), "Uid").unwrap_or_default();
        Self {
            cpu: field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "CPU part")).unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            root: uid.starts_with("0\t"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.root { "root" } else { "a plain user" };
        write!(f, "{}, {} cores, {:.0} GiB, Linux {}, as {who}", self.cpu, self.cores, self.memory_gib, self.kernel)
    }
}

/// The value of a `name : value` line.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// This process's memory, in bytes: what it holds now, and the most since [`forget_peak`].
pub(crate) fn memory() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        |name: &str| -> u64 { field(&status, name).and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or_default() };
    (kib("VmRSS") << 10, kib("VmHWM") << 10)
}

/// Starts counting the peak anew.
pub(crate) fn forget_peak() -> std::io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn this_machine_has_a_name() {
        let machine = Machine::read();
        assert!(!machine.cpu.is_empty() && !machine.kernel.is_empty() && machine.memory_gib > 0.1, "{machine:?}");
    }

    #[test]
    fn the_peak_is_noticed() {
        forget_peak().unwrap();
        let (before, _) = memory();
        let big = vec![1_u8; 32 << 20];
        let (_, peak) = memory();
        assert!(big.iter().all(|byte| *byte == 1) && peak >= before + (24 << 20), "{before} {peak}");
    }
}
