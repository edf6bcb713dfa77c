//! `twinkey demo`: the whole story holds, and nothing is left behind.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

fn demo(temporary: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinkey"));
    command.arg("demo").env("TMPDIR", temporary.path()).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn is_empty(temporary: &tempfile::TempDir) -> bool {
    std::fs::read_dir(temporary.path()).unwrap().next().is_none()
}

#[test]
fn keys_and_tokens_are_renewed_without_a_dark_instant_and_no_message_is_lost() {
    let temporary = tempfile::tempdir().unwrap();
    let output = demo(&temporary).arg("--json").output().unwrap();
    let story = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{story}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let summary: Value = serde_json::from_str(stdout.lines().next_back().unwrap()).unwrap();
    assert_eq!(summary["ok"], json!(true));
    assert_eq!((summary["rotations"].as_u64(), summary["fallbacks"].as_u64()), (Some(4), Some(1)));
    assert_eq!(summary["gapMs"]["renewals"].as_f64(), Some(0.0));
    assert!(summary["gapMs"]["outages"].as_f64().unwrap() > 0.0, "a restart is an outage");
    assert!(summary["takeovers"].as_u64().unwrap() >= 4, "three renewals and a token");
    assert_eq!(summary["messages"]["lost"].as_u64(), Some(0));
    let per_second = summary["messages"]["sent"].as_f64().unwrap() / summary["seconds"].as_f64().unwrap();
    assert!(per_second >= 50.0, "{per_second} messages a second");
    assert!(!story.contains("SharedAccess"), "{story}");
    assert!(is_empty(&temporary), "files are left");
}

#[test]
fn an_interrupted_demo_takes_hub_agent_and_files_with_it() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = demo(&temporary).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("the gateway connects")).unwrap().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let agents = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let agents: Vec<&str> = agents.split_whitespace().collect();
    assert_eq!(agents.len(), 1, "the agent is a process of its own");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!std::path::Path::new("/proc").join(agents[0]).exists(), "the agent outlives the demo");
    assert!(is_empty(&temporary), "files are left");
}
