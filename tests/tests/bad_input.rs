//! Bad input of every kind, with the real agent: connection strings, offers, twins, certificates, key-ring files, disks,
//! and a hub that does not answer. The device stays connected, or says why it can't be and comes back by itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use twinkey_contract::KeySlot;
use twinkey_contract::report::{Reason, Status};
use twinkey_contract::twin::{SECTION_LEN_MAX, TWIN_LEN_MAX};
use twinkey_tests::gateway::{Agent, Gateway, Settings, connection_string, text};
use twinkey_tests::hub::{Keys, TestHub, is_about};
use twinkey_tests::offers;
use twinkey_tests::scripted::ScriptedHub;
use twinkey_tests::waiting::{until, within};

const DEVICE: &str = "gateway-1";
/// A twin that holds nothing.
const EMPTY_TWIN: &[u8] = br#"{"desired": {"$version": 1}, "reported": {"$version": 1}}"#;

async fn connected(hub: &TestHub) -> (Gateway, Agent, Keys) {
    let keys = hub.create(DEVICE).await;
    let gateway = Gateway::new(hub, DEVICE, &keys.primary);
    let agent = started(hub, &gateway).await;
    (gateway, agent, keys)
}

async fn started(hub: &TestHub, gateway: &Gateway) -> Agent {
    let agent = gateway.start();
    let wish = |report: &twinkey_contract::report::Report| report.active == Some(KeySlot::Primary);
    hub.until_report(DEVICE, "the first report", wish).await;
    agent
}

async fn offer_new_key(hub: &TestHub, slot: &str) -> String {
    let keys = hub.regenerate(DEVICE, &format!("{slot}Key")).await;
    let rotation = offers::rotation_id();
    hub.desire(DEVICE, offers::plain(&rotation, slot, keys.of_slot(slot))).await;
    rotation
}

/// One error that says what and what to do, and no panic.
fn assert_explained(what: &str, stderr: &str) {
    assert!(stderr.contains("error: "), "{what}: {stderr}");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_string_that_makes_no_sense_is_refused_with_a_reason_and_nothing_is_stored() {
    let key = offers::stray_key();
    let base = "HostName=localhost;DeviceId=d";
    let of_len = |len: usize| format!("{base};SharedAccessKey={}", STANDARD.encode(vec![7; len]));
    let cases: [(Vec<u8>, &str); 22] = [
        (b"".to_vec(), "is empty"),
        (b"\n\n".to_vec(), "is empty"),
        (b"garbage".to_vec(), "no `=`"),
        (b"\0\0\0\0".to_vec(), "no `=`"),
        (b"\xff\xfe\x80".to_vec(), "UTF-8"),
        (vec![b'x'; 1 << 20], "too long"),
        (b"{\"HostName\": \"localhost\"}".to_vec(), "no `=`"),
        (format!("SharedAccessKey={key}").into_bytes(), "lacks the part HostName"),
        (format!("HostName=localhost;SharedAccessKey={key}").into_bytes(), "neither a device"),
        (base.as_bytes().to_vec(), "lacks the part SharedAccessKey"),
        (format!("{base};SharedAccessKey=").into_bytes(), "SharedAccessKey is empty"),
        (format!("{base};sharedaccesskey={key}").into_bytes(), "case-sensitive"),
        (format!("{base};{base};SharedAccessKey={key}").into_bytes(), "twice"),
        (
            format!("HostName=https://localhost/;DeviceId=d;SharedAccessKey={key}").into_bytes(),
            "no host name",
        ),
        (format!("HostName=localhost;DeviceId=a/b;SharedAccessKey={key}").into_bytes(), "id"),
        (
            format!("HostName=localhost;SharedAccessKeyName=p;SharedAccessKey={key}").into_bytes(),
            "hub policy's",
        ),
        (format!("{base};SharedAccessKey={}", &key[..41]).into_bytes(), "SharedAccessKey is wrong"),
        (format!("{base};SharedAccessKey={}", &key[..43]).into_bytes(), "SharedAccessKey is wrong"),
        (format!("{base};SharedAccessKey=***").into_bytes(), "SharedAccessKey is wrong"),
        (of_len(15).into_bytes(), "SharedAccessKey is wrong"),
        (of_len(65).into_bytes(), "SharedAccessKey is wrong"),
        (of_len(1_000).into_bytes(), "SharedAccessKey is wrong"),
    ];
    let settings = Settings::at(1, Path::new("/nonexistent"));
    let gateway = Gateway::with(settings, "");
    for (wrong, reason) in cases {
        let shown = String::from_utf8_lossy(&wrong[..wrong.len().min(40)]).into_owned();
        let from_stdin = gateway.run_with_input(&["provision"], &wrong).await;
        gateway.write_private("connection-string", &wrong);
        let from_file = gateway.run(&["run"]).await;
        for output in [from_stdin, from_file] {
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{shown}: {error}");
            assert_explained(&shown, &error);
            assert!(error.contains(reason), "{shown}: {error}");
        }
        assert!(gateway.key_rings().is_empty(), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_string_with_line_ends_and_blanks_around_it_is_taken() {
    let hub = TestHub::start().await;
    let keys = hub.create(DEVICE).await;
    let wrapped = format!("  {}\r\n\r\n", connection_string("localhost", DEVICE, &keys.primary));
    let gateway = Gateway::with(Settings::for_hub(&hub), &wrapped);
    let _agent = started(&hub, &gateway).await;
}

/// Shapes of `keyRenewal` and what is reported about each. Shapes with `ROTATION` name a rotation.
fn shapes(held_key: &str) -> Vec<(Value, Reason)> {
    const ROTATION: &str = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f";
    let of_len = |len: usize| STANDARD.encode(vec![7; len]);
    let slot = |slot: Value| json!({"rotation": ROTATION, "primary": slot});
    let mut damaged = STANDARD.decode(held_key).unwrap();
    damaged[31] ^= 1;
    let text_4k = "x".repeat(4_000);
    let mut deep = json!({"key": "x"});
    for _ in 0..6 {
        deep = json!({"deeper": deep});
    }
    let malformed = [
        json!(true),
        json!(0),
        json!(-1.5),
        json!(""),
        json!("rotate"),
        json!([]),
        json!([{"rotation": ROTATION}]),
        json!({"rotation": ROTATION}),
        json!({"primary": {"key": held_key}}),
        json!({"rotation": 7, "primary": {"key": held_key}}),
        json!({"rotation": "today", "primary": {"key": held_key}}),
        json!({"rotation": ROTATION, "primary": null, "secondary": null, "tertiary": {"key": held_key}}),
        json!({"rotation": {"id": ROTATION}, "secondary": {"key": held_key}}),
        slot(json!(held_key)),
        slot(json!([held_key])),
        slot(json!({})),
        slot(json!({"key": 5})),
        slot(json!({"key": ""})),
        slot(json!({"key": [held_key]})),
        slot(json!({"key": "***"})),
        slot(json!({"key": of_len(15)})),
        slot(json!({"key": of_len(65)})),
        slot(json!({"key": held_key, "sealed": of_len(80)})),
        slot(json!({"sealed": "***"})),
        slot(json!({"sealed": of_len(8)})),
        slot(json!({"sealed": {"key": held_key}})),
        slot(json!({"key": text_4k})),
        slot(deep),
        // As large as a hub takes it.
        json!({"rotation": ROTATION, "primary": (0..7).map(|n| (n.to_string(), text_4k.clone().into())).collect::<serde_json::Map<_, _>>()}),
        json!((0..1_700).map(|n| (format!("key{n}"), json!({"key": n}))).collect::<serde_json::Map<_, _>>()),
        // A good slot does not save a bad one.
        json!({"rotation": ROTATION, "primary": {"key": held_key}, "secondary": {"key": 1}}),
    ];
    let mut shapes: Vec<_> = malformed.into_iter().map(|shape| (shape, Reason::Malformed)).collect();
    shapes.push((slot(json!({"key": STANDARD.encode(damaged)})), Reason::Checksum));
    shapes.push((slot(json!({"sealed": of_len(80)})), Reason::CannotUnseal));
    shapes
}

#[tokio::test(flavor = "multi_thread")]
async fn desired_properties_of_any_shape_are_reported_invalid_and_change_neither_connection_nor_key_ring() {
    let hub = TestHub::start().await;
    let (gateway, _agent, keys) = connected(&hub).await;
    let held = gateway.key_rings();
    for (shape, reason) in shapes(&keys.primary) {
        let shown: String = shape.to_string().chars().take(120).collect();
        hub.desire(DEVICE, json!({"keyRenewal": shape.clone()})).await;
        let what = format!("invalid for {reason}: {shown}");
        let wish = |report: &twinkey_contract::report::Report| report.status == Status::Invalid;
        let report = hub.until_report(DEVICE, &what, wish).await;
        assert_eq!(report.reason, Some(reason), "{shown}");
        // Nothing in a section that is too long is read.
        let is_read = shape.to_string().len() <= SECTION_LEN_MAX;
        let named = shape.get("rotation").and_then(Value::as_str).filter(|text| text.len() == 36 && is_read);
        assert_eq!(report.rotation.map(|id| id.to_string()).as_deref(), named, "{shown}");
        assert_eq!(report.active, Some(KeySlot::Primary), "{shown}");

        hub.desire(DEVICE, offers::none()).await;
        hub.until_report(DEVICE, "idle again", |report| report.status == Status::Idle).await;
    }
    assert_eq!(gateway.key_rings(), held);
    assert!(gateway.publishes().await);
    assert_eq!(hub.history(DEVICE).await.connections.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_is_found_in_a_twin_that_others_have_filled_to_the_brim() {
    let hub = TestHub::start().await;
    let (_gateway, _agent, _) = connected(&hub).await;
    let filling: serde_json::Map<_, _> =
        (0..7).map(|n| (format!("s{n}"), "\"\\ü".repeat(800).into())).collect();
    hub.desire(DEVICE, json!({"others": filling, "more": [1, "two", {"three": true}]})).await;
    let rotation = offer_new_key(&hub, "secondary").await;
    hub.until_committed(DEVICE, &rotation).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_that_is_no_json_is_reported_invalid_and_the_session_goes_on() {
    let hub = ScriptedHub::start("localhost", EMPTY_TWIN).await;
    let settings = Settings::at(hub.port(), &hub.ca_file());
    let gateway = Gateway::with(settings, &connection_string("localhost", DEVICE, &offers::stray_key()));
    let _agent = gateway.start();
    let reported = async |status: &str| {
        until(&format!("{status} is reported"), async || {
            hub.seen().report.filter(|report| report["keyRenewal"]["status"] == status)
        })
        .await
    };
    reported("idle").await;
    // The second one is written when the first key has been accepted.
    let stored = async || Some(gateway.key_rings()).filter(|held| held.len() == 2);
    let held = until("the acceptance is stored", stored).await;
    let mut too_long = EMPTY_TWIN.to_vec();
    too_long.resize(TWIN_LEN_MAX + 1, b' ');
    let deep = [br#"{"desired": "#.to_vec(), vec![b'['; 100_000]].concat();
    let twins: [&[u8]; 12] = [
        b"",
        b" ",
        b"not json",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b"{\"desired\": 5, \"reported\": {}}",
        b"{\"desired\": {\"keyRenewal\": ",
        b"[{\"keyRenewal\": null}, {}]",
        &too_long,
        &deep,
    ];
    for twin in twins {
        println!("{}", twin[..twin.len().min(60)].escape_ascii());
        hub.show_twin(twin);
        let report = reported("invalid").await;
        let reason = if twin.len() > TWIN_LEN_MAX { "twin-too-large" } else { "malformed" };
        assert_eq!(report["keyRenewal"]["reason"], reason);
        hub.show_twin(EMPTY_TWIN);
        reported("idle").await;
    }
    assert_eq!(gateway.key_rings(), held);
    assert_eq!(hub.seen().connects, 1);
    assert!(gateway.publishes().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_without_an_answer_leaves_the_live_connection_alone_and_is_tried_again_until_it_works() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub).await;
    hub.set_faults(json!({"muteConnack": true})).await;
    let rotation = offer_new_key(&hub, "secondary").await;
    gateway.until_status("the key is on trial", |status| !status["connection"]["trying"].is_null()).await;
    for _ in 0..3 {
        assert!(gateway.publishes().await, "telemetry goes on beside an unanswered takeover");
    }
    // Longer than the agent waits for an answer: one minute.
    let silent = within(Duration::from_secs(90), "the silence is reported", async || {
        hub.report(DEVICE).await.filter(|report| report.status == Status::Waiting)
    })
    .await;
    assert_eq!(silent.reason, Some(Reason::Throttled));
    let history = hub.history(DEVICE).await;
    assert_eq!((history.connections.len(), history.refused.len()), (1, 0));

    hub.set_faults(json!({"muteConnack": false})).await;
    hub.until_committed(DEVICE, &rotation).await;
    let history = hub.history(DEVICE).await;
    assert_eq!(history.longest_dark_ms(history.connections[0].connected_ms), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_finds_a_silent_hub_keeps_trying_and_connects_once_it_speaks() {
    let hub = TestHub::start().await;
    hub.set_faults(json!({"muteConnack": true})).await;
    let keys = hub.create(DEVICE).await;
    let gateway = Gateway::new(&hub, DEVICE, &keys.primary);
    let _agent = gateway.start();
    // The hub's restart ends a wait for an answer early; one that comes in the midst of dialling has to be repeated.
    for wanted in 2..=3 {
        until("it tries again", async || {
            let status = gateway.status().await;
            if !status["connection"]["trying"].is_null() {
                hub.operate("restart", json!({"downMs": 0})).await;
            }
            (status["counters"]["attempts"].as_u64() >= Some(wanted)).then_some(())
        })
        .await;
    }
    hub.set_faults(json!({"muteConnack": false})).await;
    hub.operate("restart", json!({"downMs": 0})).await;
    hub.until_connected(DEVICE, "primary").await;
    assert_eq!(gateway.status().await["counters"]["refused"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_from_an_unknown_authority_is_named_in_the_log_until_the_file_is_right_and_read_again()
{
    let hub = TestHub::start().await;
    let stranger = ScriptedHub::start("localhost", EMPTY_TWIN).await;
    let keys = hub.create(DEVICE).await;
    let settings = Settings::at(hub.mqtts_port(), &stranger.ca_file());
    let mut gateway = Gateway::with(settings, &connection_string("localhost", DEVICE, &keys.primary));
    let agent = gateway.start();
    gateway.until_logged("check `ca_file`").await;
    assert!(gateway.log().contains("UnknownIssuer"), "{}", gateway.log());
    let tries_again = |status: &Value| status["counters"]["attempts"].as_u64() >= Some(2);
    let status = gateway.until_status("it tries again", tries_again).await;
    assert_eq!(status["counters"]["refused"], 0);
    assert!(status["connection"]["troubles"][0]["what"].as_str().unwrap().contains("ca_file"), "{status}");

    // A file that can't be used changes nothing, and is named.
    gateway.reconfigure(|settings| settings.ca_file = PathBuf::from("/nonexistent/ca.pem"));
    agent.signal(Signal::HUP);
    gateway.until_logged("was not taken over").await;
    assert!(gateway.log().contains("/nonexistent/ca.pem"), "{}", gateway.log());
    // Nor does one that an editor has only begun to write.
    gateway.write_private("agent.toml", b"\n");
    agent.signal(Signal::HUP);
    gateway.until_logged("it is empty").await;
    // What a running agent can't change is named, and the rest counts.
    let socket = gateway.path("other.sock");
    gateway.write_private("agent.toml", format!("[local]\nsocket = {socket:?}\n").as_bytes());
    agent.signal(Signal::HUP);
    gateway.until_logged("[local] socket has changed").await;
    gateway.until_logged("[state] dir has changed").await;

    let ca_file = hub.ca_file().to_owned();
    gateway.reconfigure(|settings| settings.ca_file = ca_file);
    agent.signal(Signal::HUP);
    hub.until_connected(DEVICE, "primary").await;
    assert!(hub.history(DEVICE).await.refused.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_wrong_name_is_named_in_the_log_and_no_token_is_sent() {
    let stranger = ScriptedHub::start("elsewhere.example", EMPTY_TWIN).await;
    let settings = Settings::at(stranger.port(), &stranger.ca_file());
    let gateway = Gateway::with(settings, &connection_string("localhost", DEVICE, &offers::stray_key()));
    let _agent = gateway.start();
    gateway.until_logged("the certificate is another host's").await;
    assert!(gateway.log().contains("elsewhere.example"), "{}", gateway.log());
    until("it tries again", async || (stranger.seen().connections >= 2).then_some(())).await;
    assert_eq!(stranger.seen().connects, 0);
    assert_eq!(gateway.status().await["counters"]["refused"], 0);
}

/// A gateway whose two key-ring files are there; the older one still holds a key of the registry's.
async fn stopped_after_a_rotation(hub: &TestHub) -> Gateway {
    let (gateway, agent, _) = connected(hub).await;
    let rotation = offer_new_key(hub, "secondary").await;
    hub.until_committed(DEVICE, &rotation).await;
    agent.stop().await;
    assert_eq!(gateway.key_rings().len(), 2);
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_empty_newest_key_ring_is_named_and_its_predecessor_connects() {
    let hub = TestHub::start().await;
    let gateway = stopped_after_a_rotation(&hub).await;
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        },
        |bytes| bytes.extend(vec![0; 1 << 20]),
    ];
    for damage in damages {
        let (newest, mut bytes) = gateway.key_rings().remove(0);
        damage(&mut bytes);
        fs::write(&newest, bytes).unwrap();
        let name = newest.file_name().unwrap().to_str().unwrap();
        let told = text(&gateway.run(&["status"]).await.stdout);
        assert!(told.contains(&format!("damaged     {name}")), "{told}");

        let before = hub.history(DEVICE).await.connections.len();
        let logged = gateway.log().len();
        let agent = gateway.start();
        until("connected again", async || {
            let history = hub.history(DEVICE).await;
            history.live().filter(|_| history.connections.len() > before).map(drop)
        })
        .await;
        let log = gateway.log()[logged..].to_owned();
        assert!(log.contains("a key-ring file is damaged") && log.contains(name), "{log}");
        // The twin still holds the offer: it is taken up once more.
        until("the ring is whole again", async || {
            let status = text(&gateway.run(&["status", "--json"]).await.stdout);
            let status: Value = serde_json::from_str(&status).unwrap();
            (status["keyRenewal"]["active"] == "secondary" && status["keyRenewal"]["status"] == "committed")
                .then_some(())
        })
        .await;
        agent.stop().await;
        assert!(!text(&gateway.run(&["status"]).await.stdout).contains("damaged"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_damaged_key_rings_stop_the_agent_with_advice_and_are_left_as_they_are() {
    let hub = TestHub::start().await;
    let gateway = stopped_after_a_rotation(&hub).await;
    for (path, bytes) in gateway.key_rings() {
        fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    }
    let damaged = gateway.key_rings();
    for args in [&["run"][..], &["status"], &["provision"]] {
        let output = gateway.run(args).await;
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert_explained(&args.join(" "), &error);
        assert!(error.contains("no key ring can be used") && error.contains("backup"), "{args:?}: {error}");
    }
    assert_eq!(gateway.key_rings(), damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_exist_stops_the_agent_with_advice_and_one_that_others_may_read_is_closed_to_them()
 {
    let hub = TestHub::start().await;
    let keys = hub.create(DEVICE).await;
    let mut gateway = Gateway::new(&hub, DEVICE, &keys.primary);
    let file = gateway.path("agent.toml");
    gateway.reconfigure(|settings| settings.state_dir = Some(file.join("state")));
    let output = gateway.run(&["run"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_explained("below a file", &text(&output.stderr));
    assert!(text(&output.stderr).contains("agent.toml/state"), "{}", text(&output.stderr));

    let open = gateway.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    gateway.reconfigure(|settings| settings.state_dir = Some(open.clone()));
    let agent = gateway.start();
    hub.until_connected(DEVICE, "primary").await;
    let mode = fs::metadata(&open).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    let log = gateway.log();
    assert!(log.contains("0755") && log.contains("open to others than its owner"), "{log}");
    agent.stop().await;
}

/// An offer that can't be stored: the proven key stays in use, and the rotation goes on once `make_room` has run.
async fn wait_out_a_full_disk(hub: &TestHub, gateway: &Gateway, make_room: impl FnOnce()) {
    let held = gateway.key_rings();
    let rotation = offer_new_key(hub, "secondary").await;
    let wish = |report: &twinkey_contract::report::Report| report.status == Status::Waiting;
    let report = hub.until_report(DEVICE, "storage is reported", wish).await;
    assert_eq!(report.reason, Some(Reason::Storage));
    assert!(is_about(&report, &rotation));
    assert_eq!(report.active, Some(KeySlot::Primary));
    assert!(gateway.log().contains("the proven key stays in use"));
    assert!(gateway.publishes().await);
    assert_eq!(hub.history(DEVICE).await.connections.len(), 1, "an unstored key is not used");
    assert_eq!(gateway.key_rings(), held);

    make_room();
    hub.until_committed(DEVICE, &rotation).await;
    hub.until_connected(DEVICE, "secondary").await;
    let history = hub.history(DEVICE).await;
    assert_eq!(history.longest_dark_ms(history.connections[0].connected_ms), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_stored_waits_and_is_committed_once_it_can() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub).await;
    // A directory where the agent begins its files stands in every user's way, root's too.
    let obstacle = gateway.state_dir().join("key-ring.new");
    fs::create_dir(&obstacle).unwrap();
    wait_out_a_full_disk(&hub, &gateway, || fs::remove_dir(&obstacle).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_out_on_the_proven_key() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(directory.path()) else {
        println!("SKIPPED: mounting a small file system takes root, and a container that lets it");
        return;
    };
    let hub = TestHub::start().await;
    let keys = hub.create(DEVICE).await;
    let settings = Settings { state_dir: Some(disk.0.clone()), ..Settings::for_hub(&hub) };
    let gateway = Gateway::with(settings, &connection_string("localhost", DEVICE, &keys.primary));
    let agent = started(&hub, &gateway).await;
    let filling = disk.0.join("filling");
    // Ends where the disk does.
    fs::write(&filling, vec![0; 1 << 20]).unwrap_err();
    wait_out_a_full_disk(&hub, &gateway, || fs::remove_file(&filling).unwrap()).await;
    agent.stop().await;
}

/// A file system of 64 KiB in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        let options = ["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(at).output().ok()?;
        mounted.status.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: after a failed test the agent may still hold its lock.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
