//! Programs on the gateway that may open the agent's socket.

use std::fs::Permissions;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use twinkey_tests::gateway::{Agent, Gateway, connection_string, text};
use twinkey_tests::hub::TestHub;
use twinkey_tests::offers::stray_key;
use twinkey_tests::vitals::Usage;
use twinkey_tests::waiting::{PATIENCE, until};

use crate::victim::{DEVICE, connected, until_heard};

/// What the unit gives the agent (`MemoryMax=`), in KiB. The agent of these tests is a larger one, built for debugging.
const RESIDENT_MAX_KIB: u64 = 64 * 1_024;
/// Close to the longest line that the socket takes.
const LINE_LEN: usize = 500 * 1_024;
/// So long the agent may take nothing out of a socket before a program gives up.
const STUCK: Duration = Duration::from_secs(3);
/// Processes and connections of each, more than there are places, and how often each writes its lines.
const PROCESSES: usize = 5;
const CONNECTIONS: usize = 24;
const TIMES: usize = 8;
/// Keys that are brought, and that an agent takes up in a row.
const KEYS: usize = 60;
const BURST: usize = 8;
/// Where a program of these tests finds the socket.
const SOCKET_VARIABLE: &str = "TWINKEY_ATTACK_SOCKET";
/// Somebody who is not root: `nobody`. The group is the socket's.
const STRANGER: u32 = 65_534;

/// Programs of another user of the socket's group. Dropping them ends them.
struct Programs {
    _processes: Vec<Child>,
    /// Connections that they hold, and how often the agent has taken their lines.
    held: usize,
    taken: usize,
}

impl Programs {
    /// Each opens its connections, writes the lines on them again and again, and reads nothing. Without any they are idle.
    async fn start(gateway: &Gateway, lines: &str) -> Self {
        // Another user may come as far as the socket.
        let home = gateway.socket().parent().unwrap().to_owned();
        std::fs::set_permissions(home, Permissions::from_mode(0o711)).unwrap();
        let mut processes = Vec::new();
        for _ in 0..PROCESSES {
            let mut program = Command::new(std::env::current_exe().unwrap());
            program.args(["--exact", "local_programs::is_a_program_of_the_other_tests"]);
            program.args(["--ignored", "--nocapture"]).env(SOCKET_VARIABLE, gateway.socket());
            program.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            if rustix::process::geteuid().is_root() {
                program.uid(STRANGER).gid(0);
            }
            let mut program = program.spawn().unwrap();
            let input = program.stdin.as_mut().unwrap();
            input.write_all(format!("{lines}\n\0").as_bytes()).await.unwrap();
            processes.push(program);
        }
        let (mut held, mut taken) = (0, 0);
        for program in &mut processes {
            let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
            loop {
                let line = timeout(PATIENCE, said.next_line()).await.expect("the program says something");
                let line = line.unwrap().expect("it goes on");
                let Some((_, counts)) = line.split_once("holds ") else { continue };
                let counts: Vec<usize> = counts.split(' ').map(|count| count.parse().unwrap()).collect();
                held += counts[0];
                taken += counts[1];
                break;
            }
        }
        Self { _processes: processes, held, taken }
    }
}

/// Not a test: a program that the tests here start.
#[test]
#[ignore = "a program that other tests start"]
fn is_a_program_of_the_other_tests() {
    let Some(path) = std::env::var_os(SOCKET_VARIABLE) else { return };
    let mut lines = Vec::new();
    std::io::stdin().lock().read_until(0, &mut lines).unwrap();
    lines.pop();
    let pour = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).ok()?;
        stream.set_write_timeout(Some(STUCK)).unwrap();
        let times = if lines.trim_ascii().is_empty() { 0 } else { TIMES };
        // It may hang up, or let the lines wait.
        let taken = (0..times).take_while(|_| stream.write_all(&lines).is_ok()).count();
        Some((stream, taken))
    };
    let poured: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(pour)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    println!("holds {} {}", poured.len(), poured.iter().map(|(_, taken)| taken).sum::<usize>());
    // Until the test has gone.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// The hub is gone for longer than any test, and the agent knows it.
async fn lose_the_hub(hub: &TestHub, gateway: &Gateway) {
    hub.operate("restart", json!({"downMs": 600_000, "forgetSessions": false})).await.expect(202);
    gateway.until_status("the hub is gone", |status| status["connection"]["connected"] == false).await;
}

fn peak_kib(agent: &Agent) -> u64 {
    Usage::of(agent.pid()).expect("the agent lives").peak_kib
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_one_byte_in_long_lines_do_not_fill_the_memory_while_the_hub_is_away() {
    let hub = TestHub::start().await;
    let (gateway, agent, _) = connected(&hub, DEVICE, |_| {}).await;
    lose_the_hub(&hub, &gateway).await;
    let before = peak_kib(&agent);
    let head = "{\"request\":\"publish\",\"id\":7,\"body\":\"x\"";
    let programs = Programs::start(&gateway, &format!("{head}{}}}", " ".repeat(LINE_LEN - head.len()))).await;
    let after = peak_kib(&agent);
    println!("{} lines of {LINE_LEN} bytes: {before} -> {after} KiB", programs.taken);
    assert!(after < RESIDENT_MAX_KIB, "{after} KiB");
    // The agent's own command is still served.
    let status = gateway.run(&["status"]).await;
    assert!(status.status.success(), "{}", text(&status.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_do_not_fill_the_memory() {
    let hub = TestHub::start().await;
    let (gateway, agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let before = peak_kib(&agent);
    // An answer repeats its request's `id`.
    let id = "i".repeat(LINE_LEN - 100);
    let long = format!("{{\"request\":\"status\",\"id\":\"{id}\"}}");
    let many = vec!["{\"request\":\"status\",\"id\":7}"; 4_000].join("\n");
    for (what, line) in [("long ones", long), ("many", many)] {
        let programs = Programs::start(&gateway, &line).await;
        let after = peak_kib(&agent);
        println!(
            "unread answers, {what}: {} connections, taken {} times: {before} -> {after} KiB",
            programs.held, programs.taken
        );
        assert!(after < RESIDENT_MAX_KIB, "{after} KiB");
        let status = gateway.run(&["status"]).await;
        assert!(status.status.success(), "{}", text(&status.stderr));
    }
    until_heard(&hub, &gateway, DEVICE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_lock_the_agents_own_command_out() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let programs = Programs::start(&gateway, "").await;
    let brought = connection_string("localhost", DEVICE, &hub.keys(DEVICE).await.secondary);
    let args = ["provision", "--replace", "--slot", "secondary"];
    let provisioned = gateway.run_with_input(&args, brought.as_bytes()).await;
    println!(
        "{} idle connections, provision --replace: {}, {}",
        programs.held,
        provisioned.status,
        text(&provisioned.stderr).trim()
    );
    assert!(provisioned.status.success(), "{}", text(&provisioned.stderr));
    let status = gateway.run(&["status"]).await;
    assert!(status.status.success(), "{}", text(&status.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_floods_the_socket_takes_no_message_from_the_others() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let flood = {
        let mut stream = UnixStream::connect(gateway.socket()).await.unwrap();
        let line = json!({"request": "publish", "body": "x".repeat(200_000)}).to_string() + "\n";
        tokio::spawn(async move { while stream.write_all(line.as_bytes()).await.is_ok() {} })
    };
    until("a message of another program gets through", async || {
        let answer: Value = gateway.program().await.ask(json!({"request": "publish", "body": "here"})).await;
        (answer["ok"] == true).then_some(())
    })
    .await;
    flood.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_root_brings_are_taken_within_a_bound_and_no_other_program_brings_any() {
    let hub = TestHub::start().await;
    let (gateway, _agent, _) = connected(&hub, DEVICE, |_| {}).await;
    let sequence = async || gateway.status().await["keyRenewal"]["sequence"].as_u64().unwrap();
    let (from_ms, before) = (hub.history(DEVICE).await.now_ms, sequence().await);
    let brought = connection_string("localhost", DEVICE, &stray_key());
    let line = json!({"request": "replace", "connectionString": brought}).to_string();
    drop(Programs::start(&gateway, &line).await);
    if rustix::process::geteuid().is_root() {
        assert_eq!(sequence().await, before, "a program of the group brings no key");
    }
    let mut program = gateway.program().await;
    let mut taken = 0;
    for _ in 0..KEYS {
        let brought = connection_string("localhost", DEVICE, &stray_key());
        let answer = program.ask(json!({"request": "replace", "connectionString": brought})).await;
        taken += usize::from(answer["ok"] == true);
    }
    let history = hub.history(DEVICE).await;
    let (attempts, writes) = (history.attempts_since(from_ms), sequence().await - before);
    println!("{taken} of {KEYS} keys taken, {attempts} attempts, {writes} writes");
    assert!(taken <= BURST && writes <= 2 * BURST as u64, "{taken} keys, {writes} writes");
    assert_eq!(history.longest_dark_ms(from_ms), 0.0);
    until_heard(&hub, &gateway, DEVICE).await;
}
