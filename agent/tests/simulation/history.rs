//! One history: a world under one seed, from the first start of the agent until it is at rest in a healed world.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use twinkey_agent::budget::Room;
use twinkey_agent::clock::Clock;
use twinkey_agent::config::Config;
use twinkey_agent::driver::{Driver, Parts, Signal};
use twinkey_agent::hub::outbox::Message;
use twinkey_agent::local::{Replacement, Request};
use twinkey_agent::store::Store;
use twinkey_agent::supervisor::Supervisor;
use twinkey_contract::report::Reason;
use twinkey_contract::sealing::SealingKey;

use crate::disk::{Disk, Facts, Gate, Image, SimFiles, move_clock};
use crate::net::Network;
use crate::operator::{Operator, provisioned};
use crate::rng::Rng;
use crate::stranger;
use crate::tally::{Seen, Tally};
use crate::world::{Cause, Inner, Sending, Standing, Weather, World};

/// What is promised.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Ten years, in seconds.
const TEN_YEARS: i64 = 315_576_000;

/// What became of a history.
pub(crate) struct Ended {
    pub(crate) tally: Tally,
    pub(crate) log: Vec<String>,
    pub(crate) violation: Option<String>,
    pub(crate) virtual_secs: u64,
    /// From the healing to rest.
    pub(crate) rest_after_ms: u64,
}

/// Runs the history of `seed`.
pub(crate) fn run(seed: u64, has_log: bool) -> Ended {
    let gate = Arc::new(Gate::default());
    let (parked, unparked) = (Arc::clone(&gate), Arc::clone(&gate));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .on_thread_park(move || parked.set_parked(true))
        .on_thread_unpark(move || unparked.set_parked(false))
        .build()
        .unwrap();
    let ended = runtime.block_on(history(seed, has_log, Arc::clone(&gate)));
    gate.open_for_ever();
    ended
}

async fn history(seed: u64, has_log: bool, gate: Arc<Gate>) -> Ended {
    let mut rng = Rng::new(seed);
    let (slow_syncs, requests) = mpsc::unbounded_channel();
    tokio::spawn(move_clock(requests));
    let inner = Inner::new(rng.branch(), has_log);
    let world = World::new(inner, gate, slow_syncs);
    let mut director = Director::new(Arc::clone(&world), rng);
    let began = Instant::now();
    director.live().await;
    let rest_after_ms = director.rest_after_ms;
    world.with(|w| Ended {
        tally: w.tally.clone(),
        violation: w.violation().cloned(),
        log: w.take_log(),
        virtual_secs: began.elapsed().as_secs(),
        rest_after_ms,
    })
}

/// The agent's process.
struct Process {
    number: u64,
    driver: JoinHandle<()>,
    requests: mpsc::Sender<Request>,
    signals: mpsc::Sender<Signal>,
}

struct Director {
    world: Arc<World>,
    rng: Rng,
    operator: Operator,
    sealing_key: SealingKey,
    process: Option<Process>,
    /// The last start could make durable what it found.
    is_settled: bool,
    offset_secs: Arc<AtomicI64>,
    has_rival: Arc<AtomicBool>,
    rival_number: Arc<AtomicU64>,
    images: Vec<Image>,
    /// Nobody holds a key that the hub accepts; a person is on the way.
    is_person_due: bool,
    rest_after_ms: u64,
}

impl Director {
    fn new(world: Arc<World>, mut rng: Rng) -> Self {
        let sealing_key = SealingKey::from_bytes(&rng.bytes()).unwrap();
        Self {
            world,
            rng,
            operator: Operator::default(),
            sealing_key,
            process: None,
            is_settled: true,
            offset_secs: Arc::default(),
            has_rival: Arc::default(),
            rival_number: Arc::default(),
            images: Vec::new(),
            is_person_due: false,
            rest_after_ms: 0,
        }
    }

    fn has_failed(&self) -> bool {
        self.world.with(|w| w.violation().is_some())
    }

    async fn live(&mut self) {
        let slot = self.rng.below(2) as usize;
        let (world, sealing_key) = (Arc::clone(&self.world), self.sealing_key.clone());
        world.with(|w| {
            let slots = [w.mint(), w.mint()];
            w.slots = slots;
            let key_ring = provisioned(w, slot, &sealing_key);
            let bytes = key_ring.encode(&key_ring.ring).unwrap();
            let image = Image::from([("key-ring.a".to_owned(), Arc::new(bytes.to_vec()))]);
            w.came_in(slots[slot]);
            w.begin(Disk::of(&image), slots);
            let traits = format!("{:?}", w.traits);
            w.log(|| traits);
        });
        self.boot();
        let longest_ms = world.with(|w| w.traits.window_ms) / 2 + 60_000;
        for _ in 0..self.rng.range(8, 36) {
            let gap_ms = self.rng.magnitude(8, longest_ms);
            tokio::time::sleep(Duration::from_millis(gap_ms)).await;
            self.look_after_process().await;
            if self.has_failed() {
                return;
            }
            self.act().await;
        }
        self.end_well().await;
    }

    // ---- What happens ----

    async fn act(&mut self) {
        match self.rng.below(100) {
            0..20 => self.publish(),
            20..38 => self.operator_looks(),
            38..46 => {
                let Self { world, operator, sealing_key, .. } = self;
                world.with(|w| operator.stray(w, sealing_key));
            }
            46..50 => {
                let Self { world, sealing_key, .. } = self;
                world.with(|w| stranger::writes(w, sealing_key));
            }
            50 => self.flood().await,
            51..64 => self.world.with(|w| {
                w.weather = Weather::wild(&mut w.rng);
                let weather = format!("weather: {:?}", w.weather);
                w.log(|| weather);
            }),
            64..71 => self.world.with(|w| {
                let latency_ms = w.rng.pick(&[0, 5, 100]);
                w.weather = Weather::calm(latency_ms);
                w.log(|| "weather: calm".to_owned());
            }),
            71..73 => self.world.with(|w| {
                w.tally.count(Seen::Cut);
                w.log(|| "network: cuts everything".to_owned());
                w.cut_all();
            }),
            73..75 => self.world.with(|w| {
                w.tally.count(Seen::Stalled);
                w.log(|| "network: everything that stands is half open".to_owned());
                w.stall_all();
            }),
            75..78 => self.world.with(Inner::restart),
            78..84 => self.crash().await,
            84..86 => self.restore().await,
            86..90 => self.jump(),
            90..92 => self.rival(),
            92..95 => self.world.with(|w| {
                let action = w.rng.pick(&["status", "retry", "retry", "dance"]);
                w.call_method(action);
            }),
            95..96 => self.reload(),
            96..98 => self.destroy_both(),
            _ => self.world.with(Inner::hint),
        }
    }

    fn operator_looks(&mut self) {
        let Self { world, operator, sealing_key, .. } = self;
        world.with(|w| operator.look(w, sealing_key));
        if self.rng.per_mille(300) {
            self.images.push(self.world.with(|w| w.disk.after_kill()));
        }
    }

    /// Somebody writes one false offer after another.
    async fn flood(&mut self) {
        self.world.with(|w| w.tally.count(Seen::StrangerFloods));
        let longest_ms = self.rng.pick(&[20, 200, 5_000]);
        for number in 0..self.rng.range(20, 60) {
            let Self { world, sealing_key, .. } = self;
            world.with(|w| stranger::offers(w, sealing_key, number < 2));
            let gap_ms = self.rng.range(1, longest_ms);
            tokio::time::sleep(Duration::from_millis(gap_ms)).await;
        }
    }

    fn publish(&mut self) {
        for _ in 0..self.rng.range(1, 4) {
            let number = self.world.with(|w| {
                w.messages.push(Sending::Waiting);
                w.messages.len() - 1
            });
            self.send(number);
        }
    }

    fn send(&mut self, number: usize) {
        let Some(process) = &self.process else { return };
        let (acknowledged, acknowledgement) = oneshot::channel();
        let message = Message {
            topic: "devices/pump-7/messages/events/".into(),
            payload: number.to_string().into(),
            acknowledged,
            room: Room::uncounted(),
        };
        // A process that has just died takes nothing; its successor will.
        if process.requests.try_send(Request::Publish(message)).is_err() {
            return;
        }
        let world = Arc::clone(&self.world);
        tokio::spawn(async move {
            if acknowledgement.await.is_ok() {
                world.with(|w| w.acknowledged(number));
            }
        });
    }

    async fn crash(&mut self) {
        let kind = self.rng.below(3);
        match kind {
            0 => self.stop().await,
            1 => {
                self.world.with(|w| {
                    w.tally.count(Seen::Killed);
                    w.log(|| "process: killed".to_owned());
                });
                self.kill().await;
            }
            _ => {
                self.power_cut().await;
            }
        }
        self.pause_and_boot().await;
    }

    async fn power_cut(&mut self) {
        self.world.with(|w| {
            w.tally.count(Seen::PowerCut);
            w.log(|| "process: the power is cut".to_owned());
            w.stall_all();
        });
        self.kill().await;
        self.world.with(|w| {
            let mut rng = w.rng.branch();
            w.disk = Disk::of(&w.disk.after_power_cut(&mut rng));
            w.cause(Cause::DiskReplaced);
            w.disk_changed();
        });
    }

    async fn pause_and_boot(&mut self) {
        let down_ms = self.rng.magnitude(1, 60_000);
        tokio::time::sleep(Duration::from_millis(down_ms)).await;
        self.boot();
    }

    /// An old image of the card comes back, if a key on it still opens the door.
    async fn restore(&mut self) {
        let open = self.images.iter().position(|image| {
            let facts = Facts::of(image);
            self.world
                .with(|w| w.slots.iter().any(|key| facts.as_ref().is_ok_and(|facts| facts.has(w.name(*key)))))
        });
        let Some(image) = open.map(|index| self.images[index].clone()) else { return };
        self.world.with(|w| {
            w.tally.count(Seen::OldImageRestored);
            w.log(|| "process: ended, and an old image restored".to_owned());
        });
        self.kill().await;
        self.world.with(|w| {
            w.disk = Disk::of(&image);
            w.forget_books();
        });
        self.pause_and_boot().await;
    }

    fn jump(&mut self) {
        let offset_secs = match self.rng.below(5) {
            0 => TEN_YEARS,
            1 => -TEN_YEARS,
            2 => 3_600,
            3 => -3_600,
            _ => 0,
        };
        let seen = if offset_secs > 0 { Seen::ClockJumpedAhead } else { Seen::ClockJumpedBack };
        self.offset_secs.store(offset_secs, Ordering::SeqCst);
        self.world.with(|w| {
            if offset_secs != 0 {
                w.tally.count(seen);
            }
            w.log(|| format!("clock: off by {offset_secs} s"));
        });
    }

    /// Comes, or goes.
    fn rival(&mut self) {
        let is_there = !self.has_rival.load(Ordering::SeqCst);
        self.has_rival.store(is_there, Ordering::SeqCst);
        let number = self.rival_number.fetch_add(1, Ordering::SeqCst) + 1;
        if !is_there {
            return;
        }
        let period = Duration::from_millis(self.rng.magnitude(500, 120_000));
        let (world, has_rival, newest) =
            (Arc::clone(&self.world), Arc::clone(&self.has_rival), Arc::clone(&self.rival_number));
        tokio::spawn(async move {
            // It has its own limits, lest a history never end; a fierce one is there for long enough to be told from
            // bad luck.
            let times = if period < Duration::from_secs(3) { 300 } else { 60 };
            for _ in 0..times {
                tokio::time::sleep(period).await;
                if !has_rival.load(Ordering::SeqCst) || newest.load(Ordering::SeqCst) != number {
                    return;
                }
                world.with(Inner::rival_connects);
            }
        });
    }

    fn reload(&mut self) {
        let Some(process) = &self.process else { return };
        let network = Network { world: Arc::clone(&self.world), process: process.number };
        let signal = Signal::Reload(Box::new(self.config()), Box::new(network));
        if process.signals.try_send(signal).is_ok() {
            self.world.with(|w| {
                w.tally.count(Seen::Reloaded);
                w.log(|| "process: reads its configuration again".to_owned());
                w.note_reason();
            });
        }
    }

    /// Both keys are replaced, and nobody tells the device; a person with a laptop will have to.
    fn destroy_both(&mut self) {
        if self.is_person_due || self.rng.per_mille(500) {
            return;
        }
        self.world.with(|w| {
            w.tally.count(Seen::BothKeysDestroyed);
            w.has_gone_dark = true;
            for slot in [0, 1] {
                let key = w.mint();
                w.register(slot, key, false);
            }
        });
        self.is_person_due = true;
    }

    /// A person brings the registry's key.
    fn person_comes(&mut self) {
        let Some(process) = &self.process else { return };
        let slot = self.rng.below(2) as usize;
        let replacement = self.world.with(|w| {
            let key_ring = provisioned(w, slot, &self.sealing_key);
            let slots = [twinkey_rotation::KeySlot::Primary, twinkey_rotation::KeySlot::Secondary];
            let (answer, _) = oneshot::channel();
            let key = w.slots[slot];
            w.note_reason();
            w.tally.count(Seen::Replaced);
            w.release_dead_key();
            w.came_in(key);
            w.log(|| format!("person: brings key {key} for slot {slot}"));
            Replacement {
                registration: key_ring.registration,
                slot: slots[slot],
                key: Box::new(w.keys[key].key.clone()),
                answer,
            }
        });
        let _ = process.requests.try_send(Request::Replace(replacement));
    }

    // ---- The process ----

    fn config(&self) -> Config {
        self.world.with(|w| w.config())
    }

    /// As `twinkey-agent run` begins.
    fn boot(&mut self) {
        let number = self.world.with(Inner::process_begins);
        self.world.with(|w| w.log(|| format!("process: {number} begins")));
        let mut store = Store::new(SimFiles { world: Arc::clone(&self.world), process: number });
        let (key_ring, predecessor) = match store.load() {
            Ok(Some(loaded)) => (loaded.key_ring, loaded.predecessor),
            other => {
                let problem = other.err();
                return self.world.with(|w| w.fail(format!("the agent can't start: {problem:?}")));
            }
        };
        let is_settled = store.settle().is_ok();
        let was_settled = std::mem::replace(&mut self.is_settled, is_settled);
        if !is_settled && (predecessor.is_none() || !was_settled) {
            // There is nothing else to hold on to, or the predecessor is as uncertain after two such starts in a row: the
            // agent counts on what it sees, and that is granted.
            self.world.with(|w| {
                w.disk.settle_by_itself();
                w.disk_changed();
            });
        }
        let (world, offset_secs) = (Arc::clone(&self.world), Arc::clone(&self.offset_secs));
        let began = (Instant::now(), world.with(|w| w.true_unix_secs()));
        let mut clock = Clock::with_wall(move || {
            let now = began.1 + began.0.elapsed().as_secs();
            now.saturating_add_signed(offset_secs.load(Ordering::SeqCst))
        });
        if let Some(last_seen) = store.last_seen() {
            clock = clock.with_floor(last_seen);
        }
        let (requests, requests_receiver) = mpsc::channel(twinkey_agent::local::REQUESTS_MAX);
        let (signals, signals_receiver) = mpsc::channel(4);
        let mut chance = self.rng.branch();
        let driver = Driver::new(Parts {
            config: self.config(),
            key_ring,
            store,
            dialler: Box::new(Network { world: Arc::clone(&self.world), process: number }),
            clock,
            chance: Box::new(move || chance.next() as u16),
            requests: requests_receiver,
            signals: signals_receiver,
            supervisor: Supervisor::none(),
        });
        let driver = if is_settled { driver } else { driver.unsettled(predecessor) };
        let mut driver = Box::pin(driver.run());
        let world = Arc::clone(&self.world);
        let driver = tokio::spawn(std::future::poll_fn(move |context| {
            // Who died in the middle of a write must not see what came of it.
            if !world.with(|w| w.is_alive(number)) {
                return std::task::Poll::Ready(());
            }
            driver.as_mut().poll(context)
        }));
        self.process = Some(Process { number, driver, requests, signals });
        // What has no acknowledgement is the program's to repeat.
        let waiting: Vec<usize> = self.world.with(|w| {
            let messages = w.messages.iter().enumerate();
            messages.filter(|(_, message)| **message == Sending::Waiting).map(|(number, _)| number).collect()
        });
        for number in waiting {
            self.send(number);
        }
    }

    async fn kill(&mut self) {
        self.world.with(Inner::die);
        if let Some(process) = self.process.take() {
            process.driver.abort();
            let _ = process.driver.await;
        }
    }

    async fn stop(&mut self) {
        let Some(process) = self.process.take() else { return };
        self.world.with(|w| {
            w.tally.count(Seen::StoppedCleanly);
            w.log(|| "process: is told to stop".to_owned());
        });
        let _ = process.signals.send(Signal::Stop).await;
        let began = Instant::now();
        let ended = process.driver.await;
        let took = began.elapsed();
        self.world.with(|w| {
            if ended.is_err() {
                w.fail("the driver has panicked".to_owned());
            }
            if took > STOP_WITHIN {
                w.fail(format!("the process took {took:?} to stop"));
            }
            w.die();
        });
    }

    /// A process that died by itself is started again, as its supervisor would.
    async fn look_after_process(&mut self) {
        let has_ended = self.process.as_ref().is_some_and(|process| process.driver.is_finished());
        if has_ended {
            let is_alive = self.world.with(|w| w.is_any_alive());
            if let Some(process) = self.process.take() {
                let ended = process.driver.await;
                if is_alive || ended.is_err() {
                    self.world.with(|w| w.fail(format!("the driver has ended by itself: {ended:?}")));
                    return;
                }
            }
            if self.rng.per_mille(500) {
                self.world.with(|w| {
                    let mut rng = w.rng.branch();
                    w.disk = Disk::of(&w.disk.after_power_cut(&mut rng));
                    w.cause(Cause::DiskReplaced);
                    w.disk_changed();
                });
            }
            self.boot();
        }
        if self.is_person_due && self.rng.per_mille(300) {
            self.person_comes();
            self.is_person_due = false;
        }
    }

    // ---- The end ----

    async fn end_well(&mut self) {
        self.has_rival.store(false, Ordering::SeqCst);
        self.offset_secs.store(0, Ordering::SeqCst);
        self.world.with(Inner::heal);
        self.look_after_process().await;
        self.is_person_due = false;
        let has_way_out = self.world.with(|w| w.has_way_out());
        if !has_way_out {
            self.person_comes();
        }
        let began = Instant::now();
        let window = Duration::from_millis(self.world.with(|w| w.traits.window_ms));
        let policy = self.config().policy();
        // An offer that is more than the budget allows waits for its turn.
        let turn = Duration::from_millis(policy.offer_interval_ms);
        // Where each attempt ends the connection that stands, a candidate is tried when the token
        // is renewed.
        let renewals = |count: u32| {
            let after = Duration::from_millis(policy.renew_after_ms);
            if policy.is_single_connection { count * after } else { Duration::ZERO }
        };
        // Two candidates with a window each, the longest waits between attempts and writes, answers
        // that never come. A candidate that is rejected takes a renewal to be refused at, and one
        // for its control.
        let bound = 2 * window + turn + renewals(5) + Duration::from_secs(7_200);
        if !self.until("rest", bound, |w| w.unrest()).await {
            return;
        }
        self.rest_after_ms = began.elapsed().as_millis() as u64;
        // The last examination: one rotation in the documented order, in a world without faults.
        let Self { world, operator, .. } = self;
        world.with(|w| {
            if w.standing != Standing::Nothing {
                operator.erase(w);
            }
        });
        *operator = Operator::default();
        if !self.until("rest without an offer", bound, |w| w.unrest()).await {
            return;
        }
        let Self { world, operator, sealing_key, .. } = self;
        world.with(|w| {
            operator.look(w, sealing_key);
            if !matches!(w.standing, Standing::Offer(_)) {
                w.fail("the operator can't renew a key of a device at rest".to_owned());
            }
        });
        let offered = self.world.with(|w| w.slots);
        if !self
            .until("the last rotation", window + turn + renewals(3) + Duration::from_secs(600), |w| {
                w.unrest()
            })
            .await
        {
            return;
        }
        let Self { world, operator, sealing_key, .. } = self;
        let is_proved = world.with(|w| operator.look(w, sealing_key));
        world.with(|w| {
            if !is_proved || !w.is_newest_live() {
                let report = w.report();
                w.fail(format!(
                    "the last rotation is not committed and proved: {report:?}, registry {offered:?}"
                ));
            }
        });
        if !self.until("the end", bound, |w| w.unrest()).await {
            return;
        }
        self.rest_undisturbed().await;
        self.check_status().await;
        self.stop().await;
    }

    /// I6: the same document again, and again, changes nothing.
    async fn rest_undisturbed(&mut self) {
        let lifetime_secs = self.world.with(|w| w.traits.lifetime_secs);
        tokio::time::sleep(Duration::from_secs(2)).await;
        // A suspicion ends when nothing has happened for a while, and that is reported.
        if self.world.with(|w| w.report().is_some_and(|report| report.reason == Some(Reason::Duel))) {
            return;
        }
        let before = self.world.with(|w| w.activity());
        // Short of the next token.
        for _ in 0..3 {
            self.world.with(Inner::hint);
            tokio::time::sleep(Duration::from_millis(lifetime_secs * 5)).await;
        }
        self.world.with(|w| {
            let after = w.activity();
            let is_renewal = after.0 > before.0 && lifetime_secs < 900;
            if (after.1, after.2) != (before.1, before.2) || (after.0 != before.0 && !is_renewal) {
                w.fail(format!("I6: attempts, writes or reports at rest: {before:?} became {after:?}"));
            }
        });
    }

    async fn check_status(&mut self) {
        let Some(process) = &self.process else { return };
        let (sender, receiver) = oneshot::channel();
        let _ = process.requests.send(Request::Status(sender)).await;
        let status = receiver.await.map(|status| status.to_string());
        self.world.with(|w| match status {
            Ok(status) => w.check_no_secret(status.as_bytes()),
            Err(_) => w.fail("the agent does not say how it is".to_owned()),
        });
    }

    /// Waits in virtual time; false when it took too long.
    async fn until(
        &mut self,
        what: &str,
        bound: Duration,
        unrest: impl Fn(&Inner) -> Option<String>,
    ) -> bool {
        let began = Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            tokio::time::sleep(pause).await;
            self.look_after_process().await;
            if self.has_failed() {
                return false;
            }
            let Some(problem) = self.world.with(|w| unrest(w)) else { return true };
            if began.elapsed() > bound {
                self.world.with(|w| w.fail(format!("I7: no {what} within {bound:?}: {problem}")));
                return false;
            }
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }
}
