//! `twinkey emulate`: faults by flags, and what it says of those that make no sense.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;
use twinkey_tests::gateway::signal_process;
use twinkey_tests::hub::TestHub;
use twinkey_tests::programs;
use twinkey_tests::waiting::PATIENCE;

#[tokio::test(flavor = "multi_thread")]
async fn flags_put_faults_in_force_from_the_start_and_a_named_flag_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("faults.json");
    let of_file = json!({"latencyMs": 1, "muteConnack": true, "throttles": {"tier": "S3", "queueSecs": 3}});
    std::fs::write(&file, of_file.to_string()).unwrap();
    let args = [
        "--faults",
        file.to_str().unwrap(),
        "--fault",
        "onKeyChange=drop",
        "--fault",
        r#"stalled=[{"identity": "d1"}]"#,
        "--fault",
        "latencyMs=2",
        "--latency",
        "3ms",
        "--tier",
        "s2",
        "--units",
        "4",
        "--propagation-delay",
        "30s",
        "--clock-offset",
        "-90",
        "--seed",
        "7",
    ];
    let hub = TestHub::start_program(&args).await;
    let faults = hub.operate("faults", json!({})).await.expect(200);
    assert_eq!((&faults["latencyMs"], &faults["muteConnack"]), (&json!(3), &json!(true)));
    assert_eq!((&faults["onKeyChange"], &faults["seed"]), (&json!("drop"), &json!(7)));
    assert_eq!((&faults["propagationDelayMs"], &faults["clockOffsetSecs"]), (&json!(30_000), &json!(-90)));
    assert_eq!(faults["stalled"], json!([{"identity": "d1", "newToo": false}]));
    let throttles = &faults["throttles"];
    assert_eq!((&throttles["tier"], &throttles["units"]), (&json!("S2"), &json!(4)));
    assert_eq!(throttles["queueSecs"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_makes_no_sense_is_named_and_starts_no_hub() {
    for (args, named) in [
        (["--fault", "muteConack=true"], "muteConack"),
        (["--fault", "latencyMs=soon"], "latencyMs"),
        (["--fault", "muteConnack"], "FIELD=VALUE"),
        (["--fault", r#"failRequests=[{"code": 404001}]"#], "404001"),
        (["--faults", "/nowhere/faults.json"], "/nowhere/faults.json"),
        (["--tier", "S4"], "S4"),
        (["--units", "2"], "--tier"),
    ] {
        let output = programs::twinkey().arg("emulate").args(args).output().await.unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{args:?}: {words}");
        assert!(words.contains(named), "{args:?}: {words}");
    }
}

/// It has the hub's keys in memory. So has every other command of `twinkey`, which begins in the
/// same way.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_crashes_leaves_no_core_dump() {
    let dir = tempfile::tempdir().unwrap();
    // The shell allows dumps as large as they may be here, and becomes the program.
    let crash = async |program: &str, args: &[&str]| {
        let script = "ulimit -c unlimited 2>/dev/null || ulimit -c \"$(ulimit -H -c)\"; exec \"$0\" \"$@\"";
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", script, program]).args(args).current_dir(dir.path()).kill_on_drop(true);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        timeout(PATIENCE, stdout.read_line(&mut ready)).await.expect("it says that it is ready").unwrap();
        signal_process(child.id().unwrap(), Signal::ABORT);
        let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{ready}");
        status.core_dumped()
    };
    if !crash("sh", &["-c", "echo ready; exec sleep 60"]).await {
        eprintln!("SKIPPED: no program leaves a core dump here");
        return;
    }
    assert!(!crash(programs::twinkey().as_std().get_program().to_str().unwrap(), &["emulate"]).await);
}
