//! The one loop. It feeds the machine ([`twinkey_rotation::step`]) and performs what the machine asks for: writes,
//! attempts to connect, timers, the report. Disk, network, timers and programs on this machine meet here and
//! nowhere else, so that there is one order of events that can be read, traced and simulated.
//!
//! A *takeover* runs in three steps beside the connection that stands: open the stream; wait a moment until nothing
//! is unanswered on the old one, so that little has to be sent twice; then CONNECT. Accepted: the new connection is
//! the connection, and what is still unanswered goes on there. Refused: nothing was disturbed.

mod allowance;
mod attempt;
mod connections;
mod disk;
mod document;
mod doubts;
mod duel;
mod outcomes;
mod question;
mod requests;
mod status;

use std::future::pending;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use twinkey_contract::report::Report;
use twinkey_rotation::{Desired, Disk, Effects, Input, KeyName, KeySlot, Policy, Ring, State, Timer, step};
use zeroize::Zeroizing;

use self::allowance::Allowance;
use self::attempt::{Attempt, Progress};
use self::connections::Live;
use self::disk::{Saved, end_of};
use self::document::Restored;
use self::duel::Duel;
use self::outcomes::Outcomes;
use self::question::Question;
use self::status::Counters;
pub(crate) use self::status::text_of;
use crate::clock::{Clock, Instant, Source};
use crate::config::Config;
use crate::hub::Timing;
use crate::hub::dial::Dial;
use crate::hub::outbox::Outbox;
use crate::hub::session::Session;
use crate::hub::time::AskError;
use crate::hub::wire::{Received, WireError};
use crate::keyring::{KeyRing, named_keys};
use crate::local::Request;
use crate::store::{Files, Store};
use crate::supervisor::{Notice, Supervisor};
use crate::twin::Remarks;

/// How long the end of the process may take for what is being written, and then for the goodbye to the hub: less than
/// two seconds together.
const LAST_WRITE: Duration = Duration::from_millis(1_000);
const GOODBYE: Duration = Duration::from_millis(500);
/// An agent that is not connected by then says that it is ready all the same: it is up, only the hub is not there.
const READY_AFTER: Duration = Duration::from_secs(20);

/// What the driver is given to work with.
pub struct Parts<F: Files + Send + 'static> {
    /// The configuration.
    pub config: Config,
    /// The key ring, as it is on disk.
    pub key_ring: KeyRing,
    /// The disk.
    pub store: Store<F>,
    /// The network.
    pub dialler: Box<dyn Dial>,
    /// The clocks.
    pub clock: Clock,
    /// Fresh randomness for jitter.
    pub chance: Box<dyn FnMut() -> u16 + Send>,
    /// What programs on this machine ask for.
    pub requests: mpsc::Receiver<Request>,
    /// What the operating system asks for.
    pub signals: mpsc::Receiver<Signal>,
    /// Who watches over the process.
    pub supervisor: Supervisor,
}

/// What the operating system asks for.
#[derive(Debug)]
pub enum Signal {
    /// To end.
    Stop,
    /// To go on with this configuration and this way to the hub. Connections that stand are not touched.
    Reload(Box<Config>, Box<dyn Dial>),
}

impl std::fmt::Debug for dyn Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dial")
    }
}

/// The agent at work.
pub struct Driver<F: Files + Send + 'static> {
    config: Config,
    policy: Policy,
    timing: Timing,
    key_ring: KeyRing,
    state: State,
    /// Away while a write is under way.
    store: Option<Store<F>>,
    saving: Option<JoinHandle<Saved<F>>>,
    /// A key ring that waits until the time is written.
    next_key_ring: Option<Zeroizing<Vec<u8>>>,
    noted_unix_secs: Option<u64>,
    dialler: Box<dyn Dial>,
    clock: Clock,
    chance: Box<dyn FnMut() -> u16 + Send>,
    requests: mpsc::Receiver<Request>,
    signals: mpsc::Receiver<Signal>,
    supervisor: Supervisor,
    next_heartbeat: Option<Instant>,
    /// Until the supervisor has been told that the agent is up.
    ready_until: Option<Instant>,
    timers: [(Timer, Option<Instant>); Timer::COUNT],
    attempt: Option<Attempt>,
    live: Option<Live>,
    /// The connection that stood ended while another one was at CONNECT. The hub closes the old one before it says
    /// yes to the new one, so this is no loss before that answer is known.
    is_loss_open: bool,
    loss_open_since: Option<Instant>,
    retiring: Option<(Session, Instant)>,
    outbox: Outbox,
    question: Question,
    duel: Duel,
    refused_at: Option<Instant>,
    /// The twin has shown a report of this key ring's since the start.
    has_seen_own_report: bool,
    /// What the first of them said of its sequence.
    first_seen_sequence: u64,
    restored: Option<Restored>,
    machine_report: Option<twinkey_rotation::Report>,
    remarks: Remarks,
    report: Option<Report>,
    report_patch: Option<Value>,
    outcomes: Outcomes,
    counters: Counters,
    /// How many keys a person may still bring.
    allowance: Allowance,
    /// A person has brought a key: it is to be tried as soon as it is on disk.
    is_wake_due: bool,
    /// That person's key, and who waits to hear that it is on disk.
    replacing: Option<(KeyName, oneshot::Sender<Result<String, String>>)>,
    started: Instant,
}

enum Happening<F> {
    Came(Result<Received, WireError>),
    CameLate(Result<Received, WireError>),
    Progressed(Progress),
    Saved(Option<Saved<F>>),
    Asked(Request),
    Signalled(Signal),
    Told(Result<u64, AskError>),
    Deadline,
}

impl<F: Files + Send + 'static> Driver<F> {
    /// A driver that has not begun yet.
    pub fn new(parts: Parts<F>) -> Self {
        let Parts { config, key_ring, store, dialler, clock, chance, requests, signals, supervisor } = parts;
        let now = clock.now();
        Self {
            policy: config.policy(),
            timing: config.timing(),
            state: State::new(key_ring.ring),
            key_ring,
            noted_unix_secs: store.last_seen(),
            store: Some(store),
            saving: None,
            next_key_ring: None,
            dialler,
            chance,
            requests,
            signals,
            next_heartbeat: supervisor.heartbeat().map(|_| now),
            supervisor,
            ready_until: Some(now + READY_AFTER),
            timers: Timer::ALL.map(|timer| (timer, None)),
            attempt: None,
            live: None,
            is_loss_open: false,
            loss_open_since: None,
            retiring: None,
            outbox: Outbox::default(),
            question: Question::default(),
            duel: Duel::default(),
            refused_at: None,
            has_seen_own_report: false,
            first_seen_sequence: 0,
            restored: None,
            machine_report: None,
            remarks: Remarks::default(),
            report: None,
            report_patch: None,
            outcomes: Outcomes::default(),
            counters: Counters::default(),
            allowance: Allowance::default(),
            is_wake_due: false,
            replacing: None,
            started: now,
            clock,
            config,
        }
    }

    /// The same for a key ring that could not be made durable: a power cut may still bring back `predecessor`, the
    /// ring in the other file.
    #[must_use]
    pub fn unsettled(mut self, predecessor: Option<Ring>) -> Self {
        self.state = State::unsettled(self.key_ring.ring, predecessor);
        self.counters.is_disk_failing = true;
        self
    }

    /// Runs until a signal ends it; then everything that was accepted is on disk.
    pub async fn run(mut self) {
        self.tell_status();
        if let Some(correction) = self.clock.correction() {
            tracing::warn!(
                offset_secs = correction.offset_secs,
                "this machine's clock is behind the last time that was seen: going on from there, and asking the hub"
            );
        }
        self.feed(Input::Boot);
        loop {
            // Before anything else, and every time: whoever is never done asking must not stop the timers.
            self.fire();
            self.watch();
            self.pursue();
            match self.next_happening().await {
                Happening::Came(received) => self.came(received),
                Happening::CameLate(received) => self.came_late(received),
                Happening::Progressed(progress) => self.progressed(progress),
                Happening::Saved(saved) => self.saved(saved),
                Happening::Asked(request) => self.asked(request),
                Happening::Told(answer) => self.told(&answer),
                Happening::Signalled(Signal::Stop) => return self.stop().await,
                Happening::Signalled(Signal::Reload(config, dialler)) => {
                    self.supervisor.tell(&Notice::Reloading);
                    self.policy = config.policy();
                    self.timing = config.timing();
                    self.config = *config;
                    self.dialler = dialler;
                    self.supervisor.tell(&Notice::Ready);
                    tracing::info!("configuration read again; it counts from the next connection on");
                    // Whoever corrected it does not want to wait for the end of a long pause.
                    self.wake();
                }
                // What is due is done at the top of the loop.
                Happening::Deadline => {}
            }
        }
    }

    async fn next_happening(&mut self) -> Happening<F> {
        let deadline = self.next_deadline();
        let is_quiet = self.outbox.in_flight_count() == 0;
        tokio::select! {
            // What ends by itself comes before what may never end.
            biased;
            Some(signal) = self.signals.recv() => Happening::Signalled(signal),
            saved = end_of(&mut self.saving) => Happening::Saved(saved),
            progress = progress_of(&mut self.attempt, is_quiet) => Happening::Progressed(progress),
            answer = self.question.answer() => Happening::Told(answer),
            late = next_of(self.retiring.as_mut().map(|(session, _)| session)) => Happening::CameLate(late),
            received = next_of(self.live.as_mut().map(|live| &mut live.session)) => Happening::Came(received),
            Some(request) = self.requests.recv() => Happening::Asked(request),
            () = tokio::time::sleep_until(deadline) => Happening::Deadline,
        }
    }

    /// Feeds the machine, and performs what it asks for.
    fn feed(&mut self, input: Input) {
        let chance = (self.chance)();
        let (state, effects) = step(&self.policy, self.state, input, chance);
        tracing::debug!(?input, ?effects, "step");
        self.state = state;
        self.perform(effects);
    }

    fn perform(&mut self, effects: Effects) {
        let now = self.clock.now();
        for (timer, delay_ms) in effects.timers.into_iter().flatten() {
            for (known, deadline) in &mut self.timers {
                if *known == timer {
                    *deadline = Some(now + Duration::from_millis(delay_ms));
                }
            }
        }
        if let Some(report) = effects.report {
            self.machine_report = Some(report);
            self.write_report();
        }
        if let Some(ring) = effects.store {
            self.save(&ring);
        }
        if let Some(key) = effects.connect {
            self.begin_attempt(key);
        }
    }

    /// Ends the wait for the next attempt, where there is no connection or its token should be renewed.
    fn wake(&mut self) {
        if self.live.is_none() || self.state.is_renewal_due {
            self.feed(Input::Fired(Timer::Retry));
        }
    }

    /// Wipes keys that nothing names any more.
    fn forget_keys(&mut self) {
        let mut needed = named_keys(&self.state.ring);
        let deferred = match self.state.deferred {
            Some(Desired::Offer(offer)) => Some(offer),
            Some(Desired::Nothing | Desired::Invalid(_)) | None => None,
        };
        for offer in self.state.waiting.into_iter().chain(deferred) {
            needed.extend(KeySlot::ALL.into_iter().filter_map(|slot| *offer.keys.of(slot)));
        }
        needed.extend(self.state.deferred_key.map(|brought| brought.key));
        needed.extend(named_keys(&self.state.durable));
        needed.extend(self.state.live);
        needed.extend(self.state.attempt.map(|attempt| attempt.key));
        self.key_ring.forget_unless(|name| needed.contains(&name));
        self.outcomes.retain(|name| needed.contains(&name));
    }

    /// Tells the supervisor that the loop turns, and keeps the remarks of the report up to date.
    fn watch(&mut self) {
        let now = self.clock.now();
        if let (Some(next), Some(heartbeat)) = (self.next_heartbeat, self.supervisor.heartbeat()) {
            if next <= now {
                self.supervisor.tell(&Notice::Alive);
                self.next_heartbeat = Some(now + heartbeat);
            }
        }
        if self.ready_until.is_some_and(|until| until <= now) {
            self.tell_ready();
        }
        if let Some(live) = &self.live {
            self.duel.stood(now.saturating_duration_since(live.unbroken_since));
        }
        if self.restored.as_ref().is_some_and(|restored| self.has_caught_up(restored)) {
            tracing::info!("the key ring has caught up with what it had missed");
            self.restored = None;
        }
        let mut correction = self.clock.correction();
        if correction.is_some_and(|correction| correction.source == Source::Floor) {
            // It is later than this, but how much?
            correction = None;
            self.ask_time();
        }
        let remarks = Remarks {
            clock_offset_secs: correction.map(|correction| correction.offset_secs),
            is_duel: self.duel.is_suspected(),
            behind: self.restored.as_ref().map(|restored| restored.seen),
        };
        if remarks != self.remarks {
            self.remarks = remarks;
            self.write_report();
        }
    }

    fn tell_ready(&mut self) {
        if self.ready_until.take().is_some() {
            self.supervisor.tell(&Notice::Ready);
        }
    }

    fn tell_status(&mut self) {
        let line = self.status_line();
        self.supervisor.tell(&Notice::Status(line));
    }

    fn fire(&mut self) {
        let now = self.clock.now();
        for timer in Timer::ALL {
            let is_due =
                self.timers.iter_mut().find(|(known, _)| *known == timer).is_some_and(|(_, deadline)| {
                    let is_due = deadline.is_some_and(|deadline| deadline <= now);
                    if is_due {
                        *deadline = None;
                    }
                    is_due
                });
            if is_due {
                self.feed(Input::Fired(timer));
            }
        }
    }

    fn next_deadline(&self) -> Instant {
        let timers = self.timers.iter().filter_map(|(_, deadline)| *deadline);
        let now = self.clock.now();
        let outbox = if self.holds_messages(now) { None } else { Some(&self.outbox) };
        let live = self.live.as_ref().map(|live| live.session.deadline(outbox));
        let retiring = self.retiring.as_ref().map(|(_, until)| *until);
        let attempt = self.attempt.as_ref().and_then(|attempt| attempt.deadline(now));
        // An hour: only an upper bound for a machine that waits for nothing.
        let idle = now + Duration::from_secs(3_600);
        let supervisor = self.next_heartbeat.into_iter().chain(self.ready_until);
        timers.chain(live).chain(retiring).chain(attempt).chain(supervisor).min().unwrap_or(idle)
    }

    async fn stop(mut self) {
        tracing::info!("stopping");
        self.supervisor.tell(&Notice::Stopping);
        if let Disk::Failed { .. } = self.state.disk {
            // The last chance for what the disk did not take.
            self.feed(Input::Fired(Timer::Store));
        }
        let until = self.clock.now() + LAST_WRITE;
        while let Some(saving) = &mut self.saving {
            // A write under way is let through: the file is never left half-written, and neither is the answer lost.
            let Ok(saved) = tokio::time::timeout_at(until, saving).await else {
                tracing::error!("the disk does not answer; what was being written counts as not written");
                break;
            };
            self.saved(saved.ok());
        }
        if let Some(live) = self.live.take() {
            let _ = tokio::time::timeout(GOODBYE, live.session.disconnect()).await;
        }
    }
}

async fn next_of(session: Option<&mut Session>) -> Result<Received, WireError> {
    match session {
        Some(session) => session.next().await,
        None => pending().await,
    }
}

async fn progress_of(attempt: &mut Option<Attempt>, is_quiet: bool) -> Progress {
    match attempt {
        Some(attempt) => attempt.progress(is_quiet).await,
        None => pending().await,
    }
}

/// Sixteen random bits from the operating system. Jitter is no secret, so its absence is no reason to stop.
pub fn chance_from_os() -> u16 {
    let mut bytes = [0; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u16::from_ne_bytes(bytes),
        Err(_) => u16::MAX / 2,
    }
}
