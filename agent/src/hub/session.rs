//! One MQTT session with the hub, from CONNECT to its end. It subscribes, asks for the twin, keeps the reported
//! properties up to date, keeps the connection alive and judges whether the hub is still there: by what comes in and
//! by the oldest thing that the hub owes an answer to, never by what was written.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe, SubscribeFilter, SubscribeReasonCode,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use twinkey_contract::Identity;
use zeroize::Zeroize as _;
use zeroize::Zeroizing;

use super::Timing;
use super::dial::{DialError, Stage, Stream};
use super::outbox::Outbox;
use super::topics::{self, Incoming};
use super::wire::{Announced, Received, Wire, WireError};
use crate::clock::Instant;

/// Packet identifier of SUBSCRIBE, above those that messages use.
const SUBSCRIBE_ID: u16 = 0xffff;
/// First wait after the hub has put a twin request off (429, 5xx); doubled up to the longest.
const PUT_OFF_MIN: Duration = Duration::from_secs(2);
/// Longest such wait.
const PUT_OFF_MAX: Duration = Duration::from_secs(120);

/// What CONNECT says of us.
pub struct Credentials {
    /// The MQTT client identifier is the identity.
    pub identity: Identity,
    /// The user name.
    pub user_name: String,
    /// The token.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Why there is no session. The three groups of [`twinkey_rotation::Outcome`] follow from it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There was no stream to say CONNECT on.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The hub says: not authorized. Bad key, expired token, wrong clock, disabled, deleted and unknown look alike.
    #[error(
        "the hub refused the key (CONNACK {code}): wrong key, wrong clock, or the device is disabled or unknown"
    )]
    Refused {
        /// 4 or 5.
        code: u8,
    },
    /// The hub says that it can't serve us now.
    #[error("the hub is unavailable (CONNACK 3)")]
    Unavailable,
    /// The hub does not speak our protocol.
    #[error("the hub refused the protocol (CONNACK {code}): is this an IoT Hub?")]
    Protocol {
        /// 1 or 2.
        code: u8,
    },
    /// The connection ended before the answer came.
    #[error("no answer to CONNECT")]
    Wire(#[from] WireError),
    /// Something other than CONNACK came.
    #[error("what answers is no MQTT hub: check `port` in section [hub]")]
    Unexpected,
}

/// Says CONNECT on `stream` and waits for the answer. The flag tells whether the hub still knows our session.
pub async fn connect(
    stream: Box<dyn Stream>,
    credentials: Credentials,
    timing: &Timing,
) -> Result<(Wire<Box<dyn Stream>>, bool), ConnectError> {
    let mut wire = Wire::new(stream);
    let mut hello = Connect::new(credentials.identity.to_string());
    // Whole seconds, as the packet has them; Timing's are well within 16 bits.
    hello.keep_alive = u16::try_from(timing.keep_alive.as_secs()).unwrap_or(u16::MAX);
    // A clean session would make the hub throw away queued cloud-to-device messages.
    hello.clean_session = false;
    hello.set_login(credentials.user_name, credentials.password.as_str());
    let packet = Packet::Connect(hello);
    let queued = wire.queue(&packet);
    if let Packet::Connect(Connect { login: Some(mut login), .. }) = packet {
        login.password.zeroize();
    }
    queued?;
    let answer = timeout(timing.connect, wire.next())
        .await
        .map_err(|_| DialError::Timeout { stage: Stage::Connect, after: timing.connect })??;
    let Received::Packet(Packet::ConnAck(answer)) = answer else {
        return Err(ConnectError::Unexpected);
    };
    match answer.code {
        ConnectReturnCode::Success => Ok((wire, answer.session_present)),
        ConnectReturnCode::BadUserNamePassword => Err(ConnectError::Refused { code: 4 }),
        ConnectReturnCode::NotAuthorized => Err(ConnectError::Refused { code: 5 }),
        ConnectReturnCode::ServiceUnavailable => Err(ConnectError::Unavailable),
        ConnectReturnCode::RefusedProtocolVersion => Err(ConnectError::Protocol { code: 1 }),
        ConnectReturnCode::BadClientId => Err(ConnectError::Protocol { code: 2 }),
    }
}

/// A session that was accepted.
pub struct Session {
    wire: Wire<Box<dyn Stream>>,
    timing: Timing,
    last_in: Instant,
    last_out: Instant,
    ping_sent_at: Option<Instant>,
    is_subscribed: bool,
    subscribe_sent_at: Option<Instant>,
    requests: u64,
    is_twin_wanted: bool,
    has_twin: bool,
    twin_request: Option<Request>,
    report_request: Option<Request>,
    reported: Option<Value>,
    put_off: PutOff,
    /// How much longer an answer may take because of the messages on their way before it.
    transfer_time: Duration,
    /// Bytes that had come in at the last look, and whether a packet had come in part.
    received_len: u64,
    is_amid_packet: bool,
    /// When a part of a packet had come in at the last look.
    part_seen_at: Option<Instant>,
}

#[derive(Debug)]
struct Request {
    id: String,
    sent_at: Instant,
    /// What is reported once the hub says yes.
    body: Value,
}

/// What was published.
enum Body {
    Whole(Bytes),
    /// It was passed over.
    TooLarge {
        len: usize,
    },
}

#[derive(Debug, Default)]
struct PutOff {
    until: Option<Instant>,
    count: u32,
}

/// What a packet meant.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// Nothing that anybody else needs to know.
    Nothing,
    /// The whole twin, as JSON text.
    Twin(Bytes),
    /// The twin is too large to be read. It is asked for again after the next change of desired properties.
    TwinTooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// A direct method is called.
    Method {
        /// Its name.
        name: String,
        /// The id for the answer.
        request: String,
        /// Its payload.
        payload: Bytes,
    },
    /// The hub refused the report for good (400).
    ReportRefused {
        /// The status.
        status: u16,
    },
    /// The hub has acknowledged a message.
    Acknowledged(u16),
}

/// Why a session has ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection is gone.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The hub owes an answer for too long: the link is dead, though nothing said so.
    #[error("no answer to {what} for {} s: the link is dead", after.as_secs())]
    Silent {
        /// What there was no answer to.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The hub did not grant a subscription.
    #[error("the hub refused the subscription to {topic}")]
    Subscription {
        /// Which one.
        topic: &'static str,
    },
}

impl Session {
    /// Begins the session on a wire on which CONNECT was accepted: subscribes and wants the twin.
    pub fn begin(mut wire: Wire<Box<dyn Stream>>, timing: Timing, now: Instant) -> Result<Self, WireError> {
        let filters =
            topics::SUBSCRIPTIONS.map(|topic| SubscribeFilter::new(topic.to_owned(), QoS::AtMostOnce));
        wire.queue(&Packet::Subscribe(Subscribe { pkid: SUBSCRIBE_ID, filters: filters.into() }))?;
        Ok(Self {
            wire,
            timing,
            last_in: now,
            last_out: now,
            ping_sent_at: None,
            is_subscribed: false,
            subscribe_sent_at: Some(now),
            requests: 0,
            is_twin_wanted: true,
            has_twin: false,
            twin_request: None,
            report_request: None,
            reported: None,
            put_off: PutOff::default(),
            transfer_time: Duration::ZERO,
            received_len: 0,
            is_amid_packet: false,
            part_seen_at: None,
        })
    }

    /// Sends what is queued and waits for the next packet; cancel-safe.
    pub async fn next(&mut self) -> Result<Received, WireError> {
        self.wire.next().await
    }

    /// Whether something too large is being passed over.
    pub fn is_skipping(&self) -> bool {
        self.wire.is_skipping()
    }

    /// Takes in what has come.
    pub fn absorb(&mut self, received: Received, now: Instant) -> Result<Event, SessionError> {
        self.last_in = now;
        match received {
            Received::Packet(packet) => self.absorb_packet(packet, now),
            Received::TooLarge(Some(Announced { topic, packet_id, payload_len })) => {
                let body = Body::TooLarge { len: payload_len };
                Ok(self.absorb_publish(&topic, packet_id, body, now)?)
            }
            // No hub sends such a one. If it was an answer, that is missed.
            Received::TooLarge(None) => Ok(Event::Nothing),
        }
    }

    fn absorb_packet(&mut self, packet: Packet, now: Instant) -> Result<Event, SessionError> {
        match packet {
            Packet::PingResp => self.ping_sent_at = None,
            Packet::PubAck(PubAck { pkid }) => return Ok(Event::Acknowledged(pkid)),
            Packet::SubAck(answer) if answer.pkid == SUBSCRIBE_ID => {
                self.subscribe_sent_at = None;
                self.is_subscribed = true;
                for (topic, code) in topics::SUBSCRIPTIONS.into_iter().zip(answer.return_codes) {
                    if code == SubscribeReasonCode::Failure {
                        return Err(SessionError::Subscription { topic });
                    }
                }
            }
            Packet::Publish(publish) => {
                let packet_id = (publish.qos != QoS::AtMostOnce).then_some(publish.pkid);
                let body = Body::Whole(publish.payload);
                return Ok(self.absorb_publish(&publish.topic, packet_id, body, now)?);
            }
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::PubRec(_)
            | Packet::PubRel(_)
            | Packet::PubComp(_)
            | Packet::Subscribe(_)
            | Packet::SubAck(_)
            | Packet::Unsubscribe(_)
            | Packet::UnsubAck(_)
            | Packet::PingReq
            | Packet::Disconnect => {}
        }
        Ok(Event::Nothing)
    }

    fn absorb_publish(
        &mut self,
        topic: &str,
        packet_id: Option<u16>,
        body: Body,
        now: Instant,
    ) -> Result<Event, WireError> {
        if let Some(packet_id) = packet_id {
            // What is too large, too: it would come again for ever.
            self.queue(&Packet::PubAck(PubAck::new(packet_id)), now)?;
        }
        Ok(match Incoming::parse(topic) {
            Some(Incoming::TwinAnswer { status, request }) => self.absorb_answer(status, request, body, now),
            Some(Incoming::Desired) => {
                // A hint that something changed; the whole document is the truth.
                self.is_twin_wanted = true;
                Event::Nothing
            }
            Some(Incoming::Method { name, request }) => match body {
                Body::Whole(payload) => {
                    Event::Method { name: name.to_owned(), request: request.to_owned(), payload }
                }
                Body::TooLarge { .. } => {
                    let error = json!({"error": "the payload is too large"});
                    self.answer_method(413, request, &error, now)?;
                    Event::Nothing
                }
            },
            None => Event::Nothing,
        })
    }

    /// An answer to a request of this session; answers to anybody else's are none.
    fn absorb_answer(&mut self, status: u16, request: &str, body: Body, now: Instant) -> Event {
        if self.twin_request.as_ref().is_some_and(|waiting| waiting.id == request) {
            self.twin_request = None;
            if status == 200 {
                self.put_off = PutOff::default();
                self.has_twin = true;
                return match body {
                    Body::Whole(document) => Event::Twin(document),
                    Body::TooLarge { len } => Event::TwinTooLarge { len },
                };
            }
            self.is_twin_wanted = true;
            self.put_off(now);
        } else if self.report_request.as_ref().is_some_and(|waiting| waiting.id == request) {
            let Some(done) = self.report_request.take() else {
                return Event::Nothing;
            };
            if (200..300).contains(&status) || (400..429).contains(&status) {
                // Refused for good: the same document would be refused again.
                self.reported = Some(done.body);
                self.put_off = PutOff::default();
                if status >= 400 {
                    return Event::ReportRefused { status };
                }
            } else {
                self.put_off(now);
            }
        }
        Event::Nothing
    }

    fn put_off(&mut self, now: Instant) {
        let delay = PUT_OFF_MIN.saturating_mul(1 << self.put_off.count.min(10)).min(PUT_OFF_MAX);
        self.put_off.count = self.put_off.count.saturating_add(1);
        self.put_off.until = Some(now + delay);
    }

    /// Tells what the hub's twin says of us, so that an equal report is not sent again.
    pub fn note_reported(&mut self, reported: Value) {
        self.reported = Some(reported);
    }

    /// Answers a direct method.
    pub fn answer_method(
        &mut self,
        status: u16,
        request: &str,
        body: &Value,
        now: Instant,
    ) -> Result<(), WireError> {
        let topic = topics::method_answer(status, request);
        self.queue(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body.to_string())), now)
    }

    /// Sends whatever is due, and ends the session if the hub is silent.
    pub fn pursue(
        &mut self,
        outbox: Option<&mut Outbox>,
        report: Option<&Value>,
        now: Instant,
    ) -> Result<(), SessionError> {
        if let Some(outbox) = &outbox {
            self.transfer_time = outbox.transfer_time();
        }
        self.look_for_part_of_packet(now);
        let patience = self.timing.answer + self.transfer_time;
        for (what, sent_at) in self.debts(outbox.as_deref()) {
            if now.saturating_duration_since(sent_at) >= patience {
                return Err(SessionError::Silent { what, after: patience });
            }
        }
        if self.ping_sent_at.is_none() && now >= self.ping_due_at() {
            self.queue(&Packet::PingReq, now)?;
            self.ping_sent_at = Some(now);
        }
        if self.put_off.until.is_some_and(|until| until <= now) {
            self.put_off.until = None;
        }
        if self.is_subscribed && self.put_off.until.is_none() {
            self.pursue_twin(report, now)?;
        }
        if let Some(outbox) = outbox {
            let before = self.wire.backlog_len();
            outbox.send(&mut self.wire, now)?;
            if self.wire.backlog_len() > before {
                self.last_out = now;
            }
        }
        Ok(())
    }

    /// A large packet comes in for long on a slow link, and no answer can come before its end.
    fn look_for_part_of_packet(&mut self, now: Instant) {
        let (received_len, is_amid_packet) = (self.wire.received_len(), self.wire.is_amid_packet());
        if received_len != self.received_len && (is_amid_packet || self.is_amid_packet) {
            self.part_seen_at = Some(now);
        }
        self.received_len = received_len;
        self.is_amid_packet = is_amid_packet;
    }

    fn pursue_twin(&mut self, report: Option<&Value>, now: Instant) -> Result<(), WireError> {
        if self.is_twin_wanted && self.twin_request.is_none() {
            let id = self.next_request("g");
            // The body is ignored; the SDKs send one space.
            self.queue(&Packet::Publish(Publish::new(topics::twin_get(&id), QoS::AtMostOnce, " ")), now)?;
            self.twin_request = Some(Request { id, sent_at: now, body: Value::Null });
            self.is_twin_wanted = false;
        }
        let Some(report) = report.filter(|_| self.has_twin) else {
            return Ok(());
        };
        if self.report_request.is_none() && self.reported.as_ref() != Some(report) {
            let id = self.next_request("p");
            let topic = topics::reported_patch(&id);
            self.queue(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, report.to_string())), now)?;
            self.report_request = Some(Request { id, sent_at: now, body: report.clone() });
        }
        Ok(())
    }

    /// When [`pursue`](Self::pursue) has something to do at the latest.
    pub fn deadline(&self, outbox: Option<&Outbox>) -> Instant {
        let transfer_time = outbox.map_or(self.transfer_time, Outbox::transfer_time);
        let debts = self.debts(outbox).map(|(_, sent_at)| sent_at + self.timing.answer + transfer_time);
        let ping = self.ping_sent_at.is_none().then(|| self.ping_due_at());
        debts.chain(ping).chain(self.put_off.until).min().unwrap_or(self.last_in + self.timing.keep_alive)
    }

    /// Says goodbye, so that the hub need not guess. Nothing is waited for.
    pub async fn disconnect(mut self) {
        if self.wire.queue(&Packet::Disconnect).is_ok() {
            let _ = self.wire.flush().await;
        }
    }

    /// What the hub owes an answer to, and since when it could have come.
    fn debts(&self, outbox: Option<&Outbox>) -> impl Iterator<Item = (&'static str, Instant)> + use<> {
        let part_seen_at = self.part_seen_at;
        let requested = |request: &Option<Request>| request.as_ref().map(|request| request.sent_at);
        [
            ("a ping", self.ping_sent_at),
            ("a subscription", self.subscribe_sent_at),
            ("a twin request", requested(&self.twin_request)),
            ("a report", requested(&self.report_request)),
            ("a message", outbox.and_then(Outbox::oldest_sent_at)),
        ]
        .into_iter()
        .filter_map(move |(what, since)| since.map(|since| (what, part_seen_at.unwrap_or(since).max(since))))
    }

    /// At three quarters of the keep-alive after the last packet of the quieter side: traffic in one direction only
    /// proves nothing about the other, and the hub demands ours.
    fn ping_due_at(&self) -> Instant {
        self.last_in.min(self.last_out) + self.timing.keep_alive.mul_f32(0.75)
    }

    fn next_request(&mut self, kind: &str) -> String {
        self.requests += 1;
        format!("{kind}{}", self.requests)
    }

    fn queue(&mut self, packet: &Packet, now: Instant) -> Result<(), WireError> {
        self.last_out = now;
        self.wire.queue(packet)
    }
}
