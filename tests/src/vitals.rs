//! What a process holds, as Linux tells it (proc(5)).

use std::fs;

/// Memory and descriptors of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Resident memory in KiB: `VmRSS`.
    pub resident_kib: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

impl Vitals {
    /// Of a running process.
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        let resident_kib = resident.trim().strip_suffix(" kB").expect("in KiB").parse().unwrap();
        let descriptors =
            fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is ours").count() as u64;
        Self { resident_kib, descriptors }
    }
}
