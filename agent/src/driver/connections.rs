//! The connection that stands, the attempt beside it, and the one that was taken over: how one becomes the other, and
//! what their ends mean.

use std::time::Duration;

use rumqttc::mqttbytes::v4::Packet;
use twinkey_rotation::{Input, KeyName, Outcome, Trouble, UnixSecs};
use twinkey_sas::Expiry;

use super::Driver;
use super::attempt::{Attempt, Finished, Progress};
use super::outcomes::Kind;
use crate::chain::Chain;
use crate::clock::Instant;
use crate::config::Takeover;
use crate::hub::session::{ConnectError, Event, Session, SessionError};
use crate::hub::wire::{Received, WireError};
use crate::store::Files;
use crate::token;

/// How long the connection that was taken over may still say what it has to say: acknowledgements that were under
/// way. The hub has closed it already; this is only about the order of two TCP connections.
const RETIRING: Duration = Duration::from_millis(250);
/// A connection that ends so soon after a refusal ends for the refusal's sake.
const OWN_REFUSAL: Duration = Duration::from_secs(5);

/// The connection that stands.
pub(super) struct Live {
    pub(super) session: Session,
    pub(super) expiry: Expiry,
    pub(super) since_unix_secs: u64,
    /// Since when the device has been connected without a loss.
    pub(super) unbroken_since: Instant,
}

impl<F: Files + Send + 'static> Driver<F> {
    pub(super) fn begin_attempt(&mut self, key: KeyName) {
        self.counters.attempts += 1;
        if self.config.hub.takeover == Takeover::BreakBeforeMake && self.live.is_some() {
            tracing::info!("closing the connection before the next attempt, as configured");
            self.end_live();
        }
        self.attempt = Some(Attempt::begin(key, self.dialler.dial()));
    }

    pub(super) fn progressed(&mut self, progress: Progress) {
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
                        self.outcomes.count(Kind::Clock);
                        self.attempt = None;
                        self.feed(Input::Attempted(Outcome::Unknown(Trouble::Clock)));
                    }
                }
            }
            Progress::Finished(Ok(finished)) => self.accepted(finished),
            Progress::Finished(Err(error)) => self.not_accepted(&error),
        }
    }

    pub(super) fn accepted(&mut self, finished: Finished) {
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
        self.outcomes.clear();
        self.counters.is_all_refused = false;
        self.question.rest();
        let unix_secs = self.clock.unix_secs();
        let unbroken_since =
            self.live.as_ref().map(|live| live.unbroken_since).or(self.loss_open_since.take());
        let unbroken_since = unbroken_since.unwrap_or(now);
        let old = self.live.replace(Live { session, expiry, since_unix_secs: unix_secs, unbroken_since });
        self.outbox.begin_session(is_session_present);
        let is_takeover = std::mem::take(&mut self.is_loss_open) || old.is_some();
        self.counters.takeovers += u64::from(is_takeover);
        self.retiring = old.map(|old| (old.session, now + RETIRING));
        tracing::info!(key = %attempt.key, is_takeover, is_session_present, "connected");
        self.feed(Input::Attempted(Outcome::Accepted { at: UnixSecs(unix_secs) }));
        self.clock.confirm(unix_secs);
        self.note_time();
        self.tell_ready();
        self.tell_status();
    }

    pub(super) fn not_accepted(&mut self, error: &ConnectError) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let kind = Kind::of(error);
        // Once per key and change: an outage of days is a few lines, not one for every attempt.
        let what = Chain(error).to_string();
        if self.outcomes.note(attempt.key, kind, what.clone(), self.clock.unix_secs()) {
            let is_connected = self.live.is_some();
            tracing::warn!(key = %attempt.key, kind = kind.code(), error = what, is_connected, next = kind.advice(), "could not connect with this key");
            self.tell_status();
        }
        if kind == Kind::Refused {
            self.refused_at = Some(self.clock.now());
        }
        if matches!(kind, Kind::Refused | Kind::TlsDate) {
            if self.live.is_none() && self.question.trouble().is_some() {
                self.clock.doubt();
            }
            self.ask_time();
        }
        if std::mem::take(&mut self.is_loss_open) {
            self.counters.lost += 1;
            tracing::warn!("the connection is gone, and the one that was to take over did not come about");
            self.feed(Input::Lost);
        }
        self.feed(Input::Attempted(kind.outcome()));
        self.suspect();
    }

    pub(super) fn came(&mut self, received: Result<Received, WireError>) {
        let now = self.clock.now();
        let Some(live) = self.live.as_mut() else { return };
        match received.map_err(SessionError::from).and_then(|received| live.session.absorb(received, now)) {
            Ok(Event::Nothing) => {}
            Ok(Event::Acknowledged(packet_id)) => self.outbox.acknowledge(packet_id),
            Ok(Event::Twin(document)) => self.read_twin(&document),
            Ok(Event::TwinTooLarge { len }) => self.pass_over_twin(len),
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
    pub(super) fn came_late(&mut self, received: Result<Received, WireError>) {
        match received {
            Ok(Received::Packet(Packet::PubAck(answer))) => self.outbox.acknowledge(answer.pkid),
            Ok(_) => {}
            Err(_) => self.retiring = None,
        }
    }

    pub(super) fn lost(&mut self, error: &SessionError) {
        let now = self.clock.now();
        if let SessionError::Silent { .. } = error {
            self.outbox.expect_slower_link();
        }
        if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.is_at_connect()) {
            tracing::debug!(error = %Chain(error), "the connection ended during a takeover");
            attempt.hurry(now);
            self.loss_open_since = self.live.take().map(|live| live.unbroken_since);
            self.is_loss_open = true;
            return;
        }
        self.counters.lost += 1;
        tracing::warn!(error = %Chain(error), "the connection is gone");
        self.outcomes.lost(format!("the connection is gone: {}", Chain(error)));
        // A kick comes from elsewhere: not where we hung up on what is no MQTT, nor in the midst of a twin that is large
        // enough to be the reason itself.
        let is_hang_up = |live: &Live| match error {
            SessionError::Wire(error) => error.is_hang_up() && !live.session.is_skipping(),
            SessionError::Silent { .. } | SessionError::Subscription { .. } => false,
        };
        if let Some(live) = self.live.as_ref().filter(|live| is_hang_up(live)) {
            // A hub may close the connection that stands when it refuses another one: our own doing.
            let is_own_doing = self
                .refused_at
                .is_some_and(|refused_at| now.saturating_duration_since(refused_at) < OWN_REFUSAL);
            if !is_own_doing {
                self.duel.hung_up(now.saturating_duration_since(live.unbroken_since));
            }
        }
        self.end_live();
    }

    pub(super) fn end_live(&mut self) {
        self.live = None;
        self.feed(Input::Lost);
        self.tell_status();
    }

    /// Lets the connection that stands do what is due.
    pub(super) fn pursue(&mut self) {
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
    pub(super) fn holds_messages(&self, now: Instant) -> bool {
        self.retiring.is_some() || self.attempt.as_ref().is_some_and(|attempt| attempt.holds_messages(now))
    }
}
