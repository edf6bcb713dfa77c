//! The one loop. It feeds the machine ([`twinkey_rotation::step`]) and performs what the machine asks for: writes,
//! attempts to connect, timers, the report. Disk, network, timers and programs on this machine meet here and
//! nowhere else, so that there is one order of events that can be read, traced and simulated.
//!
//! A *takeover* runs in three steps beside the connection that stands: open the stream; wait a moment until nothing
//! is unanswered on the old one, so that little has to be sent twice; then CONNECT. Accepted: the new connection is
//! the connection, and what is still unanswered goes on there. Refused: nothing was disturbed.

mod attempt;
mod status;

use std::future::pending;
use std::time::Duration;

use rumqttc::mqttbytes::v4::Packet;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use twinkey_contract::KeySlot;
use twinkey_contract::report::{Reason, Report};
use twinkey_rotation::{Effects, Input, KeyName, Outcome, Policy, State, Timer, Trouble, UnixSecs, step};
use twinkey_sas::Expiry;
use zeroize::Zeroizing;

use self::attempt::{Attempt, Finished, Progress, outcome_of};
use self::status::Counters;
pub(crate) use self::status::text_of;
use crate::chain::Chain;
use crate::clock::{Clock, Instant};
use crate::config::{Config, Takeover};
use crate::hub::Timing;
use crate::hub::dial::Dial;
use crate::hub::outbox::Outbox;
use crate::hub::session::{ConnectError, Event, Session, SessionError};
use crate::hub::wire::WireError;
use crate::keyring::{KeyRing, named_keys};
use crate::local::Request;
use crate::store::{Files, Store, StoreError};
use crate::{token, twin};

/// How long the connection that was taken over may still say what it has to say: acknowledgements that were under
/// way. The hub has closed it already; this is only about the order of two TCP connections.
const RETIRING: Duration = Duration::from_millis(250);
/// How long the end of the process may take for the goodbye to the hub.
const GOODBYE: Duration = Duration::from_secs(1);
/// The direct method that the agent answers.
const METHOD: &str = "keyRenewal";
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

type Saved<F> = (Store<F>, Result<(), StoreError>);

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
    dialler: Box<dyn Dial>,
    clock: Clock,
    chance: Box<dyn FnMut() -> u16 + Send>,
    requests: mpsc::Receiver<Request>,
    signals: mpsc::Receiver<Signal>,
    timers: [(Timer, Option<Instant>); Timer::COUNT],
    attempt: Option<Attempt>,
    live: Option<Live>,
    /// The connection that stood ended while another one was at CONNECT. The hub closes the old one before it says
    /// yes to the new one, so this is no loss before that answer is known.
    is_loss_open: bool,
    retiring: Option<(Session, Instant)>,
    outbox: Outbox,
    report: Option<Report>,
    report_patch: Option<Value>,
    counters: Counters,
    started_unix_secs: u64,
}

struct Live {
    session: Session,
    expiry: Expiry,
    since_unix_secs: u64,
}

enum Happening<F> {
    Came(Result<Packet, WireError>),
    CameLate(Result<Packet, WireError>),
    Progressed(Progress),
    Saved(Option<Saved<F>>),
    Asked(Request),
    Signalled(Signal),
    Deadline,
}

impl<F: Files + Send + 'static> Driver<F> {
    /// A driver that has not begun yet.
    pub fn new(parts: Parts<F>) -> Self {
        let Parts { config, key_ring, store, dialler, clock, chance, requests, signals } = parts;
        Self {
            policy: config.policy(),
            timing: config.timing(),
            state: State::new(key_ring.ring),
            key_ring,
            store: Some(store),
            saving: None,
            dialler,
            chance,
            requests,
            signals,
            timers: Timer::ALL.map(|timer| (timer, None)),
            attempt: None,
            live: None,
            is_loss_open: false,
            retiring: None,
            outbox: Outbox::default(),
            report: None,
            report_patch: None,
            counters: Counters::default(),
            started_unix_secs: clock.unix_secs(),
            clock,
            config,
        }
    }

    /// Runs until a signal ends it; then everything that was accepted is on disk.
    pub async fn run(mut self) {
        self.feed(Input::Boot);
        loop {
            // Before anything else, and every time: whoever is never done asking must not stop the timers.
            self.fire();
            self.pursue();
            match self.next_happening().await {
                Happening::Came(packet) => self.came(packet),
                Happening::CameLate(packet) => self.came_late(packet),
                Happening::Progressed(progress) => self.progressed(progress),
                Happening::Saved(saved) => self.saved(saved),
                Happening::Asked(request) => self.asked(request),
                Happening::Signalled(Signal::Stop) => return self.stop().await,
                Happening::Signalled(Signal::Reload(config, dialler)) => {
                    self.policy = config.policy();
                    self.timing = config.timing();
                    self.config = *config;
                    self.dialler = dialler;
                    tracing::info!("configuration read again; it counts from the next connection on");
                    if self.live.is_none() {
                        // Whoever corrected it does not want to wait for the end of a long pause.
                        self.feed(Input::Fired(Timer::Retry));
                    }
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
            packet = next_packet(self.retiring.as_mut().map(|(session, _)| session)) => Happening::CameLate(packet),
            packet = next_packet(self.live.as_mut().map(|live| &mut live.session)) => Happening::Came(packet),
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
            let report = twin::write_report(&report, &self.key_ring);
            tracing::info!(
                status = report.status.as_str(),
                reason = report.reason.map(Reason::as_str),
                rotation = report.rotation.map(tracing::field::display),
                active = report.active.map(KeySlot::as_str),
                sequence = report.sequence,
                "key renewal"
            );
            self.report_patch = Some(report.to_patch());
            self.report = Some(report);
        }
        if let Some(ring) = effects.store {
            self.save(&ring);
        }
        if let Some(key) = effects.connect {
            self.begin_attempt(key);
        }
    }

    fn save(&mut self, ring: &twinkey_rotation::Ring) {
        self.key_ring.ring = *ring;
        let bytes = match self.key_ring.encode(ring) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the key ring can't be encoded; the one on disk stays as it is");
                return self.feed(Input::Stored(false));
            }
        };
        // The machine asks for one write at a time; the store is only missing after its thread has died.
        let Some(mut store) = self.store.take() else {
            return self.feed(Input::Stored(false));
        };
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let result = store.save_bytes(&bytes);
            (store, result)
        }));
    }

    fn saved(&mut self, saved: Option<Saved<F>>) {
        self.saving = None;
        let Some((store, result)) = saved else {
            tracing::error!(
                "the thread that writes to disk has died: restart the agent; the proven key stays in use"
            );
            return self.feed(Input::Stored(false));
        };
        self.store = Some(store);
        match &result {
            Ok(()) => {
                if std::mem::take(&mut self.counters.is_disk_failing) {
                    tracing::info!("the key ring can be written again");
                }
            }
            Err(error) => {
                self.counters.failed_writes += 1;
                if !std::mem::replace(&mut self.counters.is_disk_failing, true) {
                    tracing::error!(error = %Chain(error), "the key ring can't be written; the proven key stays in use and the write is repeated");
                }
            }
        }
        self.feed(Input::Stored(result.is_ok()));
        self.forget_keys();
    }

    /// Wipes keys that nothing names any more. Only called when no document is waiting.
    fn forget_keys(&mut self) {
        if self.state.deferred.is_some() {
            return;
        }
        let mut needed = named_keys(&self.state.ring);
        needed.extend(named_keys(&self.state.durable));
        needed.extend(self.state.live);
        needed.extend(self.state.attempt.map(|attempt| attempt.key));
        self.key_ring.forget_unless(|name| needed.contains(&name));
        self.counters.troubles.retain(|name, _| needed.contains(name));
    }

    fn begin_attempt(&mut self, key: KeyName) {
        self.counters.attempts += 1;
        if self.config.hub.takeover == Takeover::BreakBeforeMake && self.live.is_some() {
            tracing::info!("closing the connection before the next attempt, as configured");
            self.end_live();
        }
        self.attempt = Some(Attempt::begin(key, self.dialler.dial()));
    }

    fn progressed(&mut self, progress: Progress) {
        let Some(attempt) = self.attempt.as_mut() else {
            return;
        };
        match progress {
            Progress::Opened(stream) => attempt.hold(stream, self.live.is_some(), self.clock.now()),
            Progress::Quiet(stream) => {
                match token::credentials(
                    &self.key_ring,
                    attempt.key,
                    self.config.token.lifetime_secs,
                    self.clock.unix_secs(),
                ) {
                    Ok((credentials, expiry)) => {
                        attempt.connect(stream, credentials, expiry, self.timing, self.clock.now())
                    }
                    Err(problem) => {
                        tracing::error!(problem, "no token can be made with this key");
                        self.attempt = None;
                        self.feed(Input::Attempted(Outcome::Unknown(Trouble::Unreachable)));
                    }
                }
            }
            Progress::Finished(Ok(finished)) => self.accepted(finished),
            Progress::Finished(Err(error)) => self.not_accepted(&error),
        }
    }

    fn accepted(&mut self, finished: Finished) {
        let now = self.clock.now();
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let Finished { wire, is_session_present, expiry } = finished;
        let session = match Session::begin(wire, self.timing, now) {
            Ok(session) => session,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the connection broke right after it was accepted");
                if std::mem::take(&mut self.is_loss_open) {
                    self.feed(Input::Lost);
                }
                return self.feed(Input::Attempted(Outcome::Unknown(Trouble::Unanswered)));
            }
        };
        self.counters.accepted += 1;
        self.counters.troubles.clear();
        let unix_secs = self.clock.unix_secs();
        let old = self.live.replace(Live { session, expiry, since_unix_secs: unix_secs });
        self.outbox.begin_session(is_session_present);
        let is_takeover = std::mem::take(&mut self.is_loss_open) || old.is_some();
        self.counters.takeovers += u64::from(is_takeover);
        self.retiring = old.map(|old| (old.session, now + RETIRING));
        tracing::info!(key = %attempt.key, is_takeover, is_session_present, "connected");
        self.feed(Input::Attempted(Outcome::Accepted { at: UnixSecs(unix_secs) }));
    }

    fn not_accepted(&mut self, error: &ConnectError) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let outcome = outcome_of(error);
        if let Outcome::Refused = outcome {
            self.counters.refused += 1;
        }
        // Once per key and change: an outage of days is a few lines, not one for every attempt.
        let trouble = Chain(error).to_string();
        if self.counters.troubles.get(&attempt.key) != Some(&trouble) {
            let is_connected = self.live.is_some();
            tracing::warn!(key = %attempt.key, error = trouble, is_connected, "could not connect with this key");
            self.counters.troubles.insert(attempt.key, trouble);
        }
        if std::mem::take(&mut self.is_loss_open) {
            self.counters.lost += 1;
            tracing::warn!("the connection is gone, and the one that was to take over did not come about");
            self.feed(Input::Lost);
        }
        self.feed(Input::Attempted(outcome));
    }

    fn came(&mut self, packet: Result<Packet, WireError>) {
        let now = self.clock.now();
        let Some(live) = self.live.as_mut() else { return };
        match packet.map_err(SessionError::from).and_then(|packet| live.session.absorb(packet, now)) {
            Ok(Event::Nothing) => {}
            Ok(Event::Acknowledged(packet_id)) => self.outbox.acknowledge(packet_id),
            Ok(Event::Twin(document)) => self.read_twin(&document),
            Ok(Event::Method { name, request, payload }) => self.answer_method(&name, &request, &payload),
            Ok(Event::ReportRefused { status }) => {
                tracing::error!(
                    status,
                    "the hub refuses the report as invalid; the operator will not see this change"
                );
            }
            Err(error) => self.lost(&error),
        }
    }

    /// From the connection that was taken over only acknowledgements still count.
    fn came_late(&mut self, packet: Result<Packet, WireError>) {
        match packet {
            Ok(Packet::PubAck(answer)) => self.outbox.acknowledge(answer.pkid),
            Ok(_) => {}
            Err(_) => self.retiring = None,
        }
    }

    fn lost(&mut self, error: &SessionError) {
        if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.is_at_connect()) {
            tracing::debug!(error = %Chain(error), "the connection ended during a takeover");
            attempt.hurry(self.clock.now());
            self.live = None;
            self.is_loss_open = true;
            return;
        }
        self.counters.lost += 1;
        tracing::warn!(error = %Chain(error), "the connection is gone");
        self.end_live();
    }

    fn end_live(&mut self) {
        self.live = None;
        self.feed(Input::Lost);
    }

    fn read_twin(&mut self, document: &[u8]) {
        let reported = serde_json::from_slice::<Value>(document)
            .ok()
            .and_then(|mut twin| twin.get_mut("reported").map(Value::take));
        let stands = reported.and_then(|reported| Report::read(&reported).ok().flatten());
        if let (Some(live), Some(report), Some(patch)) =
            (self.live.as_mut(), &self.report, &self.report_patch)
        {
            if stands.as_ref() == Some(report) {
                live.session.note_reported(patch.clone());
            }
        }
        let allow_unsealed = self.config.rotation.allow_unsealed;
        let (desired, complaint) = twin::read_desired(document, &mut self.key_ring, allow_unsealed);
        // Once per change: a bad offer stands until somebody takes it away.
        if let Some(what) = complaint.as_ref().filter(|_| self.counters.complaint != complaint) {
            tracing::warn!(error = what, "the offer in the twin can't be used; the keys stay as they are");
        }
        self.counters.complaint = complaint;
        self.feed(Input::Desired(desired));
        self.forget_keys();
    }

    fn answer_method(&mut self, name: &str, request: &str, payload: &[u8]) {
        let action = serde_json::from_slice::<Value>(payload).ok();
        let action = action.as_ref().and_then(|payload| payload.get("action")).and_then(Value::as_str);
        let (status, body) = match (name, action) {
            (METHOD, Some("status")) => (200, self.report_document()),
            (METHOD, Some("retry")) => {
                self.feed(Input::Retry);
                (200, self.report_document())
            }
            (METHOD, _) => (
                400,
                json!({"error": "the payload must be {\"action\": \"status\"} or {\"action\": \"retry\"}"}),
            ),
            (_, _) => (404, json!({"error": format!("this agent answers the method {METHOD} only")})),
        };
        let now = self.clock.now();
        let Some(live) = self.live.as_mut() else { return };
        if let Err(error) = live.session.answer_method(status, request, &body, now) {
            self.lost(&error.into());
        }
    }

    fn report_document(&self) -> Value {
        self.report_patch.as_ref().and_then(|patch| patch.get("keyRenewal")).cloned().unwrap_or(Value::Null)
    }

    fn asked(&mut self, request: Request) {
        // Whoever asked may have gone away meanwhile: nobody to tell.
        match request {
            Request::Publish { message, taken } => {
                let _ = taken.send(self.outbox.push(message));
            }
            Request::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Request::Token { ttl_secs, resource, answer } => {
                let _ = answer.send(self.local_token(ttl_secs, resource.as_deref()));
            }
        }
    }

    fn local_token(&self, ttl_secs: u64, resource: Option<&str>) -> Result<Zeroizing<String>, String> {
        let key = self.state.live.or(self.state.ring.active_key()).and_then(|name| self.key_ring.key(name));
        let key = key.ok_or("there is no active key")?;
        token::for_program(key, &self.key_ring.registration, resource, ttl_secs, self.clock.unix_secs())
    }

    /// Lets the connection that stands do what is due.
    fn pursue(&mut self) {
        let now = self.clock.now();
        if self.retiring.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.retiring = None;
        }
        let outbox = if self.holds_messages(now) { None } else { Some(&mut self.outbox) };
        let Some(live) = self.live.as_mut() else { return };
        if let Err(error) = live.session.pursue(outbox, self.report_patch.as_ref(), now) {
            self.lost(&error);
        }
    }

    /// While the takeover is at CONNECT, or the old connection still has something to say, nothing new is sent: it
    /// would only have to be sent twice.
    fn holds_messages(&self, now: Instant) -> bool {
        self.retiring.is_some() || self.attempt.as_ref().is_some_and(|attempt| attempt.holds_messages(now))
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
        timers.chain(live).chain(retiring).chain(attempt).min().unwrap_or(idle)
    }

    async fn stop(mut self) {
        tracing::info!("stopping");
        if let Some(saving) = self.saving.take() {
            // A write under way is let through: the file is never left half-written, and neither is the answer lost.
            let _ = saving.await;
        }
        if let Some(live) = self.live.take() {
            let _ = tokio::time::timeout(GOODBYE, live.session.disconnect()).await;
        }
    }
}

async fn next_packet(session: Option<&mut Session>) -> Result<Packet, WireError> {
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

/// `None` when the writing thread has died.
async fn end_of<T>(thread: &mut Option<JoinHandle<T>>) -> Option<T> {
    match thread {
        Some(thread) => thread.await.ok(),
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
