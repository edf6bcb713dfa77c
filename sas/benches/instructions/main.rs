//! `cargo bench -p twinkey-sas --bench instructions`: how many instructions a token costs on a processor without SHA
//! instructions, counted by valgrind, which has none either. Unlike a time, a count is the same on every run.
//!
//! It also looks whether verification and the reading of keys execute equally many instructions whatever they compare
//! and read. `-- --gate` fails if they don't, or if a count is more than 15 % above `baseline.txt`.
//!
//! `LABEL TIMES` as arguments does that work so many times and nothing else: for other counters, such as qemu's.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a measurement may panic")]
#![allow(clippy::expect_used, clippy::panic, reason = "a measurement may panic")]

mod cases;
mod valgrind;

use cases::{Case, cases};
use valgrind::{Counts, Skipped, count};

/// What a count may be above its baseline.
const SLACK: f64 = 1.15;

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench" && argument != "--quick").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => report(false),
        ["--gate"] => report(true),
        [valgrind::INSIDE] => valgrind::run_all(),
        [label, times] => {
            let mut all = cases();
            let case = all.iter_mut().find(|case| case.label == label).expect("no such work");
            (0..times.parse::<usize>().expect("not a number")).for_each(|_| (case.work)());
        }
        _ => panic!("arguments: [--gate] or LABEL TIMES"),
    }
}

fn report(is_gate: bool) {
    let counts = match count() {
        Ok(counts) => counts,
        Err(Skipped(reason)) => {
            println!("SKIPPED: instruction counts ({reason})");
            return;
        }
    };
    println!("instructions, {}:\n\n| what | instructions |\n|---|---:|", counts.conditions);
    for case in cases().iter().filter(|case| case.family.is_none()) {
        println!("| {} | {:.0} |", case.label, counts.of(case));
    }
    println!();
    let (is_constant, is_small) = (is_constant(&counts), is_small_enough(&counts));
    if is_gate {
        let passed = is_constant && is_small;
        println!("gate {}", if passed { "passed" } else { "failed" });
        std::process::exit(if passed { 0 } else { 1 });
    }
}

/// Whether all cases of each family took exactly as many instructions.
fn is_constant(counts: &Counts) -> bool {
    let all = cases();
    let mut families: Vec<&str> = all.iter().filter_map(|case| case.family).collect();
    families.dedup();
    let mut is_constant = true;
    for family in families {
        let members: Vec<&Case> = all.iter().filter(|case| case.family == Some(family)).collect();
        let least = members.iter().min_by_key(|case| counts.total(case)).unwrap();
        let most = members.iter().max_by_key(|case| counts.total(case)).unwrap();
        let (few, many) = (counts.total(least), counts.total(most));
        if few == many {
            println!("{family}: {many} instructions in each of {} cases", members.len());
        } else {
            println!("{family}: {few} instructions ({}), {many} ({}): NOT CONSTANT", least.label, most.label);
            is_constant = false;
        }
    }
    is_constant
}

/// Whether no count is too far above `baseline.txt`; also if it was made under other conditions.
fn is_small_enough(counts: &Counts) -> bool {
    let mut lines = include_str!("baseline.txt").lines().filter(|line| !line.starts_with('#'));
    let conditions = lines.next().unwrap_or_default();
    if conditions != counts.conditions {
        println!("SKIPPED: comparison with the baseline, which is for {conditions}");
        return true;
    }
    let all = cases();
    let mut is_small = true;
    for line in lines {
        let (label, expected) = line.rsplit_once(' ').unwrap();
        let case = all.iter().find(|case| case.label == label).unwrap();
        let (found, highest) = (counts.of(case), expected.parse::<f64>().unwrap() * SLACK);
        if found > highest {
            println!("{label}: {found:.0} instructions, at most {highest:.0} were expected");
            is_small = false;
        }
    }
    is_small
}
