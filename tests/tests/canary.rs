//! Canary keys: through provisioning, running, renewal, refusal and failure, with every log at TRACE, no key and no token
//! may be seen in what the programs write, are started with, or tell the hub.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::process::{Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use twinkey_contract::report::{Reason, Status};
use twinkey_tests::gateway::{Agent, Gateway, Settings, connection_string, text};
use twinkey_tests::hub::{Keys, TestHub, is_about};
use twinkey_tests::leaks::Canaries;
use twinkey_tests::offers;
use twinkey_tests::waiting::{PATIENCE, until};

const DEVICE: &str = "gateway-1";

/// A hub, a device with keys that nobody else has, and all that was seen.
struct World {
    hub: TestHub,
    keys: Keys,
    canaries: Canaries,
    /// What programs have written, by what they did.
    seen: Vec<(String, Vec<u8>)>,
}

impl World {
    async fn build() -> Self {
        let hub = TestHub::start().await;
        hub.create(DEVICE).await;
        let keys = Keys { primary: offers::stray_key(), secondary: offers::stray_key() };
        hub.put_keys(DEVICE, &keys).await;
        let mut canaries = Canaries::default();
        canaries.add("the policy's key", &hub.policy_key());
        canaries.add("the first primary key", &keys.primary);
        canaries.add("the first secondary key", &keys.secondary);
        Self { hub, keys, canaries, seen: Vec::new() }
    }

    /// Runs a command at TRACE to its end, and keeps what it wrote and what it was started with.
    async fn run(&mut self, what: &str, mut command: Command) -> Output {
        command.env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Until it has ended: a short command may do so before anybody can look.
        let is_there = |child: &mut Child| child.try_wait().unwrap().is_none();
        while is_there(&mut child) && !self.look_at(what, child.id().unwrap()) {
            tokio::task::yield_now().await;
        }
        let output = timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends").unwrap();
        self.keep(what, &output);
        output
    }

    fn keep(&mut self, what: &str, output: &Output) {
        self.seen.push((format!("stdout of {what}"), output.stdout.clone()));
        self.seen.push((format!("stderr of {what}"), output.stderr.clone()));
    }

    /// Keeps how a process was started, and says whether it shows that already: in the first moment it does not.
    fn look_at(&mut self, what: &str, pid: u32) -> bool {
        let read = |name| fs::read(format!("/proc/{pid}/{name}")).ok().filter(|bytes| !bytes.is_empty());
        let (Some(cmdline), Some(environ)) = (read("cmdline"), read("environ")) else {
            return false;
        };
        self.seen.push((format!("cmdline of {what}"), cmdline));
        self.seen.push((format!("environ of {what}"), environ));
        true
    }

    async fn look_at_agent(&mut self, what: &str, agent: &Agent) {
        until("the process shows how it was started", async || self.look_at(what, agent.pid()).then_some(()))
            .await;
    }

    fn assert_nothing_leaked(&self) {
        for (place, bytes) in &self.seen {
            self.canaries.assert_unseen(place, bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_seen_anywhere_in_a_whole_life_at_trace() {
    for arguments in [&["--log", "text"][..], &["--log", "json"]] {
        live_a_whole_life(arguments).await;
    }
}

async fn live_a_whole_life(arguments: &'static [&'static str]) {
    let mut world = World::build().await;
    let settings = Settings { log_filter: "trace", arguments, ..Settings::for_hub(&world.hub) };
    let first = connection_string("localhost", DEVICE, &world.keys.primary);
    let gateway = Gateway::with(settings, &first);

    let file = gateway.path("connection-string");
    let provision = gateway.command(&["provision", "--from-file", file.to_str().unwrap()]);
    assert!(world.run("provision", provision).await.status.success());
    assert!(!world.run("provision again", gateway.command(&["provision"])).await.status.success());
    world.run("status before the start", gateway.command(&["status"])).await;
    let agent = gateway.start();
    world.look_at_agent("the agent", &agent).await;
    let report = world.hub.until_report(DEVICE, "the first report", |report| report.active.is_some()).await;
    assert_eq!(report.status, Status::Idle);

    renew_with_the_program(&mut world, "secondary").await;
    renew_with_the_program(&mut world, "primary").await;
    offer_by_hand(&mut world).await;
    world.run("swap", world.hub.renewal(DEVICE, "swap")).await;
    lose_the_active_key(&mut world).await;
    ask_for_everything(&mut world, &gateway).await;
    world.look_at_agent("the agent at the end", &agent).await;
    agent.stop().await;
    world.run("status after the end", gateway.command(&["status", "--json"])).await;

    let log = fs::read(gateway.path("agent.log")).unwrap();
    // The deepest that it has to say: nothing in it speaks at TRACE itself.
    assert!(text(&log).contains("DEBUG"));
    world.seen.push(("the agent's log".to_owned(), log));
    for process in ["the agent", "the agent at the end", "renew-key primary", "renew-key secondary"] {
        assert!(world.seen.iter().any(|(place, _)| *place == format!("environ of {process}")), "{process}");
    }
    world.assert_nothing_leaked();
}

async fn renew_with_the_program(world: &mut World, slot: &str) {
    let output = world.run(&format!("renew-key {slot}"), world.hub.renewal(DEVICE, slot)).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let keys = world.hub.keys(DEVICE).await;
    world.canaries.add(&format!("the renewed {slot} key"), keys.of_slot(slot));
    keep_twin(world, &format!("the renewal of {slot}")).await;
}

/// Plain offers: one that the hub refuses and one that it accepts.
async fn offer_by_hand(world: &mut World) {
    let (rotation, stray) = (offers::rotation_id(), offers::stray_key());
    world.canaries.add("the refused key", &stray);
    world.hub.desire(DEVICE, offers::plain(&rotation, "secondary", &stray)).await;
    let wish = |report: &_| is_about(report, &rotation) && report.status == Status::Rejected;
    world.hub.until_report(DEVICE, "rejected", wish).await;

    let keys = world.hub.regenerate(DEVICE, "secondaryKey").await;
    world.canaries.add("the key offered by hand", &keys.secondary);
    let rotation = offers::rotation_id();
    world.hub.desire(DEVICE, offers::plain(&rotation, "secondary", &keys.secondary)).await;
    world.hub.until_committed(DEVICE, &rotation).await;

    // A damaged key is still most of a key.
    let mut bytes = STANDARD.decode(&keys.secondary).unwrap();
    bytes[31] ^= 1;
    let damaged = STANDARD.encode(bytes);
    world.canaries.add("the damaged key", &damaged);
    let rotation = offers::rotation_id();
    for key in [damaged.as_str(), &damaged[..30], &format!("{damaged}{damaged}{damaged}")] {
        world.hub.desire(DEVICE, offers::none()).await;
        world.hub.desire(DEVICE, offers::plain(&rotation, "primary", key)).await;
        let wish = |report: &_| is_about(report, &rotation) && report.status == Status::Invalid;
        world.hub.until_report(DEVICE, "invalid", wish).await;
    }
    world.hub.desire(DEVICE, offers::none()).await;
    keep_twin(world, "the offers by hand").await;
}

async fn lose_the_active_key(world: &mut World) {
    let slot = world.hub.report(DEVICE).await.unwrap().active.unwrap();
    let keys = world.hub.regenerate(DEVICE, &format!("{slot}Key")).await;
    world.canaries.add("the key behind the agent's back", keys.of_slot(slot.as_str()));
    world.hub.cut(DEVICE).await;
    world.hub.until_connected(DEVICE, slot.other().as_str()).await;
    keep_twin(world, "the fallback").await;
}

async fn keep_twin(world: &mut World, what: &str) {
    let mut twin = world.hub.twin(DEVICE).await;
    let sections = ["desired", "reported"].map(|name| twin["properties"][name].take());
    for (name, section) in ["desired", "reported"].iter().zip(sections) {
        world.seen.push((format!("{name} properties after {what}"), section.to_string().into_bytes()));
    }
}

async fn ask_for_everything(world: &mut World, gateway: &Gateway) {
    world.run("status", gateway.command(&["status"])).await;
    world.run("status --json", gateway.command(&["status", "--json"])).await;
    let mut program = gateway.program().await;
    for request in
        [json!({"request": "status"}), json!({"request": "publish", "body": "1"}), json!("garbage")]
    {
        let answer = program.ask(request.clone()).await;
        world.seen.push((format!("the socket's answer to {request}"), answer.to_string().into_bytes()));
    }
    for payload in [json!({"action": "status"}), json!({"action": "garbage"})] {
        let answer = world.hub.call_method(DEVICE, "keyRenewal", payload).await;
        world.seen.push(("the direct method's answer".to_owned(), answer.body.to_string().into_bytes()));
    }
    for args in [
        &["device-identity", "show", "-d", DEVICE][..],
        &["device-identity", "show", "-d", DEVICE, "--output", "json"],
        &["device-identity", "list"],
        &["device-identity", "list", "--output", "json"],
        &["device-identity", "connection-string", "-d", DEVICE],
        &["device-identity", "renew-key", "-d", DEVICE, "--key-type", "both", "--yes"],
        &["device-identity", "renew-key", "-d", "nobody", "--key-type", "primary", "--yes"],
    ] {
        let command = world.hub.operator(args);
        world.run(&args.join(" "), command).await;
    }
}

/// A wrong key is somebody's key all the same, or most of it.
#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_seen_in_what_is_said_about_wrong_input() {
    let mut world = World::build().await;
    let key = offers::stray_key();
    world.canaries.add("the key in wrong input", &key);
    let strings = [
        format!("HostName=localhost;DeviceId=d;SharedAccessKey={}", &key[..41]),
        format!("HostName=localhost;DeviceId=d;SharedAccessKey={key}{key}{key}"),
        format!("HostName=localhost;DeviceId=d;SharedAccessKey={key};SharedAccessKey={key}"),
        format!("HostName=localhost;DeviceId=d;SharedAccesKey={key}"),
        format!("HostName=localhost;DeviceId=d;{key}"),
        format!("HostName=localhost;DeviceId={key};SharedAccessKey="),
        format!("HostName={key};DeviceId=d;SharedAccessKey={key}"),
        format!("HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey={key}"),
        format!("HostName=localhost;SharedAccessKeyName={key}\u{7};SharedAccessKey={key}"),
        format!("{key}=1;HostName=localhost"),
        format!("{key};{key}"),
        key.clone(),
        format!("{{\"serviceConnectionString\": \"{key}\", \"caFile\": {key}}}"),
        format!("{{\"serviceConnectionString\": {{\"{key}\": 1}}}}"),
        format!("\"{key}\""),
        format!("SharedAccessSignature sr=localhost&{}={}&se=1", "sig", &key[..43]),
    ];
    let gateway = Gateway::new(&world.hub, DEVICE, &world.keys.primary);
    for (number, wrong) in strings.iter().enumerate() {
        let file = gateway.write_private("wrong", wrong.as_bytes());
        let file = file.to_str().unwrap();
        let provision = gateway.command(&["provision", "--from-file", file]);
        let output = world.run(&format!("provision with string {number}"), provision).await;
        assert_eq!(output.status.code(), Some(1), "string {number}: {}", text(&output.stderr));

        let mut operator = twinkey_tests::programs::twinkey();
        operator.args(["device-identity", "list", "--login", file, "--ca-file"]).arg(world.hub.ca_file());
        let output = world.run(&format!("list with login {number}"), operator).await;
        assert!(!output.status.success(), "login {number}");

        for args in [
            &["generate-sas-token", "--resource", "localhost", "--key-file", file][..],
            &["verify-sas-token", "--resource", "localhost", "--key-file", file],
        ] {
            // The bare key is a good key file, and a token of it no secret of that command.
            if *wrong == key {
                continue;
            }
            let mut operator = twinkey_tests::programs::twinkey();
            operator.args(args);
            let output = world.run(&format!("{} with key file {number}", args[0]), operator).await;
            assert!(!output.status.success(), "{} with key file {number}", args[0]);
        }
    }
    // A daemon with such a file must not say more.
    for wrong in &strings {
        gateway.write_private("connection-string", wrong.as_bytes());
        let run = gateway.command(&["run"]);
        assert_eq!(world.run("run", run).await.status.code(), Some(1));
    }
    // A configuration with a key where none belongs.
    let config =
        gateway.write_private("agent.toml", format!("[hub]\nSharedAccessKey = \"{key}\"\n").as_bytes());
    assert_eq!(
        world.run("a key in the configuration", gateway.command(&["status"])).await.status.code(),
        Some(1)
    );
    fs::remove_file(config).unwrap();
    world.assert_nothing_leaked();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sealed_form_is_all_that_a_reader_of_the_twin_sees_while_an_offer_stands() {
    let mut world = World::build().await;
    let gateway = Gateway::new(&world.hub, DEVICE, &world.keys.primary);
    let _agent = gateway.start();
    world.hub.until_report(DEVICE, "the first report", |report| report.active.is_some()).await;
    // A hub that answers no CONNECT keeps the offer standing.
    world.hub.set_faults(json!({"muteConnack": true})).await;
    let mut renewal = world.hub.renewal(DEVICE, "secondary");
    renewal.args(["--timeout", "1s"]);
    renewal.env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = world.run("an unanswered renewal", renewal).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    world.canaries.add("the offered key", &world.hub.keys(DEVICE).await.secondary);
    let offer: Value = world.hub.twin(DEVICE).await["properties"]["desired"]["keyRenewal"].take();
    assert!(offer["secondary"]["sealed"].is_string(), "{offer}");
    keep_twin(&mut world, "an unanswered renewal").await;
    world.assert_nothing_leaked();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_takes_sealed_offers_only_refuses_a_plain_one_and_keeps_it_to_itself() {
    let mut world = World::build().await;
    let settings =
        Settings { takes_plain_offers: false, log_filter: "trace", ..Settings::for_hub(&world.hub) };
    let gateway = Gateway::with(settings, &connection_string("localhost", DEVICE, &world.keys.primary));
    let _agent = gateway.start();
    let rotation = offers::rotation_id();
    world.hub.desire(DEVICE, offers::plain(&rotation, "secondary", &world.keys.secondary)).await;
    let wish = |report: &_| is_about(report, &rotation);
    let report = world.hub.until_report(DEVICE, "an answer to the offer", wish).await;
    assert_eq!((report.status, report.reason), (Status::Invalid, Some(Reason::Unauthenticated)));
    let rotation = offers::rotation_id();
    let keys = &world.keys;
    let offer = offers::plain_and_authentic(&rotation, "secondary", &keys.secondary, &keys.primary, DEVICE);
    world.hub.desire(DEVICE, offer).await;
    let wish = |report: &_| is_about(report, &rotation);
    let report = world.hub.until_report(DEVICE, "an answer to the offer", wish).await;
    assert_eq!((report.status, report.reason), (Status::Invalid, Some(Reason::UnsealedForbidden)));
    world.seen.push(("the agent's log".to_owned(), gateway.log().into_bytes()));
    world.hub.desire(DEVICE, offers::none()).await;
    renew_with_the_program(&mut world, "secondary").await;
    world.assert_nothing_leaked();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_search_finds_a_key_in_every_disguise_and_in_a_real_log() {
    let mut world = World::build().await;
    let key = world.keys.primary.clone();
    let bytes = STANDARD.decode(&key).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    let encoded = key.replace('+', "%2b").replace('/', "%2f").replace('=', "%3d");
    let disguises: [Vec<u8>; 9] = [
        key.clone().into_bytes(),
        key[20..32].to_owned().into_bytes(),
        bytes.clone(),
        bytes[9..17].to_vec(),
        hex.to_lowercase().into_bytes(),
        hex.into_bytes(),
        encoded.into_bytes(),
        format!("{bytes:?}").into_bytes(),
        bytes.escape_ascii().to_string().into_bytes(),
    ];
    for disguise in disguises {
        let line = [b"2026-01-01T00:00:00Z TRACE password=", &disguise[..], b" next=1\n"].concat();
        let seen = world.canaries.seen_in(&line);
        assert!(seen.iter().any(|found| found.contains("the first primary key")), "{seen:?}");
    }
    assert!(!world.canaries.seen_in(b"sr=h&sig=abc&se=1").is_empty());
    assert!(world.canaries.seen_in(&key.as_bytes()[..11]).is_empty());

    // A name is logged: a device that is named like a key in hex makes a real log that shows it.
    let planted = offers::random_bytes();
    let device: String = planted.iter().map(|byte| format!("{byte:02x}")).collect();
    world.canaries.add("the planted key", &STANDARD.encode(planted));
    let keys = world.hub.create(&device).await;
    let gateway = Gateway::new(&world.hub, &device, &keys.primary);
    let _agent = gateway.start();
    world.hub.until_report(&device, "the first report", |report| report.active.is_some()).await;
    let seen = world.canaries.seen_in(gateway.log().as_bytes());
    assert!(seen.iter().any(|found| found.contains("the planted key")), "{seen:?}");
}
