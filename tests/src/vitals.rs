//! What a process holds and has used, as Linux tells it (proc(5)).

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::waiting::until;

/// Looks at a process at rest.
const LOOKS: usize = 10;

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

    /// Of a process at rest. What it has just done may still hold a descriptor for a moment (a program that has asked and
    /// gone, a file that is being written), so the fewest of some looks count, all made while `is_calm`.
    pub async fn at_rest(pid: u32, is_calm: impl Fn() -> bool) -> Self {
        let mut looks = Vec::new();
        until("the process is at rest", async || {
            if is_calm() {
                looks.push(Self::of(pid));
            }
            looks.iter().min_by_key(|vitals| vitals.descriptors).copied().filter(|_| looks.len() >= LOOKS)
        })
        .await
    }
}

/// What a process has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// The most memory that was ever resident, in KiB: `VmHWM`.
    pub peak_kib: u64,
    /// Processor time, of the process and the kernel for it, in seconds.
    pub processor_secs: f64,
}

impl Usage {
    /// Of a process; `None` if it has ended.
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // User and system time are the 14th and 15th fields; the second, the name, ends with a parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().map(|at| fields[*at].parse::<f64>().unwrap()).sum();
        Some(Self {
            peak_kib: peak.trim().strip_suffix(" kB").expect("in KiB").parse().unwrap(),
            processor_secs: ticks / rustix::param::clock_ticks_per_second() as f64,
        })
    }
}

/// Raises the limit of open files, of programs started from here too, and says what it is.
pub fn raise_descriptors(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return limit.current.unwrap_or(u64::MAX);
    }
    let maximum = limit.maximum.unwrap_or(u64::MAX).max(wanted);
    // Only root may raise the maximum.
    let _ =
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: Some(maximum) }).or_else(|_| {
            let current = limit.maximum.map(|maximum| maximum.min(wanted));
            setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum })
        });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
