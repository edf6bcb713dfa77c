//! What programs on the gateway can make the real agent hold while its hub is away, and that they can't keep a person
//! away from it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixStream};
use twinkey_agent::budget::PROGRAMS_LEN_MAX;
use twinkey_agent::local::PLACES_MAX;
use twinkey_tests::gateway::{Agent, Gateway, Settings, connection_string, text};
use twinkey_tests::hub::TestHub;
use twinkey_tests::offers;
use twinkey_tests::vitals::{Usage, Vitals};
use twinkey_tests::waiting::{until, within};

/// More than the budget that the process may grow by, in KiB: pages of the program that are touched for the first time, and
/// what the allocator can't give back because something beside it is in use.
const ALLOWANCE_KIB: u64 = 4 * 1024;
/// Looks in a row at which the agent takes no more from anybody. Between two of them it answers a request, so it has
/// turned to everybody.
const LOOKS: usize = 20;

/// How long the agent may take for all that it is sent: a debug build works through 600 MB.
const FLOOD_MAX: Duration = Duration::from_secs(180);

/// What an agent reads into a connection's own buffer, in bytes.
const READ_LEN: usize = 8 * 1024;

/// An agent whose hub is there and never answers.
struct World {
    _hub: TestHub,
    _silent: TcpListener,
    gateway: Gateway,
    agent: Agent,
    resident_kib: u64,
}

impl World {
    async fn start() -> Self {
        let hub = TestHub::start().await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings { port: silent.local_addr().unwrap().port(), ..Settings::for_hub(&hub) };
        let gateway = Gateway::with(settings, &connection_string("localhost", "d", &offers::stray_key()));
        let agent = gateway.start();
        gateway.status().await;
        let resident_kib = Vitals::of(agent.pid()).resident_kib;
        Self { _hub: hub, _silent: silent, gateway, agent, resident_kib }
    }

    async fn floods(&self, programs: usize, lines: usize, line: &[u8]) -> Vec<Flood> {
        let mut floods = Vec::new();
        for _ in 0..programs {
            let stream = UnixStream::connect(self.gateway.socket()).await.unwrap();
            floods.push(Flood { stream, line: line.to_vec(), at: 0, lines });
        }
        floods
    }

    /// Writes until the agent takes no more, and says what it shows then.
    async fn until_full(&self, what: &str, floods: &mut [Flood]) -> Value {
        let mut looks = 0;
        let status = within(FLOOD_MAX, "the agent takes no more", async || {
            let taken = floods.iter_mut().filter_map(|flood| flood.push().then_some(())).count();
            looks = if taken == 0 { looks + 1 } else { 0 };
            // Whoever asks on a connection of his own is answered, whatever others do.
            let status = self.gateway.status().await;
            let growth = self.growth_kib();
            assert!(growth <= PROGRAMS_LEN_MAX as u64 / 1024 + ALLOWANCE_KIB, "{what}: {growth} KiB");
            Some(status).filter(|_| looks >= LOOKS)
        })
        .await;
        println!(
            "{what}: from {} KiB by {} KiB, {}",
            self.resident_kib,
            self.growth_kib(),
            status["messages"]
        );
        status
    }

    /// The most that the agent has ever grown by, in KiB.
    fn growth_kib(&self) -> u64 {
        Usage::of(self.agent.pid()).unwrap().peak_kib - self.resident_kib
    }
}

/// A program that writes one line over and over, and reads no answer.
struct Flood {
    stream: UnixStream,
    line: Vec<u8>,
    at: usize,
    lines: usize,
}

impl Flood {
    /// Writes what there is room for. Whether that was anything.
    fn push(&mut self) -> bool {
        let mut is_taken = false;
        while self.lines > 0 {
            match self.stream.try_write(&self.line[self.at..]) {
                Ok(len) => {
                    is_taken = true;
                    self.at += len;
                    if self.at == self.line.len() {
                        (self.at, self.lines) = (0, self.lines - 1);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // The agent has hung up.
                Err(_) => self.lines = 0,
            }
        }
        is_taken
    }
}

fn line(request: &Value) -> Vec<u8> {
    (request.to_string() + "\n").into_bytes()
}

fn publish(len: usize) -> Vec<u8> {
    line(&json!({"request": "publish", "id": 1, "body": "x".repeat(len)}))
}

/// The same, filled up with blanks.
fn padded(mut line: Vec<u8>, len: usize) -> Vec<u8> {
    line.splice(1..1, vec![b' '; len - line.len()]);
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lines_with_short_messages_take_the_memory_of_the_messages() {
    let world = World::start().await;
    let mut floods = world.floods(2, 150, &padded(publish(1), 500_000)).await;
    let status = world.until_full("300 messages of a byte in lines of 500 KB", &mut floods).await;
    assert_eq!(status["messages"]["waiting"], 300, "{status}");
    assert!(world.growth_kib() < 4 * 1024, "{} KiB for 300 bytes", world.growth_kib());
    world.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_any_size_fill_the_budget_and_no_more() {
    for (len, programs) in [(1, 60), (7_000, 60), (200_000, 12)] {
        let world = World::start().await;
        let mut floods = world.floods(programs, usize::MAX, &publish(len)).await;
        let what = format!("messages of {len} B from {programs} programs");
        let status = world.until_full(&what, &mut floods).await;
        // Nobody was hung up on, and what is held is a good part of what may be.
        assert!(floods.iter().all(|flood| flood.lines > 0));
        let waiting = status["messages"]["waiting"].as_u64().unwrap() as usize;
        let held = waiting * (len + 600);
        assert!((PROGRAMS_LEN_MAX / 3..PROGRAMS_LEN_MAX).contains(&held), "{what}: {held} B");
        // Who comes now still has his share.
        let mut late = world.floods(1, 1, &publish(100)).await;
        let status = world.until_full("one more", &mut late).await;
        assert_eq!(status["messages"]["waiting"], waiting + 1);
        world.agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_that_programs_send_or_leave_unread_takes_more_than_the_budget() {
    let properties: serde_json::Map<_, _> = (0..40_000).map(|n| (n.to_string(), json!(""))).collect();
    let kinds = [
        ("answers that are not read", line(&json!({"request": "status"}))),
        ("errors that are not read", b"\n".to_vec()),
        ("ids of 400 KB", line(&json!({"request": "status", "id": "i".repeat(400_000)}))),
        ("40,000 properties", line(&json!({"request": "publish", "body": "", "properties": properties}))),
        ("bodies of escapes", line(&json!({"request": "publish", "body": "\u{1}".repeat(80_000)}))),
        ("200,000 elements", line(&json!({"request": "status", "id": vec![0; 200_000]}))),
        ("lines that are too long", vec![b' '; 600_000]),
    ];
    let world = World::start().await;
    for (what, line) in kinds {
        // Of short lines enough to be held up by what is not read.
        let (programs, lines) = if line.len() < READ_LEN { (60, 100_000) } else { (12, 2) };
        let mut floods = world.floods(programs, lines, &line).await;
        world.until_full(what, &mut floods).await;
        drop(floods);
        // The agent has noticed that they have gone.
        until("the places are free", async || (Vitals::of(world.agent.pid()).descriptors < 40).then_some(()))
            .await;
    }
    world.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_lines_are_given_up_and_the_rest_goes_on() {
    let world = World::start().await;
    let mut floods = world.floods(24, 1, &vec![b' '; 400_000]).await;
    // A line that is whole waits no longer than those take that are not.
    let mut late = world.floods(1, 1, &padded(publish(1), 400_000)).await;
    floods.append(&mut late);
    let came = async || {
        for flood in &mut floods {
            flood.push();
        }
        let status = world.gateway.status().await;
        (status["messages"]["waiting"] == 1).then_some(())
    };
    within(FLOOD_MAX, "the message is taken", came).await;
    assert!(world.growth_kib() <= PROGRAMS_LEN_MAX as u64 / 1024 + ALLOWANCE_KIB, "{}", world.growth_kib());
    println!("half lines: by {} KiB", world.growth_kib());
    world.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_send_and_go_keep_no_place_while_the_hub_is_away() {
    let world = World::start().await;
    for number in 1..=2 * PLACES_MAX {
        let mut program = world.gateway.program().await;
        program.say(&publish(number)).await;
        drop(program);
        // Its message has been taken before it is known to have gone.
        until("the message waits", async || {
            (world.gateway.status().await["messages"]["waiting"] == number).then_some(())
        })
        .await;
    }
    world.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_hold_every_place_and_ask_for_nothing_make_room_for_a_person_with_a_key() {
    let hub = TestHub::start().await;
    let keys = hub.create("d").await;
    let settings = Settings::for_hub(&hub);
    let gateway = Gateway::with(settings, &connection_string("localhost", "d", &offers::stray_key()));
    let agent = gateway.start();
    gateway.until_logged("could not connect").await;
    let mut idle = Vec::new();
    for _ in 0..2 * PLACES_MAX {
        idle.push(UnixStream::connect(gateway.socket()).await.unwrap());
    }
    let right = connection_string("localhost", "d", &keys.primary);
    let replaced = gateway.run_with_input(&["provision", "--replace"], right.as_bytes()).await;
    assert!(replaced.status.success(), "{}", text(&replaced.stderr));
    assert!(text(&replaced.stdout).contains("the hub has accepted it"), "{}", text(&replaced.stdout));
    agent.stop().await;
}
