//! Counts the instructions of this program's own cases by running it again under callgrind.

use std::{env, fs, hint::black_box, path::Path, process::Command};

use twinkey_sas::simd::{Level, limit_to};

use crate::cases::{Case, cases};

/// The argument that says to run all cases for callgrind.
pub(crate) const INSIDE: &str = "--inside-valgrind";

/// Why there are no counts.
pub(crate) struct Skipped(pub(crate) String);

pub(crate) struct Counts {
    /// Compiler and processor: other counts are only comparable if they are the same.
    pub(crate) conditions: String,
    /// Of each case, in order.
    totals: Vec<u64>,
}

impl Counts {
    /// Instructions of the whole case.
    pub(crate) fn total(&self, case: &Case) -> u64 {
        self.totals[case.index]
    }

    /// Instructions for each token or key.
    pub(crate) fn of(&self, case: &Case) -> f64 {
        self.total(case) as f64 / case.count as f64
    }
}

pub(crate) fn count() -> Result<Counts, Skipped> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Skipped("callgrind is asked on x86-64 only".into()));
    }
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.split(' ').take(2).collect::<Vec<_>>().join(" ").trim().to_owned())
    };
    if version("valgrind").is_none() {
        return Err(Skipped("valgrind is not installed".into()));
    }
    let compiler = env::var("RUSTC").ok().as_deref().or(Some("rustc")).and_then(version);
    let place = env::temp_dir().join(format!("twinkey-instructions-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    let counts = run(&place, compiler.unwrap_or_else(|| "unknown compiler".into()));
    fs::remove_dir_all(&place).unwrap();
    counts
}

fn run(place: &Path, compiler: String) -> Result<Counts, Skipped> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--zero-before=*count_from_here*", "--dump-before=*count_to_here*"])
        .arg(format!("--callgrind-out-file={}", place.join("out").display()))
        .arg(env::current_exe().unwrap())
        .arg(INSIDE)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        return Err(Skipped(format!("valgrind failed: {}", String::from_utf8_lossy(&output.stderr))));
    }
    // Each dump is a file of its own, numbered from 1.
    let total = |number: usize| {
        let text = fs::read_to_string(place.join(format!("out.{number}"))).unwrap();
        let line =
            text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        line.unwrap().trim().parse().unwrap()
    };
    let totals = (1..=cases().len()).map(total).collect();
    Ok(Counts { conditions: format!("{compiler}, {said}"), totals })
}

/// What runs inside: says what the processor seems to have, and goes through all cases.
pub(crate) fn run_all() {
    println!("portable beside {:?}", limit_to(Level::Avx512));
    for case in &mut cases() {
        // Once to warm up: what is looked for once should not be counted.
        (case.work)();
        count_from_here();
        (case.work)();
        count_to_here();
    }
}

/// Callgrind counts from here.
#[inline(never)]
fn count_from_here() {
    black_box(0);
}

/// Callgrind writes down here what it has counted.
#[inline(never)]
fn count_to_here() {
    black_box(1);
}
