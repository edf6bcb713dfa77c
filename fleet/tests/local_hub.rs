//! The program against the local hub: identities, refusals without an agent, logins, and no key in any output.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use twinkey_contract::Fingerprint;
use twinkey_contract::connection_string::{DeviceConnectionString, ServiceConnectionString};
use twinkey_emulator::{Emulator, Options, start};
use twinkey_sas::Key;

struct World {
    hub: Emulator,
    dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = start(Options { data_dir: dir.path().join("hub"), ..Options::default() }).await.unwrap();
        let world = Self { hub, dir };
        world.write("login", &format!("{}\n", world.hub.ready().service_connection_string), 0o600);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    async fn run(&self, args: &[&str]) -> Output {
        let (login, ca_file) = (self.path("login"), self.hub.ready().ca_file.clone());
        let mut command = twinkey(args);
        command.arg("--login").arg(login).arg("--ca-file").arg(ca_file);
        output(command).await
    }

    async fn run_ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert_eq!(exit(&output), 0, "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The keys of a device, got through the one door.
    async fn key(&self, id: &str, slot: &str) -> Key {
        let args = ["device-identity", "connection-string", "-d", id, "--key-type", slot, "--show"];
        DeviceConnectionString::parse(&self.run_ok(&args).await).unwrap().key
    }
}

fn twinkey(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinkey"));
    command.args(args).env_remove("IOTHUB_CONNECTION_STRING").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn base64(key: &Key) -> String {
    key.expose_base64(&mut [0; 88]).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_created_shown_listed_and_deleted() {
    let world = World::start().await;
    let created = world.run_ok(&["device-identity", "create", "-d", "pump-7", "--output", "json"]).await;
    let created: Value = serde_json::from_str(&created).unwrap();
    assert_eq!((created["deviceId"].as_str(), created["status"].as_str()), (Some("pump-7"), Some("enabled")));

    let shown = world.run_ok(&["device-identity", "show", "-d", "pump-7", "--output", "json"]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    for slot in ["primary", "secondary"] {
        let fingerprint = Fingerprint::of(&world.key("pump-7", slot).await).to_string();
        assert_eq!(
            shown["authentication"][format!("{slot}Fingerprint")].as_str(),
            Some(fingerprint.as_str())
        );
    }

    world.run_ok(&["device-identity", "create", "-d", "pump-8", "--status", "disabled"]).await;
    let listed = world.run_ok(&["device-identity", "list"]).await;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].starts_with("DEVICE") && lines.len() == 3, "{listed}");
    assert!(lines.iter().any(|line| line.starts_with("pump-8") && line.contains("disabled")), "{listed}");

    let again = world.run(&["device-identity", "create", "-d", "pump-7"]).await;
    assert_eq!(exit(&again), 1);
    assert!(text(&again.stderr).contains("exists already"), "{}", text(&again.stderr));

    let unasked = world.run(&["device-identity", "delete", "-d", "pump-7"]).await;
    assert_eq!(exit(&unasked), 2, "without a terminal, --yes is needed");
    let stale = world.run(&["device-identity", "delete", "-d", "pump-7", "--yes", "--etag", "stale"]).await;
    assert_eq!(exit(&stale), 1);
    world.run_ok(&["device-identity", "delete", "-d", "pump-7", "--yes"]).await;
    let gone = world.run(&["device-identity", "show", "-d", "pump-7"]).await;
    assert_eq!(exit(&gone), 1);
    assert!(text(&gone.stderr).contains("DeviceNotFound"), "{}", text(&gone.stderr));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_id_that_a_registry_takes_works() {
    let world = World::start().await;
    let id = "odd-.%_*?!(),:=@$'+#";
    world.run_ok(&["device-identity", "create", "-d", id]).await;
    let shown = world.run_ok(&["device-identity", "show", "-d", id, "--output", "json"]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["deviceId"].as_str(), Some(id));
    world.run_ok(&["device-identity", "delete", "-d", id, "--yes"]).await;
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_string_goes_to_a_new_private_file_or_where_it_was_asked_for() {
    let world = World::start().await;
    world.run_ok(&["device-identity", "create", "-d", "d1"]).await;
    let file = world.path("d1.txt");
    let args = ["device-identity", "connection-string", "-d", "d1", "--out", file.to_str().unwrap()];
    let said = world.run_ok(&args).await;
    let written = std::fs::read_to_string(&file).unwrap();
    let parsed = DeviceConnectionString::parse(&written).unwrap();
    assert_eq!((parsed.host_name.as_str(), parsed.identity.device_id.as_str()), ("localhost", "d1"));
    assert!(!said.contains(&base64(&parsed.key)), "{said}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = world.run(&args).await;
    assert_eq!(exit(&again), 1, "nothing is overwritten");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
    world.hub.shutdown().await;
}

/// A file's name stands for any text from outside: it comes back in results, and may hold what no
/// id may.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_terminal_acts_upon_reaches_it_neither_in_json_nor_in_text() {
    let world = World::start().await;
    world.run_ok(&["device-identity", "create", "-d", "d1"]).await;
    let odd = world.path("x\u{9b}2J\u{7f}\u{202e}y\u{2028}");
    let args = ["device-identity", "connection-string", "-d", "d1", "--out", odd.to_str().unwrap()];
    let json = world.run_ok(&[&args[..], &["--output", "json"]].concat()).await;
    assert!(json.is_ascii() && json.contains("x\\u009b2J\\u007f\\u202ey\\u2028"), "{json:?}");
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["file"].as_str(), odd.to_str());
    // It is there now, so the same again is refused, with its name.
    let refused = world.run(&args).await;
    let said = text(&refused.stderr);
    assert!(said.is_ascii() && said.contains("x 2J  y"), "{said:?}");
    std::fs::remove_file(&odd).unwrap();
    let said = world.run_ok(&args).await;
    assert!(said.is_ascii() && said.contains("x 2J  y"), "{said:?}");
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_every_renewal_is_refused_as_unsafe() {
    let world = World::start().await;
    world.run_ok(&["device-identity", "create", "-d", "d1"]).await;
    let before =
        [world.key("d1", "primary").await, world.key("d1", "secondary").await].map(|key| base64(&key));
    for key_type in ["primary", "secondary", "both", "swap"] {
        for more in [&[][..], &["--no-deliver"]] {
            let args = [&["device-identity", "renew-key", "-d", "d1", "--yes", "--key-type", key_type], more]
                .concat();
            let output = world.run(&args).await;
            assert_eq!(exit(&output), 3, "{}", text(&output.stderr));
            assert!(text(&output.stderr).contains("--force-dark d1"), "{}", text(&output.stderr));
        }
    }
    let after =
        [world.key("d1", "primary").await, world.key("d1", "secondary").await].map(|key| base64(&key));
    assert_eq!(before, after);
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_renewals_change_what_they_say_and_nothing_else() {
    let world = World::start().await;
    world.run_ok(&["device-identity", "create", "-d", "d1"]).await;
    let keys = async || {
        [world.key("d1", "primary").await, world.key("d1", "secondary").await].map(|key| base64(&key))
    };
    let renew = async |key_type: &str| {
        let args = [
            "device-identity",
            "renew-key",
            "-d",
            "d1",
            "--yes",
            "--force-dark",
            "d1",
            "--key-type",
            key_type,
        ];
        world.run_ok(&args).await;
        keys().await
    };
    let first = keys().await;
    let second = renew("primary").await;
    assert!(second[0] != first[0] && second[1] == first[1]);
    let third = renew("swap").await;
    assert_eq!(third, [second[1].clone(), second[0].clone()]);
    let fourth = renew("both").await;
    assert!(fourth.iter().all(|key| !third.contains(key)));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_shows_in_any_output_but_the_one_that_was_asked_for() {
    let world = World::start().await;
    world.run_ok(&["device-identity", "create", "-d", "d1"]).await;
    let login = ServiceConnectionString::parse(&world.hub.ready().service_connection_string).unwrap();
    let mut secrets = vec![base64(&login.key), "SharedAccessSignature ".to_owned()];
    secrets.extend([base64(&world.key("d1", "primary").await), base64(&world.key("d1", "secondary").await)]);
    for args in [
        &["device-identity", "show", "-d", "d1"][..],
        &["device-identity", "show", "-d", "d1", "--output", "json"],
        &["device-identity", "list", "--output", "json"],
        &["device-identity", "renew-key", "-d", "d1", "--yes", "--key-type", "swap", "--force-dark", "d1"],
        &["device-identity", "show", "-d", "nobody"],
        &["device-identity", "delete", "-d", "d1", "--yes"],
    ] {
        let (login, ca_file) = (world.path("login"), world.hub.ready().ca_file.clone());
        let mut command = twinkey(args);
        command.env("RUST_LOG", "trace").arg("--login").arg(login).arg("--ca-file").arg(ca_file);
        let output = output(command).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("d1") || said.contains("nobody"), "{args:?}: {said}");
        assert!(secrets.iter().all(|secret| !said.contains(secret)), "{args:?}: {said}");
    }
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hubs_own_file_and_the_variable_are_logins_too() {
    let world = World::start().await;
    let mut command = twinkey(&["device-identity", "list"]);
    command.arg("--login").arg(world.path("hub/hub.json"));
    let from_file = output(command).await;
    assert_eq!(exit(&from_file), 0, "hub.json names the CA too: {}", text(&from_file.stderr));
    let mut command = twinkey(&["device-identity", "list"]);
    let connection_string = &world.hub.ready().service_connection_string;
    command
        .env("IOTHUB_CONNECTION_STRING", connection_string)
        .arg("--ca-file")
        .arg(&world.hub.ready().ca_file);
    let from_variable = output(command).await;
    assert_eq!(exit(&from_variable), 0, "{}", text(&from_variable.stderr));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_login_is_a_usage_error_that_quotes_no_secret() {
    let world = World::start().await;
    let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=";
    let long = "x".repeat(9000);
    let cases = [
        ("empty", ""),
        ("no-key", "HostName=h;SharedAccessKeyName=service"),
        ("device", &format!("HostName=h;DeviceId=d;SharedAccessKey={secret}")),
        ("odd-part", &format!("HostName=h;SharedAccessKeyName=p;Key={secret}")),
        ("bad-json", &format!(r#"{{"serviceConnectionString": 7, "x": "{secret}"}}"#)),
        ("long", long.as_str()),
        ("slash", &format!("HostName=h/x;SharedAccessKeyName=p;SharedAccessKey={secret}")),
    ];
    for (name, content) in cases {
        let mut command = twinkey(&["device-identity", "list", "--login"]);
        command.arg(world.write(name, content, 0o600));
        let output = output(command).await;
        let stderr = text(&output.stderr);
        assert_eq!(exit(&output), 2, "{name}: {stderr}");
        assert!(stderr.starts_with("error: ") && !stderr.contains(secret), "{name}: {stderr}");
    }
    let mut missing = twinkey(&["device-identity", "list", "--login"]);
    missing.arg(world.path("nowhere"));
    assert_eq!(exit(&output(missing).await), 2);
    let none = output(twinkey(&["device-identity", "list"])).await;
    assert_eq!(exit(&none), 2);
    assert!(text(&none.stderr).contains("IOTHUB_CONNECTION_STRING"), "{}", text(&none.stderr));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_others_can_read_is_warned_about() {
    let world = World::start().await;
    let private = world.run(&["device-identity", "list"]).await;
    assert!(!text(&private.stderr).contains("warning"), "{}", text(&private.stderr));
    world.write("login", &world.hub.ready().service_connection_string.clone(), 0o644);
    let open = world.run(&["device-identity", "list"]).await;
    assert_eq!(exit(&open), 0);
    assert!(text(&open.stderr).contains("chmod 600"), "{}", text(&open.stderr));
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_an_unknown_ca_each_say_what_to_do() {
    let world = World::start().await;
    let text_of = |output: &Output| text(&output.stderr);
    let ca_file = world.hub.ready().ca_file.clone();
    let run = async |login: &Path, ca_file: Option<&Path>| {
        let mut command = twinkey(&["device-identity", "show", "-d", "d1", "--login"]);
        command.arg(login);
        ca_file.into_iter().for_each(|file| {
            command.arg("--ca-file").arg(file);
        });
        output(command).await
    };
    let host = format!("localhost:{}", world.hub.ready().https.rsplit_once(':').unwrap().1);
    let other = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=";
    let wrong = format!("HostName={host};SharedAccessKeyName=iothubowner;SharedAccessKey={other}");
    let wrong_key = run(&world.write("wrong", &wrong, 0o600), Some(&ca_file)).await;
    assert_eq!(exit(&wrong_key), 1);
    assert!(
        text_of(&wrong_key).contains("401") && text_of(&wrong_key).contains("clock"),
        "{}",
        text_of(&wrong_key)
    );

    let unknown_ca = run(&world.path("login"), None).await;
    assert_eq!(exit(&unknown_ca), 1);
    assert!(text_of(&unknown_ca).contains("--ca-file"), "{}", text_of(&unknown_ca));

    for (name, content) in [("empty.pem", ""), ("no.pem", "no certificate")] {
        let bad_ca = run(&world.path("login"), Some(&world.write(name, content, 0o644))).await;
        assert_eq!(exit(&bad_ca), 2, "{}", text_of(&bad_ca));
    }
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emulate_prints_one_json_line_first_and_ends_on_a_signal() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let mut child = twinkey(&["emulate", "--data-dir"])
        .arg(dir.path().join("hub"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let file: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("hub/hub.json")).unwrap()).unwrap();
    assert_eq!(ready, file);
    let mut command = twinkey(&["device-identity", "list", "--login"]);
    command.arg(dir.path().join("hub/hub.json"));
    assert_eq!(exit(&output(command).await), 0);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_place_of_a_file_name_is_not_repeated() {
    let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=";
    let login = format!("HostName=h;SharedAccessKeyName=service;SharedAccessKey={secret}");
    let unpadded = secret.trim_end_matches('=');
    let sas = ["generate-sas-token", "--resource", "r", "--key-file"];
    let list = ["device-identity", "list", "--login"];
    for (command, value) in [(&list[..], login.as_str()), (&sas[..], secret), (&sas[..], unpadded)] {
        let refused = output(twinkey(&[command, &[value]].concat())).await;
        let stderr = text(&refused.stderr);
        assert_eq!(exit(&refused), 2, "{stderr}");
        assert!(!stderr.contains(unpadded) && stderr.contains("chmod 600"), "{stderr}");
    }
    let plain = output(twinkey(&[&list[..], &["no-such-file.txt"]].concat())).await;
    assert!(text(&plain.stderr).contains("no-such-file.txt"), "{}", text(&plain.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_json_works_from_everywhere_and_is_blamed_for_its_own_ca_file() {
    let world = World::start().await;
    let path = world.path("hub/hub.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["caFile"] = "ca.pem".into();
    let relative = world.write("hub/relative.json", &json.to_string(), 0o600);
    let listed = output_of_list(&relative).await;
    assert_eq!(exit(&listed), 0, "{}", text(&listed.stderr));
    json["caFile"] = "gone.pem".into();
    let gone = output_of_list(&world.write("hub/gone.json", &json.to_string(), 0o600)).await;
    let stderr = text(&gone.stderr);
    assert_eq!(exit(&gone), 2, "{stderr}");
    assert!(stderr.contains("caFile of --login") && !stderr.contains("error: --ca-file"), "{stderr}");
    world.hub.shutdown().await;
}

async fn output_of_list(login: &Path) -> Output {
    let mut command = twinkey(&["device-identity", "list", "--login"]);
    command.arg(login);
    output(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_can_not_be_written_is_a_failure_but_a_closed_pipe_is_none() {
    let world = World::start().await;
    let key = world.write("key", "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=", 0o600);
    let commands: [&[&str]; 3] = [
        &["generate-sas-token", "--resource", "r", "--key-file", key.to_str().unwrap()],
        &["device-identity", "list", "--login", "hub/hub.json", "--output", "json"],
        &["device-identity", "list", "--login", "hub/hub.json"],
    ];
    for args in commands {
        let mut full = twinkey(args);
        full.current_dir(world.dir.path()).stderr(Stdio::piped());
        full.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        let child = full.spawn().unwrap();
        let full = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        assert_eq!(exit(&full), 1, "{args:?}");
        assert!(text(&full.stderr).contains("stdout"), "{}", text(&full.stderr));

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut closed = twinkey(args);
        closed.current_dir(world.dir.path()).stdout(writer).stderr(Stdio::piped());
        let child = closed.spawn().unwrap();
        drop(closed);
        let closed = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        assert_eq!((exit(&closed), text(&closed.stderr).as_str()), (0, ""), "{args:?}");
    }
    world.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_in_a_file_hold_no_escapes_and_a_relative_data_dir_is_named_absolutely() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut child = twinkey(&["emulate", "--data-dir", "hub"])
        .current_dir(dir.path())
        .env("RUST_LOG", "debug")
        .env("NO_COLOR", "")
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let ca_file = PathBuf::from(ready["caFile"].as_str().unwrap());
    assert!(ca_file.is_absolute() && ca_file.is_file(), "{line}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("the hub listens") && !log.contains('\x1b'), "{log}");
}
