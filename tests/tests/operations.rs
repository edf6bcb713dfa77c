//! The real agent under a supervisor, and in the hands of a person with a laptop.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics has failed, as it should")]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixDatagram;
use tokio::time::timeout;
use twinkey_tests::gateway::{Gateway, Settings, connection_string, text};
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::PATIENCE;

/// What systemd gives a service to end, before it would be killed, is far more; the agent promises this.
const STOP_MAX: Duration = Duration::from_secs(2);

fn dead_key() -> String {
    STANDARD.encode([0xd3; 32])
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_that_the_agent_is_ready_how_it_is_and_that_its_loop_turns() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    let mut settings = Settings::for_hub(&hub);
    settings.environment =
        vec![("NOTIFY_SOCKET", path.to_str().unwrap().to_owned()), ("WATCHDOG_USEC", "1000000".to_owned())];
    let gateway = Gateway::with(settings, &connection_string("localhost", "d", &keys.primary));
    let agent = gateway.start();
    let mut heard = Vec::new();
    let mut hear = async |wish: &str| {
        let mut bytes = [0; 4_096];
        loop {
            let len = timeout(PATIENCE, systemd.recv(&mut bytes)).await.expect(wish).unwrap();
            let message = text(&bytes[..len]);
            heard.push(message.clone());
            if message.starts_with(wish) {
                return heard.clone();
            }
        }
    };
    hear("STATUS=connected with key ").await;
    let before = hear("WATCHDOG=1").await.len();
    for _ in 0..4 {
        hear("WATCHDOG=1").await;
    }
    assert!(hear("WATCHDOG=1").await.len() > before);
    agent.signal(rustix::process::Signal::HUP);
    hear("RELOADING=1\nMONOTONIC_USEC=").await;
    let all = hear("READY=1").await;
    assert_eq!(all.iter().filter(|message| message.starts_with("READY=1")).count(), 2, "{all:?}");
    assert!(agent.stop_within(STOP_MAX).await.success());
    hear("STOPPING=1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_agent_within_two_seconds_whatever_it_is_doing() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    // Connected; refused by a hub; and with a hub that does not answer at all.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    for (key, port, logged) in [
        (keys.primary.as_str(), hub.mqtts_port(), "connected"),
        (dead_key().as_str(), hub.mqtts_port(), "could not connect"),
        (keys.primary.as_str(), silent_port, "is running"),
    ] {
        let settings = Settings { port, ..Settings::for_hub(&hub) };
        let gateway = Gateway::with(settings, &connection_string("localhost", "d", key));
        let agent = gateway.start();
        gateway.until_logged(logged).await;
        assert!(agent.stop_within(STOP_MAX).await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_gives_a_running_agent_the_key_that_the_hub_accepts() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let gateway = Gateway::with(Settings::for_hub(&hub), &connection_string("localhost", "d", &dead_key()));
    let agent = gateway.start();
    gateway
        .until_status("that every key is refused", |status| {
            status["suspicions"].as_array().unwrap().iter().any(|it| it["kind"] == "disabled-or-deleted")
        })
        .await;

    // What can't be right is refused before anything changes.
    for (text_in, complaint) in [
        ("HostName=localhost;DeviceId=d".to_owned(), "SharedAccessKey"),
        (connection_string("localhost", "another", &keys.primary), "nothing was changed"),
        (connection_string("other.example", "d", &keys.primary), "nothing was changed"),
    ] {
        let refused = gateway.run_with_input(&["provision", "--replace"], text_in.as_bytes()).await;
        assert!(!refused.status.success());
        let said = text(&refused.stderr);
        assert!(said.contains(complaint) && !said.contains(&keys.primary), "{said}");
    }

    let right = connection_string("localhost", "d", &keys.primary);
    let replaced = gateway.run_with_input(&["provision", "--replace"], right.as_bytes()).await;
    assert!(replaced.status.success(), "{}", text(&replaced.stderr));
    assert!(text(&replaced.stdout).contains("the hub has accepted it"), "{}", text(&replaced.stdout));
    assert!(gateway.publishes().await);
    for secret in [&keys.primary, &dead_key()] {
        let all = gateway.log() + &text(&replaced.stdout) + &text(&replaced.stderr);
        assert!(!all.contains(secret.as_str()));
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_brings_the_key_of_the_other_slot_is_told_that_it_is_kept() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let gateway = Gateway::new(&hub, "d", &keys.primary);
    let agent = gateway.start();
    hub.until_connected("d", "primary").await;
    assert!(hub.renewal("d", "secondary").output().await.unwrap().status.success());
    hub.until_connected("d", "secondary").await;
    let held = connection_string("localhost", "d", &keys.primary);
    let replaced = gateway.run_with_input(&["provision", "--replace"], held.as_bytes()).await;
    assert!(replaced.status.success(), "{}", text(&replaced.stderr));
    assert!(text(&replaced.stdout).contains("connected with another key"), "{}", text(&replaced.stdout));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_gives_a_stopped_agent_another_key_and_it_comes_up_with_it() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let gateway = Gateway::with(Settings::for_hub(&hub), &connection_string("localhost", "d", &dead_key()));
    let old = connection_string("localhost", "d", &dead_key());
    assert!(gateway.run_with_input(&["provision"], old.as_bytes()).await.status.success());
    // Without the flag nothing that exists is touched, and the flag is named.
    let right = connection_string("localhost", "d", &keys.secondary);
    let refused = gateway.run_with_input(&["provision"], right.as_bytes()).await;
    assert!(!refused.status.success() && text(&refused.stderr).contains("--replace"));
    let replaced =
        gateway.run_with_input(&["provision", "--replace", "--slot", "secondary"], right.as_bytes()).await;
    assert!(replaced.status.success(), "{}", text(&replaced.stderr));
    let agent = gateway.start();
    let wish = |status: &serde_json::Value| {
        status["connection"]["connected"] == true && status["keyRenewal"]["active"] == json!("secondary")
    };
    gateway.until_status("a connection with the brought key, on disk", wish).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_can_write_or_reads_stops_nothing() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let gateway = Gateway::new(&hub, "d", &keys.primary);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    // A pipe that is never read, and one whose reader is gone.
    let (_unread, unread_end) = std::io::pipe().unwrap();
    let (gone, broken_end) = std::io::pipe().unwrap();
    drop(gone);
    for stderr in [std::process::Stdio::from(full), unread_end.into(), broken_end.into()] {
        let mut child = gateway.command(&["run"]).env("RUST_LOG", "trace").stderr(stderr).spawn().unwrap();
        gateway.until_status("a connection", |status| status["connection"]["connected"] == true).await;
        for lost in 1..=3 {
            hub.cut("d").await;
            let is_back = |status: &serde_json::Value| {
                status["connection"]["connected"] == true && status["counters"]["lost"] == lost
            };
            gateway.until_status("the way back", is_back).await;
        }
        assert!(gateway.publishes().await);
        let pid = child.id().unwrap();
        twinkey_tests::gateway::signal_process(pid, rustix::process::Signal::TERM);
        assert!(timeout(STOP_MAX, child.wait()).await.expect("the agent ends in time").unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_full_disk_does_not_take_is_not_called_stored() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let gateway = Gateway::with(Settings::for_hub(&hub), &connection_string("localhost", "d", &dead_key()));
    let agent = gateway.start();
    gateway.until_logged("could not connect").await;
    // What stands where a write begins can't be replaced by a file.
    let in_the_way = gateway.state_dir().join("key-ring.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let right = connection_string("localhost", "d", &keys.primary);
    let refused = gateway.run_with_input(&["provision", "--replace"], right.as_bytes()).await;
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("NOT stored"), "{}", text(&refused.stderr));
    // Once there is room it is stored all the same, and used.
    std::fs::remove_dir(&in_the_way).unwrap();
    gateway.until_status("a connection", |status| status["connection"]["connected"] == true).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_root_stores_for_an_agent_of_another_user_belongs_to_that_user() {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can work for another user");
        return;
    }
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let gateway = Gateway::new(&hub, "d", &keys.primary);
    let first = connection_string("localhost", "d", &keys.primary);
    assert!(gateway.run_with_input(&["provision"], first.as_bytes()).await.status.success());
    const NOBODY: u32 = 65_534;
    let state = gateway.state_dir();
    for path in [state.clone(), state.join("key-ring.a")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let second = connection_string("localhost", "d", &keys.secondary);
    let replaced = gateway.run_with_input(&["provision", "--replace"], second.as_bytes()).await;
    assert!(replaced.status.success(), "{}", text(&replaced.stderr));
    for (path, _) in gateway.key_rings() {
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), NOBODY, "{}", path.display());
    }
    assert_eq!(gateway.key_rings().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_taken_from_root_and_the_agents_own_user_and_from_no_other_of_the_group() {
    use std::os::unix::fs::PermissionsExt as _;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can ask as another user");
        return;
    }
    const NOBODY: u32 = 65_534;
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let gateway = Gateway::with(Settings::for_hub(&hub), &connection_string("localhost", "d", &dead_key()));
    let agent = gateway.start();
    gateway.until_logged("could not connect").await;
    // As if that user were in the socket's group.
    for (path, mode) in [(gateway.path(""), 0o711), (gateway.socket(), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let held = gateway.key_rings();
    let right = connection_string("localhost", "d", &keys.primary);
    let mut command = gateway.command(&["provision", "--replace"]);
    let mut child = command
        .uid(NOBODY)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(right.as_bytes()).await.unwrap();
    let refused = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("only root and the agent's own user"), "{said}");
    assert!(!said.contains(&keys.primary));
    assert_eq!(gateway.key_rings(), held);
    // Everything else is open to it.
    let mut status = gateway.command(&["status"]);
    assert!(status.uid(NOBODY).output().await.unwrap().status.success());

    let replaced = gateway.run_with_input(&["provision", "--replace"], right.as_bytes()).await;
    assert!(replaced.status.success(), "{}", text(&replaced.stderr));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_a_token_of_an_hour_at_most_where_the_configuration_allows_it_and_for_no_other_resource()
 {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let mut gateway = Gateway::new(&hub, "d", &keys.primary);
    let agent = gateway.start();
    hub.until_connected("d", "primary").await;
    let refused = gateway.run(&["token"]).await;
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("`tokens = true`"), "{}", text(&refused.stderr));

    gateway.reconfigure(|settings| settings.tokens = true);
    agent.signal(rustix::process::Signal::HUP);
    gateway.until_logged("configuration read again").await;
    let given = gateway.run(&["token", "--ttl", "10m"]).await;
    let token = text(&given.stdout);
    assert!(token.starts_with("SharedAccessSignature sr=localhost%2Fdevices%2Fd&sig="), "{token}");
    let too_long = text(&gateway.run(&["token", "--ttl", "61m"]).await.stderr);
    assert!(too_long.contains("between 1 and 3600 seconds"), "{too_long}");
    let mut program = gateway.program().await;
    let other = json!({"request": "token", "resource": "localhost/devices/d/../other"});
    assert_eq!(program.ask(other).await["ok"], false);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_wrong_field_of_a_request_is_not_quoted() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let gateway = Gateway::new(&hub, "d", &keys.primary);
    let agent = gateway.start();
    let mut program = gateway.program().await;
    let secret = connection_string("localhost", "d", &keys.primary);
    for request in [
        json!({"request": secret}),
        json!({"request": "replace", "connectionString": 1, "slot": secret}),
        json!({"request": "replace", "connectionString": secret, "slot": secret}),
        json!({"request": "token", "ttlSecs": secret}),
        json!({"request": "status", secret.clone(): 1}),
    ] {
        let answer = program.ask(request).await;
        assert_eq!(answer["ok"], false);
        assert!(!answer.to_string().contains(&keys.primary), "{answer}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_string_among_systemds_credentials_makes_the_first_key_ring_and_none_is_no_failure() {
    for name in ["twinkey.connection-string", "twinkey.connection-string.encrypted"] {
        let gateway = Gateway::with(Settings::at(1, std::path::Path::new("/nonexistent")), "");
        let provision = async || {
            let mut command = gateway.command(&["provision", "--from-credential"]);
            command.env("CREDENTIALS_DIRECTORY", gateway.path("")).output().await.unwrap()
        };
        let none = provision().await;
        assert!(none.status.success());
        assert!(text(&none.stdout).contains("nothing was done"), "{}", text(&none.stdout));
        assert!(gateway.key_rings().is_empty());

        let file = gateway.write_private(name, b"garbage");
        let refused = text(&provision().await.stderr);
        assert!(refused.contains(file.to_str().unwrap()) && refused.contains("no `=`"), "{refused}");

        gateway.write_private(name, connection_string("localhost", "d", &dead_key()).as_bytes());
        let made = provision().await;
        assert!(made.status.success(), "{}", text(&made.stderr));
        assert_eq!(gateway.key_rings().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_at_a_terminal_is_asked_for_the_connection_string_and_it_is_not_shown() {
    let gateway = Gateway::with(Settings::at(1, std::path::Path::new("/nonexistent")), "");
    let command = gateway.command(&["provision"]);
    let words: Vec<_> = std::iter::once(command.as_std().get_program())
        .chain(command.as_std().get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    // util-linux' own terminal: what it is given is typed, and what a person would see comes out.
    let mut terminal = tokio::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut typed, mut shown) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    let mut seen = String::new();
    let mut until = async |wish: &str| {
        while !seen.contains(wish) {
            let mut bytes = [0; 1_024];
            let len = timeout(PATIENCE, shown.read(&mut bytes)).await.expect(wish).unwrap();
            assert_ne!(len, 0, "{seen}");
            seen.push_str(&text(&bytes[..len]));
        }
        seen.clone()
    };
    until("then Enter: ").await;
    let secret = dead_key();
    typed.write_all(format!("{}\n", connection_string("localhost", "d", &secret)).as_bytes()).await.unwrap();
    let seen = until("next: ").await;
    assert!(seen.contains("key ring created for d at localhost"), "{seen}");
    assert!(!seen.contains(&secret) && !seen.contains("SharedAccessKey"), "{seen}");
    assert!(timeout(PATIENCE, terminal.wait()).await.unwrap().unwrap().success());
    assert_eq!(gateway.key_rings().len(), 1);
}
