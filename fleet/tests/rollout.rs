//! Rollouts of the real program over a local hub and real agents: waves, refusals, kills, pauses, and no key in the ledger.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

mod gateways;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateways::{World, exit, text};
use rustix::process::Signal;
use serde_json::{Value, json};
use twinkey_contract::Fingerprint;
use twinkey_sas::Key;

const ALL_YES: [&str; 6] = ["rollout", "start", "--target", "*", "--yes", "--no-progress"];

fn with<'a>(fixed: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    fixed.iter().chain(more).copied().collect()
}

fn print(key: &str) -> String {
    Fingerprint::of(&Key::from_base64(key).unwrap()).to_string()
}

async fn status(world: &World) -> Value {
    world.json(&["rollout", "status"]).await
}

/// Device, state, and fingerprints by slot, before and after.
fn device<'a>(report: &'a Value, id: &str) -> &'a Value {
    report["devices"].as_array().unwrap().iter().find(|device| device["deviceId"] == id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_renewed_in_waves_and_the_ledger_holds_no_key() {
    let ids = ["d1", "d2", "d3", "d4"];
    let world = World::with_agents(&ids).await;
    world.create("bare").await;
    let mut before = Vec::new();
    for id in ids {
        before.push(world.keys(id).await);
    }

    // One that could go dark keeps everybody from being begun.
    let refused = world.run(&ALL_YES).await;
    assert_eq!(exit(&refused), 3, "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("bare: refused: no agent"), "{}", text(&refused.stderr));
    assert!(!world.path("rollout.ledger").exists());
    let plan = world.run(&["rollout", "plan", "--target", "*", "--output", "json", "--seed", "7"]).await;
    assert_eq!(exit(&plan), 3);
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["waves"], json!([1, 3]), "1 %, 10 % and all of 4");
    assert_eq!(plan["operations"]["registry"], json!(12));
    assert_eq!(device(&plan, "bare")["reason"], json!("no-agent"));
    assert_eq!(device(&plan, "d1")["first"], json!("secondary"));

    let run = world.run(&with(&ALL_YES, &["--skip-unsafe", "--waves", "1,50%,100%"])).await;
    let (said, noted) = (text(&run.stdout), text(&run.stderr));
    assert_eq!(exit(&run), 0, "{noted}");
    let report = world.json(&["rollout", "report"]).await;
    assert_eq!(report["state"], json!("done"));
    assert_eq!(report["devicesByState"], json!({"done": 4, "skipped": 1}));
    assert_eq!(device(&report, "bare")["reason"], json!("no-agent"));
    let mut secrets: Vec<String> = vec!["SharedAccessKey=".to_owned()];
    for (id, before) in ids.iter().zip(before) {
        let after = world.keys(id).await;
        for (slot, place) in ["primary", "secondary"].into_iter().zip(0..) {
            assert_eq!(device(&report, id)["before"][slot], json!(print(&before[place])), "{id} {slot}");
            assert_eq!(device(&report, id)["after"][slot], json!(print(&after[place])), "{id} {slot}");
            assert_ne!(before[place], after[place]);
        }
        secrets.extend(before.into_iter().chain(after));
    }
    let page = world.path("report.html");
    world.run_ok(&["rollout", "report", "--html", page.to_str().unwrap()]).await;
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && !page.contains("<script") && ids.iter().all(|id| page.contains(id)));
    let report_text = report.to_string() + &page;
    let files = std::fs::read_dir(world.path("")).unwrap().map(|entry| entry.unwrap().path());
    let ledgers: Vec<_> = files
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("rollout.ledger"))
        .collect();
    assert!(ledgers.len() >= 2, "{ledgers:?}");
    for secret in &secrets {
        for path in &ledgers {
            let bytes = std::fs::read(path).unwrap();
            let holds = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!holds, "{} holds a key", path.display());
        }
        assert!(!said.contains(secret) && !noted.contains(secret) && !report_text.contains(secret));
    }

    let twin_tags = world.run_ok(&["rollout", "plan", "--target", "*", "--skip-unsafe"]).await;
    assert!(twin_tags.contains("it lives on its primary key"), "both slots are renewed again: {twin_tags}");
    let again = world.run(&ALL_YES).await;
    assert_eq!(exit(&again), 2, "the ledger is not overwritten");
    let resumed = world.run(&["rollout", "resume"]).await;
    assert_eq!(exit(&resumed), 0, "there is nothing to do");

    // The ledger is lost; the twins know.
    let id = report["id"].as_str().unwrap();
    world
        .run_ok(&[
            "rollout",
            "rebuild",
            "--id",
            id,
            "--target",
            "*",
            "--skip-unsafe",
            "--ledger",
            "new.ledger",
        ])
        .await;
    let rebuilt = world.json(&["rollout", "report", "--ledger", "new.ledger"]).await;
    assert_eq!(rebuilt["devicesByState"], json!({"done": 4, "skipped": 1}));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_goes_on_and_no_device_goes_dark() {
    let ids = ["d1", "d2", "d3"];
    let world = World::with_agents(&ids).await;
    let mut before = Vec::new();
    for id in ids {
        before.push(world.keys(id).await.map(|key| print(&key)));
    }
    #[allow(clippy::disallowed_methods, reason = "a seed for chance")]
    let mut chance =
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() % 1_000_000).unwrap();
    println!("seed {chance}");
    let mut next = |bound: u64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % bound
    };
    let start = with(&ALL_YES, &["--waves", "1,100%"]);
    let resume = ["rollout", "resume", "--no-progress"];
    for round in 0..6 {
        let args = if world.path("rollout.ledger").exists() { &resume[..] } else { &start[..] };
        let mut child = world.spawn(args);
        tokio::time::sleep(Duration::from_millis(200 + next(1_500))).await;
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        println!("round {round}: killed");
    }
    let args = if world.path("rollout.ledger").exists() { &resume[..] } else { &start[..] };
    let last = world.run(args).await;
    assert_eq!(exit(&last), 0, "{}", text(&last.stderr));
    let report = world.json(&["rollout", "report"]).await;
    assert_eq!(report["devicesByState"], json!({"done": 3}));
    for (id, before) in ids.iter().zip(before) {
        let after = world.keys(id).await.map(|key| print(&key));
        for (slot, place) in ["primary", "secondary"].into_iter().zip(0..) {
            assert_eq!(device(&report, id)["before"][slot], json!(before[place]), "{id} {slot}");
            assert_eq!(device(&report, id)["after"][slot], json!(after[place]), "{id} {slot}");
            assert_ne!(before[place], after[place]);
        }
    }
    // Each of them lives on a key of the registry's, and is connected.
    world.run_ok(&["rollout", "plan", "--target", "*"]).await;
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_runner_hears_who_the_first_is_and_another_terminal_pauses_and_aborts() {
    let world = World::with_agents(&["d1", "d2"]).await;
    let mut runner = world.spawn(&with(&ALL_YES, &["--waves", "100%", "--soak", "1h"]));
    world
        .until("both devices soak", async |world| {
            world.path("rollout.ledger").exists().then_some(())?;
            (status(world).await["devicesByState"]["soaking"] == json!(2)).then_some(())
        })
        .await;
    assert_eq!(status(&world).await["runner"], json!(runner.0.id()));
    let second = world.run(&["rollout", "resume"]).await;
    assert_eq!(exit(&second), 1);
    let said = text(&second.stderr);
    assert!(said.contains(&format!("process {} is at work", runner.0.id())), "{said}");

    world.run_ok(&["rollout", "pause"]).await;
    assert_eq!(runner.0.wait().unwrap().code(), Some(4), "it is not done, and nothing is wrong");
    let paused = status(&world).await;
    assert_eq!((&paused["state"], &paused["runner"]), (&json!("paused"), &Value::Null));
    assert_eq!(paused["devicesByState"], json!({"soaking": 2}));

    let mut runner = world.spawn(&["rollout", "resume", "--no-progress"]);
    world
        .until("it runs", async |world| (status(world).await["state"] == json!("running")).then_some(()))
        .await;
    rustix::process::kill_process(rustix::process::Pid::from_child(&runner.0), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(runner.0.wait().unwrap().code(), Some(4), "SIGTERM pauses");

    assert_eq!(exit(&world.run(&["rollout", "abort"]).await), 2, "without a terminal, --yes is needed");
    world.run_ok(&["rollout", "abort", "--yes"]).await;
    assert_eq!(status(&world).await["state"], json!("aborted"));
    assert_eq!(exit(&world.run(&["rollout", "resume"]).await), 2);
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_made_for_a_device_that_answers_no_challenge() {
    let world = World::with_agents(&["d1", "d2"]).await;
    let before = world.keys("d1").await;
    world.signal(0, Signal::STOP);
    let run = world.run(&with(&ALL_YES, &["--waves", "100%", "--retries", "0"])).await;
    assert_eq!(exit(&run), 4, "{}", text(&run.stderr));
    let report = world.json(&["rollout", "report"]).await;
    assert_eq!(report["devicesByState"], json!({"done": 1, "refused": 1}));
    assert_eq!(device(&report, "d1")["reason"], json!("not-fresh"));
    assert_eq!(world.keys("d1").await, before);
    world.signal(0, Signal::CONT);
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hangs_fails_at_its_deadline_and_gets_the_same_key_when_it_is_back() {
    let world = World::with_agents(&["d1", "d2"]).await;
    let before = world.keys("d1").await.map(|key| print(&key));
    world.signal(0, Signal::STOP);
    // Without a challenge, which it would not answer.
    let flags = ["--waves", "100%", "--deadline", "10s", "--no-challenge"];
    let run = world.run(&with(&ALL_YES, &flags)).await;
    assert_eq!(exit(&run), 4, "{}", text(&run.stderr));
    let report = world.json(&["rollout", "report"]).await;
    assert_eq!(report["devicesByState"], json!({"done": 1, "failed": 1}));
    assert_eq!(device(&report, "d1")["reason"], json!("timeout"));
    let made = world.keys("d1").await.map(|key| print(&key));
    assert_eq!((&made[0], made[1] == before[1]), (&before[0], false), "its own key is untouched");
    assert_eq!(device(&report, "d1")["after"]["secondary"], json!(made[1]));

    world.signal(0, Signal::CONT);
    let resumed = world.run(&["rollout", "resume", "--retry-failed", "--no-progress"]).await;
    assert_eq!(exit(&resumed), 0, "{}", text(&resumed.stderr));
    let after = world.keys("d1").await.map(|key| print(&key));
    assert_eq!(
        (&after[1], after[0] == before[0]),
        (&made[1], false),
        "the key that waited for it was not made again"
    );
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_before_anything_is_done() {
    let world = World::with_agents(&[]).await;
    let said = async |args: &[&str], code: i32| {
        let output = world.run(args).await;
        assert_eq!(exit(&output), code, "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    assert!(said(&["rollout", "plan"], 2).await.contains("no target"));
    assert!(
        said(&["rollout", "plan", "--target", "tags.site = 'A'"], 2).await.contains("the target is empty")
    );
    std::fs::write(world.path("odd.toml"), "target = '*'\nsoak = 7\n").unwrap();
    assert!(said(&["rollout", "plan", "--spec", "odd.toml"], 2).await.contains("odd.toml: line 2, column 8"));
    assert!(said(&["rollout", "status", "--ledger", "none"], 2).await.contains("there is no ledger"));
    assert!(said(&["rollout", "status", "--ledger", "odd.toml"], 2).await.contains("is no ledger"));
    world.create("d1").await;
    world.run_ok(&["module-identity", "create", "-d", "d1", "-m", "meter"]).await;
    let plan =
        world.run(&["rollout", "plan", "--target", "*", "--include-modules", "--output", "json"]).await;
    assert_eq!(exit(&plan), 3, "nobody has an agent");
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    let names: Vec<_> =
        plan["devices"].as_array().unwrap().iter().map(|one| one["moduleId"].as_str()).collect();
    assert_eq!(names, [None, Some("meter")]);
    let stranger = ["rollout", "plan", "--target", "*", "--force-dark", "d2"];
    assert!(said(&stranger, 2).await.contains("d2, which is not in the target"));
    world.hub.shutdown().await;
}
