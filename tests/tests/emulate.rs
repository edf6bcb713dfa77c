//! `twinkey emulate`: faults by flags, and what it says of those that make no sense.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use serde_json::json;
use twinkey_tests::hub::TestHub;
use twinkey_tests::programs;

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
